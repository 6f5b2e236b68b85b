import copy
import json
import math
import multiprocessing
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lltoolkit as ll
from lltoolkit.errors import DivergedTraining, ResumeMismatch
from lltoolkit.tensors.machine import using_threads
from lltoolkit.tensors.sketch import sketch
from lltoolkit.zoo import build_model, load_data, open_run, train
from lltoolkit.zoo.recipe import crop_and_flip, learning_rate_at
from lltoolkit.zoo.recording import Recording
from lltoolkit.zoo.runs import write_note
from lltoolkit.zoo.train import count_steps


@pytest.fixture(scope="module")
def data():
    digits = load_data("digits")
    splits = {split: (x[:90], y[:90]) for split, (x, y) in digits.items()}
    splits["test"] = (splits["test"][0][:30], splits["test"][1][:30])
    return splits


def small(data, **options):
    return train("resnet8", data, **{"epochs": 2, "batch_size": 32, "progress": False, "lr": 0.05, **options})


def assert_equal_runs(a, b):
    assert [checkpoint.step for checkpoint in a.checkpoints] == [checkpoint.step for checkpoint in b.checkpoints]
    for one, other in zip(a.checkpoints, b.checkpoints, strict=True):
        assert one.metadata["loss"] == pytest.approx(other.metadata["loss"], abs=0, nan_ok=True)
        state, again = one.load(), other.load()
        assert all(torch.equal(state[name], again[name]) for name in state)
    assert a.history.drop_attrs().identical(b.history.drop_attrs())


