"""Optimizer paths on a plane, over the contours of its loss, after Li et al. (2018), figure 9. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator

from lltoolkit.errors import require_choice
from lltoolkit.labelled.schema import AXES, axes_of
from lltoolkit.plots.contour import Form, plot_contour
from lltoolkit.plots.field import axis_label
from lltoolkit.plots.path_loss import ABOVE, DROP_COLOR, DROP_LABEL, RESIDUAL_LABEL, fit_columns, plot_trajectory_loss
from lltoolkit.plots.path_marks import Coloring, color_points, draw_path
from lltoolkit.plots.paths import PlanePath, name_runs, pick_paths, require_one_subspace
from lltoolkit.plots.series import color_of, marker_of
from lltoolkit.plots.style import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

COLORINGS = ("auto", "residual", "epoch", "run")
_MARGIN = 0.06  # of the span, around a path
_BAR = "lltoolkit:path colours"


def plot_trajectory(
    path: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    surface: xr.Dataset | None = None,
    var: str = "loss",
    split: str = "train",
    form: Form = "lines",
    color: Coloring = "auto",
    drops: bool = True,
    legend: bool = True,
    companion: "Axes | None" = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draw the path of an optimizer on a plane.

    Parameters
    ----------
    path : xr.Dataset or mapping of str to xr.Dataset
        From `project_trajectory`; or several runs by name, projected on one subspace.
    surface : xr.Dataset, optional
        The loss on that subspace, drawn below by `plot_contour`. Draw it yourself on `ax` for other options.
    var, split : str
        Of the surface, and of `companion`.
    form : {"lines", "filled", "heat"}
        Of the surface: lines, as in the paper, leave the colour to the path.
    color : {"auto", "residual", "epoch", "run"}
        What the points' colour tells: how much of the displacement lies outside the plane, when, or only which run.
        ``"auto"``: the residual for one run that has it, else the run.
    drops : bool
        Mark with red discs where the learning rate drops: by a half or more, after it was held. A mark stands at
        the last checkpoint before the drop.
    legend : bool
        Explain the marks, above the axes.
    companion : Axes, optional
        Where `plot_trajectory_loss` draws the loss along the path, true against the plane's.
    ax : Axes, optional
        Where to draw; it may hold a contour already. By default in a new pyplot figure.

    Returns
    -------
    Axes
        A point for each checkpoint, straight lines between them, a square at the start and a star at the end. The
        labels tell the variance that a PCA's axes explain, and what a random walk gives. The limits are those of the
        contour, wider where the path leaves it; the label of the first axis counts checkpoints outside.

    Raises
    ------
    TypeError
        If `path` is neither a Dataset nor a mapping of Datasets.
    ValueError
        If a choice is unknown, an axis is missing, or the subspaces of the paths and the surface differ.

    References
    ----------
    Li et al. (2018), section 7 and figure 9. Antognini and Sohl-Dickstein (2018): PCA of random walks.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> path = xr.Dataset(
    ...     {"alpha": ("step", [2.0, 1.0, 0.0]), "beta": ("step", [0.5, 1.0, 0.0]),
    ...      "explained_variance": ("axis", [0.71, 0.2]), "explained_variance_null": ("axis", [0.63, 0.15])},
    ...     coords={"step": [0, 100, 200], "axis": ["alpha", "beta"]},
    ... )
    >>> ax = plot_trajectory(path, ax=Figure().subplots())
    >>> print(ax.get_xlabel())
    $\alpha$ (PC 1): 71 % of the variance
    (a random walk gives 63 %)
    """
    require_choice("color", color, COLORINGS)
    runs = name_runs(path, "path", "trajectory")
    require_one_subspace(runs, surface)
    paths, axes = pick_paths(runs, None if surface is None else axes_of(surface))
    colors = color_points(color, runs, paths)
    ax = new_axes() if ax is None else ax
    if surface is not None:
        plot_contour(surface, var=var, split=split, form=form, minimizer=False, ax=ax)
    outside = _set_limits(ax, paths)
    for place, one in enumerate(paths):
        bar = draw_path(ax, one, place, colors, drops=drops)
    _label(ax, plane_labels(runs, axes), paths, outside)
    lifted = 0.0 if bar is None else _add_bar(ax, bar, colors.label)
    if legend:
        _explain(ax, paths, drops and any(one.drops.size for one in paths), lifted)
    if companion is not None:
        plot_trajectory_loss(path, var=var, split=split, ax=companion)
    return ax


