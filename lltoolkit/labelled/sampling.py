"""Means over a sample of the examples: which examples, with what weights, and how far off. Torch-free.

A few cells are measured on all examples. From them follows how much each example matters (its inclusion probability)
and weights that reproduce the full means of those cells exactly (calibration); elsewhere the weighted sum of the
sample is off only by what those cells don't tell about the others, and the sample itself shows how much that is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lltoolkit.labelled.streams import stream

UNIFORM = 0.3  # share of the inclusion probabilities that is the same for all: no weight is much above 1 / UNIFORM
RIDGE = 0.01  # of the largest singular value: cells that tell nearly the same must not be told apart by huge weights


@dataclass(frozen=True)
class Estimator:
    """A weighted sum over a sample, and its standard error.

    Parameters
    ----------
    weights : ndarray
        Shape ``(n,)``, calibrated; they sum to 1.
    spread : ndarray
        Shape ``(n,)``: what an example that the calibrating cells don't explain adds to the standard error.
    basis : ndarray
        Shape ``(n, k)``: the calibrating cells times `spread`, so that ``basis @ basis.T`` fits values to them.
    least : float
        Below this no standard error is told.
    """

    weights: np.ndarray
    spread: np.ndarray
    basis: np.ndarray
    least: float = 0.0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Estimate the mean over all examples.

        Parameters
        ----------
        values : ndarray
            Shape ``(k, n)``: the sample's values at each of k cells.

        Returns
        -------
        ndarray
            Shape ``(2, k)``: estimates and standard errors.
        """
        # Left out of the fit, an example's residual would be larger by 1 / (1 - leverage): the jackknife's residual.
        leverage = np.square(self.basis).sum(axis=1)
        with np.errstate(invalid="ignore"):  # an infinite value makes its cell's estimate infinite or NaN
            spread = values * self.spread
            residual = (spread - (spread @ self.basis) @ self.basis.T) / np.maximum(1 - leverage, 0.1)
            errors = np.maximum(np.linalg.norm(residual, axis=1), self.least)
            return np.stack([values @ self.weights, errors])


@dataclass(frozen=True)
class Sample:
    """Some examples of a split, and how each metric's mean follows from them.

    Parameters
    ----------
    positions : ndarray
        Shape ``(n,)``, rising: which examples.
    estimators : mapping
        Metric -> `Estimator`.
    """

    positions: np.ndarray
    estimators: Mapping[str, Estimator]

    def estimate(self, metric: str, values: np.ndarray) -> np.ndarray:
        """Estimate a metric's mean over all examples and its standard error.

        Parameters
        ----------
        metric : str
            Which.
        values : ndarray
            Shape ``(k, n)`` or ``(n,)``: the metric of the examples at `positions`, at k cells or at one.

        Returns
        -------
        ndarray
            Shape ``(2, k)`` or ``(2,)``.
        """
        found = self.estimators[metric](np.atleast_2d(np.asarray(values, dtype=np.float64)))
        return found if np.ndim(values) == 2 else found[:, 0]


