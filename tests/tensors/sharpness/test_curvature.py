"""Curvature measures equal what the dense Hessian of a 27-weight network says."""

import math

import pytest
import torch
from torch import nn

from lltoolkit.tensors.directions import random_subspace
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.curvature import filter_curvature, lambda_max, trace
from tests.tensors.sharpness.reference import blocks, tiny, tiny_derivatives, tiny_model, within


def test_lambda_max_is_the_largest_eigenvalue():
    _, _, dense = tiny_derivatives()
    assert lambda_max(tiny(), tol=1e-6).value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-9)


def test_lambda_max_of_some_weights_is_that_of_their_block():
    _, _, dense = tiny_derivatives()
    part = blocks(tiny_model())["2.weight"]
    expected = float(torch.linalg.eigvalsh(dense[part, part])[-1])
    assert lambda_max(tiny(), parameters="2.weight", tol=1e-6).value == pytest.approx(expected, rel=1e-9)
    assert lambda_max(tiny(parameters="2.weight"), tol=1e-6).value == pytest.approx(expected, rel=1e-9)


def test_lambda_max_that_has_not_converged_is_a_lower_bound_and_says_so(caplog):
    _, _, dense = tiny_derivatives()
    found = lambda_max(tiny(), max_steps=3)
    assert found.censored
    assert found.value < float(torch.linalg.eigvalsh(dense)[-1])
    assert "has not converged after 3 products" in caplog.text
    assert not lambda_max(tiny()).censored


def test_trace_is_the_sum_of_the_diagonal_with_the_error_that_theory_gives():
    _, _, dense = tiny_derivatives()
    found = trace(tiny(), n_probes=600)
    within(found, float(dense.trace()))
    variance = 2 * float((dense - dense.diag().diag()).square().sum())
    assert found.se == pytest.approx(math.sqrt(variance / 600), rel=0.2)


def test_trace_of_a_diagonal_hessian_has_no_error():
    model = nn.Linear(3, 1, bias=False).double()
    objective = Objective(model, (2 * torch.eye(3), torch.zeros(3, 1)), loss="mse", dtype="float64")
    found = trace(objective, n_probes=3)
    assert found.value == pytest.approx(3 * 2 * 4 / 3, rel=1e-12)
    assert found.se == pytest.approx(0, abs=1e-12)


def test_one_probe_has_no_known_error():
    assert math.isnan(trace(tiny(), n_probes=1).se)


def filters(model):
    """Positions in the flat vector of every filter of the weights with two or more axes."""
    parts = blocks(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            size = parameter[0].numel()
            for row in range(len(parameter)):
                start = parts[name].start + row * size
                yield slice(start, start + size)


def test_filter_curvature_expects_a_weighted_trace():
    theta, _, dense = tiny_derivatives()
    expected = sum(
        float(theta[part].square().sum() / len(theta[part]) * dense[part, part].trace())
        for part in filters(tiny_model())
    )
    found = filter_curvature(tiny(), n_seeds=600)
    within(found, expected)
    # So the picture does not show the largest eigenvalue: not even of the Hessian in its own units.
    scale = torch.zeros_like(theta)
    for part in filters(tiny_model()):
        scale[part] = theta[part].norm() / math.sqrt(len(theta[part]))
    largest = float(torch.linalg.eigvalsh(scale[:, None] * dense * scale)[-1])
    assert abs(found.value - largest) > 10 * found.se


def test_filter_curvature_is_the_second_derivative_of_the_lines_that_are_plotted():
    objective = tiny()
    line = random_subspace(objective, dims=1, seed=7)
    step = 1e-3
    at = {place: objective.measure(line.at(place))["train", "loss"] for place in (-step, 0.0, step)}
    expected = (at[step] - 2 * at[0.0] + at[-step]) / step**2
    assert filter_curvature(objective, seed=7, n_seeds=1).value == pytest.approx(expected, rel=1e-4)


def test_without_a_filter_there_is_no_filter_curvature():
    with pytest.raises(ValueError, match="weights"):
        filter_curvature(tiny(parameters="bias"))
