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


def test_a_recording_of_ones_own_loop(folder, tmp_path):
    """It says of which network of the zoo it is, and never on what it was trained."""
    import torch

    zoo = ll.zoo.open_run(folder / "sgd").model
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for name, model in (("zoo", zoo), ("own", own)):
        with ll.Recorder(tmp_path / name) as recorder:
            recorder.start(model)
            for epoch in range(3):
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, std=0.1)
                recorder.step(model, epoch=epoch)
    args = ["--examples", 10, "--out", tmp_path / "p.trajectory.nc"]
    assert "--data is missing" in run("trajectory", tmp_path / "zoo", *args, code=1)
    run("trajectory", tmp_path / "zoo", "--data", "digits", *args)
    assert np.isfinite(ll.open_result(tmp_path / "p.trajectory.nc")["loss"]).all()
    told = run("trajectory", tmp_path / "own", "--data", "digits", *args, code=1)
    assert "of a Sequential" in told
    assert "give --model and --data, or --no-loss" in told
    told = run("trajectory", tmp_path / "own", "--no-loss", "--plane", "random", *args, code=1)
    assert "or another --plane" in told


@pytest.mark.parametrize("how", ["damaged", "nan"])
def test_what_cannot_be_used_is_left_out_everywhere(folder, tmp_path, how):
    """Network, plane and path all end at the last checkpoint that can be used."""
    import torch

    checkpoints = ll.zoo.open_run(folder / "sgd").checkpoints
    for number, checkpoint in enumerate(checkpoints):
        torch.save(checkpoint.load(), tmp_path / f"epoch_{number}.pt")
    last = tmp_path / f"epoch_{len(checkpoints) - 1}.pt"
    bad = {name: tensor * float("nan") for name, tensor in checkpoints[-1].load().items()}
    last.write_bytes(b"") if how == "damaged" else torch.save(bad, last)
    args = ["trajectory", tmp_path, "--model", "mlp", "--data", "digits", "--examples", 10]
    args += ["--out", tmp_path / "p.trajectory.nc"]
    if how == "damaged":
        assert "is damaged" in run(*args, code=1)
    assert "--damaged skip" in run(*args, "--no-loss", code=1)
    assert "1 checkpoints skipped" in run(*args, "--damaged", "skip")
    path = ll.open_result(tmp_path / "p.trajectory.nc")
    assert path["step"].values.tolist() == [0, 1, 2, 3]
    assert float(path["residual"][-1]) == 0
    np.testing.assert_allclose(path["loss"][:, -1], path["plane_loss"][:, -1], rtol=1e-5)


def test_files_of_lightning_have_a_prefix(folder, tmp_path):
    import torch

    for number, checkpoint in enumerate(ll.zoo.open_run(folder / "sgd").checkpoints):
        state = {f"net.{name}": tensor for name, tensor in checkpoint.load().items()} | {"metric": torch.zeros(1)}
        torch.save({"state_dict": state, "global_step": 10 * number}, tmp_path / f"epoch={number}.ckpt")
    out = tmp_path / "p.trajectory.nc"
    args = ["trajectory", tmp_path, "--model", "mlp", "--data", "digits", "--examples", 10, "--out", out]
    run(*args, "--prefix", "net.")
    assert ll.open_result(out)["step"].values.tolist() == [0, 10, 20, 30, 40]


def test_batch_norm_elsewhere_than_at_the_end_takes_recomputed_statistics(tmp_path):
    import torch

    model = ll.zoo.build_model("resnet8", n_classes=10, in_channels=1, input_size=8)
    for step in range(4):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        torch.save(model.state_dict(), tmp_path / f"step{step}.pt")
    args = ["trajectory", tmp_path, "--model", "resnet8", "--data", "digits", "--examples", 10, "--origin", "start"]
    args += ["--out", tmp_path / "p.trajectory.nc"]
    assert "--buffers recompute" in run(*args, code=1)
    run(*args, "--buffers", "recompute")
    assert float(ll.open_result(tmp_path / "p.trajectory.nc")["residual"][0]) == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--plane", "pac"], "did you mean 'pca'"),
        (["--no-loss", "--surface", "s.surface.nc"], "leave one of them out"),
        (["--origin", "end"], "final"),
        (["--model", "mlp"], "leave --model out"),
        (["--damaged", "ignore"], "skip"),
        (["--plane", "random", "--center", "mean"], "--center are of --plane pca"),
        (["--plane", "none.safetensors"], "none.safetensors does not exist"),
        (["--resolution", 5], "give --surface too"),
        (["--surface", "s.surface.nc", "--resolution", 1], "at least 2"),
    ],
)
def test_bad_options_say_what_to_do(folder, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    told = run("trajectory", folder / "sgd", *args, "--out", tmp_path / "p.trajectory.nc", code=1)
    assert said.lower() in told.lower()
