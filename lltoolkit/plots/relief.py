"""A field as a smooth relief: finer grid, heights, slopes and the cells that are cut out. NumPy only."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import distance_transform_edt


@dataclass(frozen=True)
class Relief:
    """Heights on a fine grid that holds every point of the coarse one.

    Attributes
    ----------
    first, second : ndarray
        Fine coordinates, shapes ``(n,)`` and ``(m,)``, ascending.
    height : ndarray
        Shape ``(n, m)``. At the coarse points it equals what was given.
    spline : RectBivariateSpline
        The interpolant in coordinates, for heights and slopes anywhere.
    hole : ndarray of bool
        Shape ``(n, m)``: nearest to a coarse point that has no value; its height is a filling, not to be shown.
    """

    first: np.ndarray
    second: np.ndarray
    height: np.ndarray
    spline: RectBivariateSpline
    hole: np.ndarray


def thin(relief: Relief, step: int) -> Relief:
    """Keep every `step`-th fine point along each axis, and the last.

    Returns
    -------
    Relief
        With the same spline.
    """
    i, j = (np.unique(np.r_[0:n:step, n - 1]) for n in relief.height.shape)
    kept = np.ix_(i, j)
    return Relief(relief.first[i], relief.second[j], relief.height[kept], relief.spline, relief.hole[kept])


def smooth_relief(
    first: np.ndarray, second: np.ndarray, height: np.ndarray, n_points: int = 400, *, bounded: bool = False
) -> Relief:
    """Interpolate heights by a cubic spline through every given point.

    Parameters
    ----------
    first, second : ndarray
        Coordinates, shapes ``(n,)`` and ``(m,)``, ascending, even or not.
    height : ndarray
        Shape ``(n, m)``; NaN and inf where there is no value. Such points are filled with their nearest
        neighbour, so that one bad cell does not spoil the spline everywhere, and marked in ``hole``.
    n_points : int
        About how many points per axis; each interval is divided into equally many parts. 0 keeps the grid.
    bounded : bool
        Keep every height between the four given ones around it: no dip, ring or island that nobody measured, at the
        price of small flat spots where the spline would swing beyond them.

    Returns
    -------
    Relief
        A bicubic interpolating spline (linear or quadratic along an axis with 2 or 3 points). Unless
        `bounded` it may swing slightly beyond the values between the points; ``spline`` always does.

    Raises
    ------
    ValueError
        If an axis has fewer than two points or no value is finite.

    Examples
    --------
    >>> axis = np.linspace(-1, 1, 5)
    >>> relief = smooth_relief(axis, axis, np.add.outer(axis**2, axis**2), n_points=8)
    >>> relief.height.shape, float(relief.height[1, 0].round(6))
    ((9, 9), 1.5625)
    """
    bad = ~np.isfinite(height)
    if bad.all():
        raise ValueError("no cell of this surface has a finite value; there is nothing to draw in relief.")
    if min(height.shape) < 2:
        raise ValueError(f"a relief takes two or more points along each axis, not a grid of {height.shape}. "
                         "Draw one row of cells with plot_slice.")  # fmt: skip
    filled = fill_from_neighbours(height)
    spline = _lay_spline(first, second, filled)
    fine_first, fine_second = subdivide(first, n_points), subdivide(second, n_points)
    nearest = np.ix_(_nearest(first, fine_first), _nearest(second, fine_second))
    heights = spline(fine_first, fine_second)
    if bounded:
        heights = np.clip(heights, *_bounds(filled, first, second, fine_first, fine_second))
    return Relief(fine_first, fine_second, heights, spline, bad[nearest])


def _lay_spline(first: np.ndarray, second: np.ndarray, height: np.ndarray) -> RectBivariateSpline:
    points = [first, second]
    for axis in range(2):
        if len(points[axis]) == 2:  # SciPy tells no slope of a straight piece, but that of a parabola through it
            points[axis] = np.insert(points[axis], 1, points[axis].mean())
            height = np.insert(height, 1, height.mean(axis=axis), axis=axis)
    orders = {name: min(3, len(each) - 1) for name, each in zip(("kx", "ky"), points, strict=True)}
    return RectBivariateSpline(*points, height, **orders, s=0)


def _bounds(
    height: np.ndarray, first: np.ndarray, second: np.ndarray, fine_first: np.ndarray, fine_second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest of the given heights at the corners around each fine point."""
    corners = []
    for side_first in ("left", "right"):
        for side_second in ("left", "right"):
            i, j = _corner(first, fine_first, side_first), _corner(second, fine_second, side_second)
            corners.append(height[np.ix_(i, j)])
    return np.minimum.reduce(corners), np.maximum.reduce(corners)


def _corner(points: np.ndarray, queries: np.ndarray, side: str) -> np.ndarray:
    # A point of the grid itself is its own corner on both sides, so that it keeps its value to the last digit.
    if side == "left":
        return np.clip(np.searchsorted(points, queries, side="right") - 1, 0, None)
    return np.clip(np.searchsorted(points, queries, side="left"), None, len(points) - 1)


def fill_from_neighbours(values: np.ndarray) -> np.ndarray:
    """Replace NaN and inf by the nearest finite value, counted in cells.

    Returns
    -------
    ndarray
        Like `values`; the same array if all are finite.

    Examples
    --------
    >>> fill_from_neighbours(np.array([[1.0, np.nan], [np.inf, np.nan]]))
    array([[1., 1.],
           [1., 1.]])
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    return values[tuple(distance_transform_edt(bad, return_distances=False, return_indices=True))]


def subdivide(points: np.ndarray, n_points: int) -> np.ndarray:
    """Divide every interval into equally many parts, with about `n_points` points in all.

    Returns
    -------
    ndarray
        The given points, exactly, and those between them.

    Examples
    --------
    >>> subdivide(np.array([0.0, 1.0, 4.0]), 5)
    array([0. , 0.5, 1. , 2.5, 4. ])
    """
    parts = max(1, round((n_points - 1) / (len(points) - 1)))
    places = np.arange(parts * (len(points) - 1) + 1) / parts
    return np.interp(places, np.arange(len(points)), points)


def _nearest(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return np.searchsorted((points[1:] + points[:-1]) / 2, queries)
