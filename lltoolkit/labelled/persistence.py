"""Local minima that matter: topological persistence of the sublevel sets of a grid. Torch-free."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Minima:
    """Every local minimum of a grid, the deepest first.

    Attributes
    ----------
    cells : ndarray
        Shape ``(k,)``: flat (row-major) positions.
    persistence : ndarray
        Shape ``(k,)``: how far one must climb from it before the ground falls to a lower minimum; in the units of the
        values. Infinite for the lowest one of each connected part of the grid.
    saddles : ndarray
        Shape ``(k,)``: flat position of the pass over which one leaves it; -1 where the persistence is infinite.
    at_edge : ndarray
        Shape ``(k,)``, bool: some neighbour of its floor (the cells of its height that hang together with it) is
        beyond the grid or not known, so it may be no minimum of the function.
    """

    cells: np.ndarray
    persistence: np.ndarray
    saddles: np.ndarray
    at_edge: np.ndarray


def find_minima(values: np.ndarray, known: np.ndarray) -> Minima:
    """Pair every local minimum of a grid with the pass to a lower one.

    The water rises; each minimum begins a lake, and where two lakes meet, the one with the higher bottom ends: its
    persistence is the level less its bottom; of equal bottoms one at the edge ends first. Each cell touches all cells
    around it, the diagonal ones too (8 in a plane), so a valley that runs askew over the grid is one valley.

    Parameters
    ----------
    values : ndarray
        Shape ``(n, ...)``, of one to three dimensions.
    known : ndarray
        Same shape, bool: the other cells are no part of the ground, and no lake flows through them. A known +inf is a
        wall.

    Returns
    -------
    Minima
        Without those of persistence 0, such as the further cells of a flat floor.

    References
    ----------
    Edelsbrunner, Letscher and Zomorodian (2002), Topological persistence and simplification; dimension 0, by
    union-find and the rule that the elder survives.

    Examples
    --------
    >>> found = find_minima(np.array([3.0, 0.0, 2.0, 1.0, 4.0]), np.ones(5, dtype=bool))
    >>> found.cells, found.persistence
    (array([1, 3]), array([inf,  1.]))
    """
    level, around = _padded(values, known)
    heights = level.ravel()
    ground = np.flatnonzero(np.isfinite(heights))
    order = ground[np.argsort(heights[ground], kind="stable")]
    parent: dict[int, int] = {}  # of the cells under water; a lake's root is its bottom
    beside = np.isnan(heights[ground[:, None] + around]).any(axis=1)
    edge = _Floors(heights, around, set(ground[beside].tolist()))

    def bottom(cell: int) -> int:
        while parent[cell] != cell:
            parent[cell] = parent[parent[cell]]
            cell = parent[cell]
        return cell

    ended: dict[int, int] = {}  # bottom -> saddle
    # Equal bottoms go by their floors and not by their places alone, so that a mirrored grid gives the mirrored minima.
    age: dict[int, tuple[float, bool, int]] = {}
    for place, cell in enumerate(order.tolist()):
        lakes = sorted({bottom(cell + step) for step in around if cell + step in parent}, key=age.__getitem__)
        if not lakes:
            age[cell] = (float(heights[cell]), edge.reaches(cell), place)
        parent[cell] = lakes[0] if lakes else cell
        for lake in lakes[1:]:
            parent[lake] = lakes[0]
            ended[lake] = cell
    bottoms = [cell for cell in parent if parent[cell] == cell and cell not in ended] + list(ended)
    cells = np.array(bottoms, dtype=np.int64)
    saddles = np.array([ended.get(cell, -1) for cell in bottoms], dtype=np.int64)
    persistence = np.where(saddles < 0, np.inf, heights[saddles] - heights[cells])
    kept = persistence > 0
    deepest = np.lexsort((heights[cells], -persistence))
    deepest = deepest[kept[deepest]]
    at_edge = np.array([edge.reaches(cell) for cell in cells[deepest].tolist()], dtype=bool)
    return Minima(
        _unpadded(cells[deepest], level.shape), persistence[deepest], _unpadded(saddles[deepest], level.shape), at_edge
    )


class _Floors:
    """Tells which level floors reach the edge; each floor is walked once."""

    def __init__(self, heights: np.ndarray, around: np.ndarray, edge: set[int]) -> None:
        self._heights = heights
        self._around = around.tolist()
        self._edge = edge
        self._known: dict[int, bool] = {}

    def reaches(self, cell: int) -> bool:
        """Tell whether any cell of this cell's floor has a neighbour that is beyond the grid or not known."""
        if cell not in self._known:
            floor, waiting = {cell}, [cell]
            while waiting:
                here = waiting.pop()
                level = [here + step for step in self._around if self._heights[here + step] == self._heights[cell]]
                waiting += [there for there in level if there not in floor]
                floor.update(level)
            self._known |= dict.fromkeys(floor, not floor.isdisjoint(self._edge))
        return self._known[cell]


def _padded(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put a frame of NaN around the grid, NaN where nothing is known; and the steps to a cell's neighbours."""
    # Of a transposed array NumPy makes a padded one in its order, and the steps are those of row-major order.
    level = np.ascontiguousarray(np.pad(np.where(known, values, np.nan), 1, constant_values=np.nan))
    strides = np.array(level.strides) // level.itemsize
    offsets = np.array([step for step in itertools.product((-1, 0, 1), repeat=level.ndim) if any(step)])
    return level, offsets @ strides


def _unpadded(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    inner = tuple(size - 2 for size in shape)
    places = np.unravel_index(np.maximum(cells, 0), shape)
    flat = np.ravel_multi_index([np.clip(place - 1, 0, None) for place in places], inner)
    return np.where(cells < 0, -1, flat)
