"""``lltoolkit trajectory`` and the pictures of paths, as their user types them."""

import numpy as np
import pytest
from typer.testing import CliRunner

import lltoolkit as ll
from lltoolkit.cli import app


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold two short runs, one of SGD and one of Adam, from the same weights."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("sgd", 0.05), ("adam", 1e-3)):
        ll.zoo.train(
            "mlp", ll.zoo.load_data("digits"), optimizer=name, lr=lr, epochs=4, out=folder / name, progress=False
        )
    return folder


def test_a_path_its_surface_and_their_pictures(folder, tmp_path):
    out, below = tmp_path / "p.trajectory.nc", tmp_path / "p.surface.nc"
    args = ["--examples", 30, "--resolution", 5, "--surface", below, "--out", out]
    told = run("trajectory", folder / "sgd", *args)
    assert "5 checkpoints" in told
    assert "a random walk's" in told
    path, surface = ll.open_result(out), ll.open_result(below)
    run_ = ll.zoo.open_run(folder / "sgd")
    plane = ll.pca_subspace(run_)
    objective = ll.Objective(run_.model, ll.zoo.load_data("digits"), n_examples=30)
    assert path.attrs["subspace_id"] == surface.attrs["subspace_id"] == plane.id
    alone = ll.project_trajectory(run_, plane, objective, progress=False)
    np.testing.assert_array_equal(path["plane_loss"], alone["plane_loss"])
    assert surface["alpha"].min() < path["alpha"].min()
    for name, more in (
        ("path.pdf", []),
        ("loss.pdf", ["--kind", "loss"]),
        ("lines.png", ["--surface", below, "--color", "epoch"]),
    ):
        run("plot", out, *more, "--out", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    assert "--surface" in run("plot", out, "--out", tmp_path / "film.gif", code=1)


def test_several_runs_share_a_plane(folder, tmp_path):
    run("trajectory", folder / "sgd", folder / "adam", "--no-loss", "--out", tmp_path / "p.trajectory.nc")
    files = [tmp_path / f"p-{name}.trajectory.nc" for name in ("sgd", "adam")]
    sgd, adam = map(ll.open_result, files)
    assert sgd.attrs["subspace_id"] == adam.attrs["subspace_id"]
    assert float(sgd["residual"][-1]) == 0  # the plane stands at the end of the first
    np.testing.assert_allclose(sgd["alpha"][0], adam["alpha"][0], rtol=1e-4)  # both begin at the same weights
    run("plot", *files, "--out", tmp_path / "both.svg")
    assert {"sgd", "adam"} <= {ll.open_result(file).attrs["run"] for file in files}


def test_checkpoints_of_ones_own(folder, tmp_path):
    import torch

    for number, checkpoint in enumerate(ll.zoo.open_run(folder / "sgd").checkpoints):
        torch.save({"state_dict": checkpoint.load()}, tmp_path / f"epoch_{number}.pt")
    args = ["trajectory", tmp_path, "--pattern", "epoch_*.pt", "--out", tmp_path / "own.trajectory.nc"]
    assert "give --model and --data" in run(*args, code=1)
    run(*args, "--model", "mlp", "--data", "digits", "--examples", 10)
    own = ll.open_result(tmp_path / "own.trajectory.nc")
    assert own["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(own["loss"]).all()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--plane", "pac"], "did you mean 'pca'"),
        (["--no-loss", "--surface", "s.surface.nc"], "leave one of them out"),
        (["--origin", "end"], "final"),
        (["--model", "mlp"], "leave --model out"),
        (["--damaged", "ignore"], "skip"),
    ],
)
def test_bad_options_say_what_to_do(folder, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    told = run("trajectory", folder / "sgd", *args, "--out", tmp_path / "p.trajectory.nc", code=1)
    assert said.lower() in told.lower()
