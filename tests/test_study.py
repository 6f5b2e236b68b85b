"""The sharpness study is judged by the rules of its protocol: on made-up tables, whose outcome is known."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

import lltoolkit
from lltoolkit.columns import choose_columns
from lltoolkit.labelled.provenance import provenance
from lltoolkit.labelled.sharpness import add_attributes, empty_table, fill_row, fill_value, gaps, read_attributes

STUDY = Path(__file__).parents[1] / "data" / "sharpness-study"
pytestmark = pytest.mark.skipif(not STUDY.exists(), reason="the study is in the repository, not in the package")
MEASURES = ("filter_curvature", "lambda_max", "trace", "weight_norm")
VGG = "digits-vgg-vgg9-momentum-lr0.1-wd{}-s0"


@pytest.fixture(scope="module")
def make():
    """The study's make.py, with ``judge``, ``ship`` and ``minimizers`` beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDY)
        spec = importlib.util.spec_from_file_location("sharpness_study", STUDY / "make.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in ("judge", "ship", "minimizers"):
            setattr(module, f"{name}_module", sys.modules.pop(name))
    return module


@pytest.fixture(scope="module")
def judge(make):
    return make.judge_module


def planned(make, name):
    """The trainings behind a table; of equal loss only seed 0."""
    family = "digits-grid" if name == "digits-equal-loss" else name
    every = [each for each in make.minimizers() if each.family == family]
    return [each for each in every if name != "digits-equal-loss" or each.recipe["seed"] == 0]


def models(make, name, log_sharpness):
    """One row per planned model, as `judge.frame` gives them, with a sharpness by its attributes."""
    rows = []
    for each in planned(make, name):
        value = 10.0 ** log_sharpness(each.attributes)
        told = {"train_error": 0.0, "train_loss": 0.01, "test_error": 0.1} | dict.fromkeys(MEASURES, value)
        rows.append(each.attributes | told)
    return pd.DataFrame(rows)


def table(make, name, *, n_examples=40, chosen=None, seed=0):
    """A table as `compute_sharpness` lays it out, of random numbers; sharpness orders the test errors."""
    rng = np.random.default_rng(seed)
    trained = planned(make, name) if chosen is None else chosen
    rows = [each.configuration if name == "digits-equal-loss" else each.name for each in trained]
    columns = [each.column for each in choose_columns(MEASURES, split="train", seed=0, units="nat")]
    attrs = provenance("sharpness", config={}, model="x", n_params=1, device="cpu", torch_version="2")
    found = empty_table(rows, columns, dim="model", units="nat", attrs=attrs)
    for place in range(len(rows)):
        error = (rng.random(n_examples) < 0.3).astype(np.float32)
        loss = (2 * error + rng.random(n_examples)).astype(np.float32)
        told = {"train_loss": 0.01 + 0.001 * rng.random(), "train_error": 0.0, "test_loss": float(loss.mean())}
        told |= {f"{key}_se": 0.001 for key in (*told, "test_error")} | {"test_error": float(error.mean())}
        told = gaps(told) | {"theta_sha256": f"{name} {place}", "test_sha256": name.split("-")[0]}
        fill_row(found, place, told, {"test_example_loss": loss, "test_example_error": error})
        for column, _ in enumerate(MEASURES):
            fill_value(found, (place, column), 0.01 + told["test_error"] + 0.001 * rng.random(), 0.05, False)
    attributes = {row: each.attributes | {"family": name} for row, each in zip(rows, trained, strict=True)}
    add_attributes(found, read_attributes(attributes, rows), None)
    return found


def row_of(rows, claim, measure="filter_curvature", **wanted):
    wanted |= {"claim": claim, "measure": measure}
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


# Numbers


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [0.3, -0.2, 0.1, 0.5, -0.7, 0.2]])
def test_t_interval_is_that_of_scipy(judge, values):
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert judge.t_interval([*values, np.nan]) == pytest.approx((np.mean(values), wanted.low, wanted.high))


def test_two_values_have_no_interval(judge):
    mean, low, high = judge.t_interval([1.0, 3.0])
    assert mean == 2.0
    assert np.isnan([low, high]).all()
    assert np.isnan(judge.t_interval([])).all()


def test_slope_with_an_intercept_is_that_of_scipy(judge):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=9), rng.normal(size=9)
    wanted = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 7) * wanted.stderr
    expected = (wanted.slope, wanted.slope - half, wanted.slope + half)
    assert judge.slope([*x, 1.0], [*y, np.nan], [0] * 10) == pytest.approx(expected)


