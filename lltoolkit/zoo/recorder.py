"""The Recorder: checkpoints and a history of the user's own training loop, in the folder that ``train`` makes too."""

import logging
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from lltoolkit.tensors.checkpoints import save_checkpoint
from lltoolkit.zoo.runs import (
    NOTE,
    Every,
    checkpoints_of,
    clear_run,
    describe_model,
    history_attrs,
    require_every,
    row,
    save_history,
    unwrap,
    write_note,
)

HISTORY_PAUSE = 10.0  # seconds between two writings of a recorder's history; checkpoints are never late

log = logging.getLogger(__name__)


class Recorder:
    """Keep checkpoints and a history of your own training loop.

    Call ``start(model)`` before the first optimizer step, so that the initial weights are kept, and ``step(...)``
    after each. What was recorded stays, also when an exception or Ctrl-C ends the ``with`` block.

    Parameters
    ----------
    path : str or Path
        Folder of the recording; made when the first model is seen. ``open_run(path)`` reads it.
    every : "epoch" or int
        Keep a checkpoint at the end of each epoch, or after each so many steps; the last step is always kept.
    overwrite : bool
        Replace a recording that is already there. Without it, that is an error: a cell run twice loses nothing.

    Raises
    ------
    ValueError
        If `every` is neither ``"epoch"`` nor a whole number of at least 1.
    FileExistsError
        If `path` already holds a recording or a run.

    Notes
    -----
    The end of an epoch shows only in the first step of the next, when the weights have moved on. The recorder
    therefore holds a copy of the state of the last step, on its device: as much memory as the model's weights.

    Examples
    --------
    >>> import tempfile, torch
    >>> from lltoolkit.zoo import open_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Recorder(f"{folder.name}/mine", every="epoch") as recorder:
    ...     recorder.start(model)
    ...     for epoch in range(2):
    ...         loss = model(torch.ones(4, 2)).square().mean()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         recorder.step(model, epoch=epoch, learning_rate=0.1, loss=loss)
    >>> [checkpoint.step for checkpoint in open_run(f"{folder.name}/mine").checkpoints]
    [0, 1, 2]
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, *, every: Every = "epoch", overwrite: bool = False) -> None:
        require_every(every)
        self.path = Path(path)
        self.every = every
        if (self.path / NOTE).exists() and not overwrite:
            raise FileExistsError(
                f"{self.path} already holds a recording. Choose another path, or pass overwrite=True to replace it."
            )
        self._step = 0
        self._epoch = 0
        self._rows: list[dict[str, Any]] = []
        self._state: dict[str, Tensor] = {}  # as of the last step
        self._saved_step: int | None = None
        self._attrs: dict[str, str | int | float] = {}
        self._config: dict[str, Any] = {}
        self._wrote_history = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._rows:
            return
        if self._saved_step != self._step:
            # A loop that ran to its end has ended its epoch; one that broke off has not.
            self._save(self._epoch + (kind is None and self.every == "epoch"))
        save_history(self.path, self._rows, self._attrs)
        write_note(self.path, self._config, finished=kind is None)

    def start(self, model: nn.Module) -> None:
        """Keep the initial weights: the checkpoint of step 0.

        Parameters
        ----------
        model : nn.Module
            Before its first optimizer step; it is only read.

        Raises
        ------
        RuntimeError
            If steps were recorded already.
        """
        if self._rows:
            raise RuntimeError(f"{self.path}: start() comes before the first step(); {self._step} steps are recorded.")
        self._begin(model)
        self._keep(model)
        self._rows.append(row(0, 0))
        self._save(0)

    def step(
        self,
        model: nn.Module,
        *,
        epoch: int,
        learning_rate: float = math.nan,
        loss: float | Tensor = math.nan,
        accuracy: float | Tensor = math.nan,
    ) -> None:
        """Record one optimizer step; call it after ``optimizer.step()``.

        Parameters
        ----------
        model : nn.Module
            As the step left it; it is only read.
        epoch : int
            Number of the epoch that the step belongs to, from 0.
        learning_rate : float
            Of the step.
        loss, accuracy : float or Tensor
            Of the step's batch.

        Raises
        ------
        ValueError
            If `epoch` goes back.
        """
        if not self._rows:
            log.warning("%s: the initial weights are not kept; call start(model) before the first step", self.path)
            self._begin(model)
        if epoch < self._epoch:
            raise ValueError(f"epoch={epoch} after epoch {self._epoch}: epochs count up from 0.")
        if epoch > self._epoch and self.every == "epoch" and self._saved_step != self._step and self._step > 0:
            self._save(self._epoch + 1)
        self._step, self._epoch = self._step + 1, epoch
        self._keep(model)
        told = {"loss": {"train": _number(loss)}, "accuracy": {"train": _number(accuracy)}}
        self._rows.append(row(self._step, epoch, float(learning_rate), **told))
        if self.every != "epoch" and self._step % self.every == 0:
            self._save(epoch)

    def _begin(self, model: nn.Module) -> None:
        self._config = {"recorder": {"every": self.every}, "model": describe_model(model)}
        self._attrs = history_attrs(model, self._config)
        clear_run(self.path)
        write_note(self.path, self._config, finished=False)

    def _keep(self, model: nn.Module) -> None:
        state = unwrap(model).state_dict()
        if self._state.keys() != state.keys():
            self._state = {name: tensor.detach().clone() for name, tensor in state.items()}
            return
        for name, tensor in state.items():
            self._state[name].copy_(tensor.detach())

    def _save(self, epoch: int) -> None:
        last = self._rows[-1]
        save_checkpoint(
            checkpoints_of(self.path),
            self._state,
            step=self._step,
            epoch=epoch,
            learning_rate=last["learning_rate"],
            loss=last["loss"].get("train", math.nan),
        )
        self._saved_step = self._step
        if time.monotonic() - self._wrote_history > HISTORY_PAUSE:
            save_history(self.path, self._rows, self._attrs)
            self._wrote_history = time.monotonic()


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
