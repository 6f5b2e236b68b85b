"""A line through a surface: loss and accuracy on two axes, train solid and test dashed, as in Li et al. (2018)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lltoolkit.errors import require_choice
from lltoolkit.labelled.schema import AXES, STATUS, axes_of
from lltoolkit.plots.field import axis_label, label_of, pick_variable, require_no_more_dims
from lltoolkit.plots.scale import number
from lltoolkit.plots.style import BLUE, RED, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TWIN = "lltoolkit:right axis"
_END = "lltoolkit:minimizer"
_BROKEN = "NaN or inf"
_FILLED = {STATUS["interpolated"]: "interpolated", STATUS["estimated"]: "estimated from a sample"}
_DASHES = {"train": "-", "test": "--"}  # as in the paper; other splits are dotted
_SCALES = ("log", "linear")


def plot_slice(
    surface: xr.Dataset,
    *,
    var: str | Sequence[str] = ("loss", "accuracy"),
    split: str | Sequence[str] | None = None,
    along: str = "alpha",
    at: Mapping[str, float] | None = None,
    scale: str = "log",
    quantiles: tuple[float, float] = (0.1, 0.9),
    name: str | None = None,
    color: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draw a surface along one of its axes.

    Parameters
    ----------
    surface : xr.Dataset
        A surface with one, two or three axes, maybe with a dim ``direction`` (an ensemble).
    var : str or sequence of str
        What to draw: the first on the left axis, the second on a right one. An ``"accuracy"`` that the surface does
        not have is left out unless it is the only one.
    split : str or sequence of str, optional
        Default: all. Train is solid, test dashed, others dotted.
    along : str
        The axis to follow.
    at : mapping of str to float, optional
        Where to cut the other axes, default 0. The nearest grid line is taken, and named if it is another.
    scale : {"log", "linear"}
        Of the loss; linear, and told, if more than half of the values are not above 0.
    quantiles : (float, float)
        Band of an ensemble around its median.
    name : str, optional
        Put before each legend entry, for several surfaces on one `ax`.
    color : str, optional
        Of the first variable; default blue.
    ax : Axes, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes
        The left one; the right one is its twin (the last of ``ax.figure.axes``). Bands without a dim ``direction``
        are one standard error, where the surface has ``<var>_se``. Cells that gave NaN or inf are crosses at the top,
        hollow dots on the line are cells that were interpolated or estimated. Dotted vertical lines are the ends of
        an interpolation, the minimizers at 0 and 1.

    Raises
    ------
    ValueError
        If a name is unknown or there are more than two variables.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> loss = xr.DataArray([1.0, 0.1, 1.0], coords={"alpha": [-1.0, 0.0, 1.0]}, name="loss")
    >>> ax = plot_slice(loss.to_dataset(), ax=Figure().subplots())
    >>> ax.get_yscale(), ax.get_xlabel()
    ('log', '$\\alpha$')
    """
    require_choice("scale", scale, _SCALES)
    names = _variables(surface, var)
    splits = _splits(surface, split)
    cut, where = _cut(surface, along, dict(at or {}))
    ax = new_axes() if ax is None else ax
    for place, (variable, hue) in enumerate(zip(names, (color or BLUE, RED), strict=False)):
        here = ax if place == 0 else _right_of(ax)
        drawn = [_draw(here, cut, variable, one, along, quantiles, hue, name) for one in splits]
        _finish(here, cut[variable], np.concatenate(drawn), scale, hue if len(names) > 1 else None)
    if along == "alpha" and surface.attrs.get("subspace_kind") == "interpolation":
        _mark_ends(ax)
        where.append("minimizers at 0 and 1")
    ax.set_xlabel(", ".join([axis_label(along), *where]))
    ax.margins(x=0)
    ax.locator_params(axis="x", steps=[1, 2, 5, 10])  # steps of 0.25 take labels that run into each other
    _explain(ax, surface.sizes.get("direction"), quantiles)
    return ax


def _mark_ends(ax: "Axes") -> None:
    """Mark the two minimizers that a line connects, at 0 and 1, as the paper's figure 2 does."""
    for end in (0.0, 1.0):
        if not any(line.get_gid() == _END and line.get_xdata()[0] == end for line in ax.get_lines()):
            ax.axvline(end, color="0.6", linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=0.5, label="_end", gid=_END)


def _explain(ax: "Axes", n_directions: int | None, quantiles: tuple[float, float]) -> None:
    """Put one legend for both axes above them, where it hides no line."""
    lines = [line for each in ax.figure.axes if each is ax or each.get_gid() == _TWIN for line in each.get_lines()]
    lines.sort(key=lambda line: line.get_label() in (_BROKEN, *_FILLED.values()))  # last, after the lines themselves
    named = {line.get_label(): line for line in lines if not line.get_label().startswith("_")}
    style = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "fontsize": "small"}
    title = None
    if n_directions is not None:
        title = f"median and {quantiles[0]:.0%} to {quantiles[1]:.0%} of {n_directions} directions"
    ax.legend(named.values(), named, ncols=2, title=title, title_fontsize="small", borderaxespad=0.2, **style)


