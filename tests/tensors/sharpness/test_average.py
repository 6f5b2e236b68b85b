"""The average over Gaussian noise: half of a weighted trace on a parabola, and moved weights by hand."""

import pytest
import torch

from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.sharpness.average import average_perturbation
from tests.tensors.sharpness.reference import flat_loss, linear, tiny, tiny_data, tiny_model, within

WEIGHTS = [2.0, -1.0, 0.5]


def test_plain_noise_on_a_parabola_gives_half_the_trace():
    objective, curvature, _ = linear(WEIGHTS, [1.0, 0.0, 0.0])  # the slope cancels: every draw has both signs
    within(average_perturbation(objective, sigma=0.3, n_draws=500), 0.3**2 / 2 * float(curvature.trace()))


def test_adaptive_noise_on_a_parabola_gives_half_the_weighted_trace():
    objective, curvature, _ = linear(WEIGHTS, [1.0, 0.0, 0.0])
    expected = 0.3**2 / 2 * float((torch.tensor(WEIGHTS).double().square() * curvature.diagonal()).sum())
    within(average_perturbation(objective, sigma=0.3, magnitude_aware=True, n_draws=500), expected)


@pytest.mark.parametrize("magnitude_aware", [False, True])
def test_it_is_the_mean_over_moved_weights(magnitude_aware):
    value, theta = flat_loss(tiny_model(), tiny_data())
    rises = []
    for draw in range(3):
        drawn = torch.randn(27, generator=generator("sharpness", "average", 4, draw), dtype=torch.float64)
        step = 0.2 * drawn * (theta.abs() if magnitude_aware else 1)
        rises.append(float(value(theta + step) + value(theta - step)) / 2 - float(value(theta)))
    found = average_perturbation(tiny(), sigma=0.2, n_draws=3, seed=4, magnitude_aware=magnitude_aware)
    assert found.value == pytest.approx(sum(rises) / 3, rel=1e-9)
    assert found.se == pytest.approx(float(torch.tensor(rises, dtype=torch.float64).std()) / 3**0.5, rel=1e-9)


def test_only_weights_that_move_are_disturbed():
    part = tiny(parameters="2.bias")
    value, theta = flat_loss(tiny_model(), tiny_data())
    drawn = torch.randn(3, generator=generator("sharpness", "average", 0, 0), dtype=torch.float64)
    step = torch.cat([torch.zeros(24), 0.2 * drawn])
    expected = float(value(theta + step) + value(theta - step)) / 2 - float(value(theta))
    assert average_perturbation(part, sigma=0.2, n_draws=1).value == pytest.approx(expected, rel=1e-9)


def test_normalized_logits_are_another_loss():
    plain, normalized = (average_perturbation(tiny(), logit_normalized=choice).value for choice in (False, True))
    assert plain != pytest.approx(normalized, rel=0.01)
