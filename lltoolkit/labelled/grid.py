"""Where to look: spans, resolutions and coordinates turned into the axes of a grid. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean, require_whole

Span: TypeAlias = float | tuple[float, float] | Mapping[str, float | tuple[float, float]]
RESOLUTION = {1: 201, 2: 51, 3: 21}  # default points per axis, by the number of axes
MARGIN = 0.15  # of a path's extent, left free on both sides of it


def make_grid(
    axes: Sequence[str],
    *,
    span: Span | None = None,
    resolution: int | Mapping[str, int] | None = None,
    coords: Mapping[str, Any] | None = None,
    around: xr.Dataset | None = None,
    default_span: float | tuple[float, float] = 1.0,
    default_resolution: int | None = None,
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
    around : xr.Dataset, optional
        A trajectory with ``alpha(step)``, ...: the grid covers it and the origin, with a margin.
    default_span : float or (float, float)
        Taken where none of the three is given.
    default_resolution : int, optional
        Taken with `default_span` where no `resolution` is given.

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
    spans = (
        _spans_around(around, axes)
        if around is not None
        else _by_axis("span", default_span if span is None else span, axes)
    )
    if resolution is None:
        resolution = (not given and default_resolution) or RESOLUTION[len(axes)]
    counts = _by_axis("resolution", resolution, axes)
    return {axis: _even(axis, spans[axis], counts[axis]) for axis in axes}


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


def _even(axis: str, span: Any, count: Any) -> np.ndarray:
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
    # Rounded to 12 digits of the larger end: 0 is exactly 0, and a finer grid holds the coarser one's points.
    decimals = 12 - math.ceil(math.log10(max(abs(low), abs(high))))
    with np.errstate(all="ignore"):
        values = np.round(np.linspace(low, high, n_points), decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
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


def _spans_around(path: xr.Dataset, axes: Sequence[str]) -> dict[str, tuple[float, float]]:
    if not isinstance(path, xr.Dataset) or any(axis not in path for axis in axes):
        raise ValueError(f"around must be a trajectory: a Dataset with {', '.join(axes)} along step.")
    ends = {}
    for axis in axes:
        values = np.append(path[axis].values, 0.0)
        if not np.isfinite(values).all():
            raise ValueError(f"around holds NaN or infinite {axis}: the path has no extent. Drop these steps.")
        ends[axis] = (float(values.min()), float(values.max()))
    widest = max(high - low for low, high in ends.values())
    if widest == 0:
        raise ValueError("around is a path that never leaves the origin; give span instead.")
    # An axis along which the path hardly moves is still shown, a quarter as wide as the widest.
    room = {axis: max(high - low, 0.25 * widest) for axis, (low, high) in ends.items()}
    middle = {axis: (low + high) / 2 for axis, (low, high) in ends.items()}
    return {
        axis: (middle[axis] - room[axis] * (0.5 + MARGIN), middle[axis] + room[axis] * (0.5 + MARGIN)) for axis in axes
    }
