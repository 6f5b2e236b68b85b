"""A rendered picture as a finished figure: vector colour bar, axis numbers and notes around the pixels."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lltoolkit.plots.camera import View
from lltoolkit.plots.field import axis_label
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.style import PrintFigure, page_style

_DPI = 200  # of the pixels; with text of 10 points a picture 1400 pixels wide is 7 inches
_BAR = 1.15  # inches to the right of the picture for the colour bar and its label


@dataclass(frozen=True)
class Mark:
    """A stroke and a text at a place of the picture.

    Attributes
    ----------
    start, stop : ndarray
        Shape ``(2,)``, pixels to the right of and below the upper left one; no stroke if they are equal.
    text : str
        Written at `stop`.
    align : {"left", "center", "right"}
        Which end of the text lies there.
    """

    start: np.ndarray
    stop: np.ndarray
    text: str = ""
    align: Literal["left", "center", "right"] = "center"


def compose(image: np.ndarray, frame: Frame, marks: list[Mark]) -> PrintFigure:
    """Put a picture into a figure with vector text around it.

    Parameters
    ----------
    image : ndarray of uint8
        Shape ``(height, width, 3)``, on a plain background; its empty margins are cut off.
    frame : Frame
        Tells the colours, the label and the note.
    marks : list of Mark
        Numbers and names of the axes.

    Returns
    -------
    PrintFigure
        Saved at its own resolution it has the pixels of `image` one to one.
    """
    image, marks = _without_margins(image, marks)
    height, width = image.shape[:2]
    size = (width / _DPI + _BAR, height / _DPI)
    with rc_context(page_style(10)):
        figure = PrintFigure(figsize=size, dpi=_DPI)
        figure.print_dpi = _DPI
        picture = figure.add_axes((0, 0, width / _DPI / size[0], 1))
        picture.imshow(image, interpolation="none", aspect="auto")
        picture.set_axis_off()
        for mark in marks:
            picture.plot(*np.stack([mark.start, mark.stop]).T, color="0.3", linewidth=0.6, clip_on=False)
            if mark.text:
                picture.text(*mark.stop, mark.text, ha=mark.align, va="center", clip_on=False)
        picture.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        bar = figure.add_axes((1 - (_BAR - 0.1) / size[0], 0.24, 0.15 / size[0], 0.52))
        high = frame.high if frame.high > frame.low else frame.low + 0.01 * abs(frame.low) + 1e-9
        norm = (LogNorm if frame.log else Normalize)(frame.low, high)
        colors = figure.colorbar(ScalarMappable(norm, frame.cmap), cax=bar, label=frame.label)
        colors.outline.set_linewidth(0.6)
        if frame.runs:
            runs = [Line2D([], [], color=color, linewidth=2.5, label=name) for name, color in frame.runs]
            figure.legend(handles=runs, loc="upper left", frameon=False, handlelength=1.5)
        figure.text(0.01, 0.008, frame.note, fontsize=7, color="0.4", ha="left", va="bottom")
    return figure


def _without_margins(image: np.ndarray, marks: list[Mark]) -> tuple[np.ndarray, list[Mark]]:
    """Cut off empty rows and columns, leaving room for the text of the marks."""
    drawn = (image != image[0, 0]).any(axis=2)
    if not drawn.any():
        return image, marks
    inside = np.array([(places[0], places[-1]) for places in (np.flatnonzero(drawn.any(axis=axis)) for axis in (0, 1))])
    ends = np.array([mark.stop for mark in marks if mark.text] or [inside[:, 0]])
    first = np.minimum(inside[:, 0] - 25, ends.min(axis=0).astype(int) - 60).clip(0)
    last = np.maximum(inside[:, 1] + 25, ends.max(axis=0).astype(int) + 60).clip(None, image.shape[1::-1])
    moved = [replace(mark, start=mark.start - first, stop=mark.stop - first) for mark in marks]
    return image[first[1] : last[1], first[0] : last[0]], moved


def axis_marks(frame: Frame, view: View, size: tuple[int, int]) -> list[Mark]:
    """Put numbers and names along the two edges of the floor that are nearest to the camera.

    Parameters
    ----------
    frame, view : Frame, View
        Where the floor lies, and where it appears.
    size : (int, int)
        Width and height of the picture in pixels.

    Returns
    -------
    list of Mark
        Ticks, numbers, names.
    """

    def pixel(axis: int, value: float, outward: float) -> np.ndarray:
        ends = (frame.first, frame.second)[axis]
        place = np.array([0.0, 0.0, frame.floor])
        place[axis] = ((value - ends[0]) / (ends[1] - ends[0]) * 2 - 1) * frame.half[axis]
        place[1 - axis] = np.copysign(frame.half[1 - axis] + outward, (view.position - view.focus)[1 - axis])
        return view.project(place[None], size)[0]

    marks = []
    for axis, ends in enumerate((frame.first, frame.second)):
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(*ends)
        slack = 1e-9 * (ends[1] - ends[0])
        for value in ticks[(ticks >= ends[0] - slack) & (ticks <= ends[1] + slack)]:
            edge, place = pixel(axis, value, 0.0), pixel(axis, value, 0.06)
            marks.append(Mark(edge, pixel(axis, value, 0.03)))
            text = f"{value + 0.0:g}".replace("-", "−")
            marks.append(Mark(place, place, text, "left" if place[0] > edge[0] else "right"))
        name = pixel(axis, sum(ends) / 2, 0.26)
        marks.append(Mark(name, name, axis_label(frame.axes[axis])))
    return marks
