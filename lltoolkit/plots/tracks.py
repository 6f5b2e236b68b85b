"""A trajectory on a surface: the parts that lie on it, their heights and colours. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

from lltoolkit.plots.field import Field
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.paths import name_runs, require_one_subspace
from lltoolkit.plots.relief import Relief, fill_from_neighbours
from lltoolkit.plots.series import color_of

_DENSE = 24  # points per segment, to follow the surface
ONE_PATH = "#d62728"  # colour of a trajectory that is alone


@dataclass(frozen=True)
class Track:
    """A trajectory as far as it lies on a surface.

    Attributes
    ----------
    pieces : list of ndarray
        Each of shape ``(k, 3)``: both coordinates and the drawn height.
    start, end : ndarray or None
        Shape ``(2,)``: coordinates of the first and the last point, where these are on the surface.
    n_outside : int
        Points of the trajectory that are not.
    """

    pieces: list[np.ndarray]
    start: np.ndarray | None
    end: np.ndarray | None
    n_outside: int


def highest_on_path(trajectory: xr.Dataset, field: Field) -> float:
    """Find the highest value below a trajectory, on straight pieces between the cells.

    Parameters
    ----------
    trajectory : xr.Dataset
        With the field's axes as variables over one dim.
    field : Field
        What it runs over.

    Returns
    -------
    float
        In units of the field; -inf where no part of the path lies on the plane.
    """
    first, second = _walk(_corners_of(trajectory, field.axes)).T
    values = fill_from_neighbours(np.where(field.drawn, field.values, np.nan))
    plane = RegularGridInterpolator((field.first, field.second), values, bounds_error=False)
    below = plane(np.stack([first, second], axis=-1))
    return float(np.nanmax(below, initial=-np.inf))


def follow_paths(
    trajectory: xr.Dataset | Mapping[str, xr.Dataset], surface: xr.Dataset, frame: Frame, relief: Relief
) -> dict[str, Track]:
    """Lay one trajectory, or several by name, on a surface.

    Parameters
    ----------
    trajectory : xr.Dataset or mapping of str to xr.Dataset
        With the frame's axes as variables over ``step``.
    surface : xr.Dataset
        What the frame was laid for.
    frame, relief : Frame, Relief
        From `lay_frame`.

    Returns
    -------
    dict of str to Track
        One trajectory has the name ``""``.

    Raises
    ------
    TypeError
        If one is no Dataset.
    ValueError
        If one has no path on this surface's axes, or lies in another subspace.
    """
    runs = name_runs(trajectory, "trajectory", "trajectory")
    require_one_subspace(runs, surface)
    return {name: follow_path(run, frame, relief) for name, run in runs.items()}


def name_paths(frame: Frame, paths: Mapping[str, Track]) -> Frame:
    """Give a frame the names and colours of several runs, and tell how many of their points lie outside.

    Returns
    -------
    Frame
        A new one.
    """
    notes = [
        f"{_count(path.n_outside, 'point')} of {name or 'the trajectory'} outside"
        for name, path in paths.items()
        if path.n_outside
    ]
    runs = tuple((name, color_of(place)) for place, name in enumerate(paths) if name)
    return replace(frame, note="; ".join([frame.note, *notes]), runs=runs)


def color_of_run(name: str, frame: Frame) -> str:
    """Return the colour of a run: its own among several, red alone."""
    return dict(frame.runs).get(name, ONE_PATH)


def follow_path(trajectory: xr.Dataset, frame: Frame, relief: Relief) -> Track:
    """Lay a trajectory on a surface, straight in the plane between its points.

    Parameters
    ----------
    trajectory : xr.Dataset
        With the frame's axes as variables over ``step``.
    frame, relief : Frame, Relief
        From `lay_frame`.

    Returns
    -------
    Track
        Without what lies beside the plane or above the rim.

    Raises
    ------
    ValueError
        If an axis is missing, runs over more than one dim, or has fewer than two finite points.
    """
    first, second = _walk(_corners_of(trajectory, frame.axes)).T
    height = relief.spline.ev(first, second)
    within = (first >= frame.first[0]) & (first <= frame.first[1]) & (second >= frame.second[0])
    within &= (second <= frame.second[1]) & ((height <= frame.heights(frame.high)) | (not frame.cut))
    points = np.stack([first, second, height], axis=-1)
    pieces = np.split(points, np.flatnonzero(np.diff(within)) + 1)
    return Track(
        # Pieces alternate between inside and outside.
        pieces=[piece for piece in pieces[0 if within[0] else 1 :: 2] if len(piece) > 1],
        start=points[0, :2] if within[0] else None,
        end=points[-1, :2] if within[-1] else None,
        n_outside=int(np.count_nonzero(~within[::_DENSE])),
    )


def _corners_of(trajectory: xr.Dataset, axes: tuple[str, str]) -> np.ndarray:
    """Return the finite points of a trajectory, shape ``(k, 2)``."""
    for axis in axes:
        if axis not in trajectory:
            present = ", ".join(map(str, trajectory.variables)) or "nothing"
            raise ValueError(
                f"trajectory has no {axis!r}, an axis of this surface; it has {present}. "
                "Project the checkpoints on the same subspace first."
            )
        if trajectory[axis].ndim != 1:
            raise ValueError(
                f"trajectory[{axis!r}] runs over {trajectory[axis].dims}, not over one dim. Choose one run."
            )
    corners = np.stack([trajectory[axis].values.astype(np.float64) for axis in axes], axis=-1)
    corners = corners[np.isfinite(corners).all(axis=1)]
    if len(corners) < 2:
        raise ValueError(f"trajectory has {_count(len(corners), 'finite point')}; a path takes two or more.")
    return corners


def _count(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}" if number_of == 1 else f"{number_of} {noun}s"


def _walk(corners: np.ndarray) -> np.ndarray:
    """Return points on the straight lines between corners, shape ``(_DENSE * (k - 1) + 1, 2)``."""
    steps = np.arange(_DENSE * (len(corners) - 1) + 1) / _DENSE
    return np.stack([np.interp(steps, np.arange(len(corners)), column) for column in corners.T], axis=-1)
