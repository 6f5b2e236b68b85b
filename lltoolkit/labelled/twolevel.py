"""Two levels: a few cells on all examples, more on samples that those calibrate, the rest interpolated. Torch-free."""

from collections.abc import Generator, Mapping, Sequence

import numpy as np
from scipy.spatial import KDTree

from lltoolkit.labelled.audit import Audits, worst
from lltoolkit.labelled.interpolate import Fields
from lltoolkit.labelled.lattice import Lattices
from lltoolkit.labelled.plan import Answer, Ask, Known, Plan
from lltoolkit.labelled.refine import CAUTION, MORE, audit, compute, fill, steps, wanted
from lltoolkit.labelled.sampling import Sample, make_sample

SMALLEST = 400  # examples of the ladder's first rung; each next rung has twice as many
WORTH = 0.5  # a sample of more than this share of a split saves too little: all its examples are taken instead
DEFAULT = 800  # examples of a cell where no tolerance asks for more or fewer
NOISE = 0.8  # share of the tolerance that sampling may use up; errors add in squares, so 0.6 is left to interpolation
RINGS = 1  # of cells around the origin that are computed to begin with; they halve what the cells between them need
NEAR = 4  # measured cells that tell how many examples a cell beside them needs


def two_level(
    coords: Mapping[str, np.ndarray],
    *,
    splits: Sequence[str],
    metrics: Sequence[str],
    n_examples: Mapping[str, int],
    tolerance: float | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Plan:
    """Plan a surface whose cells are measured on as many examples as they need.

    The coarsest lattice, denser around the origin, is computed on all examples, one by one. From it a sample of each
    split is drawn (an example's chance follows its share of the loss) and calibrated (the sample reproduces the full
    means of these cells). Further cells are chosen as in `refine`, but measured on the sample, which tells its own
    standard error; a cell where that is too large is measured again on a larger sample, and in the end on all
    examples, as happens near a minimum, where a few examples carry the loss. So are cells whose sample gives no finite
    value, or no positive one where losses are positive. The result is audited on all examples, as in `refine`: the
    cells drawn are of those that are not computed on all examples, sampled and interpolated ones alike.

    Parameters
    ----------
    coords, splits, metrics, seed
        As in `refine`; the seed also decides the samples. ``loss`` must be one of the metrics, and every metric the
        mean of a value of each example.
    n_examples : mapping
        Split -> how many there are.
    tolerance : float, optional
        As in `refine`. Without one, every cell is measured on 800 examples of each split (on 400 where 800 are more
        than half of them, on all where 400 are), and audited once, whatever the audit finds.
    weights : mapping, optional
        Split -> ``(n_examples,)``, positive: what each example counts in the mean; 1 by default.

    Yields
    ------
    Ask
        Cells to measure on all examples or on a sample.

    Returns
    -------
    Filled
        As from `refine`; besides ``n_estimated`` cells, and ``n_forwards`` of ``n_forwards_full``: examples passed
        through the network, and what all cells would have taken.

    References
    ----------
    Särndal, Swensson & Wretman (1992), Model Assisted Survey Sampling. Kennedy & O'Hagan (2000), Predicting the output
    from a complex computer code when fast approximations are available.
    """
    grid = Lattices(coords)
    known = Known(grid.n_cells, splits, metrics)
    audits = Audits(grid.n_cells, seed)
    ladder = Ladder(grid, known, n_examples, weights or {}, seed)
    yield from ladder.begin()
    if tolerance is None:
        yield from ladder.take(np.flatnonzero(known.missing()), ladder.rung_below(DEFAULT))
        yield from audit(grid, known, audits, np.inf)
        return fill(grid, known, ladder.counts() | audits.attrs)
    caution = CAUTION
    while True:
        noise = NOISE * tolerance / caution
        for level, allowed in steps(grid, tolerance):
            while len(cells := wanted(grid, known, level, allowed / caution)):
                yield from ladder.measure(cells, noise)
        yield from ladder.climb(ladder.sampled(), noise)
        excess = yield from audit(grid, known, audits, tolerance)
        if excess <= 1:
            break
        caution *= np.clip(excess, *MORE)
    goal = {"tolerance": float(tolerance), "tolerance_met": 1}
    return fill(grid, known, goal | ladder.counts() | audits.attrs)


class Ladder:
    """Samples from small to large, and on which of them each cell was measured.

    Parameters
    ----------
    grid, known
        The grid, and what is known of it; filled by the methods.
    n_examples, weights, seed
        As in `two_level`.
    """

    def __init__(
        self,
        grid: Lattices,
        known: Known,
        n_examples: Mapping[str, int],
        weights: Mapping[str, np.ndarray],
        seed: int,
    ):
        self._grid, self._known, self._seed = grid, known, seed
        self._weights = {split: weights.get(split, np.ones(n_examples[split])) for split in known.splits}
        self._n_all = max(len(each) for each in self._weights.values())
        self._sizes = []
        while (size := SMALLEST * 2 ** len(self._sizes)) <= WORTH * self._n_all:
            self._sizes.append(size)
        self._samples: dict[int, dict[str, Sample]] = {}
        self._calibrating: dict[str, dict[str, np.ndarray]] = {}
        self._size = np.zeros(grid.n_cells, dtype=int)  # of the last sample that each cell was measured on
        self._n_sampled = 0

    def begin(self) -> Generator[Ask, Answer, None]:
        """Compute the first cells on all examples, to draw and calibrate the samples by.

        Yields
        ------
        Ask
            For the values of single examples.
        """
        cells = self._grid.sort(np.flatnonzero(self._grid.first(RINGS)))
        answer = yield Ask(cells, "grid", examples=True)
        self._known.add(cells, answer.values)
        self._calibrating = {
            split: {metric: answer.examples[split, metric] for metric in self._known.metrics}
            for split in self._known.splits
        }

    def measure(self, cells: np.ndarray, allowed: float) -> Generator[Ask, Answer, None]:
        """Measure new cells on as many examples as a standard error of at most `allowed` takes.

        Yields
        ------
        Ask
            First as many examples as the cells' neighbours needed, then more.
        """
        sizes = self._first(cells, allowed)
        for size in np.unique(sizes):
            yield from self.take(cells[sizes == size], size)
        yield from self.climb(cells, allowed)

    def climb(self, cells: np.ndarray, allowed: float) -> Generator[Ask, Answer, None]:
        """Measure cells again, on larger samples, until no standard error is above `allowed`.

        Yields
        ------
        Ask
            At least the next rung.
        """
        while True:
            cells = cells[~self._known.computed()[cells]]
            errors = self._errors(cells)
            cells, errors = cells[errors > allowed], errors[errors > allowed]
            if not len(cells):
                return
            now = self._size[cells]
            sizes = self._rung(np.maximum(self._enough(now, errors / allowed), now + 1))
            for size in np.unique(sizes):
                yield from self.take(cells[sizes == size], size)

    def take(self, cells: np.ndarray, size: int) -> Generator[Ask, Answer, None]:
        """Measure cells on the samples of one rung, or on all examples if there is no such rung.

        Yields
        ------
        Ask
            And another for cells where the sample gives no value that could be one of all examples.
        """
        if not len(cells):
            return
        if size not in self._sizes:
            yield from compute(self._grid, self._known, cells)
            return
        samples = self._sample(int(size))
        cells = self._grid.sort(cells)
        answer = yield Ask(cells, "sample", int(size), {int(size): samples})
        self._known.add_estimates(cells, answer.estimates[int(size)])
        self._size[cells] = size
        self._n_sampled += len(cells) * sum(len(sample.positions) for sample in samples.values())
        yield from compute(self._grid, self._known, cells[self._unfit(cells)])

    def rung_below(self, size: int) -> int:
        """Give the largest rung of at most `size`; all examples where there is none."""
        return max((rung for rung in self._sizes if rung <= size), default=self._n_all)

    def sampled(self) -> np.ndarray:
        """Give the cells that are known from a sample only, rising."""
        return np.flatnonzero(~self._known.computed() & ~self._known.missing())

    def counts(self) -> dict[str, str | int | float]:
        """Count cells and forward passes, for the attributes."""
        n_all = sum(len(each) for each in self._weights.values())
        return {
            "n_estimated": len(self.sampled()),
            "n_forwards": int(self._known.computed().sum()) * n_all + self._n_sampled,
            "n_forwards_full": self._grid.n_cells * n_all,
        }

    def _sample(self, size: int) -> dict[str, Sample]:
        if size not in self._samples:
            self._samples[size] = {
                split: make_sample(
                    self._calibrating[split],
                    weights,
                    size if size <= WORTH * len(weights) else len(weights),
                    self._seed,
                    split,
                )
                for split, weights in self._weights.items()
            }
        return self._samples[size]

    def _unfit(self, cells: np.ndarray) -> np.ndarray:
        """Tell the estimates that aren't finite, or not positive where all computed losses of the split are."""
        computed = self._known.values["loss"][:, self._known.computed()]
        positive = ~(computed <= 0).any(axis=1, keepdims=True)
        low = (self._known.values["loss"][:, cells] <= 0) & positive
        return self._known.broken()[cells] | low.any(axis=0)

    def _errors(self, cells: np.ndarray) -> np.ndarray:
        """Give the standard errors of measured cells, scaled: the worst of loss and accuracy on all splits."""
        sound = self._known.sound()
        fields = Fields({name: block[:, sound] for name, block in self._known.values.items()})
        values = {name: block[:, cells] for name, block in self._known.values.items()}
        errors = {name: block[:, cells] for name, block in self._known.errors.items()}
        return worst(fields, fields.pack_errors(values, errors))

    def _first(self, cells: np.ndarray, allowed: float) -> np.ndarray:
        """Choose the sizes to begin with: what the nearest sampled cells would have needed, on average."""
        sampled = self.sampled()
        if not len(sampled):
            return self._rung(np.zeros(len(cells)))
        needed = self._enough(self._size[sampled], self._errors(sampled) / allowed)
        near = np.arange(1, 1 + min(NEAR, len(sampled)))
        _, nearest = KDTree(self._grid.points[sampled]).query(self._grid.points[cells], k=near)
        return self._rung(np.exp(np.log(needed)[nearest].mean(axis=1)))

    def _enough(self, size: np.ndarray, excess: np.ndarray) -> np.ndarray:
        """Give the sizes at which standard errors measured at `size` would be `excess` times smaller."""
        # The variance of a mean over n of N examples goes as 1 / n - 1 / N.
        return 1 / ((1 / size - 1 / self._n_all) / np.maximum(excess, 1e-6) ** 2 + 1 / self._n_all)

    def _rung(self, needed: np.ndarray) -> np.ndarray:
        """Give the smallest rungs of at least these sizes; all examples where there is none."""
        sizes = np.array([*self._sizes, self._n_all])
        return sizes[np.searchsorted(sizes[:-1], needed)]
