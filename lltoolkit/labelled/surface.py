"""Surfaces as Datasets: the empty grid, its cells in the order in which they are computed. Torch-free."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import ndimage

from lltoolkit.labelled.schema import STATUS, axes_of, label

if TYPE_CHECKING:
    from lltoolkit.labelled.plan import Filled


def empty_surface(
    coords: Mapping[str, np.ndarray],
    splits: Sequence[str],
    metrics: Sequence[str],
    *,
    units: str,
    attrs: Mapping[str, str | int | float],
    n_directions: int | None = None,
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
    n_directions : int, optional
        Of an ensemble: so many grids along a dim ``direction``, before all others.

    Returns
    -------
    xr.Dataset
        ``<metric>`` ([direction,] split, alpha, ...) float64, NaN, and ``status`` ([direction,] alpha, ...) int8, all
        missing.
    """
    shape = tuple(len(values) for values in coords.values())
    outer = {} if n_directions is None else {"direction": n_directions}
    variables = {
        name: (
            (*outer, "split", *coords),
            np.full((*outer.values(), len(splits), *shape), np.nan),
            {"units": units} if name == "loss" else {},
        )
        for name in metrics
    }
    missing = np.full((*outer.values(), *shape), STATUS["missing"], dtype=np.int8)
    variables["status"] = ((*outer, *coords), missing, {})
    axes: dict[str, np.ndarray] = {dim: np.arange(size) for dim, size in outer.items()}
    axes |= {axis: np.asarray(values, dtype=np.float64) for axis, values in coords.items()}
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
    where = np.unravel_index(cells, surface["status"].shape)
    for name, block in values.items():
        by_split(surface, name)[(slice(None), *where)] = block
    surface["status"].values[where] = STATUS["computed"]


def know_exactly(surface: xr.Dataset) -> None:
    """Set the standard errors of the cells that were computed on all examples to 0; in place."""
    where = np.unravel_index(cells_with(surface, "computed"), surface["status"].shape)
    for name in map(str, surface.data_vars):
        if name.endswith("_se"):
            by_split(surface, name)[(slice(None), *where)] = 0.0


def fill_rest(surface: xr.Dataset, place: int, filled: "Filled", *, sampled: bool) -> None:
    """Write what a plan filled in into the cells that were not computed; in place.

    Parameters
    ----------
    surface : xr.Dataset
        From `empty_surface`.
    place : int
        Number of the direction, 0 where there is one only.
    filled : Filled
        What the plan returned.
    sampled : bool
        Whether the computed cells come with standard errors of their own, from a subset of the examples: then a cell
        takes its nearest computed cell's. Otherwise standard errors are the plan's.
    """
    status = surface["status"].values
    status = status[place] if "direction" in surface.dims else status
    rest = status.reshape(-1) != STATUS["computed"]
    nearest = ndimage.distance_transform_edt(
        rest.reshape(status.shape), return_distances=False, return_indices=True
    ).reshape(status.ndim, -1)
    for name in filled.values:
        for target, values in ((name, filled.values[name]), (f"{name}_se", filled.errors.get(name))):
            if target not in surface:
                continue
            grid = by_split(surface, target)
            grid = grid[:, place] if "direction" in surface.dims else grid
            if target != name and sampled:
                grid[:] = grid[(slice(None), *nearest)].reshape(grid.shape)
            else:
                grid[:] = np.where(rest, values, grid.reshape(len(grid), -1)).reshape(grid.shape)
    status[:] = np.where(rest, filled.status, STATUS["computed"]).reshape(status.shape)


def by_split(surface: xr.Dataset, name: str) -> np.ndarray:
    """View a variable's values with the split first, then the dims of ``status``: ``(n_splits, ...)``.

    Returns
    -------
    ndarray
        Of a variable without splits, as a curvature map has, one row.
    """
    values = surface[name].values
    return np.moveaxis(values, surface[name].dims.index("split"), 0) if "split" in surface[name].dims else values[None]


def read_cells(surface: xr.Dataset, name: str, cells: np.ndarray) -> np.ndarray:
    """Return a variable's values at flat positions, shape ``(n_splits, k)``."""
    return by_split(surface, name)[(slice(None), *np.unravel_index(cells, surface["status"].shape))]


def cells_with(surface: xr.Dataset, *statuses: str) -> np.ndarray:
    """Return the flat positions, rising, whose status is one of these words."""
    return np.flatnonzero(np.isin(surface["status"].values.reshape(-1), [STATUS[word] for word in statuses]))


def forget_filled(surface: xr.Dataset) -> None:
    """Make cells that were interpolated or estimated missing again; in place."""
    where = np.unravel_index(cells_with(surface, "interpolated", "estimated"), surface["status"].shape)
    for name in surface.data_vars:
        if name != "status":
            by_split(surface, str(name))[(slice(None), *where)] = np.nan
    surface["status"].values[where] = STATUS["missing"]


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
        if name in old:
            surface[name].values[(..., *window)] = old[name].values
    return True


def extent_of(surface: xr.Dataset) -> str:
    """Describe a grid in words: points and ends of each axis."""
    return " x ".join(
        f"{axis} {len(surface[axis])} points in [{surface[axis].values[0]:g}, {surface[axis].values[-1]:g}]"
        for axis in axes_of(surface)
    )


def count_nonfinite(surface: xr.Dataset) -> dict[str, int]:
    """Count computed cells whose loss is NaN or infinite on any split: kept as they are, and told.

    Returns
    -------
    dict
        ``n_nan`` and ``n_inf``.
    """
    computed = surface["status"].values != STATUS["missing"]
    loss = by_split(surface, "loss")
    return {
        "n_nan": int((np.isnan(loss).any(axis=0) & computed).sum()),
        "n_inf": int((np.isinf(loss).any(axis=0) & computed).sum()),
    }


def count_reduced(surface: xr.Dataset, cells: np.ndarray, batch_size: int | None) -> None:
    """Count cells that were computed in smaller batches than the surface's, because memory ran out; in place.

    Their last bits may differ. Attributes ``n_cells_smaller_batch`` and ``smallest_batch_size``, absent where all is
    well.
    """
    if batch_size is None or batch_size >= surface.attrs.get("batch_size", 0):
        return
    attrs = surface.attrs
    attrs["n_cells_smaller_batch"] = int(attrs.get("n_cells_smaller_batch", 0)) + len(cells)
    attrs["smallest_batch_size"] = min(int(attrs.get("smallest_batch_size", batch_size)), batch_size)


def owner_id(surface: xr.Dataset) -> str:
    """Name what a cell's values belong to: one minimizer, data set, subspace, configuration and loss."""
    digest = hashlib.sha256()
    for name in ("theta_sha256", "data_sha256", "subspace_id", "config_sha256", "at_minimizer"):
        digest.update(f"{name}={surface.attrs.get(name, 'none')}|".encode())
    return digest.hexdigest()[:16]


def tile_id(surface: xr.Dataset) -> str:
    """Name what a tile belongs to: one grid of one owner, since its cells are positions in it."""
    digest = hashlib.sha256(owner_id(surface).encode())
    for axis in axes_of(surface):
        digest.update(axis.encode() + surface[axis].values.astype("<f8").tobytes())
    return digest.hexdigest()[:16]
