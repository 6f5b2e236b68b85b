"""The cells of a surface as numbers are taken of them: one variable, its scale, and each cell's error. Torch-free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.labelled.interpolate import Scale
from lltoolkit.labelled.schema import STATUS, axes_of

SIGNIFICANT = 1.96  # standard errors to 95 %
ROUNDING = 1e-6  # relative error of a computed value, from float32 logits


@dataclass(frozen=True)
class Cells:
    """One variable on ascending coordinates: NaN is not known, +inf a wall."""

    coords: list[np.ndarray]
    values: np.ndarray
    between: np.ndarray  # 95 % error that sets a value apart from its neighbours, in the units of the scale
    sampling: np.ndarray  # 95 % error that neighbours share, from the draw of examples

    def every_second(self) -> "Cells":
        """Leave out every second grid point of each axis, and keep the origin."""
        chosen = [slice(int(np.argmin(np.abs(points))) % 2, None, 2) for points in self.coords]
        box = tuple(chosen)
        return Cells(
            [points[each] for points, each in zip(self.coords, chosen, strict=True)],
            *(values[box] for values in (self.values, self.between, self.sampling)),
        )


def pick_cells(surface: xr.Dataset, var: str, split: str | Sequence[str] | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Take a variable and its standard error on the splits asked for.

    Parameters
    ----------
    surface : xr.Dataset
        A surface, maybe with dims ``split`` and ``direction``.
    var : str
        The variable.
    split : str, sequence of str or None
        None: all.

    Returns
    -------
    values, standard_errors : xr.DataArray
        Dims ``([direction,] split, alpha, ...)``, the axes ascending; errors of 0 where the surface tells none.

    Raises
    ------
    TypeError
        If `surface` is no Dataset.
    ValueError
        If there is no such variable or split, or no axis.
    """
    if not isinstance(surface, xr.Dataset):
        raise TypeError(
            f"surface is a {type(surface).__name__}, not an xarray.Dataset. "
            "Open a file with lltoolkit.open_result(path)."
        )
    if var not in surface.data_vars:
        present = ", ".join(map(str, surface.data_vars)) or "nothing"
        raise ValueError(
            f"var={var!r} is not in this surface, which has {present}.{did_you_mean(var, map(str, surface.data_vars))}"
        )
    axes = axes_of(surface)
    values = surface[var]
    if not axes or not set(axes) <= set(values.dims):
        raise ValueError(
            f"{var!r} runs over {', '.join(map(str, values.dims)) or 'nothing'}; statistics are of a surface over alpha"
            "[, beta[, gamma]]."
        )
    if more := set(values.dims) - {"direction", "split", *axes}:
        name = min(map(str, more))
        raise ValueError(f"{var!r} also runs over {name}. Choose one first: surface.isel({name}=0).")
    errors = surface[f"{var}_se"] if f"{var}_se" in surface else xr.zeros_like(values, dtype=np.float64)
    if "split" not in values.dims:
        known = str(values["split"].item()) if "split" in values.coords else "all"
        values, errors = (
            each.drop_vars("split", errors="ignore").expand_dims(split=[known]) for each in (values, errors)
        )
    present_splits = [str(name) for name in values["split"].values]
    chosen = present_splits if split is None else [split] if isinstance(split, str) else list(split)
    for one in chosen:
        require_choice("split", one, present_splits)
    places = [present_splits.index(one) for one in chosen]
    outer = [dim for dim in ("direction", "split") if dim in values.dims]
    values, errors = (each.isel(split=places).sortby(list(axes)).transpose(*outer, *axes) for each in (values, errors))
    return values, errors


def status_of(surface: xr.Dataset, values: xr.DataArray) -> np.ndarray:
    """Give each of the values that `pick_cells` took its status; all are computed where the surface does not say."""
    if "status" not in surface or not set(axes_of(surface)) <= set(surface["status"].dims) <= set(values.dims):
        return np.full(values.shape, STATUS["computed"])
    status = surface["status"].drop_vars("split", errors="ignore").sortby(list(axes_of(surface)))
    return status.broadcast_like(values).transpose(*values.dims).values


def filling_error(surface: xr.Dataset, var: str) -> float:
    """Give the 95 % error of a filled cell as the surface's audit found it; NaN where none is told."""
    audited = "audited" if var == "loss" else f"audited_{var}"
    told = [float(surface.attrs.get(f"{audited}_{bound}", math.nan)) for bound in ("p95_upper", "max")]
    return next((bound for bound in told if math.isfinite(bound)), math.nan)


def split_errors(
    values: np.ndarray, standard_error: np.ndarray, status: np.ndarray, scale: Scale, filling: float
) -> tuple[np.ndarray, np.ndarray]:
    """Part the errors of values into what sets neighbours apart and what they share.

    A standard error of a computed cell comes from the draw of examples, which neighbours share. That of a filled cell
    is its filling's, unless computed cells have one too: then it was taken over from them, and only the audit knows.

    Parameters
    ----------
    values, standard_error, status : ndarray
        Of one shape.
    scale : Scale
        In whose units the errors are given.
    filling : float
        From `filling_error`; NaN where the surface does not tell it.

    Returns
    -------
    between, sampling : ndarray
        At 95 %.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = scale.slope(values)
        told = SIGNIFICANT * np.nan_to_num(standard_error / slope, nan=0.0, posinf=0.0)
        rounding = ROUNDING * np.abs(np.nan_to_num(values / slope, nan=0.0, posinf=0.0, neginf=0.0))
    filled = np.isin(status, [STATUS["interpolated"], STATUS["estimated"]])
    if (told[~filled] > 0).any():
        own, sampling = np.zeros_like(told), told
    else:
        own, sampling = told, np.zeros_like(told)
    between = np.where(filled, own if math.isnan(filling) else filling, 0.0)
    return np.hypot(between, rounding), sampling


def count_cells(array: xr.DataArray, status: np.ndarray, outer: tuple[Any, ...], dims: int) -> dict[str, Any]:
    """Count the cells of each kind, as variables over the dims `outer`; the grid has so many `dims`."""
    inside = tuple(range(-dims, 0))
    values = array.values
    there = status != STATUS["missing"]
    filled = np.isin(status, [STATUS["interpolated"], STATUS["estimated"]])
    counts = {
        "n_known": (there & np.isfinite(values), "cells with a finite value"),
        "n_filled": (filled, "cells that were interpolated or estimated"),
        "n_missing": (~there, "cells that are missing"),
        "n_nan": (there & np.isnan(values), "cells that gave NaN"),
        "n_inf": (there & np.isinf(values), "cells that gave inf"),
    }
    return {
        name: (outer, cells.sum(axis=inside), {"long_name": told, "units": "1"})
        for name, (cells, told) in counts.items()
    }
