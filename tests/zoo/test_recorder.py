import logging

import numpy as np
import pytest
import torch
from torch import nn

from lltoolkit.labelled.schema import REQUIRED_ATTRS
from lltoolkit.zoo import Recorder, build_model, open_run


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


@pytest.mark.parametrize(("every", "steps"), [("epoch", [0, 3, 6]), (2, [0, 2, 4, 6]), (4, [0, 4, 6]), (100, [0, 6])])
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
        loop(recorder, model=nn.DataParallel(inner))
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
    for every in ("epochs", 0, 1.5, True):
        with pytest.raises(ValueError, match=f"every={every!r}"):
            Recorder(tmp_path / "mine", every=every)
    with Recorder(tmp_path / "mine") as recorder:
        states = loop(recorder)
        with pytest.raises(RuntimeError, match="comes before the first step"):
            recorder.start(nn.Linear(1, 1))
        with pytest.raises(ValueError, match="epoch=0 after epoch 1"):
            recorder.step(nn.Linear(1, 1), epoch=0)
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
