"""Weights come out of every kind of file, whole or by slices, and tied ones once."""

import re

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from lltoolkit.tensors.weight_files import open_weights, peek, read_weights

STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "bias": torch.arange(3), "half": torch.ones(2).bfloat16()}


def prefixed(*prefixes):
    return {"".join(prefixes) + name: tensor for name, tensor in STATE.items()}


FILES = {
    "plain.safetensors": lambda path: save_file(STATE, path),
    "parallel.safetensors": lambda path: save_file(prefixed("module."), path),
    "plain.pt": lambda path: torch.save(STATE, path),
    "legacy.pth": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "wrapped.th": lambda path: torch.save({"epoch": 3, "model": STATE}, path),
    "compiled.bin": lambda path: torch.save(prefixed("module.", "_orig_mod."), path),
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_gives_the_same_state(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    whole = read_weights(path)
    assert whole.keys() == STATE.keys()
    with open_weights(path) as opened:
        assert set(opened.names) == STATE.keys()
        for key, tensor in STATE.items():
            assert whole[key].dtype == opened.tensor(key).dtype == tensor.dtype
            assert torch.equal(whole[key], tensor)
            assert opened.shape(key) == tuple(tensor.shape)
            assert opened.is_floating_point(key) == tensor.is_floating_point()
            assert torch.equal(opened.slice(key, 1, 7), tensor.flatten()[1:7])


def test_a_prefix_chooses_entries(tmp_path):
    path = tmp_path / "epoch=1-step=20.ckpt"
    state = prefixed("module.", "model.", "_orig_mod.") | {"module.metric.total": torch.zeros(1)}
    torch.save({"state_dict": state, "global_step": 20, "epoch": 1, "loops": {"done": True}}, path)
    assert read_weights(path, prefix="model.").keys() == STATE.keys()
    with open_weights(path, prefix="model.") as opened:
        assert set(opened.names) == STATE.keys()
    assert peek(path, ("global_step", "epoch", "none")) == {"global_step": 20, "epoch": 1}
    with pytest.raises(ValueError, match=r"no entry whose name begins with prefix='net\.'; there are model\._orig"):
        read_weights(path, prefix="net.")


def test_tied_weights_are_one_entry(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    with open_weights(tmp_path / "tied.pt") as opened:
        assert opened.names == ("0.weight",)
    assert read_weights(tmp_path / "tied.pt").keys() == {"0.weight", "1.weight"}


def test_a_tied_weight_is_found_under_each_of_its_names(tmp_path):
    """``save_model`` keeps the name that comes first in the alphabet, a model the one that it defined first."""
    model = nn.ModuleDict({"embed": nn.Linear(3, 3, bias=False), "decode": nn.Linear(3, 3, bias=False)})
    model["decode"].weight = model["embed"].weight
    save_model(model, str(tmp_path / "tied.safetensors"))
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    for name, kept in (("tied.safetensors", "decode.weight"), ("tied.pt", "embed.weight")):
        with open_weights(tmp_path / name) as opened:
            assert opened.names == (kept,)
            for each in ("embed.weight", "decode.weight"):
                assert each in opened
                assert torch.equal(opened.slice(each, 2, 7), model["embed"].weight.flatten()[2:7])


def test_an_empty_prefix_takes_nothing_off(tmp_path):
    save_file(prefixed("module."), tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors", prefix="").keys() == prefixed("module.").keys()
    with open_weights(tmp_path / "a.safetensors", prefix="module.") as opened:
        assert set(opened.names) == STATE.keys()
        assert opened.key("bias") == "module.bias"


def test_a_weight_tied_to_one_without_the_prefix_stays(tmp_path):
    """A LightningModule may hold ``self.head = self.model.head``: the state dict has it twice."""
    weight = torch.arange(6.0)
    torch.save({"head.weight": weight, "model.head.weight": weight}, tmp_path / "a.ckpt")
    with open_weights(tmp_path / "a.ckpt", prefix="model.") as opened:
        assert opened.names == ("head.weight",)
        assert torch.equal(opened.slice("head.weight", 0, 6), weight)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_damage_shows_when_a_file_is_opened_not_when_it_is_peeked_at(tmp_path, name):
    path = tmp_path / name
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    for content in (path.read_bytes()[:-50], b"", b"nothing that anybody wrote"):
        path.write_bytes(content)
        assert not peek(path, ("global_step",))
        with pytest.raises(ValueError, match=re.escape(name)), open_weights(path):
            pass
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"), open_weights(path):
        pass


def test_an_error_of_the_caller_is_no_damage(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    with pytest.raises(OSError, match=r"^mine$"), open_weights(tmp_path / "a.safetensors"):
        raise OSError("mine")
