"""The registry: names, options, what every measure keeps, and what is said when something is wrong."""

import inspect
import json
import math

import pytest
import torch

from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.measure import Measure, average
from lltoolkit.tensors.sharpness.registry import MEASURES, measure_named
from tests.models import BY_NAME
from tests.tensors.sharpness.reference import tiny, tiny_model

QUICK = {"n_probes": 2, "n_seeds": 2, "n_steps": 2, "n_batches": 2, "m": 3, "n_draws": 2}
DRAWN = {"trace", "filter_curvature", "volume_epsilon", "relative_flatness"}
DRAWN |= {name for name in MEASURES if "average" in name or "sam" in name}


def quick(measure, objective, **options):
    own = {option: value for option, value in QUICK.items() if option in measure.defaults}
    initial = {name: torch.zeros_like(tensor) for name, tensor in objective.theta.items()}
    return measure(objective, **({"split": objective.splits[0], "initial": initial} | own | options))


@pytest.fixture(params=MEASURES.values(), ids=lambda measure: measure.name)
def measure(request):
    return request.param


def test_every_measure_describes_itself(measure):
    function = getattr(measure.function, "func", measure.function)
    text = inspect.getdoc(function)
    for part in ("Formula:", "Units:", "Range:", "References\n", "Parameters\n"):
        assert part in text, part
    assert "contested" in text or "A control" in text or "When it is honest" in text
    assert measure.kind in ("exact", "estimate", "lower bound")
    assert "\n" not in measure.formula
    assert measure.units.format(loss="nat")
    assert json.loads(json.dumps(dict(measure.defaults))) == measure.defaults
    assert measure_named(measure.name) is measure
    assert measure.logit_normalizable == ("logit_normalized" in measure.defaults)


def test_a_value_follows_from_the_seed_and_leaves_the_minimizer(measure):
    objective = tiny()
    before = objective.at_minimizer()
    found = quick(measure, objective, seed=1)
    assert math.isfinite(found.value)
    again = quick(measure, objective, seed=1)
    assert (again.value, again.censored) == (found.value, found.censored)
    assert again.se == found.se or math.isnan(found.se)
    other = quick(measure, objective, seed=2).value
    assert (other == pytest.approx(found.value, rel=1e-6)) == (measure.name not in DRAWN)
    assert objective.measure(objective.theta) == before
    if measure.kind == "exact":
        assert math.isnan(found.se)


def test_every_measure_takes_every_model_or_says_why(measure, case):
    objective = Objective(case.model(), case.data(), **case.options)
    needs_labels = "logit_normalized" in measure.name and case.kind in ("mse", "dict")
    if needs_labels:
        with pytest.raises(ValueError, match="needs class labels"):
            quick(measure, objective)
    else:
        assert math.isfinite(quick(measure, objective).value)


def test_a_loss_that_is_no_number_gives_no_number(measure):
    model = tiny_model()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    objective = Objective(model, (torch.randn(6, 2), torch.zeros(6, dtype=torch.long)), dtype="float64")
    found = quick(measure, objective)
    assert math.isnan(found.value)
    assert not found.censored


def test_recomputed_statistics_are_no_obstacle(measure):
    case = BY_NAME["cnn_batchnorm"]
    objective = Objective(case.model(), case.data(), buffers="recompute")
    assert math.isfinite(quick(measure, objective).value)


def test_names_and_options_that_do_not_exist():
    with pytest.raises(ValueError, match=r"measure='lamda_max' is not one of .*Did you mean 'lambda_max'"):
        measure_named("lamda_max")
    with pytest.raises(ValueError, match=r"sam has no option 'roh'; it has rho, .*Did you mean 'rho'"):
        MEASURES["sam"](tiny(), split="train", roh=1)
    with pytest.raises(ValueError, match="weight_norm has no option 'rho'; it has none"):
        MEASURES["weight_norm"](tiny(), split="train", rho=1)
    with pytest.raises(ValueError, match=r"split='tran' is not one of 'train'.*Did you mean 'train'"):
        MEASURES["sam"](tiny(), split="tran")
    with pytest.raises(ValueError, match="no option 'magnitude_aware'"):
        MEASURES["average_perturbation"](tiny(), split="train", magnitude_aware=True)


def test_names_with_an_option_fixed_are_the_option():
    for name in ("sam", "asam"):
        by_option = quick(MEASURES[name], tiny(), logit_normalized=True)
        assert by_option == quick(MEASURES[f"{name}_logit_normalized"], tiny())
        assert by_option != quick(MEASURES[name], tiny())
    assert quick(MEASURES["average_perturbation"], tiny()) != quick(MEASURES["average_perturbation_adaptive"], tiny())


def test_controls():
    objective = tiny(parameters="0")
    theta = torch.cat([tensor.flatten() for tensor in tiny_model()[0].parameters()]).detach()
    initial = {name: tensor + 0.5 for name, tensor in tiny_model().state_dict().items()}
    assert MEASURES["weight_norm"](objective, split="train").value == pytest.approx(float(theta.norm()))
    found = MEASURES["distance_from_init"](objective, split="train", initial=initial)
    assert found.value == pytest.approx(0.5 * math.sqrt(12))
    with pytest.raises(ValueError, match="distance_from_init needs the weights at initialization"):
        MEASURES["distance_from_init"](objective, split="train")
    with pytest.raises(ValueError, match=r"initial does not fit this objective .*0\.bias"):
        MEASURES["distance_from_init"](objective, split="train", initial={"0.weight": torch.zeros(4, 2)})


def test_a_measure_is_measured_on_the_split_that_is_asked_for():
    case = BY_NAME["mlp"]
    objective = Objective(case.model(), case.data(), dtype="float64")
    alone = Objective(case.model(), case.data()["test"], dtype="float64")
    for measure in MEASURES.values():
        if not measure.needs_initial:
            assert quick(measure, objective, split="test").value == pytest.approx(quick(measure, alone).value)


def test_the_mean_of_draws():
    found = average([1.0, 2.0, 6.0])
    assert found.value == 3.0
    assert found.se == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(average([1.0]).se)
    assert math.isnan(average([1.0, math.nan]).value)


def test_names_are_those_of_the_defaults():
    assert [name for name, measure in MEASURES.items() if not measure.default] == [
        "sam_logit_normalized",
        "asam_logit_normalized",
        "fisher_rao",
        "distance_from_init",
    ]
    assert all(isinstance(measure, Measure) for measure in MEASURES.values())
