"""A surface is its cells moved by hand; what was computed is kept at any kill; what does not belong is refused."""

import copy
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

import lltoolkit as ll
from lltoolkit import (
    NondeterministicObjective,
    Objective,
    ResumeMismatch,
    SchemaError,
    Subspace,
    compute,
    compute_surface,
    interpolate,
    keeping,
    open_result,
    random_subspace,
    save_result,
)
from lltoolkit.compute import grid_of
from lltoolkit.labelled.schema import OBJECTIVE_ATTRS, REQUIRED_ATTRS, SUBSPACE_ATTRS, validate
from lltoolkit.labelled.surface import cell_order
from lltoolkit.tensors.evaluate import Evaluator
from lltoolkit.tensors.machine import count_flops
from tests.models import BY_NAME, mlp, seeded

ROOT = Path(__file__).parents[1]
MLP = BY_NAME["mlp"]
CNN = BY_NAME["cnn_batchnorm"]
GRID = {"alpha": [-1.0, -0.5, 0.0, 0.5, 1.0], "beta": [-1.0, 0.0, 1.0]}  # 15 cells, not square


def problem(**options):
    objective = Objective(MLP.model(), MLP.data(), **options)
    return objective, random_subspace(objective, seed=1)


def surface_of(objective, subspace, **options):
    options = {"coords": GRID} | options if "resolution" not in options else options
    return compute_surface(objective, subspace, progress=False, **options)


@pytest.fixture
def measured(monkeypatch):
    """The points that are measured for a surface, in order."""
    points = []
    real = Evaluator.__call__

    def measure(self, task):
        points.extend(point for _, point in task.points)
        return real(self, task)

    monkeypatch.setattr(Evaluator, "__call__", measure)
    return points


@pytest.fixture
def every_cell_a_tile(monkeypatch):
    monkeypatch.setattr(keeping, "TILE_SECONDS", -1.0)


class StopHereError(Exception):
    pass


def stop_after(monkeypatch, n_cells, fault=StopHereError):
    """Let the engine measure `n_cells`, then raise."""
    real, calls = Evaluator.__call__, itertools.count()

    def measure(self, task):
        if next(calls) >= n_cells:
            raise fault
        return real(self, task)

    monkeypatch.setattr(Evaluator, "__call__", measure)


def begun(path, monkeypatch, n_cells=4, objective=None, subspace=None, **options):
    """Begin a surface at `path` and stop after some cells."""
    if objective is None:
        objective, subspace = problem()
    with monkeypatch.context() as patch:
        stop_after(patch, n_cells)
        with pytest.raises(StopHereError):
            surface_of(objective, subspace, path=path, **options)
    return open_result(path)


def assert_same_values(a, b):
    """Variables and coordinates agree bit for bit."""
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        assert a[name].dims == b[name].dims
        assert a[name].values.tobytes() == b[name].values.tobytes(), name


# --- the values


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (4,)),
        ("mlp", (4, 3)),
        ("mlp", (2, 4, 3)),
        ("cnn_batchnorm", (3, 2)),
        ("transformer_tied", (2, 3)),
        ("dict_batch", (3,)),
    ],
)
def test_every_cell_is_the_weights_moved_by_hand(name, shape):
    case = BY_NAME[name]
    model, data = case.model(), case.data()
    objective = Objective(model, data, **case.options)
    subspace = random_subspace(objective, dims=len(shape), seed=1, ignore="none")
    coords = {
        axis: np.linspace(-0.7, 0.9, n)[:: -1 if axis == "beta" else 1]
        for axis, n in zip(subspace.axes, shape, strict=True)
    }
    surface = surface_of(objective, subspace, coords=coords)
    assert (surface["status"] == 1).all()
    assert dict(surface.sizes) == {"split": 2} | dict(zip(subspace.axes, shape, strict=True))
    for cell in itertools.product(*map(range, shape)):
        moved = copy.deepcopy(model)
        state = moved.state_dict()
        where = dict(zip(subspace.axes, cell, strict=True))
        for direction, (axis, place) in zip(subspace.directions, where.items(), strict=True):
            for parameter, step in direction.items():
                state[parameter] += float(coords[axis][place]) * step
        for (split, metric), value in case.plain(moved, data).items():
            found = float(surface[metric].sel(split=split).isel(where))
            assert found == pytest.approx(value, rel=1e-5, abs=1e-7), (metric, split, where)


