"""Relative flatness against its double sum over the dense Hessian; Fisher-Rao against a loop over examples."""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional

from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.flatness import fisher_rao, relative_flatness
from tests.models import BY_NAME, seeded
from tests.tensors.sharpness.reference import blocks, flat_loss, linear, tiny, tiny_derivatives, tiny_model, within


def double_sum(model, dense, name):
    """The definition, term by term."""
    weight = dict(model.named_parameters())[name].detach()
    part = blocks(model)[name]
    block = dense[part, part].reshape(*weight.shape, *weight.shape)
    return sum(
        float(weight[s] @ weight[t]) * float(block[s, :, t, :].trace())
        for s in range(len(weight))
        for t in range(len(weight))
    )


@pytest.mark.parametrize(("layer", "name"), [(None, "2.weight"), (r"^0\.weight", "0.weight")])
def test_relative_flatness_is_the_double_sum(layer, name):
    _, _, dense = tiny_derivatives()
    within(relative_flatness(tiny(), layer=layer, n_probes=600), double_sum(tiny_model(), dense, name))


def test_relative_flatness_of_one_feature_is_exact():
    model = seeded(lambda: nn.Linear(1, 4, bias=False), 0).double()
    data = (torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([0, 3]))
    value, theta = flat_loss(model, data)
    found = relative_flatness(Objective(model, data, dtype="float64"), n_probes=2)
    assert found.value == pytest.approx(double_sum(model, hessian(value, theta), "weight"), rel=1e-9)
    assert found.se == pytest.approx(0, abs=1e-12)


def test_relative_flatness_names_what_there_is():
    with pytest.raises(ValueError, match=r"selects 2 weights .*0\.weight, 2\.weight; one is wanted"):
        relative_flatness(tiny(), layer="weight")
    with pytest.raises(ValueError, match=r"selects 0 weights .*none; one is wanted, of 0\.weight, 2\.weight"):
        relative_flatness(tiny(), layer=r"2\.bias")
    with pytest.raises(ValueError, match=r"no nn\.Linear whose weight moves; name a layer"):
        relative_flatness(tiny(parameters="bias"))


def test_relative_flatness_takes_the_last_linear_layer_that_moves():
    moved = relative_flatness(tiny(parameters=r"0\."), seed=3)
    assert moved == relative_flatness(tiny(), layer=r"0\.weight", seed=3)


def loop(model, data):
    """<theta, grad l_i> of every example, one backward pass each."""
    parameters = list(model.parameters())
    found = []
    for x, y in zip(*data, strict=True):
        slopes = torch.autograd.grad(functional.cross_entropy(model(x[None]), y[None]), parameters)
        found.append(sum(float((p.detach() * slope).sum()) for p, slope in zip(parameters, slopes, strict=True)))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", ["mlp", "cnn_batchnorm", "vgg_dropout", "lstm"])
def test_fisher_rao_is_the_loop_over_examples(name):
    case = BY_NAME[name]
    model, data = case.model().double().eval(), case.data()["train"]
    data = (data[0].double(), data[1])
    expected = float(loop(model, data).square().mean())
    objective = Objective(model, data, dtype="float64", batch_size=4)
    assert fisher_rao(objective).value == pytest.approx(expected, rel=1e-9)


def test_fisher_rao_counts_examples_as_the_loss_does():
    model, data = tiny_model(), tiny().examples["train"]
    counts = torch.arange(20.0).double()
    objective = Objective(
        model, (data.inputs, torch.arange(20)), loss=lambda output, at: functional.cross_entropy(
            output, data.target[at], reduction="none"), count=lambda at: counts[at], dtype="float64"
    )  # fmt: skip
    expected = loop(model, (data.inputs, data.target)).square()
    assert fisher_rao(objective).value == pytest.approx(float((counts * expected).sum() / counts.sum()), rel=1e-6)


def test_fisher_rao_has_a_closed_form_without_biases():
    # Liang et al. (2019), theorem 3.1: with n layers <theta, grad l> is n times <df, f>.
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)
        ),
        0,
    ).double()
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(9) % 3
    logits = model(x).detach()
    slope = logits.softmax(1) - functional.one_hot(y, 3)
    expected = float((3 * (slope * logits).sum(1)).square().mean())
    assert fisher_rao(Objective(model, (x, y), dtype="float64")).value == pytest.approx(expected, rel=1e-9)


def test_fisher_rao_needs_the_loss_of_every_example():
    objective = Objective(tiny_model(), (torch.randn(4, 2), torch.randn(4, 3)), loss=functional.mse_loss)
    with pytest.raises(ValueError, match=r"needs the loss of every example.*\(B,\)"):
        fisher_rao(objective)


def test_fisher_rao_of_what_can_be_differentiated_once_is_refused():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            return 2 * slope * ctx.saved_tensors[0]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()

        def forward(self, x):
            return Once.apply(self.inner(x))

    data = tiny().examples["train"]
    with pytest.raises(ValueError, match="Once"):
        fisher_rao(Objective(Model(), (data.inputs, data.target), dtype="float64"))


def test_fisher_rao_of_a_loss_without_gradient_is_nothing():
    objective, _, _ = linear([2.0], [2.0])
    assert fisher_rao(objective).value == 0
    assert math.isnan(fisher_rao(objective).se)
