"""The numbers of a landscape: roughness, curvature in its own plane, area below a level, barrier. Torch-free.

All take a grid as ascending coordinates by axis, even or not, and values of the same shape in which NaN is not known
and +inf a wall. All are defined in the coordinates, not in grid points, so that they settle as the grid gets finer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Coords: TypeAlias = Sequence[np.ndarray]

MIN_POINTS = 5  # of a window per axis: a parabola goes through any 3
SAMPLES = {1: 256, 2: 16, 3: 6}  # points per axis and box at which an area is read off, by number of axes


def roughness(coords: Coords, values: np.ndarray, window: float) -> float:
    """Give how far a landscape departs from a parabola in a typical window of a given size.

    Around every grid point whose window lies whole inside the grid the best quadratic polynomial is found by least
    squares; what is left has a root mean square over the window, and the median over the windows is taken: the one well
    of the minimizer, whose logarithm is steep, doesn't make a landscape rough. Only windows are taken of which half is
    known.

    Parameters
    ----------
    coords : sequence of ndarray
        Shape ``(n,)`` each, ascending.
    values : ndarray
        Shape ``(n, ...)``.
    window : float
        Half the width of a window along every axis, in the units of the coordinates. Of a ripple's mean square counts
        90 % at a wavelength of `window`, 23 % at twice and less than 1 % at four times that.

    Returns
    -------
    float
        In the units of the values. 0 for every quadratic; of a ripple ``A cos(k alpha + phase)``, with the spherical
        Bessel functions at ``k window``, ``A / sqrt(2) * sqrt(1 - j0^2 - 3 j1^2 - 5 j2^2)``: a plane wave is a sum of
        Legendre polynomials with these coefficients, and the fit takes the first three away. (The mean square varies
        with the phase as its squared cosine does, whose median is its mean.) NaN where no window holds 5 points along
        each axis.
    """
    n_terms = (len(coords) + 1) * (len(coords) + 2) // 2
    volumes = _outer([_widths(points) for points in coords])
    # On an even grid all windows are alike, and one factorization serves them.
    bases: dict[tuple[bytes, ...], tuple[np.ndarray, np.ndarray]] = {}
    squares, weights = [], []
    for place in itertools.product(*(_windows(points, window) for points in coords)):
        inside = values[tuple(each.box for each in place)]
        known = np.isfinite(inside)
        n_known = int(known.sum())
        if n_known < max(known.size / 2, 2 * n_terms):
            continue
        key = (*(each.kind for each in place), b"" if n_known == known.size else known.tobytes())
        if key not in bases:
            root = np.sqrt(_outer([_widths(each.local) for each in place])[known])
            root /= np.linalg.norm(root)
            bases[key] = root, np.linalg.qr(root[:, None] * _quadratics([each.local for each in place], known))[0]
        root, basis = bases[key]
        heights = inside[known]
        heights = root * (heights - heights.mean())
        left = heights - basis @ (basis.T @ heights)
        squares.append(float(left @ left))
        weights.append(volumes[tuple(each.centre for each in place)])
    return math.sqrt(_median(np.array(squares), np.array(weights))) if squares else math.nan


def smallest_curvature(coords: Coords, values: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the smallest eigenvalue of the Hessian in the coordinates, by central differences.

    Parameters
    ----------
    coords : sequence of ndarray
        Shape ``(n,)`` each, ascending.
    values, error : ndarray
        Shape ``(n, ...)``; the error of each value, taken as independent of its neighbours'.

    Returns
    -------
    eigenvalue, tolerance : ndarray
        Shape ``(n - 2, ...)``: inner cells only, NaN beside what is not finite. The tolerance is the Frobenius norm of
        the errors of the Hessian's entries, which no eigenvalue's error exceeds (Weyl). Three-point formulas, exact
        for quadratics on uneven coordinates too.
    """
    dims = len(coords)
    stencils = [_stencils(points) for points in coords]
    inner = tuple(max(size - 2, 0) for size in values.shape)
    hessian, variance = np.zeros((2, *inner, dims, dims))
    if not hessian.size:
        return np.zeros(inner), np.zeros(inner)
    values = np.where(np.isfinite(values), values, np.nan)
    for i, j in itertools.combinations_with_replacement(range(dims), 2):
        # Twice along one axis, or once along each of two.
        steps = {i: stencils[i][1]} if i == j else {i: stencils[i][0], j: stencils[j][0]}
        hessian[..., i, j] = hessian[..., j, i] = _apply(steps, values)
        variance[..., i, j] = variance[..., j, i] = _apply({axis: step**2 for axis, step in steps.items()}, error**2)
    sound = np.isfinite(hessian).all(axis=(-1, -2))
    eigenvalue = np.full(inner, np.nan)
    eigenvalue[sound] = np.linalg.eigvalsh(hessian[sound])[..., 0]
    return eigenvalue, np.where(sound, np.sqrt(variance.sum(axis=(-1, -2))), np.nan)