def test_the_origin_cell_is_the_minimizer(case):
    objective = Objective(case.model(), case.data(), **case.options)
    surface = surface_of(objective, random_subspace(objective), resolution=3)
    for (split, metric), value in objective.at_minimizer().items():
        found = float(surface[metric].sel(split=split, alpha=0, beta=0))
        assert found == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_a_subset_of_examples_gives_standard_errors_at_every_cell():
    objective, plane = problem(n_examples=4)
    surface = surface_of(objective, plane)
    expected = objective.measure(plane.at(1.0, -1.0))
    assert float(surface["loss_se"].sel(split="test", alpha=1, beta=-1)) == pytest.approx(expected["test", "loss_se"])
    assert surface.attrs["n_examples"] == 4
    assert surface.attrs["examples"] == "train 4 of 9, test 4 of 6"


@pytest.mark.parametrize(("span", "expected"), [(None, (-0.5, 1.5)), (2.0, (-2, 2))])
def test_an_interpolation_reaches_past_its_models_by_default(span, expected):
    line = interpolate(MLP.model(0), MLP.model(1))
    surface = surface_of(Objective(MLP.model(0), MLP.data()), line, span=span, resolution=5)
    assert (surface["alpha"].values[0], surface["alpha"].values[-1]) == expected


def test_attributes_say_how_it_was_made(tmp_path):
    objective, plane = problem()
    surface = surface_of(objective, plane, path=tmp_path / "a.surface.nc")
    validate(surface)
    assert set(surface.attrs) >= {*REQUIRED_ATTRS, *OBJECTIVE_ATTRS, *SUBSPACE_ATTRS}
    expected = {
        "kind": "surface",
        "theta_sha256": objective.theta_sha256,
        "data_sha256": objective.data_sha256,
        "subspace_id": plane.id,
        "subspace_kind": "random",
        "seed": 1,
        "normalize": "filter",
        "ignore": "bias_bn",
        "buffers": "frozen",
        "n_examples": "all",
        "batch_size": objective.batch_size,
        "n_params": objective.n_params,
        "direction_cosine": plane.geometry()["direction_cosine"],
        "n_nan": 0,
        "n_inf": 0,
    }
    assert {name: surface.attrs[name] for name in expected} == expected
    assert surface.attrs["grad_norm"] == objective.gradient_norm()
    assert json.loads(surface.attrs["config"])["loss"] == "cross_entropy"
    assert surface["loss"].attrs["units"] == "nat"
    stored = open_result(tmp_path / "a.surface.nc")
    xr.testing.assert_identical(stored, surface)


def test_threads_and_batch_size_are_left_as_they_were():
    objective, plane = problem(batch_size=3)
    before = torch.get_num_threads()
    surface_of(objective, plane)
    assert (objective.batch_size, torch.get_num_threads()) == (3, before)


def test_progress_counts_the_cells(capsys):
    objective, plane = problem()
    compute_surface(objective, plane, coords=GRID, progress=True)
    shown = capsys.readouterr().err
    assert "15/15" in shown
    assert "lowest train loss" in shown
    surface_of(objective, plane)
    assert capsys.readouterr().err == ""


# --- what is not finite


def test_cells_that_are_nan_or_infinite_are_kept_and_counted(tmp_path):
    def loss(output, target):
        values = functional.cross_entropy(output, target, reduction="none")
        return torch.where(values.mean() > 3, torch.nan, torch.where(values.mean() > 1.5, torch.inf, values))

    objective = Objective(MLP.model(), MLP.data(), loss=loss, metrics=[])
    plane = random_subspace(objective, seed=1)
    grid = {"alpha": np.linspace(-8, 8, 9), "beta": np.array([-3.0, 0.0, 3.0])}
    path = tmp_path / "a.surface.nc"
    surface = surface_of(objective, plane, coords=grid, path=path)
    n_nan = int(surface["loss"].isnull().any("split").sum())
    n_inf = int(np.isinf(surface["loss"]).any("split").sum())
    assert n_nan > 0
    assert n_inf > 0
    assert (surface.attrs["n_nan"], surface.attrs["n_inf"]) == (n_nan, n_inf)
    assert (surface["status"] == 1).all()
    assert_same_values(open_result(path), surface)
    assert_same_values(surface_of(objective, plane, coords=grid, path=path), surface)


