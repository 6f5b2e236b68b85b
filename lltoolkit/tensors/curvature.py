"""CurvatureEvaluator: extreme Hessian eigenvalues of neighbouring cells, in this process or in a worker's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lltoolkit.tensors.examples import Examples
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.lanczos import Extremes, extreme_eigenvalues
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.subspace import Subspace

# Length of the random part of a warm start, beside the neighbour's two eigenvectors of length 1. Without it a start
# between inner eigenvectors would never leave them; a longer one costs products.
FRESH = 0.2
# Products of a cold start before its residuals are believed. The lower end is found late: of nine cold cells of a small
# network on digits (910 weights, tol 0.01) 8 products left three off by up to 0.024 lambda_max, 16 none, 24 at most
# 0.0004; and cells that start from a neighbour inherit its vectors. A tile has one cold cell: that is 1 product a cell.
COLD_STEPS = 24
AUDIT_TOL = 1e-6

_KINDS = {
    "n_hvp": np.int32,
    "audit_n_hvp": np.int32,
    "converged": np.int8,
    "audit_converged": np.int8,
}  # the others are float64


@dataclass(frozen=True)
class TileTask:
    """Neighbouring cells, to be computed one after the other.

    Attributes
    ----------
    cells : ndarray
        Shape ``(k,)``: their numbers, for whoever asked.
    points : list
        Their coordinates; each cell is a neighbour of the one before.
    audited : ndarray of bool
        Shape ``(k,)``: cells to compute a second time, cold and to a tight tolerance.
    """

    cells: np.ndarray
    points: list[tuple[float, ...]]
    audited: np.ndarray


@dataclass(frozen=True)
class TileResult:
    """What a tile gave.

    Attributes
    ----------
    values : dict
        Variable to its values, shape ``(k,)``, in the order of the task.
    batch_size : int
        Of the passes; smaller than it was set to where memory ran out.
    """

    values: dict[str, np.ndarray]
    batch_size: int


class CurvatureEvaluator:
    """Do tiles: the Hessian of an objective along a subspace.

    Parameters
    ----------
    objective : Objective
        Whose loss is differentiated.
    subspaces : sequence of Subspace
        Where: one.
    how : mapping
        ``split``, ``parameters``, ``metric`` and ``tol``, as `compute_curvature` takes them; ``batch_size``,
        ``n_threads`` and ``precision``; ``n_beside``, where several processes share the memory of a device.
    on_cell : callable, optional
        Given the loss of each cell as it is done.
    """

    def __init__(
        self,
        objective: Objective,
        subspaces: Sequence[Subspace],
        how: Mapping[str, Any],
        on_cell: Callable[[float], None] | None = None,
    ) -> None:
        objective.compute_as(int(how["batch_size"]), int(how["n_threads"]), str(how["precision"]))
        self._objective = objective
        # Processes side by side, who open their points at the same moment, must not each take half of what is free.
        options = {name: how[name] for name in ("split", "parameters", "metric")}
        self._hessian = Hessian(objective, **options, beside=int(how.get("n_beside", 1)))
        (self._subspace,) = subspaces
        self._tol = float(how["tol"])
        self._on_cell = on_cell

    @classmethod
    def make(
        cls,
        objective: Objective,
        subspaces: Sequence[Subspace],
        how: Mapping[str, Any],
        examples: Mapping[str, Examples],
        device: str | None,
    ) -> "CurvatureEvaluator":
        """Make one in a worker, from an objective that came without its examples."""
        objective.attach(examples)
        return cls(objective, subspaces, how)

    def __call__(self, task: TileTask) -> TileResult:
        """Compute a tile: its first cell from a random start, each other one from its neighbour's eigenvectors.

        Parameters
        ----------
        task : TileTask
            The cells.

        Returns
        -------
        TileResult
            The same, bit for bit, whatever was computed before, unless memory is short. Where the loss is not finite,
            neither are the eigenvalues.
        """
        rows = []
        before: Extremes | None = None
        for point, audited in zip(task.points, task.audited, strict=True):
            row, before = self._compute(point, before, bool(audited))
            rows.append(row)
            if self._on_cell is not None:
                self._on_cell(row["loss"])
        values = {name: np.array([row[name] for row in rows], _KINDS.get(name, np.float64)) for name in rows[0]}
        return TileResult(values, self._hessian.batch_size)

    def _compute(
        self, point: tuple[float, ...], before: Extremes | None, audited: bool
    ) -> tuple[dict[str, float], Extremes | None]:
        found = audit = None
        with self._hessian.at(self._subspace.at(*point)) as here:
            if math.isfinite(here.loss):
                cold = before is None or before.vector_min is None
                options = {"min_steps": COLD_STEPS} if cold else {}
                found = extreme_eigenvalues(here, self.start(point, before), tol=self._tol, **options)
                if audited:
                    audit = extreme_eigenvalues(here, self._random("audit", point), tol=AUDIT_TOL)
        row = {"loss": here.loss, **_describe(found)}
        ends = _describe(audit)
        return row | {f"audit_{name}": ends[name] for name in ("eig_min", "eig_max", "n_hvp", "converged")}, found

    def start(self, point: tuple[float, ...], before: Extremes | None) -> Tensor:
        """Make the vector from which a cell's Krylov space grows.

        Parameters
        ----------
        point : tuple of float
            The cell's coordinates, which name its random stream.
        before : Extremes, optional
            What its neighbour gave.

        Returns
        -------
        Tensor
            Shape ``(n,)``: random, or the sum of the neighbour's two eigenvectors and a random part of length `FRESH`.
        """
        fresh = self._random("start", point)
        if before is None or before.vector_min is None or before.vector_max is None:
            return fresh
        return before.vector_min + before.vector_max + FRESH * fresh

    def _random(self, purpose: str, point: tuple[float, ...]) -> Tensor:
        hessian = self._hessian
        stream = generator("curvature", purpose, self._objective.seed, *point)
        vector = torch.randn(hessian.n, generator=stream, dtype=hessian.dtype).to(hessian.device)
        if hessian.scale is not None:
            vector = vector * (hessian.scale != 0)  # where nothing moves there is no curvature to be found, not even 0
        return vector / vector.norm()


def _describe(found: Extremes | None) -> dict[str, float]:
    if found is None:
        return dict.fromkeys(("eig_min", "eig_max", "residual_min", "residual_max"), math.nan) | {
            "n_hvp": 0,
            "converged": 0,
        }
    return {
        "eig_min": found.eig_min,
        "eig_max": found.eig_max,
        "residual_min": found.residual_min,
        "residual_max": found.residual_max,
        "n_hvp": found.n_hvp,
        "converged": int(found.converged),
    }
