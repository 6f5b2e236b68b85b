"""The callback in a real Lightning Trainer, against a plain loop over the same batches."""

import pytest
import torch
from torch import nn

from lltoolkit.zoo import open_run
from lltoolkit.zoo.shim import import_torchvision

import_torchvision()
lightning = pytest.importorskip("pytorch_lightning", reason="needs the extra 'integrations'")

from lltoolkit.integrations.lightning import RecorderCallback  # noqa: E402

# Lightning's own use of torch; and advice that does not hold for twelve examples in memory, and where one goes on.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Module(lightning.LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if self.fail_at == self.global_step:
            raise RuntimeError("no more")
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module, root, callback, *, epochs=3, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=[callback, lightning.callbacks.ModelCheckpoint(root / "own", save_top_k=-1, filename="{epoch}")],
        **options,
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=4)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def by_hand(*, accumulate=1, epochs=3):
    """States, losses and learning rates by step, from a loop without Lightning."""
    module = Module()
    optimizer = module.configure_optimizers()["optimizer"]
    states, losses, rates, told = [{name: tensor.clone() for name, tensor in module.state_dict().items()}], [], [], 0.0
    for _ in range(epochs):
        for number, batch in enumerate(X.split(4)):
            loss = module.model(batch).square().mean()
            (loss / accumulate).backward()
            told += float(loss.detach()) / accumulate
            if (number + 1) % accumulate and number < 2:
                continue
            rates.append(0.1 * 0.5 ** len(rates))
            for group in optimizer.param_groups:
                group["lr"] = rates[-1]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(told)
            told = 0.0
            states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return states, losses, rates


def assert_recorded(run, states, losses, rates, steps):
    assert [checkpoint.step for checkpoint in run.checkpoints] == steps
    for checkpoint in run.checkpoints:
        for name, tensor in checkpoint.load().items():
            torch.testing.assert_close(tensor, states[checkpoint.step][name])
        if checkpoint.step:
            assert checkpoint.metadata["learning_rate"] == pytest.approx(rates[checkpoint.step - 1])
    history = run.history
    assert history.step.values.tolist() == list(range(len(states)))
    assert history.loss.sel(split="train").values[1:].tolist() == pytest.approx(losses, rel=1e-5)
    assert history.learning_rate.values[1:].tolist() == pytest.approx(rates)


def test_a_recording_is_that_of_a_plain_loop(tmp_path):
    fit(Module(), tmp_path, RecorderCallback(tmp_path / "mine", every=2))
    run = open_run(tmp_path / "mine")
    assert run.finished
    assert_recorded(run, *by_hand(), steps=[0, 2, 4, 6, 8, 9])
    assert run.history.epoch.values.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_steps_are_the_optimizers_where_gradients_are_gathered(tmp_path):
    callback = RecorderCallback(tmp_path / "mine", optimizer_state=True)
    fit(Module(), tmp_path, callback, accumulate_grad_batches=2)
    run = open_run(tmp_path / "mine")
    assert_recorded(run, *by_hand(accumulate=2), steps=[0, 2, 4, 6])
    assert "momentum_buffer" in run.checkpoints[-1].load_optimizer_state()["model.0.weight"]


def test_a_part_of_the_module_under_its_own_names(tmp_path):
    fit(Module(), tmp_path, RecorderCallback(tmp_path / "mine", submodule="model"), epochs=1)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert torch.equal(
        open_run(tmp_path / "mine", model=model).model[0].weight, by_hand(epochs=1)[0][3]["model.0.weight"]
    )


@pytest.mark.parametrize("every", ["epoch", 2])
def test_after_an_error_it_goes_on_from_lightnings_own_checkpoint(tmp_path, every):
    with pytest.raises(RuntimeError, match="no more"):
        fit(Module(fail_at=5), tmp_path, RecorderCallback(tmp_path / "mine", every=every))
    cut = open_run(tmp_path / "mine")
    assert not cut.finished
    assert cut.checkpoints[-1].step == 5
    callback = RecorderCallback(tmp_path / "mine", every=every)
    fit(Module(), tmp_path, callback, ckpt_path=tmp_path / "own" / "epoch=0.ckpt")
    run = open_run(tmp_path / "mine")
    assert run.finished
    assert_recorded(run, *by_hand(), steps=[0, 3, 6, 9] if every == "epoch" else [0, 2, 4, 6, 8, 9])


def test_wrong_options_are_told_at_once_and_nothing_is_overwritten(tmp_path):
    with pytest.raises(ValueError, match="every=0"):
        RecorderCallback(tmp_path / "mine", every=0)
    fit(Module(), tmp_path, RecorderCallback(tmp_path / "mine"), epochs=1)
    with pytest.raises(FileExistsError, match="already holds a recording"):
        fit(Module(), tmp_path, RecorderCallback(tmp_path / "mine"), epochs=1)
