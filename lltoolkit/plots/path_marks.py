"""One run as line and marks on a plane: what its colours tell, where it starts, ends and slows down. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import xarray as xr

from lltoolkit.plots.path_loss import DROP_COLOR, RESIDUAL_LABEL
from lltoolkit.plots.paths import PlanePath, time_axis
from lltoolkit.plots.series import color_of, marker_of
from lltoolkit.plots.style import MISSING_GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

Coloring: TypeAlias = Literal["auto", "residual", "epoch", "run"]
PATH_PARTS = tuple(f"lltoolkit:{part}" for part in ("path", "checkpoints", "drops", "start", "end"))


@dataclass(frozen=True)
class Colors:
    """What the colours of a path's points tell; both colour maps run between light and dark, so in grey too.

    Attributes
    ----------
    values : list of ndarray or None
        For each run, shape ``(n,)``; None: only which run.
    cmap : str
        Colour map.
    low, high : float
        Values at its ends.
    label : str
        Of the colour bar.
    """

    values: list[np.ndarray] | None
    cmap: str = "cividis"
    low: float = 0.0
    high: float = 1.0
    label: str = ""


def color_points(color: str, runs: Mapping[str, xr.Dataset], paths: Sequence[PlanePath]) -> Colors:
    """Decide what the colours of the points tell.

    Parameters
    ----------
    color : {"auto", "residual", "epoch", "run"}
        As in `plot_trajectory`.
    runs : mapping of str to xr.Dataset
        From `name_runs`.
    paths : sequence of PlanePath
        The same runs, from `pick_paths`.

    Returns
    -------
    Colors
        What `draw_path` takes.

    Raises
    ------
    ValueError
        If residuals are asked for and not there.
    """
    known = any(np.isfinite(one.residual).any() for one in paths)
    if color == "auto":
        color = "residual" if known and len(paths) == 1 else "run"
    if color == "run":
        return Colors(None)
    if color == "epoch":
        along = time_axis(runs)
        values = [run[along].values.astype(np.float64) for run in runs.values()]
        joined = np.concatenate(values)
        return Colors(values, "cividis", float(joined.min()), float(joined.max()), along)
    if not known:
        raise ValueError("color='residual': this trajectory has no residual; project it with project_trajectory.")
    # All of [0, 1], so that two figures can be compared.
    return Colors([one.residual for one in paths], "YlOrBr", 0.0, 1.0, RESIDUAL_LABEL)


def draw_path(
    ax: "Axes", path: PlanePath, place: int, colors: Colors, *, drops: bool = True
) -> "ScalarMappable | None":
    """Draw one run on given axes.

    Parameters
    ----------
    ax : Axes
        Where.
    path : PlanePath
        What.
    place : int
        Number of the run, from 0; it chooses colour and marker where there are several.
    colors : Colors
        Of the points.
    drops : bool
        Whether to mark drops of the learning rate.

    Returns
    -------
    ScalarMappable or None
        For a colour bar, where the colours tell more than the run.
    """
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    seen = path.seen
    ink = color_of(place) if path.name else "black"
    marker = marker_of(place) if path.name else "o"
    size = float(np.clip(45 / np.sqrt(max(len(seen), 1)) / 2, 1.8, 4.0))  # points; 300 of them still show one by one
    white = [withStroke(linewidth=2.4, foreground="white")]  # on any colour below
    values = None if colors.values is None else colors.values[place]
    ax.plot(*path.points[seen].T, color=ink, linewidth=1.0, path_effects=white, zorder=4, gid="lltoolkit:path")
    where = {"marker": marker, "s": size**2, "gid": "lltoolkit:checkpoints"}
    if values is None:
        style = {"color": ink, "edgecolors": "white", "linewidths": 0.25}
    else:
        cmap = colormaps[colors.cmap].with_extremes(bad=MISSING_GREY)
        style = {"cmap": cmap, "vmin": colors.low, "vmax": colors.high, "plotnonfinite": True}
        style |= {"linewidths": 0.45, "edgecolors": ink}

    def mark(places: np.ndarray, zorder: float) -> "ScalarMappable":
        colored = {} if values is None else {"c": values[places]}
        return ax.scatter(*path.points[places].T, zorder=zorder, **colored, **where, **style)

    mappable = mark(seen, 4.2)
    if drops and len(at := np.intersect1d(path.drops, seen)):
        disc = {"markersize": size + 4.2, "markeredgecolor": "white", "markeredgewidth": 0.5, "linestyle": "none"}
        ax.plot(*path.points[at].T, "o", color=DROP_COLOR, zorder=4.4, gid="lltoolkit:drops", **disc)
        mark(at, 4.6)  # again, on the disc, which may lie among many points
    for point, sign, large in ((path.start, "s", 5.5), (path.end, "*", 8.5)):
        hollow = {"markerfacecolor": "white", "markeredgecolor": ink, "markeredgewidth": 0.9, "zorder": 5}
        ax.plot(*point, sign, markersize=large, gid=f"lltoolkit:{'start' if sign == 's' else 'end'}", **hollow)
    return None if values is None else mappable