def test_overflow_of_the_network_is_kept():
    objective, plane = problem()
    surface = surface_of(objective, plane, span=1e30, resolution=3)
    assert not np.isfinite(surface["loss"].sel(alpha=1e30)).all()
    assert np.isfinite(surface["loss"].sel(alpha=0, beta=0)).all()


def test_nan_at_the_minimizer_is_refused_before_a_cell_is_computed(tmp_path, measured):
    model = MLP.model()
    plane = random_subspace(model)
    x, y = MLP.data()["train"]
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"loss on train is nan at the minimizer"):
        surface_of(Objective(model, (x, y)), plane, path=tmp_path / "a.surface.nc")
    assert not measured
    assert not list(tmp_path.iterdir())


def test_a_random_model_is_refused_before_a_cell_is_computed(tmp_path, measured):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(functional.dropout(x))

    model = seeded(Noisy, 0)
    with pytest.raises(NondeterministicObjective, match=r"then .*Usual causes"):
        surface_of(Objective(model, MLP.data()), random_subspace(model), path=tmp_path / "a.surface.nc")
    assert not measured
    assert not list(tmp_path.iterdir())


# --- keeping and going on


@pytest.mark.usefixtures("every_cell_a_tile")
@pytest.mark.parametrize("fault", [StopHereError, KeyboardInterrupt])
def test_an_interrupt_keeps_the_cells_and_a_second_call_computes_the_others(fault, tmp_path, monkeypatch, measured):
    path = tmp_path / "a.surface.nc"
    whole = surface_of(*problem())
    with monkeypatch.context() as patch:
        stop_after(patch, 6, fault)
        with pytest.raises(fault):
            surface_of(*problem(), path=path)
    part = open_result(path)  # merged, so that a reader sees all of it
    assert int((part["status"] == 1).sum()) == 6
    assert [item.name for item in tmp_path.iterdir()] == ["a.surface.nc"]
    kept = part["loss"].values[:, part["status"].values == 1]
    np.testing.assert_array_equal(kept, whole["loss"].values[:, part["status"].values == 1])
    done = [(float(part["alpha"][i]), float(part["beta"][j])) for i, j in np.argwhere(part["status"].values == 1)]
    measured.clear()
    finished = surface_of(*problem(), path=path)
    assert len(measured) == 9
    assert not set(measured) & set(done)
    assert_same_values(finished, whole)
    assert_same_values(open_result(path), whole)


def test_an_interrupt_in_a_cell_between_tiles_keeps_what_no_tile_holds_yet(tmp_path, monkeypatch):
    part = begun(tmp_path / "a.surface.nc", monkeypatch, n_cells=7)
    assert int((part["status"] == 1).sum()) == 7


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from lltoolkit import keeping
from lltoolkit.tensors.evaluate import Evaluator
from tests.test_compute import problem, surface_of

keeping.TILE_SECONDS = -1.0
real, calls = Evaluator.__call__, []

def measure(self, task):
    calls.append(task)
    if len(calls) > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, task)

Evaluator.__call__ = measure
surface_of(*problem(), path=sys.argv[1])
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_kill_in_the_middle_keeps_every_tile_and_a_resume_gives_the_same_bits(tmp_path, measured):
    path = tmp_path / "a.surface.nc"
    assert run(KILLED, path).returncode == -9
    assert (open_result(path)["status"] == 0).all()  # the last merge is from the beginning
    measured.clear()
    resumed = surface_of(*problem(), path=path)
    order = cell_order({axis: np.array(values) for axis, values in GRID.items()})
    kept = [np.unravel_index(cell, (5, 3)) for cell in order[:5]]
    assert len(measured) == 10
    assert not set(measured) & {(GRID["alpha"][i], GRID["beta"][j]) for i, j in kept}
    assert_same_values(resumed, surface_of(*problem()))
    assert_same_values(open_result(path), resumed)
    assert [item.name for item in tmp_path.iterdir()] == ["a.surface.nc"]


