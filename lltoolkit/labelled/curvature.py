"""Curvature maps as Datasets: the empty map, its tiles, the cells that are audited, ratios, miss rates. Torch-free."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from lltoolkit.labelled.schema import STATUS, label
from lltoolkit.labelled.streams import stream
from lltoolkit.labelled.surface import cell_order

# Cells of a tile along each axis, by the number of axes. Inside a tile each cell starts where the one before it ended,
# so larger tiles save products; but a tile is what one worker does at a time, and what an interrupt loses.
TILE = {1: (16,), 2: (4, 4), 3: (2, 2, 4)}
AUDIT_SHARE = 0.05  # of the cells are computed a second time, from a start of their own and to a tight tolerance

_NAN = ("loss", "eig_min", "eig_max", "eig_ratio", "nonconvexity", "residual_min", "residual_max")
_OF_AUDIT = ("audit_eig_min", "audit_eig_max")
_IN_LOSS = ("loss", "eig_min", "eig_max", "residual_min", "residual_max", *_OF_AUDIT)


@dataclass(frozen=True)
class Tile:
    """Neighbouring cells that one worker computes one after the other.

    Attributes
    ----------
    cells : ndarray
        Shape ``(k,)``: flat positions in the order of visiting; each is a neighbour of the one before.
    audited : ndarray of bool
        Shape ``(k,)``.
    """

    cells: np.ndarray
    audited: np.ndarray


def empty_curvature(
    coords: Mapping[str, np.ndarray], split: str, *, units: str, attrs: Mapping[str, str | int | float]
) -> xr.Dataset:
    """Lay out a curvature map that nothing has been computed of.

    Parameters
    ----------
    coords : mapping
        Axis name to its coordinates, shape ``(n,)``, in the order of the axes.
    split : str
        Of the data whose loss is differentiated.
    units : str
        Units of the loss.
    attrs : mapping
        Attributes of the Dataset.

    Returns
    -------
    xr.Dataset
        Over (alpha, ...): float64 variables, NaN; ``n_hvp`` and ``audit_n_hvp`` int32, 0; ``converged`` and ``status``
        int8, 0.
    """
    shape = tuple(len(values) for values in coords.values())
    kinds = {name: np.full(shape, np.nan) for name in (*_NAN, *_OF_AUDIT)}
    kinds |= {name: np.zeros(shape, dtype=np.int32) for name in ("n_hvp", "audit_n_hvp")}
    kinds |= {name: np.zeros(shape, dtype=np.int8) for name in ("converged", "audit_converged", "status")}
    variables = {
        name: (tuple(coords), values, {"units": units} if name in _IN_LOSS else {}) for name, values in kinds.items()
    }
    variables["loss"][2]["long_name"] = f"{split} loss"
    for name, end in (("eig_min", "smallest"), ("eig_max", "largest")):
        if attrs.get("metric") == "filter":  # or a picture of these would look like one of the others
            variables[name][2]["long_name"] = f"{end} Hessian eigenvalue, filter metric"
    axes = {axis: np.asarray(values, dtype=np.float64) for axis, values in coords.items()}
    return label(xr.Dataset(variables, coords=axes, attrs=dict(attrs)))


def tiles(coords: Mapping[str, np.ndarray], seed: int) -> list[Tile]:
    """Cut a grid into tiles, and draw the cells that are audited.

    Parameters
    ----------
    coords : mapping
        As in `empty_curvature`.
    seed : int
        Of the audit.

    Returns
    -------
    list of Tile
        From coarse to fine around the origin, as `cell_order` has it: a map that stops early is spread over the grid.
        They follow from the grid alone, not from who computes, so that a resumed map is the same map.
    """
    shape = tuple(len(values) for values in coords.values())
    audited = np.zeros(int(np.prod(shape)), dtype=bool)
    audited[draw_audited(coords, seed)] = True
    numbers = np.arange(len(audited)).reshape(shape)
    runs = {
        axis: np.array_split(np.arange(len(values)), -(-len(values) // size))
        for (axis, values), size in zip(coords.items(), TILE[len(shape)], strict=True)
    }
    blocks = []
    for windows in itertools.product(*runs.values()):
        block = numbers[np.ix_(*windows)]
        blocks.append(np.array([block[index] for index in snake(block.shape)]))
    centres = {axis: np.array([coords[axis][run].mean() for run in parts]) for axis, parts in runs.items()}
    return [Tile(blocks[place], audited[blocks[place]]) for place in cell_order(centres)]


def snake(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Visit every cell of a block so that each step goes to a neighbour.

    Returns
    -------
    list of tuple
        Indices, from the first corner on, along the last axis to and fro.

    Examples
    --------
    >>> snake((2, 3))
    [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    """
    if not shape:
        return [()]
    inner = snake(shape[1:])
    return [(row, *rest) for row in range(shape[0]) for rest in (inner if row % 2 == 0 else inner[::-1])]


