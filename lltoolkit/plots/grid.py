"""Several surfaces side by side on one scale: the paper's main layout."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import rc_context

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.labelled.schema import STATUS, axes_of
from lltoolkit.plots.cells import mark_minimizer
from lltoolkit.plots.contour import FORMS, Form, add_colorbar, draw_map
from lltoolkit.plots.field import Field, pick_plane
from lltoolkit.plots.scale import Levels, choose_scale
from lltoolkit.plots.series import wrap_label
from lltoolkit.plots.style import PrintFigure, page_size, page_style, provenance_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TINY = 1.4  # inches of a panel with its ticks, below which numbers would cover its lines


@dataclass(frozen=True)
class _Table:
    """Which surface stands where: `keys` row by row, None where there is none; `rows` is empty without headings."""

    keys: list[list[Any]]
    rows: list[str]
    columns: list[str]


def plot_grid(
    surfaces: Mapping[Any, xr.Dataset],
    *,
    var: str = "loss",
    split: str = "train",
    levels: Levels = "auto",
    form: Form = "filled",
    clip: float | None = None,
    smooth: bool = True,
    labels: bool = True,
    captions: Mapping[Any, str] | None = None,
    n_columns: int | None = None,
    venue: str | tuple[float, float] = "neurips",
    columns: int = 2,
    cmap: str | None = None,
    provenance: bool = False,
) -> "Figure":
    """Draw surfaces side by side on the same levels and colours, so that they can be compared.

    Parameters
    ----------
    surfaces : mapping of str, or of (str, str), to xr.Dataset
        Title to surface, drawn row by row. Or row and column to surface, as ``{("SGD", "wd 0"): surface}``: a table
        with a heading for each row and column, in their order; pairs that are not given are left open.
    var, split, levels, form, clip, smooth, labels, cmap
        As in `plot_contour`; the levels span all surfaces together. Small panels have no numbers on
        their lines.
    captions : mapping of str, or of (str, str), to str, optional
        Second line of a title. Default: the error on the test examples at the minimizer, as the paper's figures have
        it, where the surface holds it: ``"test error 2.4 %"``; a line below tells the size of a sample. ``{}`` for
        none.
    n_columns : int, optional
        Panels per row; default all in one row up to four. Not for a table.
    venue, columns
        Size and type, as in `figure`.
    provenance : bool
        Write below how the surfaces were made, as far as they agree.

    Returns
    -------
    Figure
        With one colour bar; it belongs to no pyplot state, ``fig.savefig("fig.pdf")`` writes it. Panels share their
        axes where all have the same axes and ranges; else each has its own.

    Raises
    ------
    TypeError
        If `surfaces` is no mapping of Datasets.
    ValueError
        If there is no surface, a choice is unknown, the units differ, or a caption has no surface; what is wrong with
        one of several surfaces names it.

    Examples
    --------
    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = xr.DataArray(0.01 + np.add.outer(axis**2, axis**2), coords={"alpha": axis, "beta": axis}, name="loss")
    >>> fig = plot_grid({("SGD", "wd 0"): bowl.to_dataset(), ("SGD", "wd 5e-4"): bowl.to_dataset()})
    >>> [ax.get_title() for ax in fig.axes]
    ['wd 0', 'wd 5e-4']
    """
    require_choice("form", form, FORMS)
    _require_mapping(surfaces)
    if unknown := [key for key in captions or {} if key not in surfaces]:
        named = [_name(key) for key in surfaces]
        raise ValueError(f"captions has {unknown[0]!r}, which is none of {', '.join(named)}."
                         f"{did_you_mean(_name(unknown[0]), named)}")  # fmt: skip
    told = {key: _test_error(surface) for key, surface in surfaces.items()} if captions is None else captions
    fields = {key: _field(key, surface, var, split) for key, surface in surfaces.items()}
    if len(units := {field.label for field in fields.values()}) > 1:
        raise ValueError(f"these surfaces hold different things and cannot share a scale: {', '.join(sorted(units))}.")
    scale = choose_scale(list(fields.values()), levels, clip)
    table = _arrange(list(surfaces), n_columns)

    n_rows, n_columns = len(table.keys), len(table.keys[0])
    width, height, size = page_size(venue, columns)
    with rc_context(page_style(size, serif=venue != "slides")):
        panel = (width - 0.8) / n_columns
        fig = PrintFigure(figsize=(width, height or n_rows * (panel + 0.45) + 0.2), layout="compressed")
        fig.get_layout_engine().set(wspace=0.06, hspace=0.06)
        shared = _agree(list(fields.values()))
        axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex=shared, sharey=shared)
        shown = []
        for place in np.ndindex(n_rows, n_columns):
            ax, key = axes[place], table.keys[place[0]][place[1]]
            if key is None and not table.rows:
                ax.remove()
                continue
            if key is None:
                _leave_open(ax)
            else:
                numbered = labels and panel > _TINY
                mappable = draw_map(ax, fields[key], scale, form=form, smooth=smooth, labels=numbered, cmap=cmap)
                mark_minimizer(ax, fields[key])
                ax.locator_params(nbins=5 if panel > _TINY else 3)
                shown.append(ax)
            if shared and key is not None:
                _label_outer(ax, table, *place)
            width_in_letters = max(8, int(0.7 * 72 * panel / (0.45 * size)))  # ticks and gaps take the rest
            _entitle(ax, table, place, key, told.get(key, ""), width_in_letters)
        fig.align_ylabels(axes[:, 0])
        if any(field.finite.size for field in fields.values()):
            add_colorbar(shown if n_rows > 1 else shown[-1], mappable, scale, *fields.values())
        below = _tell_samples(surfaces.values()) if captions is None and any(told.values()) else set()
        below |= {provenance_of(surface, split) for surface in surfaces.values()} if provenance else set()
        if below:
            fig.supxlabel(" | ".join(sorted(below)), fontsize=size - 2, color="0.35")
        if height is None:
            fig.fit_height()
    return fig


def _require_mapping(surfaces: Mapping[Any, xr.Dataset]) -> None:
    if not isinstance(surfaces, Mapping) or isinstance(surfaces, xr.Dataset):  # a Dataset is a mapping, too
        raise TypeError(
            f"surfaces is a {type(surfaces).__name__}; give {{'title': surface}}, or {{('row', 'column'): surface}}. "
            "One surface alone is drawn by plot_contour(surface)."
        )
    if not surfaces:
        raise ValueError("surfaces is empty; give one or more, as {'title': surface}.")


def _name(key: Hashable) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _field(key: Hashable, surface: xr.Dataset, var: str, split: str) -> Field:
    try:
        return pick_plane(surface, var, split)
    except (TypeError, ValueError) as error:
        raise type(error)(f"surfaces[{key!r}]: {error}") from error


def _arrange(keys: Sequence[Any], n_columns: int | None) -> _Table:
    """Lay the panels out: a table where all keys are pairs, else row by row."""
    pairs = [isinstance(key, tuple) and len(key) == 2 for key in keys]
    if all(pairs):
        if n_columns is not None:
            raise ValueError(f"n_columns={n_columns!r}: a table has a column for each second name; leave it out.")
        rows, columns = (list(dict.fromkeys(key[place] for key in keys)) for place in (0, 1))
        table = [[(row, column) if (row, column) in keys else None for column in columns] for row in rows]
        return _Table(table, [str(row) for row in rows], [str(column) for column in columns])
    if any(pairs) or not all(isinstance(key, str) for key in keys):
        wrong = next(key for key in keys if not isinstance(key, str))
        raise ValueError(f"surfaces has the key {wrong!r}; name all of them by one title, or all by (row, column).")
    n_columns = n_columns or min(len(keys), 4)
    padded = [*keys, *[None] * (-len(keys) % n_columns)]
    return _Table([padded[place : place + n_columns] for place in range(0, len(padded), n_columns)], [], [])


def _agree(fields: Sequence[Field]) -> bool:
    """Say whether all panels have the same axes over the same ranges, so that one set of ticks is enough."""
    ranges = np.array([[*field.first[[0, -1]], *field.second[[0, -1]]] for field in fields])
    shapes = {field.values.shape for field in fields}  # the border cells of a heat map are as wide as the others
    return len({field.axes for field in fields}) == 1 and len(shapes) == 1 and bool(np.allclose(ranges, ranges[0]))


def _label_outer(ax: "Axes", table: _Table, row: int, column: int) -> None:
    """Take ticks' numbers and labels away where the next panel's, to the left or below, say the same."""
    left = column > 0 and table.keys[row][column - 1] is not None
    below = row + 1 < len(table.keys) and table.keys[row + 1][column] is not None
    ax.tick_params(labelleft=not left, labelbottom=not below)
    ax.set(**{"ylabel": ""} if left else {}, **{"xlabel": ""} if below else {})


def _entitle(ax: "Axes", table: _Table, place: tuple[int, ...], key: Any, caption: str, width: int) -> None:
    """Write the title; a table has its columns' headings over the first row, its rows' left of the first column."""
    heading = (table.columns[place[1]] if not place[0] else "") if table.rows else key
    ax.set_title("\n".join(wrap_label(text, width) for text in (heading, caption) if text), linespacing=1.1)
    if table.rows and not place[1]:
        ax.set_ylabel(f"{table.rows[place[0]]}\n{ax.get_ylabel()}".rstrip(), linespacing=1.1)


def _leave_open(ax: "Axes") -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    ax.set_box_aspect(1)
    ax.annotate("not given", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color="0.6")


def _test_error(surface: xr.Dataset) -> str:
    """Tell the error on the test examples at the origin, where the surface holds it and it was computed."""
    if "accuracy" not in surface or "test" not in surface.get("split", xr.DataArray([])).values:
        return ""
    origin = dict.fromkeys(axes_of(surface), 0.0)
    if not all((surface[axis] == 0).any() for axis in origin):
        return ""
    cell = surface.sel(origin)
    accuracy = cell["accuracy"].sel(split="test")
    if accuracy.ndim or not np.isfinite(accuracy) or cell.get("status", STATUS["computed"]) != STATUS["computed"]:
        return ""
    return f"test error {100 * (1 - float(accuracy)):.1f} %"


def _tell_samples(surfaces: Iterable[xr.Dataset]) -> set[str]:
    """Say where test errors were measured on some examples only."""
    counts = {surface.attrs.get("n_examples", "all") for surface in surfaces}
    return {f"test errors on {count} examples" for count in counts if isinstance(count, int | np.integer)}