def leave_tiles(path, monkeypatch):
    """Compute every cell into a tile of its own, and stop before the last merge."""
    real, calls = compute.GridFile.merge, itertools.count()

    def merge(self):
        if next(calls) > 0:
            raise OSError("as if killed")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(compute.GridFile, "merge", merge)
        with pytest.raises(OSError, match="as if killed"):
            surface_of(*problem(), path=path)
    assert (open_result(path)["status"] == 0).all()
    return sorted(path.with_name(path.name + ".tiles").glob("*.npz"))


@pytest.mark.usefixtures("every_cell_a_tile")
def test_a_kill_after_the_last_tile_leaves_nothing_but_the_merge_to_do(tmp_path, monkeypatch, measured):
    path = tmp_path / "a.surface.nc"
    assert len(leave_tiles(path, monkeypatch)) == 15
    measured.clear()
    finished = surface_of(*problem(), path=path)
    assert not measured
    assert_same_values(open_result(path), finished)
    assert_same_values(finished, surface_of(*problem()))
    assert [item.name for item in tmp_path.iterdir()] == ["a.surface.nc"]


@pytest.mark.usefixtures("every_cell_a_tile")
def test_a_damaged_tile_is_computed_again(tmp_path, monkeypatch, measured):
    path = tmp_path / "a.surface.nc"
    tile = leave_tiles(path, monkeypatch)[3]
    tile.write_bytes(tile.read_bytes()[:-30])
    measured.clear()
    again = surface_of(*problem(), path=path)
    assert len(measured) == 1
    assert_same_values(again, surface_of(*problem()))


def test_merges_during_the_run_let_readers_see_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "TILE_SECONDS", -1.0)
    monkeypatch.setattr(keeping, "MERGE_SECONDS", -1.0)
    path = tmp_path / "a.surface.nc"
    seen = []
    real = Evaluator.__call__

    def measure(self, task):
        seen.append(int((open_result(path)["status"] == 1).sum()))
        return real(self, task)

    monkeypatch.setattr(Evaluator, "__call__", measure)
    surface_of(*problem(), path=path)
    assert seen == list(range(15))


def test_a_finished_file_is_returned_without_running_the_network(tmp_path, monkeypatch):
    path = tmp_path / "a.surface.nc"
    first = surface_of(*problem(), path=path)
    written = path.stat().st_mtime_ns
    objective, plane = problem()
    monkeypatch.setattr(type(objective.network), "__call__", lambda self, inputs: pytest.fail("the network ran"))
    again = surface_of(objective, plane, path=path)
    xr.testing.assert_identical(again, first)
    assert path.stat().st_mtime_ns == written
    assert [item.name for item in tmp_path.iterdir()] == ["a.surface.nc"]


def test_a_finer_grid_goes_on_from_the_file(tmp_path, measured):
    path = tmp_path / "a.surface.nc"
    surface_of(*problem(), path=path, resolution=3)
    measured.clear()
    finer = surface_of(*problem(), path=path, resolution=5)
    assert len(measured) == 25 - 9
    assert_same_values(finer, surface_of(*problem(), resolution=5))
    assert_same_values(open_result(path), finer)


def test_a_larger_span_goes_on_from_the_file(tmp_path, measured):
    path = tmp_path / "a.surface.nc"
    surface_of(*problem(), path=path, resolution=3)
    measured.clear()
    wider = surface_of(*problem(), path=path, span={"alpha": 2, "beta": 1}, resolution={"alpha": 5, "beta": 3})
    assert len(measured) == 15 - 9
    assert_same_values(wider, surface_of(*problem(), coords={"alpha": [-2, -1, 0, 1, 2], "beta": [-1, 0, 1]}))


def test_a_finer_grid_goes_on_from_an_unfinished_file(tmp_path, monkeypatch, measured):
    path = tmp_path / "a.surface.nc"
    begun(path, monkeypatch, n_cells=4, resolution=3)
    measured.clear()
    finer = surface_of(*problem(), path=path, resolution=5)
    assert len(measured) == 25 - 4
    assert_same_values(finer, surface_of(*problem(), resolution=5))