def plane_labels(runs: Mapping[str, xr.Dataset], axes: Sequence[str]) -> list[str]:
    """Name the axes of a plane, with the variance that each explains where the plane comes from a PCA.

    Parameters
    ----------
    runs : mapping of str to xr.Dataset
        From `name_runs`; the first tells.
    axes : sequence of str
        Of the plane.

    Returns
    -------
    list of str
        One for each axis, in one line or two.
    """
    dataset = next(iter(runs.values()))
    shares = {key: _over_axes(dataset, key, axes) for key in ("explained_variance", "explained_variance_null")}
    labels = []
    for place, (axis, share, null) in enumerate(zip(axes, *shares.values(), strict=True)):
        label = axis_label(axis)
        if np.isfinite(share):
            # Only the first says of what: the second stands along a side that is often short.
            label += f" (PC {AXES.index(axis) + 1}): {percent(share)}{'' if place else ' of the variance'}"
            if np.isfinite(null):
                label += f"\n(a random walk{':' if place else ' gives'} {percent(null)})"
        labels.append(label)
    return labels


def _over_axes(dataset: xr.Dataset, key: str, axes: Sequence[str]) -> list[float]:
    found = dataset[key] if key in dataset.variables else None
    known = [] if found is None or "axis" not in found.coords else [str(name) for name in found["axis"].values]
    return [float(found[known.index(axis)]) if found is not None and axis in known else np.nan for axis in axes]


def percent(share: float) -> str:
    """Write a share as percent with two digits, or three near 100.

    Returns
    -------
    str
        With its sign.

    Examples
    --------
    >>> percent(0.714), percent(0.0042), percent(0.9996)
    ('71 %', '0.42 %', '100 %')
    """
    value = 100 * share
    return f"{value:.1f} %" if 99 <= value < 99.95 else f"{float(f'{value:.2g}'):g} %"


def _has_map(ax: "Axes") -> bool:
    from matplotlib.collections import QuadMesh
    from matplotlib.contour import ContourSet

    return any(isinstance(each, ContourSet | QuadMesh) for each in ax.collections)


def _set_limits(ax: "Axes", paths: list[PlanePath]) -> int | None:
    """Make room for the paths; return how many checkpoints lie outside the map below, None without one."""
    points = np.concatenate([one.points[one.seen] for one in paths])
    low, high = points.min(axis=0), points.max(axis=0)
    if not ax.has_data():
        span = np.maximum(high - low, 1e-9 + 0.05 * (high - low).max())
        low, high = low - _MARGIN * span, high + _MARGIN * span
        spans = np.sort(high - low)
        ax.set_aspect("equal" if spans[1] <= 3 * spans[0] else "auto")
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        ax.locator_params(nbins=5)
        return None
    edges = np.sort(np.array([ax.get_xlim(), ax.get_ylim()]), axis=1)
    slack = 1e-9 * np.ptp(edges, axis=1)
    beyond = (points < edges[:, 0] - slack) | (points > edges[:, 1] + slack)
    grow = _MARGIN * (np.maximum(high, edges[:, 1]) - np.minimum(low, edges[:, 0]))
    for axis, setter in enumerate((ax.set_xlim, ax.set_ylim)):
        bottom, top = edges[axis]
        if beyond[:, axis].any():
            bottom = low[axis] - grow[axis] if low[axis] < bottom else bottom
            top = high[axis] + grow[axis] if high[axis] > top else top
            setter(bottom, top)
    return int(beyond.any(axis=1).sum()) if _has_map(ax) else None


