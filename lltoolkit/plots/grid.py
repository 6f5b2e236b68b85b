"""Several surfaces side by side on one scale: the paper's main layout."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xarray as xr
from matplotlib import rc_context

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.plots.contour import FORMS, Form, add_colorbar, draw_map, mark_minimizer
from lltoolkit.plots.field import pick_plane
from lltoolkit.plots.scale import Levels, choose_scale
from lltoolkit.plots.style import PrintFigure, page_size, page_style, provenance_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_grid(
    surfaces: Mapping[str, xr.Dataset],
    *,
    var: str = "loss",
    split: str = "train",
    levels: Levels = "auto",
    form: Form = "filled",
    clip: float | None = None,
    smooth: bool = True,
    labels: bool = True,
    captions: Mapping[str, str] | None = None,
    n_columns: int | None = None,
    venue: str | tuple[float, float] = "neurips",
    columns: int = 2,
    cmap: str | None = None,
    provenance: bool = False,
) -> "Figure":
    """Draw surfaces side by side on the same levels and colours, so that they can be compared.

    Parameters
    ----------
    surfaces : mapping of str to xr.Dataset
        Title to surface; drawn row by row.
    var, split, levels, form, clip, smooth, labels, cmap
        As in `plot_contour`; the levels span all surfaces together.
    captions : mapping of str to str, optional
        Second line of a title, for example ``{"with": "test error 2.4 %"}``.
    n_columns : int, optional
        Panels per row; default all in one row up to four.
    venue, columns
        Size and type, as in `figure`.
    provenance : bool
        Write below how the surfaces were made, as far as they agree.

    Returns
    -------
    Figure
        With one colour bar; it belongs to no pyplot state, ``fig.savefig("fig.pdf")`` writes it.

    Raises
    ------
    ValueError
        If there is no surface, a choice is unknown, the units differ, or a caption has no surface.
    """
    require_choice("form", form, FORMS)
    if not surfaces:
        raise ValueError("surfaces is empty; give one or more, as {'title': surface}.")
    captions = dict(captions or {})
    if unknown := [key for key in captions if key not in surfaces]:
        raise ValueError(f"captions has {unknown[0]!r}, which is none of {', '.join(surfaces)}."
                         f"{did_you_mean(unknown[0], surfaces)}")  # fmt: skip
    fields = {title: pick_plane(surface, var, split) for title, surface in surfaces.items()}
    if len(units := {field.label for field in fields.values()}) > 1:
        raise ValueError(f"these surfaces hold different things and cannot share a scale: {', '.join(sorted(units))}.")
    scale = choose_scale(list(fields.values()), levels, clip)

    n_columns = n_columns or min(len(surfaces), 4)
    n_rows = -(-len(surfaces) // n_columns)
    width, height, size = page_size(venue, columns)
    with rc_context(page_style(size, serif=venue != "slides")):
        panel = (width - 0.8) / n_columns
        fig = PrintFigure(figsize=(width, height or n_rows * (panel + 0.45) + 0.2), layout="compressed")
        fig.get_layout_engine().set(wspace=0.06, hspace=0.06)
        axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex="col", sharey="row")
        for ax in axes.flat[len(surfaces) :]:
            ax.remove()
        shown = axes.flat[: len(surfaces)]
        for ax, (title, field) in zip(shown, fields.items(), strict=True):
            mappable = draw_map(ax, field, scale, form=form, smooth=smooth, labels=labels, cmap=cmap)
            mark_minimizer(ax, field)
            ax.set_title("\n".join(filter(None, [title, captions.get(title)])), linespacing=1.0)
            ax.label_outer()
        if any(field.finite.size for field in fields.values()):
            label = next(iter(fields.values())).label
            add_colorbar(list(shown) if n_rows > 1 else shown[-1], mappable, scale, label)
        if provenance:
            lines = {provenance_of(surface, split) for surface in surfaces.values()}
            fig.supxlabel(" | ".join(sorted(lines)), fontsize=size - 2, color="0.35")
    return fig