def test_batch_size_and_threads_of_the_file_are_used_on_resume(tmp_path, monkeypatch):
    path = tmp_path / "a.surface.nc"
    begun(path, monkeypatch, objective=problem(batch_size=4)[0], subspace=problem()[1])
    with xr.open_dataset(path) as stored:
        changed = stored.load().assign_attrs(n_threads=2)
    save_result(changed, path)
    objective, plane = problem(batch_size=7)
    used = []
    real = Evaluator.__call__

    def measure(self, task):
        used.append((objective.batch_size, objective.n_threads))
        return real(self, task)

    monkeypatch.setattr(Evaluator, "__call__", measure)
    resumed = surface_of(objective, plane, path=path)
    assert set(used) == {(4, 2)}
    assert len(used) == 11
    assert (objective.batch_size, torch.get_num_threads()) == (7, 1)
    assert_same_values(resumed, surface_of(*problem(batch_size=4)))


def test_recomputed_statistics_are_resumed_with_the_batches_of_the_file(tmp_path, monkeypatch):
    def objective(batch_size):
        return Objective(CNN.model(), CNN.data(), buffers="recompute", batch_size=batch_size)

    path = tmp_path / "a.surface.nc"
    plane = random_subspace(CNN.model())
    begun(path, monkeypatch, objective=objective(3), subspace=plane)
    other = objective(9)
    own = other.at_minimizer()
    resumed = surface_of(other, plane, path=path)
    assert_same_values(resumed, surface_of(objective(3), plane))
    assert other.at_minimizer() == own


def test_the_subspace_of_an_interpolation_is_kept_beside_the_result(tmp_path):
    line = interpolate(CNN.model(0), CNN.model(1))
    surface_of(Objective(CNN.model(0), CNN.data()), line, path=tmp_path / "line.surface.nc", resolution=3)
    kept = Subspace.open(tmp_path / "line.subspace.safetensors")
    assert kept.id == line.id
    again = surface_of(Objective(CNN.model(0), CNN.data()), kept, path=tmp_path / "line.surface.nc", resolution=5)
    assert dict(again.sizes) == {"split": 2, "alpha": 5}


# --- what does not belong to the file


def same_name(scale):
    def loss(output, target):
        return scale * functional.cross_entropy(output, target, reduction="none")

    return loss


def mismatches():
    objective, plane = problem()
    data = MLP.data()
    x, y = data["test"]
    lora = Objective(MLP.model(), data, parameters=r"^2\.")
    return {
        "theta": (Objective(MLP.model(1), data), random_subspace(MLP.model(1), seed=1), r"the minimizer \(weights or"),
        "examples": (Objective(MLP.model(), data | {"test": (x + 1, y)}), plane, r"differs in the examples \(data_sha"),
        "subspace": (
            objective,
            random_subspace(objective, seed=2),
            r"subspace \(subspace_id.*seed 1 there, 2 here",
        ),
        "parameters": (lora, random_subspace(lora, seed=1), r"minimizer.*subspace.*configuration"),
        "dtype": (
            Objective(MLP.model(), data, dtype="float64"),
            plane,
            r"config_sha256.*dtype 'float32' there",
        ),
        "metrics": (Objective(MLP.model(), data, metrics=[]), plane, r"differs in the configuration \(config_sha256"),
        "n_examples": (Objective(MLP.model(), data, n_examples=5), plane, r"differs in the examples.*configuration"),
    }


