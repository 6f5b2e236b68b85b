"""Means over a sample: the design, its estimates and their standard errors, against all examples."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit.labelled.sampling import calibrate, draw, importance, inclusion, make_sample

N = 2000
ONES = np.ones(N)


@pytest.fixture(scope="module")
def losses():
    """Heavy-tailed losses of 2,000 examples at 60 places of a line; most examples are easy, some are hard."""
    rng = np.random.default_rng(0)
    margin = 5 + 3 * rng.standard_normal(N) - 8 * (rng.random(N) < 0.03)
    slopes = np.abs(rng.standard_normal((N, 4))) * np.exp(0.8 * rng.standard_normal((N, 1)))
    place = np.linspace(0, 1, 60)[:, None]
    features = np.hstack([place, place**2, np.sin(5 * place) ** 2, np.abs(place - 0.4)])
    return np.logaddexp(0, 8 * features @ slopes.T - margin)


@pytest.fixture(scope="module")
def coarse(losses):
    return losses[::8]


# --- which examples


@given(st.integers(1, 60), st.integers(0, 10**6))
def test_chances_sum_to_the_size_and_keep_the_proportions(n, seed):
    sizes = np.random.default_rng(seed).lognormal(0, 2, size=60)
    chances = inclusion(sizes, n)
    assert chances.sum() == pytest.approx(n)
    assert (chances > 0).all()
    assert (chances <= 1).all()
    shared = chances < 1
    np.testing.assert_allclose(chances[shared] * sizes[shared].sum(), chances[shared].sum() * sizes[shared])
    assert sizes[~shared].min(initial=np.inf) >= sizes[shared].max(initial=0)


def test_each_example_is_drawn_as_often_as_its_chance_says():
    chances = inclusion(np.array([1.0, 2, 3, 4, 30, 5, 6, 7]), 4)
    rng = np.random.default_rng(1)
    n_draws = 4000
    counts = sum(np.bincount(draw(chances, rng.random(8)), minlength=8) for _ in range(n_draws))
    assert counts.sum() == 4 * n_draws
    assert counts[4] == n_draws  # certain
    # Pareto sampling has its chances only nearly; Rosén bounds the difference by about 1 / size.
    np.testing.assert_allclose(counts / n_draws, chances, atol=0.03)


def test_a_larger_sample_holds_nearly_all_of_a_smaller_one(coarse):
    small, large = (make_sample({"loss": coarse}, ONES, n, 0, "train").positions for n in (200, 400))
    assert len(small) == 200
    assert len(large) == 400
    assert np.isin(small, large).mean() > 0.97


def test_an_example_matters_by_its_share_of_the_loss_and_never_little():
    sizes = importance(np.array([[0.0, 1, 3], [0, 0, 8]]), np.ones(3))
    shares = np.sqrt(np.array([0, 0.25**2 / 2, (0.75**2 + 1) / 2]))
    np.testing.assert_allclose(sizes, 0.7 * shares / shares.sum() + 0.1)


@pytest.mark.parametrize("useless", [0.0, np.nan, np.inf])
def test_examples_matter_equally_where_no_cell_has_a_share_to_give(useless):
    np.testing.assert_allclose(importance(np.full((3, 5), useless), np.ones(5)), 0.2)


# --- what it estimates


def test_all_examples_give_the_mean_exactly(losses, coarse):
    sample = make_sample({"loss": coarse}, ONES, N, 0, "train")
    estimates, errors = sample.estimate("loss", losses)
    np.testing.assert_allclose(estimates, losses.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(errors, 0, atol=1e-12)


def test_weighted_examples_give_the_weighted_mean_exactly(losses, coarse):
    weights = np.random.default_rng(2).integers(1, 9, N).astype(float)
    estimates, _ = make_sample({"loss": coarse}, weights, N, 0, "train").estimate("loss", losses)
    np.testing.assert_allclose(estimates, losses @ weights / weights.sum(), rtol=1e-12)


def test_without_calibration_the_estimate_is_unbiased_over_all_samples():
    # With equal chances all 10 samples of 2 of 5 are equally likely.
    values = np.array([0.1, 5, 2, 0.3, 9])
    chances = np.full(5, 0.4)
    found = [
        calibrate(np.full(2, 0.2), chances[:2], np.empty((0, 2)), np.empty(0))(values[None, list(pair)])
        for pair in itertools.combinations(range(5), 2)
    ]
    assert np.mean(found, axis=0)[0, 0] == pytest.approx(values.mean())


@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_are_unbiased_and_their_errors_as_large_as_told(losses, coarse, weighted):
    weights = np.random.default_rng(3).uniform(0.5, 2, N) if weighted else ONES
    truth = losses @ weights / weights.sum()
    between = np.arange(60) % 8 != 0
    drawn = [make_sample({"loss": coarse}, weights, 200, seed, "train") for seed in range(150)]
    found = np.array([sample.estimate("loss", losses[:, sample.positions]) for sample in drawn])[:, :, between]
    error = found[:, 0] - truth[between]
    spread = error.std(axis=0)
    # The regression estimator's bias is of the order 1 / n, its spread of 1 / sqrt(n).
    assert (np.abs(error.mean(axis=0)) < 4 * spread / np.sqrt(150) + 0.1 * spread).mean() > 0.9
    told = np.sqrt(np.mean(found[:, 1] ** 2, axis=0))
    assert np.median(told / spread) == pytest.approx(1, abs=0.15)
    assert (np.abs(error / found[:, 1]) < 1.96).mean() > 0.9


def test_calibration_reproduces_the_full_cells_and_helps_between_them(losses, coarse):
    truth = losses.mean(axis=1)
    with_cells, without = [], []
    for seed in range(20):
        sample = make_sample({"loss": coarse}, ONES, 200, seed, "train")
        plain = make_sample({"loss": coarse[:1]}, ONES, 200, seed, "train")
        with_cells.append(sample.estimate("loss", losses[:, sample.positions])[0] / truth - 1)
        without.append(plain.estimate("loss", losses[:, plain.positions])[0] / truth - 1)
    assert np.abs(np.array(with_cells)[:, ::8]).max() < 2e-3  # but for the ridge
    assert np.std(with_cells) < 0.2 * np.std(without)


def test_a_broken_cell_calibrates_nothing_and_breaks_nothing(losses, coarse):
    broken = np.vstack([coarse, np.where(np.arange(N) == 7, np.inf, 1.0), np.full(N, np.nan)])
    sample, other = (make_sample({"loss": cells}, ONES, 300, 0, "train") for cells in (coarse, broken))
    np.testing.assert_array_equal(sample.positions, other.positions)
    values = losses[:, sample.positions]
    np.testing.assert_array_equal(sample.estimate("loss", values), other.estimate("loss", values))


def test_one_cell_is_estimated_as_many(losses, coarse):
    sample = make_sample({"loss": coarse}, ONES, 100, 0, "train")
    many = sample.estimate("loss", losses[:2, sample.positions])
    np.testing.assert_allclose(sample.estimate("loss", losses[1, sample.positions]), many[:, 1], rtol=1e-12)


def test_the_seed_and_the_split_decide_the_sample(coarse):
    drawn = [
        make_sample({"loss": coarse}, ONES, 100, *words).positions for words in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[3])
