"""compute_sharpness against the measures themselves, losses by hand, fresh objectives of checkpoints, and resumed."""

import copy
import dataclasses
import math
import pickle

import cloudpickle
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

import lltoolkit as ll
from lltoolkit.columns import choose_columns
from lltoolkit.sharpness import compute_sharpness
from lltoolkit.tensors.checkpoints import save_checkpoint
from lltoolkit.tensors.params import buffers_of, parameters_of
from lltoolkit.tensors.sharpness.registry import MEASURES
from lltoolkit.tensors.stability import stability_threshold
from lltoolkit.zoo import load_data, train
from tests.models import BY_NAME, seeded


def objective_of(seed, width=6, data=None, **options):
    model = seeded(lambda: nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)), seed)
    return ll.Objective(model, BY_NAME["mlp"].data() if data is None else data, dtype="float64", **options)


@pytest.fixture(scope="module")
def options():
    """Fast measures with options that exist, whatever the defaults are."""
    probes = next(name for name in MEASURES["trace"].defaults if name.startswith("n_"))
    return ["weight_norm", "lambda_max", ("trace", {probes: 4})]


@pytest.fixture(scope="module")
def objectives():
    return {"small": objective_of(0), "wide": objective_of(1, width=9), "other": objective_of(2)}


@pytest.fixture
def models(objectives):
    return dict(objectives)


def table_of(*arguments, **options):
    return compute_sharpness(*arguments, **{"progress": False} | options)


def assert_equal(one, other):
    """Bit for bit, and all that is said of the variables."""
    xr.testing.assert_identical(one.drop_attrs(deep=False), other.drop_attrs(deep=False))
    for name in one.variables:
        if one[name].dtype.kind == "f":
            assert one[name].values.tobytes() == other[name].values.tobytes()


def assert_same(one, other):
    """Equal, and all that is said of the whole file; of the attributes only the times differ."""
    assert_equal(one, other)
    for name in ("config", "config_sha256", "model", "n_params", "kind"):
        assert one.attrs[name] == other.attrs[name]


def stopping_after(n_calls, error, name="trace"):
    """The measure of that name, which fails for once after so many calls."""
    calls = iter(range(1000))
    function = MEASURES[name].function

    def stopped(*arguments, split, seed, **options):
        if next(calls) == n_calls:
            raise error
        return function(*arguments, split=split, seed=seed, **options)

    return dataclasses.replace(MEASURES[name], function=stopped)


# --- values


def test_values_are_those_of_the_measures_themselves(models, options):
    table = table_of(models, measures=options, seed=3)
    assert table["value"].dims == ("model", "measure")
    assert table["model"].values.tolist() == ["small", "wide", "other"]
    assert (table["status"] == 1).all()
    for label, (name, given) in zip(
        table["measure"].values, [("weight_norm", {}), ("lambda_max", {}), options[2]], strict=True
    ):
        for model, objective in models.items():
            direct = MEASURES[name](objective, split="train", seed=3, **given)
            cell = table.sel(model=model, measure=label)
            assert float(cell["value"]) == direct.value
            assert float(cell["value_se"]) == pytest.approx(direct.se, abs=0, nan_ok=True)
            assert int(cell["censored"]) == direct.censored
        assert str(table["measure_kind"].sel(measure=label).item()) == MEASURES[name].kind
    dense = torch.autograd.functional.hessian(lambda w: _loss_at(models["small"], w), models["small"].network.flat)
    expected = float(torch.linalg.eigvalsh(dense)[-1])
    assert float(table["value"].sel(model="small", measure="lambda_max")) == pytest.approx(expected, rel=1e-3)


def _loss_at(objective, flat):
    a, b, c, d = (
        part.reshape(t.shape)
        for part, t in zip(
            flat.split([t.numel() for t in objective.theta.values()]), objective.theta.values(), strict=True
        )
    )
    x, y = objective.examples["train"].inputs, objective.examples["train"].target
    return functional.cross_entropy(torch.tanh(x @ a.T + b) @ c.T + d, y)


