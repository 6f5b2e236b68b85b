"""Which cells of a map are what: without a value, filled in, the minimizer's; nothing is hidden. Torch-free."""

from typing import TYPE_CHECKING

import numpy as np

from lltoolkit.plots.field import Field, count_cells
from lltoolkit.plots.style import HATCH_GREY, MISSING_GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def edges(points: np.ndarray) -> np.ndarray:
    """Return the borders of the cells around grid points, halfway between them.

    Returns
    -------
    ndarray
        Shape ``(n + 1,)`` for `points` of shape ``(n,)``, ascending.

    Examples
    --------
    >>> edges(np.array([0.0, 1.0, 3.0]))
    array([-0.5,  0.5,  2. ,  4. ])
    """
    if len(points) == 1:
        return points[0] + np.array([-0.5, 0.5])
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[1.5 * points[0] - 0.5 * points[1]], middle, [1.5 * points[-1] - 0.5 * points[-2]]])


def mark_empty_cells(ax: "Axes", field: Field) -> None:
    """Show which cells have no value and why: grey for not computed, hatched for NaN or inf, with a legend."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    across, along = edges(field.first), edges(field.second)
    handles = []
    for cells, color, hatch, why in [
        (field.missing, MISSING_GREY, None, "not computed"),
        (field.nonfinite, "white", "//////", "NaN or inf"),
    ]:
        if not cells.any():
            continue
        style = {"facecolor": color, "edgecolor": HATCH_GREY, "hatch": hatch, "linewidth": 0.0}
        corners = [
            [(across[i], along[j]), (across[i + 1], along[j]), (across[i + 1], along[j + 1]), (across[i], along[j + 1])]
            for i, j in np.argwhere(cells)
        ]
        ax.add_collection(PolyCollection(corners, zorder=1.5, gid=f"lltoolkit:{why}", **style), autolim=False)
        handles.append(Patch(**style, label=f"{why} ({count_cells(cells)})"))
    if handles:
        place = _emptiest_corner(~field.drawn)
        ax.legend(handles=handles, loc=place, fontsize="x-small", framealpha=0.85, borderpad=0.3).set_zorder(6)


def _emptiest_corner(empty: np.ndarray) -> str:
    """Choose where a legend hides the fewest values."""
    n, m = (-(-size // 3) for size in empty.shape)
    corners = {"lower left": empty[:n, :m], "lower right": empty[-n:, :m],
               "upper left": empty[:n, -m:], "upper right": empty[-n:, -m:]}  # fmt: skip
    return max(corners, key=lambda corner: corners[corner].mean())


def mark_minimizer(ax: "Axes", field: Field) -> None:
    """Mark the origin, where the trained weights are, if it lies on the map."""
    if not field.at and field.first[0] <= 0 <= field.first[-1] and field.second[0] <= 0 <= field.second[-1]:
        ax.plot(0, 0, marker="*", markersize=7, color="white", markeredgecolor="black", markeredgewidth=0.6, zorder=5,
                gid="lltoolkit:minimizer")  # fmt: skip


def mark_filled_cells(ax: "Axes", field: Field, inks: np.ndarray) -> None:
    """Put a dot on each cell whose value was not computed on all examples.

    Parameters
    ----------
    ax : Axes
        Where.
    field : Field
        What is drawn.
    inks : ndarray of str
        Shape ``(n, m)``: a colour for each cell that can be seen on it.
    """
    across, along = np.meshgrid(field.first, field.second, indexing="ij")
    for word in ("interpolated", "estimated"):
        cells = getattr(field, word) & field.drawn
        for ink in np.unique(inks[cells]):  # few lines of many markers: a vector file stays small
            here = cells & (inks == ink)
            style = {"markersize": 0.9, "markeredgewidth": 0, "alpha": 0.6, "zorder": 2.5}
            ax.plot(
                across[here], along[here], "o", color=ink, gid=f"lltoolkit:{word}", scalex=False, scaley=False, **style
            )
