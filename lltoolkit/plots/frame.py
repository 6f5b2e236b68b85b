"""A field in a 3D scene: where its values lie, and what is cut off. NumPy only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from lltoolkit.plots.field import Field, count_cells, tell_filled
from lltoolkit.plots.relief import Relief, smooth_relief
from lltoolkit.plots.scale import choose_scale, number
from lltoolkit.plots.style import FRACTION_COLORS, LOSS_COLORS

_ROOF = 0.88  # quantile of the losses at which the walls are cut: the basin is what one wants to see
_DECADES = 8  # that a log scale reaches below the rim
_RAISED = 0.5  # of the drawn height, by which a trajectory may raise the rim
_HEIGHT = 0.45  # of the box over its width; more hides the basin behind the near wall
_FLOOR = 0.42  # below the lowest point, in scene units: the longer side of the plane is 2


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
    third : (str, float, float, float), optional
        Of a volume: the name of the vertical axis, its ends, and its length in scene units.
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
    third: tuple[str, float, float, float] | None = None

    def heights(self, values: np.ndarray | float) -> np.ndarray:
        """Return what is drawn upwards for values: themselves or their log10."""
        return np.log10(values) if self.log else np.asarray(values, dtype=np.float64)

    @property
    def floor(self) -> float:
        """Height of the floor in scene units."""
        return -_FLOOR if self.third is None else 0.0

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
class Span:
    """What one surface, or several that are to be compared, show of their values.

    Attributes
    ----------
    log : bool
        Whether height and colour follow log10.
    low, high : float
        The lowest value, and the rim, in units of the variable.
    """

    log: bool
    low: float
    high: float


def choose_span(
    fields: Sequence[Field], *, scale: str = "auto", clip: float | None = None, reach: float = -np.inf
) -> Span:
    """Decide on log or linear, and on the rim, once for all surfaces of a scene.

    Parameters
    ----------
    fields : sequence of Field
        What will be shown.
    scale : {"auto", "log", "linear"}
        Of height and colour.
    clip : float, optional
        Value of the rim; by default the quantile 0.88 for a loss, none for the rest.
    reach : float
        Highest value that should be seen, of a trajectory's start for example. The rim is raised to it, up to half as
        high again as it would be.

    Returns
    -------
    Span
        With ``low <= high``.

    Raises
    ------
    ValueError
        If a surface has no finite value or only one row of cells, or a choice is impossible.
    """
    for field in fields:
        if not field.finite.size:
            raise ValueError(f"{field.label}: no cell of this surface has a finite value; there is nothing to render.")
        if min(field.values.shape) < 2:
            raise ValueError(
                f"{field.label}: a grid of {field.values.shape} cells is no surface. Draw its line with plot_slice."
            )
    chosen = choose_scale(fields, scale, clip)
    values = np.concatenate([field.finite for field in fields])
    positive = values[values > 0] if chosen.log else values
    lowest, highest = float(positive.min()), float(positive.max())
    rim = highest
    if clip is not None:
        rim = min(highest, float(clip))
    elif all(field.is_loss for field in fields):
        rim = float(np.quantile(positive, _ROOF))
    # An exact zero, or what is nearly one, would stretch a log scale without end.
    low = max(lowest, rim * 10.0**-_DECADES) if chosen.log else lowest
    rim = max(rim, low)
    if clip is None and rim < reach < np.inf:
        # In drawn heights, with room for the ball at the start; farther up, one spike would flatten all the rest.
        down, up, wanted = (float(np.log10(each)) if chosen.log else each for each in (low, rim, reach))
        raised = min(wanted + 0.03 * (wanted - down), up + _RAISED * (up - down))
        rim = 10.0**raised if chosen.log else raised
    return Span(chosen.log, low, min(highest, rim))


def lay_frame(
    field: Field,
    span: Span | None = None,
    *,
    scale: str = "auto",
    clip: float | None = None,
    smooth: bool = True,
    cmap: str | None = None,
) -> tuple[Frame, Relief]:
    """Decide on heights and proportions, and lay a spline through the cells.

    Parameters
    ----------
    field : Field
        What to show.
    span : Span, optional
        From `choose_span`; by default that of this field alone.
    scale, clip
        As in `choose_span`, where `span` is not given.
    smooth : bool
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
    span = span or choose_span([field], scale=scale, clip=clip)
    notes = ["cubic spline through the cells" if smooth else "cells as measured", *_what_is_hidden(field, span)]
    widths = np.array([np.ptp(field.first), np.ptp(field.second)])
    # True proportions, unless one direction is so much longer that the plane would be a ribbon.
    half = widths / widths.max() if widths.min() * 3 >= widths.max() else np.ones(2)
    frame = Frame(
        axes=field.axes,
        first=(float(field.first[0]), float(field.first[-1])),
        second=(float(field.second[0]), float(field.second[-1])),
        half=(float(half[0]), float(half[1])),
        low=span.low,
        high=span.high,
        cut=bool(field.finite.max() > span.high),
        log=span.log,
        label=field.label,
        cmap=cmap or (LOSS_COLORS if field.is_loss else FRACTION_COLORS),
        note="; ".join(notes),
    )
    return frame, _lay_relief(field, frame, smooth)


def _what_is_hidden(field: Field, span: Span) -> Iterator[str]:
    if field.finite.max() > span.high:
        yield f"cut at {number(span.high)} (max {number(field.finite.max())})"
    if (lower := field.finite < span.low).any():
        yield f"{count_cells(lower)} below {number(span.low)} drawn there"
    for cells, why in ((field.missing, "not computed"), (field.nonfinite, "NaN or inf")):
        if cells.any():
            yield f"{count_cells(cells)} {why}: cut out"
    if filled := tell_filled([field]):
        yield filled.removesuffix(" (dots)")  # a scene has none


def _lay_relief(field: Field, frame: Frame, smooth: bool) -> Relief:
    values = np.where(field.drawn, np.maximum(field.values, frame.low), np.nan)
    # The spline may go on above the roof, so that it crosses it at the right place, but not to 1e7: it would ring.
    top = frame.heights(frame.high) + (1.0 if frame.log else frame.high - frame.low)
    heights = np.minimum(frame.heights(values), top)
    # A linear variable is bounded by nature (an accuracy) and flat over wide parts, where a free spline ripples.
    return smooth_relief(field.first, field.second, heights, 400 if smooth else 0, bounded=not frame.log)


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
