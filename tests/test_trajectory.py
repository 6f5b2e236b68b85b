"""Projected paths against known coordinates, dense least squares, hand-made models and surfaces."""

import logging

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import lltoolkit as ll
from lltoolkit.errors import ResumeMismatch
from lltoolkit.tensors.checkpoints import list_checkpoints, save_checkpoint
from lltoolkit.tensors.params import parameters_of
from lltoolkit.tensors.pca import pca_subspace
from lltoolkit.tensors.sketch import sketch
from lltoolkit.trajectory import project_trajectory
from lltoolkit.zoo import Recorder, open_run
from tests.models import BY_NAME, CASES, seeded

MLP = BY_NAME["mlp"]


def write(folder, states, *, first=0, **metadata):
    """Keep states as the checkpoints of steps 0, 10, 20, ..."""
    for place, state in enumerate(states, start=first):
        save_checkpoint(folder, state, step=10 * place, epoch=place, **metadata)
    return list_checkpoints(folder)


def project(run, plane, *args, **options):
    return project_trajectory(run, plane, *args, progress=False, **options)


def noise(like, seed, scale=1.0):
    return seeded(lambda: {name: scale * torch.randn(tensor.shape) for name, tensor in like.items()}, seed)


def oblique(theta, dims=2, kind="custom"):
    """Directions of lengths that differ by a factor of 100, none orthogonal to another."""
    first = noise(theta, 1)
    directions = [first]
    for axis in range(1, dims):
        other = noise(theta, axis + 1)
        directions.append({name: 0.01 * (other[name] + 0.8 * first[name]) for name in theta})
    return ll.Subspace(theta, directions, kind=kind)


def trained(case, n=4, *, scale=0.1):
    """Models of a case that drift apart, buffers too: where a path may have come from."""
    models = []
    for place in range(n):
        model = case.model()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor += scale * (n - 1 - place) * seeded(lambda like=tensor: torch.randn_like(like).abs(), place)
        models.append(model)
    return models


def flat(params, names=None):
    return np.concatenate([params[name].double().numpy().ravel() for name in names or params])


# --- where the checkpoints lie


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_known_coordinates_in_a_known_plane_come_back(tmp_path, dims):
    plane = oblique(parameters_of(MLP.model()), dims)
    known = np.random.default_rng(0).uniform(-2, 2, (8, dims)) * [1, 100, 100][:dims]
    path = project(write(tmp_path, [plane.at(*point) for point in known]), plane)
    for axis, values in zip(plane.axes, known.T, strict=True):
        np.testing.assert_allclose(path[axis].values, values, rtol=1e-5, atol=1e-5)
    for name in ("residual", "residual_weights", "residual_bias_bn"):
        assert path[name].max() < 1e-5
    assert path.attrs["captured_share"] == pytest.approx(1)
    assert path["status"].values.tolist() == [1] * 8
    assert path["step"].values.tolist() == [10 * place for place in range(8)]


def test_coordinates_and_residuals_are_those_of_dense_least_squares(tmp_path):
    theta = parameters_of(BY_NAME["cnn_batchnorm"].model())
    plane = oblique(theta)
    states = [{name: theta[name] + d for name, d in noise(theta, seed, 0.3).items()} for seed in range(10, 15)]
    path = project(write(tmp_path, states), plane)
    parts = {
        "residual": list(theta),
        "residual_weights": [name for name in theta if theta[name].ndim >= 2],
        "residual_bias_bn": [name for name in theta if theta[name].ndim < 2],
    }
    inside = total = 0.0
    for place, state in enumerate(states):
        moved = flat(state) - flat(theta)
        axes = np.stack([flat(direction) for direction in plane.directions], axis=1)
        solution = np.linalg.lstsq(axes, moved, rcond=None)[0]
        np.testing.assert_allclose([path.alpha[place], path.beta[place]], solution, rtol=1e-6)
        ends = np.cumsum([tensor.numel() for tensor in theta.values()])[:-1]
        outside, apart = (
            dict(zip(theta, np.split(part, ends), strict=True)) for part in (moved - axes @ solution, moved)
        )
        for name, names in parts.items():
            share = np.hypot.reduce(np.concatenate([outside[n] for n in names]))
            share /= np.hypot.reduce(np.concatenate([apart[n] for n in names]))
            assert float(path[name][place]) == pytest.approx(share, rel=1e-6)
        assert float(path["distance"][place]) == pytest.approx(np.linalg.norm(moved), rel=1e-6)
        inside += np.linalg.norm(axes @ solution) ** 2
        total += np.linalg.norm(moved) ** 2
    assert path.attrs["captured_share"] == pytest.approx(inside / total, rel=1e-6)