def test_common_slope_is_that_of_deviations_from_each_groups_means(judge):
    rng = np.random.default_rng(1)
    x, y, group = rng.normal(size=12), rng.normal(size=12), np.repeat([0, 1, 2], 4)
    within = pd.DataFrame({"x": x, "y": y})
    within -= within.groupby(group).transform("mean")
    wanted = stats.linregress(within["x"], within["y"])
    half = stats.t.ppf(0.975, 8) * wanted.stderr * np.sqrt(10 / 8)  # scipy counts one mean, there are three
    assert judge.slope(x, y, group) == pytest.approx((wanted.slope, wanted.slope - half, wanted.slope + half))


def test_too_little_has_no_slope_or_no_interval(judge):
    assert np.isnan(judge.slope([1.0], [1.0], [0])).all()
    assert np.isnan(judge.slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0, 0, 0])).all()
    found = judge.slope([0.0, 1.0], [1.0, 3.0], [0, 0])
    assert found[0] == pytest.approx(2.0)
    assert np.isnan(found[1:]).all()


def test_rises_are_taken_from_each_end_inwards(make, judge):
    def loss(alphas):
        alphas = np.asarray(alphas)
        return xr.DataArray(3 * alphas**2 + 1, coords={"alpha": alphas}, dims="alpha")

    found = judge.unnormalized_rise(loss(make.LINE))
    assert found == pytest.approx({"rise_small": 0.03, "rise_large": 3 * (0.81 - 1)})
    assert judge.unnormalized_rise(loss(make.SHOWN)) == pytest.approx(found)


# Claim 1


@pytest.mark.parametrize(
    ("tau", "low", "high", "verdict"),
    [
        (0.5, 0.1, 0.8, "agrees"),
        (0.2, 0.01, 0.4, "agrees"),
        (0.19, 0.01, 0.4, "undecided"),
        (0.5, 0.0, 0.8, "undecided"),
        (0.1, -0.2, 0.2, "undecided"),
        (0.1, -0.2, 0.19, "disagrees"),
        (-0.5, -0.8, -0.1, "disagrees"),
        (np.nan, np.nan, np.nan, "undecided"),
    ],
)
def test_rule_of_tau(judge, tau, low, high, verdict):
    assert judge._of_tau(tau, low, high, 5) == verdict
    assert judge._of_tau(tau, low, high, 4) == "undecided"


def correlate(judge, name, found):
    return judge._correlations(name, found, 50, kept=[])


def test_claim_1_agrees_and_disagrees_and_counts_what_is_left_out(make, judge):
    kept = planned(make, "cifar10-grid")[3:]  # three have diverged
    found = table(make, "cifar10-grid", chosen=kept)
    found["train_error"].values[:2] = 0.06
    found["value"].values[5] = np.nan
    main = row_of(correlate(judge, "cifar10-grid", found), "1", primary=True)
    assert (main["verdict"], main["n"], main["n_left_out"]) == ("agrees", 18, 6)
    every = row_of(correlate(judge, "cifar10-grid", found), "1", models="all models", statistic="tau with test_error")
    assert (every["n"], every["n_left_out"], every["primary"]) == (20, 4, False)

    # The spread over test examples says nothing in the verdict.
    alone = found.drop_vars(["test_example_loss", "test_example_error"])
    assert row_of(correlate(judge, "cifar10-grid", alone), "1", primary=True)["verdict"] == "agrees"
    found["value"] = 1 / found["value"]
    assert row_of(correlate(judge, "cifar10-grid", found), "1", primary=True)["verdict"] == "disagrees"


def test_one_network_of_one_recipe_is_one_configuration_over_all_digits(make, judge):
    families = ("digits-grid", "digits-vgg", "digits-shapes")
    joined = judge.join([table(make, name) for name in families])
    found = row_of(correlate(judge, "digits-all", joined), "1", models="all models", statistic="tau with test_error")
    # 24 of the grid, 4 of VGG-9, 12 shapes; the ResNet-8 with shortcuts is one of the grid.
    assert (found["n"], found["n_left_out"], found["n_clusters"]) == (48 + 4 + 12, 0, 24 + 4 + 12 - 1)


# Claim 2


def lines(judge, without, with_decay):
    """Pairs of ``cifar10-grid`` with d around a mean for each decay; 0 leaves the sign open."""
    pairs = judge._planned_pairs("cifar10-grid")
    wave = np.resize([0.3, -0.3], len(pairs))
    pairs["d"] = np.where(pairs["weight_decay"] == 0, without, with_decay) + np.random.default_rng(0).permutation(wave)
    return pairs


