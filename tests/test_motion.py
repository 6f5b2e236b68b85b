"""Statistics of a path against the weights themselves, gradient descent on a bowl, and random walks."""

import logging

import numpy as np
import pytest
import torch

from lltoolkit.motion import trajectory_statistics
from lltoolkit.tensors.checkpoints import list_checkpoints
from lltoolkit.tensors.params import parameters_of
from lltoolkit.tensors.sketch import sketch
from tests.labelled.test_trajectory import by_hand
from tests.models import BY_NAME
from tests.test_trajectory import CURVATURES, MLP, START, broken_run, descend, flat, noise, trained, write

CNN = BY_NAME["cnn_batchnorm"]


def assert_close(found, weights, **tolerance):
    for name, values in by_hand(weights).items():
        np.testing.assert_allclose(found[name].values, values, err_msg=name, **tolerance)


def test_the_numbers_are_those_of_the_weights_and_no_buffer_counts(tmp_path):
    models = trained(CNN, 6)
    found = trajectory_statistics(write(tmp_path, models, learning_rate=0.1))
    assert_close(found, np.array([flat(parameters_of(model)) for model in models]), rtol=1e-6, atol=1e-9)
    assert found.attrs["n_params"] == sum(parameter.numel() for parameter in models[0].parameters())
    assert found["step"].values.tolist() == [0, 10, 20, 30, 40, 50]
    assert found["learning_rate"].values.tolist() == [0.1] * 6
    assert found.attrs["run"] == tmp_path.name
    np.testing.assert_allclose(found["principal"].values[-1], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("weights", ["conv.weight", "head.weight"]),
        (lambda name, tensor: tensor.ndim == 1 and "norm" in name, ["norm.weight", "norm.bias"]),
    ],
)
def test_a_choice_of_parameters_counts_alone(tmp_path, parameters, names):
    models = trained(CNN)
    found = trajectory_statistics(write(tmp_path, models), parameters=parameters)
    assert_close(found, np.array([flat(parameters_of(model), names) for model in models]), rtol=1e-6, atol=1e-9)


def test_gradient_descent_on_a_bowl_has_the_analytic_distances_and_cosines(tmp_path):
    checkpoints, known = descend(tmp_path, n=10, lr=0.2)
    found = trajectory_statistics(checkpoints)
    assert_close(found, known, rtol=1e-9, atol=1e-12)
    step = START * CURVATURES  # the first step goes along the gradient
    straight = START * (1 - (1 - 0.2 * CURVATURES) ** 9)
    cosine = step @ straight / np.linalg.norm(step) / np.linalg.norm(straight)
    assert float(found["cosine_to_displacement"][1]) == pytest.approx(cosine, rel=1e-9)
    # A bowl as steep along every axis: straight to the bottom, or to and fro across it where the steps are too long.
    for lr, cosine in ((0.5, 1.0), (1.5, -1.0)):
        round_bowl = tmp_path / str(lr)
        states = [{"w": torch.tensor(START * (1 - lr) ** t)} for t in range(6)]
        found = trajectory_statistics(write(round_bowl, states))
        np.testing.assert_allclose(found["cosine_to_previous"].values[2:], cosine, atol=1e-9)
        assert found["explained_variance"].values[0] == pytest.approx(1)


def test_a_random_walk_turns_at_right_angles_and_shows_what_chance_shows(tmp_path):
    theta = {"w": torch.zeros(4000)}
    states = [theta]
    for seed in range(24):
        states.append({"w": states[-1]["w"] + noise(theta, seed)["w"]})
    found = trajectory_statistics(write(tmp_path, states))
    assert np.abs(found["cosine_to_previous"].values[2:]).max() < 4 / 4000**0.5
    np.testing.assert_allclose(found["step_length"].values[1:], 4000**0.5, rtol=0.1)
    np.testing.assert_allclose(found["distance_from_start"].values, np.sqrt(4000 * np.arange(25)), rtol=0.1)
    np.testing.assert_allclose(
        found["explained_variance"].values[:3], found["explained_variance_null"].values[:3], atol=0.05
    )
    assert found["explained_variance"].values[:2].sum() > 0.85  # a high share, and nothing in it


def test_sketches_stand_for_weights(tmp_path):
    models = trained(CNN, 5)
    weights = [parameters_of(model) for model in models]
    sketches = [sketch(each, 40) for each in weights]
    by_sketch = np.array([row.double().numpy() for row in sketches])
    kept = [{"lltoolkit.sketch": row} for row in sketches]
    for place, states in enumerate((kept, [models[0], *kept[1:-1], models[-1]])):  # all sketches, or the ends whole
        found = trajectory_statistics(write(tmp_path / str(place), states))
        assert_close(found, by_sketch, rtol=1e-5, atol=1e-7)
        assert found.attrs["sketch"] == 40
    with pytest.raises(ValueError, match=r"parameters= chooses among weights.*sketches"):
        trajectory_statistics(list_checkpoints(tmp_path / "0"), parameters="weights")


@pytest.mark.parametrize("how", ["nan", "missing", "damaged"])
def test_a_checkpoint_that_cannot_be_used_stops_or_is_left_out(tmp_path, how, caplog):
    checkpoints = broken_run(tmp_path, how)
    with pytest.raises(ValueError, match=r"step_00000020.*damaged='skip'"):
        trajectory_statistics(checkpoints)
    with caplog.at_level(logging.WARNING):
        found = trajectory_statistics(checkpoints, damaged="skip")
    assert "step 20 is left out" in caplog.text
    assert (found.attrs["n_checkpoints"], found.attrs["n_skipped"]) == (4, 1)
    models = trained(MLP, 5)
    weights = np.array([flat(parameters_of(model)) for place, model in enumerate(models) if place != 2])
    assert_close(found, weights, rtol=1e-6, atol=1e-9)


def test_bad_input_is_named(tmp_path):
    checkpoints = write(tmp_path, trained(MLP, 2))
    with pytest.raises(ValueError, match=r"has 1 checkpoints that can be read; a path takes 2"):
        trajectory_statistics(checkpoints[:1])
    with pytest.raises(ValueError, match="one training gives one result"):
        trajectory_statistics({"a": checkpoints})
    with pytest.raises(ValueError, match="parameters='conv' selects none"):
        trajectory_statistics(checkpoints, parameters="conv")
    with pytest.raises(ValueError, match="damaged='no' is not one of"):
        trajectory_statistics(checkpoints, damaged="no")
