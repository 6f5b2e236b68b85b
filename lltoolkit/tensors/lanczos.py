"""Lanczos with full reorthogonalization: both ends of a symmetric operator's spectrum from one Krylov space."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lltoolkit.errors import require_whole

Matvec: TypeAlias = Callable[[Tensor], Tensor]
MIN_STEPS = 8  # before a small residual is believed at all: it proves an eigenvalue, not the extreme one
MAX_STEPS = 500
MAX_BASIS = 100  # vectors kept; beyond, the space is folded to the Ritz vectors of both ends and grows again
KEPT = 12  # Ritz vectors of each end that survive a folding


@dataclass(frozen=True)
class Extremes:
    """Both ends of a spectrum.

    Attributes
    ----------
    eig_min, eig_max : float
        The smallest and the largest Ritz value; NaN where the operator gives NaN.
    vector_min, vector_max : Tensor or None
        Their Ritz vectors, shape ``(n,)``, of unit length.
    residual_min, residual_max : float
        ``||A v - lambda v||``: within so much of each value lies an eigenvalue.
    n_hvp : int
        Products with the operator.
    converged : bool
        Whether both residuals came under the tolerance.
    """

    eig_min: float
    eig_max: float
    vector_min: Tensor | None
    vector_max: Tensor | None
    residual_min: float
    residual_max: float
    n_hvp: int
    converged: bool


class Krylov:
    """A growing orthonormal basis of Krylov vectors with the operator's projection on it.

    Parameters
    ----------
    matvec : callable
        The symmetric operator, ``(n,)`` to ``(n,)``.
    start : Tensor
        Shape ``(n,)``, not zero; its dtype and device are the basis's.
    max_basis : int
        Vectors to hold at a time.

    Attributes
    ----------
    size : int
        Vectors that the operator has been applied to, among those held.
    n_products : int
        Products so far.
    coupling : float
        Norm of what the last product left outside of the basis; 0 where the space is invariant.
    """

    def __init__(self, matvec: Matvec, start: Tensor, max_basis: int) -> None:
        self._matvec = matvec
        self._capacity = max(2, min(max_basis, start.numel()))
        self._basis = start.new_empty((min(16, self._capacity) + 1, start.numel()))
        self._basis[0] = start / start.norm()
        self._projection = np.zeros((self._capacity, self._capacity))
        self.size = 0
        self.n_products = 0
        self.coupling = math.inf
        self._scale = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the next step needs a folding first."""
        return self.size == self._capacity

    def step(self) -> bool:
        """Apply the operator to the newest vector and orthogonalize what comes out.

        Returns
        -------
        bool
            Whether it was finite; if not, the space stays as it was.
        """
        place = self.size
        image = self._matvec(self._basis[place])
        self.n_products += 1
        norm = float(image.norm())
        if not math.isfinite(norm):
            return False
        known = self._basis[: place + 1]
        # Twice: once leaves rounding of the size of what was taken away, which grows into ghosts of an eigenvalue.
        first = known @ image
        image = image - first @ known
        second = known @ image
        image = image - second @ known
        column = (first.double() + second.double()).cpu().numpy()
        self._projection[: place + 1, place] = self._projection[place, : place + 1] = column
        self._scale = max(self._scale, norm)
        self.size = place + 1
        self.coupling = float(image.norm())
        if self.coupling <= 10 * torch.finfo(image.dtype).eps * self._scale or self.size == image.numel():
            self.coupling = 0.0  # the space is invariant
        else:
            if self.size == len(self._basis):
                grown = image.new_empty((min(2 * self.size, self._capacity) + 1, image.numel()))
                grown[: self.size] = self._basis
                self._basis = grown
            self._basis[self.size] = image / self.coupling
        return True

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solve the projected problem.

        Returns
        -------
        values : ndarray
            Shape ``(size,)``, rising.
        coefficients : ndarray
            Shape ``(size, size)``: a column for each Ritz vector.
        residuals : ndarray
            Shape ``(size,)``; at least the rounding of a product.
        """
        values, coefficients = np.linalg.eigh(self._projection[: self.size, : self.size])
        # No product is more exact than its rounding, whatever the recurrence says.
        rounding = torch.finfo(self._basis.dtype).eps * self._scale
        return values, coefficients, np.maximum(self.coupling * np.abs(coefficients[-1]), rounding)

    def vectors(self, coefficients: np.ndarray) -> Tensor:
        """Put Ritz vectors together: ``(size, k)`` to ``(k, n)``."""
        weights = torch.as_tensor(coefficients.T.copy()).to(self._basis)
        return weights @ self._basis[: self.size]

    def fold(self, n_kept: int) -> None:
        """Keep the Ritz vectors of both ends and go on from there (thick restart: Wu and Simon 2000)."""
        values, coefficients, _ = self.ritz()
        n_kept = max(1, min(n_kept, (self.size - 1) // 2))
        chosen = np.r_[:n_kept, self.size - n_kept : self.size]
        newest = self._basis[self.size].clone()
        self._basis[: len(chosen)] = self.vectors(coefficients[:, chosen])
        self._basis[len(chosen)] = newest
        self._projection[:] = 0.0
        # Their couplings to the newest vector come with its own product.
        self._projection[np.arange(len(chosen)), np.arange(len(chosen))] = values[chosen]
        self.size = len(chosen)


def extreme_eigenvalues(
    matvec: Matvec,
    start: Tensor,
    *,
    tol: float = 1e-2,
    min_steps: int = MIN_STEPS,
    max_steps: int = MAX_STEPS,
    max_basis: int = MAX_BASIS,
) -> Extremes:
    """Find the smallest and the largest eigenvalue of a symmetric operator from one Krylov space.

    Parameters
    ----------
    matvec : callable
        The operator: ``(n,)`` to ``(n,)``.
    start : Tensor
        Shape ``(n,)``. Random, or near both extreme eigenvectors with something random in it: a start that is
        orthogonal to an eigenvector never finds it.
    tol : float
        Both residuals must be at most ``tol`` times the largest eigenvalue (of the largest in magnitude, if no
        eigenvalue is positive). An eigenvalue lies within the residual of each value.
    min_steps : int
        Products before residuals are looked at. A small residual proves an eigenvalue, not the extreme one: a start
        near inner eigenvectors passes at once, and only further steps let the random part find what lies outside.
    max_steps : int
        Products at most.
    max_basis : int
        Vectors of size n held at a time.

    Returns
    -------
    Extremes
        With NaN and ``converged=False`` where the operator gives NaN or inf.

    Raises
    ------
    ValueError
        If `start` is zero or not finite, or a number is out of range.

    References
    ----------
    Parlett (1998), The Symmetric Eigenvalue Problem, chapter 13; Wu and Simon (2000), Thick-restart Lanczos method.

    Examples
    --------
    >>> diagonal = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    >>> found = extreme_eigenvalues(lambda vector: diagonal * vector, torch.ones(3, dtype=torch.float64))
    >>> round(found.eig_min, 6), round(found.eig_max, 6), found.converged
    (-1.0, 3.0, True)
    """
    found = eigenpairs(
        matvec,
        start,
        n_low=1,
        n_high=1,
        tol=tol,
        min_steps=min_steps,
        max_steps=max_steps,
        max_basis=max_basis,
    )
    lowest, highest = (None, None) if found.vectors is None else found.vectors
    return Extremes(
        float(found.values[0]),
        float(found.values[-1]),
        lowest,
        highest,
        float(found.residuals[0]),
        float(found.residuals[-1]),
        found.n_hvp,
        found.converged,
    )


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues at each end of a spectrum.

    Attributes
    ----------
    values : ndarray
        The lowest, rising, then the highest, rising; shape ``(n_low + n_high,)``; NaN where the operator gives NaN.
    vectors : Tensor or None
        Shape ``(n_low + n_high, n)``, of unit length.
    residuals : ndarray
        ``||A v - lambda v||`` of each.
    n_hvp : int
        Products with the operator.
    converged : bool
        Whether all residuals came under the tolerance.
    """

    values: np.ndarray
    vectors: Tensor | None
    residuals: np.ndarray
    n_hvp: int
    converged: bool


