"""Surfaces as Datasets: the empty grid, its cells in the order in which they are computed. Torch-free."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from lltoolkit.labelled.schema import STATUS, axes_of, label


def empty_surface(
    coords: Mapping[str, np.ndarray],
    splits: Sequence[str],
    metrics: Sequence[str],
    *,
    units: str,
    attrs: Mapping[str, str | int | float],
) -> xr.Dataset:
    """Lay out a surface that nothing has been computed of.

    Parameters
    ----------
    coords : mapping
        Axis name to its coordinates, shape ``(n,)``, in the order of the axes.
    splits, metrics : sequence of str
        What there will be; the metrics with the loss first and standard errors named ``<metric>_se``.
    units : str
        Units of the loss.
    attrs : mapping
        Attributes of the Dataset.

    Returns
    -------
    xr.Dataset
        ``<metric>`` (split, alpha, ...) float64, NaN, and ``status`` (alpha, ...) int8, all missing.
    """
    shape = tuple(len(values) for values in coords.values())
    variables = {
        name: (("split", *coords), np.full((len(splits), *shape), np.nan), {"units": units} if name == "loss" else {})
        for name in metrics
    }
    variables["status"] = (tuple(coords), np.full(shape, STATUS["missing"], dtype=np.int8), {})
    axes = {axis: np.asarray(values, dtype=np.float64) for axis, values in coords.items()}
    return label(xr.Dataset(variables, coords={"split": list(splits), **axes}, attrs=dict(attrs)))


def cell_order(coords: Mapping[str, np.ndarray]) -> np.ndarray:
    """Order the cells coarse to fine around the origin, so that a surface that stops early is a whole picture.

    Parameters
    ----------
    coords : mapping
        As in `empty_surface`.

    Returns
    -------
    ndarray
        Shape ``(n_cells,)``: flat (row-major) positions. First the cells whose distance from the origin is a
        multiple of a large power of two in steps of every axis, the origin itself before all.
    """
    levels = []
    for values in coords.values():
        steps = np.abs(np.arange(len(values)) - int(np.argmin(np.abs(values))))
        # Trailing zero bits of the distance; the origin's own row counts as a multiple of every power.
        levels.append(np.where(steps == 0, 63, np.log2(np.maximum(steps & -steps, 1)).astype(int)))
    level = np.minimum.reduce(np.meshgrid(*levels, indexing="ij")).ravel()
    return np.argsort(-level, kind="stable")


def fill_cells(surface: xr.Dataset, cells: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    """Write computed values into a surface and mark the cells; in place.

    Parameters
    ----------
    surface : xr.Dataset
        From `empty_surface`.
    cells : ndarray
        Shape ``(k,)``, flat positions.
    values : mapping
        Metric to its values, shape ``(n_splits, k)``.
    """
    for name, block in values.items():
        grid = surface[name].values
        grid.reshape(grid.shape[0], -1)[:, cells] = block
    surface["status"].values.reshape(-1)[cells] = STATUS["computed"]


def missing_cells(surface: xr.Dataset) -> np.ndarray:
    """Return the flat positions that are not computed yet, in the order of computing."""
    order = cell_order({axis: surface[axis].values for axis in axes_of(surface)})
    return order[surface["status"].values.reshape(-1)[order] == STATUS["missing"]]


def adopt_cells(surface: xr.Dataset, old: xr.Dataset) -> bool:
    """Copy the cells of a coarser or smaller grid into a grid that contains it; in place.

    Returns
    -------
    bool
        False, with nothing copied, if some coordinate of `old` is not one of `surface`.
    """
    places = []
    for axis in axes_of(surface):
        new, given = surface[axis].values, old[axis].values
        nearest = np.abs(new[:, None] - given[None, :]).argmin(axis=0)
        if not np.allclose(new[nearest], given, rtol=0, atol=1e-9 * np.ptp(new)):
            return False
        places.append(nearest)
    window = np.ix_(*places)
    for name in surface.data_vars:
        surface[name].values[(..., *window)] = old[name].values
    return True


def count_nonfinite(surface: xr.Dataset) -> dict[str, int]:
    """Count computed cells whose loss is NaN or infinite on any split: kept as they are, and told.

    Returns
    -------
    dict
        ``n_nan`` and ``n_inf``.
    """
    computed = surface["status"].values != STATUS["missing"]
    loss = surface["loss"].transpose("split", *axes_of(surface)).values
    return {
        "n_nan": int((np.isnan(loss).any(axis=0) & computed).sum()),
        "n_inf": int((np.isinf(loss).any(axis=0) & computed).sum()),
    }


def tile_id(surface: xr.Dataset) -> str:
    """Name what a tile belongs to: one grid of one minimizer, data set, subspace, configuration and loss."""
    digest = hashlib.sha256()
    for name in ("theta_sha256", "data_sha256", "subspace_id", "config_sha256", "at_minimizer"):
        digest.update(f"{name}={surface.attrs.get(name, 'none')}|".encode())
    for axis in axes_of(surface):
        digest.update(axis.encode() + surface[axis].values.astype("<f8").tobytes())
    return digest.hexdigest()[:16]