def test_gaps_and_their_errors_by_hand():
    data = {"train": (torch.randn(7, 5), torch.arange(7) % 3), "test": (torch.randn(5, 5), torch.arange(5) % 3)}
    objective = objective_of(0, data=data)
    row = table_of({"one": objective}, measures=["weight_norm"]).isel(model=0)
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), 0).double()
    found = {}
    for split, (x, y) in data.items():
        logits = model(x.double()).detach()
        losses = functional.cross_entropy(logits, y, reduction="none").numpy()
        wrong = (logits.argmax(1) != y).double().numpy()
        for name, values in (("loss", losses), ("error", wrong)):
            found[split, name] = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
            assert float(row[f"{split}_{name}"]) == pytest.approx(found[split, name][0], rel=1e-12)
            assert float(row[f"{split}_{name}_se"]) == pytest.approx(found[split, name][1], rel=1e-12)
        if split == "test":
            np.testing.assert_allclose(row["test_example_loss"], losses, rtol=1e-6)
            np.testing.assert_array_equal(row["test_example_error"], wrong)
    for name in ("loss", "error"):
        (train, train_se), (test, test_se) = found["train", name], found["test", name]
        assert float(row[f"{name}_gap"]) == pytest.approx(test - train, rel=1e-12)
        assert float(row[f"{name}_gap_se"]) == pytest.approx(math.sqrt(test_se**2 + train_se**2), rel=1e-12)
    assert row["loss_gap"].attrs["units"] == row["test_example_loss"].attrs["units"] == "nat"


def test_what_there_is_no_split_or_metric_for_is_nan():
    case = BY_NAME["two_inputs"]
    objective = ll.Objective(case.model(), case.data()["train"], **case.options)
    row = table_of({"one": objective}, measures=["weight_norm"]).isel(model=0)
    assert np.isfinite(row["train_loss"])
    for name in ("test_loss", "loss_gap", "train_error", "error_gap", "error_gap_se"):
        assert np.isnan(row[name])
    assert "example" not in row.dims
    assert row["train_loss"].attrs["units"] == "1"


def test_counted_tokens_weigh_in_the_errors_and_give_no_examples():
    case = BY_NAME["transformer_tied"]
    data = case.data()
    objective = ll.Objective(case.model(), data, **case.options)
    table = table_of({"one": objective}, measures=["weight_norm"])
    plain = case.plain(case.model(), data)
    assert float(table["test_loss"][0]) == pytest.approx(plain["test", "loss"], rel=1e-5)
    assert float(table["test_error"][0]) == pytest.approx(1 - plain["test", "accuracy"])
    assert "example" not in table.dims


def test_models_of_other_test_examples_have_no_values_by_example(models):
    assert dict(table_of(models, measures=["weight_norm"]).sizes) == {"model": 3, "measure": 1, "example": 6}
    other = BY_NAME["mlp"].data()
    other["test"] = (other["test"][0] + 1, other["test"][1])
    table = table_of(models | {"elsewhere": objective_of(0, data=other)}, measures=["weight_norm"])
    assert "example" not in table.dims


def test_values_by_example_outlast_models_of_other_test_examples(models, tmp_path):
    path, options = tmp_path / "a.sharpness.nc", {"measures": ["weight_norm"]}
    others = BY_NAME["mlp"].data()
    others["test"] = tuple(torch.cat([part, part]) for part in others["test"])
    elsewhere = {"elsewhere": objective_of(0, data=others)}
    first = table_of(models, **options, path=path)
    alone = table_of(elsewhere, **options, path=path)
    assert alone.sizes["example"] == 12
    assert alone["test_example_loss"].notnull().all()
    assert "example" not in table_of(models | elsewhere, **options, path=path).dims
    assert "test_example_loss" not in ll.open_result(path)
    written = path.stat().st_mtime_ns
    assert_equal(table_of(models, **options, path=path), first)
    assert path.stat().st_mtime_ns == written


def test_every_default_measure_gives_a_value():
    table = table_of({"one": objective_of(0)}, initial=objective_of(5))
    assert "distance_from_init" in table["measure"].values
    assert (table["status"] == 1).all()
    assert np.isfinite(table["value"]).all()
    assert "{" not in "".join(table["measure_units"].values)
    assert table["measure_sharper"].sel(measure="volume_epsilon").item() == "lower"
    without = choose_columns(None, split="train", seed=0, units="nat", unknown=["one"])
    assert [column.label for column in without] == [m for m in table["measure"].values if m != "distance_from_init"]