def test_projecting_twice_is_projecting_once(tmp_path):
    theta = parameters_of(MLP.model())
    plane = oblique(theta)
    states = [{name: theta[name] + d for name, d in noise(theta, seed).items()} for seed in range(30, 33)]
    once = project(write(tmp_path / "a", states), plane)
    points = [plane.at(float(a), float(b)) for a, b in zip(once.alpha, once.beta, strict=True)]
    twice = project(write(tmp_path / "b", points), plane)
    np.testing.assert_allclose(twice["alpha"], once["alpha"], atol=1e-5)
    np.testing.assert_allclose(twice["beta"], once["beta"], rtol=1e-5)
    assert twice["residual"].max() < 1e-5


def test_the_origin_has_coordinates_and_residuals_of_0(tmp_path):
    theta = parameters_of(MLP.model())
    path = project(write(tmp_path, [theta]), oblique(theta))
    for name in ("alpha", "beta", "residual", "residual_weights", "residual_bias_bn", "distance"):
        assert path[name].values.tolist() == [0]
    assert np.isnan(path.attrs["captured_share"])


def test_a_random_plane_shows_nothing_of_a_path(tmp_path):
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 60), nn.Linear(60, 3)), 0)
    theta = parameters_of(model)
    n = sum(tensor.numel() for tensor in theta.values())
    states = [{name: theta[name] + d for name, d in noise(theta, seed).items()} for seed in range(40)]
    checkpoints = write(tmp_path, states)
    gaussian = ll.Subspace(theta, [noise(theta, seed) for seed in (100, 101)])
    path = project(checkpoints, gaussian)
    # The square of a unit vector's part in a random plane of n dimensions is 2 / n on average; the mean of 40 such is
    # off by 1 / sqrt(40), and by no more than four times that.
    assert path.attrs["captured_share"] * n / 2 == pytest.approx(1, abs=4 / 40**0.5)
    assert path["residual"].min() > 0.98
    paper = project(checkpoints, ll.random_subspace(model, seed=0))
    assert paper["residual"].min() > 0.98
    assert (paper["residual_bias_bn"] == 1).all()  # the plane holds no biases


# --- gradient descent on a bowl, whose path is known

CURVATURES = np.array([0.5, 2.0, 1.0, 0.25, 3.0])
START = np.array([2.0, -1.0, 0.5, 3.0, -0.25])


class Bowl(nn.Module):
    """Its mean squared output is ``sum(CURVATURES * w**2) / 2``."""

    def __init__(self, start=START):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return x * self.w


def bowl_data():
    x = torch.from_numpy(np.sqrt(CURVATURES * len(CURVATURES) / 2))[None]
    return x, torch.zeros_like(x)


