"""Filling the cells that were not computed: scales, and kriging in a moving window. Torch-free.

A loss that runs over many powers of ten is interpolated as its logarithm; see `Scale`. The interpolant is ordinary
kriging, the best linear unbiased prediction under a stationary covariance, with the Matérn covariance of smoothness
3/2: in the limit of long ranges it is the polyharmonic spline r^3, on a line the cubic spline. It takes points in any
constellation, so computed cells may lie where they are needed; a regular lattice is not asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from lltoolkit.labelled.lattice import Lattices

WINDOW = {1: 10, 2: 24, 3: 40}  # nearest known points that a prediction is made from, by number of axes
RANGE = 3.0  # range of the covariance in window radii: long, so that the window is filled by a smooth surface
NEAR = {1: 4, 2: 8, 3: 12}  # nearest points whose errors tell how rough the surface is here, by number of axes
NUGGET = 1e-11  # keeps the systems solvable, far below any error told
CHUNK = 256  # targets solved at once: a megabyte, which stays in the cache


@dataclass(frozen=True)
class Scale:
    """In what a metric's values are interpolated and its errors told.

    Parameters
    ----------
    kind : {"log", "range", "plain"}
        ``log``: a loss above 0 everywhere, as its natural logarithm; an error of 0.05 is 5 % of the loss.
        ``range``: a loss that touches 0 or goes below, in shares of the range of its known values.
        ``plain``: any other metric, as it is.
    unit : float
        The range, for ``range``; else 1.
    """

    kind: str
    unit: float = 1.0

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Turn values of the metric into what is interpolated."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values) if self.kind == "log" else values / self.unit

    def backward(self, scaled: np.ndarray) -> np.ndarray:
        """Turn what was interpolated into values of the metric."""
        with np.errstate(over="ignore"):
            return np.exp(scaled) if self.kind == "log" else scaled * self.unit

    def slope(self, values: np.ndarray) -> np.ndarray | float:
        """Give the change of the metric per unit of what is interpolated: it turns errors of this into the metric's."""
        return np.abs(values) if self.kind == "log" else self.unit


def choose_scale(metric: str, values: np.ndarray) -> Scale:
    """Choose the scale of one metric on one split from its known values, shape ``(n,)``; NaN and inf don't count."""
    values = values[np.isfinite(values)]
    if metric != "loss" or not len(values):
        return Scale("plain")
    if values.min() > 0:
        return Scale("log")
    return Scale("range", float(np.ptp(values)) or 1.0)


