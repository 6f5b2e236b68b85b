"""A plane as a map: contour lines as in Li et al. (2018), figure 5, filled contours or a heat map."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import xarray as xr
from matplotlib import rcParams
from matplotlib.colors import BoundaryNorm
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter
from scipy.spatial import cKDTree

from lltoolkit.errors import require_choice
from lltoolkit.plots.cells import edges, mark_empty_cells, mark_filled_cells, mark_minimizer
from lltoolkit.plots.field import Field, axis_label, pick_plane, tell_filled
from lltoolkit.plots.relief import Relief, smooth_relief
from lltoolkit.plots.scale import Levels, Scale, choose_scale, number
from lltoolkit.plots.series import wrap_label
from lltoolkit.plots.style import FRACTION_COLORS, LOSS_COLORS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.contour import ContourSet

Form: TypeAlias = Literal["lines", "filled", "heat"]
FORMS = ("lines", "filled", "heat")
_DARK_ENOUGH = 0.8  # of viridis and cividis, for lines and numbers on white
_FINE = 160  # points per axis of the grid on which lines are traced


class _FittingLocator(FixedLocator):
    """Some of the given ticks, at equal strides: as many as the axis has room for."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        """Choose them, whatever the limits."""
        return self.locs[:: -(-len(self.locs) // max(2, self.axis.get_tick_space()))]


def plot_contour(
    surface: xr.Dataset,
    *,
    var: str = "loss",
    split: str = "train",
    levels: Levels = "auto",
    form: Form = "filled",
    clip: float | None = None,
    smooth: bool = True,
    labels: bool = True,
    minimizer: bool = True,
    colorbar: bool | None = None,
    cmap: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draw a two-dimensional surface as a map.

    Parameters
    ----------
    surface : xr.Dataset
        A surface with two axes; missing cells, NaN and inf are allowed and shown as such.
    var : str
        What to draw: ``"loss"``, ``"accuracy"`` or another variable.
    split : str
        Split of the data.
    levels : "auto", "log", "linear", "paper" or array of float
        ``"log"``: 1, 2, 5, 10, ...; ``"linear"``: round numbers in equal steps; ``"paper"``: 0.1 to 9.6
        in steps of 0.5, after the code of Li et al. (2018); ``"auto"``: log for a loss, linear for the rest; or
        ascending numbers in units of the variable.
    form : {"filled", "lines", "heat"}
        Filled contours with lines; coloured lines alone, as the paper's figure 5; or the cells as they were measured.
    clip : float, optional
        Highest value told apart; by default the highest there is, unless a few cells reach far beyond the rest.
        The colour bar's label says where and how much was clipped.
    smooth : bool
        Trace lines on a cubic spline through the cells (of log10 for a log scale) instead of straight pieces
        between them. Cells of ``form="heat"`` are never smoothed.
    labels : bool
        Write the values of some levels on their lines.
    minimizer : bool
        Mark the origin, where the minimizer is, if the plane holds it.
    colorbar : bool, optional
        Default: unless the lines carry labels and its label has nothing more to tell.
    cmap : str, optional
        A matplotlib colour map; default viridis for a loss, cividis for the rest.
    ax : Axes, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes
        With equal scales on both axes unless one span is more than three times the other. Cells not yet computed are
        grey, cells that gave NaN or inf are hatched, both counted in a legend. A dot marks a cell that was interpolated
        or estimated from a sample; the colour bar's label counts them.

    Raises
    ------
    ValueError
        If a choice is unknown, or `surface` has no such plane, variable or split.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = xr.DataArray(0.01 + np.add.outer(axis**2, axis**2), coords={"alpha": axis, "beta": axis}, name="loss")
    >>> ax = plot_contour(bowl.to_dataset(), ax=Figure().subplots())
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('$\\alpha$', '$\\beta$')
    """
    require_choice("form", form, FORMS)
    field = pick_plane(surface, var, split)
    scale = choose_scale([field], levels, clip)
    ax = new_axes() if ax is None else ax
    mappable = draw_map(ax, field, scale, form=form, smooth=smooth, labels=labels, cmap=cmap)
    if minimizer:
        mark_minimizer(ax, field)
    must_tell = form != "lines" or not labels or scale.note or tell_filled([field])
    if field.finite.size and (colorbar or (colorbar is None and must_tell)):
        add_colorbar(ax, mappable, scale, field)
    return ax


