"""Paths of checkpoints as Datasets: the empty layout, its rows, what an older file knows, statistics. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.labelled.schema import AXES, STATUS, label
from lltoolkit.labelled.surface import count_nonfinite

RESIDUALS = ("residual", "residual_weights", "residual_bias_bn")
N_COMPONENTS = 10  # principal coordinates in the statistics of a path, at most


@dataclass(frozen=True)
class Row:
    """What is known of a checkpoint without its weights.

    Attributes
    ----------
    step : int
        Optimizer steps behind it.
    epoch, learning_rate : float
        NaN where they are not on record.
    sha256 : str
        Hash of its file.
    """

    step: int
    epoch: float = math.nan
    learning_rate: float = math.nan
    sha256: str = ""


def empty_trajectory(
    rows: Sequence[Row],
    axes: Sequence[str],
    splits: Sequence[str] = (),
    metrics: Sequence[str] = (),
    *,
    units: str = "1",
    attrs: Mapping[str, str | int | float],
    explained: Mapping[str, Sequence[float]] | None = None,
) -> xr.Dataset:
    """Lay out a path that no checkpoint has been projected of.

    Parameters
    ----------
    rows : sequence of Row
        The checkpoints, in the order of their steps.
    axes : sequence of str
        Of the subspace.
    splits, metrics : sequence of str
        What is measured of each checkpoint, and in the subspace under it; the loss first, none where nothing is.
    units : str
        Units of the loss.
    attrs : mapping
        Attributes of the Dataset.
    explained : mapping, optional
        ``explained_variance`` and ``explained_variance_null`` to one share in [0, 1] per axis.

    Returns
    -------
    xr.Dataset
        Over ``step``: the axes, `RESIDUALS` and ``distance`` float64, NaN; ``status`` int8, 0; ``checkpoint_sha256``.
        Over ``(split, step)``: each metric and ``plane_<metric>`` float64, NaN. Over ``axis``: the shares of variance.
    """
    nothing = np.full(len(rows), np.nan)
    variables: dict[str, Any] = {name: ("step", nothing.copy()) for name in (*axes, *RESIDUALS, "distance")}
    for axis, words in zip(AXES, ("first", "second", "third"), strict=True):
        if axis in variables:
            variables[axis] += ({"long_name": f"coordinate along the {words} direction", "units": "1"},)
    for name in [full for metric in metrics for full in (metric, f"plane_{metric}")]:
        told = {"units": units} if name.removeprefix("plane_").removesuffix("_se") == "loss" else {}
        variables[name] = (("split", "step"), np.full((len(splits), len(rows)), np.nan), told)
    variables["status"] = ("step", np.full(len(rows), STATUS["missing"], dtype=np.int8))
    variables["checkpoint_sha256"] = ("step", np.array([row.sha256 for row in rows], dtype=object))
    for name in ("explained_variance", "explained_variance_null"):
        shares = (explained or {}).get(name) or [math.nan] * len(axes)
        variables[name] = ("axis", np.array(shares, dtype=np.float64))
    coords: dict[str, Any] = {**_of_rows(rows), "axis": np.array(list(axes), dtype=object)}
    if metrics:
        coords["split"] = list(splits)
    return label(xr.Dataset(variables, coords=coords, attrs=dict(attrs)))


def _of_rows(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "step": np.array([row.step for row in rows], dtype=np.int64),
        "epoch": ("step", np.array([row.epoch for row in rows], dtype=np.float64)),
        "learning_rate": ("step", np.array([row.learning_rate for row in rows], dtype=np.float64)),
    }


def fill_step(path: xr.Dataset, place: int, numbers: Mapping[str, float | np.ndarray]) -> None:
    """Write what was computed of a checkpoint and mark it; in place.

    Parameters
    ----------
    path : xr.Dataset
        From `empty_trajectory`.
    place : int
        Which checkpoint.
    numbers : mapping
        Variable to its value, or its values by split, shape ``(n_splits,)``.
    """
    for name, value in numbers.items():
        path[name].values[..., place] = value
    path["status"].values[place] = STATUS["computed"]


def is_missing(path: xr.Dataset) -> np.ndarray:
    """Tell, for each checkpoint, whether it has yet to be projected: bool, shape ``(n_steps,)``."""
    return path["status"].values == STATUS["missing"]


def adopt_steps(path: xr.Dataset, old: xr.Dataset) -> None:
    """Copy what an older file has of checkpoints whose files are the same; in place.

    Parameters
    ----------
    path : xr.Dataset
        From `empty_trajectory`.
    old : xr.Dataset
        Of the same subspace and objective, with other checkpoints, maybe.
    """
    computed = {
        (int(step), str(digest)): place
        for place, (step, digest) in enumerate(zip(old["step"].values, old["checkpoint_sha256"].values, strict=True))
        if not is_missing(old)[place]
    }
    names = [str(name) for name in path.data_vars if "step" in path[name].dims and name != "checkpoint_sha256"]
    if not set(names) <= set(old.data_vars):
        return
    for place, (step, digest) in enumerate(zip(path["step"].values, path["checkpoint_sha256"].values, strict=True)):
        there = computed.get((int(step), str(digest)))
        for name in names if there is not None else ():
            path[name].values[..., place] = old[name].transpose(..., "step").values[..., there]


def summarize(path: xr.Dataset) -> dict[str, int | float]:
    """Sum up the checkpoints that were projected.

    Returns
    -------
    dict
        ``captured_share``, the squares of what lies in the subspace over the squares of the displacements, in [0, 1],
        NaN where nothing moved; ``n_checkpoints``; where losses were measured ``n_nan`` and ``n_inf``.
    """
    done = ~is_missing(path)
    squares = path["distance"].values[done] ** 2
    inside = squares * (1 - path["residual"].values[done] ** 2)
    total = float(squares.sum())
    counts = count_nonfinite(path) if "loss" in path else {}
    return {"captured_share": float(inside.sum()) / total if total else math.nan, "n_checkpoints": int(done.sum())} | (
        counts
    )


def path_statistics(
    products: np.ndarray,
    theta_norms: np.ndarray,
    rows: Sequence[Row],
    *,
    attrs: Mapping[str, str | int | float],
    null_shares: Sequence[float],
) -> xr.Dataset:
    """Tell how a path moves, from inner products alone.

    Parameters
    ----------
    products : ndarray
        Shape ``(n, n)``: inner products of the checkpoints' displacements from the last one; n >= 2.
    theta_norms : ndarray
        Shape ``(n,)``: norms of the weights themselves.
    rows : sequence of Row
        The checkpoints, in the order of their steps.
    attrs : mapping
        Attributes of the Dataset.
    null_shares : sequence of float
        Shares of the variance about its end that a random walk of that length gives, per component.

    Returns
    -------
    xr.Dataset
        As `trajectory_statistics` describes it.
    """
    diagonal = np.diagonal(products)
    moves = np.diff(np.diff(products, axis=0), axis=1)  # inner products of the steps between checkpoints
    lengths = _root(np.diagonal(moves))
    to_end = _root(diagonal)
    from_start = _root(diagonal - 2 * products[0] + products[0, 0])
    along = moves.sum(axis=1)  # of each step with the whole displacement
    ahead = np.triu(moves).sum(axis=1)  # and with what is left from the checkpoint before it, itself included
    by_step = {
        "distance_from_start": from_start,
        "distance_to_end": to_end,
        "step_length": np.append(np.nan, lengths),
        "path_length": np.append(0.0, np.cumsum(lengths)),
        "cosine_to_previous": np.append([np.nan, np.nan], _cosine(np.diagonal(moves, 1), lengths[1:] * lengths[:-1])),
        "cosine_to_displacement": np.append(np.nan, _cosine(along, lengths * from_start[-1])),
        "cosine_to_end": np.append(np.nan, _cosine(ahead, lengths * to_end[:-1])),
        "theta_norm": np.asarray(theta_norms, dtype=np.float64),
    }
    principal, shares = _principal(products, min(N_COMPONENTS, len(rows) - 1))
    variables: dict[str, Any] = {name: ("step", values[: len(rows)]) for name, values in by_step.items()}
    variables["principal"] = (("step", "component"), principal)
    variables["explained_variance"] = ("component", shares)
    known = np.full(len(shares), np.nan)
    known[: len(null_shares)] = list(null_shares)[: len(shares)]
    variables["explained_variance_null"] = ("component", known)
    coords = {**_of_rows(rows), "component": np.arange(1, len(shares) + 1)}
    return label(xr.Dataset(variables, coords=coords, attrs=dict(attrs)))


def _principal(products: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the coordinates on the principal axes about the end, and the share of the squares that each holds."""
    values, vectors = np.linalg.eigh(products)
    values, vectors = np.maximum(values[::-1][:n_components], 0.0), vectors[:, ::-1][:, :n_components]
    # An eigenvector has no sign of its own. As in `pca_subspace` the checkpoint that is farthest off is on the left.
    signs = -np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    total = float(np.trace(products))
    shares = values / total if total > 0 else np.full(len(values), np.nan)
    return vectors * signs * np.sqrt(values), shares


def _root(squares: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(squares, 0.0))


def _cosine(products: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Divide where there is a length; NaN where a step has none and so no direction."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lengths > 0, np.clip(products / lengths, -1.0, 1.0), np.nan)
