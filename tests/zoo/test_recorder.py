import copy
import gc
import logging
import multiprocessing
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from torch import nn

from lltoolkit.errors import ResumeMismatch
from lltoolkit.labelled.schema import REQUIRED_ATTRS
from lltoolkit.tensors.sketch import sketch
from lltoolkit.zoo import Recorder, build_model, open_run
from lltoolkit.zoo.runs import next_due


def loop(recorder, *, epochs=2, steps=3, start=True, fail_at=None, model=None):
    """Train a small batch-norm network and return its states by step."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]
    if start:
        recorder.start(model)
    for epoch in range(epochs):
        for _ in range(steps):
            loss = model(torch.randn(5, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if len(states) - 1 == fail_at:
                raise KeyboardInterrupt
            optimizer.step()
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            recorder.step(model, epoch=epoch, learning_rate=0.1, loss=loss)
    return states


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng():
        yield


def assert_kept(run, states, steps):
    checkpoints = run.checkpoints
    assert [checkpoint.step for checkpoint in checkpoints] == steps
    for checkpoint in checkpoints:
        state = checkpoint.load()
        assert all(torch.equal(state[name], tensor) for name, tensor in states[checkpoint.step].items())


@pytest.mark.parametrize(
    ("every", "steps"),
    [("epoch", [0, 3, 6]), (2, [0, 2, 4, 6]), (4, [0, 4, 6]), (100, [0, 6]), ("geometric", [0, 1, 2, 3, 4, 5, 6])],
)
def test_each_checkpoint_is_the_state_after_its_step(tmp_path, every, steps):
    with Recorder(tmp_path / "mine", every=every) as recorder:
        states = loop(recorder)
    run = open_run(tmp_path / "mine")
    assert_kept(run, states, steps)
    assert run.finished
    if every == "epoch":
        assert [checkpoint.epoch for checkpoint in run.checkpoints] == [0, 1, 2]


def test_history_is_a_labelled_result(tmp_path):
    with Recorder(tmp_path / "mine") as recorder:
        loop(recorder)
    history = open_run(tmp_path / "mine").history
    assert (tmp_path / "mine" / "mine.history.nc").exists()
    assert history.step.values.tolist() == list(range(7))
    assert history.epoch.values.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert np.isnan(history.loss.sel(split="train")[0])
    assert np.isfinite(history.loss.sel(split="train")[1:]).all()
    assert history.learning_rate[1:].values.tolist() == [0.1] * 6
    assert set(REQUIRED_ATTRS) <= set(history.attrs)
    assert history.attrs["n_params"] == 4 * 3 + 3 + 6 + 3 * 2 + 2


def test_an_interrupt_keeps_what_was_recorded(tmp_path):
    states = []
    with pytest.raises(KeyboardInterrupt), Recorder(tmp_path / "mine") as recorder:
        loop(recorder, fail_at=5)
    with Recorder(tmp_path / "whole", every=1) as recorder:
        states = loop(recorder)
    run = open_run(tmp_path / "mine")
    assert_kept(run, states, [0, 3, 5])
    assert not run.finished
    assert run.history.sizes["step"] == 6
    assert [checkpoint.epoch for checkpoint in run.checkpoints] == [0, 1, 1]


def test_without_start_a_note_says_what_is_missing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), Recorder(tmp_path / "mine") as recorder:
        states = loop(recorder, start=False)
    assert "initial weights are not kept" in caplog.text
    assert_kept(open_run(tmp_path / "mine"), states, [3, 6])


def test_compiled_and_parallel_models_keep_their_own_names(tmp_path):
    inner = nn.Sequential(nn.Linear(4, 2))
    with Recorder(tmp_path / "mine") as recorder:
        loop(recorder, model=nn.DataParallel(nn.DataParallel(inner)))
    assert set(open_run(tmp_path / "mine").checkpoints[-1].load()) == {"0.weight", "0.bias"}


def test_a_zoo_model_comes_back_without_being_passed(tmp_path):
    model = build_model("mlp", in_channels=1, input_size=8)
    with Recorder(tmp_path / "mine") as recorder:
        recorder.start(model)
    before = torch.random.get_rng_state()
    again = open_run(tmp_path / "mine").model
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_mistakes(tmp_path):
    for options, told in (
        ({"every": "epochs"}, "Did you mean 'epoch'"),
        ({"every": 0}, "every=0"),
        ({"every": 1.5}, "every=1.5"),
        ({"every": True}, "every=True"),
        ({"dtype": "float16"}, "dtype='float16' is not one of None, 'float32', 'bfloat16'"),
        ({"thin": "first"}, "thin='first'"),
        ({"thin": "last", "n_last": 0}, "n_last=0"),
        ({"thin": "projection", "n_projected": 1.5}, "n_projected=1.5"),
        ({"overwrite": True, "resume": True}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=told):
            Recorder(tmp_path / "mine", **options)
    assert not (tmp_path / "mine").exists()
    with Recorder(tmp_path / "mine") as recorder:
        states = loop(recorder)
        with pytest.raises(RuntimeError, match="comes before the first step"):
            recorder.start(nn.Linear(1, 1))
        with pytest.raises(ValueError, match="epoch=0 after epoch 1"):
            recorder.step(nn.Linear(1, 1), epoch=0)
        with pytest.raises(ValueError, match="step=6 after step 6"):
            recorder.step(nn.Linear(1, 1), epoch=1, step=6)
    with pytest.raises(RuntimeError, match="closed"):
        recorder.step(nn.Linear(1, 1), epoch=1)
    with pytest.raises(FileExistsError, match="already holds a recording"):
        Recorder(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"trained with a Sequential.*open_run\(path, model="):
        _ = open_run(tmp_path / "mine").model
    filled = open_run(tmp_path / "mine", model=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))).model
    assert torch.equal(filled[0].weight, states[-1]["0.weight"])
    with pytest.raises(FileNotFoundError, match="Did you mean 'mine'"):
        open_run(tmp_path / "mina")
    (tmp_path / "mine" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        open_run(tmp_path / "mine")


def test_overwriting_leaves_strangers_alone(tmp_path):
    with Recorder(tmp_path / "mine", every=1) as recorder:
        loop(recorder)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with Recorder(tmp_path / "mine", overwrite=True) as recorder:
        loop(recorder, epochs=1, steps=1)
    assert [checkpoint.step for checkpoint in open_run(tmp_path / "mine").checkpoints] == [0, 1]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_geometric_recording_thins_out_by_a_tenth():
    steps = [1]
    while steps[-1] < 10**6:
        steps.append(next_due("geometric", steps[-1]))
    by_hand = [1]
    while by_hand[-1] < 10**6:
        by_hand.append(max(by_hand[-1] + 1, (11 * by_hand[-1] + 9) // 10))
    assert steps == by_hand
    assert len(steps) < 130


@pytest.mark.parametrize(
    ("every", "kept"), [("epoch", [0, 30, 60, 90, 120]), (50, [0, 60, 120]), ("geometric", [0, 30, 60, 90, 120])]
)
def test_a_call_an_epoch_is_kept_where_a_due_step_lies_behind_it(tmp_path, every, kept):
    model = nn.Linear(2, 1)
    recorder = Recorder(tmp_path / "mine", every=every)
    recorder.start(model)
    for epoch in range(4):
        recorder.step(model, epoch=epoch, step=30 * (epoch + 1), learning_rate=0.1 * epoch)
    assert recorder.last_step == 120
    recorder.close()
    recorder.close()
    run = open_run(tmp_path / "mine")
    assert [checkpoint.step for checkpoint in run.checkpoints] == kept
    assert run.finished
    assert run.history.step.values.tolist() == [0, 30, 60, 90, 120]
    for checkpoint in run.checkpoints[1:]:
        rate = float(run.history.learning_rate.sel(step=checkpoint.step))
        assert checkpoint.metadata["learning_rate"] == rate


def test_names_of_buffers_are_told_and_tied_weights_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with Recorder(tmp_path / "mine") as recorder:
        states = loop(recorder, model=model)
    run = open_run(tmp_path / "mine")
    assert_kept(run, states, [0, 3, 6])
    assert run.checkpoints[-1].metadata["buffers"] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    with safe_open(run.checkpoints[-1].path, framework="pt") as file:
        assert "2.weight" not in file.keys()  # noqa: SIM118 - the handle is no mapping


def test_bfloat16_rounds_weights_and_leaves_counts(tmp_path):
    with Recorder(tmp_path / "mine", dtype="bfloat16") as recorder:
        states = loop(recorder)
    for checkpoint in open_run(tmp_path / "mine").checkpoints:
        state = checkpoint.load()
        assert state.pop("1.num_batches_tracked") == states[checkpoint.step].pop("1.num_batches_tracked")
        for name, tensor in state.items():
            assert torch.equal(tensor, states[checkpoint.step][name].bfloat16())


def test_of_the_last_few_only_they_stay_and_the_first(tmp_path):
    with Recorder(tmp_path / "mine", every=1, thin="last", n_last=2) as recorder:
        states = loop(recorder)
    assert_kept(open_run(tmp_path / "mine"), states, [0, 5, 6])
    with Recorder(tmp_path / "epochs", thin="last", n_last=1) as recorder:
        states = loop(recorder)
    assert_kept(open_run(tmp_path / "epochs"), states, [0, 6])
    assert len(list((tmp_path / "epochs" / "checkpoints").iterdir())) == 4


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_projections_between_a_first_and_a_last_step_with_weights(tmp_path, dtype):
    with Recorder(tmp_path / "mine", every=1, thin="projection", n_projected=5, dtype=dtype) as recorder:
        states = loop(recorder)
    first, *between, last = open_run(tmp_path / "mine").checkpoints
    type_ = torch.bfloat16 if dtype else torch.float32
    for whole in (first, last):
        assert torch.equal(whole.load()["0.weight"], states[whole.step]["0.weight"].to(type_))
    assert [checkpoint.step for checkpoint in between] == [1, 2, 3, 4, 5]
    for checkpoint in between:
        weights = {
            name: tensor.to(type_)
            for name, tensor in states[checkpoint.step].items()
            if "running" not in name and "tracked" not in name
        }
        assert torch.equal(checkpoint.sketch(), sketch(weights, 5))


def test_what_adam_remembers_lies_beside_the_weights(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    remembered = {}
    with Recorder(tmp_path / "mine", every=1, optimizer=optimizer) as recorder:
        recorder.start(model)
        for step in range(1, 4):
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
            recorder.step(model, epoch=0)
            remembered[step] = copy.deepcopy(optimizer.state_dict()["state"])
    first, *others = open_run(tmp_path / "mine").checkpoints
    assert first.load_optimizer_state() == {}
    for checkpoint in others:
        told = checkpoint.load_optimizer_state()
        assert sorted(told) == sorted(name for name, _ in model.named_parameters())
        for number, (name, _) in enumerate(model.named_parameters()):
            assert told[name].keys() == remembered[checkpoint.step][number].keys()
            for word, tensor in told[name].items():
                assert torch.equal(tensor, remembered[checkpoint.step][number][word])


def test_an_error_of_writing_is_told_by_a_later_call(tmp_path):
    """Something lies where the folder of the checkpoints should be."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "checkpoints").touch()
    recorder = Recorder(tmp_path / "mine", every=1)
    with pytest.raises(OSError, match=r"can't be written .*Earlier checkpoints are kept"):  # noqa: PT012
        recorder.start(model := nn.Linear(2, 1))
        while True:
            recorder.step(model, epoch=0)
    with pytest.raises(OSError, match=r"can't be written"):
        recorder.close()


