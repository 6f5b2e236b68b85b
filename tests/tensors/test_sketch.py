"""A sketch is linear and right on average, and follows from the names alone."""

import pytest
import torch

from lltoolkit.tensors.params import dot
from lltoolkit.tensors.sketch import sketch
from tests.models import seeded


def vector(seed, name="w"):
    return seeded(lambda: {f"{name}.a": torch.randn(40, 5), f"{name}.b": torch.randn(30)}, seed)


def test_it_is_a_linear_map():
    a, b = vector(0), vector(1)
    both = {name: 2 * a[name] - 3 * b[name] for name in a}
    torch.testing.assert_close(sketch(both, 16), 2 * sketch(a, 16) - 3 * sketch(b, 16), rtol=1e-5, atol=1e-5)


def test_each_weight_goes_into_one_bin_with_a_sign():
    """The matrix of the map, column by column: one entry of +-1 in each, all bins and both signs in use."""
    size, n = 300, 16
    columns = torch.stack([sketch({"w": one}, n) for one in torch.eye(size)])
    assert torch.equal(columns.abs().sum(1), torch.ones(size))
    assert columns.abs().sum(0).min() > 0
    assert abs(columns.sum()) < 4 * size**0.5
    theta = seeded(lambda: torch.randn(size), 0)
    torch.testing.assert_close(sketch({"w": theta}, n), theta @ columns)


def test_inner_products_are_right_on_average():
    """Over many maps (a map per name), the mean comes to the product and the spread stays within the bound."""
    n, n_maps = 50, 400
    found = []
    for place in range(n_maps):
        a, b = vector(0, f"map{place}"), vector(1, f"map{place}")
        found.append(float(sketch(a, n) @ sketch(b, n)))
    exact, size = dot(a, b), (dot(a, a) * dot(b, b)) ** 0.5
    bound = (2 / n) ** 0.5 * size
    spread = torch.tensor(found).std().item()
    assert spread < bound
    assert abs(sum(found) / n_maps - exact) < 4 * spread / n_maps**0.5


def test_names_decide_and_nothing_else():
    a = vector(0)
    state = torch.get_rng_state()
    first = sketch(a, 16)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, sketch(dict(reversed(a.items())), 16))
    assert torch.equal(first, sketch({name: t.double().requires_grad_() for name, t in a.items()}, 16))
    assert not torch.equal(first, sketch({name.replace("w", "v"): t for name, t in a.items()}, 16))
    assert first.dtype == torch.float32


@pytest.mark.parametrize("n", [0, 2.5, "many"])
def test_bad_sizes(n):
    with pytest.raises(ValueError, match=f"n={n!r}: give a whole number of at least 1"):
        sketch(vector(0), n)
    with pytest.raises(ValueError, match="no weights to sketch"):
        sketch({}, 5)
