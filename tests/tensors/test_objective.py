"""Objective equals a plain float64 loop, and leaves what it is given alone."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lltoolkit import NondeterministicObjective, Objective, compute_surface, random_subspace
from tests.models import BY_NAME, ConvNet, mlp, seeded

MLP = BY_NAME["mlp"]
CNN = BY_NAME["cnn_batchnorm"]


def assert_close(measured, plain):
    """DESIGN's tolerance: 1e-5 relative or 1e-7 absolute."""
    assert set(measured) == set(plain)
    for key, value in plain.items():
        assert measured[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


def steps_like(theta, seed, size=0.3):
    return seeded(lambda: {name: size * torch.randn(tensor.shape) for name, tensor in theta.items()}, seed)


def moved_by_hand(model, steps):
    """Add `steps` to the entries of the state dict; entries that share a weight move with it, once."""
    moved = copy.deepcopy(model)
    state = moved.state_dict()
    for name, step in steps.items():
        state[name] += step
    return moved


def measure_moved(objective, steps):
    return objective.measure({name: tensor + steps[name] for name, tensor in objective.theta.items()})


# --- two roads


def test_minimizer_equals_a_plain_float64_loop(case):
    model, data = case.model(), case.data()
    assert_close(Objective(model, data, **case.options).at_minimizer(), case.plain(model, data))


def test_moved_weights_equal_weights_moved_by_hand(case):
    model, data = case.model(), case.data()
    objective = Objective(model, data, **case.options)
    steps = steps_like(objective.theta, seed=1)
    plain = case.plain(moved_by_hand(model, steps), data)
    assert_close(measure_moved(objective, steps), plain)
    assert plain["train", "loss"] != pytest.approx(case.plain(model, data)["train", "loss"], rel=1e-2)


def test_measuring_elsewhere_does_not_move_the_minimizer(case):
    objective = Objective(case.model(), case.data(), **case.options)
    first = objective.at_minimizer()
    measure_moved(objective, steps_like(objective.theta, seed=2))
    assert objective.measure(objective.theta) == first


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_batch_size_does_not_show(case, batch_size):
    model, data = case.model(), case.data()
    objective = Objective(model, data, batch_size=batch_size, **case.options)
    assert_close(objective.at_minimizer(), case.plain(model, data))


def test_float64_equals_the_plain_loop_to_rounding(case):
    model, data = case.model(), case.data()
    measured = Objective(model, data, dtype="float64", **case.options).at_minimizer()
    for key, value in case.plain(model, data).items():
        assert measured[key] == pytest.approx(value, rel=1e-12), key


def test_loss_is_float64_from_the_logits():
    # Far apart logits: float32 cross-entropy loses what float64 of the same logits keeps.
    x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 0])
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[18.0], [0.0]]))
        model.bias.zero_()
    measured = Objective(model, (x, y)).at_minimizer()["train", "loss"]
    assert measured == pytest.approx(math.log1p(math.exp(-18)), rel=1e-6, abs=0)


def test_output_with_logits_is_measured_in_float64_too():
    class WithLogits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return SimpleNamespace(logits=self.inner(x))

    data = MLP.data()
    model = seeded(WithLogits, 0)
    bare = Objective(model.inner, data).at_minimizer()
    assert Objective(model, data).at_minimizer() == bare


def test_half_precision_weights_are_lifted_not_rounded():
    model, data = MLP.model().bfloat16(), MLP.data()
    objective = Objective(model, data)
    assert {tensor.dtype for tensor in objective.theta.values()} == {torch.float32}
    assert_close(objective.at_minimizer(), MLP.plain(model, data))
    tiny = steps_like(objective.theta, seed=1, size=1e-4)  # below bfloat16's rounding
    assert_close(measure_moved(objective, tiny), MLP.plain(moved_by_hand(copy.deepcopy(model).float(), tiny), data))


def test_weights_tied_by_data_move_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.second.weight.data = self.first.weight.data

        def forward(self, x):
            return self.second(self.first(x).relu())

    model, data = seeded(Tied, 0), MLP.data()
    objective = Objective(model, data)
    assert list(objective.theta) == ["first.weight"]
    assert objective.n_params == 25
    steps = steps_like(objective.theta, seed=1)
    with torch.no_grad():
        model.first.weight.add_(steps["first.weight"])
    assert_close(measure_moved(objective, steps), MLP.plain(model, data))