def test_a_failed_writing_costs_a_checkpoint_and_no_step(tmp_path):
    """A loop that catches the error goes on, and each later checkpoint is the state of its own step."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "checkpoints").touch()
    model, n_told = nn.Linear(2, 1), 0
    recorder = Recorder(tmp_path / "mine", every=1)
    recorder.start(model)
    for step in range(1, 9):
        if step == 5:
            (tmp_path / "mine" / "checkpoints").unlink()
        with torch.no_grad():
            model.weight.fill_(step)
        try:
            recorder.step(model, epoch=0, loss=step)
        except OSError:
            n_told += 1
        assert recorder.last_step == step
    with suppress(OSError):
        recorder.flush()
    recorder.close()
    run = open_run(tmp_path / "mine")
    assert n_told >= 1
    assert [checkpoint.step for checkpoint in run.checkpoints][-3:] == [6, 7, 8]
    assert all((checkpoint.load()["weight"] == checkpoint.step).all() for checkpoint in run.checkpoints)
    assert run.history.step.values.tolist() == list(range(9))
    assert run.history.loss.sel(split="train").values[1:].tolist() == list(range(1, 9))


def test_what_is_no_number_is_told_and_is_no_step(tmp_path):
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "mine", every=1) as recorder:
        recorder.start(model)
        for given, told in (
            ({"learning_rate": [0.1, 0.2]}, r"learning_rate=\[0.1, 0.2\]: give one number, such as scheduler"),
            ({"loss": torch.ones(3)}, "loss=tensor.*give one number"),
            ({"accuracy": None}, "accuracy=None: give one number"),
            ({"epoch": 0.5}, "epoch=0.5: give a whole number"),
            ({"step": 0}, "step=0: give a whole number"),
        ):
            with pytest.raises(ValueError, match=told):
                recorder.step(model, **{"epoch": 0, **given})
            assert recorder.last_step == 0
        numbers = {
            "learning_rate": np.float32(0.5),
            "loss": torch.ones(1, requires_grad=True),
            "accuracy": np.array([1]),
        }
        recorder.step(model, epoch=np.int64(0), step=np.int64(1), **numbers)
    run = open_run(tmp_path / "mine")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 1]
    assert run.history.learning_rate.values[1] == 0.5
    assert run.history.loss.values[0, 1] == run.history.accuracy.values[0, 1] == 1


def test_an_interrupt_while_a_step_is_recorded_keeps_the_step_before(tmp_path):
    class Interrupted(nn.Linear):
        now = False

        def state_dict(self, *arguments, **options):
            if self.now:
                raise KeyboardInterrupt
            return super().state_dict(*arguments, **options)

    model = Interrupted(2, 1)
    with pytest.raises(KeyboardInterrupt), Recorder(tmp_path / "mine", every=1) as recorder:  # noqa: PT012
        recorder.start(model)
        recorder.step(model, epoch=0)
        before = model.weight.detach().clone()
        with torch.no_grad():
            model.weight.zero_()
        model.now = True
        recorder.step(model, epoch=0)
    first, last = open_run(tmp_path / "mine").checkpoints
    assert (first.step, last.step) == (0, 1)
    assert torch.equal(last.load()["weight"], before)
    assert open_run(tmp_path / "mine").history.step.values.tolist() == [0, 1]


def test_a_model_that_changes_is_kept_as_it_is(tmp_path):
    """It gains parameters, takes another type, and ties two of them."""
    model = nn.Sequential(nn.Linear(2, 2))
    states = {}
    with Recorder(tmp_path / "mine", every=1) as recorder:
        for step, change in enumerate(
            [
                lambda: None,
                lambda: model.append(nn.BatchNorm1d(2)),
                lambda: model.to(torch.bfloat16),
                lambda: setattr(model[1], "bias", model[0].bias),
                lambda: model.pop(1),
            ],
            start=1,
        ):
            change()
            recorder.step(model, epoch=0)
            states[step] = copy.deepcopy(model.state_dict())
    for checkpoint in open_run(tmp_path / "mine").checkpoints:
        state = checkpoint.load()
        assert state.keys() == states[checkpoint.step].keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in states[checkpoint.step].items())
        assert all(state[name].dtype == tensor.dtype for name, tensor in states[checkpoint.step].items())


def test_two_recorders_of_one_folder(tmp_path, monkeypatch):
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "mine") as first:
        second = Recorder(tmp_path / "mine")
        first.start(model)
        with pytest.raises(FileExistsError, match="already holds a recording"):
            second.start(model)
    monkeypatch.setattr("lltoolkit.zoo.recorder.PATIENCE", 0.1)
    with FileLock(tmp_path / "mine" / ".lock"), pytest.raises(RuntimeError, match="another process is recording into"):  # noqa: PT012
        recorder = Recorder(tmp_path / "mine", overwrite=True)
        recorder.start(model)
    assert [checkpoint.step for checkpoint in open_run(tmp_path / "mine").checkpoints] == [0]
    recorder.start(model)
    recorder.close()


def test_a_recorder_that_is_never_closed_says_so(tmp_path, caplog):
    recorder = Recorder(tmp_path / "mine", every=2)
    loop(recorder)
    recorder._recording.wait()
    with caplog.at_level(logging.WARNING):
        del recorder
        gc.collect()
    assert "was not closed" in caplog.text
    assert open_run(tmp_path / "mine").history.step.values.tolist() == list(range(7))
    caplog.clear()
    with Recorder(tmp_path / "mine", every=2, resume=True) as recorder:
        assert recorder.last_step == 6
        recorder.start(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    assert open_run(tmp_path / "mine").finished
    assert not caplog.text


def test_a_checkpoint_that_vanishes_while_they_are_listed_is_not_listed(tmp_path):
    """A mark that the folder still names but nobody can read any more."""
    with Recorder(tmp_path / "mine") as recorder:
        loop(recorder)
    folder = tmp_path / "mine" / "checkpoints"
    (folder / "step_00000009.safetensors").touch()
    (folder / "step_00000009.json").symlink_to(folder / "gone.json")
    assert [checkpoint.step for checkpoint in open_run(tmp_path / "mine").checkpoints] == [0, 3, 6]


def test_epochs_counted_from_1_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), Recorder(tmp_path / "mine") as recorder:
        recorder.start(model := nn.Linear(2, 1))
        for epoch in (1, 1, 2, 2):
            recorder.step(model, epoch=epoch)
    assert caplog.text.count("epochs count from 0") == 1
    assert [checkpoint.step for checkpoint in open_run(tmp_path / "mine").checkpoints] == [0, 2, 4]


# Going on: each loop begins where the caller's own copy of model and optimizer stands; batches follow from the step.


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def go(recorder, model, optimizer, *, first=1, last=12, explicit=False, stop_after=None, saved=None):
    for step in range(first, last + 1):
        batch = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(
            model, epoch=(step - 1) // 3, learning_rate=0.1 / step, loss=loss, step=step if explicit else None
        )
        if saved is not None:
            saved[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if step == stop_after:
            raise KeyboardInterrupt


def files_of(path):
    return {file.name: file.read_bytes() for file in sorted((path / "checkpoints").iterdir())}


def assert_equal_recordings(a, b):
    assert files_of(a) == files_of(b)
    assert open_run(a).history.drop_attrs().identical(open_run(b).history.drop_attrs())
    assert open_run(a).finished
    assert open_run(b).finished
    names = {file.name.replace(a.name, b.name) for file in a.iterdir()}
    assert names == {file.name for file in b.iterdir()}


# Stops after the first step, within an epoch, at the end of one, and at the end of all.
CUTS = [
    ({"every": "epoch"}, (1, 6, 7, 12)),
    ({"every": 4}, (4, 7)),
    ({"every": "geometric"}, (7,)),
    ({"every": "epoch", "dtype": "bfloat16", "thin": "projection", "n_projected": 7}, (6, 7)),
    ({"every": 2, "thin": "projection", "n_projected": 7, "memory": True}, (6, 7)),
    ({"every": 2, "thin": "last", "n_last": 2}, (6, 7)),
    ({"every": "epoch", "thin": "last", "n_last": 1, "memory": True}, (6, 7)),
]


@pytest.mark.parametrize(("options", "stops"), CUTS, ids=str)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, options, stops):
    options = dict(options)
    memory = options.pop("memory", False)

    def record(path, model, optimizer, **more):
        return Recorder(path, optimizer=optimizer if memory else None, **options, **more)

    model, optimizer = make()
    with record(tmp_path / "whole", model, optimizer) as recorder:
        recorder.start(model)
        go(recorder, model, optimizer)
    for stop in stops:
        path, saved = tmp_path / f"cut{stop}", {}
        model, optimizer = make()
        with pytest.raises(KeyboardInterrupt), record(path, model, optimizer, resume=True) as recorder:  # noqa: PT012
            recorder.start(model)
            go(recorder, model, optimizer, stop_after=stop, saved=saved)
        assert not open_run(path).finished
        model, optimizer = make()
        with record(path, model, optimizer, resume=True) as recorder:
            assert recorder.last_step == stop
            if options.get("dtype") is None:
                kept = open_run(path).checkpoints[-1].load()
                assert all(torch.equal(kept[name], tensor) for name, tensor in saved[stop][0].items())
            model.load_state_dict(saved[stop][0])
            optimizer.load_state_dict(saved[stop][1])
            recorder.start(model)
            if stop < 12:
                go(recorder, model, optimizer, first=stop + 1)
        if stop < 12:
            assert_equal_recordings(tmp_path / "whole", path)


def test_a_finished_recording_can_be_made_longer(tmp_path):
    for name, parts in (("whole", [12]), ("parts", [5, 6, 12])):
        model, optimizer = make()
        for last in parts:
            with Recorder(tmp_path / name, every=4, resume=True) as recorder:
                recorder.start(model)
                go(recorder, model, optimizer, first=recorder.last_step + 1, last=last)
    assert_equal_recordings(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("options", [{"every": "epoch"}, {"every": 4}, {"every": 2, "thin": "projection"}], ids=str)
def test_going_on_from_an_older_state_drops_what_came_after(tmp_path, options):
    """The caller's own file is of step 5, the recording reached step 8."""
    model, optimizer = make()
    with Recorder(tmp_path / "whole", **options) as recorder:
        recorder.start(model)
        go(recorder, model, optimizer)
    saved = {}
    model, optimizer = make()
    with pytest.raises(KeyboardInterrupt), Recorder(tmp_path / "cut", **options) as recorder:  # noqa: PT012
        recorder.start(model)
        go(recorder, model, optimizer, stop_after=8, saved=saved)
    model.load_state_dict(saved[5][0])
    optimizer.load_state_dict(saved[5][1])
    with Recorder(tmp_path / "cut", resume=True, **options) as recorder:
        recorder.start(model)
        go(recorder, model, optimizer, first=6, explicit=True)
    assert_equal_recordings(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("options", [{"every": "epoch"}, {"every": 4}, {"every": 2, "thin": "projection"}], ids=str)
def test_flushing_leaves_no_trace(tmp_path, options):
    for name in ("whole", "flushed"):
        model, optimizer = make()
        with Recorder(tmp_path / name, **options) as recorder:
            recorder.start(model)
            for step in range(1, 13):
                go(recorder, model, optimizer, first=step, last=step)
                if name == "flushed":
                    recorder.flush()
                    run = open_run(tmp_path / name)
                    assert run.history.step.values[-1] == step
                    state = run.checkpoints[-1].load()
                    assert run.checkpoints[-1].step == step
                    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert_equal_recordings(tmp_path / "whole", tmp_path / "flushed")


def replay(path, states):
    """Record the states one after another, then wait to be killed; no gradients, which a forked process may lack."""
    model, _ = make()
    with Recorder(path, every=4) as recorder:
        recorder.start(model)
        for step, (state, _) in list(states.items())[1:]:
            model.load_state_dict(state)
            recorder.step(model, epoch=(step - 1) // 3, learning_rate=0.1 / step, loss=0.0)
        recorder.flush()
        signal.pause()


# Python from 3.12 on: the threads of other tests' writers have ended, and the copy uses none of torch's.
@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize("at", [4, 12, 40])
def test_after_a_kill_what_is_listed_is_whole_and_the_recording_goes_on(tmp_path, at):
    path, states = tmp_path / "killed", {}
    model, optimizer = make()
    with Recorder(tmp_path / "whole", every=4) as recorder:
        recorder.start(model)
        states[0] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        go(recorder, model, optimizer, last=50, saved=states)
    process = multiprocessing.get_context("fork").Process(target=replay, args=(path, states))
    process.start()
    deadline = time.monotonic() + 120
    while not (path / "checkpoints" / f"step_{at:08d}.json").exists():
        assert process.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    killed = open_run(path)
    reached = killed.checkpoints[-1].step
    assert not killed.finished
    assert killed.history.step.values[-1] >= reached
    for checkpoint in killed.checkpoints:
        state = checkpoint.load()
        assert all(torch.equal(state[name], tensor) for name, tensor in states[checkpoint.step][0].items())
    with Recorder(path, every=4, resume=True) as recorder:
        assert recorder.last_step == reached
        model.load_state_dict(states[reached][0])
        optimizer.load_state_dict(states[reached][1])
        recorder.start(model)
        go(recorder, model, optimizer, first=reached + 1, last=50)
    ours, theirs = files_of(path), files_of(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in theirs if name.endswith(".safetensors"))


def test_what_a_kill_left_half_way_is_swept_up(tmp_path):
    with Recorder(tmp_path / "mine", every=2) as recorder:
        loop(recorder)
    before = files_of(tmp_path / "mine")
    for name in (
        ".step_00000008.123.part.safetensors",
        "step_00000008.safetensors",
        "step_00000008.optimizer.safetensors",
    ):
        (tmp_path / "mine" / "checkpoints" / name).write_bytes(b"half")
    (tmp_path / "mine" / ".run.123.part.json").write_text("{")
    (tmp_path / "mine" / "step_00000008.safetensors").write_text("not ours")
    with Recorder(tmp_path / "mine", every=2, resume=True) as recorder:
        recorder.start(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    assert files_of(tmp_path / "mine") == before
    assert not (tmp_path / "mine" / ".run.123.part.json").exists()
    assert (tmp_path / "mine" / "step_00000008.safetensors").exists()


def test_another_model_or_other_options_are_told_apart(tmp_path):
    with Recorder(tmp_path / "mine", every=2) as recorder:
        loop(recorder)
    for options, told in (
        ({"every": 3}, "recorder.every: 2 there, 3 here"),
        ({"every": 2, "dtype": "bfloat16"}, "recorder.dtype: 'not set' there, 'bfloat16' here"),
        ({"every": 2, "thin": "last", "n_last": 3}, "recorder.n_last: 'not set' there, 3 here"),
    ):
        with pytest.raises(ResumeMismatch, match=told):
            Recorder(tmp_path / "mine", resume=True, **options)
    before = files_of(tmp_path / "mine")
    for model, told in (
        (nn.Linear(4, 2), "class: 'Sequential' there, 'Linear' here"),
        (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), r"0.weight: \[3, 4\] there, \[5, 4\]"),
        (nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 2)), r"1.weight: \[3\] there, 'not set' here"),
    ):
        with Recorder(tmp_path / "mine", every=2, resume=True) as recorder:
            with pytest.raises(ResumeMismatch, match=told):
                recorder.start(model)
            with pytest.raises(ResumeMismatch, match=told):
                recorder.step(model, epoch=2)
    with pytest.raises(ResumeMismatch), Recorder(tmp_path / "mine", every=2, resume=True) as recorder:
        recorder.start(nn.Linear(4, 2))
    assert files_of(tmp_path / "mine") == before
    assert open_run(tmp_path / "mine").finished


def test_steps_that_are_missing_are_told(tmp_path, caplog):
    with Recorder(tmp_path / "mine", every=2) as recorder:
        loop(recorder)
    with Recorder(tmp_path / "mine", every=2, resume=True) as recorder, caplog.at_level(logging.WARNING):
        recorder.step(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), epoch=3, step=10)
    assert "steps 7 to 9 are not in the recording" in caplog.text


def test_a_loop_that_begins_again_keeps_its_own_initial_weights(tmp_path):
    with Recorder(tmp_path / "mine", every=2) as recorder:
        loop(recorder)
    with Recorder(tmp_path / "mine", every=2, resume=True) as recorder:
        model, optimizer = make()
        with torch.no_grad():
            model[0].weight.zero_()
        recorder.start(model)
        go(recorder, model, optimizer, last=4, explicit=True)
    first, *others = open_run(tmp_path / "mine").checkpoints
    assert not first.load()["0.weight"].any()
    assert [checkpoint.step for checkpoint in others] == [2, 4]
    assert open_run(tmp_path / "mine").history.step.values.tolist() == [0, 1, 2, 3, 4]