def importance(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tell how much each example matters: the root mean square over the cells of its share of the loss.

    Parameters
    ----------
    losses : ndarray
        Shape ``(k, n)``: every example's loss at the cells measured on all examples; cells that aren't finite are
        left out.
    weights : ndarray
        Shape ``(n,)``, positive: what an example counts in the mean.

    Returns
    -------
    ndarray
        Shape ``(n,)``, summing to 1: 0.7 of the shares and 0.3 uniform. Uniform if no cell has a share to give.
    """
    counts = weights / weights.sum()
    sizes = np.abs(losses) * counts
    totals = sizes.sum(axis=1, keepdims=True)
    usable = np.isfinite(totals[:, 0]) & (totals[:, 0] > 0)
    if not usable.any():
        return counts
    shares = np.sqrt(np.mean(np.square(sizes[usable] / totals[usable]), axis=0))
    return (1 - UNIFORM) * shares / shares.sum() + UNIFORM * counts


def inclusion(sizes: np.ndarray, n: int) -> np.ndarray:
    """Turn sizes into inclusion probabilities that sum to `n`, in proportion where that stays below 1.

    Parameters
    ----------
    sizes : ndarray
        Shape ``(n_examples,)``, positive.
    n : int
        Size of the sample, at most ``n_examples``.

    Returns
    -------
    ndarray
        Shape ``(n_examples,)``, in (0, 1]; 1 for the certain ones.
    """
    chances = np.ones(len(sizes))
    free = np.ones(len(sizes), dtype=bool)
    # Each certain example leaves less for the others, which may make more of them certain.
    while free.any() and n > (~free).sum():
        chances[free] = (n - (~free).sum()) * sizes[free] / sizes[free].sum()
        over = free & (chances >= 1)
        if not over.any():
            break
        chances[over] = 1
        free &= ~over
    return chances


def draw(chances: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Draw a sample of fixed size with given inclusion probabilities: Pareto order sampling.

    Parameters
    ----------
    chances : ndarray
        Shape ``(n_examples,)``, in (0, 1], summing to the size of the sample.
    numbers : ndarray
        Shape ``(n_examples,)``, uniform in (0, 1). Kept for good, they make samples of growing size nearly nested.

    Returns
    -------
    ndarray
        Positions, rising.

    References
    ----------
    Rosén (1997), On sampling with probability proportional to size. Ohlsson (1995), Coordination of samples using
    permanent random numbers.
    """
    certain = chances >= 1
    with np.errstate(divide="ignore"):
        ranking = np.where(certain, -1.0, numbers / (1 - numbers) * (1 - chances) / chances)
    return np.sort(np.argsort(ranking, kind="stable")[: round(chances.sum())])


def calibrate(counts: np.ndarray, chances: np.ndarray, sampled: np.ndarray, full: np.ndarray) -> Estimator:
    """Weight a sample so that it reproduces the full means at some cells.

    With Horvitz-Thompson weights ``d = c / pi`` and ``a = d^2 (1 - pi)``, the variance that an example adds, the
    weights are ``w = d + a X (X' a X + r I)^-1 (t - X'd)``. Without the small ridge ``r`` they would be, of all weights
    with ``X'w = t``, the nearest to ``d`` in the metric of ``1 / a``. The sum ``w'y`` is the regression estimator of
    ``y`` on the calibrating cells, and its variance that of this regression's residuals alone.

    Parameters
    ----------
    counts : ndarray
        Shape ``(n,)``: what the sampled examples count in the mean over all.
    chances : ndarray
        Shape ``(n,)``: their inclusion probabilities.
    sampled : ndarray
        Shape ``(k, n)``: their values at the calibrating cells.
    full : ndarray
        Shape ``(k,)``: the means over all examples there.

    Returns
    -------
    Estimator
        Exact where all examples are certain.

    References
    ----------
    Deville & Särndal (1992), Calibration estimators in survey sampling. Montanari (1987), Post-sampling efficient
    QR-prediction, for this metric. Särndal, Swensson & Wretman (1992), Model Assisted Survey Sampling, section 6.6.
    """
    horvitz = counts / chances
    spread = horvitz * np.sqrt(1 - chances)
    size = np.abs(full)
    size[size == 0] = 1.0
    cells = np.vstack([np.ones(len(counts)), sampled / size[:, None]]).T
    missed = np.append(1.0, full / size) - horvitz @ cells
    left, singular, right = np.linalg.svd(cells * spread[:, None], full_matrices=False)
    ridge = (RIDGE * singular[0]) ** 2 or 1.0  # all 0 where every example is certain
    step = left @ (singular / (singular**2 + ridge) * (right @ missed))
    return Estimator(horvitz + spread * step, spread, left * np.sqrt(singular**2 / (singular**2 + ridge)))


def make_sample(values: Mapping[str, np.ndarray], weights: np.ndarray, n: int, *words: object) -> Sample:
    """Draw a sample of one split and calibrate it for every metric.

    Parameters
    ----------
    values : mapping
        Metric -> ``(k, n_examples)``: every example's values at the cells measured on all examples; ``loss`` decides
        the inclusion probabilities. Cells that aren't finite are left out.
    weights : ndarray
        Shape ``(n_examples,)``, not negative: what an example counts in the mean. Those that count nothing are not
        drawn.
    n : int
        Size of the sample; all examples that count, if that is fewer.
    *words : object
        Name the random numbers: the seed and the split.

    Returns
    -------
    Sample
        Of at most `n` examples.
    """
    count = np.flatnonzero(weights > 0)
    n_examples = len(count)
    counts = weights / weights.sum()
    chances = np.zeros(len(weights))
    chances[count] = inclusion(importance(values["loss"][:, count], weights[count]), min(n, n_examples))
    numbers = stream("sample", *words).random(len(weights))
    positions = count[draw(chances[count], numbers[count])]
    estimators = {}
    for metric, block in values.items():
        with np.errstate(invalid="ignore"):
            full = block @ counts
        usable = np.isfinite(full)
        found = calibrate(counts[positions], chances[positions], block[usable][:, positions], full[usable])
        # All right or all wrong in the sample is not so in general: one in n may be otherwise and not be drawn.
        one = 1 / len(positions) if metric == "accuracy" and len(positions) < n_examples else 0.0
        estimators[metric] = replace(found, least=one)
    return Sample(positions, estimators)