def eigenpairs(
    matvec: Matvec,
    start: Tensor,
    *,
    n_low: int = 0,
    n_high: int = 2,
    tol: float = 1e-3,
    min_steps: int = MIN_STEPS,
    max_steps: int = MAX_STEPS,
    max_basis: int = MAX_BASIS,
) -> Eigenpairs:
    """Find several eigenvalues at each end, with their vectors; of equal eigenvalues one is found.

    Parameters
    ----------
    matvec, start, tol, min_steps, max_steps, max_basis
        As in `extreme_eigenvalues`; `max_basis` at least ``4 * (n_low + n_high) + 2``.
    n_low, n_high : int
        How many of the lowest and of the highest, together at least 1. Where the space has fewer different eigenvalues
        than both together, some stand at both ends.

    Returns
    -------
    Eigenpairs
        With NaN and ``converged=False`` where the operator gives NaN or inf.

    Raises
    ------
    ValueError
        If `start` is zero or not finite, or a number is out of range.
    """
    _require_start(start)
    require_tolerance(tol)
    min_steps = require_whole("min_steps", min_steps, least=1)
    max_steps = require_whole("max_steps", max_steps, least=1)
    n_wanted = require_whole("n_low", n_low) + require_whole("n_high", n_high)
    if n_wanted == 0 or max(n_low, n_high) > start.numel():
        raise ValueError(f"{n_low} lowest and {n_high} highest eigenvalues of {start.numel()} can't be given.")
    krylov = Krylov(matvec, start, max(max_basis, 4 * n_wanted + 2))
    while True:
        if krylov.is_full:
            krylov.fold(max(KEPT, 2 * n_low, 2 * n_high))
        if not krylov.step():
            nothing = np.full(n_wanted, np.nan)
            return Eigenpairs(nothing, None, nothing, krylov.n_products, converged=False)
        values, coefficients, residuals = krylov.ritz()
        size = len(values)
        chosen = np.r_[: min(n_low, size), max(size - n_high, 0) : size]
        largest = values[-1] if values[-1] > 0 else -values[0]
        small = len(chosen) == n_wanted and float(residuals[chosen].max()) <= tol * largest
        converged = krylov.coupling == 0.0 or (krylov.n_products >= min_steps and small)
        if converged or krylov.n_products >= max_steps:
            break
    if len(chosen) < n_wanted:
        raise ValueError(
            f"only {size} eigenvalues are found in {krylov.n_products} steps, {n_low} lowest and {n_high} highest are "
            "asked for: the operator has no more different ones, or max_steps is too small."
        )
    vectors = krylov.vectors(coefficients[:, chosen])
    return Eigenpairs(
        values[chosen],
        vectors / vectors.norm(dim=1, keepdim=True),
        residuals[chosen],
        krylov.n_products,
        converged,
    )


