"""``lltoolkit curvature`` and ``lltoolkit sharpness``, typed as a user would."""

import pytest
import xarray as xr
from typer.testing import CliRunner

import lltoolkit as ll
from lltoolkit.cli import app


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short trainings of a small network, as `lltoolkit train` leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        ll.zoo.train(
            "mlp", ll.zoo.load_data("digits"), epochs=1, lr=0.02, seed=seed, out=folder / f"s{seed}", progress=False
        )
    return folder


def test_curvature_equals_the_library_and_is_drawn(runs, tmp_path):
    out = tmp_path / "a.curvature.nc"
    told = run("curvature", "--run", runs / "s0", "--examples", 20, "--resolution", 2, "--span", 0.5, "--out", out)
    assert "Hessian-vector products" in told
    assert "audited" in told
    objective = ll.Objective(ll.zoo.open_run(runs / "s0").model, ll.zoo.load_data("digits"), n_examples=20)
    plane = ll.random_subspace(objective, seed=0)
    xr.testing.assert_equal(
        ll.open_result(out), ll.compute_curvature(objective, plane, resolution=2, span=0.5, progress=False)
    )
    assert run("plot", out).strip().endswith("a.curvature.contour.png")
    assert (tmp_path / "a.curvature.contour.png").stat().st_size > 10_000
    assert "eig_ratio" in run("info", out)


def test_sharpness_of_runs_equals_the_library_and_is_drawn(runs, tmp_path):
    out = tmp_path / "t.sharpness.nc"
    told = run("sharpness", runs / "s0", runs / "s1", "--measures", "weight_norm,trace", "--examples", 30, "--out", out)
    assert "tau" in told
    table = ll.open_result(out)
    assert list(table["model"].values) == ["s0", "s1"]
    assert list(table["seed"].values) == [0, 1]
    data = ll.zoo.load_data("digits")
    models = {name: ll.zoo.open_run(runs / name).model for name in ("s0", "s1")}
    objectives = {name: ll.Objective(model, data, n_examples=30) for name, model in models.items()}
    found = ll.compute_sharpness(objectives, measures=["weight_norm", "trace"], progress=False)
    xr.testing.assert_equal(
        table["value"].drop_vars(list(table["value"].coords)), found["value"].drop_vars(list(found["value"].coords))
    )
    assert "weight_norm" in run("info", out)
    assert run("plot", out, "--against", "test_error").strip().endswith("t.sharpness.png")


def test_sharpness_while_training(runs, tmp_path):
    out = tmp_path / "s.sharpness.nc"
    run("sharpness", runs / "s0", "--training", "--measures", "lambda_max", "--examples", 30, "--out", out)
    assert ll.open_result(out)["value"].dims == ("step", "measure")


def test_bad_input_is_told(runs, tmp_path):
    out = tmp_path / "t.sharpness.nc"
    assert "Did you mean 'trace'" in run("sharpness", runs / "s0", "--measures", "trac", "--out", out, code=1)
    assert "against" in run("sharpness", runs / "s0", "--against", "foo", "--out", out, code=1)
    assert "one run" in run("sharpness", runs / "s0", runs / "s1", "--training", "--out", out, code=1)
    assert "no run" in run("sharpness", runs / "nothing", "--out", out, code=1)
    map_args = ["curvature", "--run", runs / "s0", "--out", tmp_path / "a.curvature.nc", "--examples", 10]
    assert "selects none" in run(*map_args, "--parameters", "^nothing$", code=1)
    assert "tol" in run(*map_args, "--tol", 2, code=1)
    assert ".curvature.nc" in run("curvature", "--run", runs / "s0", "--out", tmp_path / "a.txt", code=1)
