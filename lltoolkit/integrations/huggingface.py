"""A recorder for the Hugging Face Trainer: ``pip install 'lltoolkit[integrations]'``."""

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from lltoolkit.integrations.follower import Follower, rate_of
from lltoolkit.zoo.shim import import_torchvision

import_torchvision()  # transformers imports it in turn, which may fail beside a CPU build of torch
try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError(
        "lltoolkit.integrations.huggingface needs transformers: pip install 'lltoolkit[integrations]', or "
        "pip install transformers accelerate."
    ) from error


class RecorderCallback(TrainerCallback):
    """Record a training of a Hugging Face ``Trainer``: ``Trainer(..., callbacks=[RecorderCallback("runs/mine")])``.

    Keeps the initial weights, and what `every` asks for of the state after each optimizer step, by the Trainer's own
    ``global_step``. ``train(resume_from_checkpoint=...)`` goes on in the recording that is there. Only the first
    process of several writes. The history has a training loss at the steps at which the Trainer logs one: its mean
    since the last time.

    The Trainer doesn't tell its callbacks of an exception. To keep the last step then too, put the callback into a
    ``with`` block around ``train()``; otherwise what `every` asked for is there.

    Parameters
    ----------
    path : str or Path
        Folder of the recording; ``lltoolkit.zoo.open_run(path)`` reads it.
    optimizer_state : bool
        Keep what the optimizer remembers of each weight, too.
    **options
        Of `Recorder`: ``every``, ``dtype``, ``thin``, ``n_last``, ``n_projected``, ``overwrite``, ``resume``.

    Raises
    ------
    ValueError
        If an option is not allowed.
    FileExistsError
        At the start of a training from step 0, if `path` holds a recording.
    """

    def __init__(self, path: str | Path, *, optimizer_state: bool = False, **options: Any) -> None:
        self._follower = Follower(path, optimizer_state=optimizer_state, **options)
        self._rate = math.nan
        self._waiting: dict[str, Any] = {}  # a step whose loss may still be told

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._follower.close(finished=kind is None)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Any, **others: Any
    ) -> None:
        """Keep the initial weights, or find the place to go on from."""
        self._waiting = {}
        if state.is_world_process_zero:
            # accelerate wraps the optimizer; its memory lies in the wrapped one.
            self._follower.begin(model, getattr(optimizer, "optimizer", optimizer), state.global_step)

    def on_step_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Any, **others: Any
    ) -> None:
        """Note the learning rate of the step to come; after it, the schedule has moved on."""
        self._record(model)
        self._rate = rate_of(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Note the step. Its loss, if any, comes with the next event; the weights stay until then."""
        epoch = max(math.ceil(state.epoch) - 1, 0)  # the Trainer counts the share of the epoch that is done
        self._waiting = {"step": state.global_step, "epoch": epoch, "rate": self._rate}

    def on_log(self, args: Any, state: Any, control: Any, *, model: nn.Module, logs: Any = None, **others: Any) -> None:
        """Record the step with its loss."""
        self._record(model, **{"loss": logs["loss"]} if logs and "loss" in logs else {})

    def on_epoch_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any) -> None:
        """Record the last step before the Trainer puts the best model in its place."""
        if control.should_training_stop:
            self._record(model)

    def on_save(self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any) -> None:
        """Put on disk all that a training resumed from the Trainer's own checkpoint builds on."""
        self._record(model)
        self._follower.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keep the last weights and close."""
        self._follower.close(finished=True)

    def _record(self, model: nn.Module, **told: Any) -> None:
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._follower.record(model, **waiting, **told)