def test_weight_norm_parametrization_is_measured_and_moved():
    model, data = MLP.model(), MLP.data()
    nn.utils.parametrizations.weight_norm(model[0])
    objective = Objective(model, data)
    assert "0.parametrizations.weight.original1" in objective.theta
    steps = steps_like(objective.theta, seed=1)
    assert_close(measure_moved(objective, steps), MLP.plain(moved_by_hand(model, steps), data))


def test_parameters_by_pattern_move_and_the_others_stay():
    model, data = MLP.model(), MLP.data()
    by_pattern = Objective(model, data, parameters=r"^2\.")
    by_predicate = Objective(model, data, parameters=lambda name, parameter: name.startswith("2."))
    assert list(by_pattern.theta) == list(by_predicate.theta) == ["2.weight", "2.bias"]
    steps = steps_like(by_pattern.theta, seed=1)
    plain = MLP.plain(moved_by_hand(model, steps), data)
    assert_close(measure_moved(by_pattern, steps), plain)
    assert_close(measure_moved(by_predicate, steps), plain)


def test_buffers_given_beside_the_weights_are_used_once():
    model, data = CNN.model(), CNN.data()
    objective = Objective(model, data)
    moved = copy.deepcopy(model)
    moved.norm.running_mean += 0.5
    buffers = {"norm.running_mean": moved.norm.running_mean}
    assert_close(objective.measure(objective.theta | buffers), CNN.plain(moved, data))
    assert_close(objective.measure(objective.theta), CNN.plain(model, data))


@pytest.mark.parametrize("batch_size", [3, 9])
def test_recomputed_statistics_equal_update_bn(batch_size):
    model, data = CNN.model(), CNN.data()
    objective = Objective(model, data, buffers="recompute", batch_size=batch_size)
    steps = steps_like(objective.theta, seed=1)
    moved = moved_by_hand(model, steps)
    batches = data["train"][0].split(batch_size)
    torch.optim.swa_utils.update_bn(list(batches), moved)
    assert_close(measure_moved(objective, steps), CNN.plain(moved, data))
    assert measure_moved(Objective(model, data), steps)["train", "loss"] != pytest.approx(
        CNN.plain(moved, data)["train", "loss"], rel=1e-3
    )


def test_recomputed_statistics_do_not_depend_on_a_last_batch_of_one():
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), 0)
    data = MLP.data(train=9)
    objective = Objective(model, data, buffers="recompute", batch_size=4)
    assert all(math.isfinite(value) for value in objective.at_minimizer().values())


# --- the gradient


def gradient_by_functional_call(case, model, data):
    model = copy.deepcopy(model).double().eval()
    inputs, target = data["train"]
    parameters = {name: value.detach().clone().requires_grad_(True) for name, value in model.named_parameters()}
    output = torch.func.functional_call(model, parameters, (inputs.double() if inputs.is_floating_point() else inputs,))
    if case.kind == "tokens":
        loss = functional.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)
    else:
        loss = functional.cross_entropy(output, target)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


