"""A field in a 3D scene: where its values lie, what is cut off, and the path of a trajectory on it. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

from lltoolkit.plots.field import Field, count_cells
from lltoolkit.plots.paths import name_runs, require_one_subspace
from lltoolkit.plots.relief import Relief, smooth_relief
from lltoolkit.plots.scale import choose_scale, number
from lltoolkit.plots.series import color_of
from lltoolkit.plots.style import FRACTION_COLORS, LOSS_COLORS

_ROOF = 0.88  # quantile of the losses at which the walls are cut: the basin is what one wants to see
_HEIGHT = 0.45  # of the box over its width; more hides the basin behind the near wall
_FLOOR = 0.42  # below the lowest point, in scene units: the longer side of the plane is 2
ONE_PATH = "#d62728"  # of a trajectory that is alone


@dataclass(frozen=True)
class Frame:
    """Where the values of a plane lie in a scene.

    Attributes
    ----------
    axes : tuple of str
        Names of the axes.
    first, second : (float, float)
        Ends of the axes in coordinates.
    half : (float, float)
        Half the width of the plane along each axis, in scene units.
    low, high : float
        Ends of the colours, in units of the variable.
    cut : bool
        Whether there are values above `high`, which is then the rim.
    log : bool
        Whether height follows log10.
    label, cmap : str
        Of the colour bar.
    note : str
        What was smoothed, cut and left out.
    runs : tuple of (str, str)
        Names and colours of several trajectories, for a legend; empty for one.
    """

    axes: tuple[str, str]
    first: tuple[float, float]
    second: tuple[float, float]
    half: tuple[float, float]
    low: float
    high: float
    cut: bool
    log: bool
    label: str
    cmap: str
    note: str
    runs: tuple[tuple[str, str], ...] = ()

    def heights(self, values: np.ndarray | float) -> np.ndarray:
        """Return what is drawn upwards for values: themselves or their log10."""
        return np.log10(values) if self.log else np.asarray(values, dtype=np.float64)

    @property
    def floor(self) -> float:
        """Height of the floor in scene units."""
        return -_FLOOR

    @property
    def steepness(self) -> float:
        """Scene units per unit of drawn height."""
        low, high = self.heights(self.low), self.heights(self.high)
        return float(2 * _HEIGHT / (high - low)) if high > low else 0.0

    def place(self, first: np.ndarray, second: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Return scene points, shape ``(..., 3)``, of coordinates and drawn heights."""
        x = (np.asarray(first) - sum(self.first) / 2) * self._stretch(0)
        y = (np.asarray(second) - sum(self.second) / 2) * self._stretch(1)
        z = (np.asarray(height) - self.heights(self.low)) * self.steepness
        return np.stack(np.broadcast_arrays(x, y, z), axis=-1)

    def coordinates(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return coordinates and drawn heights of scene points; what `place` does, backwards."""
        x, y, z = np.moveaxis(points, -1, 0)
        first = x / self._stretch(0) + sum(self.first) / 2
        second = y / self._stretch(1) + sum(self.second) / 2
        return first, second, z / (self.steepness or 1.0) + self.heights(self.low)

    def normals(self, relief: Relief, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return unit normals of the relief, shape ``(k, 3)``, from the slopes of its spline."""
        slope_x = relief.spline.ev(first, second, dx=1) * self.steepness / self._stretch(0)
        slope_y = relief.spline.ev(first, second, dy=1) * self.steepness / self._stretch(1)
        normals = np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], axis=-1)
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)

    def _stretch(self, axis: int) -> float:
        ends = (self.first, self.second)[axis]
        return 2 * self.half[axis] / (ends[1] - ends[0])


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


