"""A training seen from its own steps: distances, step lengths and cosines over time. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib import rc_context

from lltoolkit.errors import require_choice
from lltoolkit.plots.field import label_of
from lltoolkit.plots.path_loss import ABOVE, DROP_LABEL, mark_drops
from lltoolkit.plots.paths import name_runs, time_axis
from lltoolkit.plots.series import color_of, set_log_ticks
from lltoolkit.plots.style import PrintFigure, page_size, page_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What each panel shows: variables and what a legend calls them, and the name of its axis.
_PANELS: dict[str, tuple[dict[str, str], str]] = {
    "distance": ({"distance_from_start": "from the start", "distance_to_end": "to the end"}, "distance"),
    "step": ({"step_length": "step length"}, "length of a step"),
    "cosine": (
        {
            "cosine_to_previous": "the previous step",
            "cosine_to_displacement": "the whole displacement",
            "cosine_to_end": "the way to the end",
        },
        "cosine of a step with",
    ),
}
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))


def plot_trajectory_statistics(
    statistics: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    panels: str | Sequence[str] | None = None,
    venue: str | tuple[float, float] = "neurips",
    columns: int = 1,
    ax: "Axes | None" = None,
) -> "Figure | Axes":
    """Draw how a training moves: its distances, the length of its steps, and where these point.

    Parameters
    ----------
    statistics : xr.Dataset or mapping of str to xr.Dataset
        From `trajectory_statistics`; or several runs by name, each with a colour.
    panels : str or sequence of str, optional
        ``"distance"``: from the start and to the end. ``"step"``: length of the step from the checkpoint before.
        ``"cosine"``: of that step with the step before, with the whole displacement, and with the way that was left to
        the end; 0 is what steps of no common direction have. Default: all.
    venue, columns
        Size of the figure, as in `figure`.
    ax : Axes, optional
        For one panel: where to draw.

    Returns
    -------
    Figure or Axes
        `ax` where one was given. Panels stand side by side where the figure is wide enough, else one above the other.
        Dotted vertical lines are drops of the learning rate, by a half or more after it was held.

    Raises
    ------
    TypeError
        If `statistics` is neither a Dataset nor a mapping of Datasets.
    ValueError
        If a panel is unknown or lacks its variables, or `ax` is given for several.

    Examples
    --------
    >>> told = xr.Dataset({"step_length": ("step", [np.nan, 2.0, 0.5])}, coords={"step": [0, 100, 200]})
    >>> figure = plot_trajectory_statistics(told, panels="step")
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['length of a step']
    """
    runs = name_runs(statistics, "statistics", "statistics")
    names = list(_PANELS) if panels is None else [panels] if isinstance(panels, str) else list(panels)
    for name in names:
        require_choice("panels", name, _PANELS)
        _require_variables(runs, name)
    if ax is not None:
        if len(names) != 1:
            raise ValueError(f"ax takes one panel, these are {len(names)}: {', '.join(names)}. Choose by panels=.")
        return _draw_panel(ax, runs, names[0], legend=True)
    width, height, size = page_size(venue, columns)
    side_by_side = width >= 5
    n_rows, n_columns = (1, len(names)) if side_by_side else (len(names), 1)
    # Panels of one shape, and room for their legends and the figure's.
    tall = 0.8 * width / n_columns + 9 * size / 72 if side_by_side else n_rows * (0.42 * width + 4 * size / 72)
    with rc_context(page_style(size, serif=venue != "slides")):
        fig = PrintFigure(figsize=(width, height or tall), layout="constrained")
        axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex=True)
        for place, (panel, name) in enumerate(zip(axes.flat, names, strict=True)):
            _draw_panel(panel, runs, name, legend=False)
            _explain(panel, name, narrow=side_by_side)
            if not side_by_side and place < len(names) - 1:
                panel.set_xlabel("")
        _explain_runs(fig, runs, axes.flat[0])
    return fig


def _require_variables(runs: Mapping[str, xr.Dataset], panel: str) -> None:
    for name, run in runs.items():
        for key in _PANELS[panel][0]:
            if key not in run.data_vars:
                which = f"statistics[{name!r}]" if name else "statistics"
                present = ", ".join(map(str, run.data_vars)) or "nothing"
                raise ValueError(
                    f"{which} has no {key!r} for the panel {panel!r}; it has {present}. "
                    "Make one with lltoolkit.trajectory_statistics(run)."
                )


def _draw_panel(ax: "Axes", runs: Mapping[str, xr.Dataset], panel: str, *, legend: bool) -> "Axes":
    variables, text = _PANELS[panel]
    along = time_axis(runs)
    largest = []
    for place, (name, run) in enumerate(runs.items()):
        steps = run[along].values.astype(np.float64)
        for key, dashes in zip(variables, _DASHES, strict=False):
            # One run: colours tell the curves apart; several: colour is the run, dashes are the curve.
            color = color_of(place) if name else color_of(list(variables).index(key))
            entry = f"{name} {variables[key]}" if name else variables[key]
            values = run[key].values.astype(np.float64)
            ax.plot(steps, values, color=color, linestyle=dashes, linewidth=1.1, label=entry)
            largest.append(values[np.isfinite(values)])
    values = np.concatenate(largest)
    if panel == "cosine":
        ax.axhline(0, color="0.5", linewidth=0.6, zorder=0.4, label="_zero")
        ax.set_ylim(-1.05, 1.05)
        ax.set_yticks([-1, -0.5, 0, 0.5, 1])
    elif panel == "step" and values.size and (values > 0).all() and values.max() > 10 * values.min():
        ax.set_yscale("log")
        set_log_ticks(ax.yaxis, float(np.log10(values.max() / values.min())))
    else:
        ax.set_ylim(bottom=0)
    mark_drops(ax, runs, along)
    ax.margins(x=0.02)
    ax.set_xlabel(label_of(next(iter(runs.values()))[along]))
    ax.set_ylabel(text)
    if legend:
        ax.legend(borderaxespad=0.2, **ABOVE)
    return ax


def _explain(ax: "Axes", panel: str, *, narrow: bool) -> None:
    """Put a legend of the curves above a panel, in grey dashes where colours are runs."""
    from matplotlib.lines import Line2D

    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    names = list(_PANELS[panel][0].values())
    if len(names) < 2:
        return
    own = {line.get_label(): line for line in lines}
    handles = [
        own.get(name) or Line2D([], [], color="0.2", linestyle=dashes, linewidth=1.1, label=name)
        for name, dashes in zip(names, _DASHES, strict=False)
    ]
    ncols = 1 if narrow else 2
    ax.legend(handles=handles, ncols=ncols, borderaxespad=0.2, handlelength=1.8, columnspacing=1.0, **ABOVE)


def _explain_runs(fig: "Figure", runs: Mapping[str, xr.Dataset], ax: "Axes") -> None:
    """Put one legend for all panels below them: the runs, and the drops of the learning rate."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color_of(place), label=name) for place, name in enumerate(runs) if name]
    handles += [line for line in ax.get_lines() if line.get_label() == DROP_LABEL]
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
