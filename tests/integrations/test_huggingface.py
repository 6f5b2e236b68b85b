"""The callback in a real Hugging Face Trainer, against a plain loop over the same batches."""

import pytest
import torch
from torch import nn

from lltoolkit.zoo import open_run
from lltoolkit.zoo.shim import import_torchvision

import_torchvision()
transformers = pytest.importorskip("transformers", reason="needs the extra 'integrations'")
pytest.importorskip("accelerate", reason="needs the extra 'integrations'")

from lltoolkit.integrations.huggingface import RecorderCallback  # noqa: E402

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_random_numbers():
    """The Trainer seeds the global ones."""
    with torch.random.fork_rng():
        yield


class Model(nn.Module):
    def __init__(self, fail_at=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.n_calls, self.fail_at = 0, fail_at

    def forward(self, x):
        if self.n_calls == self.fail_at:
            raise RuntimeError("no more")
        self.n_calls += 1
        return {"loss": self.model(x).square().mean()}


def fit(model, root, callback, *, epochs=3, resume=None, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(root / "own"),
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        learning_rate=0.1,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        **{"optim": "sgd", "logging_steps": 1, "save_strategy": "epoch", **options},
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=[{"x": x} for x in X], callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)


def by_hand(*, accumulate=1, epochs=3):
    """States, losses and learning rates by step, from a loop without the Trainer."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    n_steps = epochs * -(-3 // accumulate)
    states, losses, rates = [{name: tensor.clone() for name, tensor in model.state_dict().items()}], [], []
    for _ in range(epochs):
        for batches in (
            (X.split(4)[:accumulate], X.split(4)[accumulate:]) if accumulate > 1 else ([batch] for batch in X.split(4))
        ):
            rates.append(0.1 * (1 - len(rates) / n_steps))
            for group in optimizer.param_groups:
                group["lr"] = rates[-1]
            losses.append(0.0)
            optimizer.zero_grad()
            for batch in batches:
                loss = model(batch)["loss"] / len(batches)
                loss.backward()
                losses[-1] += float(loss.detach())
            optimizer.step()
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return states, losses, rates


def assert_recorded(run, states, losses, rates, steps):
    assert [checkpoint.step for checkpoint in run.checkpoints] == steps
    for checkpoint in run.checkpoints:
        for name, tensor in checkpoint.load().items():
            torch.testing.assert_close(tensor, states[checkpoint.step][name])
        if checkpoint.step:
            assert checkpoint.metadata["learning_rate"] == pytest.approx(rates[checkpoint.step - 1])
    assert run.history.step.values.tolist() == list(range(len(states)))
    assert run.history.loss.sel(split="train").values[1:].tolist() == pytest.approx(losses, rel=1e-4, nan_ok=True)
    assert run.history.learning_rate.values[1:].tolist() == pytest.approx(rates)


def test_a_recording_is_that_of_a_plain_loop(tmp_path):
    fit(Model(), tmp_path, RecorderCallback(tmp_path / "mine", every=2))
    run = open_run(tmp_path / "mine")
    assert run.finished
    assert_recorded(run, *by_hand(), steps=[0, 2, 4, 6, 8, 9])
    assert run.history.epoch.values.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_steps_are_the_optimizers_where_gradients_are_gathered(tmp_path):
    """And a loss is told only of the steps at which the Trainer logs one."""
    fit(Model(), tmp_path, RecorderCallback(tmp_path / "mine"), gradient_accumulation_steps=2, logging_steps=2)
    states, losses, rates = by_hand(accumulate=2)
    told = [(losses[step - 2] + losses[step - 1]) / 2 if step % 2 == 0 else float("nan") for step in range(1, 7)]
    assert_recorded(open_run(tmp_path / "mine"), states, told, rates, steps=[0, 2, 4, 6])


def test_adam_is_remembered(tmp_path):
    callback = RecorderCallback(tmp_path / "mine", optimizer_state=True)
    fit(Model(), tmp_path, callback, epochs=1, optim="adamw_torch")
    moments = open_run(tmp_path / "mine").checkpoints[-1].load_optimizer_state()
    assert moments["model.0.weight"]["exp_avg_sq"].shape == (3, 4)


@pytest.mark.parametrize("every", ["epoch", 2])
def test_after_an_error_it_goes_on_from_the_trainers_own_checkpoint(tmp_path, every):
    with (
        pytest.raises(RuntimeError, match="no more"),
        RecorderCallback(tmp_path / "mine", every=every) as callback,
    ):
        fit(Model(fail_at=5), tmp_path, callback)
    cut = open_run(tmp_path / "mine")
    assert not cut.finished
    assert cut.checkpoints[-1].step == 5
    callback = RecorderCallback(tmp_path / "mine", every=every)
    fit(Model(), tmp_path, callback, resume=str(tmp_path / "own" / "checkpoint-3"))
    run = open_run(tmp_path / "mine")
    assert run.finished
    assert_recorded(run, *by_hand(), steps=[0, 3, 6, 9] if every == "epoch" else [0, 2, 4, 6, 8, 9])


def test_a_callback_that_an_error_left_open_records_again(tmp_path):
    callback = RecorderCallback(tmp_path / "mine", overwrite=True)
    with pytest.raises(RuntimeError, match="no more"):
        fit(Model(fail_at=5), tmp_path, callback)
    fit(Model(), tmp_path, callback)
    assert_recorded(open_run(tmp_path / "mine"), *by_hand(), steps=[0, 3, 6, 9])


def test_wrong_options_are_told_at_once_and_nothing_is_overwritten(tmp_path):
    with pytest.raises(ValueError, match="thin='lst'"):
        RecorderCallback(tmp_path / "mine", thin="lst")
    fit(Model(), tmp_path, RecorderCallback(tmp_path / "mine"), epochs=1)
    with pytest.raises(FileExistsError, match="already holds a recording"):
        fit(Model(), tmp_path, RecorderCallback(tmp_path / "mine"), epochs=1)