def descend(folder, start=START, n=12, lr=0.2):
    model = Bowl(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, target = bowl_data()
    for step in range(n):
        save_checkpoint(folder, model, step=step, epoch=0, learning_rate=lr)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    return list_checkpoints(folder), start * (1 - lr * CURVATURES) ** np.arange(n)[:, None]


def test_gradient_descent_on_a_bowl_takes_the_analytic_path(tmp_path):
    checkpoints, known = descend(tmp_path)
    zero = {"w": torch.zeros(5).double()}
    tilted = [{"w": torch.tensor(d).double()} for d in ([2.0, 0, 0, 0, 0], [1.0, 0.5, 0, 0, 0])]
    objective = ll.Objective(Bowl(0 * START), bowl_data(), loss="mse", dtype="float64")
    path = project(checkpoints, ll.Subspace(zero, tilted), objective)
    beta = known[:, 1] / 0.5
    np.testing.assert_allclose(path["beta"], beta, atol=1e-12)
    np.testing.assert_allclose(path["alpha"], (known[:, 0] - beta) / 2, atol=1e-12)
    length, outside = np.linalg.norm(known, axis=1), np.linalg.norm(known[:, 2:], axis=1)
    np.testing.assert_allclose(path["residual"], outside / length, atol=1e-12)
    np.testing.assert_allclose(path["distance"], length, atol=1e-12)
    np.testing.assert_allclose(path["loss"].sel(split="train"), known**2 @ CURVATURES / 2, rtol=1e-9)
    of_plane = known[:, :2] ** 2 @ CURVATURES[:2] / 2
    np.testing.assert_allclose(path["plane_loss"].sel(split="train"), of_plane, rtol=1e-9)
    assert path["learning_rate"].values.tolist() == [0.2] * 12
    assert path["loss"].attrs["units"] == path["plane_loss"].attrs["units"]


def test_a_path_in_two_dimensions_lies_in_the_plane_of_its_pca(tmp_path):
    checkpoints, _ = descend(tmp_path, START * [1, 1, 0, 0, 0])
    plane = pca_subspace(checkpoints)
    path = project(checkpoints, plane)
    assert path["residual"].max() < 1e-5
    np.testing.assert_allclose(np.hypot(path["alpha"], path["beta"]), path["distance"], rtol=1e-6)
    for place, axis in enumerate(plane.axes):
        extent = plane.config["extent"][place]
        np.testing.assert_allclose([path[axis].min(), path[axis].max()], extent, rtol=1e-6, atol=1e-9)
        assert float(path["explained_variance"][place]) == plane.config["explained_variance"][place]
        assert float(path["explained_variance_null"][place]) == plane.config["explained_variance_null"][place]
    objective = ll.Objective(checkpoints[-1].load_into(Bowl()), bowl_data(), loss="mse", dtype="float64")
    surface = ll.compute_surface(objective, plane, resolution=9, progress=False)
    around = ll.compute_surface(objective, plane, resolution=9, around={"run": path}, progress=False)
    wider = ll.compute_surface(objective, plane, resolution=9, around=[path, path], margin=1.0, progress=False)
    map_around = ll.compute_curvature(objective, plane, resolution=3, around=path, margin=1.0, progress=False)
    for axis in plane.axes:
        assert surface[axis].min() < path[axis].min()
        assert surface[axis].max() > path[axis].max()
        assert 0 in surface[axis].values
        np.testing.assert_allclose(surface[axis], around[axis], rtol=1e-6, atol=1e-9)
        for far in (wider, map_around):
            assert np.ptp(far[axis].values) > 2 * np.ptp(surface[axis].values)


def test_several_runs_lie_on_one_plane(tmp_path):
    runs = {f"lr {lr}": descend(tmp_path / str(lr), lr=lr)[0] for lr in (0.1, 0.3)}
    plane = pca_subspace(runs)
    paths = {name: project(run, plane) for name, run in runs.items()}
    slow, fast = paths.values()
    assert slow.attrs["subspace_id"] == fast.attrs["subspace_id"] == plane.id
    assert [path.attrs["run"] for path in paths.values()] == ["0.1", "0.3"]
    for axis in plane.axes:
        assert float(slow[axis][0]) == pytest.approx(float(fast[axis][0]))  # they have one start
        extent = plane.config["extent"][plane.axes.index(axis)]
        ends = [min(slow[axis].min(), fast[axis].min()), max(slow[axis].max(), fast[axis].max())]
        np.testing.assert_allclose(ends, extent, rtol=1e-6, atol=1e-9)


# --- what is measured


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_are_those_of_the_checkpoints_own_models(tmp_path, case):
    models, data = trained(case), case.data()
    objective = ll.Objective(models[-1], data, **case.options)
    path = project(write(tmp_path, models), ll.random_subspace(objective, seed=1), objective)
    for place, model in enumerate(models):
        for (split, name), value in case.plain(model, data).items():
            assert float(path[name].sel(split=split)[place]) == pytest.approx(value, rel=1e-4, abs=1e-6)
            own = ll.Objective(model, data, **case.options).at_minimizer()[split, name]
            assert float(path[name].sel(split=split)[place]) == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [("mlp", "frozen"), ("cnn_batchnorm", "frozen"), ("cnn_batchnorm", "recompute"), ("cnn_batchnorm", "interpolate")],
)
def test_the_plane_has_the_value_of_the_surface_there(tmp_path, name, buffers):
    case = BY_NAME[name]
    models = trained(case)
    objective = ll.Objective(models[-1], case.data(), buffers=buffers)
    moves = buffers == "interpolate"
    plane = ll.interpolate(models[-1], models[0], models[1]) if moves else oblique(objective.theta, kind="hessian")
    path = project(write(tmp_path, models), plane, objective)
    coords = {axis: np.sort(path[axis].values) for axis in plane.axes}
    coords = {axis: values[np.append(True, np.diff(values) > 1e-4)] for axis, values in coords.items()}
    surface = ll.compute_surface(objective, plane, coords=coords, progress=False)
    for place in range(len(models)):
        there = surface.sel({axis: float(path[axis][place]) for axis in plane.axes}, method="nearest")
        for var in ("loss", "accuracy"):
            np.testing.assert_allclose(path[f"plane_{var}"][:, place], there[var], rtol=1e-5)
    if moves:  # three of the checkpoints lie in the plane, with their own statistics
        np.testing.assert_allclose(path["plane_loss"][:, [0, 1, 3]], path["loss"][:, [0, 1, 3]], rtol=1e-4)
        assert path["residual"].values[[0, 1, 3]].max() < 1e-5 < path["residual"].values[2]


