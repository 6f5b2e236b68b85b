"""Checkpoints, history and note of a training, on their way to its folder: what ``train`` and the Recorder share."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lltoolkit.errors import require_choice, require_whole
from lltoolkit.files import write_atomically
from lltoolkit.tensors.checkpoints import SKETCH, TYPES, save_checkpoint
from lltoolkit.tensors.restore import without_aliases
from lltoolkit.tensors.sketch import sketch
from lltoolkit.zoo.resume import on_disk
from lltoolkit.zoo.runs import ROWS, Every, checkpoints_of, require_every, save_history, sweep
from lltoolkit.zoo.snapshot import Kept
from lltoolkit.zoo.writer import Writer

HISTORY_PAUSE = 30.0  # seconds between two writings of a growing history; checkpoints are never late
HISTORY_SHARE = 0.01  # of the time at most goes into these, however long the history grows
THIN = ("none", "last", "projection")


@dataclass(frozen=True)
class Keeping:
    """What is kept of a training; ``Recorder`` describes the options.

    Raises
    ------
    ValueError
        If one is not allowed.
    """

    every: Every = "epoch"
    dtype: Literal["float32", "bfloat16"] | None = None
    thin: Literal["none", "last", "projection"] = "none"
    n_last: int = 10
    n_projected: int = 4096
    optimizer_state: bool = False

    def __post_init__(self) -> None:
        require_every(self.every)
        require_choice("dtype", self.dtype, [None, *TYPES])
        require_choice("thin", self.thin, THIN)
        require_choice("optimizer_state", self.optimizer_state, [True, False])
        for name in ("n_last", "n_projected"):
            require_whole(name, getattr(self, name), least=1)

    def describe(self) -> dict[str, Any]:
        """Say it for the record: `every`, and of the others what is not as usual."""
        told: dict[str, Any] = {"every": self.every}
        if self.dtype is not None:
            told["dtype"] = self.dtype
        if self.thin != "none":
            count = {"last": "n_last", "projection": "n_projected"}[self.thin]
            told |= {"thin": self.thin, count: int(getattr(self, count))}
        if self.optimizer_state:
            told["optimizer_state"] = True
        return told


class Recording:
    """Write a training's checkpoints and history while it goes on.

    Checkpoints are written in the background, one after another. Each takes the rows of the history before it along, so
    that after a kill the rows on disk reach at least to the last complete checkpoint.

    Parameters
    ----------
    path : Path
        The run's folder.
    keeping : Keeping
        What is kept.
    attrs : mapping
        Of the history, as ``history_attrs`` gives them.
    rows : list
        The history so far, as ``row`` makes them. It is the caller's list: what the caller adds is written.
    units : str
        Of the loss.
    """

    def __init__(
        self,
        path: Path,
        keeping: Keeping,
        attrs: Mapping[str, str | int | float],
        *,
        rows: list[dict[str, Any]],
        units: str = "1",
    ) -> None:
        self.path, self.keeping, self.rows = path, keeping, rows
        self._attrs, self._units = attrs, units
        self._writer = Writer()
        self._n_written = 0  # rows that the file of rows holds; known to the thread alone
        self._has_gap = False  # one could not be written; known to the thread alone
        self._history_due = -math.inf
        sweep(path)
        self._whole = [found.step for found in on_disk(path) if not found.is_sketch]

    def keep_up(self) -> None:
        """Write the history where that is long ago, and raise the error of a writing that has failed."""
        self._writer.check()
        if self.rows and time.monotonic() >= self._history_due:
            self.save_history()

    def make_room(self) -> None:
        """Wait until one more state may be taken to be saved: at most two are on their way at a time."""
        self._writer.make_room()

    def save(
        self,
        kept: Kept | None,
        *,
        step: int,
        epoch: int,
        is_due: bool = True,
        whole: bool = False,
        then: Callable[[], object] | None = None,
        **metadata: object,
    ) -> None:
        """Have a checkpoint written, and the rows up to now; `keep_up` tells whether it could be.

        Parameters
        ----------
        kept : Kept, optional
            The state; None writes the rows alone.
        step, epoch : int
            Steps and whole epochs behind it.
        is_due : bool
            False where it is kept only because the training stops or pauses here: ``thin="last"`` does not count it.
        whole : bool
            Keep the weights themselves, with ``thin="projection"`` too.
        then : callable, optional
            Carried out when the checkpoint is complete, not if it or one before could not be written.
        **metadata
            For its JSON.
        """
        n_rows = len(self.rows)
        place = {"step": step, "epoch": epoch, **metadata}
        self._writer.submit(lambda: self._write(kept, place, n_rows, is_due, whole, then))

    def remove(self, *steps: int) -> None:
        """Have checkpoints removed."""
        self._writer.submit(lambda: self._remove(steps))

    def thin_out(self) -> None:
        """Have removed what ``thin="last"`` does not keep of the checkpoints that are there."""
        if self.keeping.thin == "last":
            self.remove(*self._whole[1 : -self.keeping.n_last])

    def save_history(self) -> None:
        """Write the history as it is now; not in the background, since the NetCDF library is of one thread."""
        start = time.monotonic()
        self._history_due = start + HISTORY_PAUSE  # also where it fails: not again at once
        settle(self.rows)
        save_history(self.path, self.rows, self._attrs, units=self._units)
        self._history_due = max(self._history_due, start + (time.monotonic() - start) / HISTORY_SHARE)

    def wait(self) -> None:
        """Return when all that was handed in is on disk."""
        self._writer.wait()

    def close(self) -> None:
        """Wait for everything, and write the whole history."""
        try:
            self._writer.close()
        finally:
            if self.rows:
                self.save_history()
        (self.path / ROWS).unlink(missing_ok=True)

    def _write(
        self,
        kept: Kept | None,
        place: Mapping[str, Any],
        n_rows: int,
        is_due: bool,
        whole: bool,
        then: Callable[[], object] | None,
    ) -> None:
        has_gap, self._has_gap = self._has_gap, True
        if kept is not None:
            kept.arrived()
        self._write_rows(n_rows)
        if kept is not None:
            self._write_checkpoint(kept, place, is_due, whole)
        self._has_gap = has_gap
        if then is not None and not has_gap:
            then()
        if self.keeping.thin == "last" and is_due:
            self._remove(self._whole[1 : -self.keeping.n_last])

    def _write_rows(self, n_rows: int) -> None:
        start, self._n_written = self._n_written, 0  # if this fails, the next writes them all
        fresh = self.rows[start:n_rows]
        settle(fresh)
        text = "".join(f"{json.dumps(list(row.values()))}\n" for row in fresh)
        file = self.path / ROWS
        try:
            if start == 0:
                write_atomically(file, lambda temporary: temporary.write_text(text))
            elif text:
                with file.open("a") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as error:
            raise OSError(
                f"{file} can't be written ({error}). Earlier checkpoints are kept: make room or mend the folder's "
                "rights, then go on."
            ) from error
        self._n_written = n_rows

    def _write_checkpoint(self, kept: Kept, place: Mapping[str, Any], is_due: bool, whole: bool) -> None:
        folder, dtype = checkpoints_of(self.path), self.keeping.dtype
        if self.keeping.thin == "projection" and not whole and self._whole[:1] not in ([], [place["step"]]):
            weights = {
                name: tensor.to(dtype=TYPES.get(dtype))
                for name, tensor in without_aliases(kept.model)[0].items()
                if tensor.is_floating_point() and name not in kept.buffers
            }
            save_checkpoint(folder, {SKETCH: sketch(weights, self.keeping.n_projected)}, **place)
            self._whole = [step for step in self._whole if step != place["step"]]
            return
        optimizer = kept.optimizer if self.keeping.optimizer_state else None
        save_checkpoint(folder, kept.model, dtype=dtype, buffers=kept.buffers, optimizer_state=optimizer, **place)
        if is_due:
            self._whole = sorted({*self._whole, place["step"]})

    def _remove(self, steps: Sequence[int]) -> None:
        for step in steps:
            stem = checkpoints_of(self.path) / f"step_{step:08d}"
            for suffix in (".json", ".safetensors", ".optimizer.safetensors"):  # the JSON first: it marks a whole one
                stem.with_suffix(suffix).unlink(missing_ok=True)
        self._whole = [step for step in self._whole if step not in steps]


def settle(rows: Sequence[Mapping[str, Any]]) -> None:
    """Turn the losses and accuracies that are still on a GPU into numbers, in place."""
    for row in rows:
        for name in ("loss", "accuracy"):
            for split, value in row[name].items():
                if isinstance(value, Tensor):
                    row[name][split] = value.item()