@pytest.mark.parametrize(
    ("without", "with_decay", "verdict"),
    [
        (2, -2, "agrees"),
        (2, 2, "disagrees"),
        (-2, -2, "disagrees"),
        (-2, 2, "undecided"),
        (2, 0, "undecided"),
        (0, -2, "undecided"),
        (np.nan, -2, "undecided"),
    ],
)
def test_rule_of_claim_2(make, judge, without, with_decay, verdict):
    flat = models(make, "cifar10-grid", lambda each: 0.0)
    rows = [
        row for row in judge._flips("cifar10-grid", flat, lines(judge, without, with_decay)) if row["measure"] == "line"
    ]
    assert [row["verdict"] for row in rows] == [verdict] * 2
    assert all(row["primary"] for row in rows)


def test_claim_2_leaves_out_pairs_with_a_model_that_is_no_minimizer(make, judge):
    every = models(make, "cifar10-grid", lambda each: 0.0)
    every.loc[(every["batch"] == "large") & (every["weight_decay"] == 0) & (every["lr"] == 1.0), "train_error"] = 0.5
    without, with_decay = (
        row for row in judge._flips("cifar10-grid", every, lines(judge, 1, 1)) if row["measure"] == "line"
    )
    assert (without["n"], without["n_left_out"]) == (5, 1)
    assert (with_decay["n"], with_decay["n_left_out"]) == (6, 0)


def test_rises_become_ratios_with_a_floor(make, judge, tmp_path):
    pairs = [each.attributes for each in planned(make, "digits-vgg") if each.batch == "small"]
    rises = [{"rise_small": 1e-9, "rise_large": 1e-3}, {"rise_small": None, "rise_large": 1.0}]
    (tmp_path / "lines.json").write_text(json.dumps([pair | rise for pair, rise in zip(pairs, rises, strict=True)]))
    found = judge._read_lines("digits-vgg", tmp_path / "lines.json")["d"]
    assert found[0] == pytest.approx(3.0)
    assert np.isnan(found[1])
    assert judge._read_lines("digits-vgg", tmp_path / "none.json")["d"].isna().tolist() == [True, True]


# Claim 3


@pytest.mark.parametrize(
    ("name", "shift", "verdict"),
    [
        ("digits-grid", 1.0, "agrees"),
        ("cifar10-grid", 1.0, "agrees"),
        ("cifar10-grid", -1.0, "disagrees"),
        ("cifar10-grid", 0.0, "undecided"),
    ],
)
def test_rule_of_claim_3_and_its_mirror(make, judge, name, shift, verdict):
    rng = np.random.default_rng(0)
    every = models(make, name, lambda each: shift * (each["batch"] == "large") + 0.2 * rng.normal())
    every.loc[0, "train_error"] = 0.5
    found = row_of(judge._batches(name, every), "3", primary=True)
    assert (found["verdict"], found["n"], found["n_left_out"]) == (verdict, 6, 1)

    kept = every[every["train_error"] == 0]
    by_block = {}
    for (optimizer, lr, *_), pair in kept.groupby(["optimizer", "lr", "weight_decay", "seed"]):
        log = {row["batch"]: np.log10(row["filter_curvature"]) for _, row in pair.iterrows()}
        if len(log) == 2:
            by_block.setdefault((optimizer, lr), []).append(log["large"] - log["small"])
    means = [np.mean(values) for values in by_block.values()]
    wanted = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((np.mean(means), wanted.low, wanted.high))

    swapped = every.assign(batch=every["batch"].map({"small": "large", "large": "small"}))
    mirror = row_of(judge._batches(name, swapped), "3", primary=True)
    assert mirror["verdict"] == {"agrees": "disagrees", "disagrees": "agrees"}.get(verdict, verdict)
    assert mirror["estimate"] == pytest.approx(-found["estimate"])


def test_models_without_a_logarithm_or_not_there_are_counted(make, judge):
    every = models(make, "cifar10-grid", lambda each: 0.0)
    every.loc[0, "filter_curvature"] = -1.0
    pair = (every["optimizer"] == "adam") & (every["lr"] == 0.005) & (every["weight_decay"] == 0)
    rows = judge._batches("cifar10-grid", every[~pair])  # both models of a pair have diverged
    found = row_of(rows, "3", primary=True)
    assert (found["n"], found["n_left_out"]) == (6, 2)
    bare = row_of(rows, "3", statistic="log10 large / small, weight decay 0", models="all models")
    assert (bare["n"], bare["n_left_out"]) == (4, 2)


