"""The Recorder: checkpoints and a history of the user's own training loop, in the folder that ``train`` makes too."""

import itertools
import logging
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from lltoolkit.errors import require_whole
from lltoolkit.files import require_folder
from lltoolkit.zoo.recording import Keeping, Recording
from lltoolkit.zoo.resume import on_disk, require_same_model, take_up
from lltoolkit.zoo.runs import NOTE, Every, clear_run, describe_model, history_attrs, next_due, row, write_note
from lltoolkit.zoo.snapshot import Kept, Snapshot

LOCK = ".lock"  # train() has the same
PATIENCE = 10.0  # seconds for a lock: the loading processes of a killed training, which hold it too, end after 5

log = logging.getLogger(__name__)


class Recorder:
    """Keep checkpoints and a history of your own training loop.

    Call ``start(model)`` before the first optimizer step, so that the initial weights are kept, and ``step(...)`` after
    each step, or after each epoch; `every` decides what is kept. Use it in a ``with`` block, or call ``close()`` at the
    end. What was recorded stays, also when an exception or Ctrl-C ends the block.

    Parameters
    ----------
    path : str or Path
        Folder of the recording; made when the first model is seen. ``open_run(path)`` reads it.
    every : "epoch", "geometric" or int
        Keep a checkpoint at the end of each epoch; after steps 1, 2, 3, ..., the next always about 10 % later
        (``max(s + 1, ceil(1.1 s))``); or after each so many steps. The last step is always kept.
    dtype : {None, "float32", "bfloat16"}
        In which type weights are stored; None keeps the model's own. bfloat16 takes half the space of float32 and
        rounds by up to 0.4 %, which hides steps that are smaller.
    thin : {"none", "last", "projection"}
        For big models. ``"last"``: of the checkpoints that `every` asks for, only the first and the last `n_last` stay.
        ``"projection"``: between the first and the last step, a checkpoint keeps no weights but a random projection of
        them on `n_projected` numbers, from which ``trajectory_statistics`` makes distances and angles.
    n_last, n_projected : int
        At least 1; see `thin`.
    optimizer : torch.optim.Optimizer, optional
        Keep its memory of each weight too, such as Adam's moments: ``checkpoint.load_optimizer_state()``. Costs their
        size on disk, and a copy of them after each step.
    overwrite : bool
        Replace a recording that is already there. Without it, that is an error: a cell run twice loses nothing.
    resume : bool
        Go on in the recording that is there, if any, from wherever the loop goes on: what it holds of the first new
        step and later is dropped. `last_step` tells how far it reaches.

    Attributes
    ----------
    path : Path
        The folder.
    last_step : int
        The last step recorded; of a recording that was resumed, the last whose state is on disk. 0 where there is none.

    Raises
    ------
    ValueError
        If an option is not allowed.
    FileExistsError
        If `path` already holds a recording or a run.
    ResumeMismatch
        If the recording to go on in was made with other options, or (by ``start`` and ``step``) of another model.
    OSError
        If something can't be written: by a later ``step``, or by ``flush`` or ``close``, since writing goes on in the
        background. That ``step`` is recorded nevertheless: a loop may catch the error and go on, one checkpoint poorer.
    RuntimeError
        If another process is recording into `path` (by ``start`` and ``step``).

    Notes
    -----
    The end of an epoch shows only in the first step of the next, when the weights have moved on, and the last step only
    in ``close``. The recorder therefore holds a copy of the state of the last step, on its device: as much memory as
    the model's weights. At most two states more are on their way to the disk. After a kill every checkpoint that is
    listed is whole.

    To go on exactly after a kill, restore the model and the optimizer from your own file and pass the step:
    ``step(..., step=n)``. Call ``flush()`` before you write such a file. Buffers (batch-norm statistics) are in each
    checkpoint, and their names in its metadata.

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

    def __init__(
        self,
        path: str | Path,
        *,
        every: Every = "epoch",
        dtype: Literal["float32", "bfloat16"] | None = None,
        thin: Literal["none", "last", "projection"] = "none",
        n_last: int = 10,
        n_projected: int = 4096,
        optimizer: torch.optim.Optimizer | None = None,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self._keeping = Keeping(every, dtype, thin, n_last, n_projected, optimizer is not None)
        self.path = Path(path)
        if overwrite and resume:
            raise ValueError("overwrite=True and resume=True: give one of them.")
        self._may_replace = overwrite or resume
        self._require_free()
        self._lock: FileLock | None = None
        self._reminder: weakref.finalize | None = None
        self._rows: list[dict[str, Any]] = []
        self._config: dict[str, Any] = {"recorder": self._keeping.describe()}
        self._recording: Recording | None = None
        self._snapshot = Snapshot(optimizer)
        self.last_step = 0
        self._epoch = 0
        self._due = next_due(every, 0)
        self._is_due = False  # the last step, by its number
        self._is_saved = False  # the last step, as `every` asks
        self._is_extra = False  # the last step is on disk whole, and may not stay so
        self._has_start = False
        self._goes_on = False  # in a recording that was there; until the first new step
        self._is_closed = False
        if resume:
            config, self._rows, self.last_step = take_up(self.path, self._config["recorder"])
            self._config, self._goes_on = config or self._config, bool(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def start(self, model: nn.Module) -> None:
        """Keep the initial weights: the checkpoint of step 0.

        Of a recording that is resumed nothing is written: the model is only compared with it, unless the loop begins
        again at step 1.

        Parameters
        ----------
        model : nn.Module
            Before its first optimizer step; it is only read.

        Raises
        ------
        RuntimeError
            If steps were recorded already.
        """
        if (self._rows and not self._goes_on) or self._is_closed:
            raise RuntimeError(
                f"{self.path}: start() comes before the first step(); {self.last_step} steps are recorded."
            )
        if self._recording is None:
            self._begin(model)
        self._snapshot.take(model)
        self._has_start = True
        if self._goes_on:
            return
        self._rows.append(row(0, 0))
        self._save(0)
        self._ask(self._recording.keep_up)

    def step(
        self,
        model: nn.Module,
        *,
        epoch: int,
        learning_rate: float = math.nan,
        loss: float | Tensor = math.nan,
        accuracy: float | Tensor = math.nan,
        step: int | None = None,
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
            Of the step's batch. Numbers on a GPU are not waited for.
        step : int, optional
            Optimizer steps so far, this one counted; one more than at the last call unless given. Where ``step()`` is
            called once an epoch, say it, so that steps are steps. It may be lower only at the first call of a resumed
            recording.

        Raises
        ------
        ValueError
            If `step` or `epoch` goes back.
        RuntimeError
            If the recording is closed.
        """
        if self._is_closed:
            raise RuntimeError(f"{self.path}: the recording is closed; make a Recorder(..., resume=True) to go on.")
        epoch, learning_rate = require_whole("epoch", epoch, least=0), float(_number("learning_rate", learning_rate))
        told = {"loss": {"train": _number("loss", loss)}, "accuracy": {"train": _number("accuracy", accuracy)}}
        step = self.last_step + 1 if step is None else require_whole("step", step, least=1)
        if self._recording is None:
            self._begin(model)
            if not self._goes_on:
                log.warning("%s: the initial weights are not kept; call start(model) before the first step", self.path)
        if self._goes_on:
            self._go_on(step, epoch)
        if step <= self.last_step:
            raise ValueError(f"step={step} after step {self.last_step}: steps count up.")
        if epoch < self._epoch:
            raise ValueError(f"epoch={epoch} after epoch {self._epoch}: epochs count up from 0.")
        if self.last_step == 0 and step == epoch == 1:
            log.warning(
                "%s: the first step is of epoch 1; epochs count from 0, a checkpoint's is 1 too high", self.path
            )
        self._leave(epoch)
        self._snapshot.take(model)
        self._rows.append(row(step, epoch, learning_rate, **told))
        self.last_step, self._epoch = step, epoch
        self._is_due = step >= self._due
        if self._is_due:
            self._due = next_due(self._keeping.every, step)
            self._save(epoch)
        self._ask(self._recording.keep_up)  # last: the step is recorded, whatever became of an earlier one

    def flush(self) -> None:
        """Return when everything up to the last step is on disk, its weights too.

        They do not stay where `every` does not ask for them: the next step removes them again.
        """
        if self._recording is not None and not self._goes_on:
            self._save_last(self._epoch, is_due=self._is_due)
            self._ask(self._recording.wait)
            self._recording.save_history()

    def close(self, *, finished: bool = True) -> None:
        """End the recording: keep the last step and wait until everything is on disk. A second call does nothing.

        Parameters
        ----------
        finished : bool
            Whether the training came to its end, which ends its last epoch too. ``Run.finished`` tells.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._recording is None:
            return
        self._reminder.detach()
        try:
            if self._rows and not self._goes_on:
                ends_epoch = finished and self._keeping.every == "epoch"
                self._save_last(self._epoch + ends_epoch, is_due=ends_epoch or self._is_due)
        finally:
            try:
                self._recording.close()
            finally:
                self._lock.release()
        if self._rows and (finished or not self._goes_on):
            write_note(self.path, self._config, finished=finished)

    def _begin(self, model: nn.Module) -> None:
        if self._goes_on:
            require_same_model(self.path, self._config["model"], model)
        require_folder(self.path)
        # One for all Recorders of this process: one that was left open by a cell cut short is no hindrance.
        lock = FileLock(self.path / LOCK, is_singleton=True, thread_local=False)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise RuntimeError(
                f"another process is recording into {self.path}. Give each its own path; of several processes that "
                "train one model together, one records."
            ) from error
        try:
            self._require_free()  # again: it may have begun after this one was made
            if not self._goes_on:
                self._config["model"] = describe_model(model)
                clear_run(self.path)
                write_note(self.path, self._config, finished=False)
            attrs = history_attrs(model, self._config)
            self._recording, self._lock = Recording(self.path, self._keeping, attrs, rows=self._rows), lock
        except BaseException:
            lock.release()
            raise
        told = "%s: the recording was not closed, its last step is not kept; use a with block, or call close()"
        self._reminder = weakref.finalize(self, log.warning, told, self.path)

    def _require_free(self) -> None:
        if (self.path / NOTE).exists() and not self._may_replace:
            raise FileExistsError(
                f"{self.path} already holds a recording. Choose another path, pass resume=True to go on in it, or "
                "overwrite=True to replace it."
            )

    def _ask(self, ask: Callable[[], None]) -> None:
        """Have the error of a writing told; it is perhaps that of the last step, which ``close`` then saves again."""
        try:
            ask()
        except BaseException:
            self._is_saved = False
            raise

    def _save(self, epoch: int) -> None:
        """Save the last step as `every` asks."""
        self._recording.make_room()
        self._hand_in(self._snapshot.hand_over(), epoch)
        self._is_saved, self._is_extra = True, False

    def _save_last(self, epoch: int, *, is_due: bool) -> None:
        """Save the last step whole, because the training stops or pauses here."""
        if not self._is_saved or (self._keeping.thin == "projection" and self.last_step > 0):
            self._recording.make_room()
            self._hand_in(self._snapshot.hand_over(), epoch, is_due=is_due, whole=True)
            self._is_extra = True

    def _hand_in(self, kept: Kept, epoch: int, *, is_due: bool = True, whole: bool = False) -> None:
        last = self._rows[-1]
        told = {"learning_rate": last["learning_rate"], "loss": last["loss"].get("train", math.nan)}
        self._recording.save(kept, step=last["step"], epoch=epoch, is_due=is_due, whole=whole, **told)

    def _leave(self, epoch: int) -> None:
        """Settle what stays of the last step, now that the next one says whether an epoch ended."""
        if self._ended(epoch) and (self._is_extra or not self._is_saved):
            self._save(self._epoch + (self._keeping.every == "epoch"))
        elif self._is_extra and not self._is_saved:
            self._recording.remove(self.last_step)
        self._is_saved = self._is_extra = False

    def _ended(self, epoch: int) -> bool:
        """Tell whether the last step was one to keep, seen from a step of `epoch`."""
        by_epoch = self._keeping.every == "epoch" and epoch > self._epoch and self.last_step > 0
        return by_epoch or self._is_due

    def _go_on(self, step: int, epoch: int) -> None:
        """Drop what the recording holds of `step` and later, and settle the step before it."""
        self._goes_on = False
        widest = max((b["step"] - a["step"] for a, b in itertools.pairwise(self._rows)), default=1)
        self._rows[:] = [row for row in self._rows if row["step"] < step]
        checkpoints = on_disk(self.path)
        self._recording.remove(*(found.step for found in checkpoints if found.step >= step))
        if not self._rows:
            self.last_step = 0
            self._recording.wait()
            clear_run(self.path)
            write_note(self.path, self._config, finished=False)
            return
        write_note(self.path, self._config, finished=False)
        last = self._rows[-1]
        self.last_step, self._epoch = last["step"], last["epoch"]
        if step - self.last_step > widest:
            log.warning("%s: steps %d to %d are not in the recording", self.path, self.last_step + 1, step - 1)
        every = self._keeping.every
        self._due = next_due(every, self.last_step)
        self._is_due = next_due(every, self._rows[-2]["step"] if len(self._rows) > 1 else 0) <= self.last_step
        found = next((found for found in checkpoints if found.step == self.last_step), None)
        if self.last_step == 0 and self._has_start:
            self._save(0)  # the loop begins again, perhaps from other weights
        if self.last_step > 0 and found is not None and not self._ended(epoch):
            self._recording.remove(found.step)
        elif self._ended(epoch) and found is not None and not found.is_sketch:
            moments = found.load_optimizer_state() if self._keeping.optimizer_state else None
            kept = Kept(found.load(), found.metadata.get("buffers", []), moments)
            self._hand_in(kept, self._epoch + (every == "epoch"))
        elif self._ended(epoch) and found is None:
            told = "%s: the state of step %d is not kept; call flush() before you save your own"
            log.warning(told, self.path, self.last_step)
        self._is_saved = True
        self._recording.save(None, step=self.last_step, epoch=self._epoch)
        self._recording.wait()
        self._recording.save_history()


def _number(name: str, value: Any) -> float | Tensor:
    """Take a number from whatever holds one, but not wait for a GPU: a copy of it is asked later."""
    if isinstance(value, Tensor) and value.device.type != "cpu" and value.numel() == 1:
        return value.detach().clone()
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        hint = ", such as scheduler.get_last_lr()[0]" if name == "learning_rate" else ""
        raise ValueError(f"{name}={value!r}: give one number{hint}.") from error
