"""Numbers and names of the axes: where they lie around the floor of a scene. NumPy only."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lltoolkit.plots.field import axis_label
from lltoolkit.plots.frame import Frame

STROKE = 0.03  # length of a tick in scene units
_NUMBER, _NAME = 0.09, 0.28  # how far outside the middle of a number and of a name lies


@dataclass(frozen=True)
class Tick:
    """A number beside an edge of the floor, or the name of the axis.

    Attributes
    ----------
    edge : ndarray
        Shape ``(3,)``, on the border of the floor.
    outward : ndarray
        Shape ``(3,)``: unit vector away from the floor.
    distance : float
        From the edge to the middle of the text, in scene units.
    text : str
        With mathtext.
    has_stroke : bool
        Whether a little stroke marks the place: not for a name.
    """

    edge: np.ndarray
    outward: np.ndarray
    distance: float
    text: str
    has_stroke: bool

    @property
    def place(self) -> np.ndarray:
        """Where the middle of the text lies, shape ``(3,)``."""
        return self.edge + self.distance * self.outward

    @property
    def right(self) -> np.ndarray:
        """Along which the text is read from outside, shape ``(2,)``."""
        return np.array([-self.outward[1], self.outward[0]])


def lay_ticks(frame: Frame, towards: np.ndarray) -> Iterator[Tick]:
    """Put numbers and names along the two edges of the floor that are nearest to the camera.

    Parameters
    ----------
    frame : Frame
        Where the floor lies.
    towards : ndarray
        Shape ``(3,)``: from the scene to the camera.

    Yields
    ------
    Tick
        Numbers, and the name, of each axis.
    """
    for axis, ends in enumerate((frame.first, frame.second)):
        outward = np.zeros(3)
        outward[1 - axis] = np.copysign(1.0, towards[1 - axis])

        def edge(
            value: float, axis: int = axis, ends: tuple[float, float] = ends, out: np.ndarray = outward
        ) -> np.ndarray:
            point = np.array([0.0, 0.0, frame.floor])
            point[axis] = ((value - ends[0]) / (ends[1] - ends[0]) * 2 - 1) * frame.half[axis]
            point[1 - axis] = out[1 - axis] * frame.half[1 - axis]
            return point

        for value in _round_values(*ends):
            yield Tick(edge(value), outward, _NUMBER, _written(value), has_stroke=True)
        yield Tick(edge(sum(ends) / 2), outward, _NAME, axis_label(frame.axes[axis]), has_stroke=False)
    if frame.third:
        yield from _lay_upright(frame, towards)


def _lay_upright(frame: Frame, towards: np.ndarray) -> Iterator[Tick]:
    """Put the numbers of a volume's third axis beside the vertical edge that is leftmost in the picture."""
    name, low, high, tall = frame.third
    left = np.array([towards[1], -towards[0], 0.0]) / (np.hypot(*towards[:2]) or 1.0)
    corners = [np.array([sx * frame.half[0], sy * frame.half[1], 0.0]) for sx in (-1, 1) for sy in (-1, 1)]
    corner = max(corners, key=lambda each: float(each @ left))
    for value in _round_values(low, high):
        edge = corner + np.array([0.0, 0.0, frame.floor + tall * (value - low) / (high - low)])
        yield Tick(edge, left, _NUMBER, _written(value), has_stroke=True)
    yield Tick(corner + np.array([0.0, 0.0, frame.floor + tall / 2]), left, _NAME, axis_label(name), has_stroke=False)


def _round_values(low: float, high: float) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return values[(values >= low - slack) & (values <= high + slack)]


def _written(value: float) -> str:
    return f"{value + 0.0:g}".replace("-", "−")