def lay_frame(
    field: Field, *, scale: str = "auto", clip: float | None = None, upsample: bool = True, cmap: str | None = None
) -> tuple[Frame, Relief]:
    """Decide on heights, rim and proportions, and lay a spline through the cells.

    Parameters
    ----------
    field : Field
        What to show.
    scale : {"auto", "log", "linear"}
        Of height and colour.
    clip : float, optional
        Value of the rim; by default the quantile 0.88 for a loss, none for the rest.
    upsample : bool
        Whether between the cells lies a cubic spline or nothing.
    cmap : str, optional
        Colour map.

    Returns
    -------
    (Frame, Relief)
        The relief's heights are drawn heights; it goes on a little above the rim.

    Raises
    ------
    ValueError
        If no value is finite, or there is only one row of cells.
    """
    if not field.finite.size:
        raise ValueError(f"{field.label}: no cell of this surface has a finite value; there is nothing to render.")
    if min(field.values.shape) < 2:
        raise ValueError(
            f"{field.label}: a grid of {field.values.shape} cells is no surface. Draw its line with plot_slice."
        )
    chosen = choose_scale([field], scale, clip)
    log = chosen.log
    positive = field.finite[field.finite > 0] if log else field.finite
    low = max(float(positive.min()), chosen.low if log else -np.inf)
    high = float(positive.max())
    if clip is not None:
        high = min(high, float(clip))
    elif field.is_loss:
        high = float(np.quantile(positive, _ROOF))
    notes = ["cubic spline through the cells" if upsample else ""]
    if field.finite.max() > high:
        notes.append(f"cut at {number(high)} (max {number(field.finite.max())})")
    if (lower := field.finite < low).any():
        notes.append(f"{count_cells(lower)} below {number(low)} drawn there")
    for cells, why in ((field.missing, "not computed"), (field.nonfinite, "NaN or inf")):
        if cells.any():
            notes.append(f"{count_cells(cells)} {why}: cut out")
    spans = np.array([np.ptp(field.first), np.ptp(field.second)])
    # True proportions, unless one direction is so much longer that the plane would be a ribbon.
    half = spans / spans.max() if spans.min() * 3 >= spans.max() else np.ones(2)
    frame = Frame(
        axes=field.axes,
        first=(float(field.first[0]), float(field.first[-1])),
        second=(float(field.second[0]), float(field.second[-1])),
        half=(float(half[0]), float(half[1])),
        low=low,
        high=high,
        cut=bool(field.finite.max() > high),
        log=log,
        label=field.label,
        cmap=cmap or (LOSS_COLORS if field.is_loss else FRACTION_COLORS),
        note="; ".join(filter(None, notes)),
    )
    values = np.where(field.drawn, np.maximum(field.values, low), np.nan)
    # The spline may go on above the roof, so that it crosses it at the right place, but not to 1e7: it would ring.
    top = frame.heights(high) + (1.0 if log else high - low)
    heights = np.minimum(frame.heights(values), top)
    # A linear variable is bounded by nature (an accuracy) and flat over wide parts, where a free spline ripples.
    relief = smooth_relief(field.first, field.second, heights, 400 if upsample else 0, bounded=not log)
    return frame, relief


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
        f"{path.n_outside} points of {name or 'the trajectory'} lie outside"
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
    for axis in frame.axes:
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
    corners = np.stack([trajectory[axis].values.astype(np.float64) for axis in frame.axes])
    corners = corners[:, np.isfinite(corners).all(axis=0)]
    if corners.shape[1] < 2:
        raise ValueError(f"trajectory has {corners.shape[1]} finite points; a path takes two or more.")
    dense = 24  # points per segment, to follow the surface
    steps = np.arange(dense * (corners.shape[1] - 1) + 1) / dense
    first, second = (np.interp(steps, np.arange(corners.shape[1]), row) for row in corners)
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
        n_outside=int(np.count_nonzero(~within[::dense])),
    )


def clear_elevation(frame: Frame, relief: Relief, azimuth: float) -> float:
    """Find how high the camera must stand for the lowest point not to hide behind the near wall.

    Parameters
    ----------
    frame, relief : Frame, Relief
        From `lay_frame`.
    azimuth : float
        Of the camera, in degrees.

    Returns
    -------
    float
        Degrees, 46 to 66; 66 also where it hides even then.
    """
    shown = np.where(relief.hole, np.inf, relief.height)
    i, j = np.unravel_index(np.argmin(shown), shown.shape)
    height = np.where(relief.hole | ((relief.height > frame.heights(frame.high)) & frame.cut), -np.inf, relief.height)
    surface = RegularGridInterpolator((relief.first, relief.second), height, method="nearest", bounds_error=False)
    foot = frame.place(relief.first[i], relief.second[j], shown[i, j])
    for elevation in (46.0, 50.0, 54.0, 58.0, 62.0):
        tilt, turn = np.radians((elevation, azimuth))
        away = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
        first, second, ray = frame.coordinates(foot + np.linspace(0.05, 3.0, 300)[:, None] * away)
        wall = surface(np.stack([first, second], axis=-1))
        if not (np.isfinite(wall) & (wall > ray)).any():
            return elevation
    return 66.0