class Interpolant:
    """Kriging of several fields through the same points, with an error measured where values are known.

    At every known point the value is predicted from its neighbours without it. The residual divided by the standard
    deviation that kriging gives it (which knows only geometry) tells how rough the field is there; times the standard
    deviation at another point it tells the error to expect there.

    Parameters
    ----------
    points : ndarray
        Shape ``(n, dims)``, where the fields are known; at least 3, all different.
    fields : ndarray
        Shape ``(n_fields, n)``, finite.
    noise : ndarray, optional
        Shape ``(n_fields, n)``: standard errors of the fields where they are known. Neighbours measured on the same
        examples err together, so noise is not averaged out but handed on.

    References
    ----------
    Matheron (1963), Principles of geostatistics. Stein (1999), Interpolation of Spatial Data, sections 2 and 6.
    Dubrule (1983), Cross validation of kriging in a unique neighborhood, for the standardized residuals.
    """

    def __init__(self, points: np.ndarray, fields: np.ndarray, noise: np.ndarray | None = None):
        self._points, self._fields = points, fields
        self._noise = np.zeros_like(fields) if noise is None else np.square(noise)
        self._tree = KDTree(points)
        predicted, deviation = self._krige(points, leave_out=True)
        self._roughness = np.square((predicted - fields) / deviation)
        # A symmetric spot can have no residual by chance: one more neighbour, as rough as the typical point.
        self._typical = np.median(self._roughness, axis=1, keepdims=True)

    def predict(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict all fields elsewhere.

        Parameters
        ----------
        targets : ndarray
            Shape ``(m, dims)``.

        Returns
        -------
        values, errors : ndarray
            Shape ``(n_fields, m)`` both; the errors are standard errors.
        """
        values, deviation = self._krige(targets)
        near = min(NEAR[targets.shape[1]], len(self._points))
        _, nearest = self._tree.query(targets, k=np.arange(1, near + 1))
        roughness = (self._roughness[:, nearest].sum(axis=2) + self._typical) / (near + 1)
        noise = self._noise[:, nearest].mean(axis=2)
        return values, np.sqrt(roughness * deviation**2 + noise)

    def _krige(self, targets: np.ndarray, *, leave_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._krige_some(targets[i : i + CHUNK], leave_out) for i in range(0, max(len(targets), 1), CHUNK)]
        return np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts])

    def _krige_some(self, targets: np.ndarray, leave_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """Solve the kriging system of each target's window."""
        first = int(leave_out)  # a known point's nearest point is itself
        size = min(WINDOW[targets.shape[1]], len(self._points) - first)
        distance, window = self._tree.query(targets, k=np.arange(1 + first, 1 + first + size))
        reach = RANGE * distance[:, -1:]
        between = np.zeros((len(targets), size, size))
        for axis in self._points.T:
            inside = axis[window] / reach
            between += np.square(inside[:, :, None] - inside[:, None])
        matrix = _matern(np.sqrt(between)) + NUGGET * np.eye(size)
        towards = _matern(distance / reach)
        solved = np.linalg.solve(matrix, np.stack([towards, np.ones_like(towards)], axis=-1))
        drift = (1 - solved[:, :, 0].sum(axis=1)) / solved[:, :, 1].sum(axis=1)
        weights = solved[:, :, 0] + drift[:, None] * solved[:, :, 1]
        variance = 1 - (towards * solved[:, :, 0]).sum(axis=1) + drift * (1 - solved[:, :, 0].sum(axis=1))
        # In windows of all sizes the same unit: beyond a smooth part the covariance falls as (distance / reach)^3.
        deviation = np.sqrt(np.maximum(variance, NUGGET) * reach[:, 0] ** 3)
        return np.einsum("mk,fmk->fm", weights, self._fields[:, window]), deviation


def _matern(distance: np.ndarray) -> np.ndarray:
    """Matérn covariance of smoothness 3/2, variance 1 and range 1."""
    return (1 + distance) * np.exp(-distance)


class Fields:
    """All metrics of all splits as rows, each on its scale.

    Parameters
    ----------
    values : mapping
        Metric -> ``(n_splits, n)``: known values, which choose the scales.
    """

    def __init__(self, values: Mapping[str, np.ndarray]):
        self.metrics = {name: len(block) for name, block in values.items()}
        self.scales = [choose_scale(name, row) for name, block in values.items() for row in block]

    def rows(self, *metrics: str) -> np.ndarray:
        """Tell which rows belong to the metrics; shape ``(n_fields,)``, bool."""
        return np.array([name in metrics for name, n_splits in self.metrics.items() for _ in range(n_splits)])

    def pack(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scale metric -> ``(n_splits, n)`` to ``(n_fields, n)``."""
        return np.stack([scale.forward(row) for scale, row in zip(self.scales, self._stack(values), strict=True)])

    def unpack(self, scaled: np.ndarray) -> dict[str, np.ndarray]:
        """Give metric -> ``(n_splits, n)``, in its own units; an accuracy stays in [0, 1]."""
        rows = [scale.backward(row) for scale, row in zip(self.scales, scaled, strict=True)]
        return {name: np.clip(block, 0, 1) if name == "accuracy" else block for name, block in self._split(rows)}

    def pack_errors(self, values: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scale standard errors of these values."""
        rows = zip(self.scales, self._stack(values), self._stack(errors), strict=True)
        return np.stack([error / scale.slope(value) for scale, value, error in rows])

    def unpack_errors(self, values: Mapping[str, np.ndarray], scaled: np.ndarray) -> dict[str, np.ndarray]:
        """Give standard errors in the metrics' own units, at these values; to first order."""
        rows = zip(self.scales, self._stack(values), scaled, strict=True)
        return dict(self._split([error * scale.slope(value) for scale, value, error in rows]))

    def _stack(self, blocks: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([blocks[name] for name in self.metrics])

    def _split(self, rows: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
        ends = np.cumsum(list(self.metrics.values()))[:-1]
        return list(zip(self.metrics, np.split(np.stack(rows), ends), strict=True))


def picture(
    coords: Mapping[str, np.ndarray], cells: np.ndarray, values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Fill a whole picture from the cells known so far, as a live view of a surface under way.

    Parameters
    ----------
    coords : mapping
        As in `empty_surface`.
    cells : ndarray
        Shape ``(k,)``: flat positions of the known cells, in any order.
    values : mapping
        Metric -> ``(n_splits, k)``; NaN and inf are kept where they are, and nothing is drawn from them.

    Returns
    -------
    dict
        Metric -> ``(n_splits, n_cells)``; NaN everywhere else while fewer than 3 finite cells are known.
    """
    grid = Lattices(coords)
    whole = {name: np.full((len(block), grid.n_cells), np.nan) for name, block in values.items()}
    sound = np.all([np.isfinite(block).all(axis=0) for block in values.values()], axis=0)
    inner = np.argsort(cells[sound])
    known = {name: block[:, sound][:, inner] for name, block in values.items()}
    if len(inner) >= 3:
        fields = Fields(known)
        surface = Interpolant(grid.points[cells[sound][inner]], fields.pack(known))
        whole = fields.unpack(surface.predict(grid.points)[0])
    for name, block in values.items():
        whole[name][:, cells] = block
    return whole