def draw_map(
    ax: "Axes",
    field: Field,
    scale: Scale,
    *,
    form: Form = "filled",
    smooth: bool = True,
    labels: bool = True,
    cmap: str | None = None,
) -> "ScalarMappable":
    """Draw a field on given axes and scale; `plot_contour` and `plot_grid` in common.

    Parameters
    ----------
    ax : Axes
        Where.
    field, scale : Field, Scale
        What, and in which levels and colours.
    form, smooth, labels, cmap
        As in `plot_contour`.

    Returns
    -------
    ScalarMappable
        For a colour bar: the scale's colours without gaps.
    """
    from matplotlib.cm import ScalarMappable

    banded = form == "filled" and not scale.constant
    mappable = ScalarMappable(scale.bands() if banded else scale.norm(), _choose_cmap(cmap, field, form))
    mark_empty_cells(ax, field)
    if field.finite.size:
        if form == "heat" or scale.constant or min(field.values.shape) < 2:
            _draw_cells(ax, field, scale, mappable)
        else:
            _draw_lines(ax, field, scale, form, smooth, labels, mappable)
        inks = np.full(field.values.shape, "0.4") if form == "lines" else _readable_on(mappable, field.values)
        mark_filled_cells(ax, field, inks)
    first, second = field.first, field.second
    outline = edges if form == "heat" else _unless_single
    ax.set(xlim=outline(first)[[0, -1]], ylim=outline(second)[[0, -1]])
    ax.set(xlabel=axis_label(field.axes[0]), ylabel=axis_label(field.axes[1]))
    spans = sorted([np.ptp(first), np.ptp(second)])
    ax.locator_params(nbins=5)
    ax.set_aspect("equal" if 0 < spans[1] <= 3 * spans[0] else "auto")
    return mappable


