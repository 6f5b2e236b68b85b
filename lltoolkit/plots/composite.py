"""A rendered picture as a finished figure: vector colour bar, axis numbers, titles and notes around the pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from textwrap import fill
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D

from lltoolkit.plots.camera import View
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.series import set_log_ticks
from lltoolkit.plots.style import PrintFigure, page_style
from lltoolkit.plots.themes import THEMES, Theme
from lltoolkit.plots.ticks import STROKE, lay_ticks

Box = tuple[float, float, float, float]

PANEL_INCHES = 6.0  # height of a panel, whatever its pixels: text grows with the picture
BAR_INCHES = 1.2  # inches on the right for the colour bar and its label
_TEXT = 10  # points


@dataclass(frozen=True)
class Sheet:
    """What stands around the pixels of a scene, and where.

    Attributes
    ----------
    frame : Frame
        Tells the colours and the label of the bar.
    note : str
        What was smoothed, cut and left out.
    theme : Theme
        Colours of text and background.
    titles : tuple of str
        Of the panels.
    boxes : tuple of (float, float, float, float)
        Left, bottom, width and height of each panel, as fractions of the window; what is free on the right is the
        colour bar's.
    legend : tuple of (str, str)
        Names and colours of lines.
    levels : mapping of str to float
        Values marked on the bar.
    """

    frame: Frame
    note: str
    theme: Theme = THEMES["light"]
    titles: tuple[str, ...] = ("",)
    boxes: tuple[Box, ...] = ((0.0, 0.0, 0.84, 1.0),)
    legend: tuple[tuple[str, str], ...] = ()
    levels: Mapping[str, float] = field(default_factory=dict)

    def dpi(self, height: int) -> float:
        """Return the resolution of a whole window that is `height` pixels high."""
        return height * self.boxes[0][3] / PANEL_INCHES

    @property
    def strip(self) -> float:
        """Where the colour bar's strip begins, as a fraction of the width."""
        return max(left + width for left, _, width, _ in self.boxes)


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


def compose(
    image: np.ndarray, sheet: Sheet, marks: list[Mark], *, dpi: float | None = None, transparent: bool = False
) -> PrintFigure:
    """Put a picture into a figure with vector text around it.

    Parameters
    ----------
    image : ndarray of uint8
        Shape ``(height, width, 3 or 4)``: the whole window, with nothing in the strip of the colour bar.
    sheet : Sheet
        What stands around it.
    marks : list of Mark
        Numbers and names of the axes.
    dpi : float, optional
        Resolution, where `image` is no whole window.
    transparent : bool
        Leave the background out.

    Returns
    -------
    PrintFigure
        Saved at its own resolution it has the pixels of `image` one to one.
    """
    height, width = image.shape[:2]
    dpi = dpi or sheet.dpi(height)
    theme = sheet.theme
    with rc_context(page_style(_TEXT)):
        figure = PrintFigure(figsize=(width / dpi, height / dpi), dpi=dpi)
        figure.print_dpi = dpi
        figure.set_facecolor("none" if transparent else theme.background)
        picture = figure.add_axes((0, 0, 1, 1))
        picture.imshow(image, interpolation="none", aspect="auto")
        picture.set_axis_off()
        for mark in marks:
            picture.plot(*np.stack([mark.start, mark.stop]).T, color=theme.quiet, linewidth=0.6, clip_on=False)
            if mark.text:
                where = {"ha": mark.align, "va": "center", "clip_on": False}
                picture.text(*mark.stop, mark.text, color=theme.text, **where)
        picture.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        for title, (left, bottom, across, up) in zip(sheet.titles, sheet.boxes, strict=True):
            figure.text(left + across / 2, bottom + 0.985 * up, title, ha="center", va="top", color=theme.text, size=12)
        draw_bar(figure, sheet, sheet.strip)
        if sheet.legend:
            lines = [Line2D([], [], color=color, linewidth=2.5, label=name) for name, color in sheet.legend]
            below = 1 - 0.055 * sheet.boxes[0][3] if any(sheet.titles) else 1.0
            look = {"frameon": False, "handlelength": 1.5, "labelcolor": theme.text}
            side, corner = _free_corner(image, sheet, len(lines), dpi)
            figure.legend(handles=lines, loc=f"upper {side}", bbox_to_anchor=(corner, below), **look)
        letters = int(22 * sheet.strip * width / dpi)  # of 7 points, in an inch
        note = fill(sheet.note, max(letters, 30))
        figure.text(0.008, 0.008, note, fontsize=7, color=theme.quiet, ha="left", va="bottom")
    return figure


