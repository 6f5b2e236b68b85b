"""What is saved comes back bit for bit; what is half there is no checkpoint; what does not fit says so."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from lltoolkit.tensors.checkpoints import SKETCH, Checkpoint, list_checkpoints, open_state, save_checkpoint
from lltoolkit.tensors.foreign import open_checkpoints


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.bfloat16, None])
def test_types_that_are_stored(tmp_path, dtype):
    model = moved().double()
    checkpoint = save_checkpoint(tmp_path, model, step=1, epoch=0, dtype=dtype)
    stored = {"float32": torch.float32, None: torch.float64}.get(dtype, torch.bfloat16)
    expected = {name: t.to(stored) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    assert_same(expected, checkpoint.load())
    restored = checkpoint.load_into(Tied().double())
    assert_same({name: t.to(model.state_dict()[name].dtype) for name, t in expected.items()}, restored.state_dict())
    assert restored.decode.weight is restored.encode.weight


def test_unknown_types_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"dtype='bfloat' is not one of None, 'float32', 'bfloat16'.*Did you mean 'bfloat16'"
    ):
        save_checkpoint(tmp_path, moved(), step=1, epoch=0, dtype="bfloat")
    with pytest.raises(ValueError, match=r"dtype=torch\.int8 holds no weights"):
        save_checkpoint(tmp_path, moved(), step=1, epoch=0, dtype=torch.int8)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_knows_its_buffers(tmp_path):
    buffers = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "seen"]
    assert sorted(save_checkpoint(tmp_path, moved(), step=1, epoch=0).metadata["buffers"]) == sorted(buffers)
    save_checkpoint(tmp_path, moved().state_dict(), step=2, epoch=0, buffers=iter(buffers))
    save_checkpoint(tmp_path, moved().state_dict(), step=3, epoch=0)
    found = [checkpoint.metadata.get("buffers") for checkpoint in list_checkpoints(tmp_path)[1:]]
    assert found == [buffers, None]


def test_an_optimizer_state_comes_back_and_is_no_checkpoint(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {name: optimizer.state[weight] for name, weight in model.named_parameters()}
    checkpoint = save_checkpoint(tmp_path, model, step=1, epoch=0, dtype="bfloat16", optimizer_state=state)
    found = checkpoint.load_optimizer_state()
    assert found.keys() == state.keys()
    for name in state:
        assert_same(state[name], found[name])
    assert [each.step for each in list_checkpoints(tmp_path)] == [1]
    assert open_checkpoints(tmp_path) == [checkpoint]
    checkpoint = save_checkpoint(tmp_path, model, step=1, epoch=0, optimizer_state={"weight": {"momentum": None}})
    assert checkpoint.load_optimizer_state() == {}
    checkpoint = save_checkpoint(tmp_path, model, step=1, epoch=0)
    with pytest.raises(ValueError, match=r"no optimizer state was kept.*Recorder\(\.\.\., optimizer=optimizer\)"):
        checkpoint.load_optimizer_state()


def test_a_sketch_is_kept_instead_of_weights(tmp_path):
    vector = torch.arange(5.0)
    save_checkpoint(tmp_path, {SKETCH: vector}, step=1, epoch=0)
    (found,) = list_checkpoints(tmp_path)
    assert found.is_sketch
    assert torch.equal(found.sketch(), vector)
    for read in (found.load, lambda: found.load_into(nn.Linear(1, 1))):
        with pytest.raises(ValueError, match=r"only a sketch of the weights \(5 numbers\).*trajectory_statistics"):
            read()
    whole = save_checkpoint(tmp_path, nn.Linear(1, 1), step=2, epoch=0)
    assert not whole.is_sketch
    with pytest.raises(ValueError, match="keeps whole weights, no sketch"):
        whole.sketch()


def test_an_open_checkpoint_gives_slices_of_what_load_gives(tmp_path):
    checkpoint = save_checkpoint(tmp_path, moved(), step=1, epoch=0)
    state = checkpoint.load()
    with open_state(checkpoint) as opened:
        assert set(opened.names) == state.keys() - {"decode.weight"}  # a tied weight stands there once
        for name in opened.names:
            assert opened.shape(name) == tuple(state[name].shape)
            assert torch.equal(opened.slice(name, 1, 3), state[name].flatten()[1:3])