def test_parameters_that_the_objective_holds_fixed_are_the_checkpoints_own(tmp_path):
    models, data = trained(MLP), MLP.data()
    objective = ll.Objective(models[-1], data, parameters="weight")
    path = project(write(tmp_path, models), ll.random_subspace(objective, seed=0), objective)
    for place, model in enumerate(models):
        for (split, name), value in MLP.plain(model, data).items():
            assert float(path[name].sel(split=split)[place]) == pytest.approx(value, rel=1e-4)
    there = objective.measure(objective.theta)  # and a point of the plane has the objective's
    assert float(path["plane_loss"].sel(split="test")[-1]) == pytest.approx(there["test", "loss"], rel=1e-5)


def test_a_sample_of_examples_gives_standard_errors(tmp_path):
    models = trained(MLP)
    objective = ll.Objective(models[-1], MLP.data(train=50), n_examples=20)
    path = project(write(tmp_path, models), ll.random_subspace(objective), objective)
    assert (path["loss_se"].sel(split="train") > 0).all()
    assert (path["plane_loss_se"].sel(split="train") > 0).all()
    assert path["plane_loss_se"].attrs["units"] == "nat"


def test_a_checkpoint_of_another_type_is_measured_in_the_objectives(tmp_path):
    models = trained(MLP)
    objective = ll.Objective(models[-1], MLP.data())
    plane = ll.random_subspace(objective)
    plain = project(write(tmp_path / "plain", models), plane, objective)
    double = project(write(tmp_path / "double", [model.double() for model in models]), plane, objective)
    np.testing.assert_array_equal(double["loss"], plain["loss"])
    half = project(write(tmp_path / "half", models, dtype="bfloat16"), plane, objective)
    np.testing.assert_allclose(half["loss"], plain["loss"], rtol=0.05)
    assert not np.array_equal(half["loss"], plain["loss"])


def test_a_loss_that_is_nan_stays_nan(tmp_path):
    states = [model.state_dict() for model in trained(MLP, 3)]
    states[1] = {name: 1e30 * tensor for name, tensor in states[1].items()}
    objective = ll.Objective(MLP.model(), MLP.data())
    path = project(write(tmp_path / "run", states), ll.random_subspace(objective), objective, path=tmp_path / "a.nc")
    assert np.isnan(path["loss"].values[:, 1]).all()
    assert np.isfinite(path["loss"].values[:, [0, 2]]).all()
    assert path.attrs["n_nan"] == 1
    assert path["status"].values.tolist() == [1, 1, 1]
    xr.testing.assert_identical(ll.open_result(tmp_path / "a.nc"), path)


