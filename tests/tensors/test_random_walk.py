"""The null of a PCA plane: closed forms of long walks, and walks that numpy takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit.tensors.random_walk import center_weights, walk_variance

KS = np.arange(1, 6)


def drawn(runs, origin, center, n_weights, n_draws):
    """Walks drawn step by step by numpy, and the singular values of the checkpoints about the point."""
    rng = np.random.default_rng(0)
    total = 0
    for _ in range(n_draws):
        rows = []
        for steps in runs:
            walk = np.cumsum(rng.normal(size=(steps[-1] - steps[0], n_weights)), axis=0)
            walk = np.concatenate([np.zeros((1, n_weights)), walk])
            rows.append(walk[np.array(steps) - steps[0]])
        whole = np.concatenate(rows)
        points = {"start": rows[0][0], "final": rows[0][-1], "mean": whole.mean(0)}
        squares = np.linalg.svd(whole - points["mean" if center == "mean" else origin], compute_uv=False) ** 2
        total = total + squares / squares.sum() / n_draws
    return total


def test_a_long_walk_has_the_shares_of_the_paper():
    """Antognini and Sohl-Dickstein (2018) about the mean; about an end the same integral gives odd k alone."""
    assert walk_variance(range(1000), n_components=5, center="mean") == pytest.approx(6 / (math.pi * KS) ** 2, rel=2e-3)
    expected = 8 / (math.pi * (2 * KS - 1)) ** 2
    for origin in ("final", "start"):
        assert walk_variance(range(1000), n_components=5, origin=origin) == pytest.approx(expected, rel=2e-3)


def test_two_components_of_300_steps():
    assert sum(walk_variance(range(300), center="mean")) == pytest.approx(0.76, abs=0.001)
    assert sum(walk_variance(range(300), center="origin")) == pytest.approx(0.90, abs=0.001)


@pytest.mark.parametrize(
    ("runs", "origin", "center"),
    [
        ([range(40)], "final", "origin"),
        ([[0, 1, 2, 4, 8, 16, 32, 64, 128]], "final", "mean"),
        ([[0, 1, 2, 4, 8, 16, 32, 64, 128]], "start", "origin"),
        ([range(0, 60, 3), range(30)], "final", "origin"),
        ([range(0, 60, 3), range(30)], "mean", "origin"),
        ([[100, 110, 150], [0, 10, 50], [0, 10, 50]], "start", "mean"),
    ],
)
@pytest.mark.parametrize("n_weights", [3, 4000])
def test_shares_are_those_of_drawn_walks(runs, origin, center, n_weights):
    runs = [list(steps) for steps in runs]
    expected = drawn(runs, origin, center, n_weights, n_draws=400 if n_weights == 3 else 20)[:3]
    found = walk_variance(runs, n_components=3, origin=origin, center=center, n_weights=n_weights)
    assert found == pytest.approx(expected, abs=0.08 if n_weights == 3 else 0.03)


def test_few_weights_hold_no_more_than_their_number():
    assert walk_variance(range(50), n_components=3, n_weights=1) == pytest.approx([1, 0, 0], abs=1e-12)
    assert sum(walk_variance(range(50), n_components=2, n_weights=2)) == pytest.approx(1)
    few = walk_variance(range(50), n_weights=100)
    assert few == walk_variance(range(50), n_weights=100)
    assert few != walk_variance(range(50), n_weights=100, seed=1)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12), st.integers(1, 9), st.sampled_from(["origin", "mean"]))
def test_shares_sum_to_1_and_no_unit_of_time_shows(gaps, factor, center):
    steps = np.cumsum(gaps)
    found = walk_variance(steps.tolist(), n_components=20, center=center)
    assert len(found) == 20
    assert sorted(found, reverse=True) == found
    assert sum(found) == pytest.approx(0 if len(set(steps)) == 1 else 1)
    assert walk_variance((factor * steps + 5).tolist(), n_components=20, center=center) == pytest.approx(
        found, abs=1e-9
    )


def test_points_are_weighted_sums_of_checkpoints():
    assert center_weights([2, 2], origin="final", center="origin").tolist() == [0, 1, 0, 0]
    assert center_weights([2, 2], origin="start", center="origin").tolist() == [1, 0, 0, 0]
    assert center_weights([2, 2], origin="mean", center="origin").tolist() == [0.25] * 4
    assert center_weights([2, 2], origin="start", center="mean").tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("steps", "options", "told"),
    [
        ([], {}, "each needs one at least"),
        ([[0, 1], []], {}, r"the runs have \[2, 0\] checkpoints"),
        ([0, 2, 1], {}, r"must not go back: \[0, 2, 1\]"),
        ([0, 1], {"origin": "end"}, "origin='end' is not one of 'final'"),
        ([0, 1], {"center": "final"}, "center='final' is not one of 'origin', 'mean'"),
        ([0, 1], {"n_components": 0}, "n_components=0"),
    ],
)
def test_bad_input(steps, options, told):
    with pytest.raises(ValueError, match=told):
        walk_variance(steps, **options)
