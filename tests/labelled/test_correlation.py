import numpy as np
import pytest
import xarray as xr
from scipy import stats

from lltoolkit.labelled.correlation import rank_correlation
from lltoolkit.labelled.modelset import TARGETS


def make_table(n=24, n_measures=3, *, seed=0, n_examples=None, r=0.6, **coords):
    """Models whose measures go with the error gap, the first measure most."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=n)
    value = r * hidden[:, None] + np.sqrt(1 - r**2) * rng.normal(size=(n, n_measures)) * np.arange(1, n_measures + 1)
    variables = {"value": (("model", "measure"), np.exp(value))}
    train_loss, train_error = rng.random(n) / 100, rng.random(n) / 50
    test_error, test_loss = 0.1 + 0.02 * hidden, 0.4 + 0.1 * hidden
    if n_examples is not None:
        test_error = np.clip(0.1 + 0.02 * hidden, 0.02, 0.3)
        errors = (rng.random((n, n_examples)) < test_error[:, None]).astype(np.float32)
        losses = (rng.exponential(size=(n, n_examples)) * test_loss[:, None]).astype(np.float32)
        variables |= {"test_example_error": (("model", "example"), errors)}
        variables |= {"test_example_loss": (("model", "example"), losses)}
        test_error, test_loss = errors.mean(axis=1, dtype=float), losses.mean(axis=1, dtype=float)
    targets = {"test_loss": test_loss, "test_error": test_error}
    targets |= {"train_loss": train_loss, "train_error": train_error}
    targets |= {"loss_gap": test_loss - train_loss, "error_gap": test_error - train_error}
    return xr.Dataset(
        variables,
        coords={
            "model": [f"m{place}" for place in range(n)],
            "measure": ["lambda_max", "trace", "sam", "asam"][:n_measures],
            **{name: ("model", values) for name, values in (targets | coords).items()},
        },
        attrs={"kind": "sharpness"},
    )


def test_every_entry_is_scipys():
    table = make_table()
    found = rank_correlation(table, against=TARGETS, n_bootstrap=50)
    assert found.tau.dims == ("against", "measure")
    for target in TARGETS:
        for measure in table.measure.values:
            pair = table.value.sel(measure=measure).values, table[target].values
            entry = found.sel(against=target, measure=measure)
            assert entry.tau == pytest.approx(stats.kendalltau(*pair).statistic)
            assert entry.rho == pytest.approx(stats.spearmanr(*pair).statistic)
            assert entry.tau_low <= entry.tau <= entry.tau_high
            assert (entry.n_models, entry.n_clusters, entry.n_dropped) == (24, 24, 0)
    assert found.attrs["note"] == ""


def test_models_without_a_value_are_left_out_and_counted():
    table = make_table()
    table["value"][3, 0] = table["value"][7, 0] = np.nan
    table["error_gap"][7] = np.nan
    found = rank_correlation(table, n_bootstrap=200)
    np.testing.assert_array_equal(found.n_dropped, [[2, 1, 1]])
    np.testing.assert_array_equal(found.n_models, [[22, 23, 23]])
    left = table.isel(model=[place for place in range(24) if place not in (3, 7)])
    xr.testing.assert_allclose(
        found.drop_vars("n_dropped").sel(measure="lambda_max"),
        rank_correlation(left, n_bootstrap=200).drop_vars("n_dropped").sel(measure="lambda_max"),
    )
    assert "Up to 2 models have no value" in found.attrs["note"]


def test_only_the_order_counts_and_models_have_none():
    table = make_table(configuration=[f"c{place % 8}" for place in range(24)])
    found = rank_correlation(table, against=TARGETS, n_bootstrap=100)
    stretched = table.assign(value=np.log(table.value) * 3 - 5)
    xr.testing.assert_allclose(rank_correlation(stretched, against=TARGETS, n_bootstrap=100), found)
    mixed = table.isel(model=np.random.default_rng(1).permutation(24), measure=[2, 0, 1])
    xr.testing.assert_allclose(rank_correlation(mixed, against=TARGETS, n_bootstrap=100), found.isel(measure=[2, 0, 1]))


def test_intervals_cover_the_truth():
    # Kendall's tau of a bivariate normal: 2 / pi * arcsin(r).
    r = 0.6**2**0.5
    truth, hits = 2 / np.pi * np.arcsin(r), 0
    for seed in range(60):
        found = rank_correlation(
            make_table(30, 1, seed=seed, r=r), against="test_error", given=None, n_bootstrap=300
        ).squeeze()
        hits += bool(found.tau_low <= truth <= found.tau_high)
    assert hits >= 53


def test_seeds_of_one_configuration_are_one_witness():
    # No correlation between configurations; seeds differ little. Taking each seed for itself finds some all the time.
    wrong = {"configuration": 0, "model": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = np.repeat(rng.normal(size=(2, 10)), 5, axis=1) + 0.05 * rng.normal(size=(2, 50))
        table = xr.Dataset(
            {"value": (("model", "measure"), x[:, None])},
            {"measure": ["trace"], "test_loss": ("model", y), "configuration": ("model", np.repeat(np.arange(10), 5))},
        )
        for cluster in wrong:
            found = rank_correlation(table, against="test_loss", cluster=cluster, given=None, n_bootstrap=200)
            wrong[cluster] += found.verdict.item() != "undecided"
            assert found.n_clusters == (10 if cluster == "configuration" else 50)
    assert wrong["configuration"] <= 0.2 * 40
    assert wrong["model"] >= 0.3 * 40


def test_clusters_by_several_attributes():
    attributes = {"lr": np.arange(24) % 2, "batch_size": np.arange(24) % 3, "configuration": np.arange(24) % 6}
    table = make_table(**attributes)
    found = rank_correlation(table, cluster=["lr", "batch_size"], n_bootstrap=50)
    assert (found.n_clusters == 6).all()
    assert found.attrs["cluster"] == "lr, batch_size"
    xr.testing.assert_equal(found.n_clusters, rank_correlation(table, n_bootstrap=50).n_clusters)


def test_an_unknown_configuration_is_nobodys():
    table = make_table(configuration=np.array(["", "", "a", "a"] * 6, dtype=object), lr=[np.nan, 1.0] * 12)
    found = rank_correlation(table, group="configuration", n_bootstrap=5)
    assert (found.n_clusters == 13).all()
    assert (found.n_groups == 1).all()
    assert (rank_correlation(table, cluster="lr", n_bootstrap=5).n_clusters == 13).all()


def test_resampled_test_examples_by_hand():
    table = make_table(n_examples=300)
    found = rank_correlation(table, against=TARGETS, n_bootstrap=2000).sel(measure="trace")
    rng, trace = np.random.default_rng(5), table.value.values[:, 1]
    for kind in ("loss", "error"):
        values = table[f"test_example_{kind}"].values.astype(float)
        taus = {"test": [], "gap": []}
        for _ in range(400):
            test = values[:, rng.integers(300, size=300)].mean(axis=1)
            taus["test"].append(stats.kendalltau(trace, test).statistic)
            taus["gap"].append(stats.kendalltau(trace, test - table[f"train_{kind}"].values).statistic)
        for target, draws in ((f"test_{kind}", taus["test"]), (f"{kind}_gap", taus["gap"])):
            entry = found.sel(against=target)
            np.testing.assert_allclose(
                [entry.tau_test_low, entry.tau_test_high], np.quantile(draws, [0.025, 0.975]), atol=0.03
            )


def test_redrawn_test_examples_pull_tau_to_zero_twice():
    # The table in the notes of rank_correlation, in small: many examples or models far apart, and few and close.
    middles = {}
    for n_examples, apart in ((4000, 0.02), (400, 0.01)):
        told = []
        for seed in range(25):
            rng = np.random.default_rng(seed)
            hidden = rng.normal(size=(24, 1))
            true = 0.1 + apart * hidden
            errors = (rng.random((24, n_examples)) < true).astype(np.float32)
            table = xr.Dataset(
                {
                    "value": (("model", "measure"), hidden + 0.75 * rng.normal(size=(24, 1))),
                    "test_example_error": (("model", "example"), errors),
                },
                {"measure": ["trace"], "test_error": ("model", errors.mean(axis=1, dtype=float))},
            )
            found = rank_correlation(table, against="test_error", given=None, n_bootstrap=100).squeeze()
            ends = float(found.tau_test_low), float(found.tau_test_high)
            truth = stats.kendalltau(table.value, true).statistic
            told.append((truth, float(found.tau), np.mean(ends), ends[0] <= truth <= ends[1]))
        middles[n_examples] = np.mean(told, axis=0)
    many, few = middles[4000], middles[400]
    assert many[3] >= 0.7
    assert few[3] <= 0.3
    assert few[0] > 1.4 * few[1] > 1.6 * few[2] > 0
    assert many[0] > many[1] > many[2] > 0.8 * many[0]


def test_without_values_per_example_there_is_no_such_interval():
    table = make_table(n_examples=100)
    assert rank_correlation(table.drop_vars("test_example_error"), n_bootstrap=9).tau_test_low.isnull().all()
    table["test_example_error"][2, 5] = np.nan
    table["value"][2, 1] = np.nan  # trace does without that model
    found = rank_correlation(table, n_bootstrap=50)
    np.testing.assert_array_equal(found.tau_test_low.isnull(), [[True, False, True]])


def test_partial_tau_takes_out_a_common_cause():
    rng = np.random.default_rng(0)
    cause = rng.normal(size=300)
    table = xr.Dataset(
        {"value": (("model", "measure"), (cause + 0.5 * rng.normal(size=300))[:, None])},
        coords={
            "measure": ["trace"],
            "train_loss": ("model", cause),
            "error_gap": ("model", cause + 0.5 * rng.normal(size=300)),
        },
    )
    found = rank_correlation(table, n_bootstrap=200).squeeze()
    xy, xz, yz = (
        stats.kendalltau(*pair).statistic
        for pair in (
            (table.value.values[:, 0], table.error_gap.values),
            (table.value.values[:, 0], cause),
            (table.error_gap.values, cause),
        )
    )
    assert found.tau_partial == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))
    assert found.tau > 0.5 > 0.25 > found.tau_partial
    assert found.tau_partial_low < found.tau_partial < found.tau_partial_high
    assert "tau_partial" not in rank_correlation(table, given=None, n_bootstrap=5)


def test_a_constant_explains_nothing_and_the_measure_itself_everything():
    table = make_table(4 * 6, 1)
    table["train_loss"][:] = 0.01
    found = rank_correlation(table, n_bootstrap=100)
    xr.testing.assert_equal(found.tau_partial, found.tau.rename("tau_partial"))
    xr.testing.assert_equal(found.tau_partial_low, found.tau_low.rename("tau_partial_low"))
    table["train_loss"][:] = table.value[:, 0]
    found = rank_correlation(table, n_bootstrap=100)
    assert found.tau_partial.isnull().all()
    assert found.tau_partial_low.isnull().all()


def test_groups_show_what_the_average_hides():
    # Sharper is better within each optimizer; one optimizer is sharper and worse than the other.
    value = [1.0, 2, 3, 4, 11, 12, 13, 14, 99, 98]
    gap = [0.04, 0.03, 0.02, 0.01, 0.14, 0.13, 0.11, 0.12, 0.9, 0.8]
    table = xr.Dataset(
        {"value": (("model", "measure"), np.array(value)[:, None])},
        coords={
            "measure": ["trace"],
            "error_gap": ("model", gap),
            "train_loss": ("model", np.arange(10.0)),
            "optimizer": ("model", ["sgd"] * 4 + ["adam"] * 4 + ["lone"] * 2),
        },
    )
    found = rank_correlation(table, group="optimizer", n_bootstrap=50).squeeze()
    assert found.tau > 0
    assert found.tau_group_mean == pytest.approx((-1 - 2 / 3) / 2)
    assert found.tau_group_min == pytest.approx(-1)
    assert found.tau_group_min_at == "optimizer=sgd"
    assert found.n_groups == 2  # two models make no group
    nothing = rank_correlation(table, group=["optimizer", "error_gap"], n_bootstrap=50).squeeze()
    assert nothing.n_groups == 0
    assert nothing.tau_group_mean.isnull()


def test_a_radius_is_turned_around():
    table = make_table()
    found = rank_correlation(table, n_bootstrap=100)
    turned = rank_correlation(
        table.assign_coords(
            measure_sharper=("measure", np.array(["higher", "lower", "higher"], dtype=object)),
            measure_units=("measure", ["nat", "1", "1"]),
        ),
        n_bootstrap=100,
    )
    np.testing.assert_allclose(turned.tau[0], found.tau[0] * [1, -1, 1])
    np.testing.assert_allclose(turned.tau_low[0, 1], -found.tau_high[0, 1])
    assert turned.measure_sharper.sel(measure="trace") == "lower"
    assert set(turned.coords) == {"against", "measure", "measure_sharper"}


def test_bounds_are_counted():
    table = make_table()
    table["censored"] = (("model", "measure"), np.zeros((24, 3), dtype=np.int8))
    table["censored"][:5, 1] = 1
    table["value"][0, 1] = np.nan
    found = rank_correlation(table, n_bootstrap=10)
    np.testing.assert_array_equal(found.n_censored, [[0, 4, 0]])
    assert "Up to 4 models have only a bound" in found.attrs["note"]


@pytest.mark.parametrize("sharper", ["higher", "lower"])
def test_a_pair_whose_order_a_bound_leaves_open_is_a_tie(sharper):
    # The bounds 3 and 5 may be of true values that are anything above. Against the larger values they say nothing.
    value, censored = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([0, 0, 1, 0, 1, 0, 0])
    gap = np.array([2.0, 1, 3, 5, 4, 7, 6])
    table = xr.Dataset(
        {"value": (("model", "measure"), value[:, None]), "censored": (("model", "measure"), censored[:, None])},
        coords={
            "measure": ["radius"],
            "measure_sharper": ("measure", [sharper]),
            "error_gap": ("model", gap),
            "train_loss": ("model", gap[::-1]),
        },
    )
    settled = [
        (i, j)
        for j in range(7)
        for i in range(j)  # value[i] < value[j]
        if not censored[i]
    ]
    sign = {"higher": 1, "lower": -1}[sharper]
    of_gap = [sign * np.sign(gap[j] - gap[i]) for i, j in settled]
    of_loss = [sign * np.sign(gap[6 - j] - gap[6 - i]) for i, j in settled]
    tau, with_loss = (sum(signs) / np.sqrt(len(settled) * 21) for signs in (of_gap, of_loss))
    found = rank_correlation(table, n_bootstrap=200).squeeze()
    assert found.tau == pytest.approx(tau)
    between = stats.kendalltau(gap, gap[::-1]).statistic
    partial = (tau - with_loss * between) / np.sqrt((1 - with_loss**2) * (1 - between**2))
    assert found.tau_partial == pytest.approx(partial)
    assert found.tau_low <= found.tau <= found.tau_high
    table["censored"][:] = 1
    assert rank_correlation(table, n_bootstrap=5).tau.isnull().all()


@pytest.mark.parametrize(("n", "verdict"), [(4, "undecided"), (5, "positive")])
def test_a_perfect_order_of_few_decides_nothing(n, verdict, caplog):
    table = make_table(n)
    table["value"][:] = table.error_gap
    found = rank_correlation(table, n_bootstrap=300)
    np.testing.assert_allclose(found.tau, 1)
    assert (found.verdict == verdict).all()
    assert ("means little" in found.attrs["note"]) == (n == 4)
    assert ("means little" in caplog.text) == (n == 4)
    table["value"][:] *= -1
    assert (rank_correlation(table, n_bootstrap=300).verdict == verdict.replace("positive", "negative")).all()


def test_one_configuration_has_no_interval(caplog):
    found = rank_correlation(make_table(configuration=["only"] * 24), n_bootstrap=20)
    assert found.tau.notnull().all()
    assert found.tau_low.isnull().all()
    assert (found.verdict == "undecided").all()
    assert "1 cluster of models" in caplog.text


@pytest.mark.parametrize("gap", [np.full(24, 0.02), np.array([0.1, 0.2, 0.3] * 8) - np.array([0.05, 0.15, 0.25] * 8)])
def test_equal_gaps_have_no_order(gap):
    table = make_table(n_examples=50).drop_vars("test_example_error")
    table["error_gap"][:] = gap  # the second one's differences are rounding
    found = rank_correlation(table, n_bootstrap=20)
    assert found[["tau", "tau_low", "rho", "tau_partial"]].isnull().all().to_array().all()
    assert (found.verdict == "undecided").all()
    assert "3 of 3 correlations are NaN" in found.attrs["note"]


def test_no_values_at_all():
    table = make_table()
    table["value"][:] = np.nan
    found = rank_correlation(table, n_bootstrap=20)
    assert found.tau.isnull().all()
    assert (found.n_models == 0).all()


def test_a_diverged_model_is_the_worst():
    table = make_table(n_examples=50)
    found = rank_correlation(table, against="test_loss", n_bootstrap=20)
    worst = int(np.argmax(table.test_loss.values))
    table["test_loss"][worst] = np.inf
    table["value"][int(np.argmax(table.value.values[:, 0])), 0] = np.inf
    np.testing.assert_array_equal(rank_correlation(table, against="test_loss", n_bootstrap=20).tau, found.tau)


def test_as_a_table_and_as_a_file(tmp_path):
    table = make_table(optimizer=["sgd", "adam"] * 12)
    found = rank_correlation(table, against=["error_gap", "test_loss"], group="optimizer", n_bootstrap=20)
    frame = found.to_dataframe()
    assert list(frame.index.names) == ["against", "measure"]
    assert len(frame) == 6
    assert list(frame.columns[:4]) == ["tau", "tau_low", "tau_high", "verdict"]
    found.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as back:
        xr.testing.assert_identical(back.load(), found)


def test_the_same_seed_gives_the_same_numbers():
    table = make_table()
    xr.testing.assert_identical(rank_correlation(table, n_bootstrap=50), rank_correlation(table, n_bootstrap=50))
    other = rank_correlation(table, n_bootstrap=50, seed=1)
    assert (other.tau_low != rank_correlation(table, n_bootstrap=50).tau_low).any()


def test_a_measure_may_be_a_name_alone():
    found = rank_correlation(make_table(), measures="sam", n_bootstrap=5)
    assert found.measure.values.tolist() == ["sam"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"against": "eror_gap"}, "Did you mean 'error_gap'"),
        ({"against": "train_loss"}, "is not one of 'loss_gap'"),
        ({"against": []}, "against is empty"),
        ({"measures": ["trace", "lamda_max"]}, "Did you mean 'lambda_max'"),
        ({"measures": []}, "measures is empty"),
        ({"cluster": "optimiser"}, "Did you mean 'optimizer'"),
        ({"group": "measure"}, "no coordinate of the models"),
        ({"group": []}, "group is empty"),
        ({"given": "train_los"}, "Did you mean 'train_loss'"),
        ({"given": "optimizer"}, "holds words"),
        ({"n_bootstrap": 0}, "whole number of at least 1"),
    ],
)
def test_bad_choices(options, words):
    with pytest.raises(ValueError, match=words):
        rank_correlation(make_table(optimizer=["sgd"] * 24), **options)


def test_bad_tables():
    table = make_table()
    with pytest.raises(ValueError, match="table has 1 model;"):
        rank_correlation(table.isel(model=[0]))
    with pytest.raises(ValueError, match="needs several models"):
        rank_correlation(table.isel(model=0))
    with pytest.raises(ValueError, match="which has loss_gap, test_loss"):
        rank_correlation(table.drop_vars(["error_gap", "test_error"]))
    with pytest.raises(ValueError, match="choose one first"):
        rank_correlation(table.expand_dims(step=[0, 1]))
    with pytest.raises(TypeError, match="compute_sharpness"):
        rank_correlation({"trace": [1, 2]})