def test_neither_the_objective_nor_the_checkpoints_are_changed(tmp_path):
    models = trained(BY_NAME["cnn_batchnorm"])
    objective = ll.Objective(models[-1], BY_NAME["cnn_batchnorm"].data())
    before, minimum = objective.theta_sha256, objective.at_minimizer()
    checkpoints = write(tmp_path, models)
    project(checkpoints, ll.random_subspace(objective), objective)
    assert objective.theta_sha256 == before
    assert objective.measure(objective.theta) == minimum


# --- going on


@pytest.fixture
def resumable(tmp_path):
    models = trained(MLP, 6)
    objective = ll.Objective(models[-1], MLP.data())
    return tmp_path / "run", models, objective, oblique(objective.theta), tmp_path / "a.trajectory.nc"


def test_a_run_that_goes_on_is_projected_where_it_is_new(resumable):
    folder, models, objective, plane, file = resumable
    checkpoints = write(folder, models)
    whole = project(checkpoints, plane, objective)
    project(checkpoints[:2], plane, objective, path=file)
    assert project(checkpoints[:4], plane, objective, path=file).sizes["step"] == 4
    path = project(checkpoints, plane, objective, path=file)
    xr.testing.assert_equal(path, whole)
    xr.testing.assert_identical(ll.open_result(file), path)
    assert path.attrs["captured_share"] == whole.attrs["captured_share"]
    assert path.attrs["n_checkpoints"] == 6
    assert ll.Subspace.open(file.parent / "a.subspace.safetensors").id == plane.id == path.attrs["subspace_id"]
    written = file.stat().st_mtime_ns
    xr.testing.assert_identical(project(folder, plane, objective, path=file), path)
    assert file.stat().st_mtime_ns == written  # there was nothing to write


def test_only_files_that_changed_are_measured_again(resumable):
    folder, models, objective, plane, file = resumable
    path = project(write(folder, models), plane, objective, path=file)
    marked = path.copy(deep=True)
    marked["loss"][:] = 123.0
    ll.save_result(marked, file)
    write(folder, models[:1], first=2)  # step 20 is another checkpoint now
    again = project(list_checkpoints(folder), plane, objective, path=file)
    assert (again["loss"].values[:, [0, 1, 3, 4, 5]] == 123).all()
    np.testing.assert_array_equal(again["loss"].values[:, 2], path["loss"].values[:, 0])
    replaced = project(list_checkpoints(folder), plane, objective, path=file, resume=False)
    np.testing.assert_array_equal(replaced["loss"].values[:, 3:], path["loss"].values[:, 3:])


def test_an_interrupt_keeps_what_is_done(resumable):
    folder, models, _, plane, file = resumable
    calls = {"left": 10**9}

    def loss(output, target):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target, reduction="none")

    objective = ll.Objective(models[-1], MLP.data(), loss=loss)
    checkpoints = write(folder, models)
    whole = project(checkpoints, plane, objective)
    calls["left"] = 18
    with pytest.raises(KeyboardInterrupt):
        project(checkpoints, plane, objective, path=file)
    partial = ll.open_result(file)
    n_done = int((partial["status"] == 1).sum())
    assert 0 < n_done < 6
    assert partial.attrs["n_checkpoints"] == n_done
    calls["left"] = 10**9
    xr.testing.assert_equal(project(checkpoints, plane, objective, path=file), whole)


