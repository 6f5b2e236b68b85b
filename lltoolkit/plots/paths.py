"""Optimizer paths ready to draw: their runs by name, points, epochs, and where the learning rate drops. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.labelled.schema import AXES


@dataclass(frozen=True)
class PlanePath:
    """One run on a plane.

    Attributes
    ----------
    name : str
        Of the run; empty where there is only one.
    points : ndarray
        Shape ``(n, 2)``, float64, in axis units; NaN where a checkpoint has no coordinates.
    residual : ndarray
        Shape ``(n,)``, in [0, 1]; NaN where it is not known, or nothing was displaced.
    epoch : ndarray
        Shape ``(n,)``; NaN where it is not known.
    drops : ndarray of int
        Shape ``(k,)``: places at which the learning rate drops.
    """

    name: str
    points: np.ndarray
    residual: np.ndarray
    epoch: np.ndarray
    drops: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """Places with finite coordinates, shape ``(m,)``."""
        return np.flatnonzero(np.isfinite(self.points).all(axis=1))

    @property
    def start(self) -> np.ndarray:
        """The first finite point, shape ``(2,)``."""
        return self.points[self.seen[0]]

    @property
    def end(self) -> np.ndarray:
        """The last finite point, shape ``(2,)``."""
        return self.points[self.seen[-1]]


def name_runs(given: Any, argument: str, kind: str) -> dict[str, xr.Dataset]:
    """Give each run its name.

    Parameters
    ----------
    given : xr.Dataset or mapping of str to xr.Dataset
        One run, or several by name.
    argument : str
        What the caller calls it.
    kind : str
        ``"trajectory"`` or ``"statistics"``: what each must be, where it says what it is.

    Returns
    -------
    dict
        One run has the name ``""``.

    Raises
    ------
    TypeError
        If one is no Dataset.
    ValueError
        If there is none, or one is another kind of result.
    """
    if isinstance(given, xr.Dataset):
        runs = {"": given}
    elif isinstance(given, Mapping):
        runs = {str(name): dataset for name, dataset in given.items()}
    else:
        raise TypeError(
            f"{argument} is a {type(given).__name__}; give an xarray.Dataset, or {{'name': Dataset}} for several runs."
        )
    if not runs:
        raise ValueError(f"{argument} is empty; give {{'name': Dataset}}, with one run or more.")
    make = "project_trajectory" if kind == "trajectory" else "trajectory_statistics"
    for name, dataset in runs.items():
        which = f"{argument}[{name!r}]" if name else argument
        if not isinstance(dataset, xr.Dataset):
            raise TypeError(
                f"{which} is a {type(dataset).__name__}, not an xarray.Dataset. Open a file with open_result."
            )
        if (found := dataset.attrs.get("kind", kind)) != kind:
            raise ValueError(f"{which} is a {found}, not a {kind}; make one with lltoolkit.{make}(run, ...).")
    return runs


def pick_paths(runs: Mapping[str, xr.Dataset], axes: Sequence[str] | None = None) -> tuple[list[PlanePath], list[str]]:
    """Take what a picture of a plane shows of each run.

    Parameters
    ----------
    runs : mapping of str to xr.Dataset
        From `name_runs`.
    axes : sequence of str, optional
        The two axes of the plane; by default the first two of the first run.

    Returns
    -------
    (list of PlanePath, list of str)
        In the order of `runs`, and the axes.

    Raises
    ------
    ValueError
        If an axis is missing or runs over more than one dim, or no checkpoint has coordinates.
    """
    if axes is None:
        first = next(iter(runs.values()))
        axes = [axis for axis in AXES if axis in first.variables][:2]
        if len(axes) < 2:
            raise ValueError(
                f"this trajectory has {', '.join(axes) or 'no axis'}; a picture of a plane takes two axes. "
                + (
                    "Draw its loss with plot_trajectory_loss."
                    if axes
                    else "Make one with lltoolkit.project_trajectory."
                )
            )
    paths = []
    for name, dataset in runs.items():
        points = np.stack([_coordinates(dataset, axis, name) for axis in axes], axis=1)
        if not np.isfinite(points).all(axis=1).any():
            raise ValueError(
                f"no checkpoint of the trajectory {name!r} has finite coordinates; there is nothing to draw."
            )
        steps = len(points)
        residual, drops = residual_of(dataset), find_drops(over_steps(dataset, "learning_rate", steps))
        paths.append(PlanePath(name, points, residual, over_steps(dataset, "epoch", steps), drops))
    return paths, list(axes)


def _coordinates(dataset: xr.Dataset, axis: str, name: str) -> np.ndarray:
    which = f"trajectory {name!r}" if name else "trajectory"
    if axis not in dataset.variables:
        present = ", ".join(map(str, dataset.variables)) or "nothing"
        raise ValueError(
            f"{which} has no {axis!r}, an axis of this surface; it has {present}. "
            "Project the checkpoints on the same subspace first."
        )
    if dataset[axis].ndim != 1:
        raise ValueError(f"{which}[{axis!r}] runs over {dataset[axis].dims}, not over one dim. Choose one run.")
    return dataset[axis].values.astype(np.float64)


def over_steps(dataset: xr.Dataset, key: str, n_steps: int) -> np.ndarray:
    """Return what a run has over its steps, shape ``(n_steps,)``; NaN throughout where it has no `key`."""
    if key not in dataset.variables or dataset[key].shape != (n_steps,):
        return np.full(n_steps, np.nan)
    return dataset[key].values.astype(np.float64)


def residual_of(dataset: xr.Dataset) -> np.ndarray:
    """Return the residuals of a trajectory, NaN where the checkpoint is the origin itself: 0 of 0 hides nothing.

    Returns
    -------
    ndarray
        Shape ``(n_steps,)``.
    """
    n_steps = dataset.sizes["step"]
    distance = over_steps(dataset, "distance", n_steps)
    return np.where(distance == 0, np.nan, over_steps(dataset, "residual", n_steps))


def find_drops(learning_rate: np.ndarray) -> np.ndarray:
    """Find where a learning rate that was held falls to a half or less.

    The rate of a checkpoint is that of the last step before it. So the mark goes to the last checkpoint with the
    old rate, where the path turns. A rate that falls at every step, as a cosine's, drops nowhere.

    Parameters
    ----------
    learning_rate : ndarray
        Shape ``(n,)``; NaN where it is not known.

    Returns
    -------
    ndarray of int
        Places, ascending.

    Examples
    --------
    >>> find_drops(np.array([0.1, 0.1, 0.01, 0.01, 0.001]))
    array([1, 3])
    >>> find_drops(np.array([1.0, 0.75, 0.25, 0.05, 0.0]))
    array([], dtype=int64)
    """
    rate = np.asarray(learning_rate, dtype=np.float64)
    falls = rate[1:] <= 0.5 * rate[:-1]
    falls &= rate[:-1] > 0
    level = np.isclose(rate[1:], rate[:-1], rtol=1e-6, atol=0.0)
    held = np.concatenate([[False], level[:-1]]) if len(level) else level
    if len(level) > 1:
        held[0] = level[1]  # nothing came before the first two: whether the lower rate is held must tell
    return np.flatnonzero(falls & held)


def require_one_subspace(runs: Mapping[str, xr.Dataset], surface: xr.Dataset | None = None) -> None:
    """Check that paths, and the surface below them, lie in one subspace, as far as they say in which.

    Parameters
    ----------
    runs : mapping of str to xr.Dataset
        From `name_runs`.
    surface : xr.Dataset, optional
        What they are drawn on.

    Raises
    ------
    ValueError
        If they do not: coordinates of another plane are no places of this one.
    """
    known = {}
    if surface is not None:
        known["the surface"] = surface.attrs.get("subspace_id")
    known |= {
        f"trajectory {name!r}" if name else "the trajectory": run.attrs.get("subspace_id") for name, run in runs.items()
    }
    known = {what: found for what, found in known.items() if found not in (None, "", "none")}
    (first, expected), *rest = [*known.items()] or [("", None)]
    for what, found in rest:
        if found != expected:
            raise ValueError(
                f"{first} lies in the subspace {str(expected)[:12]}, {what} in {str(found)[:12]}: their axes are other "
                "directions. Project the run on the surface's own subspace with project_trajectory(run, subspace), or "
                "compute the surface with compute_surface(objective, subspace, around=path)."
            )


def time_axis(runs: Mapping[str, xr.Dataset]) -> str:
    """Choose what curves over a training are drawn against.

    Parameters
    ----------
    runs : mapping of str to xr.Dataset
        From `name_runs`.

    Returns
    -------
    str
        ``"epoch"`` where all runs tell all epochs and they go on, else ``"step"``.
    """
    for dataset in runs.values():
        if "epoch" not in dataset.variables:
            return "step"
        epoch = dataset["epoch"].values.astype(np.float64)
        if not np.isfinite(epoch).all() or (np.diff(epoch) <= 0).any():
            return "step"
    return "epoch"