@pytest.mark.parametrize("what", ["theta", "examples", "subspace", "parameters", "dtype", "metrics", "n_examples"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(what, finished, tmp_path, monkeypatch, measured):
    path = tmp_path / "a.surface.nc"
    if finished:
        surface_of(*problem(), path=path)
    else:
        begun(path, monkeypatch)
    old = path.read_bytes()
    measured.clear()
    objective, plane, message = mismatches()[what]
    with pytest.raises(ResumeMismatch, match=message + r".*Use another path, or resume=False"):
        surface_of(objective, plane, path=path)
    assert path.read_bytes() == old
    assert [item.name for item in tmp_path.iterdir()] == ["a.surface.nc"]
    assert not measured


@pytest.mark.parametrize("finished", [True, False])
def test_another_function_of_the_same_name_is_refused(finished, tmp_path, monkeypatch):
    path = tmp_path / "a.surface.nc"
    first, second = (Objective(MLP.model(), MLP.data(), loss=same_name(scale)) for scale in (1.0, 1.01))
    plane = random_subspace(first, seed=1)
    if finished:
        surface_of(first, plane, path=path)
    else:
        begun(path, monkeypatch, objective=first, subspace=plane)
    old = path.read_bytes()
    with pytest.raises(
        ResumeMismatch, match=r"has loss \d.* on train at the minimizer, this objective gives \d.*function"
    ):
        surface_of(second, plane, path=path)
    assert path.read_bytes() == old
    again = Objective(MLP.model(), MLP.data(), loss=same_name(1.0))
    assert (surface_of(again, plane, path=path)["status"] == 1).all()


def test_one_example_without_a_standard_error_is_resumed(tmp_path, monkeypatch):
    path = tmp_path / "a.surface.nc"
    begun(path, monkeypatch, objective=problem(n_examples=1)[0], subspace=problem()[1])
    assert (surface_of(*problem(n_examples=1), path=path)["status"] == 1).all()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "coords", [{"alpha": [-1.0, 0.0, 1.0], "beta": [-1.0, 0.0, 1.0]}, {"alpha": [0.0, 1.0], "beta": [0.0, 1.0]}]
)
def test_a_grid_that_does_not_contain_the_stored_one_is_refused(finished, coords, tmp_path, monkeypatch):
    path = tmp_path / "a.surface.nc"
    if finished:
        surface_of(*problem(), path=path)
    else:
        begun(path, monkeypatch)
    old = path.read_bytes()
    with pytest.raises(ResumeMismatch, match=r"another grid.*alpha 5 points in \[-1, 1\] x beta 3 .* against alpha \d"):
        surface_of(*problem(), coords=coords, path=path)
    assert path.read_bytes() == old


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.surface.nc"
    attrs = dict.fromkeys(REQUIRED_ATTRS, "x") | {"kind": "history", "schema_version": 1}
    save_result(xr.Dataset({"loss": ("step", [1.0])}, attrs=attrs), path)
    old = path.read_bytes()
    with pytest.raises(ResumeMismatch, match=r"holds a history, not a surface\. Use another path"):
        surface_of(*problem(), path=path)
    assert path.read_bytes() == old


def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "a.surface.nc"
    surface_of(*problem(), path=path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SchemaError, match="damaged or cut short"):
        surface_of(*problem(), path=path)
    assert path.stat().st_size == 2000
    assert [item.name for item in tmp_path.iterdir()] == ["a.surface.nc"]


def test_resume_false_replaces_whatever_is_there(tmp_path):
    path = tmp_path / "a.surface.nc"
    surface_of(*problem(), path=path)
    objective = Objective(MLP.model(1), MLP.data())
    plane = random_subspace(objective)
    replaced = surface_of(objective, plane, path=path, resume=False)
    assert_same_values(open_result(path), replaced)
    assert open_result(path).attrs["theta_sha256"] == objective.theta_sha256
    path.write_bytes(b"no result at all")
    assert_same_values(surface_of(objective, plane, path=path, resume=False), replaced)


@pytest.mark.usefixtures("every_cell_a_tile")
def test_resume_false_does_not_take_old_tiles_for_its_own(tmp_path, monkeypatch, measured):
    path = tmp_path / "a.surface.nc"
    other = Objective(MLP.model(1), MLP.data())
    plane = random_subspace(other, seed=1)
    assert run(KILLED, path).returncode == -9  # leaves tiles of the first objective
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a kill before the old tiles are gone
        stop_after(patch, 1)
        with pytest.raises(StopHereError):
            surface_of(other, plane, path=path, resume=False)
    assert len(list((tmp_path / "a.surface.nc.tiles").glob("*.npz"))) >= 5
    assert_same_values(surface_of(other, plane, path=path), surface_of(other, plane))


# --- before anything is computed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "fast"}, r"engine='fast' is not one of 'auto', 'plain', 'flat', 'folded', 'batched'"),
        ({"resolution": 1}, r"resolution=1.*at least 2"),
        ({"resolution": 3, "span": math.nan}, r"span=nan.*not finite"),
        ({"coords": GRID, "span": 1}, r"span and coords are both given"),
        ({"coords": {"alpha": [0, 1]}}, r"coords says nothing of beta"),
        ({"resolution": 3, "path": "a"}, r"does not end with \.nc; for example a\.surface\.nc"),
    ],
)
def test_bad_options_are_named_before_a_cell_is_computed(options, message, measured):
    objective, plane = problem()
    with pytest.raises(ValueError, match=message):
        compute_surface(objective, plane, progress=False, **options)
    assert not measured