@pytest.mark.parametrize("name", ["mlp", "cnn_batchnorm", "transformer_tied", "lstm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_gradient_norm_equals_autograd_on_functional_call(name, dtype, tolerance):
    case = BY_NAME[name]
    model, data = case.model(), case.data()
    data["train"] = data["train"] if case.kind != "tokens" else (data["train"][0], data["train"][1])
    options = dict(case.options)
    if case.kind == "tokens":  # the mean over tokens is the mean over examples weighted by their tokens
        assert "count" in options
    objective = Objective(model, data, dtype=dtype, batch_size=4, **options)
    assert objective.gradient_norm() == pytest.approx(gradient_by_functional_call(case, model, data), rel=tolerance)


def test_gradient_norm_is_of_the_moving_weights_only():
    model, data = MLP.model(), MLP.data()
    whole = Objective(model, data, dtype="float64").gradient_norm()
    first = Objective(model, data, dtype="float64", parameters=r"^0\.").gradient_norm()
    last = Objective(model, data, dtype="float64", parameters=r"^2\.").gradient_norm()
    assert math.hypot(first, last) == pytest.approx(whole, rel=1e-12)


def test_gradient_norm_is_nan_where_the_loss_has_none():
    def error_rate(output, target):
        return (output.argmax(1) != target).double()

    assert math.isnan(Objective(MLP.model(), MLP.data(), loss=error_rate).gradient_norm())


# --- losses and metrics


def test_mean_loss_equals_per_example_loss():
    data = MLP.data()
    each = Objective(
        MLP.model(), data, loss=lambda out, y: functional.cross_entropy(out, y, reduction="none"), batch_size=4
    )
    mean = Objective(MLP.model(), data, loss=functional.cross_entropy, batch_size=4)
    module = Objective(MLP.model(), data, loss=nn.CrossEntropyLoss(), batch_size=4)
    assert_close(mean.at_minimizer(), each.at_minimizer())
    assert_close(module.at_minimizer(), each.at_minimizer())


def test_class_weights_of_a_loss_module_are_used_in_float64():
    weights = torch.tensor([0.1, 1.7, 3.3])
    data, model = MLP.data(), MLP.model()
    loss = nn.CrossEntropyLoss(weight=weights)
    measured = Objective(model, data, loss=loss, count=lambda y: weights[y].sum(), metrics=[], batch_size=4)
    for split, (x, y) in data.items():
        expected = functional.cross_entropy(copy.deepcopy(model).double()(x.double()), y, weight=weights.double())
        assert measured.at_minimizer()[split, "loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert loss.weight.dtype == torch.float32
    assert loss.training


def test_a_loss_that_takes_only_float32_is_measured_in_float32():
    weights = torch.tensor([0.1, 1.7, 3.3])  # float32: cross_entropy refuses it beside float64 logits

    def weighted(output, target):
        return functional.cross_entropy(output, target, weight=weights, reduction="none")

    data, model = MLP.data(), MLP.model()
    x, y = data["train"]
    expected = functional.cross_entropy(model(x), y, weight=weights, reduction="none").mean().detach()
    assert Objective(model, data, loss=weighted).at_minimizer()["train", "loss"] == pytest.approx(float(expected))


def test_token_mean_weighs_every_token_and_example_mean_every_example():
    case = BY_NAME["transformer_tied"]
    model, data = case.model(), case.data()
    x, y = data["train"]
    logits = copy.deepcopy(model).double().eval()(x).detach()
    by_token = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100)
    each = torch.stack([functional.cross_entropy(logits[i], y[i], ignore_index=-100) for i in range(len(y))])
    with_count = Objective(model, data, **case.options).at_minimizer()["train", "loss"]
    without = Objective(model, data).at_minimizer()["train", "loss"]
    assert with_count == pytest.approx(float(by_token), rel=1e-5)
    assert without == pytest.approx(float(each.mean()), rel=1e-5)
    assert with_count != pytest.approx(without, rel=1e-3)


def test_custom_metrics_stand_beside_the_loss():
    def confidence(output, target):
        return output.softmax(1).amax(1)

    model, data = MLP.model(), MLP.data()
    measured = Objective(model, data, metrics={"confidence": confidence, "right": "accuracy"}).at_minimizer()
    assert {name for _, name in measured} == {"loss", "confidence", "right"}
    x, y = data["test"]
    output = copy.deepcopy(model).double()(x.double())
    assert measured["test", "confidence"] == pytest.approx(float(output.softmax(1).amax(1).mean().detach()), rel=1e-6)
    assert measured["test", "right"] == pytest.approx(float((output.argmax(1) == y).double().mean()))


def test_accuracy_is_dropped_where_the_task_is_no_classification():
    assert {name for _, name in Objective(MLP.model(), MLP.data()).at_minimizer()} == {"loss", "accuracy"}
    assert {name for _, name in Objective(MLP.model(), MLP.data(), metrics=()).at_minimizer()} == {"loss"}
    case = BY_NAME["two_inputs"]
    assert {name for _, name in Objective(case.model(), case.data(), loss="mse").at_minimizer()} == {"loss"}


def test_a_single_logit_has_no_accuracy_by_argmax():
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 1, 0, 1, 0])

    def loss(output, target):
        return functional.binary_cross_entropy_with_logits(output[:, 0], target.double(), reduction="none")

    assert {name for _, name in Objective(nn.Linear(5, 1), (x, y), loss=loss).at_minimizer()} == {"loss"}


def test_accuracy_is_left_out_where_some_labels_are_no_class(caplog):
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 255])
    data = {"train": (x, y.clamp_max(2)), "test": (x, y)}
    objective = Objective(nn.Linear(5, 3), data, loss=nn.CrossEntropyLoss(ignore_index=255))
    assert {name for _, name in objective.at_minimizer()} == {"loss"}
    assert "accuracy is left out" in caplog.text
    assert "from 0 to 255" in caplog.text