def _variables(surface: xr.Dataset, var: str | Sequence[str]) -> list[str]:
    names = [var] if isinstance(var, str) else list(var)
    if not 1 <= len(names) <= 2:
        raise ValueError(f"var={var!r} names {len(names)} variables; a slice has a left axis and a right one.")
    if len(names) == 2 and names[1] == "accuracy" and isinstance(surface, xr.Dataset) and "accuracy" not in surface:
        names.pop()  # regression and language models have none
    for name in names:
        pick_variable(surface, name, None)
    return names


def _splits(surface: xr.Dataset, split: str | Sequence[str] | None) -> list[str | None]:
    if "split" not in surface.dims:
        return [None]
    present = [str(name) for name in surface["split"].values]
    chosen = present if split is None else [split] if isinstance(split, str) else list(split)
    for one in chosen:
        require_choice("split", one, present)
    return chosen


def _cut(surface: xr.Dataset, along: str, at: dict[str, float]) -> tuple[xr.Dataset, list[str]]:
    """Take the nearest grid line; the second value names the coordinates that are not the origin's."""
    axes = axes_of(surface)
    if not axes:
        kind = surface.attrs.get("kind", "Dataset")
        raise ValueError(f"this {kind} has none of the axes {', '.join(AXES)}. A slice is drawn of a NAME.surface.nc.")
    require_choice("along", along, axes)
    for axis in at:
        require_choice("at", axis, [axis for axis in axes if axis != along])
    where = []
    cut = surface.sortby(along)
    for axis in axes:
        if axis != along:
            cut = cut.sel({axis: at.get(axis, 0.0)}, method="nearest")
            if (value := float(cut[axis])) != 0 or axis in at:
                where.append(f"{axis_label(axis)} = {number(value)}")
    return cut, where


def _right_of(ax: "Axes") -> "Axes":
    for other in ax.figure.axes:
        if other.get_gid() == _TWIN and ax.get_shared_x_axes().joined(ax, other):
            return other
    twin = ax.twinx()
    twin.set_gid(_TWIN)
    return twin


def _draw(
    ax: "Axes",
    cut: xr.Dataset,
    var: str,
    split: str | None,
    along: str,
    quantiles: tuple[float, float],
    color: str,
    name: str | None,
) -> np.ndarray:
    """Draw one variable of one split; return the finite values that were drawn, shape ``(k,)``."""
    values = pick_variable(cut, var, split)
    if "status" in cut and set(cut["status"].dims) <= set(values.dims):
        values = values.where(cut["status"] != STATUS["missing"])
    require_no_more_dims(values, [along, "direction"])
    points = cut[along].values.astype(np.float64)
    finite = values.where(np.isfinite(values))
    if "direction" in values.dims:
        low, middle, high = (finite.quantile(q, "direction").values for q in (quantiles[0], 0.5, quantiles[1]))
    else:
        middle, low, high = finite.values, None, None
        if f"{var}_se" in cut:
            error = pick_variable(cut, f"{var}_se", split).values
            low, high = middle - error, middle + error
    style = _DASHES.get(str(split or "train"), ":")
    entry = " ".join(filter(None, [name, split, str(values.attrs.get("long_name", var))]))
    ax.plot(points, middle, style, color=color, label=entry)
    near = np.pad(np.isfinite(middle), 1)
    if (alone := near[1:-1] & ~near[:-2] & ~near[2:]).any():  # a line shows no point whose neighbours are missing
        ax.plot(points[alone], middle[alone], ".", color=color, label="_alone")
    if low is not None:
        ax.fill_between(points, low, high, color=color, alpha=0.18, linewidth=0, label="_band")
    for status, word in _FILLED.items():
        if "status" in cut and cut["status"].dims == (along,) and (here := cut["status"].values == status).any():
            ax.plot(points[here], middle[here], "o", color=color, mfc="white", ms=2.5, mew=0.5, label=word)
    broken = ~np.isfinite(values) & ((cut["status"] != STATUS["missing"]) if "status" in cut else True)
    if (failed := broken.transpose(along, ...).values.reshape(len(points), -1).any(axis=1)).any():
        top = ax.get_xaxis_transform()
        ax.plot(points[failed], np.full(failed.sum(), 0.97), "x", c=color, ms=4, transform=top, label=_BROKEN)
    return middle[np.isfinite(middle)]


def _finish(ax: "Axes", variable: xr.DataArray, values: np.ndarray, scale: str, color: str | None) -> None:
    label = label_of(variable)
    if "loss" in str(variable.name):
        above = values > 0
        if scale == "log" and 2 * above.sum() >= max(values.size, 1):
            ax.set_yscale("log", nonpositive="clip")
            if values.size:
                # A standard error as large as the value would drag the axis to 0, which a log scale has not.
                ax.set_ylim(bottom=max(values[above].min() / 2, values.max() * 1e-8))
            if not above.all():
                label += f"\n{(~above).sum()} values not above 0 are not shown"
        elif scale == "log":
            label += "\nlinear scale: most values are not above 0"
    elif str(variable.name) == "accuracy":
        ax.set_ylim(0, 1.02)
    ax.set_ylabel(label)
    if color:
        ax.yaxis.label.set_color(color)
        ax.tick_params(axis="y", colors=color, which="both")