def test_the_users_models_and_random_numbers_stay(models, options):
    model = BY_NAME["cnn_batchnorm"].model().train()
    before = copy.deepcopy(model.state_dict())
    objective = ll.Objective(model, BY_NAME["cnn_batchnorm"].data())
    how, minimum = (objective.batch_size, objective.n_threads), objective.at_minimizer()
    state = torch.random.get_rng_state()
    table_of({"cnn": objective}, measures=[*options, "sam"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (objective.batch_size, objective.n_threads) == how
    assert objective.measure(objective.theta) == minimum


# --- measures and their options


def test_labels_tell_variants_apart(models):
    one = {"one": models["small"]}
    by_pairs = table_of(one, measures=["sam", ("sam", {"rho": 0.1}), ("sam", {"rho": 0.2, "seed": 1})])
    assert by_pairs["measure"].values.tolist() == ["sam", "sam(rho=0.1)", "sam(rho=0.2, seed=1)"]
    by_labels = table_of(
        one,
        measures={
            "plain": "sam",
            "sam": {"rho": 0.1},
            "third": ("sam", {"rho": 0.2}),
            "test": ("sam", {"split": "test"}),
        },
    )
    assert by_labels["measure"].values.tolist() == ["plain", "sam", "third", "test"]
    np.testing.assert_array_equal(by_labels["value"][0, :2], by_pairs["value"][0, :2])
    assert by_labels["value"][0, 3] == MEASURES["sam"](models["small"], split="test", seed=0).value
    assert table_of(one, measures="sam")["value"].item() == by_pairs["value"][0, 0].item()


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (["lambda_mx"], r"measure 'lambda_mx' is not one of 'lambda_max'.*Did you mean 'lambda_max'\?"),
        ([("sam", {"roh": 0.1})], r"'sam' has no option 'roh'.*Did you mean 'rho'\?"),
        (["trace", "trace"], r"'trace' twice"),
        ([("sam", 0.1)], r"\('sam', 0\.1\) is neither a name nor a pair"),
        ([], r"measures=\[\] is empty"),
        (["distance_from_init"], r"'distance_from_init' needs the weights at initialization, and those of 'small'"),
        ([("trace", {"split": "tset"})], r"'tset' is not one of 'train', 'test'.*Did you mean 'test'"),
    ],
)
def test_measures_that_do_not_exist_are_refused_before_computing(models, measures, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        table_of(models, measures=measures, path=tmp_path / "a.sharpness.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["params", "module", "objective", "each"])
def test_distance_from_initial_weights_by_hand(models, form):
    del models["wide"]
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), 7)
    start = ll.Objective(model, BY_NAME["mlp"].data(), dtype="float64")
    given = {"params": parameters_of(model), "module": model, "objective": start}
    given["each"] = {"small": model, "other": start}
    table = table_of(models, measures=["distance_from_init"], initial=given[form])
    for name, objective in models.items():
        expected = math.sqrt(
            sum(float((objective.theta[k] - p.double()).square().sum()) for k, p in start.theta.items())
        )
        assert float(table["value"].sel(model=name)[0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({"tiny": nn.Linear(5, 6)}, "initial names 'tiny', which is none of the models small, wide, other"),
        (nn.Linear(5, 6), r"initial of model 'small' does not fit its objective \(missing: 0\.weight"),
        (3, "initial is a int"),
    ],
)
def test_initial_weights_that_do_not_fit_are_refused(models, initial, message):
    with pytest.raises(ValueError, match=message):
        table_of(models, measures=["weight_norm"], initial=initial)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({"a": nn.Linear(5, 3)},), {}, r"models\['a'\] is a Linear; give an Objective"),
        (({},), {}, "at least one model"),
        ((nn.Linear(5, 3),), {}, r"models is a Linear; give \{name: Objective\}"),
        (([],), {}, "a training needs objective="),
    ],
)
def test_what_is_no_model_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        table_of(*arguments, **options)


def test_a_model_whose_loss_is_nan_is_named_and_costs_the_others_nothing(models, caplog, tmp_path):
    broken = seeded(lambda: nn.Sequential(nn.Linear(5, 3)), 0)
    broken[0].weight.data[0] = math.nan
    both = {"broken": ll.Objective(broken, BY_NAME["mlp"].data(), dtype="float64"), "small": models["small"]}
    options = {"measures": ["weight_norm", "lambda_max"]}
    table = table_of(both, **options, path=tmp_path / "a.sharpness.nc")
    assert "'broken' will be NaN: loss on train is nan at the minimizer" in caplog.text
    assert "NaN or inf in 0.weight" in caplog.text
    assert "'small'" not in caplog.text
    assert (table["status"] == 1).all()
    found = table.sel(model="broken")
    for name in ("value", "value_se", "train_loss", "test_error", "loss_gap", "test_example_loss"):
        assert found[name].isnull().all()
    alone = table_of({"small": models["small"]}, **options)
    for name in ("value", "train_loss", "test_error", "test_example_loss"):
        np.testing.assert_array_equal(table[name].sel(model="small"), alone[name][0])
    assert_same(table_of(both, **options, path=tmp_path / "a.sharpness.nc"), table)


