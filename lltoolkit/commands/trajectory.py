"""The command ``lltoolkit trajectory``: paths of optimizers in a plane, and the surface around them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lltoolkit.errors import require_choice, require_whole
from lltoolkit.options import (
    Buffers,
    Data,
    Device,
    Model,
    NExamples,
    Normalize,
    Resume,
    Shortcut,
    Width,
    build_for,
    data_of,
    reports_errors,
)

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from lltoolkit.tensors.checkpoints import Checkpoint
    from lltoolkit.tensors.objective import Objective
    from lltoolkit.tensors.subspace import Subspace
    from lltoolkit.zoo.data import LoadedData
    from lltoolkit.zoo.runs import Run

PLANES = ("pca", "random", "hessian")


@reports_errors
def trajectory(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `lltoolkit train` or a Recorder, or of your own checkpoints.")
    ],
    out: Annotated[Path, typer.Option(help="The result, NAME.trajectory.nc; of several runs NAME-RUN.trajectory.nc.")],
    plane: Annotated[str, typer.Option(help="pca, random, hessian, or a file of Subspace.save.")] = "pca",
    origin: Annotated[str, typer.Option(help="Where a PCA plane stands: final, start or mean.")] = "final",
    center: Annotated[str, typer.Option(help="What PCA takes the variance about: origin or mean.")] = "origin",
    surface: Annotated[Path | None, typer.Option(help="Compute the surface around the paths: NAME.surface.nc.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Of the surface: points per axis; default 31.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of the surface: compute only what interpolation misses by more.")
    ] = None,
    loss: Annotated[
        bool, typer.Option(help="Measure each checkpoint, and the plane under it; or project alone.")
    ] = True,
    pattern: Annotated[str | None, typer.Option(help="Of your own checkpoints: 'epoch_*.pt'.")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="What the names in them begin with: 'model.' in files of Lightning.")
    ] = None,
    model: Model = None,
    data: Data = None,
    shortcut: Shortcut = "A",
    width: Width = 1,
    normalize: Normalize = None,
    examples: NExamples = None,
    buffers: Buffers = "frozen",
    damaged: Annotated[
        str, typer.Option(help="What a checkpoint that can't be read, or holds NaN, does: stop or skip.")
    ] = "stop",
    seed: Annotated[int, typer.Option(help="Of random directions.")] = 0,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Project the path of an optimizer on a plane, with what the plane hides of it. After Ctrl-C it goes on.

    Your own checkpoints: `lltoolkit trajectory ckpts --pattern 'epoch_*.pt' --model resnet20 --data digits
    --out mine.trajectory.nc`

    Then: `lltoolkit plot r20.trajectory.nc --surface r20.surface.nc`

    Example: `lltoolkit trajectory runs/r20 --plane pca --surface r20.surface.nc --out r20.trajectory.nc`
    """
    import lltoolkit as ll
    from lltoolkit.store import require_writable

    require_choice("--origin", origin, ("final", "start", "mean"))
    require_choice("--center", center, ("origin", "mean"))
    require_choice("--damaged", damaged, ("stop", "skip"))
    if plane != "pca" and (origin, center) != ("final", "origin"):
        raise ValueError("--origin and --center are of --plane pca: leave them out.")
    if surface is None and not (resolution is None and tolerance is None):
        raise ValueError("--resolution and --tolerance are of the surface: give --surface too, or leave them out.")
    resolution = 31 if resolution is None else require_whole("--resolution", resolution, least=2)
    files = _files(out, runs)
    for file in files:
        require_writable(file, 0, "trajectory")
    if surface is not None:
        require_writable(surface)
        if not loss:
            raise ValueError("--surface measures the network and --no-loss does not: leave one of them out.")
    sources = [open_source(folder, pattern, prefix) for folder in runs]
    objective = None
    if loss or plane in ("random", "hessian"):
        network, splits = _network(sources[0], damaged, model, data, shortcut, width, normalize, loss=loss)
        objective = ll.Objective(network, splits, n_examples=examples, buffers=buffers, device=device)
        typer.echo(objective.check())
    subspace = _plane(plane, sources, objective, origin, center, damaged, seed)
    measured = objective if loss else None
    paths = []
    for file, source in zip(files, sources, strict=True):
        path = ll.project_trajectory(source, subspace, measured, path=file, resume=resume, damaged=damaged)
        typer.echo(f"{file}: {_told(path)}")
        paths.append(path)
    if surface is not None:
        grid: dict[str, Any] = {"around": paths, "resolution": resolution}
        ll.compute_surface(objective, subspace, path=surface, resume=resume, tolerance=tolerance, **grid)
        typer.echo(surface)


