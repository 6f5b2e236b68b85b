"""Second roads that the sharpness tests share: a tiny network, its dense Hessian, a linear model."""

import math

import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional

from lltoolkit.tensors.objective import Objective
from tests.models import seeded


def tiny_model():
    """27 weights."""
    return seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), 0).double()


def tiny_data():
    return seeded(lambda: (torch.randn(20, 2).double(), torch.randint(3, (20,))), 1)


def tiny(**options):
    return Objective(tiny_model(), tiny_data(), dtype="float64", **options)


def flat_loss(model, data, loss=functional.cross_entropy):
    """Give the mean loss as a plain function of one flat vector, and the vector at which the model stands."""
    parameters = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]

    def value(flat):
        parts = zip(parameters, flat.split(sizes), strict=True)
        own = {name: part.view(parameters[name].shape) for name, part in parts}
        return loss(functional_call(model, own, (data[0],)), data[1])

    return value, torch.cat([parameter.detach().flatten() for parameter in parameters.values()])


def tiny_derivatives():
    """Weights, gradient and dense Hessian of the tiny network."""
    value, theta = flat_loss(tiny_model(), tiny_data())
    return theta, jacobian(value, theta), hessian(value, theta)


def blocks(model):
    """Slices of the flat vector by parameter name."""
    found, start = {}, 0
    for name, parameter in model.named_parameters():
        found[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return found


def linear(weights, target, n=12, seed=0, **options):
    """A linear model with squared error: objective, its constant Hessian, and the gradient at its weights."""
    weights, target = torch.tensor([weights]).double(), torch.tensor([target]).double()
    x = seeded(lambda: torch.randn(n, weights.shape[1]), seed).double() * torch.arange(1.0, weights.shape[1] + 1)
    model = nn.Linear(weights.shape[1], 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weights)
    objective = Objective(model, (x, x @ target.T), loss="mse", dtype="float64", **options)
    curvature = 2 * x.T @ x / n
    return objective, curvature, (curvature @ (weights - target).T).squeeze(1)


def highest_in_ball(slope, curvature, radius):
    """Maximize ``slope d + d curvature d / 2`` over a ball by its secular equation (``slope`` not 0)."""
    values, vectors = torch.linalg.eigh(curvature)
    along = vectors.T @ slope
    low, high = float(values[-1]), float(values[-1] + slope.norm() / radius + 1)
    for _ in range(200):
        middle = (low + high) / 2
        longer = float((along / (middle - values)).norm()) > radius
        low, high = (middle, high) if longer else (low, middle)
    step = vectors @ (along / (high - values))
    assert math.isclose(float(step.norm()), radius, rel_tol=1e-6)
    return float(slope @ step + step @ curvature @ step / 2)


def within(estimate, expected, n_se=4):
    """The estimate is right to its own error, and the error says something."""
    assert 0 < estimate.se < 0.2 * abs(expected)
    assert abs(estimate.value - expected) < n_se * estimate.se
