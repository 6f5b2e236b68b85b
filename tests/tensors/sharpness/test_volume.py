"""The radius of the basin: a closed form, a fine scan, and what happens beyond the end of the search."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lltoolkit.tensors.directions import random_subspace
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.volume import _first_radius, _median, volume_epsilon
from tests.tensors.sharpness.reference import linear, tiny, tiny_data, tiny_model


def test_radius_of_a_parabola():
    # One filter of one weight w = 2 at its minimum: directions are +2 and -2, the loss is curvature / 2 * (2 r)^2.
    objective, curvature, _ = linear([2.0], [2.0])
    found = volume_epsilon(objective, eps=0.1, tol=1e-6, n_seeds=3)
    assert found.value == pytest.approx(math.sqrt(0.1 / (2 * float(curvature))), rel=1e-5)
    assert found.se == 0
    assert not found.censored


def sure():
    """A network with the labels that it gives itself: the loss rises to all sides."""
    model, (x, _) = tiny_model(), tiny_data()
    with torch.no_grad():
        model[2].weight.mul_(10)
        return Objective(model, (x, model(x).argmax(1)), dtype="float64")


def test_radius_equals_a_fine_scan_of_the_lines():
    objective = sure()
    base = objective.at_minimizer()["train", "loss"]
    radii = []
    for seed in (3, 4):
        line = random_subspace(objective, dims=1, seed=seed)
        for sign in (1, -1):
            scan = np.arange(0, 3, 0.01)
            losses = (objective.measure(line.at(sign * radius))["train", "loss"] - base for radius in scan)
            reached = (radius for radius, rise in zip(scan, losses, strict=True) if rise >= 0.1)
            radii.append(next(reached, math.inf))
    found = volume_epsilon(objective, seed=3, n_seeds=2, eps=0.1, r_max=3, tol=1e-4)
    assert found.value == pytest.approx(np.median(radii), abs=0.01)
    assert found.se > 0


def test_a_loss_that_never_rises_so_far_is_censored():
    found = volume_epsilon(tiny(), eps=50.0, r_max=2.0, n_seeds=2)
    assert found.censored
    assert found.value == 2.0
    assert math.isnan(found.se)


@pytest.mark.parametrize(
    ("radii", "value", "censored"),
    [
        ([[0.1, 0.2], [0.3, math.inf]], 0.25, False),
        ([[0.1, 0.2], [math.inf, math.inf]], 0.6, True),
        ([[0.1, math.inf], [math.inf, math.inf]], 1.0, True),
    ],
)
def test_the_median_is_known_while_fewer_than_half_are_censored(radii, value, censored):
    found = _median(torch.tensor(radii, dtype=torch.float64), 1.0, 0)
    assert found.value == pytest.approx(value)
    assert found.censored == censored


def test_the_error_is_that_of_a_median_of_directions_not_of_sides():
    drawn = np.random.default_rng(0).normal(size=(400, 1))
    both_sides_alike = torch.tensor(np.repeat(drawn, 2, axis=1))
    theory = math.sqrt(math.pi / 2) / math.sqrt(400)  # of a normal distribution's median
    assert _median(both_sides_alike, math.inf, 0).se == pytest.approx(theory, rel=0.25)


def test_a_loss_that_is_not_finite_has_risen():
    assert _first_radius(lambda radius: not (math.nan if radius > 0.3 else 0.0) < 0.1, 1.0, 1e-4) == pytest.approx(
        0.3, rel=1e-3
    )


def test_a_tiny_radius_is_found_below_the_first_rung():
    assert _first_radius(lambda radius: radius > 1e-5, 1.0, 1e-3) == pytest.approx(1e-5, rel=1e-3)


def test_a_rise_below_rounding_is_no_radius(caplog):
    radii = []

    def has_risen(radius):
        radii.append(radius)
        return True

    assert math.isnan(_first_radius(has_risen, 2.0, 0.01))
    assert len(radii) < 20
    assert min(radii) > 1e-7
    model, data = tiny_model().float(), tuple(tensor for tensor in tiny_data())
    found = volume_epsilon(Objective(model, (data[0].float(), data[1])), eps=1e-30, n_seeds=2)
    assert math.isnan(found.value)
    assert not found.censored
    assert "below the loss's rounding" in caplog.text


def test_without_a_filter_there_is_no_radius():
    model = nn.BatchNorm1d(2).double()
    objective = Objective(model, (torch.randn(4, 2), torch.randn(4, 2)), loss="mse", dtype="float64")
    with pytest.raises(ValueError, match="volume_epsilon needs a weight with two or more axes"):
        volume_epsilon(objective)


@pytest.mark.parametrize("option", ["eps", "r_max", "tol"])
@pytest.mark.parametrize("value", [0, -1.0, "much", math.nan, True])
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"{option}=.*above 0"):
        volume_epsilon(tiny(), **{option: value})
