"""A curvature map has the dense Hessian's extreme eigenvalues at every cell; tiles are kept, and resumed to the bit."""

import copy
import itertools
import math
import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

from lltoolkit import (
    Objective,
    ResumeMismatch,
    compute_surface,
    interpolate,
    keeping,
    open_result,
    plot_contour,
    random_subspace,
    save_result,
)
from lltoolkit.curvature import compute_curvature
from lltoolkit.labelled.curvature import draw_audited, tiles
from lltoolkit.labelled.schema import validate
from lltoolkit.tensors.curvature import COLD_STEPS, FRESH, CurvatureEvaluator, TileTask
from lltoolkit.tensors.lanczos import extreme_eigenvalues
from tests.models import BY_NAME, seeded

CNN = BY_NAME["cnn_batchnorm"]
GRID = {"alpha": np.linspace(-1, 1, 5), "beta": np.linspace(-1, 1, 5)}  # 4 tiles
ENDS = ("eig_min", "eig_max")
TOL = 1e-2


def network():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))  # 38 parameters, 30 of them weights


def data():
    def draw():
        part = {"train": 20, "test": 10}
        return {split: (torch.randn(n, 3), torch.randint(3, (n,))) for split, n in part.items()}

    return seeded(draw, 100)


def problem(seed=0, **options):
    objective = Objective(seeded(network, seed), data(), **{"dtype": "float64"} | options)
    return objective, random_subspace(objective, seed=1)


def curvature_of(objective, subspace, **options):
    options = {"coords": GRID} | options if "resolution" not in options else options
    return compute_curvature(objective, subspace, progress=False, **options)


@pytest.fixture
def computed(monkeypatch):
    """The tiles that are computed, in order."""
    found = []
    real = CurvatureEvaluator.__call__

    def compute(self, task):
        found.append(task)
        return real(self, task)

    monkeypatch.setattr(CurvatureEvaluator, "__call__", compute)
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The file of a map that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "a.curvature.nc"
    curvature_of(*problem(), path=path)
    return path


@pytest.fixture
def whole(stored):
    return open_result(stored)


@pytest.fixture
def path(tmp_path, stored):
    """A copy of that file, to be written to."""
    return shutil.copy(stored, tmp_path / "a.curvature.nc")


class StopHereError(Exception):
    pass


