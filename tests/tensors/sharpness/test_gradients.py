"""The loss at flat weights is what the objective measures there, and its gradient is that of the plain model."""

import pytest
import torch

from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.gradients import LossAt, normalize_logits
from tests.models import BY_NAME

STEP = 1e-5


@pytest.mark.parametrize("batch_size", [2, 100])
def test_loss_and_gradient_of_every_case(case, batch_size):
    objective = Objective(case.model(), case.data(), dtype="float64", batch_size=batch_size, **case.options)
    loss = LossAt(objective, "test")
    drawn = torch.Generator().manual_seed(0)
    steps = {
        name: 0.1 * torch.randn(tensor.shape, generator=drawn, dtype=torch.float64)
        for name, tensor in objective.theta.items()
    }
    way = objective.network.flatten(steps)
    here = objective.measure({name: tensor + steps[name] for name, tensor in objective.theta.items()})
    assert loss(loss.theta + way) == pytest.approx(here["test", "loss"], rel=1e-12)
    value, slope = loss.with_gradient(loss.theta)
    assert value == pytest.approx(objective.at_minimizer()["test", "loss"], rel=1e-9)
    difference = (loss(loss.theta + STEP * way) - loss(loss.theta - STEP * way)) / (2 * STEP)
    assert float(slope @ way) == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_some_examples():
    case = BY_NAME["mlp"]
    objective = Objective(case.model(), case.data(), dtype="float64")
    positions = torch.tensor([1, 4])
    x, y = case.data()["train"]
    own = Objective(case.model(), (x[positions], y[positions]), dtype="float64")
    loss = LossAt(objective, "train", positions=positions)
    assert loss(loss.theta) == own.at_minimizer()["train", "loss"]
    assert float(loss.with_gradient(loss.theta)[1].norm()) == pytest.approx(own.gradient_norm(), rel=1e-12)


def test_recomputed_statistics_follow_the_weights():
    case = BY_NAME["cnn_batchnorm"]
    objective = Objective(case.model(), case.data(), dtype="float64", buffers="recompute")
    loss = LossAt(objective, "test")
    here = objective.measure({name: 1.1 * tensor for name, tensor in objective.theta.items()})
    assert loss(1.1 * loss.theta) == pytest.approx(here["test", "loss"], rel=1e-12)
    assert loss.with_gradient(1.1 * loss.theta)[0] == pytest.approx(here["test", "loss"], rel=1e-9)
    frozen = Objective(case.model(), case.data(), dtype="float64")
    assert LossAt(frozen, "test")(1.1 * loss.theta) != pytest.approx(here["test", "loss"], rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 2), (6, 2, 5), (6, 1)])
def test_normalized_logits_of_two_classes_would_say_nothing(shape):
    target = torch.zeros(6, *shape[2:], dtype=torch.long)
    with pytest.raises(ValueError, match=f"needs 3 classes or more, and the logits are of {shape[1]}"):
        normalize_logits(torch.randn(shape, generator=torch.Generator().manual_seed(0)), target)


def test_normalized_logits_have_no_scale():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = normalize_logits(5 * logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(found, logits / logits.std(1, correction=0, keepdim=True))
    torch.testing.assert_close((found - found.mean(1, keepdim=True)).square().mean(1), torch.ones(6).double())
