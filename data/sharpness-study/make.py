"""Make the study of PROTOCOL.md: train the minimizers, measure their sharpness, judge the claims.

``python data/sharpness-study/make.py --work DIR`` does all of it. Each stage goes on where it was stopped and does what
can be done: measuring takes the trainings that have finished. ``--ship data/sharpness-study`` after the judging copies
what is small.
"""

import json
import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import xarray as xr
from judge import EQUAL, judge, unnormalized_rise
from minimizers import DIVERGED, Minimizer, load, minimizers
from ship import ship_results
from torch import nn
from torch.nn import functional

import lltoolkit as ll
from lltoolkit.errors import require_choice

EQUAL_LOSS = 0.01  # nat
N_MEASURED = 500  # training images on which sharpness and training loss are measured, the same for all models
LINE = np.array([0.0, 0.1, 0.9, 1.0])  # both ends and a tenth inwards: where un-normalized sharpness is read off
SHOWN = np.linspace(-0.5, 1.5, 41)  # of the pairs that are drawn; it holds LINE
BINS = np.linspace(-0.5, 0.5, 202)  # of the weights; the outermost bins hold what lies beyond
PAIRED = ("digits-grid", "digits-vgg", "cifar10-grid")
MEASURED = ("digits-grid", EQUAL, "digits-shapes", "digits-vgg", "cifar10-grid")
STAGES = ("train", "measure", "judge")


def train(chosen: Sequence[Minimizer], work: Path, source: str) -> None:
    """Train what is not trained yet, into ``work/<family>/<name>``; the test images are not looked at."""
    for number, each in enumerate(chosen, 1):
        folder = each.folder(work)
        if _is_finished(folder) or each.has_diverged(work):
            continue
        started = time.monotonic()
        data = {"train": load(each.data, work, source)["train"]}
        try:
            run = ll.zoo.train(
                each.model, data, model_options=each.options, out=folder, device="cpu", progress=False, **each.recipe
            )
            told = f"train loss {float(run.history['loss'].sel(split='train')[-1]):.2g}"
        except ll.DivergedTraining as error:
            (folder / DIVERGED).write_text(str(error))
            told = "diverged"
        typer.echo(
            f"{time.strftime('%H:%M:%S')}  {number}/{len(chosen)}  {each.family}/{each.name}  {told}  "
            f"{time.monotonic() - started:.0f} s"
        )


def measure(chosen: Sequence[Minimizer], work: Path, source: str, family: str = "") -> None:
    """Measure what is trained: a table ``work/<family>.sharpness.nc`` each, and lines between small and large batch."""
    for name in MEASURED if not family else (family,):
        trained_as = ("digits-grid", "digits-constant") if name == EQUAL else (name,)
        runs = {each: each.folder(work) for each in chosen if each.family in trained_as}
        runs = {each: ll.zoo.open_run(folder) for each, folder in runs.items() if _is_finished(folder)}
        if not runs:
            continue
        data = load(next(iter(runs)).data, work, source)
        found = {each.name: (each, run, run.checkpoints[-1]) for each, run in runs.items()}
        if name == EQUAL:
            grid = (each for each in chosen if each.family == "digits-grid" and each.recipe["seed"] == 0)
            open_ones = [one for one in grid if not (_is_finished(one.folder(work)) or one.has_diverged(work))]
            found = _equal_losses(runs, work, data, skip={one.configuration for one in open_ones})
        if found:
            _table(found, data, work / f"{name}.sharpness.nc", family=name)
        if name in PAIRED:
            _lines(runs, data, work)


def _is_finished(folder: Path) -> bool:
    return (folder / "run.json").exists() and ll.zoo.open_run(folder).finished


def _model(run: Any, checkpoint: Any) -> nn.Module:
    options = {key: value for key, value in run.config["model"].items() if key != "initial_sha256"}
    with torch.random.fork_rng(devices=[]):
        return checkpoint.load_into(ll.zoo.build_model(**options)).eval()


def _table(found: dict[str, tuple[Minimizer, Any, Any]], data: Any, path: Path, *, family: str) -> xr.Dataset:
    """Measure minimizers, given by name as (what it is, run, checkpoint)."""
    from lltoolkit.tensors.sharpness.registry import MEASURES

    objectives, initial, attributes = {}, {}, {}
    for name, (each, run, checkpoint) in found.items():
        objectives[name] = ll.Objective(_model(run, checkpoint), data, device="cpu", n_examples={"train": N_MEASURED})
        initial[name] = _model(run, run.checkpoints[0])
        # Not "epoch", which a table of one training's steps has for itself.
        attributes[name] = each.attributes | {"stopped_at_epoch": checkpoint.epoch, "family": family}
    defaults = [name for name, known in MEASURES.items() if known.default]
    return ll.compute_sharpness(
        objectives,
        measures=list(dict.fromkeys([*defaults, "distance_from_init"])),
        path=path,
        attributes=attributes,
        initial=initial,
        seed=0,
    )