def _free_corner(image: np.ndarray, sheet: Sheet, n_lines: int, dpi: float) -> tuple[Literal["left", "right"], float]:
    """Choose the upper corner of the first panel in which a legend hides less, and where it is in the figure."""
    left, _, across, _ = sheet.boxes[0]
    width = image.shape[1]
    high, wide = round(0.22 * dpi * (n_lines + 1)), round(1.8 * dpi)
    first, last = round(left * width), round((left + across) * width)
    hidden = [(image[:high, part] != image[-1, -1]).any(axis=2).sum()
              for part in (slice(first, first + wide), slice(max(0, last - wide), last))]  # fmt: skip
    return ("left", left) if hidden[0] <= hidden[1] else ("right", left + across)


def draw_bar(figure: PrintFigure, sheet: Sheet, left: float) -> None:
    """Draw the colour bar into the part of a figure to the right of `left`."""
    frame, theme = sheet.frame, sheet.theme
    width, height = figure.get_size_inches()
    long = min(0.52 * height, 0.6 * PANEL_INCHES)
    bar = figure.add_axes((left + 0.1 / width, 0.5 - long / height / 2, 0.15 / width, long / height))
    high = frame.high if frame.high > frame.low else frame.low + 0.01 * abs(frame.low) + 1e-9
    norm = (LogNorm if frame.log else Normalize)(frame.low, high)
    colors = figure.colorbar(ScalarMappable(norm, frame.cmap), cax=bar)
    if frame.log:
        set_log_ticks(bar.yaxis, float(np.log10(high / frame.low)))
    colors.set_label(frame.label, color=theme.text)
    colors.outline.set(linewidth=0.6, edgecolor=theme.text)
    bar.tick_params(which="both", color=theme.text, labelcolor=theme.text)
    for value in sheet.levels.values():
        if frame.low <= value <= high:
            bar.axhline(value, color=theme.level, linewidth=2.2)


def bar_alone(sheet: Sheet, size: tuple[int, int], dpi: float) -> PrintFigure:
    """Draw the colour bar as a picture of its own, without background.

    Parameters
    ----------
    sheet : Sheet
        Whose bar.
    size : (int, int)
        Width and height in pixels.
    dpi : float
        Resolution.

    Returns
    -------
    PrintFigure
        Transparent.
    """
    with rc_context(page_style(_TEXT)):
        figure = PrintFigure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi, facecolor="none")
        figure.print_dpi = dpi
        draw_bar(figure, sheet, 0.0)
    return figure


def pixels_of(figure: PrintFigure) -> np.ndarray:
    """Draw a figure at its resolution; return its pixels, shape ``(height, width, 4)``, uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def without_margins(image: np.ndarray, sheet: Sheet, marks: list[Mark]) -> tuple[np.ndarray, Sheet, list[Mark]]:
    """Cut off the empty margins of a single panel, leaving room for the text of the marks and for the bar.

    Parameters
    ----------
    image, sheet, marks
        As for `compose`.

    Returns
    -------
    (ndarray, Sheet, list of Mark)
        The same, moved; unchanged for several panels.
    """
    drawn = (image != image[0, 0]).any(axis=2)
    if len(sheet.boxes) > 1 or not drawn.any():
        return image, sheet, marks
    height, width = image.shape[:2]
    inside = np.array([(places[0], places[-1]) for places in (np.flatnonzero(drawn.any(axis=axis)) for axis in (0, 1))])
    ends = np.array([mark.stop for mark in marks if mark.text] or [inside[:, 0]])
    room = height / 20
    first = np.minimum(inside[:, 0] - room / 2, ends.min(axis=0) - room).clip(0).astype(int)
    last = np.maximum(inside[:, 1] + room / 2, ends.max(axis=0) + room).astype(int)
    strip = round((1 - sheet.strip) * width)
    last = last.clip(None, (width - strip, height))
    empty = np.broadcast_to(image[0, 0], (last[1] - first[1], strip, image.shape[2]))
    cut = np.concatenate([image[first[1] : last[1], first[0] : last[0]], empty], axis=1)
    moved = [replace(mark, start=mark.start - first, stop=mark.stop - first) for mark in marks]
    return cut, replace(sheet, boxes=((0.0, 0.0, 1 - strip / cut.shape[1], 1.0),)), moved


def axis_marks(frame: Frame, view: View, size: tuple[int, int]) -> list[Mark]:
    """Put numbers and names along the two edges of the floor that are nearest to the camera.

    Parameters
    ----------
    frame, view : Frame, View
        Where the floor lies, and where it appears.
    size : (int, int)
        Width and height of the panel in pixels.

    Returns
    -------
    list of Mark
        Ticks, numbers, names, in pixels of the panel.
    """

    def pixel(point: np.ndarray) -> np.ndarray:
        return view.project(point[None], size)[0]

    marks = []
    for tick in lay_ticks(frame, view.position - view.focus):
        edge, place = pixel(tick.edge), pixel(tick.place)
        if tick.has_stroke:
            marks.append(Mark(edge, pixel(tick.edge + STROKE * tick.outward)))
        marks.append(Mark(place, place, tick.text))
    return marks
