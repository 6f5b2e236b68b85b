"""Carry out what plans ask for: on this process, on local workers or on a cluster, kept tile by tile."""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from lltoolkit.journal import FULL, Journal, Place
from lltoolkit.labelled.interpolate import picture
from lltoolkit.labelled.plan import Answer, Ask, Filled, Plan
from lltoolkit.labelled.sampling import Sample
from lltoolkit.labelled.schema import STATUS, axes_of
from lltoolkit.labelled.surface import by_split, cells_with, count_reduced, fill_cells, read_cells
from lltoolkit.store import SurfaceFile
from lltoolkit.tensors.evaluate import Result, Task
from lltoolkit.tensors.objective import Values
from lltoolkit.workers import Pool

TILE_SECONDS = 1.0  # a tile is written about so often: what a kill may cost, and far more than an fsync takes
MERGE_SECONDS = 30.0  # the merged file that readers open is at most so old
TASK_SECONDS = 0.3  # cells go to workers in bundles of about so much work: short to wait for, long beside a message
WORDS = {"grid": "surface", "audit": "surface, audit", "sample": "surface, samples"}


@dataclass(frozen=True)
class Progress:
    """How far a surface is, for `callback`.

    Attributes
    ----------
    surface : xr.Dataset
        As it stands; it is filled on, so copy what you keep.
    purpose : str
        What is computed now: "grid", "sample" or "audit"; "done" at the end, before the rest is filled in.
    n_done, n_asked : int
        Cells measured so far, and asked for so far; refinement asks for more as it goes.
    seconds_left : float
        For what is asked for; NaN while nobody knows.
    lowest_loss : float
        The smallest so far, on the first split.
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
        names = [str(name) for name in whole.data_vars if name != "status" and not str(name).endswith("_se")]
        if "direction" not in whole.dims and len(known):
            coords = {axis: whole[axis].values for axis in axes_of(whole)}
            filled = picture(coords, known, {name: read_cells(whole, name, known) for name in names})
            for name in names:
                by_split(whole, name)[:] = filled[name].reshape(by_split(whole, name).shape)
        return whole


class Execution:
    """One surface being computed.

    Parameters
    ----------
    surface : xr.Dataset
        To be filled; the file's, if there is one.
    file : SurfaceFile, optional
        Where tiles are kept.
    journal : Journal
        What is known beyond the surface.
    pool : Pool
        Who computes.
    n_examples : int
        Of all splits together.
    seconds_per_cell : float
        On all of them, about; sets the size of a task, which shows in nothing else.
    group : int
        Cells that the engine takes at once.
    progress : bool
        Show a bar.
    callback : callable, optional
        Given a `Progress` about every second.
    """

    def __init__(
        self,
        surface: xr.Dataset,
        file: SurfaceFile | None,
        journal: Journal,
        pool: Pool,
        *,
        n_examples: int,
        seconds_per_cell: float,
        group: int = 1,
        progress: bool = True,
        callback: Callable[[Progress], None] | None = None,
    ) -> None:
        self._surface, self._file, self._journal, self._pool = surface, file, journal, pool
        self._splits = [str(split) for split in surface["split"].values]
        self._axes = [surface[axis].values for axis in axes_of(surface)]
        self._n_cells = math.prod(len(axis) for axis in self._axes)  # of one direction
        self._group, self._seconds, self._n_examples = group, seconds_per_cell, n_examples
        self._callback = callback
        self._bar = tqdm(total=0, unit="cell", disable=not progress, desc=WORDS["grid"])
        self._n_done = self._n_asked = self._bar.total = self._bar.n = len(cells_with(surface, "computed"))
        self._lowest = np.nanmin(by_split(surface, "loss")[0], initial=np.inf)
        self._disk_failed = False
        self._n_here = 0  # cells measured in this call
        self._begun = self._written = self._merged = self._told = time.monotonic()
        self._values: list[tuple[int, Values, int]] = []  # of cells that no tile holds yet
        self._records: dict[str, list[tuple[Place, dict[str, np.ndarray]]]] = {}

    def run(self, plans: Sequence[Plan]) -> list[Filled]:
        """Carry out one plan for each direction, level by level together.

        Parameters
        ----------
        plans : sequence of generators
            In the order of the directions.

        Returns
        -------
        list of Filled
            What the plans returned.

        Raises
        ------
        OSError
            If a tile can't be written. Whatever else a model or an interrupt raises, what was computed is kept first.
        """
        asks: dict[int, Ask] = {}
        filled: dict[int, Filled] = {}

        def advance(place: int, answer: Answer | None) -> None:
            asks.pop(place, None)
            try:
                asks[place] = plans[place].send(answer)  # type: ignore[arg-type] - the first is None
            except StopIteration as end:
                filled[place] = end.value

        try:
            with self._bar:
                for place in range(len(plans)):
                    advance(place, None)
                while asks:
                    self._compute(asks)
                    for place, ask in list(asks.items()):
                        advance(place, self._answer(place, ask))
        except BaseException:
            if not self._disk_failed:  # else writing once more would only hide the reason
                self._keep(last=True)  # an interrupt, or a fault of the model: what is computed is kept
            raise
        self._keep(last=True)
        self._tell("done")
        return [filled[place] for place in range(len(plans))]

    def _compute(self, asks: Mapping[int, Ask]) -> None:
        """Have all that is asked for and not known yet computed."""
        works = self._work(asks)
        self._n_asked += sum(len(task.cells) for task, _ in works)
        self._bar.total = self._n_asked  # refinement asks for more as it goes
        purpose = next(iter(asks.values())).purpose
        self._bar.set_description_str(WORDS[purpose], refresh=False)
        names = {id(task): name for task, name in works}
        for task, result in self._pool.run([task for task, _ in works]):
            self._take(task, result, names[id(task)])
            if time.monotonic() - self._written > TILE_SECONDS:
                self._keep()
                self._tell(purpose)

    def _work(self, asks: Mapping[int, Ask]) -> list[tuple[Task, str]]:
        """Bundle the cells to measure into tasks, each with the name of its sample."""
        lists: dict[tuple[str, bool], list[list[tuple[int, int]]]] = {}
        samples: dict[str, Mapping[str, Sample]] = {}
        for place, ask in asks.items():
            name = FULL
            if ask.size:
                name = name_of(ask.samples[ask.size])
                samples[name] = ask.samples[ask.size]
            wanted = [(place, int(cell)) for cell in ask.cells if not self._knows(place, int(cell), ask, name)]
            lists.setdefault((name, _wants_examples(ask)), []).append(wanted)
        works = []
        for (name, examples), by_place in lists.items():
            # Coarse to fine over all directions together.
            cells = [one for together in itertools.zip_longest(*by_place) for one in together if one is not None]
            positions = {split: sample.positions for split, sample in samples[name].items()} if name else None
            seconds = self._seconds
            if positions is not None:
                seconds *= sum(map(len, positions.values())) / self._n_examples
            size = max(1, min(math.ceil(len(cells) / self._pool.n_workers), int(TASK_SECONDS / max(seconds, 1e-9))))
            if self._pool.n_workers == 1:
                size = 1  # nobody waits for a message, and an interrupt loses one cell at most
            size = -(-size // self._group) * self._group
            for start in range(0, len(cells), size):
                bundle = cells[start : start + size]
                numbers = np.array([place * self._n_cells + cell for place, cell in bundle])
                points = [(place, self._point(cell)) for place, cell in bundle]
                works.append((Task(numbers, points, positions, examples), name))
        return works

    def _knows(self, place: int, cell: int, ask: Ask, name: str) -> bool:
        recorded = self._journal.has(name, self._place(place, cell))
        if name:
            return recorded
        computed = self._surface["status"].values.reshape(-1)[place * self._n_cells + cell] == STATUS["computed"]
        return bool(computed) and (recorded or not _wants_examples(ask))

    def _point(self, cell: int) -> tuple[float, ...]:
        index = np.unravel_index(cell, [len(axis) for axis in self._axes])
        return tuple(float(axis[step]) for axis, step in zip(self._axes, index, strict=True))

    def _place(self, place: int, cell: int) -> Place:
        return (float(place), *self._point(cell))

    def _take(self, task: Task, result: Result, name: str) -> None:
        """Note what a task gave; it is kept with the next tile."""
        for number, values in zip(task.cells, result.values, strict=False):
            self._values.append((int(number), values, result.batch_size))
            self._lowest = np.fmin(self._lowest, values[self._splits[0], "loss"])
        for (place, coordinates), examples in zip(task.points, result.examples, strict=False):
            record = {f"{split}/{metric}": array for (split, metric), array in examples.items()}
            self._records.setdefault(name, []).append(((float(place), *coordinates), record))
        self._n_here += len(task.cells)
        self._n_done += len(task.cells)
        self._bar.set_postfix_str(f"lowest {self._splits[0]} loss {self._lowest:.4g}", refresh=False)
        self._bar.update(len(task.cells))

    def _keep(self, *, last: bool = False) -> None:
        """Write what no tile holds yet and, where it has become old or this is the last time, the merged file."""
        try:
            self._write(last)
        except OSError:
            self._disk_failed = True
            raise

    def _write(self, last: bool) -> None:
        for name, records in self._records.items():
            self._journal.add(name, [place for place, _ in records], _stacked([record for _, record in records]))
        self._records.clear()
        for batch_size in sorted({size for _, _, size in self._values}):
            here = [(number, values) for number, values, size in self._values if size == batch_size]
            cells = np.array([number for number, _ in here])
            names = [name for name in dict.fromkeys(name for _, name in here[0][1]) if name in self._surface]
            block = {
                name: np.array([[values[split, name] for _, values in here] for split in self._splits])
                for name in names
            }
            if self._file is None:
                fill_cells(self._surface, cells, block)
                count_reduced(self._surface, cells, batch_size)
            else:
                self._file.add(cells, block, batch_size)
        self._values.clear()
        self._written = time.monotonic()
        if self._file is not None and (last or time.monotonic() - self._merged > MERGE_SECONDS):
            self._file.merge()
            self._merged = time.monotonic()

    def _tell(self, purpose: str) -> None:
        if self._callback is None or (purpose != "done" and time.monotonic() - self._told < TILE_SECONDS):
            return
        self._told = time.monotonic()
        pace = (time.monotonic() - self._begun) / self._n_here if self._n_here else math.nan
        left = pace * (self._n_asked - self._n_done)
        self._callback(Progress(self._surface, purpose, self._n_done, self._n_asked, left, float(self._lowest)))

    def _answer(self, place: int, ask: Ask) -> Answer:
        self._keep()
        self._tell(ask.purpose)
        places = [self._place(place, int(cell)) for cell in ask.cells]
        estimates = {
            rung: self._estimate(samples, places, name_of(samples) if rung == ask.size else FULL)
            for rung, samples in ask.samples.items()
        }
        if ask.size:
            return Answer(estimates=estimates)
        metrics = [str(name) for name in self._surface.data_vars if name != "status" and not str(name).endswith("_se")]
        numbers = place * self._n_cells + ask.cells
        examples = {}
        if ask.examples:
            records = [self._journal.get(FULL, each) for each in places]
            keys = [(split, metric) for split in self._splits for metric in metrics]
            examples = {
                (split, metric): np.stack([record[f"{split}/{metric}"] for record in records]) for split, metric in keys
            }
        values = {metric: read_cells(self._surface, metric, numbers) for metric in metrics}
        return Answer(values, estimates, examples)

    def _estimate(self, samples: Mapping[str, Sample], places: Sequence[Place], name: str) -> dict[str, np.ndarray]:
        """Estimate from the values of single examples, on the sample itself or picked out of all: (n_splits, 2, k)."""
        records = [self._journal.get(name, place) for place in places]
        found: dict[str, list[np.ndarray]] = {}
        for split in self._splits:
            sample = samples[split]
            for metric in sample.estimators:
                rows = [record[f"{split}/{metric}"] for record in records]
                block = np.stack(rows) if name else np.stack([row[sample.positions] for row in rows])
                found.setdefault(metric, []).append(sample.estimate(metric, block))
        return {metric: np.stack(by_split) for metric, by_split in found.items()}


def name_of(samples: Mapping[str, Sample]) -> str:
    """Name a sample by its examples: the same ones have the same values, whatever weights they are given."""
    digest = hashlib.sha256()
    for split in sorted(samples):
        digest.update(split.encode() + samples[split].positions.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _wants_examples(ask: Ask) -> bool:
    return ask.size == 0 and (ask.examples or bool(ask.samples))


def _stacked(records: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([record[name] for record in records]) for name in records[0]}
