"""What a plan asks for and what it gives: the words between a planner and whoever runs the network. Torch-free.

A plan decides which cells of a surface are computed, on how many examples, and how the rest is filled. It is a
generator that knows no model: it yields an `Ask`, is sent an `Answer`, and returns a `Filled`. What it asks next
follows from the grid, the options, the seed and the answers alone. So a plan that was killed is begun again and its
old asks are answered from a journal: it makes the same decisions, and the surface comes out bit for bit.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from lltoolkit.labelled.sampling import Sample
from lltoolkit.labelled.schema import STATUS

N_AUDIT = 59  # 0.95^59 < 0.05: if more than 5 % of the cells were worse than all 59, one would show it 19 times in 20
N_MORE = 14  # 0.95^14 < 0.5: each further audit has half the chance of passing by luck that the one before had


@dataclass(frozen=True)
class Ask:
    """What to compute next.

    Parameters
    ----------
    cells : ndarray
        Shape ``(k,)``: flat (row-major) positions in the grid, in the order of computing.
    purpose : {"grid", "audit", "sample"}
        For the progress bar and the log; it does not change what is computed.
    size : int
        0: all examples. Else how many of the largest split, which names the rung of the ladder.
    samples : mapping
        Size -> split -> `Sample` to be measured at each cell: one entry for ``size > 0``, none for all examples.
    examples : bool
        The values of every example are wanted in the answer; only with ``size=0``.
    """

    cells: np.ndarray
    purpose: str
    size: int = 0
    samples: Mapping[int, Mapping[str, Sample]] = field(default_factory=dict)
    examples: bool = False


@dataclass(frozen=True)
class Answer:
    """What was computed, cell by cell in the order of ``Ask.cells``.

    Parameters
    ----------
    values : mapping
        Metric -> ``(n_splits, k)``: the means over all examples, with NaN and inf as they come; empty for ``size > 0``.
    estimates : mapping
        For each of ``Ask.samples``: size -> metric -> ``(n_splits, 2, k)``, which is what `Sample.estimate` gives.
    examples : mapping
        (split, metric) -> ``(k, n_examples)``: the value of every example, where asked for.
    """

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    estimates: Mapping[int, Mapping[str, np.ndarray]] = field(default_factory=dict)
    examples: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Filled:
    """A whole surface: what was computed as it was computed, the rest filled.

    Parameters
    ----------
    values : mapping
        Metric -> ``(n_splits, n_cells)``.
    errors : mapping
        Metric -> ``(n_splits, n_cells)``: estimated standard error in the metric's own units, 0 where a cell was
        computed on all examples, NaN where nothing estimates it.
    status : ndarray
        Shape ``(n_cells,)``, int8: computed, interpolated or estimated, as in `schema.STATUS`.
    attrs : mapping
        How it was made and how far off it is; str, int and float.
    """

    values: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    status: np.ndarray
    attrs: Mapping[str, str | int | float]


Plan: TypeAlias = Generator[Ask, Answer, Filled]


class Known:
    """The cells measured so far, on all examples or on some. Filled in any order, it is the same.

    Parameters
    ----------
    n_cells : int
        Cells of the grid.
    splits, metrics : sequence of str
        What is measured.
    """

    def __init__(self, n_cells: int, splits: Sequence[str], metrics: Sequence[str]):
        self.splits, self.metrics = tuple(splits), tuple(metrics)
        self.values = {name: np.full((len(splits), n_cells), np.nan) for name in metrics}
        self.errors = {name: np.full((len(splits), n_cells), np.nan) for name in metrics}
        self.status = np.full(n_cells, STATUS["missing"], dtype=np.int8)

    def add(self, cells: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Note cells computed on all examples; values are metric -> ``(n_splits, k)``."""
        for name in self.metrics:
            self.values[name][:, cells] = values[name]
            self.errors[name][:, cells] = 0.0
        self.status[cells] = STATUS["computed"]

    def add_estimates(self, cells: np.ndarray, estimates: Mapping[str, np.ndarray]) -> None:
        """Note cells measured on a sample, unless they are computed; metric -> ``(n_splits, 2, k)``."""
        open_cells = self.status[cells] != STATUS["computed"]
        cells = cells[open_cells]
        for name in self.metrics:
            self.values[name][:, cells] = estimates[name][:, 0, open_cells]
            self.errors[name][:, cells] = estimates[name][:, 1, open_cells]
        self.status[cells] = STATUS["estimated"]

    def missing(self) -> np.ndarray:
        """Tell which cells are not measured; shape ``(n_cells,)``, bool, as those below."""
        return self.status == STATUS["missing"]

    def computed(self) -> np.ndarray:
        """Tell which cells are measured on all examples."""
        return self.status == STATUS["computed"]

    def broken(self) -> np.ndarray:
        """Tell which measured cells have a NaN or an infinite value: kept, and never interpolated across."""
        return ~self.missing() & ~np.all([np.isfinite(block).all(axis=0) for block in self.values.values()], axis=0)

    def sound(self) -> np.ndarray:
        """Tell which measured cells can carry an interpolant."""
        return ~self.missing() & ~self.broken()
