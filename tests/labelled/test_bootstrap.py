import numpy as np
import pytest
from scipy import stats

from lltoolkit.labelled import bootstrap
from lltoolkit.labelled.bootstrap import (
    cluster_counts,
    example_means,
    interval,
    pair_signs,
    partial_tau,
    redrawn_tau,
    resampled_rho,
    resampled_tau,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tied(rng):
    """Three pairs of variables of 13 models, with ties in each."""
    return rng.integers(0, 6, (3, 13)).astype(float), rng.integers(0, 4, (3, 13)).astype(float)


@pytest.mark.parametrize(
    ("ours", "scipys"), [(resampled_tau, stats.kendalltau), (resampled_rho, stats.spearmanr)], ids=["tau", "rho"]
)
def test_weights_do_what_copies_do(ours, scipys, tied, rng):
    x, y = tied
    counts = cluster_counts(np.arange(13) // 2, 40, rng)
    found = ours(x, y, counts)
    for draw, count in enumerate(counts.astype(int)):
        for row in range(3):
            one, other = np.repeat(x[row], count), np.repeat(y[row], count)
            vary = np.ptp(one) > 0 and np.ptp(other) > 0
            copied = scipys(one, other).statistic if vary else np.nan
            assert found[draw, row] == pytest.approx(copied, abs=1e-12, nan_ok=True)


def test_a_resample_of_equals_has_no_order():
    counts = np.array([[2.0, 0, 1], [1, 1, 1]])
    x, y = np.array([[1.0, 2, 1]]), np.array([[3.0, 4, 5]])
    np.testing.assert_array_equal(np.isnan(resampled_tau(x, y, counts)), [[True], [False]])
    np.testing.assert_array_equal(np.isnan(resampled_rho(x, y, counts)), [[True], [False]])


def test_redrawn_targets_are_correlated_each_by_itself(tied, rng):
    x, _ = tied
    y = rng.integers(0, 5, (30, 13)).astype(float)
    expected = [[stats.kendalltau(one, other).statistic for one in x] for other in y]
    np.testing.assert_allclose(redrawn_tau(x, y), expected, atol=1e-12)


def test_blocks_do_not_show(tied, rng, monkeypatch):
    x, y = tied
    counts, redrawn = cluster_counts(np.arange(13), 50, rng), rng.random((50, 13))
    whole = resampled_tau(x, y, counts), redrawn_tau(x, redrawn)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    np.testing.assert_array_equal(resampled_tau(x, y, counts), whole[0])
    np.testing.assert_array_equal(redrawn_tau(x, redrawn), whole[1])


def test_clusters_stay_whole(rng):
    clusters = np.array(["a", "b", "a", "c", "c", "c"])
    counts = cluster_counts(clusters, 3000, rng)
    for name in "abc":
        mine = counts[:, clusters == name]
        assert (mine == mine[:, :1]).all()
        # Binomial(3, 1/3): mean 1, variance 2/3
        assert mine[:, 0].mean() == pytest.approx(1, abs=0.06)
        assert mine[:, 0].var() == pytest.approx(2 / 3, abs=0.06)
    np.testing.assert_array_equal(counts[:, [0, 1, 3]].sum(axis=1), 3)


def test_all_models_see_the_same_examples(rng):
    errors = (rng.random(400) < 0.1).astype(float)
    means = example_means(np.stack([errors, 1 - errors, rng.random(400)]), 2000, rng)
    np.testing.assert_allclose(means[:, 0] + means[:, 1], 1)
    assert means[:, 0].std() == pytest.approx(np.sqrt(errors.var() / 400), rel=0.06)
    assert abs(np.corrcoef(means[:, 0], means[:, 2])[0, 1]) < 0.2


def test_partial_tau_is_what_regression_on_pairs_leaves(rng):
    # tau-b is the cosine of two vectors of signs over pairs, so the partial one is the cosine of their residuals.
    x, y, z = rng.integers(0, 9, (3, 20)).astype(float)
    one, other, given = pair_signs(np.stack([x, y, z]))
    left = [v - given * (v @ given) / (given @ given) for v in (one, other)]
    expected = left[0] @ left[1] / np.linalg.norm(left[0]) / np.linalg.norm(left[1])
    taus = [np.array(stats.kendalltau(*pair).statistic) for pair in ((x, y), (x, z), (y, z))]
    assert partial_tau(*taus) == pytest.approx(expected, abs=1e-12)


def test_partial_tau_at_the_ends():
    one, nan, half = np.array(1.0), np.array(np.nan), np.array(0.5)
    assert partial_tau(half, nan, nan) == 0.5
    assert np.isnan(partial_tau(half, one, half))
    assert np.isnan(partial_tau(nan, nan, half))


def test_interval_passes_over_nan():
    draws = np.column_stack([np.arange(101.0), np.full(101, np.nan), np.where(np.arange(101) < 50, np.nan, 7.0)])
    low, high = interval(draws, 0.9)
    np.testing.assert_allclose(low, [5, np.nan, 7])
    np.testing.assert_allclose(high, [95, np.nan, 7])


def test_a_bound_settles_only_what_lies_behind_it():
    values, bounds = np.array([1.0, 2, 2, 3]), np.array([0, 1, 0, 0])
    np.testing.assert_array_equal(pair_signs(values, bounds), [-1, -1, -1, 0, 0, -1])
    np.testing.assert_array_equal(pair_signs(values, -bounds), [0, -1, -1, 0, -1, -1])
    np.testing.assert_array_equal(pair_signs(values, np.array([1, 1, 0, -1])), [0, 0, 0, 0, 0, 0])


def test_bounds_are_ties_in_all_correlations(rng):
    # Bounds above all other values are tied with one another and with nothing else: as if they were one value.
    x, y = rng.permutation(12).astype(float)[None], rng.random((1, 12))
    bounds = (x >= 9).astype(float)
    counts = cluster_counts(np.arange(12), 20, rng)
    tied = np.minimum(x, 9)
    np.testing.assert_allclose(resampled_tau(x, y, counts, bounds), resampled_tau(tied, y, counts))
    np.testing.assert_allclose(resampled_rho(x, y, counts, bounds), resampled_rho(tied, y, counts))
    np.testing.assert_allclose(redrawn_tau(x, y, bounds), redrawn_tau(tied, y))


def test_infinity_is_the_largest():
    np.testing.assert_array_equal(pair_signs(np.array([np.inf, 1.0, np.inf])), [1, 0, -1])