def _label(ax: "Axes", labels: list[str], paths: list[PlanePath], outside: int | None) -> None:
    total = sum(len(one.points) for one in paths)
    lost = total - sum(len(one.seen) for one in paths)
    notes = [f"{outside} of {total} checkpoints lie outside the surface"] if outside else []
    notes += [f"{lost} of {total} checkpoints have no coordinates"] if lost else []
    ax.set_xlabel("\n".join([labels[0], *notes]), linespacing=1.05)
    ax.set_ylabel(labels[1], linespacing=1.05)


def _height_over_width(ax: "Axes") -> float:
    box = ax.get_window_extent()
    spans = np.ptp([ax.get_xlim(), ax.get_ylim()], axis=1)
    return float(box.height / box.width if ax.get_aspect() == "auto" else spans[1] / spans[0])


def _add_bar(ax: "Axes", mappable: "ScalarMappable", label: str) -> float:
    """Put a colour bar beside the axes, or above them where one stands beside them; return the points taken above."""
    taken = any(child.get_gid() != _BAR for child in ax.child_axes)
    tall = min(1.0, _height_over_width(ax))
    place = (0.0, 1 + 0.045 / tall, 1.0, 0.035 / tall) if taken else (1.04, 0.0, 0.045, 1.0)
    inset = ax.inset_axes(place)
    inset.set_gid(_BAR)
    if label == RESIDUAL_LABEL:
        label = "residual: outside / whole displacement" if taken else "residual" if tall < 0.5 else label
    bar = ax.figure.colorbar(mappable, cax=inset, orientation="horizontal" if taken else "vertical", label=label)
    bar.outline.set_linewidth(0.5)
    if taken:
        bar.locator = MaxNLocator("auto", steps=[1, 2, 5, 10])  # steps of 0.25 take numbers that run into each other
        inset.xaxis.set_ticks_position("top")
        inset.xaxis.set_label_position("top")
    else:
        inset.yaxis.label.set_linespacing(1.05)
    # What the bar's numbers and its label take, with their pads.
    return 2.9 * inset.xaxis.label.get_size() + 5.0 if taken else 0.0


def _explain(ax: "Axes", paths: list[PlanePath], drops: bool, lifted: float) -> None:
    """Put a legend above the axes, where it hides nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    handles = []
    for place, one in enumerate(paths):
        if one.name:
            worst = float(np.nanmax(one.residual)) if np.isfinite(one.residual).any() else np.nan
            text = f"{one.name} (residual up to {worst:.2f})" if np.isfinite(worst) else one.name
            style = {"color": color_of(place), "marker": marker_of(place), "markersize": 4, "linewidth": 1.0}
            handles.append(Line2D([], [], label=text, **style))
    sign = {"linestyle": "none", "markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.9}
    handles += [
        Line2D([], [], marker="s", markersize=5, label="start", **sign),
        Line2D([], [], marker="*", markersize=8.5, label="end", **sign),
    ]
    if drops:
        handles.append(Line2D([], [], marker="o", markersize=6, color=DROP_COLOR, linestyle="none", label=DROP_LABEL))
    tall = min(1.0, _height_over_width(ax))
    raised = ax.transAxes + ScaledTranslation(0, lifted / 72, ax.figure.dpi_scale_trans)
    where = {**ABOVE, "bbox_to_anchor": (0.5, 1 + 0.08 / tall if lifted else 1.0), "bbox_transform": raised}
    ncols = fit_columns(ax, [handle.get_label() for handle in handles], 3)
    ax.legend(handles=handles, ncols=ncols, borderaxespad=0.6, handletextpad=0.4, columnspacing=1.0, **where)
