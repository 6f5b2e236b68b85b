"""What is saved comes back bit for bit; what is half there is no checkpoint; what does not fit says so."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from lltoolkit.tensors.checkpoints import Checkpoint, list_checkpoints, restore, save_checkpoint


class Tied(nn.Module):
    """Two names for one weight, an integer buffer and a batch norm."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.decode = nn.Linear(3, 3)
        self.decode.weight = self.encode.weight
        self.register_buffer("seen", torch.tensor([7, 8]))


def moved():
    model = Tied()
    model.norm(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    return model


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def test_whole_state_comes_back(tmp_path):
    model, other = moved(), Tied()
    checkpoint = save_checkpoint(tmp_path, model, step=12, epoch=1, learning_rate=0.1, loss=torch.tensor(0.5))
    assert_same(model.state_dict(), checkpoint.load())
    assert checkpoint.load_into(other) is other
    assert_same(model.state_dict(), other.state_dict())
    assert other.decode.weight is other.encode.weight
    (found,) = list_checkpoints(tmp_path)
    assert found == checkpoint
    assert found.metadata["loss"] == 0.5
    assert found.metadata["learning_rate"] == 0.1


def test_safetensors_itself_reads_the_file(tmp_path):
    model, other = moved(), Tied()
    checkpoint = save_checkpoint(tmp_path, model, step=0, epoch=0)
    load_model(other, checkpoint.path)
    assert_same(model.state_dict(), other.state_dict())


def test_views_of_one_storage_are_kept_apart(tmp_path):
    whole = torch.arange(6.0)
    state = {"left": whole[:4], "right": whole[2:], "turned": whole.view(2, 3).T, "empty": torch.empty(0)}
    assert_same(state, save_checkpoint(tmp_path, state, step=0, epoch=0).load())


def test_listed_in_order_of_steps_without_half_pairs(tmp_path):
    for step in (100, 3, 20):
        save_checkpoint(tmp_path, nn.Linear(1, 1), step=step, epoch=step // 10)
    half = save_checkpoint(tmp_path, nn.Linear(1, 1), step=50, epoch=5)
    half.path.with_suffix(".json").unlink()
    save_checkpoint(tmp_path, nn.Linear(1, 1), step=60, epoch=6).path.unlink()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [3, 20, 100]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_damage_names_the_file(tmp_path):
    checkpoint = save_checkpoint(tmp_path, moved(), step=1, epoch=0)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"step_00000001\.safetensors is damaged"):
        checkpoint.load()
    mark = checkpoint.path.with_suffix(".json")
    for text in ('{"step": 1', "[]", json.dumps({"step": 1})):
        mark.write_text(text)
        with pytest.raises(ValueError, match=r"step_00000001\.json is damaged"):
            list_checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Checkpoint(tmp_path / "none.safetensors", 0, 0).load()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_checkpoints(tmp_path / "none")


def test_every_misfit_is_named_and_nothing_moves():
    model = moved()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["norm.bias"], state["norm.num_batches_tracked"]
    state |= {"decode.bias": torch.zeros(4), "head.weight": torch.zeros(2, 3), "norm.weight": torch.zeros(3).double()}
    state["decode.weight"] = state["decode.weight"] + 1
    with pytest.raises(ValueError, match="does not fit this Tied") as caught:
        restore(model, state, source="weights.pt")
    for told in (
        "missing norm.bias (3,)",
        "extra head.weight (2, 3)",
        "misshapen decode.bias: (4,) in the file, (3,) in the model",
        "norm.weight is torch.float64",
        "decode.weight differs from encode.weight",
    ):
        assert told in str(caught.value)
    assert "num_batches_tracked" not in str(caught.value)
    assert_same(before, model.state_dict())


def test_narrow_types_widen_and_one_tied_name_is_enough():
    model = moved()
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    del state["encode.weight"]
    other = restore(Tied(), state, source="half")
    assert other.encode.weight.dtype == torch.float32
    assert torch.equal(other.encode.weight, model.encode.weight.half().float())


def test_a_state_of_tensors_only(tmp_path):
    with pytest.raises(ValueError, match="'note', a str"):
        save_checkpoint(tmp_path, {"note": "x"}, step=0, epoch=0)


def test_a_full_disk_is_an_oserror_that_says_what_is_kept(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device (os error 28)")

    save_checkpoint(tmp_path, nn.Linear(2, 1), step=0, epoch=0.0)
    monkeypatch.setattr("lltoolkit.tensors.checkpoints.save_file", full)
    with pytest.raises(OSError, match=r"step_00000001.*No space left.*Earlier checkpoints are kept"):
        save_checkpoint(tmp_path, nn.Linear(2, 1), step=1, epoch=1.0)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [0]
    assert len(list(tmp_path.iterdir())) == 2
