"""The loss along an optimizer path, true against the plane's below it: what the plane hides. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import rcParams
from matplotlib.font_manager import FontProperties

from lltoolkit.labelled.schema import STATUS
from lltoolkit.plots.field import label_of, pick_variable, require_no_more_dims
from lltoolkit.plots.paths import find_drops, name_runs, over_steps, residual_of, time_axis
from lltoolkit.plots.series import color_of, set_log_ticks
from lltoolkit.plots.style import BLUE, RED, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DROP_COLOR = RED  # as the dots of Li et al. (2018), figure 9
DROP_LABEL = "learning rate drops"
RESIDUAL_LABEL = "residual: length outside the\nplane / whole displacement"
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "fontsize": "small"}
_TWIN = "lltoolkit:residual"
_BROKEN = "NaN or inf"
_TRUE, _PLANE = "checkpoints", "plane below them"


def plot_trajectory_loss(
    path: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    var: str = "loss",
    split: str = "train",
    residual: bool | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the loss along a path: that of the checkpoints, and the plane's at the points below them.

    Parameters
    ----------
    path : xr.Dataset or mapping of str to xr.Dataset
        From `project_trajectory` with an objective, so with ``<var>`` and ``plane_<var>``; or several runs by name.
    var : str
        ``"loss"``, ``"accuracy"`` or another variable that has both.
    split : str
        Split of the data.
    residual : bool, optional
        Draw the residual, in [0, 1], on a right axis; default: if there is one run.
    ax : Axes, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes
        Solid the checkpoints', dashed the plane's, the gap between them shaded, against the epoch, or the step where
        epochs are not known. A loss has a log axis. Checkpoints that gave NaN or inf are crosses at the top. Dotted
        vertical lines are drops of the learning rate, by a half or more after it was held.

    Raises
    ------
    TypeError
        If `path` is neither a Dataset nor a mapping of Datasets.
    ValueError
        If a trajectory has no such variable or split, for example since it was projected without an objective.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> path = xr.Dataset(
    ...     {"loss": ("step", [2.0, 0.1, 0.01]), "plane_loss": ("step", [2.5, 0.9, 0.01])}, {"step": [0, 100, 200]}
    ... )
    >>> ax = plot_trajectory_loss(path, ax=Figure().subplots())
    >>> [line.get_label() for line in ax.get_lines()]
    ['checkpoints', 'plane below them']
    """
    runs = name_runs(path, "path", "trajectory")
    curves = {name: _curves(run, var, split, name) for name, run in runs.items()}
    along = time_axis(runs)
    ax = new_axes() if ax is None else ax
    finite = []
    for place, (name, (true, plane)) in enumerate(curves.items()):
        steps = runs[name][along].values.astype(np.float64)
        color = color_of(place) if name else BLUE
        computed = over_steps(runs[name], "status", len(steps)) != STATUS["missing"]
        finite += _draw(ax, steps, true.values, plane.values, computed, color, name)
    true = next(iter(curves.values()))[0]
    _scale(ax, np.concatenate(finite), true)
    mark_drops(ax, runs, along)
    ax.set_xlabel(label_of(next(iter(runs.values()))[along]))
    ax.margins(x=0.02)
    if residual or (residual is None and len(runs) == 1):
        _draw_residual(ax, runs, along)
    _explain(ax, several=len(runs) > 1)
    return ax


def mark_drops(ax: "Axes", runs: Mapping[str, xr.Dataset], along: str, *, label: bool = True) -> None:
    """Draw a thin vertical line where the learning rate of a run drops.

    Parameters
    ----------
    ax : Axes
        Where.
    runs : mapping of str to xr.Dataset
        From `name_runs`. A line of one run among several has the run's colour, one of several runs is drawn once.
    along : str
        From `time_axis`.
    label : bool
        Whether a legend shall name them.
    """
    drawn: dict[float, str] = {}
    for place, dataset in enumerate(runs.values()):
        steps = dataset[along].values.astype(np.float64)
        for where in steps[find_drops(over_steps(dataset, "learning_rate", len(steps)))]:
            drawn[float(where)] = DROP_COLOR if len(runs) == 1 or where in drawn else color_of(place)
    for count, (where, color) in enumerate(drawn.items()):
        text = DROP_LABEL if label and not count else "_drop"
        ax.axvline(where, color=color, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=0.5, label=text)