def _choose_cmap(cmap: str | None, field: Field, form: Form) -> "str | Colormap":
    """Choose colours; lines on white paper go without the lightest of the default, which would be lost."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    name = cmap or (LOSS_COLORS if field.is_loss else FRACTION_COLORS)
    return name if cmap or form != "lines" else ListedColormap(colormaps[name](np.linspace(0, _DARK_ENOUGH, 256)))


def _unless_single(points: np.ndarray) -> np.ndarray:
    return points if len(points) > 1 else edges(points)  # a single row of cells has no extent but its own


def _draw_cells(ax: "Axes", field: Field, scale: Scale, mappable: "ScalarMappable") -> None:
    shown = np.ma.masked_where(~field.drawn, field.values)
    # Values at or below 0 have no logarithm and would come out as holes; they take the lowest colour.
    shown = np.ma.clip(shown, scale.low, None) if scale.log else shown
    ax.pcolormesh(
        *(edges(field.first), edges(field.second), shown.T),
        norm=mappable.norm,
        cmap=mappable.cmap,
        rasterized=field.values.size > 10_000,  # a vector file stays under a megabyte
    )
    if scale.constant:
        words = f"constant: {number(scale.lowest)}"
        ax.annotate(words, (0.5, 0.75), xycoords="axes fraction", ha="center", va="center", color="white")


def _draw_lines(
    ax: "Axes", field: Field, scale: Scale, form: Form, smooth: bool, labels: bool, mappable: "ScalarMappable"
) -> None:
    relief = map_relief(field, scale, _FINE if smooth else 0)
    grid = (relief.first, relief.second, np.ma.masked_where(relief.hole, relief.height).T)
    colors = {"norm": mappable.norm, "cmap": mappable.cmap}
    if form == "filled":
        bands = ax.contourf(*grid, levels=scale.levels, extend=scale.extend, **colors)
        bands.set_edgecolor("face")  # else viewers show white hairlines between the bands of a PDF
        bands.set_linewidth(0.2)
    inside = scale.levels[(scale.levels > grid[2].min()) & (scale.levels < grid[2].max())]
    if not inside.size:
        return
    style = {**colors, "linewidths": 0.9}
    if form == "filled":
        style = {"colors": _readable_on(mappable, inside).tolist(), "alpha": 0.55, "linewidths": 0.45}
    lines = ax.contour(*grid, levels=inside, negative_linestyles="solid", **style)
    chosen = [level for level in inside if level in scale.major()]
    if labels and (places := _label_places(lines, chosen)):
        texts = ax.clabel(lines, chosen, fmt=number, fontsize="x-small", inline_spacing=2, manual=places)
        for text in texts:
            text.set_alpha(1.0)


def _label_places(lines: "ContourSet", chosen: list[float]) -> list[tuple[float, float]]:
    """Choose points on the longest lines of some levels: away from the border, which would cut them, and each other."""
    ax = lines.axes
    across, along = ax.dataLim.intervalx, ax.dataLim.intervaly
    low, span = np.array([across[0], along[0]]), np.array([np.ptp(across), np.ptp(along)])
    paths = lines.get_paths()
    places: list[np.ndarray] = []
    for level, path in zip(lines.levels, paths, strict=True):
        if level not in chosen or not len(path.vertices):
            continue
        rest = [(other.vertices - low) / span for other in paths if other is not path and len(other.vertices)]
        neighbours = cKDTree(np.concatenate(rest)) if rest else None
        pieces = [(points - low) / span for points in path.to_polygons(closed_only=False)]
        lengths = [np.linalg.norm(np.diff(piece, axis=0), axis=1).sum() for piece in pieces]
        for index in np.argsort(lengths)[::-1][:2]:
            piece = pieces[index]
            closed = np.array_equal(piece[0], piece[-1])
            inner = piece if closed else piece[len(piece) // 8 : -len(piece) // 8]
            inner = inner[((inner > 0.06) & (inner < 0.94)).all(axis=1)]
            if neighbours is not None and len(inner):
                inner = inner[neighbours.query(inner)[0] > 0.02]  # a number across crowded lines cannot be read
            if lengths[index] < 0.3 or not len(inner):
                continue
            # As far as it can from those before and from the mark of the minimizer.
            others = np.array([*places, -low / span])
            distance = np.linalg.norm(inner[:, None] - others[None], axis=2).min(axis=1)
            if distance.max() > 0.12:
                places.append(inner[distance.argmax()])
    return [tuple((low + place * span).tolist()) for place in places]


def _readable_on(mappable: "ScalarMappable", values: np.ndarray) -> np.ndarray:
    """Choose white or black for what is written over the colours of some values."""
    colors = mappable.to_rgba(np.ma.masked_invalid(values))[..., :3]
    return np.where(colors @ [0.3, 0.59, 0.11] < 0.45, "white", "black")


def map_relief(field: Field, scale: Scale, n_points: int) -> Relief:
    """Lay the surface through a field's cells on which lines are traced.

    Parameters
    ----------
    field, scale : Field, Scale
        What to draw, in which levels.
    n_points : int
        As in `smooth_relief`.

    Returns
    -------
    Relief
        Heights in units of the field, cut out where it has no value. A loss is interpolated in log10, since it
        runs over decades, whatever the levels.
    """
    values = np.where(field.drawn, field.values, np.nan)
    # A ceiling well above the colours: one cell of 1e7 among tens would make the spline ring all around it.
    if not (scale.log or (field.is_loss and field.finite.min() > 0)):
        ceiling = 2 * scale.high - scale.low
        return smooth_relief(field.first, field.second, np.minimum(values, ceiling), n_points, bounded=True)
    positive = field.finite[field.finite > 0]
    floor = min(positive.min(), scale.low) / 10 if scale.log else positive.min()
    logs = np.log10(np.clip(values, max(floor, 1e-300), 10 * scale.high))
    relief = smooth_relief(field.first, field.second, logs, n_points, bounded=True)
    return replace(relief, height=10.0**relief.height)


def add_colorbar(axes: "Axes | Sequence[Axes]", mappable: "ScalarMappable", scale: Scale, *fields: Field) -> "Colorbar":
    """Put a colour bar to the right of `axes` whose label says what was clipped and how many cells were filled in.

    Parameters
    ----------
    axes : Axes or sequence of Axes
        What it belongs to: one, as high as the axes themselves; or several, beside all of them.
    mappable, scale : ScalarMappable, Scale
        From `draw_map`.
    *fields : Field
        What is drawn; the first gives the label.

    Returns
    -------
    Colorbar
        As matplotlib's.
    """
    several = not hasattr(axes, "figure")
    figure = axes[0].figure if several else axes.figure
    # An inset has the height of the picture also where equal scales leave room above and below it.
    place = {"ax": axes, "aspect": 35, "pad": 0.02} if several else {"cax": axes.inset_axes((1.04, 0, 0.045, 1))}
    # The norm of bands knows on which sides it extends; other norms must be told.
    extend = {} if isinstance(mappable.norm, BoundaryNorm) else {"extend": scale.extend}
    label = _wrapped("\n".join(filter(None, [scale.labelled(fields[0].label), tell_filled(fields)])), axes)
    bar = figure.colorbar(mappable, label=label, ticks=_FittingLocator(scale.major()), **place, **extend)
    bar.formatter = FuncFormatter(lambda value, _: scale.write(value))
    bar.outline.set_linewidth(0.5)
    bar.ax.yaxis.label.set_linespacing(1.2)
    bar.ax.minorticks_off()
    return bar


def _wrapped(label: str, axes: "Axes | Sequence[Axes]") -> str:
    """Break the lines of a label that would hang over the figure's edges, above and below its axes."""
    boxes = [ax.bbox for ax in np.atleast_1d(axes)]
    # In points; the numbers and names of the axes, and the room above, leave a label a little more than their height.
    height = (
        1.12 * 72 * (max(box.y1 for box in boxes) - min(box.y0 for box in boxes)) / np.atleast_1d(axes)[0].figure.dpi
    )
    font = FontProperties(size=rcParams["axes.labelsize"])
    lines = []
    for line in label.split("\n"):
        width, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=True)
        lines.append(line if width <= height else wrap_label(line, max(12, int(len(line) * height / width))))
    return "\n".join(lines)
