"""Bootstrap of rank correlations: every resample is a weighting of the same pairs of models, so no data is copied.

A model that is drawn twice makes pairs with itself that are tied in both variables, and such pairs count for nothing
in tau-b: with the models' counts ``w``, a pair's weight is ``w_i * w_j`` and its sign stays what it was.
"""

from collections.abc import Iterator

import numpy as np

_BLOCK = 2**19  # numbers in one block of draws: 4 MiB, which stays near the core


def pair_signs(values: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
    """Compare every pair of models once.

    Parameters
    ----------
    values : ndarray
        Shape ``(..., n)``, without NaN; inf is the largest.
    bounds : ndarray, optional
        Same shape: 1 where the true value is that or larger, -1 where it is that or smaller, 0 where it is that.

    Returns
    -------
    ndarray
        Shape ``(..., n * (n - 1) / 2)``, float64: 1 where the first of the pair is larger, -1 smaller, 0 tied or
        open: two bounds, or a bound whose true value may lie on either side of the other.

    Examples
    --------
    >>> pair_signs(np.array([1.0, 2.0, 2.0]))
    array([-1., -1.,  0.])
    """
    first, second = np.triu_indices(values.shape[-1], k=1)
    one, other = values[..., first], values[..., second]
    signs = (one > other).astype(np.float64) - (one < other)
    if bounds is None:
        return signs
    of_one, of_other = bounds[..., first], bounds[..., second]
    # A bound that points at the other value, from below or from above, leaves open who is larger.
    is_open = ((of_one != 0) & (of_other != 0)) | (of_one * signs < 0) | (of_other * signs > 0)
    return np.where(is_open, 0.0, signs)


def cluster_counts(clusters: np.ndarray, n_draws: int, generator: np.random.Generator) -> np.ndarray:
    """Draw clusters with replacement; all models of a cluster come together.

    Parameters
    ----------
    clusters : ndarray
        Shape ``(n,)``, the cluster of each model.
    n_draws : int
        How many resamples.
    generator : numpy.random.Generator
        Where the draws come from.

    Returns
    -------
    ndarray
        Shape ``(n_draws, n)``, float64: how often each model is in each resample.
    """
    _, codes = np.unique(clusters, return_inverse=True)
    n_clusters = int(codes.max()) + 1
    drawn = generator.integers(n_clusters, size=(n_draws, n_clusters))
    return _tally(drawn, n_clusters)[:, codes]


def example_means(values: np.ndarray, n_draws: int, generator: np.random.Generator) -> np.ndarray:
    """Draw examples with replacement, the same ones for all models, and average.

    Parameters
    ----------
    values : ndarray
        Shape ``(n, n_examples)``.
    n_draws : int
        How many resamples.
    generator : numpy.random.Generator
        Where the draws come from.

    Returns
    -------
    ndarray
        Shape ``(n_draws, n)``, float64: the mean over each resample's examples.
    """
    n_examples = values.shape[1]
    means = np.empty((n_draws, len(values)))
    for block in _blocks(n_draws, n_examples):
        drawn = generator.integers(n_examples, size=(block.stop - block.start, n_examples))
        means[block] = _tally(drawn, n_examples) @ values.T / n_examples
    return means


def resampled_tau(x: np.ndarray, y: np.ndarray, counts: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
    """Kendall's tau-b of every pair of variables on every resample of the models.

    Parameters
    ----------
    x, y : ndarray
        Shapes ``(k, n)``, without NaN: ``x[i]`` goes with ``y[i]``.
    counts : ndarray
        Shape ``(n_draws, n)``, from `cluster_counts`.
    bounds : ndarray, optional
        Of `x`, shape ``(k, n)``, as in `pair_signs`.

    Returns
    -------
    ndarray
        Shape ``(n_draws, k)``, in [-1, 1]; NaN where a resample has no two different values.
    """
    signs_x, signs_y = pair_signs(x, bounds), pair_signs(y)
    columns = np.concatenate([signs_x * signs_y, np.abs(signs_x), np.abs(signs_y)]).T
    first, second = np.triu_indices(x.shape[1], k=1)
    sums = np.empty((len(counts), columns.shape[1]))
    for block in _blocks(len(counts), len(first)):
        sums[block] = (counts[block][:, first] * counts[block][:, second]) @ columns
    return _ratio(*np.split(sums, 3, axis=1))


def resampled_rho(x: np.ndarray, y: np.ndarray, counts: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
    """Spearman's rho of every pair of variables on every resample of the models; as `resampled_tau`.

    A rank is half the sum of the signs against all others, so a pair whose order is open counts as tied in it, too.

    Returns
    -------
    ndarray
        Shape ``(n_draws, k)``, in [-1, 1]; NaN where a resample has no two different values.
    """
    result = np.empty((len(counts), len(x)))
    bounds = np.zeros(x.shape) if bounds is None else bounds
    for place, (one, other, bound) in enumerate(zip(x, y, bounds, strict=True)):
        ranks_x, ranks_y = _centred_ranks(one, counts, bound), _centred_ranks(other, counts, np.zeros(other.shape))
        products = (ranks_x * ranks_y, ranks_x**2, ranks_y**2)
        result[:, place] = _ratio(*((counts * product).sum(axis=1) for product in products))
    return result


def redrawn_tau(x: np.ndarray, y: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
    """Kendall's tau-b of the same models whose second variable is drawn anew each time.

    Parameters
    ----------
    x : ndarray
        Shape ``(k, n)``, without NaN.
    y : ndarray
        Shape ``(n_draws, n)``, without NaN.
    bounds : ndarray, optional
        Of `x`, same shape, as in `pair_signs`.

    Returns
    -------
    ndarray
        Shape ``(n_draws, k)``, in [-1, 1]; NaN where there are no two different values.
    """
    signs_x = pair_signs(x, bounds)
    untied_x = np.abs(signs_x).sum(axis=1)
    result = np.empty((len(y), len(x)))
    for block in _blocks(len(y), signs_x.shape[1]):
        signs_y = pair_signs(y[block])
        result[block] = _ratio(signs_y @ signs_x.T, untied_x, np.abs(signs_y).sum(axis=1, keepdims=True))
    return result


def partial_tau(tau_xy: np.ndarray, tau_xz: np.ndarray, tau_yz: np.ndarray) -> np.ndarray:
    """Kendall's partial rank correlation of x and y given z.

    Parameters
    ----------
    tau_xy, tau_xz, tau_yz : ndarray
        The plain ones, equal shapes. Where z does not vary (NaN for both), it explains nothing and tau stays.

    Returns
    -------
    ndarray
        In [-1, 1]; NaN where z orders the models exactly as x or as y does, since then nothing is left.

    References
    ----------
    Kendall (1942), Partial rank correlation, Biometrika 32.
    """
    constant = np.isnan(tau_xz) & np.isnan(tau_yz)
    tau_xz, tau_yz = np.where(constant, 0.0, tau_xz), np.where(constant, 0.0, tau_yz)
    left = (1 - tau_xz**2) * (1 - tau_yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Rounding leaves 1e-16 of what is 0 in truth; dividing by it would make up a correlation.
        return np.where(left > 1e-12, (tau_xy - tau_xz * tau_yz) / np.sqrt(np.maximum(left, 1e-12)), np.nan)


def interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Take the range of percentiles; draws that are NaN are left out.

    Parameters
    ----------
    draws : ndarray
        Shape ``(n_draws, k)``.
    level : float
        Share of the draws inside, in (0, 1).

    Returns
    -------
    (ndarray, ndarray)
        Lower and upper ends, shapes ``(k,)``; NaN where all draws are.
    """
    ends = np.full((2, draws.shape[1]), np.nan)
    some = ~np.isnan(draws).all(axis=0)
    if some.any():
        ends[:, some] = np.nanquantile(draws[:, some], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0], ends[1]


def _centred_ranks(values: np.ndarray, counts: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Ranks in each resample minus their mean, shape ``(n_draws, n)``; ties share their middle rank."""
    # A model's rank is the weight below it and half the weight of its equals; less the mean, that is half the sum of
    # its signs against all others.
    n = len(values)
    signs = np.zeros((n, n))
    signs[np.triu_indices(n, k=1)] = pair_signs(values, bounds)
    return counts @ (signs.T - signs) / 2


def _ratio(product: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Divide ``product`` by the geometric mean of two sums; NaN where either is 0."""
    scale = np.sqrt(one) * np.sqrt(other)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, np.clip(product / scale, -1.0, 1.0), np.nan)


def _tally(drawn: np.ndarray, n: int) -> np.ndarray:
    """Count in each row how often each of ``0 .. n - 1`` is there, shape ``(rows, n)``, float64."""
    rows = len(drawn)
    flat = (drawn + np.arange(rows)[:, None] * n).ravel()
    return np.bincount(flat, minlength=rows * n).reshape(rows, n).astype(np.float64)


def _blocks(n_draws: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, n_draws, step):
        yield slice(start, min(start + step, n_draws))