# Claims 4 and 5


def by_shape(bare=0.0, bare_depth=0.0, width=0.0, depth=0.0, noise=0.0):
    """Log of a sharpness, linear in all that varies among the shapes."""
    rng = np.random.default_rng(0)

    def log(each):
        tens = each["depth"] / 10
        found = width * np.log2(each["width"]) + depth * tens + noise * rng.normal()
        return found + (each["shortcut"] == "none") * (bare + bare_depth * tens)

    return log


def test_slopes_are_those_that_were_put_in(make, judge):
    rows = judge._shapes(models(make, "digits-shapes", by_shape(0.5, 0.25, -0.125, 0.0625)))
    tens = np.mean([0.8, 1.4, 2.0, 3.2, 0.8, 0.8])
    assert row_of(rows, "4a")["estimate"] == pytest.approx(0.5 + 0.25 * tens)
    assert row_of(rows, "4b")["estimate"] == pytest.approx(0.25)
    assert row_of(rows, "5a")["estimate"] == pytest.approx(-0.125)
    assert row_of(rows, "5b", primary=True)["estimate"] == pytest.approx(0.25 + 0.0625)
    assert row_of(rows, "5b", primary=False)["estimate"] == pytest.approx(0.0625)
    assert {row["n_left_out"] for row in rows} == {0}


@pytest.mark.parametrize(
    ("claim", "moved", "sharper"),
    [("4a", "bare", "agrees"), ("4b", "bare_depth", "agrees"), ("5a", "width", "disagrees"), ("5b", "depth", "agrees")],
)
def test_rules_of_claims_4_and_5(make, judge, claim, moved, sharper):
    def verdict(size):
        rows = judge._shapes(models(make, "digits-shapes", by_shape(noise=0.05, **{moved: size})))
        return row_of(rows, claim, primary=True)["verdict"]

    assert verdict(1.0) == sharper
    assert verdict(-1.0) == {"agrees": "disagrees", "disagrees": "agrees"}[sharper]
    assert verdict(0.0) == "undecided"


def test_shapes_that_are_left_out_are_counted(make, judge):
    every = models(make, "digits-shapes", by_shape(1.0, noise=0.05))
    deepest = (every["depth"] == 32) & (every["shortcut"] == "none")  # has diverged
    every.loc[(every["width"] == 4) & (every["shortcut"] == "A"), "train_error"] = 0.5
    rows = judge._shapes(every[~deepest])
    assert [row_of(rows, "4a")[key] for key in ("n", "n_left_out")] == [4, 2]
    assert [row_of(rows, "4b")[key] for key in ("n", "n_left_out")] == [3, 1]
    assert [row_of(rows, "5a")[key] for key in ("n", "n_left_out")] == [5, 1]
    assert [row_of(rows, "5b", primary=True)[key] for key in ("n", "n_left_out")] == [3, 1]
    assert [row_of(rows, "5b", primary=False)[key] for key in ("n", "n_left_out")] == [4, 0]


# Together


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("agrees agrees", "agrees"),
        ("agrees undecided", "agrees"),
        ("disagrees undecided", "disagrees"),
        ("agrees disagrees", "undecided"),
        ("undecided undecided", "undecided"),
        ("", "undecided"),
    ],
)
def test_rows_of_a_claim_are_joined(judge, said, verdict):
    rows = [{"claim": "3", "primary": True, "verdict": each} for each in said.split()]
    aside = [
        {"claim": "3", "primary": False, "verdict": "agrees"},
        {"claim": "1", "primary": True, "verdict": "agrees"},
    ]
    assert judge._together("3", [*rows, *aside]) == verdict