def test_a_model_that_samples_is_refused():
    class Noisy(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) + torch.rand(3)

    noisy = ll.Objective(Noisy(5, 3), BY_NAME["mlp"].data())
    with pytest.raises(ll.NondeterministicObjective, match="'noisy': two measurements"):
        table_of({"noisy": noisy}, measures=["weight_norm"])


# --- resume


@pytest.mark.parametrize("error", [RuntimeError("power cut"), KeyboardInterrupt()])
def test_stopped_in_the_middle_and_resumed_equals_uninterrupted(models, options, tmp_path, monkeypatch, error):
    whole = table_of(models, measures=options, attributes={"lr": [1, 2, 3]})
    path = tmp_path / "a.sharpness.nc"
    with monkeypatch.context() as patched:
        patched.setitem(MEASURES, "trace", stopping_after(1, error))
        with pytest.raises(type(error)) as caught:
            table_of(models, measures=options, attributes={"lr": [1, 2, 3]}, path=path)
    if isinstance(error, RuntimeError):
        assert "measure 'trace" in caught.value.__notes__[0]
        assert "of model 'wide'" in caught.value.__notes__[0]
    half = ll.open_result(path)
    assert half["status"].values.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    measured = []
    for name in ("weight_norm", "lambda_max", "trace"):
        monkeypatch.setitem(MEASURES, name, _noting(name, measured))
    resumed = table_of(models, measures=options, attributes={"lr": [1, 2, 3]}, path=path)
    assert measured == ["trace", "weight_norm", "lambda_max", "trace"]
    assert_same(resumed, whole)
    assert_same(ll.open_result(path), whole)
    written = path.stat().st_mtime_ns
    assert_same(table_of(models, measures=options, attributes={"lr": [1, 2, 3]}, path=path), whole)
    assert path.stat().st_mtime_ns == written
    assert len(measured) == 4
    assert [item.name for item in tmp_path.iterdir()] == ["a.sharpness.nc"]


def _noting(name, measured):
    """The measure of that name, which notes each call."""
    measure = MEASURES[name]

    def noted(objective, *, split, seed, **options):
        measured.append(name)
        return measure(objective, split=split, seed=seed, **options)

    return dataclasses.replace(measure, function=noted)


def test_models_and_measures_join_a_file_and_leave_what_is_there(models, options, tmp_path):
    whole = table_of(models, measures=options, attributes={"lr": [1, 2, 3]})
    path = tmp_path / "a.sharpness.nc"
    first = table_of({"wide": models["wide"]}, measures=options[:1], attributes={"wide": {"lr": 2}}, path=path)
    assert dict(first.sizes) == {"model": 1, "measure": 1, "example": 6}
    others = {name: models[name] for name in ("small", "other")}
    table_of(others, measures=options[1:], attributes={"small": {"lr": 1}, "other": {"lr": 3}}, path=path)
    both = ll.open_result(path)
    assert dict(both.sizes) == {"model": 3, "measure": 3, "example": 6}
    status = both["status"].sel(model=list(models), measure=whole["measure"])
    assert status.values.tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 1]]
    assert_same(table_of(models, measures=options, path=path), whole)
    assert_same(ll.open_result(path), whole)


def test_a_file_tells_its_batches_and_other_ones_do_not_show(models, options, tmp_path):
    path = tmp_path / "a.sharpness.nc"
    one = ll.Objective(BY_NAME["mlp"].model(), BY_NAME["mlp"].data(), batch_size=4)
    other = ll.Objective(BY_NAME["mlp"].model(), BY_NAME["mlp"].data(), batch_size=9)
    whole = table_of({"a": one}, measures=options)
    table_of({"a": one}, measures=options[:1], path=path)
    assert_same(table_of({"a": other}, measures=options, path=path), whole)
    assert whole["eval_batch_size"].item() == 4
    assert other.batch_size == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ({"a": objective_of(1)}, {}), r"model 'a' differs in the minimizer .*theta_sha256 \w{12} there"),
        (
            lambda: ({"a": objective_of(0, n_examples=5)}, {}),
            r"the examples.*n_examples \{'test': 6, 'train': 9\} there",
        ),
        (lambda: ({"a": objective_of(0, metrics=[])}, {}), r"the objective's configuration.*metrics"),
        (lambda: ({"a": objective_of(0)}, {"seed": 1}), r"lambda_max \(seed 0 there, 1 here\)"),
        (lambda: ({"a": objective_of(0)}, {"split": "test"}), r"lambda_max \(split 'train' there, 'test' here\)"),
        (
            lambda: ({"a": objective_of(0)}, {"measures": {"lambda_max": {"tol": 0.5}}}),
            r"lambda_max \(tol 0\.001 there, 0\.5 here\)",
        ),
        (lambda: ({"a": objective_of(0)}, {"initial": objective_of(8)}), r"the weights at initialization"),
    ],
)
def test_what_belongs_to_something_else_is_told(change, message, of_one):
    path, common = of_one
    before = path.read_bytes()
    models, options = change()
    with pytest.raises(ll.ResumeMismatch, match=message):
        table_of(models, **common | options)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    path = tmp_path_factory.mktemp("of_one") / "a.sharpness.nc"
    common = {"measures": ["lambda_max", "distance_from_init"], "initial": objective_of(5), "path": path}
    table_of({"a": objective_of(0)}, **common)
    return path, common


