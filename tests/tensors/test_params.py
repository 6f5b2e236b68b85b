"""Arithmetic on vectors shaped like a model equals the arithmetic of one long vector."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from lltoolkit.tensors.params import (
    buffers_of,
    dot,
    filter_norms,
    move,
    norm,
    parameters_of,
    sha256,
    subtract,
    weights_of,
)
from tests.models import BY_NAME, seeded


def vector(seed, dtype=torch.float32):
    return seeded(lambda: {"a": torch.randn(3, 2, dtype=dtype), "b": torch.randn(4, dtype=dtype)}, seed)


def flat(params):
    return torch.cat([params["a"].double().flatten(), params["b"].double()])


@given(st.integers(0, 100), st.floats(-3, 3), st.floats(-3, 3))
def test_move_dot_norm_subtract_equal_the_flat_arithmetic(seed, alpha, beta):
    a, b, c = (vector(seed + place, torch.float64) for place in range(3))
    torch.testing.assert_close(flat(move(a, [b, c], [alpha, beta])), flat(a) + alpha * flat(b) + beta * flat(c))
    torch.testing.assert_close(flat(subtract(a, b)), flat(a) - flat(b))
    assert dot(a, b) == pytest.approx(float(flat(a) @ flat(b)), rel=1e-12, abs=1e-12)
    assert norm(a) == pytest.approx(float(flat(a).norm()), rel=1e-12)


def test_moving_changes_no_argument_and_shares_no_memory():
    a, b = vector(0), vector(1)
    before = flat(a).clone(), flat(b).clone()
    moved = move(a, [b], [0.0])
    moved["a"].zero_()
    assert torch.equal(flat(a), before[0])
    assert torch.equal(flat(b), before[1])


def test_sums_are_float64():
    ones = {"w": torch.full((4097,), 1.0), "v": torch.tensor([4096.0**2])}
    assert dot(ones, {"w": torch.ones(4097), "v": torch.tensor([1.0])}) == 4097 + 4096**2  # float32 ends at 2^24


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4, 2, 3, 3), (1, 5), (4, 1)])
def test_filter_norms_equal_a_loop_over_axis_0(shape):
    weights = seeded(lambda: torch.randn(shape, dtype=torch.float64), 0)
    norms = filter_norms(weights)
    assert norms.shape == (shape[0], *[1] * (len(shape) - 1))
    for place, weight_filter in enumerate(weights):
        assert float(norms[place]) == pytest.approx(math.sqrt(float((weight_filter**2).sum())), rel=1e-12)


def test_a_tensor_with_fewer_than_two_axes_is_one_filter():
    assert filter_norms(torch.tensor([3.0, 4.0])) == 5
    assert filter_norms(torch.tensor(-2.0)) == 2


def test_parameters_are_copies_of_each_weight_once(case):
    model = case.model()
    theta = parameters_of(model)
    assert sum(tensor.numel() for tensor in theta.values()) == len(parameters_to_vector(model.parameters()))
    for name, parameter in model.named_parameters():
        assert torch.equal(theta[name], parameter.detach())
        assert theta[name].data_ptr() != parameter.data_ptr()
        assert not theta[name].requires_grad


def test_tied_weights_are_listed_under_their_first_name():
    model = BY_NAME["transformer_tied"].model()
    assert "output.weight" not in parameters_of(model)
    untied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    untied[1].weight.data = untied[0].weight.data
    assert [len(group) for group in weights_of(untied).values()] == [2, 1, 1]
    # Equal values on other storage are another weight; so are empty tensors, which all lie at one address.
    untied[1].weight.data = untied[0].weight.data.clone()
    assert len(weights_of(untied)) == 4
    empty = nn.ParameterList([torch.empty(0, 2), torch.empty(0, 2)])
    assert len(weights_of(empty)) == 2


def test_buffers_of_whole_numbers_stay_out():
    model = BY_NAME["cnn_batchnorm"].model()
    assert set(buffers_of(model)) == {"norm.running_mean", "norm.running_var"}
    assert buffers_of(BY_NAME["mlp"].model()) == {}


@pytest.mark.parametrize(
    ("dtype", "working"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_becomes_float32_and_float64_stays(dtype, working):
    model = BY_NAME["cnn_batchnorm"].model().to(dtype)
    assert {tensor.dtype for tensor in (parameters_of(model) | buffers_of(model)).values()} == {working}
    assert torch.equal(parameters_of(model)["head.weight"].to(dtype), model.head.weight.detach())


def test_named_parameters_come_in_the_models_order():
    model = BY_NAME["mlp"].model()
    assert list(parameters_of(model, ["2.bias", "0.weight"])) == ["0.weight", "2.bias"]


def test_hashes_tell_names_shapes_types_and_every_bit():
    base = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([0.0])}
    assert sha256(base) == sha256({"b": base["b"].clone(), "a": base["a"].clone()})
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].T, "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"], "b": torch.tensor([-0.0])},
        {"a": torch.tensor([[1.0, 2.0000002]]), "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({sha256(base), *map(sha256, others)}) == 7
    assert sha256({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T}) == sha256({"w": torch.tensor([[1.0, 3], [2, 4]])})
