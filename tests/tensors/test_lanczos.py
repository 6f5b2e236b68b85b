"""Lanczos against dense eigenvalues, scipy and the closed form of a quadrature."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh

from lltoolkit.tensors.lanczos import Krylov, eigenpairs, extreme_eigenvalues, tridiagonalize


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=draw, dtype=torch.float64)
    return (matrix + matrix.T) / 2


def start(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(n=st.integers(1, 60), seed=st.integers(0, 10_000), max_basis=st.integers(26, 100))
def test_both_ends_of_any_symmetric_matrix(n, seed, max_basis):
    matrix = symmetric(n, seed)
    found = extreme_eigenvalues(lambda v: matrix @ v, start(n, seed + 1), tol=1e-9, max_basis=max_basis)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    scale = float(eigenvalues.abs().max())
    assert found.converged
    assert found.eig_min == pytest.approx(float(eigenvalues[0]), abs=1e-8 * scale)
    assert found.eig_max == pytest.approx(float(eigenvalues[-1]), abs=1e-8 * scale)


def test_vectors_and_residuals_are_those_of_the_operator():
    matrix = symmetric(80)
    found = extreme_eigenvalues(lambda v: matrix @ v, start(80), tol=1e-3)
    for value, vector, residual in (
        (found.eig_min, found.vector_min, found.residual_min),
        (found.eig_max, found.vector_max, found.residual_max),
    ):
        assert float(vector.norm()) == pytest.approx(1)
        assert float((matrix @ vector - value * vector).norm()) == pytest.approx(residual, rel=1e-6, abs=1e-10)
        assert residual <= 1e-3 * found.eig_max


def test_one_space_needs_fewer_products_than_scipy_does_for_two():
    diagonal = torch.linspace(-1, 1, 400, dtype=torch.float64) ** 3
    diagonal[-1], diagonal[0] = 3.0, -1.5
    count = []

    def product(vector):
        count.append(1)
        return diagonal.numpy() * vector

    operator = LinearOperator((400, 400), matvec=product, dtype=np.float64)
    ends = [eigsh(operator, k=1, which=which, tol=1e-2, v0=start(400).numpy())[0][0] for which in ("SA", "LA")]
    found = extreme_eigenvalues(lambda v: diagonal * v, start(400))
    assert found.eig_min == pytest.approx(ends[0], abs=0.03)
    assert found.eig_max == pytest.approx(ends[1], abs=0.03)
    assert 2 * found.n_hvp < len(count)


def test_folding_the_space_costs_no_accuracy():
    diagonal = torch.linspace(-1, 1, 500, dtype=torch.float64)  # no gap at either end: many steps
    whole = extreme_eigenvalues(lambda v: diagonal * v, start(500), tol=1e-6)
    folded = extreme_eigenvalues(lambda v: diagonal * v, start(500), tol=1e-6, max_basis=40, max_steps=2000)
    assert folded.converged
    assert folded.n_hvp > 60
    for found in (whole, folded):
        assert found.eig_max == pytest.approx(1, abs=1e-6)
        assert found.eig_min == pytest.approx(-1, abs=1e-6)


def test_a_good_start_is_quicker_and_its_random_part_finds_what_lies_outside():
    matrix = symmetric(200)
    values, vectors = torch.linalg.eigh(matrix)
    cold = extreme_eigenvalues(lambda v: matrix @ v, start(200))
    near = vectors[:, 0] + vectors[:, -1] + 0.1 * start(200) / 200**0.5
    warm = extreme_eigenvalues(lambda v: matrix @ v, near)
    assert warm.n_hvp < cold.n_hvp
    # Inner eigenvectors pass the residual test at once; only the random part leads out.
    inner = vectors[:, 90] + vectors[:, 110]
    caught = extreme_eigenvalues(lambda v: matrix @ v, inner, min_steps=1)
    assert caught.eig_max < values[-20]
    led_out = extreme_eigenvalues(lambda v: matrix @ v, inner + 0.1 * start(200) / 200**0.5, tol=1e-3)
    assert led_out.eig_max == pytest.approx(float(values[-1]), rel=1e-3)


def test_negative_definite_operators_have_ends_too():
    found = extreme_eigenvalues(lambda v: -torch.arange(1.0, 31, dtype=torch.float64) * v, start(30), tol=1e-6)
    assert (found.eig_min, found.eig_max) == pytest.approx((-30, -1), rel=1e-4)
    zero = extreme_eigenvalues(lambda v: 0 * v, start(30))
    assert (zero.eig_min, zero.eig_max, zero.converged, zero.n_hvp) == (0, 0, True, 1)


def test_too_few_steps_are_told():
    diagonal = torch.linspace(-1, 1, 500, dtype=torch.float64)
    found = extreme_eigenvalues(lambda v: diagonal * v, start(500), tol=1e-8, max_steps=10)
    assert not found.converged
    assert found.n_hvp == 10
    assert found.residual_max > 1e-8


def test_nan_is_nan():
    found = extreme_eigenvalues(lambda v: v * math.nan, start(5))
    assert math.isnan(found.eig_min)
    assert not found.converged
    with pytest.raises(ValueError, match="NaN"):
        tridiagonalize(lambda v: v * math.nan, start(5), 3)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((3,), math.inf)])
def test_a_start_that_is_no_direction_is_refused(bad):
    with pytest.raises(ValueError, match="start vector"):
        extreme_eigenvalues(lambda v: v, bad)


@pytest.mark.parametrize("tol", [0, 1.5, True, "small"])
def test_a_tolerance_out_of_range_is_refused(tol):
    with pytest.raises(ValueError, match="tol"):
        extreme_eigenvalues(lambda v: v, torch.ones(3), tol=tol)


def test_quadrature_gives_the_moments_of_the_spectral_measure():
    matrix, first = symmetric(40), start(40)
    diagonal, off_diagonal = tridiagonalize(lambda v: matrix @ v, first, 6)
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    weights = vectors[0] ** 2
    unit = first / first.norm()
    power = unit.clone()
    for degree in range(12):  # k nodes integrate polynomials up to degree 2 k - 1 exactly
        assert weights @ nodes**degree == pytest.approx(float(unit @ power), rel=1e-9, abs=1e-9)
        power = matrix @ power


def test_an_invariant_space_ends_the_recurrence():
    diagonal = torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    alpha, beta = tridiagonalize(lambda v: diagonal * v, torch.ones(4, dtype=torch.float64), 4)
    assert len(alpha) == 2
    assert len(beta) == 1
    assert np.linalg.eigvalsh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)) == pytest.approx([1, 2])


def test_the_basis_stays_orthogonal_where_one_pass_would_lose_it():
    # An eigenvalue far above the rest: rounding of its size comes back in every later vector.
    diagonal = torch.cat([torch.linspace(-1, 1, 300), torch.tensor([1e6])]).float()
    krylov = Krylov(lambda v: diagonal * v, start(301).float(), 60)
    for _ in range(40):
        krylov.step()
    basis = krylov._basis[: krylov.size]
    assert float((basis @ basis.T - torch.eye(krylov.size)).abs().max()) < 1e-5


def test_several_eigenvalues_at_each_end():
    matrix = symmetric(60)
    values = torch.linalg.eigvalsh(matrix).numpy()
    found = eigenpairs(lambda v: matrix @ v, start(60), n_low=2, n_high=3, tol=1e-8)
    assert found.values == pytest.approx(np.r_[values[:2], values[-3:]])
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert float((matrix @ vector - value * vector).norm()) < 1e-6
    with pytest.raises(ValueError, match="can't be given"):
        eigenpairs(lambda v: v, start(2), n_high=3)


def test_no_residual_is_below_rounding():
    diagonal = torch.linspace(1, 2, 5)
    found = extreme_eigenvalues(lambda v: diagonal * v, start(5).float())
    assert found.residual_max >= torch.finfo(torch.float32).eps