def test_a_path_of_something_else_is_not_gone_on_with(resumable):
    folder, models, objective, plane, file = resumable
    checkpoints = write(folder, models)
    project(checkpoints, plane, objective, path=file)
    other = ll.Objective(models[0], MLP.data())
    for asked, word in (
        ((oblique(objective.theta, 1), objective), "differs in the subspace"),
        ((plane, ll.Objective(models[-1], MLP.data(train=5))), r"differs in the examples \(data_sha256"),
        ((plane, ll.Objective(models[-1], MLP.data(), metrics=[])), "the configuration"),
        ((oblique(other.theta), other), r"the minimizer.*the subspace"),
        ((plane, None), "was projected with an objective, and is asked for without one"),
    ):
        with pytest.raises(ResumeMismatch, match=word):
            project(checkpoints, *asked, path=file)
    bare = file.with_name("bare.trajectory.nc")
    project(checkpoints, plane, path=bare)
    xr.testing.assert_identical(project(checkpoints, plane, path=bare), ll.open_result(bare))
    with pytest.raises(ResumeMismatch, match="without an objective"):
        project(checkpoints, plane, objective, path=bare)
    with pytest.raises(ResumeMismatch, match="differs in the subspace"):
        project(checkpoints, oblique(objective.theta, 1), path=bare)
    surface = file.with_name("b.surface.nc")
    ll.compute_surface(objective, plane, resolution=3, path=surface, progress=False)
    with pytest.raises(ResumeMismatch, match="holds a surface, not a trajectory"):
        project(checkpoints, plane, objective, path=surface)


def test_a_random_subspace_is_not_kept_beside(tmp_path):
    objective = ll.Objective(MLP.model(), MLP.data())
    project(write(tmp_path / "run", trained(MLP)), ll.random_subspace(objective), path=tmp_path / "a.trajectory.nc")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.trajectory.nc", "run"]


def test_a_run_that_is_being_written(tmp_path):
    model, file = MLP.model(), tmp_path / "a.trajectory.nc"
    plane = oblique(parameters_of(model))
    with Recorder(tmp_path / "mine", every=1) as recorder:
        recorder.start(model)
        for step in range(4):
            with torch.no_grad():
                model[0].weight.add_(0.1)
            recorder.step(model, epoch=step, learning_rate=0.5)
        run = open_run(tmp_path / "mine")
        n_seen = project(run, plane, path=file).sizes["step"]
    path = project(run, plane, path=file)
    assert n_seen <= path.sizes["step"] == 5
    assert path.attrs["run"] == "mine"
    assert path.attrs["model"] == "Sequential"
    assert path["learning_rate"].values[1:].tolist() == [0.5] * 4
    np.testing.assert_array_equal(project(tmp_path / "mine", plane)["alpha"], path["alpha"])


# --- bad input


def test_one_run_gives_one_result(tmp_path):
    checkpoints = write(tmp_path, trained(MLP))
    plane = oblique(parameters_of(MLP.model()))
    for several in ({"sgd": checkpoints}, [checkpoints, checkpoints], [tmp_path, tmp_path]):
        with pytest.raises(
            ValueError, match=r"one training.*\{name: project_trajectory\(run, plane\) for name, run in"
        ):
            project(several, plane)


@pytest.mark.parametrize(
    ("run", "plane", "objective", "message"),
    [
        (3, None, None, "run is a int; give a Run"),
        ([], None, None, "no complete checkpoint|no run"),
        (None, "pca", None, r"subspace is a str; give one Subspace, pca_subspace\(run\)"),
        (None, None, "model", r"objective is a str; give Objective\(model, data\)"),
    ],
)
def test_what_is_no_run_subspace_or_objective_is_named(tmp_path, run, plane, objective, message):
    checkpoints = write(tmp_path, trained(MLP, 1))
    with pytest.raises(ValueError, match=message):
        project(checkpoints if run is None else run, plane or oblique(parameters_of(MLP.model())), objective)


def test_two_checkpoints_of_one_step_are_named(tmp_path):
    checkpoints = write(tmp_path / "a", trained(MLP)) + write(tmp_path / "b", trained(MLP, 1))
    with pytest.raises(ValueError, match=r"step 0 is there twice: .*a/step_00000000\S+ and .*b/step_00000000"):
        project(checkpoints, oblique(parameters_of(MLP.model())))


