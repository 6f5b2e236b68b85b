"""What the callbacks share: a Recorder that follows the step numbers of somebody else's loop."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lltoolkit.zoo.recorder import Recorder


class Follower:
    """Keep a Recorder in step with a loop that may begin anywhere.

    Parameters
    ----------
    path : str or Path
        Folder of the recording.
    optimizer_state : bool
        Keep what the optimizer remembers, too.
    **options
        Of `Recorder`, apart from `optimizer`.

    Raises
    ------
    ValueError
        If an option is not allowed.
    FileExistsError
        If there is a recording in `path`, and neither ``overwrite`` nor ``resume`` was given.
    """

    def __init__(self, path: str | Path, *, optimizer_state: bool = False, **options: Any) -> None:
        self._path, self._options, self._optimizer_state = path, options, optimizer_state
        self._recorder: Recorder | None = None
        self._step = 0  # of the loop, as of the last call
        # Wrong options are told where they are given, not when the training starts; nothing is written yet. A training
        # that is resumed goes on in its recording, but only its start tells that it is.
        Recorder(path, **options | ({} if options.get("overwrite") else {"resume": True}))

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Open the recording where the loop begins, before step ``step + 1``."""
        self.close(finished=False)  # one that an error left open
        options = self._options | ({"overwrite": False, "resume": True} if step > 0 else {})
        self._recorder = Recorder(self._path, optimizer=optimizer if self._optimizer_state else None, **options)
        self._step = step
        if step == 0 or self._recorder.last_step > 0:
            self._recorder.start(model)

    def record(self, model: nn.Module, *, step: int, epoch: int, rate: float, loss: float | Tensor = math.nan) -> bool:
        """Record a step, given by the number of optimizer steps behind it, unless it was recorded already.

        Returns
        -------
        bool
            Whether there was a new one: while gradients are gathered over several batches, the number stands still.
        """
        if self._recorder is None or step <= self._step:
            return False
        self._recorder.step(model, step=step, epoch=epoch, learning_rate=rate, loss=loss)
        self._step = step
        return True

    def flush(self) -> None:
        """Put everything on disk: the loop is about to write a file that it may go on from."""
        if self._recorder is not None:
            self._recorder.flush()

    def close(self, *, finished: bool) -> None:
        """End the recording."""
        if self._recorder is not None:
            self._recorder.close(finished=finished)
            self._recorder = None


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of the first group of an optimizer's weights."""
    return float(optimizer.param_groups[0]["lr"])
