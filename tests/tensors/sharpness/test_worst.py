"""Worst cases in a box and in a ball, against corners, secular equations and single steps by hand."""

import itertools
import math

import pytest
import torch
from torch import nn

from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.gradients import normalize_logits
from lltoolkit.tensors.sharpness.worst import asam, draw_batches, keskar_epsilon, sam
from tests.models import BY_NAME
from tests.tensors.sharpness.reference import (
    flat_loss,
    highest_in_ball,
    linear,
    tiny,
    tiny_data,
    tiny_derivatives,
    tiny_model,
)

OFF = [2.0, -1.0, 0.5], [1.8, -0.7, 0.5]  # weights that are not the minimum, and those that are


# --- the box


def test_keskar_is_the_highest_corner_of_a_parabola():
    objective, curvature, slope = linear([2.0, -1.0], [1.8, -0.7])
    base = objective.at_minimizer()["train", "loss"]
    half = 0.05 * (torch.tensor([2.0, 1.0]).double() + 1)
    corners = [torch.tensor(signs).double() * half for signs in itertools.product((-1, 1), repeat=2)]
    highest = max(float(slope @ corner + corner @ curvature @ corner / 2) for corner in corners)
    found = keskar_epsilon(objective, eps=0.05)
    assert found.value == pytest.approx(100 * highest / (1 + base), rel=1e-9)
    assert math.isnan(found.se)


def test_keskar_of_a_network_is_at_least_what_random_corners_reach_and_near_the_first_order():
    value, theta = flat_loss(tiny_model(), tiny_data())
    _, slope, _ = tiny_derivatives()
    base = float(value(theta))
    half = 1e-3 * (theta.abs() + 1)
    found = keskar_epsilon(tiny()).value * (1 + base) / 100
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        corner = half * (2 * torch.randint(2, theta.shape, generator=generator) - 1)
        assert float(value(theta + corner)) - base <= found
    assert found == pytest.approx(float(half @ slope.abs()), rel=0.05)


def test_keskar_starts_somewhere_where_the_gradient_is_zero():
    objective, curvature, _ = linear([2.0], [2.0])
    assert keskar_epsilon(objective, eps=0.1).value == pytest.approx(100 * float(curvature) / 2 * 0.3**2, rel=1e-9)


# --- the ball


def test_sam_solves_the_parabola_in_the_ball():
    objective, curvature, slope = linear(*OFF)
    found = sam(objective, rho=0.3, n_steps=300)
    assert found.value == pytest.approx(highest_in_ball(slope, curvature, 0.3), rel=1e-5)


def test_asam_solves_the_parabola_in_the_scaled_ball():
    objective, curvature, slope = linear(*OFF)
    scale = torch.tensor(OFF[0]).double().abs()
    expected = highest_in_ball(scale * slope, scale[:, None] * curvature * scale, 0.4)
    assert asam(objective, rho=0.4, n_steps=300).value == pytest.approx(expected, rel=1e-5)


def test_sam_at_a_minimum_is_half_of_the_largest_eigenvalue():
    objective, curvature, _ = linear([2.0, -1.0, 0.5], [2.0, -1.0, 0.5])
    expected = 0.3**2 / 2 * float(torch.linalg.eigvalsh(curvature)[-1])
    assert sam(objective, rho=0.3, n_steps=300).value == pytest.approx(expected, rel=1e-5)


def test_one_step_is_the_step_of_sam():
    value, theta = flat_loss(tiny_model(), tiny_data())
    _, slope, _ = tiny_derivatives()
    base = float(value(theta))
    moved = float(value(theta + 0.05 * slope / slope.norm()))
    assert sam(tiny(), n_steps=1).value == pytest.approx(moved - base, rel=1e-9)
    scaled = theta.abs() * slope
    moved = float(value(theta + 0.5 * theta.abs() * scaled / scaled.norm()))
    assert asam(tiny(), n_steps=1).value == pytest.approx(moved - base, rel=1e-9)


@pytest.mark.parametrize("measure", [sam, asam])
def test_more_steps_are_never_worse_and_the_rest_is_never_negative(measure):
    values = [measure(tiny(), rho=3.0, n_steps=n).value for n in (1, 2, 5, 20, 60)]
    assert values == sorted(values)
    assert values[0] >= 0
    assert values[-1] > values[0]


