"""Where to look: spans, resolutions and coordinates turned into the axes of a grid. Torch-free."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean, require_whole

Span: TypeAlias = float | tuple[float, float] | Mapping[str, float | tuple[float, float]]
Around: TypeAlias = xr.Dataset | Sequence[xr.Dataset] | Mapping[Any, xr.Dataset]
RESOLUTION = {1: 201, 2: 51, 3: 21}  # default points per axis, by the number of axes
MARGIN = 0.15  # of a path's extent, left free on both sides of it
NARROWEST = 0.25  # of the widest axis: one along which a path hardly moves is still shown, so wide


def make_grid(
    axes: Sequence[str],
    *,
    span: Span | None = None,
    resolution: int | Mapping[str, int] | None = None,
    coords: Mapping[str, Any] | None = None,
    around: Around | None = None,
    margin: float = MARGIN,
    default_span: float | tuple[float, float] = 1.0,
    default_resolution: int | None = None,
    default_extent: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, np.ndarray]:
    """Make the coordinates of each axis from one of `span`, `coords` and `around`.

    Parameters
    ----------
    axes : sequence of str
        Names of the subspace's axes.
    span : float, (float, float) or mapping, optional
        ``s`` for ``(-s, s)``, or the two ends (descending is fine), for all axes or by axis.
    resolution : int or mapping, optional
        Points per axis; 201 for a line, 51 for a plane, 21 for a volume by default.
    coords : mapping, optional
        Axis to its coordinates, by hand: uneven and descending are fine.
    around : xr.Dataset, or sequence or mapping of these, optional
        Trajectories with ``alpha(step)``, ...: the grid covers all of them and the origin, with a margin. With three
        points or more along an axis, 0 is one of them; the margin is widened for that, by less than a step.
    margin : float
        Share of the extent that is left free on each side of the trajectories, at least 0.
    default_span : float or (float, float)
        Taken where none of the three is given.
    default_resolution : int, optional
        Taken with `default_span` where no `resolution` is given.
    default_extent : mapping, optional
        Axis to the ends of a path that is taken as `around`, and not `default_span`, where none of the three is given.

    Returns
    -------
    dict
        Axis to coordinates, shape ``(n,)``, float64. A coordinate that is 0 but for rounding is exactly 0.

    Raises
    ------
    ValueError
        For two of the three, unknown or missing axes, NaN, zero length, repeated coordinates or fewer than two
        points.

    Examples
    --------
    >>> make_grid(["alpha"], span=(-0.5, 1.5), resolution=5)
    {'alpha': array([-0.5,  0. ,  0.5,  1. ,  1.5])}
    """
    given = [name for name, value in (("span", span), ("coords", coords), ("around", around)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are both given; each sets the grid, so give one of them.")
    if coords is not None:
        if resolution is not None:
            raise ValueError("coords and resolution are both given; coords say where every point is.")
        values = _by_axis("coords", coords, axes)
        return {axis: _coordinates(axis, values[axis]) for axis in axes}
    if resolution is None:
        resolution = (not given and default_resolution) or RESOLUTION[len(axes)]
    counts = _by_axis("resolution", resolution, axes)
    extent = default_extent if not given else None
    if around is not None:
        extent = {axis: _ends(around, axis, axes) for axis in axes}
    if extent is not None:
        spans: Mapping[str, Any] = _span_around(extent, margin)
    else:
        spans = _by_axis("span", default_span if span is None else span, axes)
    return {axis: _even(axis, spans[axis], counts[axis], holds_origin=extent is not None) for axis in axes}


def _by_axis(name: str, value: Any, axes: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        if name == "coords":
            raise ValueError(f"coords is a {type(value).__name__}; give a mapping such as {{'alpha': array, ...}}.")
        return dict.fromkeys(axes, value)
    if unknown := [axis for axis in value if axis not in axes]:
        raise ValueError(
            f"{name} names {unknown[0]!r}; the axes are {', '.join(axes)}.{did_you_mean(unknown[0], axes)}"
        )
    if missing := [axis for axis in axes if axis not in value]:
        raise ValueError(f"{name} says nothing of {', '.join(missing)}; give all of {', '.join(axes)}.")
    return dict(value)


def _even(axis: str, span: Any, count: Any, *, holds_origin: bool) -> np.ndarray:
    try:
        n_points = require_whole("resolution", count, least=2)
    except ValueError as error:
        raise ValueError(
            f"resolution={count!r} for {axis}: give a whole number of at least 2, or a mapping such as "
            "{'alpha': 31, 'beta': 21}."
        ) from error
    try:
        low, high = (-float(span), float(span)) if np.ndim(span) == 0 else (float(end) for end in span)
    except (TypeError, ValueError) as error:
        raise ValueError(f"span={span!r} for {axis}: give a number s for (-s, s), or two numbers.") from error
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"span={span!r} for {axis} is not finite; give two finite ends.")
    if low == high:
        raise ValueError(f"span={span!r} for {axis} has zero length; its two ends must differ.")
    if holds_origin:
        low, high = _with_origin(low, high, n_points)
    # Rounded to 12 digits of the larger end: 0 is exactly 0, and a finer grid holds the coarser one's points.
    decimals = 12 - math.ceil(math.log10(max(abs(low), abs(high))))
    with np.errstate(all="ignore"):
        # From both ends: a symmetric span has symmetric points, also where the rounding is a tie.
        middle = (np.linspace(low, high, n_points) + np.linspace(high, low, n_points)[::-1]) / 2
        values = np.round(middle, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
        if not (np.diff(values) * np.sign(high - low) > 0).all():
            raise ValueError(f"span={span!r} for {axis} is too short for {n_points} different points in 12 digits.")
    return values


def _coordinates(axis: str, values: Any) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"coords of {axis} are no numbers: {error}.") from error
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"coords of {axis} have the shape {array.shape}; a list of at least 2 numbers is needed.")
    if not np.isfinite(array).all():
        raise ValueError(f"coords of {axis} hold {array[~np.isfinite(array)][0]}; all must be finite.")
    steps = np.diff(array)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"coords of {axis} must rise or fall throughout; sort them and leave repeated ones out.")
    array[np.abs(array) < 1e-15 * len(array) * np.abs(array).max()] = 0.0  # what np.arange leaves of a 0
    return array


def _span_around(extent: Mapping[str, tuple[float, float]], margin: float) -> dict[str, tuple[float, float]]:
    """Widen the extent of paths, and the origin, to the span of a grid around them."""
    if isinstance(margin, bool) or not isinstance(margin, Real) or not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin!r}: give the share of the extent left free on each side, at least 0.")
    ends = {axis: (min(low, 0.0), max(high, 0.0)) for axis, (low, high) in extent.items()}
    widest = max(high - low for low, high in ends.values())
    if widest == 0:
        raise ValueError("around is a path that never leaves the origin; give span instead.")
    room = {axis: max(high - low, NARROWEST * widest) for axis, (low, high) in ends.items()}
    middle = {axis: (low + high) / 2 for axis, (low, high) in ends.items()}
    half = {axis: room[axis] * (0.5 + margin) for axis in ends}
    return {axis: (middle[axis] - half[axis], middle[axis] + half[axis]) for axis in ends}


def _with_origin(low: float, high: float, n_points: int) -> tuple[float, float]:
    """Widen a span, by less than a step, so that 0 is a grid point of it: there the minimizer is measured."""
    if not low < 0 < high or n_points < 3:
        return low, high
    steps = {below: max(-low / below, high / (n_points - 1 - below)) for below in range(1, n_points - 1)}
    below = min(steps, key=lambda each: steps[each])
    if math.isclose(steps[below] * (n_points - 1), high - low, rel_tol=1e-12):
        return low, high  # it is one already
    return -below * steps[below], (n_points - 1 - below) * steps[below]


def _ends(around: Around, axis: str, axes: Sequence[str]) -> tuple[float, float]:
    """Give the least and the greatest coordinate of all paths along an axis."""
    several = around.values() if isinstance(around, Mapping) and not isinstance(around, xr.Dataset) else around
    paths = list(several) if isinstance(several, Iterable) and not isinstance(several, xr.Dataset) else [several]
    if not paths or any(not isinstance(path, xr.Dataset) or any(each not in path for each in axes) for path in paths):
        raise ValueError(
            f"around must be a trajectory, or several: a Dataset with {', '.join(axes)} along step, as "
            "project_trajectory gives it."
        )
    values = np.concatenate([np.atleast_1d(path[axis].values) for path in paths])
    if not np.isfinite(values).all():
        raise ValueError(f"around holds NaN or infinite {axis}: the path has no extent. Drop these steps.")
    if not values.size:
        raise ValueError("around is a path without a step; give span instead.")
    return float(values.min()), float(values.max())