def open_source(folder: Path, pattern: str | None, prefix: str | None = None) -> "Run | list[Checkpoint]":
    """Open a recorded run, or a folder of any checkpoints.

    Returns
    -------
    Run or list of Checkpoint
        A run where the folder holds one and neither pattern nor prefix is given.
    """
    import lltoolkit as ll
    from lltoolkit.zoo.runs import NOTE

    if pattern is None and prefix is None and (folder / NOTE).exists():
        return ll.zoo.open_run(folder)
    return ll.open_checkpoints(folder, pattern, prefix=prefix)


def _files(out: Path, runs: Sequence[Path]) -> list[Path]:
    if len(runs) == 1:
        return [out]
    names = [folder.resolve().name for folder in runs]
    if len(set(names)) < len(names):
        raise ValueError("two of the folders have one name, after which the results are called: rename one.")
    stem = out.name.removesuffix(".nc").removesuffix(".trajectory")
    return [out.with_name(f"{stem}-{name}.trajectory.nc") for name in names]


def _network(
    source: "Run | list[Checkpoint]",
    damaged: str,
    model: str | None,
    data: str | None,
    shortcut: str,
    width: int,
    normalize: str | None,
    *,
    loss: bool,
) -> "tuple[nn.Module, LoadedData]":
    """Make what is measured: the network with the final weights, and its examples."""
    import lltoolkit as ll

    config: dict[str, Any] = {} if isinstance(source, list) else source.config
    instead = ", or --no-loss." if loss else ", or another --plane: pca and a file need no network."
    named = "name" in config.get("model", {})
    if named and model is not None:
        raise ValueError("the run knows its network: leave --model out.")
    if not named and model is None:
        what = f"of a {config['model'].get('class')}, which is none of the zoo" if config else "of which network"
        raise ValueError(
            f"{'the recording is ' if config else 'checkpoints alone do not say '}{what}: give --model and --data"
            + instead
        )
    if data is None and "data" not in config:
        raise ValueError(f"--data is missing: nothing here says what was trained on. Give it{instead}")
    if "data" in config:
        splits = data_of(config["data"], data, normalize)
    else:
        splits = ll.zoo.load_data(str(data), normalize=normalize or "default")
    last = _last(source if isinstance(source, list) else source.checkpoints, damaged)
    if named:
        options = {name: value for name, value in config["model"].items() if name != "initial_sha256"}
        return last.load_into(ll.zoo.build_model(**options)).eval(), splits
    return last.load_into(build_for(splits, model, shortcut, width)), splits


def _last(checkpoints: "Sequence[Checkpoint]", damaged: str) -> "Checkpoint":
    """Find the last checkpoint that can be used, where the PCA plane stands too."""
    from lltoolkit.tensors.gram import finite, parameter_names, readable

    if not checkpoints:
        raise ValueError("the run has no complete checkpoint yet: wait for it to go on.")
    if damaged == "stop":
        return checkpoints[-1]
    whole = readable(checkpoints, damaged="skip")
    for checkpoint in reversed(whole):
        if finite([checkpoint], parameter_names(whole)):
            return checkpoint
    raise ValueError(f"none of the {len(checkpoints)} checkpoints can be used.")


def _plane(
    plane: str,
    sources: "Sequence[Run | list[Checkpoint]]",
    objective: "Objective | None",
    origin: str,
    center: str,
    damaged: str,
    seed: int,
) -> "Subspace":
    import lltoolkit as ll

    if plane == "pca":
        return ll.pca_subspace(sources, origin=origin, center=center, damaged=damaged)
    if plane == "random":
        return ll.random_subspace(objective, seed=seed)
    if plane == "hessian":
        return ll.hessian_subspace(objective, seed=seed)
    if not Path(plane).suffix and not Path(plane).is_file():
        require_choice("--plane", plane, PLANES)
    return ll.Subspace.open(plane)


def _told(path: "xr.Dataset") -> str:
    """Say in a line what the plane shows of the path."""
    told = (
        f"{path.sizes['step']} checkpoints, {100 * float(path.attrs['captured_share']):.3g} % of the path in the plane"
    )
    shares, walk = path["explained_variance"].values, path["explained_variance_null"].values
    if (shares == shares).all():
        by_chance = f"; a random walk's: {100 * walk.sum():.1f} %" if (walk == walk).all() else ""
        told += f" (PCA: {100 * shares.sum():.1f} % of the variance{by_chance})"
    if int(path.attrs["n_skipped"]):
        told += f"; {path.attrs['n_skipped']} checkpoints skipped"
    return told