def test_without_resume_a_file_is_replaced(of_one, tmp_path):
    path = tmp_path / "a.sharpness.nc"
    path.write_bytes(of_one[0].read_bytes())
    replaced = table_of({"a": objective_of(1)}, **of_one[1] | {"path": path}, resume=False)
    assert_same(ll.open_result(path), replaced)
    assert replaced["theta_sha256"].item() == objective_of(1).theta_sha256


def test_two_lambdas_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "a.sharpness.nc"

    def objective(factor):
        return objective_of(0, loss=lambda output, target: factor * functional.cross_entropy(output, target))

    table_of({"a": objective(1)}, measures=["weight_norm"], path=path)
    table_of({"a": objective(1)}, measures=["weight_norm"], path=path)
    with pytest.raises(ll.ResumeMismatch, match=r"the train loss \(.* there, .* here\)"):
        table_of({"a": objective(2)}, measures=["weight_norm"], path=path)


def test_initial_weights_are_those_of_the_stored_distances(tmp_path):
    one, path = {"a": objective_of(0)}, tmp_path / "a.sharpness.nc"
    first, second = objective_of(5), objective_of(6)
    norm, distance = {"measures": ["weight_norm"]}, {"measures": ["distance_from_init"]}
    table_of(one, **norm, initial=first, path=path)  # of no value yet: other ones may come
    whole = table_of(one, **distance, initial=second, path=path)
    assert_equal(whole, table_of(one, **distance, initial=second))
    table_of(one, **norm, initial=first, path=path)
    table_of(one, **norm, path=path)
    with pytest.raises(ll.ResumeMismatch, match="the weights at initialization"):
        table_of(one, **distance, initial=first, path=path)
    assert_same(table_of(one, **distance, initial=second, path=path), whole)


def test_a_function_that_chooses_other_parameters_is_another_option(models, tmp_path):
    models, path = {"a": models["small"], "b": models["wide"]}, tmp_path / "a.sharpness.nc"

    def chosen(parameters, **options):
        return table_of(models, measures={"l": ("trace", {"n_probes": 4, "parameters": parameters})}, **options)

    table_of(models, measures=["weight_norm"], path=path)
    first = chosen(lambda name, _: name == "0.weight", path=path)
    assert chosen("0.weight")["value"].values.tolist() == first["value"].values.tolist()
    assert_same(chosen(lambda name, _: name.startswith("0.w"), path=path), first)
    with pytest.raises(ll.ResumeMismatch, match=r"model 'a' differs in the parameters of l \(2\.weight here, others"):
        chosen(lambda name, _: name == "2.weight", path=path)
    # Of one row alone: the choice may hang on the tensor.
    with pytest.raises(ll.ResumeMismatch, match=r"model 'b' differs in the parameters of l \(0\.bias here, others"):
        chosen(lambda name, weight: name == ("0.bias" if len(weight) == 9 else "0.weight"), path=path)
    with pytest.raises(ll.ResumeMismatch, match=r"parameters 'function .*lambda>' there, '0\.weight' here"):
        chosen("0.weight", path=path)
    assert_equal(table_of(models, measures=["weight_norm"], path=path), table_of(models, measures=["weight_norm"]))
    del models["b"]
    path = tmp_path / "b.sharpness.nc"
    assert_same(chosen(_Choice(), path=path), chosen(_Choice(), path=path))


class _Choice:
    """A choice without a name of its own, whose text is another one in every process."""

    def __call__(self, name, _):
        return "weight" in name


