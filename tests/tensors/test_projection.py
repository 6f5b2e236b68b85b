"""A projector says of groups of tensors what least squares over the flat vectors says."""

import numpy as np
import pytest
import torch

from lltoolkit import Subspace, interpolate
from lltoolkit.tensors.params import buffers_of, parameters_of
from tests.models import BY_NAME, seeded

SHAPES = {"conv": (4, 3, 2), "bias": (5,), "scale": ()}


def vector(seed):
    return seeded(lambda: {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}, seed)


def flat(params, names=SHAPES):
    return np.concatenate([params[name].numpy().ravel() for name in names])


def test_squares_by_tensor_equal_numpys_least_squares():
    plane = Subspace(vector(0), [vector(1), {name: 1e-3 * part for name, part in vector(2).items()}])
    projector = plane.projector()
    for seed in (3, 4):
        theta = vector(seed)
        found = projector.project(theta)
        moved = flat(theta) - flat(plane.origin)
        axes = np.stack([flat(axis) for axis in plane.directions], axis=1)
        expected = np.linalg.lstsq(axes, moved)[0]
        outside = moved - axes @ expected
        assert found.coordinates == pytest.approx(tuple(expected), rel=1e-9)
        assert found.distance == pytest.approx(np.linalg.norm(moved))
        assert found.residual() == pytest.approx(np.linalg.norm(outside) / np.linalg.norm(moved))
        assert (found.coordinates, found.residual()) == plane.project(theta)
        place = np.r_[24:30]  # bias and scale
        expected = np.linalg.norm(outside[place]) / np.linalg.norm(moved[place])
        assert found.residual(lambda name: name != "conv") == pytest.approx(expected)


def test_a_part_may_be_fitted_worse_than_not_at_all():
    line = Subspace({"a": torch.zeros(1), "b": torch.zeros(1)}, [{"a": torch.ones(1), "b": torch.ones(1)}])
    found = line.projector().project({"a": torch.tensor([4.0]), "b": torch.tensor([1.0])})
    assert found.residual() == pytest.approx((4.5 / 17) ** 0.5)
    assert found.residual(lambda name: name == "b") == pytest.approx(1.5)
    assert line.projector().project(line.origin).residual(lambda name: name == "b") == 0


def test_buffers_may_be_given_and_do_not_count():
    a, b = (BY_NAME["cnn_batchnorm"].model() for _ in range(2))
    torch.nn.init.ones_(b.head.weight)
    torch.nn.init.ones_(b.norm.running_mean)
    projector = interpolate(a, b).projector()
    assert projector.project(parameters_of(b)) == projector.project(parameters_of(b) | buffers_of(b))
    with pytest.raises(ValueError, match="theta does not fit this subspace"):
        projector.project({"w": torch.zeros(2)})
