"""A plane as a 3D surface by matplotlib, where there is no OpenGL. For the finest pictures: lltoolkit.render."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LightSource, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter

from lltoolkit.plots.field import Field, axis_label, count_cells, pick_plane, tell_filled
from lltoolkit.plots.relief import smooth_relief
from lltoolkit.plots.scale import Levels, Scale, choose_scale, number
from lltoolkit.plots.style import FRACTION_COLORS, LOSS_COLORS, new_axes

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d import Axes3D

_FINE = 180  # points per axis of the drawn mesh


def plot_surface(
    surface: xr.Dataset,
    *,
    var: str = "loss",
    split: str = "train",
    levels: Levels = "auto",
    clip: float | None = None,
    smooth: bool = True,
    floor: bool = True,
    elevation: float = 42.0,
    azimuth: float = -60.0,
    cmap: str | None = None,
    ax: "Axes3D | None" = None,
) -> "Axes3D":
    """Draw a two-dimensional surface in 3D, a loss on a log scale.

    Parameters
    ----------
    surface : xr.Dataset
        A surface with two axes.
    var, split, levels, clip
        As in `plot_contour`; ``levels`` are those of the floor and set the height of the box.
    smooth : bool
        Draw a cubic spline through the cells (of log10 for a log scale, kept between the values around) instead of
        flat pieces between them.
    floor : bool
        Draw the contour lines on the floor.
    elevation, azimuth : float
        Where to look from, in degrees.
    cmap : str, optional
        A matplotlib colour map; default viridis for a loss, cividis for the rest.
    ax : Axes3D, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes3D
        Heights are log10 of the values on a log scale, with ticks that say the values. What lies above the box is
        cut off at its top, cells without a finite value are left open; a note beside it says both.

    Raises
    ------
    ValueError
        If `ax` is flat, a choice is unknown, or `surface` has no such plane, variable or split.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = xr.DataArray(0.01 + np.add.outer(axis**2, axis**2), coords={"alpha": axis, "beta": axis}, name="loss")
    >>> ax = plot_surface(bowl.to_dataset(), ax=Figure().add_subplot(projection="3d"))
    >>> ax.get_zlabel()
    'loss'
    """
    if ax is not None and ax.name != "3d":
        raise ValueError("ax is a flat Axes; give one made with projection='3d', or none for a new figure.")
    field = pick_plane(surface, var, split)
    scale = choose_scale([field], levels, clip)
    ax = new_axes("3d") if ax is None else ax
    cmap = cmap or (LOSS_COLORS if field.is_loss else FRACTION_COLORS)

    low, high = np.log10([scale.low, scale.high]) if scale.log else (scale.low, scale.high)
    base = low - 0.35 * (high - low) if floor else low
    notes = [scale.note] if scale.note else []
    if field.finite.size and min(field.values.shape) > 1:
        heights = np.where(field.drawn, field.values, np.nan)
        if scale.log:
            heights = np.log10(np.maximum(heights, scale.low))
        # Above the box the spline may go on a little, so that the surface crosses the top at the right place.
        ceiling = high + 0.3 * (high - low)
        fine = _FINE if smooth else 0
        relief = smooth_relief(field.first, field.second, np.minimum(heights, ceiling), fine, bounded=True)
        # matplotlib does not cut 3D surfaces at the box; a flat lid would look like a measured plateau.
        shown = np.where(relief.hole | (relief.height > high), np.nan, relief.height).T
        grid = (*np.meshgrid(relief.first, relief.second), shown)
        norm = Normalize(low, high)
        colors = _shaded(relief.height.T, ScalarMappable(norm, cmap), relief.first, relief.second, high - low)
        ax.plot_surface(
            *grid,
            facecolors=colors,
            rcount=_FINE,
            ccount=_FINE,
            linewidth=0,
            antialiased=False,
            shade=False,
            rasterized=True,
        )
        lines = np.log10(scale.levels) if scale.log else scale.levels
        inside = lines[(lines > np.nanmin(shown)) & (lines < np.nanmax(shown))]
        if floor and inside.size:
            masked = np.ma.masked_invalid(shown)
            ax.contour(*grid[:2], masked, levels=inside, offset=base, cmap=cmap, norm=norm, linewidths=0.7)
    if min(field.values.shape) < 2:
        notes.append("a single row of cells is no surface: plot_slice draws it")
    if not field.drawn.all():
        notes.append(f"{count_cells(~field.drawn)} without a value left open")
    notes += [tell_filled([field]).removesuffix(" (dots)")] if tell_filled([field]) else []
    _dress(ax, field, scale, (base, high), "\n".join(notes))
    spans = [np.ptp(field.first) or 1.0, np.ptp(field.second) or 1.0]
    spans = spans if max(spans) <= 3 * min(spans) else [1.0, 1.0]
    ax.set_box_aspect((*(4 * np.array(spans) / max(spans)), 2.6 if floor else 2.0))
    ax.view_init(elevation, azimuth)
    return ax


def _shaded(
    heights: np.ndarray, colors: "ScalarMappable", first: np.ndarray, second: np.ndarray, box: float
) -> np.ndarray:
    """Return RGBA of each point, lit from the upper left so that bumps can be seen; shape ``(m, n, 4)``."""
    light = LightSource(azdeg=135, altdeg=50)
    # Slopes in units of the drawn box, whatever the units of the axes.
    steps = {"dx": np.ptp(first) / len(first), "dy": np.ptp(second) / len(second)}
    exaggeration = 0.6 * min(np.ptp(first), np.ptp(second)) / (box or 1.0)
    rgb = light.shade_rgb(
        colors.to_rgba(heights)[..., :3], heights, blend_mode="soft", vert_exag=exaggeration, fraction=0.55, **steps
    )
    return np.concatenate([rgb, np.ones((*heights.shape, 1))], axis=-1)


def _dress(ax: "Axes3D", field: Field, scale: Scale, box: tuple[float, float], notes: str) -> None:
    ax.set(xlabel=axis_label(field.axes[0]), ylabel=axis_label(field.axes[1]), zlabel=field.label, zlim=box)
    if notes:
        # Beside the axis it would run out of the figure, whose layout matplotlib does not work out in 3D.
        ax.text2D(0.0, 1.0, notes, transform=ax.transAxes, ha="left", va="top", fontsize="small", color="0.35")
    ticks = scale.major()
    if len(ticks) > 7:
        ticks = ticks[:: -(-len(ticks) // 7)]
    ax.zaxis.set_major_locator(FixedLocator(np.log10(ticks) if scale.log else ticks))
    write = (lambda height, _: scale.write(10.0**height)) if scale.log else (lambda height, _: number(height))
    ax.zaxis.set_major_formatter(FuncFormatter(write))
    ax.locator_params(axis="x", nbins=5)
    ax.locator_params(axis="y", nbins=5)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
        axis._axinfo["grid"].update(linewidth=0.3, color="0.85")  # matplotlib offers no other way for 3D