def test_whole_number_labels_of_any_width_are_one():
    model, (x, y) = MLP.model(), MLP.data()["train"]
    long = Objective(model, (x, y)).at_minimizer()
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert Objective(model, (x, y.to(dtype))).at_minimizer() == long


# --- the standard error


def subset_values(n, seed=0, **options):
    """Per-example losses of the examples that an objective with `n_examples=n` measures on."""
    chosen = []

    def spy(output, target):
        values = functional.cross_entropy(output, target, reduction="none")
        chosen.append(values)
        return values

    data = MLP.data(train=40)["train"]
    objective = Objective(MLP.model(), data, loss=spy, metrics=[], n_examples=n, seed=seed, **options)
    chosen.clear()
    return objective.at_minimizer(), torch.cat(chosen)


def test_loss_se_is_the_textbook_formula_with_finite_population_correction():
    measured, values = subset_values(10, batch_size=3)
    expected = values.std(correction=1) / math.sqrt(10) * math.sqrt(1 - 10 / 40)
    assert measured["train", "loss_se"] == pytest.approx(float(expected), rel=1e-12)


def test_loss_se_is_the_spread_over_draws():
    draws = [subset_values(10, seed=seed)[0] for seed in range(150)]
    means = torch.tensor([draw["train", "loss"] for draw in draws], dtype=torch.float64)
    variances = torch.tensor([draw["train", "loss_se"] for draw in draws], dtype=torch.float64).square()
    # Both estimate the same variance; the spread of 150 draws is known to about 6 %.
    assert float(variances.mean().sqrt()) == pytest.approx(float(means.std()), rel=0.2)
    whole = Objective(MLP.model(), MLP.data(train=40)["train"]).at_minimizer()["train", "loss"]
    assert float(means.mean()) == pytest.approx(whole, abs=4 * float(means.std()) / math.sqrt(150))


def test_token_weighted_loss_se_is_the_spread_over_draws():
    case = BY_NAME["transformer_tied"]
    model, data = case.model(), case.data(train=40)["train"]
    draws = [Objective(model, data, n_examples=12, seed=seed, **case.options).at_minimizer() for seed in range(100)]
    means = torch.tensor([draw["train", "loss"] for draw in draws], dtype=torch.float64)
    variances = torch.tensor([draw["train", "loss_se"] for draw in draws], dtype=torch.float64).square()
    assert float(variances.mean().sqrt()) == pytest.approx(float(means.std()), rel=0.25)


def test_loss_se_is_zero_where_all_examples_are_used():
    measured = Objective(MLP.model(), MLP.data(train=9, test=6), n_examples={"train": 5}).at_minimizer()
    assert measured["train", "loss_se"] > 0
    assert measured["test", "loss_se"] == measured["test", "accuracy_se"] == 0
    whole = Objective(MLP.model(), MLP.data(), n_examples=1000).at_minimizer()
    assert not [name for _, name in whole if name.endswith("_se")]


def test_mean_loss_has_no_standard_error():
    measured = Objective(MLP.model(), MLP.data(), loss=functional.cross_entropy, n_examples=4).at_minimizer()
    assert ("train", "loss_se") not in measured
    assert ("train", "accuracy_se") in measured


def test_one_example_has_an_unknown_standard_error_and_is_no_fault():
    objective = Objective(MLP.model(), MLP.data(), n_examples=1)
    objective.verify()
    assert math.isnan(objective.at_minimizer()["train", "loss_se"])


# --- nothing moves


def everything_of(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.device, parameter.dtype) for parameter in model.parameters()],
        [parameter.data_ptr() for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
    )


def assert_untouched(before, model):
    after = everything_of(model)
    assert before[1:] == after[1:]
    assert list(before[0]) == list(after[0])
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name


def test_the_users_model_is_untouched(case):
    model = case.model().train()
    next(model.parameters()).requires_grad_(False)
    before = everything_of(model)
    objective = Objective(model, case.data(), **case.options)
    measure_moved(objective, steps_like(objective.theta, seed=1))
    objective.check()
    assert_untouched(before, model)


def test_the_users_model_is_untouched_by_recomputed_statistics():
    model = CNN.model().train()
    before = everything_of(model)
    objective = Objective(model, CNN.data(), buffers="recompute")
    measure_moved(objective, steps_like(objective.theta, seed=1))
    assert_untouched(before, model)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_measuring_changes_nothing(fault):
    armed = []

    def loss(output, target):
        if armed:
            raise fault
        return functional.cross_entropy(output, target, reduction="none")

    model, data = CNN.model().train(), CNN.data()
    before = everything_of(model)
    objective = Objective(model, data, loss=loss, buffers="recompute", batch_size=4)
    first = objective.at_minimizer()
    armed.append(True)
    with pytest.raises(fault):
        measure_moved(objective, steps_like(objective.theta, seed=1))
    armed.clear()
    assert objective.measure(objective.theta) == first
    assert_untouched(before, model)


