"""Carry out what plans ask for: on this process, on local workers or on a cluster, kept tile by tile."""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from lltoolkit.journal import FULL, Journal, Place
from lltoolkit.keeping import Keeper, Progress, Reporter
from lltoolkit.labelled.plan import Answer, Ask, Filled, Plan
from lltoolkit.labelled.sampling import Sample
from lltoolkit.labelled.schema import STATUS, axes_of
from lltoolkit.labelled.surface import read_cells
from lltoolkit.store import GridFile
from lltoolkit.tensors.evaluate import Result, Task
from lltoolkit.tensors.objective import Values
from lltoolkit.workers import Pool

TASK_SECONDS = 0.3  # cells go to workers in bundles of about so much work: short to wait for, long beside a message
WORDS = {"grid": "surface", "audit": "surface, audit", "sample": "surface, samples"}


class Execution:
    """One surface being computed.

    Parameters
    ----------
    surface : xr.Dataset
        To be filled; the file's, if there is one.
    file : GridFile, optional
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
        file: GridFile | None,
        journal: Journal,
        pool: Pool,
        *,
        n_examples: int,
        seconds_per_cell: float,
        group: int = 1,
        progress: bool = True,
        callback: Callable[[Progress], None] | None = None,
    ) -> None:
        self._surface, self._journal, self._pool = surface, journal, pool
        self._splits = [str(split) for split in surface["split"].values]
        self._axes = [surface[axis].values for axis in axes_of(surface)]
        self._n_cells = math.prod(len(axis) for axis in self._axes)  # of one direction
        self._group, self._seconds, self._n_examples = group, seconds_per_cell, n_examples
        self._keeper = Keeper(surface, file)
        self._reporter = Reporter(surface, self._splits[0], progress=progress, callback=callback)
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
            with self._reporter:
                for place in range(len(plans)):
                    advance(place, None)
                while asks:
                    self._compute(asks)
                    for place, ask in list(asks.items()):
                        advance(place, self._answer(place, ask))
        except BaseException:
            if not self._keeper.disk_failed:
                self._keep(last=True)  # an interrupt, or a fault of the model: what is computed is kept
            raise
        self._keep(last=True)
        self._reporter.tell("done")
        return [filled[place] for place in range(len(plans))]

    def _compute(self, asks: Mapping[int, Ask]) -> None:
        """Have all that is asked for and not known yet computed."""
        works = self._work(asks)
        purpose = next(iter(asks.values())).purpose
        self._reporter.ask(sum(len(task.cells) for task, _ in works), WORDS[purpose])
        names = {id(task): name for task, name in works}
        for task, result in self._pool.run([task for task, _ in works]):
            self._take(task, result, names[id(task)])
            if self._keeper.is_due:
                self._keep()
                self._reporter.tell(purpose)

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
        for (place, coordinates), examples in zip(task.points, result.examples, strict=False):
            record = {f"{split}/{metric}": array for (split, metric), array in examples.items()}
            self._records.setdefault(name, []).append(((float(place), *coordinates), record))
        losses = [values[self._splits[0], "loss"] for values in result.values]
        self._reporter.count(len(task.cells), float(np.fmin.reduce(losses, initial=np.inf)))

    def _keep(self, *, last: bool = False) -> None:
        """Write what no tile holds yet and, where it has become old or this is the last time, the merged file."""
        with self._keeper.writing():
            self._write()
            self._keeper.merge(last=last)

    def _write(self) -> None:
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
            self._keeper.add(cells, block, batch_size)
        self._values.clear()

    def _answer(self, place: int, ask: Ask) -> Answer:
        self._keep()
        self._reporter.tell(ask.purpose)
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
