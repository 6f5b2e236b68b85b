"""Numbers for "chaotic" and "convex": what a surface is like, with how stable each number is. Torch-free."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.labelled.cells import Cells, count_cells, filling_error, pick_cells, split_errors, status_of
from lltoolkit.labelled.interpolate import Scale, choose_scale
from lltoolkit.labelled.persistence import Minima, find_minima
from lltoolkit.labelled.schema import STATUS, axes_of
from lltoolkit.labelled.terrain import area_below, barrier, roughness, smallest_curvature

LEVELS = (0.1, 1.0, 10.0)  # of the loss: the lines of a log scale that a contour plot has
LEAST = 1e-3  # persistence that counts at least: 0.1 % of the loss, which no picture shows
WINDOW = 0.1  # of the shortest axis: half the width of a window of the roughness
WHOLE, COARSE = "", "_coarse"

NUMBERS = {
    "n_minima": "local minima inside that persist",
    "n_minima_at_edge": "minima at the edge that persist",
    "roughness": "distance from a local quadratic in a typical window",
    "negative_curvature": "share of cells with negative in-plane curvature",
    "undecided_curvature": "share of cells whose curvature's sign the errors leave open",
    "area": "area below the level",
    "area_share": "share of the area below the level",
    "barrier": "largest height above the straight line between the ends",
    "barrier_above_mean": "largest height above the mean of the ends",
}


def surface_statistics(
    surface: xr.Dataset,
    *,
    var: str = "loss",
    split: str | Sequence[str] | None = None,
    levels: Sequence[float] = LEVELS,
    persistence: float | None = None,
    window: float | None = None,
    ends: tuple[float, float] | None = None,
) -> xr.Dataset:
    """Put numbers to what a surface looks like: minima, roughness, curvature, area, barrier.

    All numbers are of the surface in its own plane, line or volume: a section that is convex says nothing of the
    directions that it leaves out. Minima and roughness are taken of the natural logarithm of a loss that is above 0
    everywhere (as it is interpolated and audited), of shares of its range for a loss that touches 0, and of any other
    variable as it is; the attribute ``scale`` says which ("log", "range", "plain").

    Cells that are missing, NaN or -inf are left out, +inf is a wall that no minimum, curvature or window reaches into.
    All are counted. Cells that were interpolated or estimated count as the others, with their error.

    Parameters
    ----------
    surface : xr.Dataset
        With one to three of the axes alpha, beta, gamma, maybe with dims ``split`` and ``direction`` (an ensemble:
        every direction has its own numbers). Coordinates may descend or be uneven.
    var : str
        The variable.
    split : str or sequence of str, optional
        Default: all.
    levels : sequence of float
        In the units of the variable: below which the area is measured.
    persistence : float, optional
        How far one must climb out of a minimum for it to count, in the units of the scale: 0.1 is 10 % of the loss.
        Default, for each minimum: the 95 % error of the difference between it and its pass, and at least 0.001 (of the
        range, for a plain scale). The error of a cell joins the sampling error, 1.96 ``<var>_se``, where the surface
        has one, with what filling adds: for cells that were interpolated or estimated the surface's
        ``audited_p95_upper`` (``audited_max`` where that is infinite).
    window : float, optional
        Half the width of the windows of the roughness, in the units of the coordinates; by default a tenth of the
        shortest axis. Roughnesses compare between surfaces of one window; it needs 5 grid points along each axis, so
        the coarse one needs 41 points on that axis, or a wider window.
    ends : (float, float), optional
        Between which points of a line the barrier is taken. Default: 0 and 1 for a line between two models
        (`interpolate`), else the ends of the axis. Both lie on the axis; planes and volumes have no barrier.

    Returns
    -------
    xr.Dataset
        Dims ``([direction,] split)``; each number also as ``<name>_coarse``, from every second grid point (which
        includes the one at the origin, and may lose the outermost): where the two differ, the grid is too coarse for
        that number::

            n_minima             int64    local minima inside the grid that persist
            n_minima_at_edge     int64    the same beside the edge or an unknown cell: maybe no minima
            roughness            float64  rms that a local quadratic fit leaves in the median window  [scale]
            negative_curvature   float64  share of inner cells, in [0, 1], whose Hessian of the variable itself in the
                                          coordinates has an eigenvalue below minus its error
            undecided_curvature  float64  share of those whose smallest eigenvalue is within its error of 0
            area                 (..., level)  where the variable is below the level  [product of the axes' units]
            area_share           (..., level)  the same over the area of all known cells, in [0, 1]
            barrier              float64  of a line: max over the points between the ends of the variable less the
                                          straight line between its values at the ends  [var]; NaN for 2 and 3 axes
            barrier_above_mean   float64  of a line: that maximum less the mean of the ends  [var]

        The minima that persist, most persistent first, NaN where a split has fewer (dim ``minimum``):
        ``minimum_alpha`` (and so on), ``minimum_<var>``, ``minimum_persistence`` [scale] (infinite for the lowest),
        ``minimum_error`` (the threshold it passed) and ``minimum_at_edge`` (1 or 0).
        Counts of cells: ``n_known``, ``n_filled`` (interpolated or estimated), ``n_missing``, ``n_nan``, ``n_inf``.
        Attributes: those of the surface, which say whose numbers these are; ``kind`` is "statistics".

    Raises
    ------
    TypeError
        If `surface` is no Dataset.
    ValueError
        If there is no such variable or split, no axis, or a number is out of range.

    Notes
    -----
    Curvature takes three-point differences. The errors of neighbours are taken as independent, which overstates the
    tolerance where they are interpolated from the same cells. The sampling error is no part of it: neighbours are
    measured on the same examples and err together. So the statement is about the loss on these examples.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, sections 5 and 6, for the words. Edelsbrunner et
    al. (2002) for persistence; Entezari et al. (2022) for the barrier, Frankle et al. (2020) for that above the mean.

    Examples
    --------
    >>> alpha = np.linspace(-1, 1, 41)
    >>> loss = xr.DataArray(2 + np.cos(4 * np.pi * alpha), coords={"alpha": alpha}, name="loss")
    >>> numbers = surface_statistics(loss.to_dataset(), levels=[2.0]).squeeze()
    >>> int(numbers["n_minima"]), float(numbers["area_share"].round(1)), float(numbers["barrier"])
    (4, 0.5, 0.0)
    """
    array, errors = pick_cells(surface, var, split)
    axes = axes_of(surface)
    points = [array[axis].values.astype(np.float64) for axis in axes]
    _require_numbers(levels, persistence, window)
    ends = _default_ends(surface, points[0]) if ends is None else _require_ends(ends, points)
    status = status_of(surface, array)
    loss = np.where(status == STATUS["missing"], np.nan, array.values.astype(np.float64))
    loss[np.isneginf(loss)] = np.nan
    scale = choose_scale(var, loss.ravel())
    if window is None:
        window = WINDOW * min(float(np.ptp(each)) for each in points)
    outer = array.dims[: array.ndim - len(axes)]
    filling = filling_error(surface, var)
    between, sampling = split_errors(loss, errors.values.astype(np.float64), status, scale, filling)
    grids = [
        Cells(points, loss[at], between[at], sampling[at]) for at in np.ndindex(*(array.sizes[dim] for dim in outer))
    ]
    least = LEAST * (_range(loss) if scale.kind == "plain" else 1.0)
    shape = tuple(array.sizes[dim] for dim in outer)
    variables: dict[str, Any] = {}
    minima: list[tuple[Minima, np.ndarray]] = []
    for suffix in (WHOLE, COARSE):
        each = grids if suffix == WHOLE else [grid.every_second() for grid in grids]
        found = [_persistent(grid, scale, persistence, least) for grid in each]
        minima = minima or found
        numbers = [
            _measure(grid, scale, kept, levels, window, ends) for grid, (kept, _) in zip(each, found, strict=True)
        ]
        for name in NUMBERS:
            block = np.array([one[name] for one in numbers])
            dims = (*outer, "level") if block.ndim > 1 else outer
            told = f"{NUMBERS[name]}{', from every second grid point' if suffix else ''}"
            variables[name + suffix] = (
                dims,
                block.reshape(*shape, *block.shape[1:]),
                {"long_name": told, "units": _units(name, array, scale, axes)},
            )
    variables |= _list_minima(minima, grids, var, array, scale, axes, outer, shape)
    variables |= count_cells(array, status, outer, len(axes))
    level = (
        "level",
        np.asarray(levels, dtype=np.float64),
        {"long_name": var, "units": str(array.attrs.get("units", 1))},
    )
    named = {dim: array[dim].values for dim in outer if dim in array.coords}
    options = {
        "var": var,
        "scale": scale.kind,
        "persistence": "from the errors" if persistence is None else float(persistence),
        "least_persistence": least,
        "filling_error": None if math.isnan(filling) else filling,
        "window": float(window),
        "ends": list(ends),
    }
    attrs = {**surface.attrs, "kind": "statistics", "scale": scale.kind, "statistics": json.dumps(options)}
    return xr.Dataset(variables, coords={**named, "level": level}, attrs=attrs)


def _require_numbers(levels: Any, persistence: Any, window: Any) -> None:
    if not _are_numbers(levels) or len(levels) == 0:
        raise ValueError(f"levels={levels!r}: give one finite number or more, {LEVELS} for example.")
    if persistence is not None and not (_are_numbers([persistence]) and persistence >= 0):
        raise ValueError(f"persistence={persistence!r}: give a number of at least 0, or None for the surface's errors.")
    if window is not None and not (_are_numbers([window]) and window > 0):
        raise ValueError(f"window={window!r}: give a number above 0, in the units of the coordinates.")


def _require_ends(ends: Any, points: Sequence[np.ndarray]) -> tuple[float, float]:
    if not _are_numbers(ends) or len(ends) != 2 or ends[0] == ends[1]:
        raise ValueError(f"ends={ends!r}: give two different coordinates, (0, 1) for example.")
    first, last = float(points[0][0]), float(points[0][-1])
    slack = 1e-9 * max(1.0, last - first)
    if len(points) == 1 and not all(first - slack <= end <= last + slack for end in ends):
        raise ValueError(f"ends={ends!r}: the line goes from {first:g} to {last:g}; give two points on it.")
    return float(ends[0]), float(ends[1])


def _are_numbers(given: Any) -> bool:
    """Tell whether something is a flat sequence of finite numbers."""
    try:
        array = np.asarray(given)
    except ValueError:  # a ragged one
        return False
    return array.ndim == 1 and array.dtype.kind in "iuf" and bool(np.isfinite(array).all())


def _persistent(grid: Cells, scale: Scale, persistence: float | None, least: float) -> tuple[Minima, np.ndarray]:
    """Find the minima that persist, and what each had to pass."""
    found = find_minima(scale.forward(grid.values), ~np.isnan(grid.values))
    error = np.hypot(grid.between, grid.sampling).ravel()
    passes = np.where(found.saddles < 0, found.cells, found.saddles)
    threshold = np.maximum(np.hypot(error[found.cells], error[passes]), least)
    if persistence is not None:
        threshold = np.full(len(found.cells), float(persistence))
    kept = found.persistence > threshold
    return (
        Minima(found.cells[kept], found.persistence[kept], found.saddles[kept], found.at_edge[kept]),
        threshold[kept],
    )


def _measure(
    grid: Cells, scale: Scale, minima: Minima, levels: Sequence[float], window: float, ends: tuple[float, float]
) -> dict[str, Any]:
    """Take every number of one grid."""
    scaled = scale.forward(grid.values)
    known = np.isfinite(grid.values)
    error = np.where(known, grid.between * scale.slope(np.where(known, grid.values, 0.0)), 0.0)
    eigenvalue, tolerance = smallest_curvature(grid.coords, grid.values, error)
    inner = np.isfinite(eigenvalue)
    n_inner = int(inner.sum()) or math.nan
    areas, spanned = area_below(grid.coords, scaled, scale.forward(np.asarray(levels, dtype=np.float64)).tolist())
    rises = (math.nan, math.nan)
    if len(grid.coords) == 1:
        points = grid.coords[0]  # every second point may end before the ends do
        rises = barrier(
            points, grid.values, (float(np.clip(ends[0], *points[[0, -1]])), float(np.clip(ends[1], *points[[0, -1]])))
        )
    return {
        "n_minima": int((~minima.at_edge).sum()),
        "n_minima_at_edge": int(minima.at_edge.sum()),
        "roughness": roughness(grid.coords, scaled, window),
        "negative_curvature": float((eigenvalue[inner] < -tolerance[inner]).sum()) / n_inner,
        "undecided_curvature": float((np.abs(eigenvalue[inner]) <= tolerance[inner]).sum()) / n_inner,
        "area": areas if spanned else np.full(len(areas), math.nan),
        "area_share": areas / spanned if spanned else np.full(len(areas), math.nan),
        "barrier": rises[0],
        "barrier_above_mean": rises[1],
    }


def _units(name: str, array: xr.DataArray, scale: Scale, axes: tuple[str, ...]) -> str:
    of_values = str(array.attrs.get("units", "1"))
    if name == "roughness":
        return of_values if scale.kind == "plain" else "1"
    if name.startswith("barrier"):
        return of_values
    if name == "area":
        units = [str(array[axis].attrs.get("units", "1")) for axis in axes]
        return " ".join(unit for unit in units if unit != "1") or "1"
    return "1"


def _list_minima(
    minima: Sequence[tuple[Minima, np.ndarray]],
    grids: Sequence[Cells],
    var: str,
    array: xr.DataArray,
    scale: Scale,
    axes: tuple[str, ...],
    outer: tuple[Any, ...],
    shape: tuple[int, ...],
) -> dict[str, Any]:
    """List the minima of the whole grid, side by side."""
    most = max(len(kept.cells) for kept, _ in minima)
    units = str(array.attrs.get("units", "1"))
    scale_units = units if scale.kind == "plain" else "1"
    columns = {f"minimum_{axis}": str(array[axis].attrs.get("units", "1")) for axis in axes}
    columns |= {f"minimum_{var}": units, "minimum_persistence": scale_units, "minimum_error": scale_units}
    columns["minimum_at_edge"] = "1"
    table = np.full((len(columns), len(grids), most), np.nan)
    for place, (grid, (kept, threshold)) in enumerate(zip(grids, minima, strict=True)):
        where = np.unravel_index(kept.cells, grid.values.shape)
        rows = [points[each] for points, each in zip(grid.coords, where, strict=True)]
        rows += [grid.values[where], kept.persistence, threshold, kept.at_edge.astype(float)]
        table[:, place, : len(kept.cells)] = rows
    return {
        name: (
            (*outer, "minimum"),
            block.reshape(*shape, most),
            {"long_name": name.replace("_", " ", 1).replace("minimum ", "minima: "), "units": unit},
        )
        for (name, unit), block in zip(columns.items(), table, strict=True)
    }


def _default_ends(surface: xr.Dataset, points: np.ndarray) -> tuple[float, float]:
    between = surface.attrs.get("subspace_kind") == "interpolation" and points[0] <= 1e-9 and points[-1] >= 1 - 1e-9
    return (0.0, 1.0) if between else (float(points[0]), float(points[-1]))


def _range(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.ptp(finite)) if finite.size else 1.0