def area_below(coords: Coords, values: np.ndarray, levels: Sequence[float]) -> tuple[np.ndarray, float]:
    """Give the length, area or volume in which a landscape, linear between its grid points, is below each level.

    Parameters
    ----------
    coords : sequence of ndarray
        Shape ``(n,)`` each, ascending.
    values : ndarray
        Shape ``(n, ...)``.
    levels : sequence of float
        In the units of the values.

    Returns
    -------
    areas : ndarray
        Shape ``(n_levels,)``, in the product of the units of the coordinates. A box between grid points counts by the
        share of its points that are below, 16 x 16 of them in a plane. A box at a wall counts as above.
    spanned : float
        The area of all boxes that have no unknown corner; the others are left out.
    """
    dims = len(coords)
    volumes = _outer([np.diff(points) for points in coords])
    corners = {
        corner: values[tuple(slice(bit, size - 1 + bit) for bit, size in zip(corner, values.shape, strict=True))]
        for corner in itertools.product((0, 1), repeat=dims)
    }
    known = np.all([~np.isnan(corner) for corner in corners.values()], axis=0)
    n_samples = SAMPLES[dims]
    below = np.zeros((len(levels), *volumes.shape))
    for sample in itertools.product((np.arange(n_samples) + 0.5) / n_samples, repeat=dims):
        height = np.zeros(volumes.shape)
        for corner, heights in corners.items():
            height += math.prod(t if bit else 1 - t for bit, t in zip(corner, sample, strict=True)) * heights
        for place, level in enumerate(levels):
            below[place] += height < level
    areas = (below / n_samples**dims * np.where(known, volumes, 0)).reshape(len(levels), -1).sum(axis=1)
    return areas, float(volumes[known].sum())


def barrier(points: np.ndarray, values: np.ndarray, ends: tuple[float, float]) -> tuple[float, float]:
    """Give how far a line rises between two of its points.

    Parameters
    ----------
    points : ndarray
        Shape ``(n,)``, ascending.
    values : ndarray
        Shape ``(n,)``. Unknown ones are passed over.
    ends : (float, float)
        Where the line is taken to begin and end, inside of the points; linear between grid points.

    Returns
    -------
    above_line, above_mean : float
        In the units of the values. The largest height above the straight line between the ends, at least 0; and the
        largest height less the mean of the ends. Infinite where there is a wall; NaN where an end is not known.

    References
    ----------
    Entezari et al. (2022), The Role of Permutation Invariance in Linear Mode Connectivity of Neural Networks, for the
    first. Frankle et al. (2020), Linear Mode Connectivity and the Lottery Ticket Hypothesis, section 2, for the second.
    """
    low, high = sorted(ends)
    known = ~np.isnan(values)
    if not known.any() or low < points[known][0] - 1e-9 or high > points[known][-1] + 1e-9 or not high > low:
        return math.nan, math.nan
    points, values = points[known], values[known]
    with np.errstate(invalid="ignore"):
        first, last = np.interp([low, high], points, values)
    if not math.isfinite(first + last):
        return math.nan, math.nan
    between = (points > low) & (points < high)
    heights = np.array([first, *values[between], last])
    line = np.interp([low, *points[between], high], [low, high], [first, last])
    return float((heights - line).max()), float(heights.max() - (first + last) / 2)


@dataclass(frozen=True)
class _Window:
    """A window along one axis."""

    centre: int
    box: slice
    local: np.ndarray  # coordinates in it, in [-1, 1]
    kind: bytes  # the same for windows that are alike


def _windows(points: np.ndarray, window: float) -> list[_Window]:
    """List the windows around grid points that lie inside an axis and hold points enough."""
    slack = 1e-8 * window  # a point on the rim is inside, but for rounding
    found = []
    for place, centre in enumerate(points):
        first, last = np.searchsorted(points, [centre - window - slack, centre + window + slack])
        inside = centre - window >= points[0] - slack and centre + window <= points[-1] + slack
        if inside and last - first >= MIN_POINTS:
            local = (points[first:last] - centre) / window
            kind = np.round(local, 9) + 0.0  # which turns -0 into 0
            found.append(_Window(place, slice(int(first), int(last)), local, kind.tobytes()))
    return found


def _widths(points: np.ndarray) -> np.ndarray:
    """Give each point its share of the axis, as in the trapezoidal rule."""
    steps = np.diff(points)
    return (np.append(steps, 0) + np.append(0, steps)) / 2


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Give the value that half of the weight is at or below."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def _outer(factors: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply one factor per axis out over the grid."""
    product = np.ones(())
    for factor in factors:
        product = np.multiply.outer(product, factor)
    return product


def _quadratics(local: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    """Give 1, the coordinates and their products at the known points: ``(n_known, n_terms)``."""
    ones = np.ones(int(known.sum()))
    axes = [ones, *(axis[known] for axis in np.meshgrid(*local, indexing="ij"))]
    return np.stack([a * b for a, b in itertools.combinations_with_replacement(axes, 2)], axis=1)


def _stencils(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the weights of the first and the second derivative at the inner points: ``(n - 2, 3)`` both."""
    before, after = np.diff(points)[:-1], np.diff(points)[1:]
    both = before + after
    first = np.stack([-after / (before * both), (after - before) / (before * after), before / (after * both)], axis=1)
    second = np.stack([2 / (before * both), -2 / (before * after), 2 / (after * both)], axis=1)
    return first, second


def _apply(steps: dict[int, np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply three-point formulas along some axes, and keep the inner points of the others."""
    for axis in range(values.ndim):
        size = values.shape[axis] - 2
        if axis not in steps:
            values = np.take(values, np.arange(1, size + 1), axis=axis)
            continue
        shape = [1] * values.ndim
        shape[axis] = size
        values = sum(
            steps[axis][:, k].reshape(shape) * np.take(values, np.arange(k, k + size), axis=axis) for k in range(3)
        )
    return values