def begun(path, monkeypatch, n_tiles=2, fault=StopHereError, **options):
    """Begin a map at `path` and stop after some tiles."""
    real, calls = CurvatureEvaluator.__call__, itertools.count()

    def compute(self, task):
        if next(calls) >= n_tiles:
            raise fault
        return real(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(CurvatureEvaluator, "__call__", compute)
        with pytest.raises(fault):
            curvature_of(*problem(**options), path=path)
    return open_result(path)


def assert_same_values(a, b):
    """Variables and coordinates agree bit for bit."""
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        assert a[name].dims == b[name].dims
        assert a[name].values.tobytes() == b[name].values.tobytes(), name


# --- the values


def dense_spectrum(model, split, subspace, point, chosen, scaled):
    """All eigenvalues at a point, from torch's own dense Hessian of the plain loss, over moved weights made by hand."""
    model = copy.deepcopy(model).double()
    origin = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moved = {
        name: tensor + sum(c * d[name].double() for c, d in zip(point, subspace.directions, strict=True))
        for name, tensor in origin.items()
    }
    x, y = split
    names = [name for name in origin if chosen(name)]
    rest = {name: tensor for name, tensor in moved.items() if name not in names}

    def loss(flat):
        parts = flat.split([moved[name].numel() for name in names])
        own = {name: part.view_as(moved[name]) for name, part in zip(names, parts, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, rest | own, (x.double(),)), y)

    matrix = torch.autograd.functional.hessian(loss, torch.cat([moved[name].flatten() for name in names]))
    if scaled:  # D H D: each row of a layer with its norm over the root of its size
        scale = torch.cat(
            [
                (origin[name].norm(dim=1, keepdim=True) / origin[name].shape[1] ** 0.5)
                .expand_as(origin[name])
                .flatten()
                for name in names
            ]
        )
        matrix = scale[:, None] * matrix * scale
    return torch.linalg.eigvalsh(matrix).numpy()


@pytest.mark.parametrize(
    ("options", "chosen", "scaled"),
    [
        ({}, lambda name: True, False),
        ({"split": "test", "parameters": "weights"}, lambda name: "weight" in name, False),
        ({"metric": "filter"}, lambda name: "weight" in name, True),
        ({"parameters": r"^2\."}, lambda name: name.startswith("2."), False),
    ],
    ids=["all", "weights", "filter", "regex"],
)
def test_every_cell_has_the_ends_of_the_dense_spectrum(options, chosen, scaled):
    objective, plane = problem()
    found = curvature_of(objective, plane, **options)
    assert (found["converged"] == 1).all()
    assert (found["status"] == 1).all()
    for cell in itertools.product(range(5), repeat=2):
        point = [float(GRID[axis][place]) for axis, place in zip(("alpha", "beta"), cell, strict=True)]
        spectrum = dense_spectrum(
            seeded(network, 0), data()[options.get("split", "train")], plane, point, chosen, scaled
        )
        here = found.isel(alpha=cell[0], beta=cell[1])
        for end, true in (("min", spectrum[0]), ("max", spectrum[-1])):
            value, residual = float(here[f"eig_{end}"]), float(here[f"residual_{end}"])
            assert value == pytest.approx(true, abs=TOL * spectrum[-1])
            assert residual <= TOL * float(here["eig_max"])
            assert np.abs(spectrum - value).min() <= residual + 1e-9  # what a residual means
            if not np.isnan(here[f"audit_eig_{end}"]):
                assert float(here[f"audit_eig_{end}"]) == pytest.approx(true, abs=1e-6 * spectrum[-1])
    np.testing.assert_array_equal(found["eig_ratio"], np.abs(found["eig_min"] / found["eig_max"]))
    np.testing.assert_array_equal(found["nonconvexity"], np.maximum(0, -found["eig_min"]) / found["eig_max"])


def test_a_quadratic_has_one_curvature_everywhere():
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    model = seeded(lambda: nn.Linear(3, 1, bias=False), 0)
    objective = Objective(model, (x, torch.zeros(3, 1)), loss="mse", dtype="float64")
    found = curvature_of(objective, random_subspace(objective))  # the mean of (x w)^2: 2 x^T x / 3
    np.testing.assert_allclose(found["eig_min"], 2 / 3, rtol=1e-9)
    np.testing.assert_allclose(found["eig_max"], 32 / 3, rtol=1e-9)
    np.testing.assert_allclose(found["eig_ratio"], 1 / 16, rtol=1e-9)
    assert (found["nonconvexity"] == 0).all()
    assert found.attrs["audited_max"] < 1e-9


def test_the_loss_is_the_surfaces(whole):
    surface = compute_surface(*problem(), coords=GRID, progress=False)
    np.testing.assert_allclose(whole["loss"], surface["loss"].sel(split="train"), rtol=1e-12)


def test_moved_buffers_count_at_the_other_end_of_an_interpolation():
    first, second = CNN.model(0), CNN.model(1)
    line = interpolate(first, second)
    found = curvature_of(Objective(first, CNN.data(), dtype="float64"), line, coords={"alpha": [0.0, 0.5, 1.0]})
    for alpha, model in ((0, first), (1, second)):
        own = Objective(model, CNN.data(), dtype="float64")
        there = curvature_of(own, random_subspace(own, dims=1), coords={"alpha": [0.0, 1.0]}, tol=1e-6)
        for name in ("loss", "eig_min", "eig_max"):
            value, true = float(found[name].sel(alpha=alpha)), float(there[name].sel(alpha=0))
            assert value == pytest.approx(true, abs=TOL * float(there["eig_max"].sel(alpha=0)))


@pytest.mark.parametrize("shape", [(18,), (2, 3, 5)])
def test_lines_and_volumes(shape):
    objective, _ = problem()
    subspace = random_subspace(objective, dims=len(shape), seed=1)
    coords = {axis: np.linspace(-0.5, 0.7, n) for axis, n in zip(subspace.axes, shape, strict=True)}
    found = curvature_of(objective, subspace, coords=coords)
    assert found["eig_max"].shape == shape
    where = dict.fromkeys(subspace.axes, -1)
    point = [float(values[-1]) for values in coords.values()]
    spectrum = dense_spectrum(seeded(network, 0), data()["train"], subspace, point, lambda name: True, False)
    assert float(found["eig_max"].isel(where)) == pytest.approx(spectrum[-1], rel=TOL)
    assert float(found["eig_min"].isel(where)) == pytest.approx(spectrum[0], abs=TOL * spectrum[-1])


def test_cells_without_a_finite_loss_have_no_eigenvalues(tmp_path):
    def loss(output, target):
        values = functional.cross_entropy(output, target, reduction="none")
        return torch.where(values.mean() > 1.6, torch.nan, torch.where(values.mean() > 1.3, torch.inf, values))

    objective = Objective(seeded(network, 0), data()["train"], loss=loss, metrics=[], dtype="float64")
    plane = random_subspace(objective, seed=1)
    path = tmp_path / "a.curvature.nc"
    found = curvature_of(objective, plane, coords={axis: 4 * values for axis, values in GRID.items()}, path=path)
    broken = ~np.isfinite(found["loss"].values)
    assert found.attrs["n_nan"] == np.isnan(found["loss"]).sum() > 0
    assert found.attrs["n_inf"] == np.isinf(found["loss"]).sum() > 0
    for name in ("eig_min", "eig_max", "eig_ratio", "nonconvexity", "residual_min", "residual_max"):
        np.testing.assert_array_equal(np.isnan(found[name]), broken)
    for name in ("n_hvp", "converged"):
        np.testing.assert_array_equal(found[name] == 0, broken)
    assert (found["status"] == 1).all()
    assert found.attrs["n_unconverged"] == broken.sum()
    assert_same_values(open_result(path), found)


# --- tiles, starts and audits


def evaluator_of(objective, subspace, metric="euclidean"):
    how = {"batch_size": objective.batch_size, "n_threads": 1, "precision": "exact"}
    how |= {"split": "train", "parameters": None, "metric": metric, "tol": TOL}
    return CurvatureEvaluator(objective, [subspace], how)


def test_a_tile_is_the_same_whoever_computes_it_after_whatever(whole):
    evaluator = evaluator_of(*problem())
    for tile in reversed(tiles(GRID, 0)):
        indices = np.unravel_index(tile.cells, (5, 5))
        points = [(float(GRID["alpha"][i]), float(GRID["beta"][j])) for i, j in zip(*indices, strict=True)]
        values = evaluator(TileTask(tile.cells, points, tile.audited)).values
        for name, column in values.items():
            assert column.tobytes() == whole[name].values[indices].tobytes(), name


def test_a_warm_start_is_the_neighbours_vectors_and_something_random_where_the_metric_moves():
    objective, plane = problem()
    model = seeded(network, 0)
    with torch.no_grad():
        model[0].weight[2] = 0  # in the metric this filter is nailed down
    objective = Objective(model, data(), dtype="float64")
    evaluator = evaluator_of(objective, plane, metric="filter")
    cold = evaluator.start((0.0, 0.5), None)
    assert float(cold.norm()) == pytest.approx(1)
    np.testing.assert_array_equal(np.flatnonzero(cold == 0), [6, 7, 8])
    assert not torch.equal(cold, evaluator.start((0.0, 0.25), None))
    with evaluator._hessian.at() as here:
        before = extreme_eigenvalues(here, cold)
    warm = evaluator.start((0.0, 0.5), before)
    torch.testing.assert_close(warm, before.vector_min + before.vector_max + FRESH * cold)


def test_only_the_first_cell_of_a_tile_starts_cold(whole):
    first = [tile.cells[0] for tile in tiles(GRID, 0)]
    n_hvp = whole["n_hvp"].values.ravel()
    assert (n_hvp[first] >= COLD_STEPS).all()
    assert np.median(np.delete(n_hvp, first)) < COLD_STEPS / 2


def test_audited_cells_are_drawn_by_the_seed_and_counted():
    found = curvature_of(*problem(), resolution=9)
    audited = np.flatnonzero(found["audit_eig_max"].notnull())
    assert list(audited) == list(draw_audited({axis: found[axis].values for axis in ("alpha", "beta")}, 0))
    attrs = found.attrs
    assert (attrs["n_audit"], attrs["n_audit_missed"], attrs["n_unconverged"]) == (4, 0, 0)
    assert attrs["n_hvp_total"] == int(found["n_hvp"].sum()) + attrs["n_hvp_audit"]
    assert attrs["n_hvp_audit"] == int(found["audit_n_hvp"].sum()) > 4 * attrs["n_hvp_median"]
    off = max(float(np.abs((found[end] - found[f"audit_{end}"]) / found["audit_eig_max"]).max()) for end in ENDS)
    assert attrs["audited_max"] == pytest.approx(off)


def test_an_audit_that_fails_is_told(monkeypatch, caplog):
    def hasty(matvec, start, *, tol, **_):  # one product for the map, and as many as it takes for its audit
        return extreme_eigenvalues(matvec, start, tol=tol, **({} if tol < TOL else {"min_steps": 1, "max_steps": 1}))

    monkeypatch.setattr("lltoolkit.tensors.curvature.extreme_eigenvalues", hasty)
    found = curvature_of(*problem())
    assert found.attrs["n_audit_missed"] == found.attrs["audit_miss_rate"] == 1
    assert found.attrs["audited_max"] > TOL
    assert "1 of 1 audited cells are off by more than 0.01" in caplog.text
    assert found.attrs["n_unconverged"] == 25
    assert "25 cells did not converge" in caplog.text


# --- what is said of it


def test_attributes_say_how_it_was_made(tmp_path):
    objective, plane = problem()
    found = curvature_of(objective, plane, parameters="weights", tol=0.02, path=tmp_path / "a.curvature.nc")
    validate(found)
    expected = {
        "kind": "curvature",
        "split": "train",
        "parameters": "weights",
        "metric": "euclidean",
        "tol": 0.02,
        "n_variables": 30,
        "buffers": "frozen",
        "engine": "hessian",
        "precision": "exact",
        "theta_sha256": objective.theta_sha256,
        "subspace_id": plane.id,
        "batch_size": objective.batch_size,
        "n_threads": 1,
    }
    assert {name: found.attrs[name] for name in expected} == expected
    assert found["eig_max"].attrs["units"] == "nat"
    xr.testing.assert_identical(open_result(tmp_path / "a.curvature.nc"), found)


def test_it_is_drawn_beside_the_surface(whole):
    for var, label in (("eig_ratio", "|smallest / largest Hessian eigenvalue|"), ("loss", "train loss [nat]")):
        assert plot_contour(whole, var=var).child_axes[0].get_ylabel() == label


def test_default_grids():
    line = interpolate(seeded(network, 0), seeded(network, 1))
    small = Objective(seeded(network, 0), data()["train"])
    assert np.isin([0.0, 1.0], curvature_of(small, line, coords=None)["alpha"]).all()
    assert dict(curvature_of(small, random_subspace(small, dims=1), coords=None).sizes) == {"alpha": 15}


def test_progress_is_told_by_the_cell_and_an_exception_in_the_callback_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "TILE_SECONDS", -1.0)
    seen = []

    def look(progress):
        seen.append(progress)
        if progress.n_done == 21:
            raise StopHereError

    path = tmp_path / "a.curvature.nc"
    with pytest.raises(StopHereError):
        curvature_of(*problem(), path=path, callback=look)
    assert sorted({progress.n_done for progress in seen}) == list(range(1, 22))
    assert {progress.n_asked for progress in seen} == {25}
    sizes = np.cumsum(_sizes())
    assert int((open_result(path)["status"] == 1).sum()) == max(sizes[sizes < 21])
    assert np.isfinite(seen[-1].picture()["eig_max"]).all()