def test_the_caller_may_change_weights_and_data_afterwards():
    model, data = MLP.model(), MLP.data()
    objective = Objective(model, data)
    kept = MLP.plain(model, data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for x, y in data.values():
        x.zero_()
        y.zero_()
    assert_close(objective.at_minimizer(), kept)


def test_a_callers_autocast_does_not_show():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Objective(MLP.model(), MLP.data())
        measured, slope = inside.at_minimizer(), inside.gradient_norm()
        assert torch.is_autocast_enabled("cpu")
    outside = Objective(MLP.model(), MLP.data())
    assert (measured, slope) == (outside.at_minimizer(), outside.gradient_norm())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_torchs_own_precision_switch_is_left_as_it_was(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        Objective(MLP.model(), MLP.data()).at_minimizer()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


# --- verify and check


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(functional.dropout(x))  # forgets training=self.training


def test_a_random_model_is_refused_with_both_values_and_the_causes():
    objective = Objective(seeded(FunctionalDropout, 0), MLP.data())
    with pytest.raises(NondeterministicObjective, match=r"loss on train is \d.*then \d.*functional dropout"):
        objective.verify()


def test_a_model_that_is_sometimes_nan_is_refused():
    calls = []

    def loss(output, target):
        calls.append(1)
        return functional.cross_entropy(output, target, reduction="none") * (math.nan if len(calls) > 3 else 1.0)

    objective = Objective(MLP.model(), MLP.data()["train"], loss=loss)
    objective.at_minimizer()
    calls.extend([1, 1, 1])
    with pytest.raises(NondeterministicObjective, match="nan"):
        objective.verify()


def test_nan_at_the_minimizer_is_refused_with_the_split():
    model = MLP.model()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    objective = Objective(model, MLP.data())
    message = r"loss on train is nan at the minimizer.*NaN or inf in 0\.weight\..*weights loaded"
    with pytest.raises(ValueError, match=message):
        objective.verify()
    with pytest.raises(ValueError, match=message):
        compute_surface(objective, random_subspace(objective), resolution=3, progress=False)


def test_check_reports_what_was_measured():
    objective = Objective(MLP.model(), MLP.data(), n_examples=4)
    report = objective.check()
    minimum = objective.at_minimizer()
    assert f"loss {minimum['test', 'loss']:.6g}" in report
    assert "train: 4 of 9 examples" in report
    assert f"{objective.gradient_norm():.4g}" in report


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "cross_entropi"}, r"loss='cross_entropi' is not one of .*Did you mean 'cross_entropy'"),
        ({"loss": 3}, r"loss=3 is neither a name"),
        ({"metrics": ["acuracy"]}, r"metrics='acuracy'.*Did you mean 'accuracy'"),
        ({"buffers": "frosen"}, r"buffers='frosen' is not one of 'frozen'.*Did you mean 'frozen'"),
        ({"buffers": "recompute"}, r"no batch norm.*use 'frozen'"),
        ({"dtype": "float16"}, r"dtype='float16' is not one of 'float32', 'float64'"),
        ({"batch_size": 0}, r"batch_size=0.*at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5.*whole number"),
        ({"device": "gpu"}, r"device='gpu' can't be used: there is no such kind.*'cuda'"),
        ({"n_examples": 0}, r"n_examples=0.*at least 1"),
        ({"n_examples": 2.5}, r"n_examples=2\.5.*whole number"),
        ({"n_examples": {"trian": 3}}, r"n_examples names \['trian'\].*\['test', 'train'\]"),
        ({"parameters": "classifier"}, r"parameters='classifier' selects none of the 4 parameters \(0\.weight"),
        ({"parameters": "("}, r"no regular expression"),
        ({"seed": 0.5}, r"seed=0\.5.*whole number"),
        ({"loss": lambda output, target: output}, r"loss has the shape \(2, 3\).*per example"),
        ({"count": lambda y: 3}, r"count.*\(\).*accuracy|count.*\(\).*loss"),
        ({"metrics": {"status": lambda output, target: output.amax(1)}}, r"metric.*status"),
        ({"metrics": {"top_se": lambda output, target: output.amax(1)}}, r"metric.*top_se"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(MLP.model(), MLP.data(), **options)


def test_a_model_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"model is a dict; a torch\.nn\.Module"):
        Objective({}, MLP.data())
    with pytest.raises(ValueError, match="no floating-point parameters"):
        Objective(nn.ReLU(), MLP.data())


