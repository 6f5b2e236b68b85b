"""The cells of a grid as nested lattices, coarse to fine around the origin. Torch-free."""

import math
from collections.abc import Mapping

import numpy as np
from scipy.ndimage import maximum_filter

from lltoolkit.labelled.surface import cell_order

LEAST_STEPS = {1: 8, 2: 6, 3: 4}  # of the coarsest lattice along an axis, by the number of axes


class Lattices:
    """Where the cells of a grid lie, and which of them belong to each level.

    The lattice of a level holds every cell whose distance from the origin is a multiple of the level's stride, along
    every axis, and the two ends. Strides are powers of two, so each lattice holds the coarser ones, and the lattices
    of a grid with twice the points hold the same coordinates.

    Parameters
    ----------
    coords : mapping
        Axis name to its coordinates, shape ``(n,)``, in the order of the axes; rising or falling, evenly or not.
    """

    def __init__(self, coords: Mapping[str, np.ndarray]):
        axes = list(coords.values())
        self.shape = tuple(len(axis) for axis in axes)
        self.n_cells = math.prod(self.shape)
        self.order = cell_order(coords)
        self.rank = np.argsort(self.order, kind="stable")  # of each cell in the order of computing
        self._origins = [int(np.argmin(np.abs(axis))) for axis in axes]
        # The first power of two that leaves enough steps along the axis, and 1 on a short one.
        steps = LEAST_STEPS[len(axes)]
        self._strides = [2 ** max(0, int(math.log2(max(n - 1, 1) / steps))) for n in self.shape]
        self.n_levels = 1 + int(math.log2(max(self._strides)))
        # In steps of the grid, not in its coordinates: a grid that is denser somewhere is so for a reason. All axes
        # are as long as the longest, since the unit of an axis is its own.
        length = max(self.shape) - 1
        scaled = [np.arange(n) * (length / (n - 1)) for n in self.shape]
        self.points = np.stack(np.meshgrid(*scaled, indexing="ij"), axis=-1).reshape(self.n_cells, len(axes))

    def strides(self, level: int) -> list[int]:
        """Give the strides of a level along the axes: 1 along all at the last level."""
        return [max(1, stride >> level) for stride in self._strides]

    def lattice(self, level: int) -> np.ndarray:
        """Tell the cells of a level from the others.

        Returns
        -------
        ndarray
            Shape ``(n_cells,)``, bool.
        """
        lines = [
            _lines(n, origin, stride)
            for n, origin, stride in zip(self.shape, self._origins, self.strides(level), strict=True)
        ]
        return np.logical_and.reduce(np.meshgrid(*lines, indexing="ij")).ravel()

    def first(self, n_rings: int) -> np.ndarray:
        """Choose the cells to begin with: the coarsest lattice, and around the origin some of the next ones.

        Parameters
        ----------
        n_rings : int
            Of how many levels the cells beside the origin are taken too: the loss varies most near the minimizer.

        Returns
        -------
        ndarray
            Shape ``(n_cells,)``, bool.
        """
        origin = np.arange(self.n_cells) == self.order[0]
        chosen = self.lattice(0)
        for level in range(1, min(n_rings + 1, self.n_levels)):
            chosen |= self.lattice(level) & self.around(origin, level)
        return chosen

    def around(self, cells: np.ndarray, level: int) -> np.ndarray:
        """Widen a set of cells by one stride of a level along every axis.

        Parameters
        ----------
        cells : ndarray
            Shape ``(n_cells,)``, bool.
        level : int
            Whose stride.

        Returns
        -------
        ndarray
            Shape ``(n_cells,)``, bool.
        """
        size = [2 * stride + 1 for stride in self.strides(level)]
        return maximum_filter(cells.reshape(self.shape), size=size, mode="constant").ravel()

    def sort(self, cells: np.ndarray) -> np.ndarray:
        """Put cells into the order of computing, coarse to fine."""
        return cells[np.argsort(self.rank[cells], kind="stable")]


def _lines(n: int, origin: int, stride: int) -> np.ndarray:
    """Choose the lines of one axis: multiples of the stride from the origin, both ends, none crowding an end."""
    index = np.arange(n)
    to_end = np.minimum(index, n - 1 - index)
    multiples = (index - origin) % stride == 0
    return (multiples & ((2 * to_end >= stride) | (index == origin))) | (to_end == 0)