def test_a_file_of_another_kind_or_being_written_is_left_alone(models, tmp_path):
    path = tmp_path / "a.spectrum.nc"
    ll.save_result(table_of(models, measures=["weight_norm"]).assign_attrs(kind="spectrum"), path)
    with pytest.raises(ll.ResumeMismatch, match="holds a spectrum, no table of sharpness"):
        table_of(models, measures=["weight_norm"], path=path)
    path = tmp_path / "b.sharpness.nc"

    def again(*_, **__):
        return table_of(models, measures=["weight_norm"], path=path)

    nested = dataclasses.replace(MEASURES["weight_norm"], function=again)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(MEASURES, "weight_norm", nested)
        with pytest.raises(RuntimeError, match="is being written by another process"):
            table_of(models, measures=["weight_norm"], path=path)


def test_what_is_computed_is_on_disk_while_the_rest_is_computed(models, tmp_path, monkeypatch):
    path = tmp_path / "a.sharpness.nc"
    seen = []

    def looking(objective, **_):
        seen.append(ll.open_result(path)["status"].sum().item())
        return MEASURES["lambda_max"].function(objective)

    monkeypatch.setattr("lltoolkit.sharpness.WRITE_SECONDS", 0.0)
    monkeypatch.setitem(MEASURES, "trace", dataclasses.replace(MEASURES["trace"], function=looking))
    del models["other"]
    table_of(models, measures=["weight_norm", "trace"], path=path)
    assert seen == [1, 3]


def test_attributes_alone_are_written_too(models, tmp_path):
    path = tmp_path / "a.sharpness.nc"
    table_of(models, measures=["weight_norm"], path=path)
    table_of(models, measures=["weight_norm"], path=path, attributes={"lr": [1, 2, 3]})
    assert ll.open_result(path)["lr"].values.tolist() == [1, 2, 3]


def test_losses_in_other_units_share_no_table(models):
    case = BY_NAME["two_inputs"]
    models["regression"] = ll.Objective(case.model(), case.data(), **case.options)
    with pytest.raises(ValueError, match="'small' in nat, 'regression' in 1"):
        table_of(models, measures=["weight_norm"])


# --- a training


@pytest.fixture(scope="module")
def digits():
    whole = load_data("digits")
    return {"train": tuple(part[:60] for part in whole["train"]), "test": tuple(part[:20] for part in whole["test"])}


@pytest.fixture(scope="module")
def run(digits):
    model = seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 10)), 0
    )
    return train(
        model,
        digits,
        epochs=3,
        batch_size=60,
        lr=0.2,
        momentum=0.0,
        weight_decay=0.0,
        schedule="cosine",
        progress=False,
    )


def test_each_step_is_an_objective_of_its_checkpoint(run, digits, options):
    table = table_of(
        run, objective=ll.Objective(run.model, digits, n_examples=50), measures=[*options, "distance_from_init"]
    )
    assert table["value"].dims == ("step", "measure")
    assert table["step"].values.tolist() == table["epoch"].values.tolist() == [0, 1, 2, 3]
    labels = table["measure"].values
    for checkpoint in run.checkpoints:
        fresh = ll.Objective(checkpoint.load_into(copy.deepcopy(run.model)), digits, n_examples=50)
        row = table.sel(step=checkpoint.step)
        assert row["theta_sha256"].item() == fresh.theta_sha256
        direct = table_of({"x": fresh}, measures=options).isel(model=0)
        np.testing.assert_array_equal(row["value"][:3], direct["value"])
        for name in ("train_loss", "test_loss", "train_error", "loss_gap", "loss_gap_se", "error_gap"):
            assert row[name].item() == direct[name].item()
        start = run.checkpoints[0].load()
        moved = sum(float((fresh.theta[name] - start[name]).double().square().sum()) for name in fresh.theta)
        assert row["value"].sel(measure=labels[-1]).item() == pytest.approx(math.sqrt(moved), rel=1e-6, abs=1e-12)


def test_the_threshold_is_that_of_the_optimizer_at_each_step(run, digits):
    table = table_of(run, objective=ll.Objective(run.model, digits), measures=["weight_norm"])
    assert table["learning_rate"].values[1:] == pytest.approx([0.2, 0.15, 0.05])
    assert table["stability_threshold"].values == pytest.approx([10, 10, 2 / 0.15, 40])
    assert table.attrs["stability_hessian"] == "euclidean"
    assert table.attrs["stability"].endswith("full batches")
    assert "no statement" not in table.attrs["stability"]