def test_inputs_that_do_not_fit_the_model_are_named():
    x, y = MLP.data()["train"]
    with pytest.raises(ValueError, match=r"fails on the inputs of split 'train' .*\(9, 4\) torch.float32.*shapes"):
        Objective(MLP.model(), (x[:, :4], y))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3, 1]), r"labels run from 0 to 3, the model has 3 classes, so 0 to 2"),
        (torch.tensor([0, -1, 1]), r"labels run from -1 to 1"),
        (torch.tensor([0.0, 1.0, 1.0]), r"labels are torch.float32; class labels are whole numbers"),
        (torch.rand(3), r"^split 'test': the labels are torch.float32.*loss='mse'"),
        (torch.zeros(3, 2, dtype=torch.long), r"split 'test': logits \(2, 3\) do not fit the target"),
    ],
)
def test_labels_out_of_range_are_named_with_the_range(labels, message):
    with pytest.raises(ValueError, match=message):
        Objective(MLP.model(), {"train": MLP.data()["train"], "test": (torch.randn(3, 5), labels)})


def test_a_batch_dict_without_a_loss_of_ones_own_is_told_the_ways_out():
    batch = {"input": torch.randn(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    model = nn.Module()
    model.linear = nn.Linear(5, 3)
    model.forward = lambda input, labels: model.linear(input)
    with pytest.raises(ValueError, match=r"loss='cross_entropy' needs a target.*labels: \(4,\).*output.loss"):
        Objective(model, batch)


def test_a_model_that_casts_to_its_half_precision_is_told_what_became_of_it():
    class Cast(nn.Linear):
        def forward(self, x):
            return super().forward(x.bfloat16())

    with pytest.raises(ValueError, match=r"half-precision weights are lifted to float32"):
        Objective(Cast(5, 3).bfloat16(), MLP.data())


def test_a_target_of_another_size_is_refused_by_mse():
    model = nn.Linear(5, 2)
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        Objective(model, (torch.randn(6, 5), torch.randn(6, 3)), loss="mse")


def test_theta_of_another_model_is_refused_with_the_names():
    objective = Objective(MLP.model(), MLP.data())
    theta = dict(objective.theta)
    theta["extra"] = theta.pop("2.bias")
    theta["0.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"missing: 2\.bias; unknown: extra; misshapen: 0\.bias \(3,\) instead of \(8"):
        objective.measure(theta)


def test_a_model_that_cannot_be_copied_is_refused_with_the_cause():
    model = MLP.model()
    model.kept = model(torch.randn(1, 5))
    with pytest.raises(ValueError, match=r"can't be copied.*detach"):
        Objective(model, MLP.data())


# --- what names it


def test_hashes_change_with_what_they_name_and_with_nothing_else():
    model, data = CNN.model(), CNN.data()
    first, again = Objective(model, data), Objective(copy.deepcopy(model).train(), data, batch_size=2)
    assert first.theta_sha256 == again.theta_sha256
    assert first.data_sha256 == again.data_sha256
    assert first.config == again.config
    other = copy.deepcopy(model)
    other.norm.running_mean += 1e-3
    assert Objective(other, data).theta_sha256 != first.theta_sha256
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias[0] += 1e-3
    assert Objective(other, data).theta_sha256 != first.theta_sha256
    x, y = data["test"]
    assert Objective(model, {"train": data["train"], "test": (x, y.roll(1))}).data_sha256 != first.data_sha256
    assert Objective(model, {"train": data["train"], "val": (x, y)}).data_sha256 != first.data_sha256


def test_n_params_counts_each_weight_once():
    assert Objective(ConvNet(), CNN.data()).n_params == sum(p.numel() for p in ConvNet().parameters())
    case = BY_NAME["transformer_tied"]
    model = case.model()
    assert Objective(model, case.data()).n_params == sum(p.numel() for p in model.parameters())


def test_batch_norm_without_running_statistics_is_told(caplog):
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    Objective(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), (x, y))
    assert "depend on batch_size" not in caplog.text
    Objective(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)), (x, y))
    assert "depend on batch_size" in caplog.text
