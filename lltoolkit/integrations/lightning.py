"""A recorder for PyTorch Lightning: ``pip install 'lltoolkit[integrations]'``."""

import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lltoolkit.integrations.follower import Follower, rate_of
from lltoolkit.zoo.shim import import_torchvision


def _import_lightning() -> ModuleType:
    """Import Lightning by the one of its two names that the caller uses, if that shows."""
    names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)
    import_torchvision()  # Lightning imports it in turn, which may fail beside a CPU build of torch
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ImportError(
        "lltoolkit.integrations.lightning needs PyTorch Lightning: pip install 'lltoolkit[integrations]', or "
        "pip install lightning."
    )


class RecorderCallback(_import_lightning().Callback):
    """Record a training of a Lightning ``Trainer``: ``Trainer(callbacks=[RecorderCallback("runs/mine")])``.

    Keeps the initial weights, and what `every` asks for of the state after each optimizer step, by the Trainer's own
    ``global_step``; the history has the loss of each step, over all its batches. ``fit(..., ckpt_path=...)`` goes on in
    the recording that is there. Only the first process of several writes. The weights of a strategy that shares them
    out among processes (FSDP, DeepSpeed) are not gathered.

    Parameters
    ----------
    path : str or Path
        Folder of the recording; ``lltoolkit.zoo.open_run(path)`` reads it.
    submodule : str
        Record this part of the LightningModule under its own names, such as ``"model"``; all of it unless given.
    optimizer_state : bool
        Keep what the first optimizer remembers of each weight, too.
    **options
        Of `Recorder`: ``every``, ``dtype``, ``thin``, ``n_last``, ``n_projected``, ``overwrite``, ``resume``.

    Raises
    ------
    ValueError
        If an option is not allowed.
    FileExistsError
        At the start of a training from step 0, if `path` holds a recording.
    """

    def __init__(self, path: str | Path, *, submodule: str = "", optimizer_state: bool = False, **options: Any) -> None:
        self._submodule = submodule
        self._follower = Follower(path, optimizer_state=optimizer_state, **options)
        self._rate = math.nan
        self._loss: torch.Tensor | None = None  # of the step so far

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Keep the initial weights, or find the place to go on from."""
        if trainer.is_global_zero:
            self._follower.begin(pl_module.get_submodule(self._submodule), trainer.optimizers[0], trainer.global_step)

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Note the learning rate; after the step it may be the next one's."""
        self._rate = rate_of(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the step, where this batch ended one."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            # Lightning has divided it by the number of batches that a step gathers.
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        recorded = self._follower.record(
            pl_module.get_submodule(self._submodule),
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            rate=self._rate,
            loss=math.nan if self._loss is None else self._loss,
        )
        if recorded:
            self._loss = None

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Put on disk all that a training resumed from this file builds on."""
        self._follower.flush()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Keep the last weights and close."""
        self._follower.close(finished=True)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Keep the weights of the last whole step and close."""
        self._follower.close(finished=False)