def test_a_path_that_cannot_be_written_is_named_before_a_cell_is_computed(tmp_path, measured):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"can't be written .*Choose another path"):
        surface_of(*problem(), path=tmp_path / "file" / "a.surface.nc")
    assert not measured


# --- a full disk

FULL = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from lltoolkit import keeping
from lltoolkit.tensors.evaluate import Evaluator
from tests.test_compute import problem, surface_of

keeping.TILE_SECONDS = -1.0
unlimited = resource.RLIM_INFINITY
real, calls = Evaluator.__call__, []

def measure(self, task):
    calls.append(task)
    if len(calls) == 6:  # from here on no file may grow past the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
    return real(self, task)

Evaluator.__call__ = measure
told = []
for path, limit in ((sys.argv[1], 200), (sys.argv[2], 4000)):
    calls.clear()
    try:
        surface_of(*problem(), path=path)
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        told.append({"is_oserror": isinstance(error, OSError), "text": str(error)})
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE acts as a full disk on Linux")
def test_a_full_disk_is_told_and_a_later_call_goes_on_from_the_cells_before(tmp_path, measured):
    no_tile_fits, no_merge_fits = tmp_path / "tile.surface.nc", tmp_path / "merge.surface.nc"
    result = run(FULL, no_tile_fits, no_merge_fits)
    assert result.returncode == 0, result.stderr
    for path, kept, told in zip((no_tile_fits, no_merge_fits), (5, 15), json.loads(result.stdout), strict=True):
        assert told["is_oserror"], told
        assert f"{path.name} can't be written" in told["text"]
        assert "call again: it goes on from there" in told["text"]
        measured.clear()
        finished = surface_of(*problem(), path=path)
        assert len(measured) == 15 - kept
        assert_same_values(finished, surface_of(*problem()))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["merge.surface.nc", "tile.surface.nc"]


def test_default_grids_hold_the_models_of_an_interpolation():
    models = [torch.nn.Linear(2, 2) for _ in range(3)]
    for others, points in ((1, [0.0, 1.0]), (2, [0.0, 1.0])):
        grid = grid_of(ll.interpolate(*models[: others + 1]))
        for values in grid.values():
            assert np.isin(points, values).all()
            assert (values[0], values[-1]) == (-0.5, 1.5)


def test_a_file_with_transposed_dims_is_not_filled_with_tiles(tmp_path):
    objective = ll.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    plane = ll.random_subspace(objective)
    path = tmp_path / "x.surface.nc"
    surface = ll.compute_surface(objective, plane, resolution={"alpha": 3, "beta": 5}, path=path, progress=False)
    ll.save_result(surface.transpose("beta", "alpha", "split"), path)
    with pytest.raises(ll.SchemaError, match="another order"):
        ll.compute_surface(objective, plane, resolution={"alpha": 3, "beta": 5}, path=path, progress=False)


def test_threads_follow_from_the_work_and_are_given_back():
    seen = []
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    small = ll.Objective(model, (torch.eye(2), torch.tensor([0, 1])))
    assert small.n_threads == 1
    small.compute_as(batch_size=1, n_threads=2)
    flops = count_flops(lambda: torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)(torch.zeros(1, 3, 32, 32)))
    assert flops == 2 * 3 * 9 * 16 * 32 * 32  # two per multiply-add
    seen.clear()
    small.at_minimizer()
    assert seen == [2, 2]
    assert torch.get_num_threads() == before


def test_a_grid_that_steps_over_the_minimizer_is_told(caplog):
    objective = ll.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    line = ll.random_subspace(objective, dims=1)
    ll.compute_surface(objective, line, resolution=5, progress=False)
    assert not caplog.records
    ll.compute_surface(objective, line, resolution=4, progress=False)
    assert "no grid point at 0 of alpha" in caplog.text


def test_what_a_killed_writer_left_goes_away_with_the_next_one(tmp_path):
    objective = ll.Objective(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    path = tmp_path / "x.surface.nc"
    (tmp_path / ".x.surface.99999.part.nc").write_text("half of")
    ll.compute_surface(objective, ll.random_subspace(objective), resolution=3, path=path, progress=False)
    assert list(tmp_path.iterdir()) == [path]