def write_study(make, work):
    """Write all that judging reads: tables with a diverged training, lines, and the drawn pair."""
    (work / "lines").mkdir(parents=True)
    for name in make.MEASURED:
        chosen = planned(make, name)
        if name == "digits-equal-loss":
            chosen = chosen[2:]  # two never came down to it
        if name == "cifar10-grid":
            folder = chosen[0].folder(work)
            folder.mkdir(parents=True)
            (folder / "diverged.txt").write_text("training diverged")
            chosen = chosen[1:]
        n_examples = 4000 if name == "cifar10-grid" else 40
        lltoolkit.save_result(table(make, name, chosen=chosen, n_examples=n_examples), work / f"{name}.sharpness.nc")
    for name in make.PAIRED:
        pairs = [each for each in planned(make, name) if each.batch == "small"]
        told = [each.attributes | {"rise_small": 0.5, "rise_large": 0.1 * place} for place, each in enumerate(pairs)]
        (work / "lines" / f"{name}.json").write_text(json.dumps(told))
    data = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    ends = {batch: torch.nn.Linear(3, 2) for batch in ("small", "large")}
    objectives = [lltoolkit.Objective(model, {"train": data}, device="cpu") for model in ends.values()]
    line = lltoolkit.compute_surface(
        objectives[0],
        lltoolkit.interpolate(*objectives),
        coords={"alpha": make.SHOWN},
        n_workers=1,
        progress=False,
    )
    for decay in ("0", "0.0005"):
        lltoolkit.save_result(line, work / "lines" / f"{VGG.format(decay)}.surface.nc")
        make._histograms({f"{VGG.format(decay)}-{batch}": model for batch, model in ends.items()}, work)


def test_judging_and_shipping_a_whole_study(make, judge, tmp_path):
    work, folder = tmp_path / "work", tmp_path / "shipped"
    write_study(make, work)
    told = []
    rows = judge.judge(work, echo=told.append, n_bootstrap=20)
    found = json.loads((work / "verdicts.json").read_text())
    assert len(found["rows"]) == len(rows)
    assert set(found["verdicts"]) == {"1", "2", "3", "4a", "4b", "5a", "5b"}
    assert {row["claim"] for row in rows if row["primary"]} == set(found["verdicts"])
    cifar10, equal = found["models"]["cifar10-grid"], found["models"]["digits-equal-loss"]
    assert [cifar10[key] for key in ("planned", "measured", "diverged", "absent")] == [24, 23, 1, 0]
    assert cifar10["names of the diverged"] == [planned(make, "cifar10-grid")[0].name]
    assert [equal[key] for key in ("planned", "measured", "diverged", "absent")] == [24, 22, 0, 2]
    assert "claim 1: agrees" in told
    assert len(pd.read_csv(work / "correlations.csv")) == 5 * 2 * 4 * len(MEASURES)

    files = make.ship_module.ship_results(work, folder, echo=told.append)
    assert {path.relative_to(folder) for path in folder.rglob("*.*")} == {path.relative_to(folder) for path in files}
    assert {"pair.png", "cifar10-grid.png", "digits-grid.png", "verdicts.json"} <= {path.name for path in files}
    small, whole = (lltoolkit.open_result(place / "cifar10-grid.sharpness.nc") for place in (folder, work))
    assert "test_example_loss" not in small
    assert small["test_example_error"].dtype == np.int8
    np.testing.assert_array_equal(small["test_example_error"], whole["test_example_error"])
    xr.testing.assert_equal(small["value"], whole["value"])
    lost = lltoolkit.open_result(folder / "digits-grid.sharpness.nc")
    xr.testing.assert_equal(lost, lltoolkit.open_result(work / "digits-grid.sharpness.nc"))


def test_the_study_is_not_shipped_onto_itself(make, tmp_path):
    with pytest.raises(ValueError, match="name another folder"):
        make.ship_module.ship_results(tmp_path, tmp_path, echo=lambda line: None)


# Equal loss


def test_equal_loss_waits_for_the_run_of_the_grid(make, tmp_path):
    """The losses are known from an earlier call, so that no network is run."""
    grid = next(each for each in planned(make, "digits-grid") if each.batch == "large")
    constant = next(each for each in planned(make, "digits-constant") if each.configuration == grid.configuration)
    runs = {each: SimpleNamespace(checkpoints=[SimpleNamespace(step=7)]) for each in (grid, constant)}
    known = {f"{grid.family}/{grid.name}": -1, f"{constant.family}/{constant.name}": 7}
    (tmp_path / "digits-equal-loss.json").write_text(json.dumps(known))

    def found(runs, skip):
        rows = make._equal_losses(runs, tmp_path, None, skip=skip)
        return {name: each for name, (each, _, _) in rows.items()}

    only_constant = {constant: runs[constant]}
    assert found(only_constant, {grid.configuration}) == {}
    assert found(only_constant, ()) == {grid.configuration: constant}  # the grid's has diverged
    assert found(runs, ()) == {grid.configuration: constant}  # it never came there
    known[f"{grid.family}/{grid.name}"] = 7
    (tmp_path / "digits-equal-loss.json").write_text(json.dumps(known))
    assert found(runs, ()) == {grid.configuration: grid}
