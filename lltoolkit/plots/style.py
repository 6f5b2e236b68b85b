"""How figures look: sizes for print, colours, embedded fonts, what a caption should say. No global state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lltoolkit.errors import require_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Readable in grey and by the colour-blind, and those of the field. A loss is dark where it is low.
LOSS_COLORS = "viridis"
FRACTION_COLORS = "cividis"
BLUE, RED = "#144d94", "#d4533f"  # loss and accuracy along a line, as in the paper; they differ in grey too
MISSING_GREY = "#d0d0d0"
HATCH_GREY = "#8a8a8a"

# Width of one column and of the text in inches, and the size of the figure's text in points: our own measures.
VENUES: dict[str, tuple[float, float, float]] = {
    "neurips": (5.5, 5.5, 9),
    "icml": (3.25, 6.75, 8),
    "iclr": (5.5, 5.5, 9),
    "cvpr": (3.25, 6.875, 8),
    "jmlr": (6.0, 6.0, 10),
    "slides": (6.0, 12.0, 15),
}
GOLDEN = 0.618

# Read by matplotlib when a figure is written: TrueType instead of Type 3 fonts, which many conferences refuse; SVG
# text as paths, since the reader of an SVG rarely has the font; a fixed salt for the same bytes each time.
WRITING = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "lltoolkit"}
UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


# Of a layout, in inches and in turns; in the worst of all venues and shapes five passes were needed.
_STILL, _PASSES, _ROUNDS = 1e-3, 8, 6
_EDGE = 0.03  # inches that stay white; matplotlib's own pads are wider


class PrintFigure(Figure):
    """A figure that embeds its fonts and writes the same bytes for the same picture, whenever it is saved.

    It belongs to no window and no pyplot state; notebooks show it when it is the value of a cell. ``print_dpi`` is
    the resolution of its pixels where `savefig` is given none.
    """

    print_dpi = 300.0
    _box: np.ndarray | None = None

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write the figure; arguments as in matplotlib.

        Parameters
        ----------
        fname : str, Path or file
            The suffix gives the format, unless ``format`` does.
        **kwargs
            As for ``matplotlib.figure.Figure.savefig``.
        """
        kwargs.setdefault("dpi", self.print_dpi)
        form = kwargs.get("format") or str(fname).rpartition(".")[2].lower()
        kwargs["metadata"] = {**UNDATED.get(form, {}), **(kwargs.get("metadata") or {})} or None
        with rc_context(WRITING), self.settled():
            super().savefig(fname, **kwargs)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Lay the figure out until nothing moves and nothing hangs over its edges, and hold it there for the block.

        Where equal scales leave room, one pass of matplotlib's layouts measures labels at places that the same pass
        changes; and they pass over the labels of 3D axes. Without such a layout nothing is done.
        """
        engine = self.get_layout_engine()
        if not isinstance(engine, ConstrainedLayoutEngine):
            yield
            return
        for _ in range(_ROUNDS):
            box, size = self._lay_out(), self.get_size_inches()
            outside = np.maximum([_EDGE - box[0], box[1] + _EDGE - size], 0)
            if outside.max() < _STILL:
                break
            left, bottom, width, height = engine.get()["rect"]
            low, cut = outside[0] / size, outside.sum(axis=0) / size
            engine.set(rect=(left + low[0], bottom + low[1], width - cut[0], height - cut[1]))
        self.set_layout_engine("none")
        try:
            yield
        finally:
            self.set_layout_engine(engine)

    def fit_height(self) -> None:
        """Give the figure the height of what is drawn; its width stays."""
        pads = 2 * self.get_layout_engine().get()["h_pad"]
        for _ in range(_ROUNDS):
            self._box, height = None, self.get_figheight()
            self.set_figheight(float(np.ptp(self._lay_out(n_passes=1)[:, 1])) + pads)
            if abs(self.get_figheight() - height) < _EDGE:
                break

    def _lay_out(self, n_passes: int = _PASSES) -> np.ndarray:
        """Repeat the layout until it moves nothing; return the box of what is drawn, in inches, shape ``(2, 2)``."""
        for _ in range(n_passes):
            before, places = self._box, [(ax, ax.get_position(original=True)) for ax in self.axes]
            if before is None and any(ax.name == "3d" for ax in self.axes):
                self.draw_without_rendering()  # which tells where things are in 3D
            self.get_layout_engine().execute(self)  # without drawing all contours once more
            self._box = self.get_tightbbox().get_points()
            if before is not None and np.abs(self._box - before).max() < _STILL:
                for ax, place in places:  # back by a hair: saved again, the figure has the same bytes
                    ax.set_position(place)
                    ax.set_in_layout(True)  # which a position by hand ends
                break
        return self._box

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


@contextmanager
def figure(
    venue: str | tuple[float, float] = "neurips",
    *,
    columns: Literal[1, 2] = 1,
    n_rows: int = 1,
    n_columns: int = 1,
    aspect: float | None = None,
    subplot_kw: Mapping[str, Any] | None = None,
) -> Iterator[tuple[PrintFigure, Any]]:
    """Make a figure at the size and with the type of a venue, without touching global settings.

    Parameters
    ----------
    venue : str or (width, height)
        ``"neurips"``, ``"icml"``, ``"iclr"``, ``"cvpr"``, ``"jmlr"``, ``"slides"``, or inches.
    columns : {1, 2}
        How many columns of the page the figure spans; venues set in one column have one width.
    n_rows, n_columns : int
        Grid of axes.
    aspect : float, optional
        Height over width of each axes; default 0.618.
    subplot_kw : mapping, optional
        For each axes, for example ``{"projection": "3d"}``.

    Yields
    ------
    (PrintFigure, Axes or ndarray of Axes)
        As from ``Figure.subplots``. Inside the block matplotlib's text sizes and lines are the venue's; the
        figure can be saved inside or after it, with embedded fonts either way.

    Raises
    ------
    ValueError
        If `venue` or `columns` is unknown or a size is not positive.

    Examples
    --------
    >>> with figure("icml") as (fig, ax):
    ...     line = ax.plot([0, 1])
    >>> float(fig.get_size_inches()[0])
    3.25
    """
    width, height, size = page_size(venue, columns)
    height = height or width * n_rows / n_columns * (aspect or GOLDEN)
    with rc_context(page_style(size, serif=venue != "slides")):
        fig = PrintFigure(figsize=(width, height), layout="constrained")
        yield fig, fig.subplots(n_rows, n_columns, subplot_kw=dict(subplot_kw or {}))


def page_size(venue: str | tuple[float, float], columns: int) -> tuple[float, float | None, float]:
    """Look up the width of a figure.

    Parameters
    ----------
    venue, columns
        As in `figure`.

    Returns
    -------
    (float, float or None, float)
        Width and height in inches, the height None where the content decides; size of text in points.

    Raises
    ------
    ValueError
        If `venue` or `columns` is unknown or a size is not positive.
    """
    if not isinstance(venue, str):
        width, height = map(float, venue)
        if not (width > 0 and height > 0):
            raise ValueError(f"venue={venue!r} is no size in inches; both numbers must be positive.")
        return width, height, 9.0
    require_choice("venue", venue, VENUES)
    require_choice("columns", columns, (1, 2))
    column, text, size = VENUES[venue]
    return (column if columns == 1 else text), None, size


def page_style(size: float, serif: bool = True) -> dict[str, Any]:
    """Return matplotlib settings for ``rc_context``, for figures with text of `size` points."""
    # STIX matches the Times of the conference styles and ships with matplotlib: no LaTeX, no installed font.
    family = {"font.family": "STIXGeneral", "mathtext.fontset": "stix"} if serif else {}
    return {
        **family,
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "figure.titlesize": size + 1,
        "legend.fontsize": size - 1,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.2,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
        **WRITING,
    }


def new_axes(projection: str | None = None) -> "Axes":
    """Open a pyplot figure with one axes, for a plot that was given none; notebooks show it by themselves.

    Returns
    -------
    Axes
        Of a `PrintFigure` with a constrained layout.
    """
    from matplotlib import pyplot  # here: importing plots must not choose a backend

    fig = pyplot.figure(FigureClass=PrintFigure, layout="constrained")
    return fig.add_subplot(projection=projection)


def provenance_of(surface: xr.Dataset, split: str | None = None) -> str:
    """Say in one line how a result was made, for a caption.

    Parameters
    ----------
    surface : xr.Dataset
        A result; what its attributes do not tell is left out.
    split : str, optional
        The split that is shown.

    Returns
    -------
    str
        For example ``"300 train examples; filter-normalized directions; frozen batch-norm statistics"``.

    Examples
    --------
    >>> provenance_of(xr.Dataset(attrs={"n_examples": 300, "normalize": "filter", "buffers": "frozen"}), "train")
    '300 train examples; filter-normalized directions; frozen batch-norm statistics'
    """
    attrs = surface.attrs
    parts = []
    if (count := attrs.get("n_examples", "none")) not in {"none", "", "all"}:
        parts.append(f"{count} {split + ' ' if split else ''}examples")
    elif split:
        parts.append(f"{split} examples")
    if (normalize := attrs.get("normalize", "none")) != "none":
        parts.append(f"{normalize}-normalized directions")
    buffers = {"frozen": "frozen", "interpolate": "interpolated", "recompute": "recomputed"}
    if (policy := attrs.get("buffers", "none")) in buffers:
        parts.append(f"{buffers[policy]} batch-norm statistics")
    return "; ".join(parts)
