"""The engine gives what Objective gives at the same weights, in any order of cells."""

import pytest
import torch

from lltoolkit import Objective, interpolate, random_subspace
from lltoolkit.tensors.evaluate import FlatEngine
from tests.models import BY_NAME

CNN = BY_NAME["cnn_batchnorm"]
POINTS = [(0.3, -0.2), (0.0, 0.0), (-1.0, 1.0), (2.0, 0.5)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_engine_equals_measure_at_every_point(case, dtype):
    model = case.model()
    objective = Objective(model, case.data(), dtype=dtype, **case.options)
    plane = random_subspace(objective, seed=1, ignore="none")
    engine = FlatEngine(objective, plane)
    for point in POINTS:
        for key, value in objective.measure(plane.at(*point)).items():
            assert engine.measure(point)[key] == pytest.approx(value, rel=1e-6, abs=1e-8), (point, key)


def test_the_order_of_cells_does_not_show():
    objective = Objective(CNN.model(0), CNN.data())
    engine = FlatEngine(objective, interpolate(CNN.model(0), CNN.model(1)))
    points = [(-0.5,), (0.0,), (0.5,), (1.0,)]
    forwards = [engine.measure(point) for point in points]
    assert [engine.measure(point) for point in reversed(points)] == forwards[::-1]
    fresh = FlatEngine(Objective(CNN.model(0), CNN.data()), interpolate(CNN.model(0), CNN.model(1)))
    assert fresh.measure((1.0,)) == forwards[-1]


def test_the_origin_is_the_minimizer_bit_for_bit(case):
    objective = Objective(case.model(), case.data(), **case.options)
    engine = FlatEngine(objective, random_subspace(objective))
    engine.measure((0.7, 0.7))
    assert engine.measure((0.0, 0.0)) == objective.at_minimizer()


def test_an_objective_measures_its_minimizer_after_an_engine_moved_it():
    objective = Objective(CNN.model(0), CNN.data())
    first = objective.at_minimizer()
    FlatEngine(objective, interpolate(CNN.model(0), CNN.model(1))).measure((0.5,))
    assert objective.measure(objective.theta) == first
    norm = objective.gradient_norm()
    assert Objective(CNN.model(0), CNN.data()).gradient_norm() == norm


def test_changing_a_direction_later_does_not_show():
    objective = Objective(CNN.model(), CNN.data())
    plane = random_subspace(objective)
    engine = FlatEngine(objective, plane)
    before = engine.measure((0.5, 0.5))
    with torch.no_grad():
        plane.directions[0]["conv.weight"].zero_()
    assert engine.measure((0.5, 0.5)) == before