def fit_columns(ax: "Axes", labels: Sequence[str], most: int) -> int:
    """Say how many columns of a legend fit above some axes, within the part of the figure that is theirs.

    Parameters
    ----------
    ax : Axes
        Where.
    labels : sequence of str
        What the legend says.
    most : int
        Columns that are wanted.

    Returns
    -------
    int
        At least 1.
    """
    cell = ax.get_subplotspec()
    share = 1.0 if cell is None else len(cell.colspan) / cell.get_gridspec().ncols
    width = 72 * ax.figure.get_figwidth() * share
    size = FontProperties(size=ABOVE["fontsize"]).get_size_in_points()
    for ncols in range(most, 1, -1):
        n_rows = -(-len(labels) // ncols)
        longest = [max(map(len, labels[place : place + n_rows])) for place in range(0, len(labels), n_rows)]
        # Letters are about this much of their size wide; a handle with its gaps takes the place of three more sizes.
        letter = 0.45 if rcParams["font.family"] == ["serif"] else 0.53
        if size * sum(letter * length + 3 for length in longest) <= width:
            return ncols
    return 1


def _curves(run: xr.Dataset, var: str, split: str, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    which = f"trajectory {name!r}" if name else "this trajectory"
    if var in run.data_vars and f"plane_{var}" in run.data_vars:
        pair = pick_variable(run, var, split), pick_variable(run, f"plane_{var}", split)
        for curve in pair:
            require_no_more_dims(curve, ["step"])
        return pair
    if not any(str(key).startswith("plane_") for key in run.data_vars):
        raise ValueError(
            f"{which} has no values along its path: it was projected without an objective. "
            "Pass it: project_trajectory(run, subspace, objective=objective)."
        )
    both = [str(key) for key in run.data_vars if f"plane_{key}" in run.data_vars]
    raise ValueError(f"var={var!r}: {which} has no {var} with a plane_{var} beside it; it has {', '.join(both)}.")


def _draw(
    ax: "Axes", steps: np.ndarray, true: np.ndarray, plane: np.ndarray, computed: np.ndarray, color: str, name: str
) -> list[np.ndarray]:
    """Draw both curves of a run; return their finite values."""
    curves = [np.where(np.isfinite(values), values, np.nan) for values in (true, plane)]
    ax.fill_between(steps, *curves, color=color, alpha=0.15, linewidth=0, label="_gap")
    texts = [name, "_plane"] if name else [_TRUE, _PLANE]
    marked = {"marker": "o", "markersize": 2.2 if len(steps) <= 60 else 0}
    for values, dashes, text in zip(curves, ("-", (0, (3.5, 1.5))), texts, strict=True):
        ax.plot(steps, values, linestyle=dashes, color=color, label=text, **(marked if dashes == "-" else {}))
    if (broken := computed & ~(np.isfinite(true) & np.isfinite(plane))).any():
        top = ax.get_xaxis_transform()
        ax.plot(steps[broken], np.full(broken.sum(), 0.97), "x", c=color, ms=4, transform=top, label=_BROKEN)
    return [values[np.isfinite(values)] for values in curves]


def _scale(ax: "Axes", values: np.ndarray, variable: xr.DataArray) -> None:
    text = label_of(variable)
    if "loss" in str(variable.name) and values.size:
        if (above := values > 0).all():
            ax.set_yscale("log")
            set_log_ticks(ax.yaxis, float(np.log10(values.max() / values.min())))
        else:
            text += f"\nlinear scale: {int((~above).sum())} values are not above 0"
    elif "accuracy" in str(variable.name):
        ax.set_ylim(0, 1.02)
    ax.set_ylabel(text)


def _draw_residual(ax: "Axes", runs: Mapping[str, xr.Dataset], along: str) -> None:
    """Draw the residuals on an axis of their own, behind the rest."""
    other = None
    for place, (name, run) in enumerate(runs.items()):
        steps = run[along].values.astype(np.float64)
        values = residual_of(run)
        if not np.isfinite(values).any():
            continue
        other = other or ax.twinx()
        color = color_of(place) if name else "0.55"
        other.plot(steps, values, color=color, linewidth=0.8, linestyle=(0, (1, 1)) if name else "-", label="residual")
    if other is None:
        return
    other.set_gid(_TWIN)
    other.set_ylim(0, 1.02)
    other.set_ylabel(RESIDUAL_LABEL, color="0.35", linespacing=1.0)
    other.tick_params(axis="y", colors="0.35")
    other.locator_params(axis="y", nbins=5)
    ax.set_zorder(other.get_zorder() + 1)
    ax.patch.set_visible(False)


def _explain(ax: "Axes", *, several: bool) -> None:
    """Put one legend above the axes, where it hides no curve."""
    from matplotlib.lines import Line2D

    lines = [line for each in ax.figure.axes if each is ax or _is_twin(each, ax) for line in each.get_lines()]
    lines.sort(key=lambda line: line.get_label() in (_BROKEN, DROP_LABEL, "residual"))
    named = {line.get_label(): line for line in lines if not line.get_label().startswith("_")}
    if several:
        last = {text: named.pop(text) for text in (DROP_LABEL, "residual", _BROKEN) if text in named}
        styles = ((_TRUE, "-"), (_PLANE, (0, (3.5, 1.5))))
        named |= {text: Line2D([], [], color="0.2", linestyle=dashes) for text, dashes in styles}
        named |= last
    ncols = fit_columns(ax, list(named), -(-len(named) // 2))
    ax.legend(named.values(), named, ncols=ncols, borderaxespad=0.2, columnspacing=1.0, handlelength=1.6, **ABOVE)


def _is_twin(other: "Axes", ax: "Axes") -> bool:
    return other.get_gid() == _TWIN and ax.get_shared_x_axes().joined(ax, other)