def test_a_step_is_the_step_of_torch(data):
    """Two steps of one full batch against torch.optim by hand."""
    x, y = data["train"]
    start = build_model("mlp", in_channels=1, input_size=8)
    for name, make in {
        "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda w: torch.optim.Adam(w, lr=1e-3, weight_decay=0.01),
        "adamw": lambda w: torch.optim.AdamW(w, lr=1e-3, weight_decay=0.01),
    }.items():
        run = train(
            start,
            data,
            optimizer=name,
            batch_size=8192,
            weight_decay=0.01,
            epochs=2,
            schedule="constant",
            progress=False,
        )
        model = copy.deepcopy(start)
        optimizer = make(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        for given, expected in zip(run.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)


def test_history_and_last_checkpoint_tell_the_truth(data):
    run = small(data, every=2)
    x, y = data["test"]
    with torch.no_grad():
        logits = run.model(x).double()
    last = run.history.isel(step=-1)
    assert float(last.loss.sel(split="test")) == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert float(last.accuracy.sel(split="test")) == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert run.history.step.values.tolist() == [0, 3, 6]
    assert run.history.epoch.values.tolist() == [0, 1, 2]
    assert np.isnan(run.history.loss.sel(split="train", step=0))
    assert run.history.loss.attrs["units"] == "nat"
    assert [(checkpoint.step, checkpoint.epoch) for checkpoint in run.checkpoints] == [
        (0, 0),
        (2, 0),
        (3, 1),
        (4, 1),
        (6, 2),
    ]
    assert run.model.zoo_config == {
        "name": "resnet8", "shortcut": "A", "width": 1, "n_classes": 10, "in_channels": 1, "input_size": 8,
    }  # fmt: skip


def test_a_seed_repeats_whatever_was_drawn_before(data):
    first = small(data, augment="crop_flip")
    torch.rand(17)
    before = torch.random.get_rng_state()
    assert_equal_runs(first, small(data, augment="crop_flip"))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = small(data, augment="crop_flip", seed=1)
    assert not torch.equal(other.checkpoints[0].load()["conv1.weight"], first.checkpoints[0].load()["conv1.weight"])


def test_dropout_goes_on_as_it_would_have(data, tmp_path, monkeypatch):
    """Ctrl-C in the middle of an epoch, then the same call again: as if nothing had been."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 10))
    options = {
        "epochs": 3,
        "batch_size": 32,
        "every": 2,
        "progress": False,
        "optimizer": "adam",
        "augment": "crop_flip",
    }
    whole = train(model, data, out=tmp_path / "whole", **options)
    calls = iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return crop_and_flip(*arguments)

    monkeypatch.setattr(sys.modules["lltoolkit.zoo.train"], "crop_and_flip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, out=tmp_path / "cut", **options)
    assert not open_run(tmp_path / "cut").finished
    assert_equal_runs(whole, train(model, data, out=tmp_path / "cut", **options))


# A forked copy of this process starts at once. On one thread, since torch's others do not come along; it uses no GPU.
@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize("at", [4, 16])
def test_killed_and_resumed_equals_uninterrupted(data, tmp_path, at):
    data = {split: (x[:48], y[:48]) for split, (x, y) in data.items()}
    options = {"epochs": 8, "batch_size": 16, "every": 4, "device": "cpu"}
    with using_threads(1):
        process = multiprocessing.get_context("fork").Process(
            target=small, args=(data,), kwargs={**options, "out": tmp_path / "killed"}
        )
        process.start()
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoints" / f"step_{at:08d}.json").exists():
            assert process.is_alive(), "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.join()
        assert not open_run(tmp_path / "killed").finished
        for name in ("whole", "killed"):
            small(data, out=tmp_path / name, **options)
    assert_equal_runs(open_run(tmp_path / "whole"), open_run(tmp_path / "killed"))


def test_a_finished_run_returns_at_once_and_opens_again(data, tmp_path, monkeypatch):
    run = small(data, out=tmp_path / "run")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.*") if file.name != ".lock"}
    monkeypatch.setattr(sys.modules["lltoolkit.zoo.train"], "_fit", None)
    for again in (small(data, out=tmp_path / "run"), open_run(tmp_path / "run")):
        assert again.finished
        assert_equal_runs(run, again)
        assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_another_configuration_is_told_apart(data, tmp_path):
    small(data, out=tmp_path / "run", epochs=1)
    other = {split: (x + 1, y) for split, (x, y) in data.items()}
    for options, told in (
        ({"lr": 0.1}, "lr: 0.05 there, 0.1 here"),
        ({"model_options": {"shortcut": "none"}}, "model.shortcut: 'A' there, 'none' here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"data": other}, "data.sha256"),
    ):
        with pytest.raises(ResumeMismatch, match=told):
            small(**{"data": data, "out": tmp_path / "run", "epochs": 1, **options})
    anew = small(data, out=tmp_path / "run", epochs=1, lr=0.1, resume=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"] == anew.config
    assert anew.config["lr"] == 0.1


def test_the_callers_module_never_moves(data):
    model = build_model("resnet8", in_channels=1, input_size=8)
    before = copy.deepcopy(model.state_dict())
    run = train(model, data, epochs=1, batch_size=64, progress=False)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(run.model.conv1.weight, model.conv1.weight)
    start = run.checkpoints[0].load()
    assert all(torch.equal(before[name], start[name]) for name in before)


def test_divergence_keeps_what_it_had(data, tmp_path):
    with pytest.raises(DivergedTraining, match=r"Try a smaller lr") as caught:
        small(data, lr=1e30, epochs=5, out=tmp_path / "run", every=1)
    run = open_run(tmp_path / "run")
    assert str(run.checkpoints[-1].path) in str(caught.value)
    for checkpoint in run.checkpoints:
        assert all(tensor.isfinite().all() for tensor in checkpoint.load().values())
    assert run.history.sizes["step"] >= 1


def test_a_kill_just_before_the_end_leaves_nothing_behind(data, tmp_path, monkeypatch):
    """The last checkpoint is there, what it replaces and the state to go on from are not removed yet."""
    options = {"every": 2, "record": {"thin": "last", "n_last": 1}}
    whole = small(data, out=tmp_path / "whole", **options)

    def killed(*arguments, finished):
        if finished:
            raise KeyboardInterrupt
        write_note(*arguments, finished=finished)

    monkeypatch.setattr(sys.modules["lltoolkit.zoo.train"], "write_note", killed)
    monkeypatch.setattr(Recording, "_remove", lambda *arguments: None)
    with pytest.raises(KeyboardInterrupt):
        small(data, out=tmp_path / "killed", **options)
    monkeypatch.undo()
    assert len(open_run(tmp_path / "killed").checkpoints) > 2
    assert_equal_runs(whole, small(data, out=tmp_path / "killed", **options))
    (tmp_path / "killed" / "resume.pt").touch()
    assert_equal_runs(whole, small(data, out=tmp_path / "killed", **options))
    assert not (tmp_path / "killed" / "resume.pt").exists()


@pytest.mark.parametrize(("n_epochs", "n_steps"), [(1, 1), (2, 1), (1, 7), (2, 7), (12, 7)])
@pytest.mark.parametrize("schedule", ["step", "cosine", "one_cycle", "constant"])
def test_learning_rates_are_those_of_torch(schedule, n_epochs, n_steps):
    lr = 0.1
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedules = torch.optim.lr_scheduler
    n_all = n_epochs * n_steps
    theirs = {
        "step": lambda: schedules.MultiStepLR(
            optimizer, [math.ceil(n_epochs * above / below) * n_steps for above, below in ((1, 2), (3, 4), (11, 12))]
        ),
        "cosine": lambda: schedules.CosineAnnealingLR(optimizer, n_all),
        "one_cycle": lambda: schedules.OneCycleLR(optimizer, max_lr=lr, total_steps=n_all, cycle_momentum=False),
        "constant": lambda: schedules.ConstantLR(optimizer, factor=1.0),
    }[schedule]()
    for step in range(n_all):
        ours = learning_rate_at(step, n_steps, {"lr": lr, "epochs": n_epochs, "schedule": schedule})
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        optimizer.step()
        if step < n_all - 1:
            theirs.step()


@pytest.mark.parametrize("schedule", ["step", "cosine", "one_cycle", "constant"])
def test_each_checkpoint_has_the_rate_of_its_last_step(data, schedule):
    run = small(data, schedule=schedule, every=2)
    for checkpoint in run.checkpoints[1:]:
        assert checkpoint.metadata["learning_rate"] == learning_rate_at(checkpoint.step - 1, 3, run.config)
        if checkpoint.step in run.history.step:
            assert checkpoint.metadata["learning_rate"] == run.history.learning_rate.sel(step=checkpoint.step)


def test_geometric_checkpoints_and_going_on_from_between_them(data, tmp_path, monkeypatch):
    """Epochs of three steps: a cut at the start of epoch 6, step 18, which is no checkpoint."""
    options = {"epochs": 8, "every": "geometric", "augment": "crop_flip"}
    whole = small(data, out=tmp_path / "whole", **options)
    assert [checkpoint.step for checkpoint in whole.checkpoints] == [*range(12), 13, 15, 17, 19, 21, 24]
    calls = iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 18:
            raise KeyboardInterrupt
        return crop_and_flip(*arguments)

    monkeypatch.setattr(sys.modules["lltoolkit.zoo.train"], "crop_and_flip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(data, out=tmp_path / "cut", **options)
    stood = torch.load(tmp_path / "cut" / "resume.pt", weights_only=True)["state"]
    assert stood["step"] == 18
    again = small(data, out=tmp_path / "cut", **options)
    assert_equal_runs(whole, again)
    assert next(calls) == 19 + 6


def test_what_a_checkpoint_holds_is_an_option(data, tmp_path):
    plain = small(data, every=2)
    thin = small(data, every=2, record={"thin": "projection", "n_projected": 9, "dtype": "bfloat16"})
    assert thin.config["record"] == {"dtype": "bfloat16", "thin": "projection", "n_projected": 9}
    assert [checkpoint.is_sketch for checkpoint in thin.checkpoints] == [False, True, True, True, False]
    weights = dict(plain.model.named_parameters())
    for checkpoint, there in zip(thin.checkpoints[1:4], plain.checkpoints[1:4], strict=True):
        state = {name: tensor.bfloat16() for name, tensor in there.load().items() if name in weights}
        assert torch.equal(checkpoint.sketch(), sketch(state, 9))
    last = thin.checkpoints[-1].load()
    assert all(torch.equal(last[name], weight.bfloat16()) for name, weight in weights.items())
    few = small(data, every=1, record={"thin": "last", "n_last": 2, "optimizer_state": True}, out=tmp_path / "run")
    assert [checkpoint.step for checkpoint in few.checkpoints] == [0, 5, 6]
    moments = few.checkpoints[-1].load_optimizer_state()
    assert moments.keys() == weights.keys()
    assert moments["conv1.weight"]["momentum_buffer"].shape == weights["conv1.weight"].shape
    with pytest.raises(ResumeMismatch, match=r"record\.n_last: 2 there, 3 here"):
        small(data, every=1, record={"thin": "last", "n_last": 3, "optimizer_state": True}, out=tmp_path / "run")


def test_learning_rates_are_the_papers():
    config = {"lr": 0.1, "epochs": 300, "schedule": "step"}
    drops = [
        epoch
        for epoch in range(1, 300)
        if learning_rate_at(epoch * 7, 7, config) < learning_rate_at(epoch * 7 - 1, 7, config)
    ]
    assert drops == [150, 225, 275]
    assert learning_rate_at(299 * 7, 7, config) == pytest.approx(1e-4)
    cosine = [learning_rate_at(step, 1, config | {"schedule": "cosine"}) for step in (0, 150, 300)]
    assert cosine == pytest.approx([0.1, 0.05, 0])


def test_last_batches_of_every_length(data):
    """A batch of one example, which batch norm can't be trained on, joins the one before."""
    assert [count_steps(n, 32) for n in (1, 31, 32, 33, 34, 64, 65, 66)] == [1, 1, 1, 1, 2, 2, 2, 3]
    assert count_steps(5, 1) == 5
    x, y = data["train"]
    run = train("vgg9", {"train": (x[:33], y[:33])}, epochs=1, batch_size=32, progress=False)
    assert run.checkpoints[-1].step == 1
    assert run.history.split.values.tolist() == ["train"]


def test_crops_are_windows_of_the_padded_image():
    """Each result is found among all 81 shifts, mirrored or not; black comes in at the borders."""
    images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fill = torch.tensor([-1.0, -2.0, -3.0])
    out = crop_and_flip(images, fill, torch.Generator().manual_seed(1))
    padded = functional.pad(images - fill.view(3, 1, 1), (4, 4, 4, 4)) + fill.view(3, 1, 1)
    found = []
    for before, after in zip(padded, out, strict=True):
        windows = {
            (dy, dx, flip): before[:, dy : dy + 8, dx : dx + 8].flip(2) if flip else before[:, dy : dy + 8, dx : dx + 8]
            for dy in range(9) for dx in range(9) for flip in (False, True)
        }  # fmt: skip
        (place,) = [key for key, window in windows.items() if torch.allclose(window, after, atol=1e-5)]
        found.append(place)
    assert len(set(found)) > 15
    assert {flip for *_, flip in found} == {False, True}


def test_colour_images_are_augmented_by_default_and_others_not(data):
    x = torch.rand(8, 3, 32, 32)
    run = train("mlp", {"train": (x, torch.arange(8))}, epochs=1, progress=False)
    assert run.config["augment"] == "crop_flip"
    assert run.config["model"]["n_classes"] == 8
    assert train("mlp", data, epochs=1, progress=False).config["augment"] == "none"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "sdg"}, "Did you mean 'sgd'"),
        ({"schedule": "cos"}, "Did you mean 'cosine'"),
        ({"augment": True}, "augment=True is not one of"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"every": 0}, "every=0"),
        ({"every": "epochs"}, "Did you mean 'epoch'"),
        ({"record": {"dtpye": "bfloat16"}}, "Did you mean 'dtype'"),
        ({"record": {"thin": "last", "n_last": -1}}, "n_last=-1"),
        ({"record": {"optimizer_state": "adam"}}, "optimizer_state='adam' is not one of True, False"),
        ({"device": "gpu"}, "device='gpu' can't be used"),
        ({"seed": "a"}, "seed='a'"),
        ({"model_options": {"depth": 3}}, r"model_options has \['depth'\]"),
        ({"model": nn.Linear(3, 2)}, r"the model fails on inputs of shape \(2, 1, 8, 8\)"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, "labels run from 0 to 9, the model has 3 classes"),
        ({"model": nn.Flatten()}, "no parameter with requires_grad"),
    ],
)
def test_bad_arguments_stop_before_anything_is_written(data, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        train(**{"model": "resnet8", "data": data, "out": tmp_path / "run", "progress": False, **options})
    assert not (tmp_path / "run").exists()


def test_bad_data_is_refused(data):
    x, y = data["train"]
    for bad, told in (
        ({"test": (x, y)}, "one called 'train' is needed"),
        ({"train": (x, y[:5])}, "must agree"),
        ({"train": (x[:0], y[:0])}, "empty"),
        ({"train": ((x, x), y)}, "one tensor of inputs"),
    ):
        with pytest.raises(ValueError, match=told):
            train("mlp", bad, progress=False)


def test_public_names():
    assert ll.zoo.train is train
    assert ll.Recorder is ll.zoo.Recorder


def test_a_folder_that_cannot_be_made_is_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"run can't be written .*Choose another path"):
        train("mlp", load_data("digits"), epochs=1, out=tmp_path / "file" / "run", progress=False)
