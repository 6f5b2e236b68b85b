"""Sharpness while training: a measure over the steps, with the sharpness that the optimizer bears. Torch-free."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import rc_context

from lltoolkit.errors import did_you_mean
from lltoolkit.plots.field import label_of
from lltoolkit.plots.series import color_of, set_log_ticks, wrap_label
from lltoolkit.plots.style import PrintFigure, new_axes, page_size, page_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BESIDE = "lambda_max"  # the one measure that a threshold of stability is a statement about


def plot_training(
    table: xr.Dataset,
    measures: str | Sequence[str] | None,
    *,
    n_columns: int | None,
    venue: str | tuple[float, float],
    columns: int,
    ax: "Axes | None",
) -> "Figure | Axes":
    """Draw measures over the steps of a training, a panel for each; what `plot_sharpness` does with such a table.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness` of a run: dims ``(step, measure)``.
    measures, n_columns, venue, columns, ax
        As in `plot_sharpness`.

    Returns
    -------
    Figure or Axes
        `ax` where one was given.

    Raises
    ------
    ValueError
        If a measure is not in the table, or `ax` is given for several.
    """
    present = [str(name) for name in table["measure"].values]
    names = present if measures is None else [measures] if isinstance(measures, str) else list(measures)
    for name in names:
        if name not in present:
            raise ValueError(f"measure {name!r} is not in the table.{did_you_mean(name, present)}")
    if ax is not None:
        if len(names) > 1:
            raise ValueError(f"ax takes one measure, these are {len(names)}: {', '.join(names)}. Choose by measures=.")
        return plot_over_steps(table, names[0], ax=ax)
    width, height, size = page_size(venue, columns)
    n_columns = n_columns or min(2, len(names))
    n_rows = -(-len(names) // n_columns)
    with rc_context(page_style(size, serif=venue != "slides")):
        fig = PrintFigure(figsize=(width, height or n_rows * (0.6 * width / n_columns + 0.2)), layout="constrained")
        panels = fig.subplots(n_rows, n_columns, squeeze=False)
        for empty in panels.flat[len(names) :]:
            empty.remove()
        for panel, name in zip(panels.flat, names, strict=False):
            plot_over_steps(table, name, ax=panel)
    return fig


def plot_over_steps(table: xr.Dataset, measure: str, *, ax: "Axes | None" = None) -> "Axes":
    """Draw one measure over the steps of a training.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness` of a run: dims ``(step, measure)``.
    measure : str
        One of its measures.
    ax : Axes, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes
        The measure with a band of one standard error, where it has one; beside ``lambda_max`` the threshold above which
        the optimizer is unstable on full batches, dashed, where it is one for the plain Hessian; the train loss on an
        axis of its own, grey. A legend above the axes tells the threshold.
    """
    ax = new_axes() if ax is None else ax
    steps = table["step"].values
    column = table.sel(measure=measure)
    values, errors = column["value"].values, column["value_se"].values
    name = str(column["measure_long_name"].values) if "measure_long_name" in column.coords else measure
    units = str(column["measure_units"].values) if "measure_units" in column.coords else "1"
    ax.plot(steps, values, color=color_of(0), label=name)
    if np.isfinite(errors).any():
        ax.fill_between(steps, values - errors, values + errors, color=color_of(0), alpha=0.25, linewidth=0)
    if measure == _BESIDE and _threshold_holds(table):
        text = str(table.attrs.get("stability", "threshold of stability")).partition(" at ")[0]
        ax.plot(steps, table["stability_threshold"].values, color="black", linestyle="--", label=text)
    if "train_loss" in table.coords and (table["train_loss"] > 0).any():
        _draw_loss(ax, steps, table["train_loss"])
    ax.set_xlabel(label_of(table["step"]))
    ax.set_ylabel(_fitted(ax, f"{name} [{units}]" if units not in ("", "1") else name), linespacing=1.0)
    ax.set_ylim(bottom=min(0.0, float(np.nanmin(values, initial=0.0))))
    ax.margins(x=0)
    if len(ax.get_lines()) > 1:
        # Above, since both curves and the loss may end anywhere inside.
        where: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
        ax.legend(frameon=False, fontsize="small", **where)
    return ax


def _draw_loss(ax: "Axes", steps: np.ndarray, loss: xr.DataArray) -> None:
    """Draw the loss on an axis of its own, behind the rest."""
    other = ax.twinx()
    other.plot(steps, loss.values, color="0.6", linewidth=0.8, zorder=0)
    other.set_yscale("log")
    other.set_ylabel(_fitted(ax, label_of(loss)), color="0.4", linespacing=1.0)
    other.tick_params(axis="y", which="both", colors="0.4")
    low, high = np.log10(other.get_ylim())
    set_log_ticks(other.yaxis, high - low)
    ax.set_zorder(other.get_zorder() + 1)
    ax.patch.set_visible(False)


def _fitted(ax: "Axes", text: str) -> str:
    """Wrap the label of a vertical axis, for letters of 0.45 times their size, and a layout that shrinks axes yet."""
    height = ax.get_window_extent().height / ax.figure.dpi * 72
    return wrap_label(text, max(8, int(0.75 * height / (0.45 * ax.yaxis.label.get_size()))))


def _threshold_holds(table: xr.Dataset) -> bool:
    return "stability_threshold" in table.variables and table.attrs.get("stability_hessian", "euclidean") == "euclidean"