def draw_audited(coords: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """Draw `AUDIT_SHARE` of the cells, at least one, by the seed and the grid: flat positions, rising."""
    n_cells = int(np.prod([len(values) for values in coords.values()]))
    words = [f"{axis}:{values.astype('<f8').tobytes().hex()}" for axis, values in coords.items()]
    n_audited = max(1, round(AUDIT_SHARE * n_cells))
    return np.sort(stream("curvature audit", seed, *words).choice(n_cells, n_audited, replace=False))


def ratios(eig_min: np.ndarray, eig_max: np.ndarray) -> dict[str, np.ndarray]:
    """Give the two measures of how far from convex a cell is.

    Parameters
    ----------
    eig_min, eig_max : ndarray
        The extreme eigenvalues, of any shape.

    Returns
    -------
    dict
        ``eig_ratio``: ``|eig_min / eig_max|``, as in the paper; it can't tell a small positive smallest eigenvalue
        from a negative one. ``nonconvexity``: ``max(0, -eig_min) / eig_max``, 0 where the Hessian has no negative
        eigenvalue. Where nothing curves upwards (``eig_max <= 0``) but something downwards, it is inf. NaN where an
        eigenvalue is, and for the ratio of a Hessian that is zero.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 6.

    Examples
    --------
    >>> found = ratios(np.array([-1.0, 1.0, -2.0]), np.array([4.0, 4.0, -1.0]))
    >>> found["eig_ratio"].tolist(), found["nonconvexity"].tolist()
    ([0.25, 0.25, 2.0], [0.25, 0.0, inf])
    """
    down = np.maximum(0.0, -eig_min)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(eig_min / eig_max)
        signed = np.where(eig_max > 0, down / eig_max, np.where(down > 0, np.inf, 0.0))
    return {"eig_ratio": ratio, "nonconvexity": np.where(np.isnan(eig_min + eig_max), np.nan, signed)}


def summarize_audit(curvature: xr.Dataset, tol: float) -> dict[str, int | float]:
    """Compare the map with its audit, and count the products.

    Parameters
    ----------
    curvature : xr.Dataset
        A finished map.
    tol : float
        Of the map: an audited cell is missed where an end differs by more than ``tol`` times the largest eigenvalue.

    Returns
    -------
    dict
        ``n_audit``: audited cells that have eigenvalues, without those whose audit did not converge, which are
        ``n_audit_unconverged``; ``n_audit_missed`` of them, ``audit_miss_rate`` (NaN of none) and ``audited_max``, the
        largest difference over the largest eigenvalue; ``n_unconverged``: computed cells whose residuals exceed the
        tolerance, NaN cells included; ``n_hvp_total`` with the audits', ``n_hvp_audit``, ``n_hvp_median`` of a cell.
    """
    found = {name: curvature[name].values for name in ("eig_min", "eig_max", *_OF_AUDIT)}
    tried = np.isfinite(found["audit_eig_min"]) & np.isfinite(found["audit_eig_max"])
    sound = tried & (curvature["audit_converged"].values == 1)  # an audit that did not converge is no measure
    low, high = found["audit_eig_min"][sound], found["audit_eig_max"][sound]
    off = np.maximum(np.abs(found["eig_min"][sound] - low), np.abs(found["eig_max"][sound] - high))
    # As the tolerance of a cell: of the largest in magnitude, where no eigenvalue is positive.
    largest = np.where(high > 0, high, np.abs(low))
    excess = np.divide(off, largest, out=np.where(off == 0, 0.0, np.inf), where=largest > 0)
    missed = ~(excess <= tol)  # NaN in the map, too, is a miss where the audit found a number
    n_hvp, n_audit_hvp = curvature["n_hvp"].values, curvature["audit_n_hvp"].values
    computed = curvature["status"].values == STATUS["computed"]
    return {
        "n_audit": int(sound.sum()),
        "n_audit_unconverged": int((tried & ~sound).sum()),
        "n_audit_missed": int(missed.sum()),
        "audit_miss_rate": float(missed.mean()) if missed.size else float("nan"),
        "audited_max": float(excess.max()) if excess.size else float("nan"),
        "n_unconverged": int((computed & (curvature["converged"].values == 0)).sum()),
        "n_hvp_total": int(n_hvp.sum() + n_audit_hvp.sum()),
        "n_hvp_audit": int(n_audit_hvp.sum()),
        "n_hvp_median": float(np.median(n_hvp[n_hvp > 0])) if (n_hvp > 0).any() else 0.0,
    }
