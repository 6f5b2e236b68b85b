"""Folders that others filled are read as one run, in the order of their steps; what is ambiguous is refused."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lltoolkit.tensors.checkpoints import list_checkpoints, save_checkpoint
from lltoolkit.tensors.foreign import open_checkpoints, runs_of
from lltoolkit.tensors.gram import parameter_names
from lltoolkit.zoo.runs import Run


def write(folder, *names, **beside):
    """Files that hold their own place as a weight, so that the order shows."""
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"w": torch.full((2,), float(place))}
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state, **{key: values[place] for key, values in beside.items()}}, path)
    return folder


def places(checkpoints):
    return [int(checkpoint.load()["w"][0]) for checkpoint in checkpoints]


@pytest.mark.parametrize(
    ("names", "pattern", "steps", "epochs"),
    [
        (["net_1.pt", "net_2.pt", "net_10.pt"], None, [1, 2, 10], [-1, -1, -1]),
        (["epoch_1_resnet56.pth", "epoch_12_resnet56.pth"], None, [1, 12], [1, 12]),
        (["checkpoint-90/model.safetensors", "checkpoint-500/model.safetensors"], "*/*", [90, 500], [-1, -1]),
        (["epoch=1-val_loss=0.31.pt", "epoch=2-val_loss=0.05.pt"], None, [1, 2], [1, 2]),
        (["a.pt", "b.pt", "c.safetensors"], None, [0, 1, 2], [-1, -1, -1]),
        (["v2.0/start7.pt", "v2.0/start8.pt"], "v2.0/*", [7, 8], [-1, -1]),
    ],
)
def test_steps_are_told_by_the_names(tmp_path, names, pattern, steps, epochs):
    found = open_checkpoints(write(tmp_path, *names), pattern)
    assert [checkpoint.step for checkpoint in found] == steps
    assert [checkpoint.epoch for checkpoint in found] == epochs
    assert places(found) == list(range(len(names)))


def test_the_files_own_step_goes_first(tmp_path):
    write(tmp_path, "epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt", global_step=[30, 20, 90], epoch=[0, 1, 4])
    found = open_checkpoints(tmp_path)
    assert [(checkpoint.step, checkpoint.epoch) for checkpoint in found] == [(20, 1), (30, 0), (90, 4)]
    assert places(found) == [1, 0, 2]


def test_a_damaged_file_hides_no_other_files_step(tmp_path):
    write(tmp_path, "epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt", global_step=[30, 60, 90])
    (tmp_path / "epoch=0.ckpt").write_bytes(b"")
    assert [checkpoint.step for checkpoint in open_checkpoints(tmp_path)] == [0, 60, 90]


def test_prefixes_are_taken_off(tmp_path):
    model = nn.Sequential(nn.Linear(2, 1))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"loss.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "step5.ckpt")
    (found,) = open_checkpoints(tmp_path, prefix="model.")
    other = found.load_into(nn.Sequential(nn.Linear(2, 1)))
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_damaged_file_shows_when_it_is_read(tmp_path):
    write(tmp_path, "step1.pt", "step2.pt", "step3.safetensors")
    for name in ("step2.pt", "step3.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    found = open_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in found] == [1, 2, 3]
    for checkpoint in found[1:]:
        with pytest.raises(ValueError, match=re.escape(checkpoint.path.name)):
            checkpoint.load()


def test_two_files_of_one_step_are_refused(tmp_path):
    write(tmp_path, "epoch3.pt", "model3.pt")
    with pytest.raises(ValueError, match=r"epoch3\.pt and model3\.pt .* both say step 3\. Give pattern="):
        open_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in open_checkpoints(tmp_path, "epoch*.pt")] == [3]


def test_nothing_found_says_what_is_there(tmp_path):
    write(tmp_path, "checkpoint-5/model.safetensors")
    (tmp_path / "weights.h5").write_text("")
    with pytest.raises(ValueError, match=r"ends in \.pt.*There is checkpoint-5/, weights\.h5\. Give pattern="):
        open_checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"matches '\*\.pt'"):
        open_checkpoints(tmp_path, "*.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is nothing"):
        open_checkpoints(tmp_path / "empty")
    with pytest.raises(ValueError, match="absolute path"):
        open_checkpoints(tmp_path, str(tmp_path / "*.pt"))
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'checkpoint-5'"):
        open_checkpoints(tmp_path / "checkpoint-6")


def test_our_own_folders_need_no_pattern(tmp_path):
    for step in (0, 5):
        save_checkpoint(tmp_path / "run" / "checkpoints", nn.Linear(2, 1), step=step, epoch=step, optimizer_state={})
    (tmp_path / "run" / "resume.pt").write_bytes(b"")
    own = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert open_checkpoints(tmp_path / "run") == open_checkpoints(tmp_path / "run" / "checkpoints") == own


def test_a_model_in_several_files_is_refused(tmp_path):
    whole = write(tmp_path / "whole", *(f"checkpoint-{step}/model-00001-of-00001.safetensors" for step in (5, 10)))
    assert [checkpoint.step for checkpoint in open_checkpoints(whole, "*/*.safetensors")] == [5, 10]
    names = [f"checkpoint-{step}/model-0000{part}-of-00002.safetensors" for step in (5, 10) for part in (1, 2)]
    write(tmp_path / "parts", *names)
    for pattern in (None, "*/model.safetensors", "*/*.safetensors", "*/*-00001-of-*"):
        with pytest.raises(ValueError, match=r"model-00001-of-00002.* \(shards\).*max_shard_size"):
            open_checkpoints(tmp_path / "parts", pattern)


def test_a_run_without_a_checkpoint_yet_says_so(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", nn.Linear(2, 1), step=0, epoch=0).path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="In checkpoints/ is no complete checkpoint of lltoolkit yet"):
        open_checkpoints(tmp_path)


def test_our_own_names_stand_as_they_are(tmp_path):
    """A model may have a child named `module` without being wrapped; its buffers stay buffers under any prefix."""
    model = nn.ModuleDict({"module": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))})
    model["module"].register_buffer("kernel", torch.ones(2))
    saved = save_checkpoint(tmp_path, model, step=0, epoch=0)
    assert open_checkpoints(tmp_path) == [saved]
    assert parameter_names([saved], model) == tuple(name for name, _ in model.named_parameters())
    saved.load_into(model)
    inner = open_checkpoints(tmp_path, prefix="module.")
    assert set(parameter_names(inner)) == {name for name, _ in model["module"].named_parameters()}
    inner[0].load_into(model["module"])


def test_whatever_stands_for_runs(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("sgd", "adam")]
    own = []
    for folder in folders:
        for step in (0, 5):
            save_checkpoint(folder / "checkpoints", nn.Linear(2, 1), step=step, epoch=step)
        own.append(list_checkpoints(folder / "checkpoints"))
    run = Run(folders[0], {"model": {}})
    for source in (run, folders[0], str(folders[0]), own[0], own[0][::-1]):
        assert runs_of(source) == {"sgd": own[0]}
    assert list(runs_of(folders[0] / "checkpoints")) == ["sgd"]
    monkeypatch.chdir(folders[0])
    assert list(runs_of(".")) == ["sgd"]
    assert runs_of(folders) == runs_of([run, own[1]]) == {"sgd": own[0], "adam": own[1]}
    assert list(runs_of([run, run])) == ["sgd", "sgd (2)"]
    assert runs_of({"a": run, "b": own[1]}) == {"a": own[0], "b": own[1]}


def test_what_is_no_run_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", nn.Linear(2, 1), step=0, epoch=0)
    with pytest.raises(ValueError, match="a run is a int"):
        runs_of(5)
    with pytest.raises(ValueError, match="a run is a Linear"):
        runs_of([nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="no run in an empty sequence"):
        runs_of([])
    with pytest.raises(ValueError, match="the run 'a' has no complete checkpoint yet"):
        runs_of({"a": []})
    with pytest.raises(ValueError, match="a run is a list"):
        runs_of([tmp_path, [1, 2]])