def _sizes():
    return [len(tile.cells) for tile in tiles(GRID, 0)]


# --- keeping and going on


@pytest.mark.parametrize("fault", [StopHereError, KeyboardInterrupt])
def test_an_interrupt_keeps_the_tiles_and_a_second_call_computes_the_others(
    fault, tmp_path, monkeypatch, computed, whole
):
    path = tmp_path / "a.curvature.nc"
    part = begun(path, monkeypatch, fault=fault)
    done = part["status"].values == 1
    assert done.sum() == sum(_sizes()[:2])
    np.testing.assert_array_equal(part["eig_min"].values[done], whole["eig_min"].values[done])
    computed.clear()
    finished = curvature_of(*problem(), path=path)
    assert [list(task.cells) for task in computed] == [list(tile.cells) for tile in tiles(GRID, 0)[2:]]
    assert_same_values(finished, whole)
    assert_same_values(open_result(path), whole)
    audit = [name for name in whole.attrs if name.startswith(("n_", "audit"))]
    assert {name: finished.attrs[name] for name in audit} == {name: whole.attrs[name] for name in audit}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.curvature.nc"]


def test_a_kill_between_tiles_leaves_them_on_disk_and_a_damaged_one_is_computed_again(
    tmp_path, monkeypatch, computed, whole
):
    path = tmp_path / "a.curvature.nc"
    real, calls = keeping.GridFile.merge, itertools.count()

    def merge(self):
        if next(calls) > 0:
            raise OSError("as if killed")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(keeping.GridFile, "merge", merge)
        with pytest.raises(OSError, match="as if killed"):
            curvature_of(*problem(), path=path)
    assert (open_result(path)["status"] == 0).all()
    stored = sorted(path.with_name(path.name + ".tiles").glob("*.npz"))
    assert len(stored) == 4
    stored[2].write_bytes(stored[2].read_bytes()[:-30])
    computed.clear()
    again = curvature_of(*problem(), path=path)
    assert len(computed) == 1
    assert_same_values(again, whole)