def _equal_losses(
    runs: dict[Minimizer, Any], work: Path, data: Any, *, skip: Collection[str]
) -> dict[str, tuple[Minimizer, Any, Any]]:
    """Find the first checkpoint of each seed-0 configuration whose loss on all training images is low enough."""
    # Skipped are those whose run of the grid is still to come to its end: the run of constant lr would take a row that
    # belongs to that one.
    note = work / f"{EQUAL}.json"
    known: dict[str, int] = json.loads(note.read_text()) if note.exists() else {}
    found: dict[str, tuple[Minimizer, Any, Any]] = {}
    for each, run in runs.items():  # those of constant lr come last, and take part where the grid's found nothing
        if each.recipe["seed"] != 0 or each.configuration in found or each.configuration in skip:
            continue
        key = f"{each.family}/{each.name}"
        if key not in known:
            steps = (one.step for one in run.checkpoints if _loss(_model(run, one), data["train"]) <= EQUAL_LOSS)
            known[key] = next(steps, -1)
            note.write_text(json.dumps(known, indent=1))
        if known[key] >= 0:
            found[each.configuration] = (each, run, next(one for one in run.checkpoints if one.step == known[key]))
    return found


@torch.no_grad()
def _loss(model: nn.Module, split: Any) -> float:
    x, y = split
    return functional.cross_entropy(model(x).double(), y).item()


def _lines(runs: dict[Minimizer, Any], data: Any, work: Path) -> None:
    """Measure the line from each small-batch minimizer to the large-batch one of the same recipe."""
    by_pair: dict[str, dict[str, Any]] = {}
    for each, run in runs.items():
        by_pair.setdefault(each.name.replace(f"-{each.batch}-", "-"), {})[each.batch] = (each, run)
    rises = []
    for name, pair in by_pair.items():
        if len(pair) < 2:
            continue
        each = pair["small"][0]
        shown = each.method == "momentum" and each.recipe["lr"] == 0.1 and each.recipe["seed"] == 0
        split = {"train": data["train"]}
        ends = [ll.Objective(pair[batch][1].model, split, device="cpu") for batch in ("small", "large")]
        line = ll.compute_surface(
            ends[0],
            ll.interpolate(*ends),
            coords={"alpha": SHOWN if shown else LINE},
            path=work / "lines" / f"{each.family}-{name}.surface.nc",
            n_workers=1,
            progress=False,
        )
        found = unnormalized_rise(line["loss"].sel(split="train"))
        found = {end: value if math.isfinite(value) else None for end, value in found.items()}
        rises.append(each.attributes | {"pair": name} | found)
        if shown:
            _histograms({f"{each.family}-{name}-{batch}": end.model for batch, (_, end) in pair.items()}, work)
    if rises:
        path = work / "lines" / f"{next(iter(runs)).family}.json"
        path.write_text(json.dumps(rises, indent=1))


def _histograms(models: dict[str, nn.Module], work: Path) -> None:
    """Count the weights of two axes and more, as the paper's histograms do: one file for each pair."""
    counts = []
    for model in models.values():
        weights = torch.cat([each.detach().flatten() for each in model.parameters() if each.ndim > 1]).numpy()
        counts.append(np.histogram(weights.clip(BINS[0], BINS[-1]), BINS)[0])
    middles = (BINS[1:] + BINS[:-1]) / 2
    found = xr.Dataset({"count": (("model", "weight"), np.array(counts))}, {"model": list(models), "weight": middles})
    found.to_netcdf(work / "lines" / f"{next(iter(models)).removesuffix('-small')}.weights.nc")


def main(
    work: Annotated[Path, typer.Option(help="Folder of the trainings and of all that is made.")],
    stage: Annotated[str, typer.Option(help=f"One of {', '.join(STAGES)}; all unless given.")] = "",
    only: Annotated[str, typer.Option(help="One data set, digits or cifar10; both unless given.")] = "",
    family: Annotated[str, typer.Option(help="Measure one family alone: several processes share the work.")] = "",
    cifar10: Annotated[str, typer.Option(help="An .npz of CIFAR-10; downloaded unless given.")] = "cifar10",
    ship: Annotated[Path | None, typer.Option(help="Folder for what is small enough to be committed.")] = None,
) -> None:
    """Train, measure and judge the minimizers of PROTOCOL.md."""
    choices = (("stage", stage, STAGES), ("only", only, ("digits", "cifar10")), ("family", family, MEASURED))
    for option, value, allowed in choices:
        if value:
            require_choice(option, value, allowed)
    chosen = minimizers(only or None)
    work.mkdir(parents=True, exist_ok=True)
    if stage in ("", "train"):
        train(chosen, work, cifar10)
    if stage in ("", "measure"):
        (work / "lines").mkdir(exist_ok=True)
        measure(chosen, work, cifar10, family)
    if stage in ("", "judge"):
        judge(work, echo=typer.echo)
        if ship is not None:
            ship_results(work, ship, echo=typer.echo)


if __name__ == "__main__":
    typer.run(main)
