"""The command ``lltoolkit trajectory``: paths of optimizers in a plane, and the surface around them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lltoolkit.errors import require_choice
from lltoolkit.options import (
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

    from lltoolkit.tensors.checkpoints import Checkpoint
    from lltoolkit.tensors.objective import Objective
    from lltoolkit.tensors.subspace import Subspace
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
    resolution: Annotated[int, typer.Option(help="Of the surface: points per axis.")] = 31,
    tolerance: Annotated[
        float | None, typer.Option(help="Of the surface: compute only what interpolation misses by more.")
    ] = None,
    loss: Annotated[
        bool, typer.Option(help="Measure each checkpoint, and the plane under it; or project alone.")
    ] = True,
    pattern: Annotated[str | None, typer.Option(help="Of your own checkpoints: 'epoch_*.pt'.")] = None,
    model: Model = None,
    data: Data = None,
    shortcut: Shortcut = "A",
    width: Width = 1,
    normalize: Normalize = None,
    examples: NExamples = None,
    damaged: Annotated[str, typer.Option(help="What a checkpoint that can't be read does: stop or skip.")] = "stop",
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
    files = _files(out, runs)
    for file in files:
        require_writable(file, 0, "trajectory")
    if surface is not None:
        require_writable(surface)
        if not loss:
            raise ValueError("--surface measures the network and --no-loss does not: leave one of them out.")
    sources = [open_source(folder, pattern) for folder in runs]
    objective = None
    if loss or plane in ("random", "hessian"):
        objective = _objective(sources[0], model, data, shortcut, width, normalize, examples, device)
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


def open_source(folder: Path, pattern: str | None) -> "Run | list[Checkpoint]":
    """Open a recorded run, or a folder of any checkpoints.

    Returns
    -------
    Run or list of Checkpoint
        A run where the folder holds one and no pattern is given.
    """
    import lltoolkit as ll
    from lltoolkit.zoo.runs import NOTE

    if pattern is None and (folder / NOTE).exists():
        return ll.zoo.open_run(folder)
    return ll.open_checkpoints(folder, pattern)


def _files(out: Path, runs: Sequence[Path]) -> list[Path]:
    if len(runs) == 1:
        return [out]
    names = [folder.resolve().name for folder in runs]
    if len(set(names)) < len(names):
        raise ValueError("two of the folders have one name, after which the results are called: rename one.")
    stem = out.name.removesuffix(".nc").removesuffix(".trajectory")
    return [out.with_name(f"{stem}-{name}.trajectory.nc") for name in names]


def _objective(
    source: "Run | list[Checkpoint]",
    model: str | None,
    data: str | None,
    shortcut: str,
    width: int,
    normalize: str | None,
    examples: int | None,
    device: str,
) -> "Objective":
    """Make what is measured, at the final weights."""
    import lltoolkit as ll

    if not isinstance(source, list):
        if model is not None:
            raise ValueError("the run knows its network: leave --model out.")
        if data is None and "data" not in source.config:
            raise ValueError("--data is missing: the recording does not say what was trained on. Or pass --no-loss.")
        splits = data_of(source.config.get("data", {}), data, normalize)
        return ll.Objective(source.model, splits, n_examples=examples, device=device)
    if model is None or data is None:
        raise ValueError(
            "checkpoints alone don't say of which network and data they are: give --model and --data, or --no-loss."
        )
    splits = ll.zoo.load_data(data, normalize=normalize or "default")
    network = source[-1].load_into(build_for(splits, model, shortcut, width))
    return ll.Objective(network, splits, n_examples=examples, device=device)


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
    if not Path(plane).is_file():
        require_choice("--plane", plane, PLANES)
    return ll.Subspace.open(plane)


def _told(path: "xr.Dataset") -> str:
    """Say in a line what the plane shows of the path."""
    told = (
        f"{path.sizes['step']} checkpoints, {100 * float(path.attrs['captured_share']):.3g} % of the path in the plane"
    )
    shares, walk = path["explained_variance"].values, path["explained_variance_null"].values
    if (shares == shares).all():
        told += f" (PCA: {100 * shares.sum():.1f} % of the variance; a random walk's: {100 * walk.sum():.1f} %)"
    if int(path.attrs["n_skipped"]):
        told += f"; {path.attrs['n_skipped']} checkpoints skipped"
    return told