def test_a_finished_file_is_returned_without_running_the_network(path, whole, monkeypatch):
    written = path.stat().st_mtime_ns
    objective, plane = problem()
    monkeypatch.setattr(type(objective.network), "__call__", lambda self, inputs: pytest.fail("the network ran"))
    xr.testing.assert_identical(curvature_of(objective, plane, path=path), whole)
    assert path.stat().st_mtime_ns == written


def test_the_batch_size_of_the_file_is_used_on_resume(tmp_path, monkeypatch):
    path = tmp_path / "a.curvature.nc"
    options = {"dtype": "float32"}
    begun(path, monkeypatch, batch_size=13, **options)
    objective, plane = problem(batch_size=7, **options)
    resumed = curvature_of(objective, plane, path=path)
    assert resumed.attrs["batch_size"] == 13
    assert objective.batch_size == 7
    assert_same_values(resumed, curvature_of(*problem(batch_size=13, **options)))


def test_worker_processes_give_the_same_bits(tmp_path):
    path = tmp_path / "a.curvature.nc"
    found = curvature_of(*problem(dtype="float32"), n_workers=2, path=path, parameters="weights", metric="filter")
    assert_same_values(found, curvature_of(*problem(dtype="float32"), parameters="weights", metric="filter"))
    assert_same_values(open_result(path), found)


