"""Make the study of PROTOCOL.md: train, project the paths, compute the surfaces around them, judge the claims.

``python data/optimizer-paths/make.py --work DIR`` does all of it, some two hours on one core; each stage goes on where
it was stopped. ``--ship data/optimizer-paths/results`` after the judging copies what is small.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import xarray as xr
from draw import draw_figures
from judge import judge

import lltoolkit as ll
from lltoolkit.errors import require_choice

SMALL, LARGE = 16, 230  # the large one is 16 % of the training images
VGG = {
    f"{optimizer}-{batch}-wd{decay:g}": {"optimizer": optimizer, "lr": lr, "batch_size": size, "weight_decay": decay}
    for optimizer, lr in (("sgd", 0.1), ("adam", 1e-3))
    for decay in (5e-4, 0.0)
    for batch, size in (("small", SMALL), ("large", LARGE))
}
SCHEDULES = ("step", "constant", "cosine", "one_cycle")
EPOCHS = {"vgg9": 40, "schedules": 60}
CHOSEN = "sgd-small-wd0.0005"  # shown in random planes, and beside Adam
BESIDE = "adam-small-wd0.0005"
RESOLUTION = 25
TOLERANCE = 0.05
N_EXAMPLES = 500
STAGES = ("train", "paths", "judge")
SMALL_FILES = ("*.surface.nc", "*.trajectory.nc", "*.statistics.nc", "*.json", "*.png")


def train(work: Path) -> None:
    """Train what is not trained yet, into ``work/runs/<set>/<name>``."""
    data = ll.zoo.load_data("digits")
    recipe: dict[str, Any] = {"momentum": 0.9, "seed": 0, "augment": "none", "device": "cpu"}
    for name, own in VGG.items():
        ll.zoo.train("vgg9", data, out=work / "runs/vgg9" / name, epochs=EPOCHS["vgg9"], **recipe, **own)
    for schedule in SCHEDULES:
        own = {"optimizer": "sgd", "lr": 0.1, "batch_size": SMALL, "weight_decay": 5e-4, "schedule": schedule}
        ll.zoo.train(
            "resnet8", data, out=work / "runs/schedules" / schedule, epochs=EPOCHS["schedules"], **recipe, **own
        )


def follow(work: Path) -> None:
    """Project the paths and compute the surfaces around them, into ``work/results``."""
    results = work / "results"
    results.mkdir(exist_ok=True)
    runs = {name: ll.zoo.open_run(work / "runs/vgg9" / name) for name in VGG}
    objectives = {name: objective_of(run) for name, run in runs.items()}
    for name, run in runs.items():
        in_plane({"": run}, ll.pca_subspace(run), objectives[name], results / name)
        keep(ll.trajectory_statistics(run), results / f"{name}.statistics.nc")
    run, objective = runs[CHOSEN], objectives[CHOSEN]
    random = ll.random_subspace(objective, seed=0)
    in_plane({"": run}, random, objective, results / "random")
    in_plane({"": run}, towards_start(run, random), objective, results / "random-and-start")
    both = {"sgd": run, "adam": runs[BESIDE]}
    in_plane(both, ll.pca_subspace(list(both.values())), objective, results / "together")
    for schedule in SCHEDULES:
        run = ll.zoo.open_run(work / "runs/schedules" / schedule)
        in_plane({"": run}, ll.pca_subspace(run), objective_of(run), results / f"schedule-{schedule}")
        keep(ll.trajectory_statistics(run), results / f"schedule-{schedule}.statistics.nc")


def objective_of(run: ll.zoo.Run) -> ll.Objective:
    """Measure 500 training images, drawn with seed 0, and all test images."""
    return ll.Objective(run.model, ll.zoo.load_data("digits"), n_examples=N_EXAMPLES, device="cpu")


def towards_start(run: ll.zoo.Run, random: ll.Subspace) -> ll.Subspace:
    """Span a plane by one random direction and the displacement to the initial weights."""
    initial = run.checkpoints[0].load()
    displacement = {name: initial[name] - final for name, final in random.origin.items()}
    return ll.Subspace(random.origin, [displacement, random.directions[0]], kind="custom", options={"seed": 0})


def in_plane(runs: Mapping[str, ll.zoo.Run], plane: ll.Subspace, objective: ll.Objective, stem: Path) -> None:
    """Project runs on one plane, and compute the surface around all of them."""
    paths = {}
    for name, run in runs.items():
        file = stem.with_name(f"{stem.name}{'-' if name else ''}{name}.trajectory.nc")
        paths[name] = ll.project_trajectory(run, plane, objective, path=file)
        typer.echo(f"{file.name}: {100 * float(paths[name].attrs['captured_share']):.1f} % of the path is in the plane")
    ll.compute_surface(
        objective,
        plane,
        around=list(paths.values()),
        resolution=RESOLUTION,
        tolerance=TOLERANCE,
        path=stem.with_name(f"{stem.name}.surface.nc"),
    )


def keep(result: xr.Dataset, file: Path) -> None:
    """Write a result unless it is there."""
    if not file.exists():
        ll.save_result(result, file)


def main(
    work: Annotated[Path, typer.Option(help="Where trainings and results are kept while they are made.")],
    stage: Annotated[str, typer.Option(help=f"{', '.join(STAGES)}; default all.")] = "",
    ship: Annotated[Path | None, typer.Option(help="Copy what is small there, after the judging.")] = None,
) -> None:
    """Run one stage, or all."""
    if stage:
        require_choice("--stage", stage, STAGES)
    torch.set_num_threads(1)
    if stage in ("", "train"):
        train(work)
    if stage in ("", "paths"):
        follow(work)
    if stage in ("", "judge"):
        results = work / "results"
        verdicts = judge(results, list(VGG))
        (results / "verdicts.json").write_text(json.dumps(verdicts, indent=1))
        draw_figures(results, list(VGG))
        typer.echo(json.dumps(verdicts["claims"], indent=1))
        if ship is not None:
            ship.mkdir(exist_ok=True)
            for pattern in SMALL_FILES:
                for file in results.glob(pattern):
                    shutil.copy(file, ship)


if __name__ == "__main__":
    typer.run(main)
