"""The command line, typed as a user would."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lltoolkit as ll
from lltoolkit.cli import app

COMMANDS = ["demo", "train", "surface", "curvature", "sharpness", "trajectory", "plot", "info"]


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny data set and two sets of weights, as a user has them on disk."""
    folder = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)
    arrays = {
        f"{kind}_{split}": random.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8) if kind == "x" else np.arange(n) % 3
        for split, n in (("train", 12), ("test", 6))
        for kind in "xy"
    }
    np.savez(folder / "data.npz", **arrays)
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = ll.zoo.build_model("resnet8", shortcut="none", n_classes=3, in_channels=1, input_size=8)
        torch.save(model.state_dict(), folder / f"w{seed}.pt")
    return folder


def surface_args(folder, out, **options):
    given = {"model": "resnet8", "shortcut": "none", "weights": folder / "w0.pt", "data": folder / "data.npz"} | options
    return ["surface", "--out", out, *(part for name, value in given.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    assert f"Example: lltoolkit {command}" in " ".join(run(command, "--help").split())


def test_help_is_light():
    code = "import sys, lltoolkit.cli; sys.exit(any(name in sys.modules for name in ('torch', 'xarray', 'matplotlib')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_surface_equals_the_library(folder, tmp_path):
    output = run(*surface_args(folder, tmp_path / "a.surface.nc", resolution="3,5", examples=8, seed=4, span="-0.5,1"))
    assert "15 cells" in output
    assert "GB of memory" in output
    data = ll.zoo.load_data(folder / "data.npz")
    model = ll.zoo.build_model("resnet8", shortcut="none", n_classes=3, in_channels=1, input_size=8)
    objective = ll.Objective(ll.zoo.load_weights(model, folder / "w0.pt"), data, n_examples=8)
    plane = ll.random_subspace(objective, seed=4)
    expected = ll.compute_surface(objective, plane, span=(-0.5, 1), resolution={"alpha": 3, "beta": 5}, progress=False)
    assert ll.open_result(tmp_path / "a.surface.nc").equals(expected)


def test_surface_to_other_weights_is_the_line_between(folder, tmp_path):
    run(*surface_args(folder, tmp_path / "line.surface.nc", to=folder / "w1.pt", resolution=5))
    line = ll.open_result(tmp_path / "line.surface.nc")
    assert line["alpha"].values.tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert line.attrs["subspace_kind"] == "interpolation"
    assert ll.Subspace.open(tmp_path / "line.subspace.safetensors").id == line.attrs["subspace_id"]


def test_train_then_info_and_plot(tmp_path):
    run("train", "mlp", "--data", "digits", "--epochs", 1, "--out", tmp_path / "run")
    trained = ll.zoo.open_run(tmp_path / "run")
    assert len(trained.checkpoints) == 2
    run("surface", "--run", tmp_path / "run", "--examples", 20, "--resolution", 5, "--out", tmp_path / "r.surface.nc")
    objective = ll.Objective(trained.model, ll.zoo.load_data("digits"), n_examples=20)
    ll.compute_surface(
        objective, ll.random_subspace(objective), resolution=5, path=tmp_path / "m.surface.nc", progress=False
    )
    assert ll.open_result(tmp_path / "r.surface.nc").equals(ll.open_result(tmp_path / "m.surface.nc"))
    described = run("info", tmp_path / "m.surface.nc")
    for fact in ("mlp", "25 computed", "train 20 of 1437", "normalize: filter", "theta_sha256"):
        assert fact in described
    for kind in ("contour", "slice", "surface"):
        run("plot", tmp_path / "m.surface.nc", "--kind", kind, "--style", "icml", "--out", tmp_path / f"{kind}.pdf")
        assert (tmp_path / f"{kind}.pdf").read_bytes().startswith(b"%PDF")
    run("plot", tmp_path / "m.surface.nc", "--form", "lines")
    assert (tmp_path / "m.contour.png").read_bytes().startswith(b"\x89PNG")
    both = [tmp_path / "m.surface.nc", tmp_path / "r.surface.nc"]
    run("plot", *both, "--out", tmp_path / "both.svg")
    assert {"<!-- m -->", "<!-- r -->"} <= set(re.findall("<!-- . -->", (tmp_path / "both.svg").read_text()))
    assert "--kind grid" in run("plot", *both, "--kind", "slice", code=1)


def test_a_surface_of_a_run_takes_its_normalization(tmp_path):
    args = ["--epochs", 1, "--normalize", "none", "--out", tmp_path / "run"]
    assert "epoch 1: train loss" in run("train", "mlp", *args)
    assert "accuracy" in run("train", "mlp", *args, "--no-resume")
    out = tmp_path / "r.surface.nc"
    run("surface", "--run", tmp_path / "run", "--examples", 10, "--resolution", 3, "--out", out)
    assert ll.open_result(out).attrs["data_normalize"] == "none"
    assert "holds a history" in run("plot", tmp_path / "run" / "run.history.nc", code=1)


def test_a_run_on_data_of_no_name_asks_for_them(folder, tmp_path):
    data = ll.zoo.load_data(folder / "data.npz", normalize=(0.5, 0.25))
    ll.zoo.train("mlp", data, epochs=1, out=tmp_path / "run")
    args = ["surface", "--run", tmp_path / "run", "--resolution", 3, "--out", tmp_path / "r.surface.nc"]
    assert "--data is missing" in run(*args, code=1)
    assert "--normalize is missing" in run(*args, "--data", folder / "data.npz", code=1)
    run(*args, "--data", folder / "data.npz", "--normalize", "default")


def test_a_volume_is_drawn_at_a_plane_and_a_line_as_a_slice(folder, tmp_path):
    run(*surface_args(folder, tmp_path / "v.surface.nc", dims=3, resolution=3))
    run("plot", tmp_path / "v.surface.nc", "--gamma", 1)
    assert (tmp_path / "v.contour.png").exists()
    run(*surface_args(folder, tmp_path / "l.surface.nc", dims=1, resolution=3))
    assert "--kind slice" in run("plot", tmp_path / "l.surface.nc", "--kind", "scene", code=1)
    assert "make it first" in run("plot", tmp_path / "l.surface.nc", "--out", tmp_path / "no" / "l.png", code=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction-normalize": "filtr"}, "Did you mean 'filter'"),
        ({"resolution": "1"}, "of at least 2"),
        ({"resolution": "3,3,3"}, "3 numbers"),
        ({"span": "nan"}, "not finite"),
        ({"span": "wide"}, "give a number S"),
        ({"model": "resnt8"}, "Did you mean 'resnet"),
        ({"buffers": "thawed"}, "frozen"),
        ({"device": "abacus"}, "Use 'auto' or 'cpu'"),
        ({"data": "digts"}, "Did you mean 'digits'"),
        ({"run": "runs/none"}, "either --run"),
        ({"to": "w1.pt", "seed": 3}, "leave --dims, --seed"),
    ],
)
def test_bad_input_is_one_line_with_the_next_step(folder, tmp_path, options, message):
    output = run(*surface_args(folder, tmp_path / "x.surface.nc", **options), code=1)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "x.surface.nc").exists()


def test_a_file_of_other_weights_is_refused_and_kept(folder, tmp_path):
    out = tmp_path / "x.surface.nc"
    run(*surface_args(folder, out, resolution=3))
    before = out.read_bytes()
    output = run(*surface_args(folder, out, resolution=3, weights=folder / "w1.pt"), code=1)
    assert "the minimizer (weights or buffers)" in output
    assert "--no-resume" in output
    assert out.read_bytes() == before


def test_missing_file_names_its_neighbour(folder, tmp_path):
    run(*surface_args(folder, tmp_path / "mine.surface.nc", resolution=3))
    assert "Did you mean 'mine.surface.nc'" in run("info", tmp_path / "mein.surface.nc", code=1)