@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")  # sockets of distributed's own, closed by the collector
def test_a_cluster_gives_the_same_bits(whole):
    distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert_same_values(curvature_of(*problem(), client=client), whole)


# --- what does not belong


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"differs in the configuration .*split 'train' there, 'test' here"),
        ({"parameters": "weights"}, r"hessian_parameters 'all' there, 'weights' here"),
        ({"metric": "filter"}, r"metric 'euclidean' there, 'filter' here"),
        ({"tol": 0.02}, r"tol 0\.01 there, 0\.02 here"),
        ({"resolution": 9}, r"another grid: alpha 5 points .* against alpha 9 points.*neighbour's eigenvectors"),
    ],
    ids=["split", "parameters", "metric", "tol", "grid"],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(finished, options, message, path, monkeypatch, computed):
    if not finished:
        path.unlink()
        begun(path, monkeypatch, n_tiles=1)
    old = path.read_bytes()
    computed.clear()
    with pytest.raises(ResumeMismatch, match=message + r".*Use another path, or resume=False"):
        curvature_of(*problem(), path=path, **options)
    assert path.read_bytes() == old
    assert not computed


def test_another_minimizer_is_refused_and_replaced_on_request(path):
    with pytest.raises(ResumeMismatch, match=r"the minimizer \(weights or buffers\)"):
        curvature_of(*problem(seed=1), path=path)
    replaced = curvature_of(*problem(seed=1), path=path, resume=False)
    assert_same_values(open_result(path), replaced)
    assert replaced.attrs["theta_sha256"] == problem(seed=1)[0].theta_sha256


