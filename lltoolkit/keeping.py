"""A result on its way: what is computed is kept tile by tile, and how far it is is told."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from lltoolkit.labelled.interpolate import picture
from lltoolkit.labelled.schema import axes_of
from lltoolkit.labelled.surface import by_split, cells_with, count_reduced, fill_cells, read_cells
from lltoolkit.store import GridFile

TILE_SECONDS = 1.0  # a tile is written about so often: what a kill may cost, and far more than an fsync takes
MERGE_SECONDS = 30.0  # the merged file that readers open is at most so old


@dataclass(frozen=True)
class Progress:
    """How far a surface or a curvature map is, for `callback`.

    Attributes
    ----------
    surface : xr.Dataset
        As it stands; it is filled on, so copy what you keep.
    purpose : str
        What is computed now: "grid", "sample" or "audit", "tile" of a curvature map; "done" at the end, before the
        rest is filled in.
    n_done, n_asked : int
        Cells measured so far, and asked for so far; refinement asks for more as it goes.
    seconds_left : float
        For what is asked for; NaN while nobody knows.
    lowest_loss : float
        The smallest so far, on the first split; of a curvature map on its own.
    """

    surface: xr.Dataset
    purpose: str
    n_done: int
    n_asked: int
    seconds_left: float
    lowest_loss: float

    def picture(self) -> xr.Dataset:
        """Fill what is missing by interpolation, to be looked at while it is computed; of an ensemble, as it stands."""
        whole = self.surface.copy(deep=True)
        known = cells_with(whole, "computed")
        # Whole numbers count or tell apart, and an audit is of few cells: nothing to draw between.
        names = [
            str(name)
            for name, variable in whole.data_vars.items()
            if variable.dtype.kind == "f" and not str(name).endswith("_se") and not str(name).startswith("audit_")
        ]
        if "direction" not in whole.dims and len(known):
            coords = {axis: whole[axis].values for axis in axes_of(whole)}
            filled = picture(coords, known, {name: read_cells(whole, name, known) for name in names})
            for name in names:
                by_split(whole, name)[:] = filled[name].reshape(by_split(whole, name).shape)
        return whole


class Keeper:
    """Keep what is computed: in the result, and in tiles on disk if it has a file.

    Parameters
    ----------
    result : xr.Dataset
        To be filled; the file's, if there is one.
    file : GridFile, optional
        Where tiles are kept.

    Attributes
    ----------
    disk_failed : bool
        Whether something could not be written; to write once more would only hide the reason.
    """

    def __init__(self, result: xr.Dataset, file: GridFile | None) -> None:
        self._result, self._file = result, file
        self.disk_failed = False
        self._written = self._merged = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last tile is old enough for the next."""
        return time.monotonic() - self._written > TILE_SECONDS

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Remember if what is written here fails.

        Yields
        ------
        None
            For the time of writing.

        Raises
        ------
        OSError
            If the disk fails.
        """
        try:
            yield
        except OSError:
            self.disk_failed = True
            raise
        self._written = time.monotonic()

    def add(self, cells: np.ndarray, values: Mapping[str, np.ndarray], batch_size: int) -> None:
        """Keep a tile, see `GridFile.add`."""
        if self._file is None:
            fill_cells(self._result, cells, values)
            count_reduced(self._result, cells, batch_size)
        else:
            self._file.add(cells, values, batch_size)

    def merge(self, *, last: bool = False) -> None:
        """Write the merged file where it has become old, or this is the `last` time."""
        if self._file is not None and (last or time.monotonic() - self._merged > MERGE_SECONDS):
            self._file.merge()
            self._merged = time.monotonic()


class Reporter:
    """Tell how far a result is: in a bar, and to a callback.

    Parameters
    ----------
    result : xr.Dataset
        As it stands at the beginning.
    split : str
        Whose lowest loss is told.
    progress : bool
        Show a bar.
    callback : callable, optional
        Given a `Progress` about every second.
    """

    def __init__(
        self, result: xr.Dataset, split: str, *, progress: bool, callback: Callable[[Progress], None] | None
    ) -> None:
        self._result, self._split, self._callback = result, split, callback
        self._bar = tqdm(total=0, unit="cell", disable=not progress)
        self._n_done = self._n_asked = self._bar.total = self._bar.n = len(cells_with(result, "computed"))
        self._lowest = np.nanmin(by_split(result, "loss")[0], initial=np.inf)
        self._n_here = 0  # cells measured in this call
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def ask(self, n_cells: int, words: str) -> None:
        """Note that so many cells more are to be computed."""
        self._n_asked += n_cells
        self._bar.total = self._n_asked
        self._bar.set_description_str(words, refresh=False)

    def count(self, n_cells: int, loss: float) -> None:
        """Note that so many cells were computed, and the lowest loss among them."""
        self._lowest = np.fmin(self._lowest, loss)
        self._n_here += n_cells
        self._n_done += n_cells
        self._bar.set_postfix_str(f"lowest {self._split} loss {self._lowest:.4g}", refresh=False)
        self._bar.update(n_cells)

    def tell(self, purpose: str) -> None:
        """Call back, unless that was less than `TILE_SECONDS` ago."""
        if self._callback is None or (purpose != "done" and time.monotonic() - self._told < TILE_SECONDS):
            return
        self._told = time.monotonic()
        pace = (time.monotonic() - self._begun) / self._n_here if self._n_here else math.nan
        left = pace * (self._n_asked - self._n_done)
        self._callback(Progress(self._result, purpose, self._n_done, self._n_asked, left, float(self._lowest)))