def test_checkpoints_of_different_models_are_named_with_the_first_difference(tmp_path):
    wider = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))
    plane = oblique(parameters_of(MLP.model()))
    with pytest.raises(ValueError, match=r"step_00000010\S+ is of another model.*0\.(bias|weight)"):
        project(write(tmp_path / "a", [MLP.model(), wider]), plane)
    checkpoints = write(tmp_path / "b", [wider])
    with pytest.raises(
        ValueError, match=r"step_00000000\S+ does not fit this subspace \(misshapen: 0\.weight \(9, 5\)"
    ):
        project(checkpoints, plane)
    deeper = write(tmp_path / "c", [nn.Sequential(*MLP.model(), nn.Linear(3, 3))])
    with pytest.raises(
        ValueError, match=r"holds '3\.(bias|weight)', which this subspace lacks\. Is it of another model"
    ):
        project(deeper, plane)
    objective = ll.Objective(MLP.model(), MLP.data())
    with pytest.raises(ValueError, match=r"does not fit this Sequential .*extra 3\.(bias|weight)"):
        project(deeper, plane, objective)


def test_a_subspace_of_another_model_than_the_objective_is_refused(tmp_path):
    objective = ll.Objective(BY_NAME["cnn_batchnorm"].model(), BY_NAME["cnn_batchnorm"].data())
    with pytest.raises(ValueError, match="the subspace does not fit this objective"):
        project(write(tmp_path, trained(MLP)), oblique(parameters_of(MLP.model())), objective)


def broken_run(folder, how):
    """Write five checkpoints, the third of them unusable."""
    states = [model.state_dict() for model in trained(MLP, 5)]
    if how == "nan":
        states[2]["0.weight"][0, 0] = float("nan")
    checkpoints = write(folder, states)
    if how == "missing":
        checkpoints[2].path.unlink()
    if how == "damaged":
        checkpoints[2].path.write_bytes(checkpoints[2].path.read_bytes()[:-20])
    return checkpoints


@pytest.mark.parametrize("how", ["nan", "missing", "damaged"])
def test_a_checkpoint_that_cannot_be_used_stops_or_is_left_out(tmp_path, how, caplog):
    checkpoints = broken_run(tmp_path / "run", how)
    objective = ll.Objective(MLP.model(), MLP.data())
    plane, file = ll.random_subspace(objective), tmp_path / "a.trajectory.nc"
    with pytest.raises(ValueError, match=r"step_00000020.*damaged='skip'"):
        project(checkpoints, plane, objective, path=file)
    with caplog.at_level(logging.WARNING):
        path = project(checkpoints, plane, objective, path=file, damaged="skip")
    assert "step 20 is left out" in caplog.text
    assert path["step"].values.tolist() == [0, 10, 30, 40]
    assert (path.attrs["n_checkpoints"], path.attrs["n_skipped"]) == (4, 1)
    xr.testing.assert_identical(project(checkpoints, plane, objective, path=file, damaged="skip"), path)
    save_checkpoint(tmp_path / "run", trained(MLP, 5)[2], step=20, epoch=2)  # written whole after all
    mended = project(list_checkpoints(tmp_path / "run"), plane, objective, path=file)
    assert (mended.sizes["step"], mended.attrs["n_skipped"]) == (5, 0)


def test_where_nothing_can_be_used_there_is_no_path(tmp_path):
    states = [{name: tensor * float("nan") for name, tensor in MLP.model().state_dict().items()}]
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        project(write(tmp_path, states), oblique(parameters_of(MLP.model())), damaged="skip")
    with pytest.raises(ValueError, match=r"damaged='ignore' is not one of 'stop', 'skip'"):
        project(list_checkpoints(tmp_path), oblique(parameters_of(MLP.model())), damaged="ignore")


def test_a_sketch_has_no_coordinates(tmp_path):
    theta = parameters_of(MLP.model())
    checkpoints = write(tmp_path, [{"lltoolkit.sketch": sketch(theta, 8)}])
    with pytest.raises(ValueError, match=r"only a sketch.*trajectory_statistics"):
        project(checkpoints, oblique(theta), damaged="skip")