def test_adams_threshold_is_not_held_against_lambda_max(digits):
    trained = train("mlp", digits, optimizer="adam", epochs=1, batch_size=32, progress=False)
    table = table_of(trained, objective=ll.Objective(trained.model, digits), measures=["weight_norm"])
    rate = table["learning_rate"].values[-1]
    expected = stability_threshold(optimizer="adam", lr=rate, betas=(trained.config["momentum"], 0.999))
    assert table["stability_threshold"].values[-1] == pytest.approx(expected)
    assert table.attrs["stability_hessian"] == "preconditioned"
    assert "not to be held against lambda_max" in table.attrs["stability"]
    assert "no statement on this training" in table.attrs["stability"]


def test_checkpoints_alone_have_no_threshold_and_no_start(run, digits, tmp_path):
    objective = ll.Objective(run.model, digits)
    path = tmp_path / "a.sharpness.nc"
    some = table_of(run.checkpoints[2:], objective=objective, measures=["weight_norm"], path=path)
    assert some["stability_threshold"].isnull().all()
    assert "distance_from_init" not in some["measure"].values
    with pytest.raises(ValueError, match=r"needs the weights at initialization, and those of 0 are not known"):
        table_of(run.checkpoints, objective=objective, measures=["distance_from_init"])
    all_of_them = table_of(run.checkpoints, objective=objective, measures=["weight_norm"], path=path)
    assert ll.open_result(path)["step"].values.tolist() == all_of_them["step"].values.tolist() == [0, 1, 2, 3]
    assert_same(all_of_them, table_of(run.checkpoints, objective=objective, measures=["weight_norm"]))
    with pytest.raises(ll.ResumeMismatch, match="is the table of a training, and models by name"):
        table_of({"a": objective}, measures=["weight_norm"], path=path)


def test_a_training_tells_its_checkpoints_thresholds_later(run, digits, tmp_path):
    options = {"objective": ll.Objective(run.model, digits), "measures": ["weight_norm"]}
    whole = table_of(run, **options)
    path = tmp_path / "a.sharpness.nc"
    assert table_of(run.checkpoints, **options, path=path)["stability_threshold"].isnull().all()
    assert_same(table_of(run, **options, path=path), whole)
    # and to the file, where the checkpoints alone leave it
    assert_same(table_of(run.checkpoints, **options, path=path), whole)
    assert ll.open_result(path).attrs["stability"] == whole.attrs["stability"]


def test_a_diverged_checkpoint_is_measured_as_nan(tmp_path, digits):
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0)
    first = save_checkpoint(tmp_path, model, step=0, epoch=0)
    broken = copy.deepcopy(model)
    broken[1].weight.data[:] = math.nan
    last = save_checkpoint(tmp_path, broken, step=5, epoch=1)
    table = table_of([first, last], objective=ll.Objective(model, digits), measures=["weight_norm", "lambda_max"])
    assert np.isfinite(table["value"].sel(step=0)).all()
    assert table["value"].sel(step=5).isnull().all()
    assert table["train_loss"].isnull().values.tolist() == [False, True]
    assert (table["status"] == 1).all()


def test_checkpoints_of_another_architecture_are_refused(run, digits):
    other = ll.Objective(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits)
    with pytest.raises(ValueError, match="does not fit this Sequential"):
        table_of(run, objective=other, measures=["weight_norm"])
    with pytest.raises(ValueError, match="a training needs objective="):
        table_of(run, measures=["weight_norm"])
    with pytest.raises(ValueError, match="objective= is for a training"):
        table_of({"a": other}, objective=other, measures=["weight_norm"])


# --- Objective.moved_to


@pytest.mark.parametrize("filtered", [False, True])
def test_a_moved_objective_is_one_made_of_that_model(case, filtered):
    data = case.data()
    model, other = case.model(0), case.model(1)
    options = dict(case.options) | ({"parameters": lambda name, weight: weight.ndim > 1} if filtered else {})
    objective = ll.Objective(model, data, **options)
    before, fresh = objective.at_minimizer(), ll.Objective(other, data, **options)
    moved = objective.moved_to(parameters_of(other), buffers_of(other))
    assert moved.theta_sha256 == fresh.theta_sha256
    assert moved.at_minimizer() == fresh.at_minimizer()
    assert moved.gradient_norm() == pytest.approx(fresh.gradient_norm(), rel=1e-6)
    assert objective.at_minimizer() == objective.measure(objective.theta) == before
    assert moved.config == objective.config
    # It travels to other processes as any objective does: without its examples, which come by a file.
    there = pickle.loads(cloudpickle.dumps(moved))
    there.attach(moved.examples)
    assert there.measure(there.theta) == fresh.at_minimizer()


