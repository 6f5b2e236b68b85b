"""The benchmark measures what it says: cells told apart, values held against float64, bars held against figures."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import lltoolkit
from benchmarks.cases import Case, Sources, make_case
from benchmarks.cells import bars, compare_cells
from benchmarks.contestants import Landscaper, Loop, Missing, Toolkit, recruit
from benchmarks.limit import layers_of
from benchmarks.meter import Instant, Meter, exact_loss, relative_error
from benchmarks.report import bars_table, cells_report, describe_machine
from benchmarks.surfaces import log_errors
from lltoolkit.tensors.machine import count_flops

NOTHING = Sources(None, {}, "none")


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case("cnn", NOTHING, n_examples=200)  # a batch of 128 and a short one


@pytest.fixture(scope="module")
def plane(case):
    return lltoolkit.random_subspace(case.model, seed=0)


@pytest.mark.parametrize("kind", [Toolkit, Loop])
def test_values_agree_with_float64_at_the_same_weights(case, plane, kind):
    turn = kind(case, plane).turn(2, check=True)
    assert turn.n_cells == len(turn.checked) == 4
    for checked in turn.checked:
        exact = exact_loss(case.model, checked.state, case.x, case.y)
        assert relative_error(checked.value, exact) < 2e-6
    losses = {round(checked.value, 6) for checked in turn.checked}
    assert len(losses) == 4  # four corners, not one cell four times


def test_float64_loop_is_the_mean_over_all_examples(case):
    with torch.no_grad():
        wanted = functional.cross_entropy(case.copy_model().double()(case.x.double()), case.y)
    assert exact_loss(case.model, case.model.state_dict(), case.x, case.y) == pytest.approx(float(wanted), rel=1e-12)


def test_meter_refuses_values_that_are_not_its_cells():
    meter = Meter(calls_per_cell=2)
    for _ in range(4):
        meter(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    assert meter.read([1.0, 2.0], Instant(), Instant()).n_cells == 2
    with pytest.raises(RuntimeError, match="3 values came back, and 2 cells were seen"):
        meter.read([1.0, 2.0, 3.0], Instant(), Instant())


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20"])
def test_layers_hold_all_operations_of_the_model(name):
    made = make_case(name, NOTHING, n_examples=2)
    counted = count_flops(lambda: made.model(made.x)) / 2
    assert sum(layer.flops * n for layer, n in layers_of(made.model, made.x).items()) == counted


def test_what_is_not_installed_is_left_out_and_told(case, plane, monkeypatch):
    monkeypatch.setattr(Landscaper, "module", "no_such_package_of_anybody")
    with pytest.raises(Missing, match="not installed"):
        Landscaper(case, plane)
    ready, missing = recruit(case, plane, ["lltoolkit", "landscaper"])
    assert [one.name for one in ready] == ["lltoolkit"]
    assert list(missing) == ["landscaper"]


def test_report_shows_every_contestant_and_every_bar():
    made = make_case("mlp", NOTHING, n_examples=50)
    result = compare_cells(made, n_rounds=1, turn_seconds=0.0, n_checked=1, n_cores=1, tell=lambda line: None)
    held = bars(result)
    text = cells_report({"machine": describe_machine(1), "cases": [result], "bars": held})
    for one in result["contestants"]:
        assert f"| {one['name']}" in text
        assert one["error"] < 1e-2
    assert "MLP: times as fast as a DataLoader loop | 12 |" in text


def test_bars_are_of_the_fastest_peer():
    ratios = {"lltoolkit": 1.0, "landscaper": 2.4, "losscape": 1.9, "DataLoader loop": 1.5}
    result = {
        "case": "resnet20",
        "label": "ResNet-20",
        "contestants": [{"name": name, "ratio_wall": ratio} for name, ratio in ratios.items()],
        "limit": {"share": 0.8},
    }
    peer, share = bars(result)
    assert (peer["found"], peer["met"]) == (1.9, False)
    assert "losscape" in peer["what"]
    assert share["met"]
    assert bars_table([peer, share]).count("**missed**") == 1


def test_log_errors_are_taken_where_they_say():
    objective = lltoolkit.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    exact = lltoolkit.compute_surface(
        objective, lltoolkit.random_subspace(objective, seed=0), resolution=5, progress=False
    )
    off = exact.copy(deep=True)
    off["loss"][0, 0, 0] *= np.exp(0.3)  # a corner, outside of the central quarter
    found = log_errors(off, exact)
    assert found["all"]["max"] == pytest.approx(0.3)
    assert found["all"]["rms"] == pytest.approx(0.3 / 5)
    assert found["central quarter"] == {"n": 9, "n_left_out": 0, "p95": 0, "rms": 0, "max": 0}
    with pytest.raises(ValueError, match="lacks cells"):
        log_errors(exact, exact.isel(alpha=slice(0, 4)))