def tridiagonalize(matvec: Matvec, start: Tensor, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run Lanczos for a number of steps and give the tridiagonal matrix.

    Parameters
    ----------
    matvec : callable
        The operator: ``(n,)`` to ``(n,)``.
    start : Tensor
        Shape ``(n,)``.
    n_steps : int
        Products; fewer are made where the space becomes invariant before.

    Returns
    -------
    diagonal, off_diagonal : ndarray
        Shapes ``(k,)`` and ``(k - 1,)``, float64, ``k <= n_steps``. Its eigenvalues are the nodes, the squares of its
        eigenvectors' first entries the weights of Gauss's quadrature for the spectral measure of `start` (Golub and
        Welsch 1969).

    Raises
    ------
    ValueError
        If `start` is zero or not finite, or the operator gives NaN or inf.
    """
    _require_start(start)
    krylov = Krylov(matvec, start, require_whole("n_steps", n_steps, least=1))
    couplings = []
    while krylov.size < min(n_steps, start.numel()):
        if not krylov.step():
            raise ValueError("the operator gives NaN or inf: there is no spectrum where the loss is not finite.")
        couplings.append(krylov.coupling)
        if krylov.coupling == 0.0:
            break
    return np.diag(krylov._projection)[: krylov.size].copy(), np.array(couplings[: krylov.size - 1])


def require_tolerance(tol: float) -> None:
    """Check a tolerance of eigenvalues.

    Raises
    ------
    ValueError
        If it is no share.
    """
    if isinstance(tol, bool | str) or not 0 < tol < 1:
        raise ValueError(f"tol={tol!r}: give a share of the largest eigenvalue in (0, 1), 0.01 for example.")


def _require_start(start: Tensor) -> None:
    if not math.isfinite(norm := float(start.norm())) or norm == 0.0:
        raise ValueError(f"the start vector has the norm {norm}; a direction is wanted.")