def test_a_moved_objective_of_a_factory_travels_with_its_weights():
    case = BY_NAME["cnn_batchnorm"]
    for parameters in (None, "conv"):
        objective = ll.Objective(case.model, case.data(), parameters=parameters)
        other = case.model(1)
        moved = objective.moved_to(parameters_of(other), buffers_of(other))
        there = pickle.loads(cloudpickle.dumps(moved))
        there.attach(moved.examples)
        assert there.measure(there.theta) == ll.Objective(other, case.data()).at_minimizer()


def test_moved_buffers_and_weights_are_copies():
    case = BY_NAME["cnn_batchnorm"]
    objective = ll.Objective(case.model(0), case.data())
    theta, buffers = parameters_of(case.model(1)), buffers_of(case.model(1))
    moved = objective.moved_to(theta, buffers)
    value = moved.at_minimizer()
    for vector in (theta, buffers):
        for tensor in vector.values():
            tensor.fill_(9)
    assert moved.measure(moved.theta) == value
    assert moved.examples is not None
    assert moved.examples["train"].inputs is objective.examples["train"].inputs
    kept = objective.moved_to(parameters_of(case.model(1)))
    assert kept.theta_sha256 != moved.theta_sha256  # the statistics are the first model's
    assert torch.equal(kept.network.buffers["norm.running_mean"], objective.network.buffers["norm.running_mean"])


def test_weights_of_another_model_are_refused():
    case = BY_NAME["cnn_batchnorm"]
    objective = ll.Objective(case.model(0), case.data())
    theta = parameters_of(case.model(1))
    with pytest.raises(ValueError, match=r"theta does not fit this objective \(missing: head\.bias\)"):
        objective.moved_to({name: tensor for name, tensor in theta.items() if name != "head.bias"})
    with pytest.raises(ValueError, match=r"unknown: bone"):
        objective.moved_to(theta | {"bone": torch.ones(1)})
    with pytest.raises(ValueError, match=r"buffers does not fit this objective \(misshapen: norm\.running_mean"):
        objective.moved_to(theta, {"norm.running_mean": torch.ones(1)})
    narrow = ll.Objective(case.model(0), case.data(), parameters="conv")
    with pytest.raises(ValueError, match=r"misshapen: head\.bias"):
        narrow.moved_to(theta | {"head.bias": torch.ones(1)})


def test_recomputed_statistics_follow_the_moved_weights():
    case = BY_NAME["cnn_batchnorm"]
    objective = ll.Objective(case.model(0), case.data(), buffers="recompute")
    other = case.model(1)
    fresh = ll.Objective(other, case.data(), buffers="recompute")
    assert objective.moved_to(parameters_of(other), buffers_of(other)).at_minimizer() == fresh.at_minimizer()


def test_a_default_measure_that_a_model_has_not_is_nan_and_one_by_name_an_error(caplog, tmp_path, monkeypatch):
    model = seeded(lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 3, 8), torch.nn.Flatten()), 0)
    data = seeded(lambda: {"train": (torch.randn(9, 1, 8, 8), torch.arange(9) % 3)}, 1)
    models, path = {"conv": ll.Objective(model, data)}, tmp_path / "a.sharpness.nc"
    for name in set(MEASURES) - {"weight_norm", "relative_flatness", "trace"}:
        monkeypatch.delitem(MEASURES, name)
    table = table_of(models, path=path)
    found = table.sel(model="conv")
    assert found["value"].isnull().values.tolist() == (found["measure"] == "relative_flatness").values.tolist()
    assert (found["status"] == 1).values.tolist() == (found["measure"] != "relative_flatness").values.tolist()
    assert "conv has no relative_flatness" in caplog.text
    assert_same(ll.open_result(path), table)
    # Asked again, nothing is computed but what fails at once, and nothing written.
    measured, written = [], path.stat().st_mtime_ns
    for name in list(MEASURES):
        monkeypatch.setitem(MEASURES, name, _noting(name, measured))
    assert_same(table_of(models, path=path), table)
    assert (measured, path.stat().st_mtime_ns) == (["relative_flatness"], written)
    for where in (path, None):
        with pytest.raises(ValueError, match="Linear"):
            table_of(models, measures=["relative_flatness"], path=where)