def test_a_dense_search_of_the_ball_finds_nothing_higher():
    model, data = tiny_model(), tiny_data()
    objective = tiny(parameters="0.bias")
    value, theta = flat_loss(model, data)
    generator = torch.Generator().manual_seed(0)
    found, base = sam(objective, rho=0.5, n_steps=100).value, float(value(theta))
    highest = 0.0
    for _ in range(700):
        drawn = torch.randn(4, generator=generator, dtype=torch.float64)
        step = torch.zeros_like(theta)
        step[8:12] = 0.5 * drawn / drawn.norm()
        highest = max(highest, float(value(theta + step)) - base)
    assert highest <= found
    assert highest == pytest.approx(found, rel=0.05)


# --- batches


def test_batches_share_no_example():
    drawn = draw_batches(20, 6, 8, seed=3)
    assert [len(positions) for positions in drawn] == [6, 6, 6]
    assert len(set(torch.cat(drawn).tolist())) == 18
    assert draw_batches(4, 100, 5, seed=0)[0].tolist() == [0, 1, 2, 3]


def test_the_value_is_the_mean_over_batches():
    objective, _, _ = linear(*OFF, n=20)
    batches = draw_batches(20, 6, 8, seed=5)
    examples = objective.examples["train"]
    alone = []
    for positions in batches:
        part = examples.pick(positions)
        own = Objective(objective.network.model, (part.inputs, part.target), loss="mse", dtype="float64")
        alone.append(sam(own, rho=0.3).value)
    found = sam(objective, rho=0.3, m=6, seed=5)
    assert found.value == pytest.approx(sum(alone) / 3, rel=1e-12)
    assert found.se == pytest.approx(float(torch.tensor(alone, dtype=torch.float64).std()) / math.sqrt(3), rel=1e-9)


def test_smaller_batches_have_worse_worst_cases():
    objective, _, _ = linear(*OFF, n=24)
    values = [sam(objective, rho=0.3, m=m, n_batches=24, n_steps=200).value for m in (1, 2, 4, 8, 24)]
    assert values == sorted(values, reverse=True)
    assert math.isnan(sam(objective, m=24).se)


# --- normalized logits


@pytest.mark.parametrize("layout", ["(B, C)", "(B, C, T)", "(B, T, C)"])
def test_normalized_logits_have_the_spread_one(layout):
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.zeros(4, 5, dtype=torch.long)
    if layout == "(B, C)":
        logits, target = logits[..., 0], target[:, 0]
    given = logits.movedim(1, -1) if layout == "(B, T, C)" else logits
    found = normalize_logits(given, target)
    found = found.movedim(-1, 1) if layout == "(B, T, C)" else found
    differences = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(found, logits / differences.square().mean(1, keepdim=True).sqrt())


def test_with_normalized_logits_their_scale_does_not_show_in_the_adaptive_ball():
    def scaled(by):
        model = tiny_model()
        with torch.no_grad():
            model[2].weight.mul_(by)
            model[2].bias.mul_(by)
        return Objective(model, tiny_data(), dtype="float64")

    one, five = scaled(1.0), scaled(5.0)
    normalized = [asam(objective, logit_normalized=True).value for objective in (one, five)]
    assert normalized[0] == pytest.approx(normalized[1], rel=1e-9)
    assert asam(one).value != pytest.approx(asam(five).value, rel=0.1)
    assert keskar_epsilon(one, logit_normalized=True).value != keskar_epsilon(one).value


def test_logits_are_normalized_with_class_labels_only():
    with pytest.raises(ValueError, match="needs class labels as the target"):
        sam(linear(*OFF)[0], logit_normalized=True)
    case = BY_NAME["dict_batch"]
    with pytest.raises(ValueError, match="needs class labels as the target"):
        sam(Objective(case.model(), case.data(), **case.options), logit_normalized=True)


# --- losses that are not finite


class Explodes(nn.Module):
    """Beyond w = 1.01 its answer is no finite number."""

    def __init__(self, beyond):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
        self.beyond = beyond

    def forward(self, x):
        return torch.where(self.weight > 1.01, self.beyond, 1.0) * (x @ self.weight)


@pytest.mark.parametrize("beyond", [math.inf, math.nan])
@pytest.mark.parametrize("measure", [sam, asam, keskar_epsilon])
def test_a_loss_that_is_not_finite_within_reach_is_told(measure, beyond):
    objective = Objective(Explodes(beyond), (torch.ones(2, 1), torch.zeros(2, 1)), loss="mse", dtype="float64")
    options = {"eps": 0.1} if measure is keskar_epsilon else {"rho": 0.1}
    assert not math.isfinite(measure(objective, **options).value)


@pytest.mark.parametrize(("option", "value"), [("rho", 0), ("n_steps", 0), ("m", 0), ("n_batches", 1.5)])
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}={value}"):
        sam(tiny(), **{option: value})