def test_a_surface_and_a_map_do_not_share_a_path(path, tmp_path):
    objective, plane = problem()
    other = tmp_path / "a.surface.nc"
    save_result(compute_surface(objective, plane, coords=GRID, progress=False), other)
    with pytest.raises(ResumeMismatch, match="holds a surface, not a curvature map"):
        curvature_of(objective, plane, path=other)
    with pytest.raises(ResumeMismatch, match="holds a curvature map, not a surface"):
        compute_surface(objective, plane, coords=GRID, path=path, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0}, r"tol=0: give a share of the largest eigenvalue in \(0, 1\)"),
        ({"metric": "filtr"}, r"metric='filtr' is not one of .*Did you mean 'filter'"),
        ({"split": "tst"}, r"split='tst' is not one of 'train', 'test'.*'test'"),
        ({"parameters": "nothing"}, r"nothing"),
        ({"n_workers": 0}, r"n_workers=0"),
        ({"span": 1.0}, r"span and coords are both given"),
        ({"path": "a"}, r"does not end with \.nc; for example a\.curvature\.nc"),
    ],
    ids=["tol", "metric", "split", "parameters", "n_workers", "grid", "path"],
)
def test_bad_options_are_named_before_a_cell_is_computed(options, message, computed):
    with pytest.raises(ValueError, match=message):
        curvature_of(*problem(), **options)
    assert not computed


def test_several_subspaces_are_refused():
    objective, plane = problem()
    with pytest.raises(ValueError, match=r"subspace is a list; a curvature map is of one Subspace"):
        curvature_of(objective, [plane, random_subspace(objective, seed=2)])


def test_an_operator_without_a_second_derivative_is_named_before_a_file_is_begun(tmp_path):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * (1 - x.tanh() ** 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return Once.apply(self.layer(x))

    objective = Objective(seeded(Net, 0), data()["train"])
    with pytest.raises(ValueError, match="Once"):
        curvature_of(objective, random_subspace(objective), path=tmp_path / "a.curvature.nc")
    assert not list(tmp_path.iterdir())


def test_nan_at_the_minimizer_is_refused(tmp_path):
    model = seeded(network, 0)
    plane = random_subspace(model)
    x, y = data()["train"]
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="loss on train is nan at the minimizer"):
        curvature_of(Objective(model, (x, y)), plane, path=tmp_path / "a.curvature.nc")
    assert not list(tmp_path.iterdir())


def test_an_audit_is_cold_whatever_the_cell_started_from():
    objective, plane = problem()
    how = {"split": "train", "parameters": None, "metric": "euclidean", "tol": TOL}
    how |= {"batch_size": objective.batch_size, "n_threads": 1, "precision": "exact"}
    evaluate = CurvatureEvaluator(objective, [plane], how)
    points = [(0.0, 0.0), (0.25, 0.0)]
    after_a_neighbour = evaluate(TileTask(np.arange(2), points, np.array([False, True])))
    alone = evaluate(TileTask(np.arange(1), points[1:], np.array([True])))
    for name in ("audit_eig_min", "audit_eig_max", "audit_n_hvp"):
        assert after_a_neighbour.values[name][1] == alone.values[name][0]
    assert after_a_neighbour.values["n_hvp"][1] != alone.values["n_hvp"][0]


def test_two_losses_of_one_name_are_two_maps(tmp_path):
    def squared(factor):
        return lambda output, _: factor * output.square().mean(1)

    path = tmp_path / "a.curvature.nc"
    objective, plane = problem(loss=squared(1.0), metrics=[])
    curvature_of(objective, plane, path=path)
    other, _ = problem(loss=squared(9.0), metrics=[])
    with pytest.raises(ResumeMismatch, match="at the minimizer"):
        curvature_of(other, plane, path=path)
