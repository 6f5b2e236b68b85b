"""Sharpness against generalization: one scatter per measure, with the rank correlation and its interval. Torch-free."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.lines import Line2D

from lltoolkit.errors import require_choice
from lltoolkit.labelled.correlation import ENOUGH_CLUSTERS, rank_correlation
from lltoolkit.labelled.modelset import choose, labels_of, signs_of
from lltoolkit.plots.field import label_of
from lltoolkit.plots.series import color_of, marker_of, set_log_ticks, wrap_label
from lltoolkit.plots.style import PrintFigure, page_size, page_style
from lltoolkit.plots.training import plot_training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCALES = ("auto", "log", "linear")
_SIZE = 4.0  # of a marker, in points
_NO_GROUP = "not given"


@dataclass(frozen=True)
class _Panel:
    """The numbers of one scatter: shapes ``(n,)``, errors NaN where none are known."""

    x: np.ndarray
    x_se: np.ndarray
    y: np.ndarray
    y_se: np.ndarray
    censored: np.ndarray
    log: bool
    reversed: bool

    @property
    def shown(self) -> np.ndarray:
        return np.isfinite(self.x) & np.isfinite(self.y) & ((self.x > 0) | (not self.log))


def plot_sharpness(
    table: xr.Dataset,
    *,
    measures: str | Sequence[str] | None = None,
    against: str = "error_gap",
    group: str | Sequence[str] | None = None,
    correlation: xr.Dataset | None = None,
    xscale: str = "auto",
    n_columns: int | None = None,
    venue: str | tuple[float, float] = "neurips",
    columns: int = 2,
    ax: "Axes | None" = None,
) -> "Figure | Axes":
    r"""Draw sharpness measures against generalization, a scatter for each, sharper to the right.

    Of a table over the steps of a training, each measure is drawn over the steps, ``lambda_max`` with the threshold of
    stability beside it; `against`, `group` and `correlation` say nothing there.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness`, of two models or more, or of a training.
    measures : str or sequence of str, optional
        Default: all of the table.
    against : {"error_gap", "loss_gap", "test_loss", "test_error"}
        What the vertical axis shows.
    group : str or sequence of str, optional
        Coordinates of the models; those that agree in all of them share a colour and a marker.
    correlation : xr.Dataset, optional
        From `rank_correlation`, with these measures and `against`. Default: it is called here with 1000 resamples.
    xscale : {"auto", "log", "linear"}
        ``"auto"`` is log where a measure is positive for all models and spans more than a decade.
    n_columns : int, optional
        Panels per row; default up to 3, and up to 4 on a wide page.
    venue, columns
        Size and type, as in `figure`.
    ax : Axes, optional
        Where to draw a single measure.

    Returns
    -------
    Figure or Axes
        A Figure that belongs to no pyplot state, as from `plot_grid`; `ax` where one was given. Titles are Kendall's
        tau-b and its 95 % interval over configurations. Error bars are one standard error. A hollow marker with an
        arrow is a bound: the true value lies that way, and tau takes pairs whose order it leaves open for ties. What is
        not drawn is counted below tau: models with a NaN, which tau leaves out, and such with infinite values, or not
        above 0 on a log axis, which it ranks. The axis of a measure that is low where it is sharp (a radius) is
        reversed, and says so.

    Raises
    ------
    TypeError
        If `table` or `correlation` is no Dataset.
    ValueError
        If there is one model only, a name is unknown, `correlation` lacks an entry, or `ax` is given for several
        measures.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = xr.Dataset(
    ...     {"value": (("model", "measure"), [[1.0], [2.0], [4.0], [3.0], [5.0]])},
    ...     coords={"measure": ["trace"], "error_gap": ("model", [0.01, 0.02, 0.03, 0.04, 0.05])},
    ... )
    >>> ax = plot_sharpness(table, ax=Figure().subplots())
    >>> ax.get_title().split(" [")[0]
    '$\\tau$ = 0.80'
    """
    require_choice("xscale", xscale, _SCALES)
    if isinstance(table, xr.Dataset) and "step" in table.dims:
        return plot_training(table, measures, n_columns=n_columns, venue=venue, columns=columns, ax=ax)
    if not isinstance(against, str):
        raise ValueError(f"against={against!r}: a plot shows one of them; name one.")
    (target,), names = choose(table, against, measures)
    if ax is not None and len(names) > 1:
        raise ValueError(f"ax takes one measure, these are {len(names)}: {', '.join(names)}. Choose with measures=.")
    groups = _groups(table, group)
    entries = _entries(table, target, names, correlation)
    if ax is not None:
        _draw(ax, table, names[0], target, groups, entries.sel(measure=names[0]), xscale)
        ax.set_ylabel(label_of(table[target]))
        if group is not None:
            ax.legend(handles=_handles(groups), title=_group_title(table, group), fontsize="small")
        return ax

    width, height, size = page_size(venue, columns)
    widest = n_columns or (4 if width > 6 else 3)
    n_rows = -(-len(names) // widest)
    n_columns = n_columns or -(-len(names) // n_rows)  # rows about equally long: four panels are two by two
    with rc_context(page_style(size, serif=venue != "slides")):
        told = max(len(_hidden(_panel(table, name, target, xscale)).splitlines()) for name in names)
        row = 0.75 * width / max(n_columns, 2) + 0.55 + told * size / 72
        default = n_rows * row + (0.6 if group is not None else 0.2)
        fig = PrintFigure(figsize=(width, height or default), layout="constrained")
        axes = fig.subplots(n_rows, n_columns, squeeze=False, sharey=True)
        for empty in axes.flat[len(names) :]:
            empty.remove()
        for place, (panel, name) in enumerate(zip(axes.flat, names, strict=False)):
            _draw(panel, table, name, target, groups, entries.sel(measure=name), xscale)
            if place % n_columns == 0:
                panel.set_ylabel(label_of(table[target]))
        if group is not None:
            title, handles = _group_title(table, group), _handles(groups)
            fig.legend(handles=handles, title=title, loc="outside upper center", ncols=_n_fitting(groups, width, size))
        fig.supxlabel(_footer(entries), fontsize=size - 2, color="0.35")
    return fig


def _groups(table: xr.Dataset, group: str | Sequence[str] | None) -> dict[str, np.ndarray]:
    """Name the groups in the order of their values; each with its mask of the models."""
    if group is None:
        return {"": np.ones(table.sizes["model"], dtype=bool)}
    labels = labels_of(table, group, "group")
    single = [group] if isinstance(group, str) else list(group)
    order = np.lexsort([table[name].values for name in reversed(single)])
    named = {
        ", ".join(str(table[name].values[place]) for name in single): labels == labels[place]
        for place in order
        if labels[place]
    }
    return named | ({_NO_GROUP: labels == ""} if (labels == "").any() else {})


def _group_title(table: xr.Dataset, group: str | Sequence[str]) -> str:
    return ", ".join(label_of(table[name]) for name in ([group] if isinstance(group, str) else group))


def _n_fitting(names: Iterable[str], width: float, size: float) -> int:
    """Return how many legend entries fit into a row: letters are about half as wide as high, a marker takes four."""
    longest = max(map(len, names))
    return max(1, int(0.9 * width * 72 / ((0.5 * longest + 4) * size)))


def _handles(groups: dict[str, np.ndarray]) -> list[Line2D]:
    return [
        Line2D([], [], ls="", marker=marker_of(place), color=color_of(place), ms=_SIZE, mew=0.8, label=name)
        for place, name in enumerate(groups)
    ]


def _entries(table: xr.Dataset, target: str, names: list[str], correlation: xr.Dataset | None) -> xr.Dataset:
    if correlation is None:
        return rank_correlation(table, against=target, measures=names, given=None, n_bootstrap=1000).sel(against=target)
    if not isinstance(correlation, xr.Dataset) or not {"tau", "tau_low", "tau_high"} <= set(correlation.data_vars):
        raise TypeError("correlation is no result of rank_correlation(table); give one, or leave it out.")
    present = [str(name) for name in correlation["measure"].values]
    lacking = [name for name in names if name not in present]
    if target not in correlation["against"].values or lacking:
        what = f"measure {lacking[0]!r}" if lacking else f"against {target!r}"
        raise ValueError(
            f"correlation has no {what}; it holds {', '.join(present)} against "
            f"{', '.join(map(str, correlation['against'].values))}. Leave it out to have it made."
        )
    return correlation.sel(against=target)


def _panel(table: xr.Dataset, name: str, target: str, xscale: str) -> _Panel:
    chosen = table.sel(measure=name)
    nothing = np.full(table.sizes["model"], np.nan)
    x = chosen["value"].values.astype(np.float64)
    y = chosen[target].values.astype(np.float64)
    present = x[np.isfinite(x) & np.isfinite(y)]
    spans = present.size > 0 and present.min() > 0 and present.max() > 10 * present.min()
    # A log scale of nothing above 0 would be an empty picture.
    return _Panel(
        x=x,
        x_se=chosen["value_se"].values.astype(np.float64) if "value_se" in chosen else nothing,
        y=y,
        y_se=chosen[f"{target}_se"].values.astype(np.float64) if f"{target}_se" in chosen.coords else nothing,
        censored=chosen["censored"].values != 0 if "censored" in chosen else np.zeros(len(x), dtype=bool),
        log=bool((present > 0).any()) if xscale == "log" else spans and xscale == "auto",
        reversed=bool(signs_of(table["value"].sel(measure=[name]))[0] < 0),
    )


def _draw(
    ax: "Axes",
    table: xr.Dataset,
    name: str,
    target: str,
    groups: dict[str, np.ndarray],
    entry: xr.Dataset,
    xscale: str,
) -> None:
    panel = _panel(table, name, target, xscale)
    ax.set_title("\n".join(filter(None, [_tau(entry), _hidden(panel)])), linespacing=1.0)
    ax.set_xlabel(_x_label(table.sel(measure=name), name, panel, xscale), linespacing=1.0)
    if panel.log:
        ax.set_xscale("log")
    low, high = _bars(panel)
    for place, mask in enumerate(groups.values()):
        for censored in (False, True):
            here = mask & panel.shown & (panel.censored == censored)
            if not here.any():
                continue
            x, y, color = panel.x[here], panel.y[here], color_of(place)
            bars = {"xerr": [x - low[here], high[here] - x], "yerr": np.nan_to_num(panel.y_se[here])}
            ax.errorbar(x, y, **bars, fmt="none", ecolor=color, elinewidth=0.6, alpha=0.6, zorder=2)
            face = "white" if censored else color
            ax.plot(x, y, marker_of(place), c=color, mfc=face, ms=_SIZE, mew=0.8, alpha=0.9, zorder=3, clip_on=False)
            if censored:
                _point_onward(ax, x, y, color, -1 if panel.reversed else 1)
    if panel.shown.any():
        _set_limits(ax, panel, low, high)
    ax.tick_params(which="both", direction="out", length=2)
    ax.spines[["top", "right"]].set_visible(False)


def _tau(entry: xr.Dataset) -> str:
    tau, low, high = (float(entry[f"tau{end}"]) for end in ("", "_low", "_high"))
    if np.isnan(tau):
        return r"$\tau$ undefined"
    text = rf"$\tau$ = {_signed(tau)}"
    return text if np.isnan(low) else f"{text} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # the sum makes -0 0


def _x_label(chosen: xr.Dataset, name: str, panel: _Panel, xscale: str) -> str:
    said = str(chosen["measure_long_name"].item()) if "measure_long_name" in chosen.coords else name.replace("_", " ")
    units = str(chosen["measure_units"].item()) if "measure_units" in chosen.coords else "1"
    label = wrap_label(said if units in {"", "1", "none"} else f"{said} [{units}]")
    if panel.reversed:
        label += "\n(reversed: low is sharp)"
    if xscale == "log" and not panel.log:
        label += "\n(linear: nothing is above 0)"
    return label


def _bars(panel: _Panel) -> tuple[np.ndarray, np.ndarray]:
    """Find the ends of the horizontal error bars; on a log scale those that reach 0 run out of the frame."""
    error = np.nan_to_num(panel.x_se)
    low, high = panel.x - error, panel.x + error
    if panel.log and panel.shown.any():
        floor = panel.x[panel.shown].min() / 2
        low = np.where(low < floor, np.minimum(floor / 10, panel.x), low)
    return low, high


def _set_limits(ax: "Axes", panel: _Panel, low: np.ndarray, high: np.ndarray) -> None:
    """Fit the axis to the points and their bars, with room for the arrows of bounds."""
    scale, back = (np.log10, lambda value: 10.0**value) if panel.log else (np.asarray, np.asarray)
    shown = panel.shown
    ends = low[shown]
    if panel.log:
        ends = np.maximum(ends, panel.x[shown].min() / 2)
    left, right = scale(ends.min()), scale(high[shown].max())
    room = (right - left) or (0.1 if panel.log else 0.1 * abs(right) or 1.0)
    right += (0.16 if (panel.censored & shown).any() else 0.05) * room
    first, last = float(back(left - 0.05 * room)), float(back(right))
    ax.set_xlim((last, first) if panel.reversed else (first, last))
    if panel.log:
        set_log_ticks(ax.xaxis, right - left)


def _point_onward(ax: "Axes", x: np.ndarray, y: np.ndarray, color: str, sign: int) -> None:
    style = {
        "arrowstyle": "<|-,head_length=0.25,head_width=0.12",
        "color": color,
        "lw": 0.8,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    for place in zip(x, y, strict=True):
        ax.annotate("", place, (sign * 11, 0), textcoords="offset points", arrowprops=style)


def _hidden(panel: _Panel) -> str:
    """Count the models that are not drawn: those that tau leaves out, and those that it ranks."""
    unknown = np.isnan(panel.x) | np.isnan(panel.y)
    infinite = ~unknown & (np.isinf(panel.x) | np.isinf(panel.y))
    below = ~panel.shown & ~unknown & ~infinite
    ranked = [
        f"{mask.sum()}\N{NO-BREAK SPACE}{what}"
        for mask, what in ((infinite, "infinite"), (below, "not above 0"))
        if mask.any()
    ]
    told = [f"not drawn: {unknown.sum()} NaN"] if unknown.any() else []
    told += [wrap_label(f"only ranked: {', '.join(ranked)}", 36)] if ranked else []
    return "\n".join(told)


def _footer(entries: xr.Dataset) -> str:
    models, clusters = int(entries["n_models"].max()), int(entries["n_clusters"].max())
    of = f" in {clusters} configurations" if clusters != models else ""
    few = f"; fewer than {ENOUGH_CLUSTERS} configurations mean little" if clusters < ENOUGH_CLUSTERS else ""
    level = float(entries.attrs.get("level", 0.95))
    bounds = int(entries["n_censored"].max()) if "n_censored" in entries else 0
    hollow = (
        f"\nhollow: only a bound (up to {bounds} models); a pair whose order it leaves open is a tie" if bounds else ""
    )
    return rf"{models} models{of}; $\tau$: Kendall's tau-b [{level:.0%} interval over configurations]{few}{hollow}"
