"""The command line: ``lltoolkit demo | train | surface | plot | info``.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

import copy
import functools
import json
import logging
import math
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from lltoolkit import __version__
from lltoolkit.errors import require_choice, require_whole

if TYPE_CHECKING:
    import xarray as xr

    from lltoolkit.tensors.objective import Objective
    from lltoolkit.tensors.subspace import Subspace
    from lltoolkit.zoo.data import LoadedData

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="lltoolkit",
    help="Loss landscapes of neural networks: compute, store and show them (after Li et al. 2018).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

FORMS = ("filled", "lines", "heat", "slice", "surface", "render")


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a user can mend into one line and exit status 1; an interrupt into 130.

    Returns
    -------
    callable
        The command, with the same signature.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except typer.Exit:  # a RuntimeError by birth
            raise
        except KeyboardInterrupt:
            typer.echo("\nInterrupted. What is done is kept: the same command goes on from there.", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if logging.getLogger().isEnabledFor(logging.DEBUG):
                raise
            typer.echo(f"Error: {str(error).replace('resume=False', '--no-resume')}", err=True)
            raise typer.Exit(1) from None

    return wrapped


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log every note and show whole tracebacks.")] = False,
) -> None:
    """Set up what all commands share."""
    if version:
        typer.echo(f"lltoolkit {__version__}")
        raise typer.Exit
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@app.command()
@reports_errors
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default lltoolkit-demo[-quick].")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In miniature, in under 100 seconds.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the training and of the directions.")] = 0,
) -> None:
    """See the effect of skip connections: train with and without them, compute both loss surfaces, draw them.

    Offline, on scikit-learn's digits. After Ctrl-C the same command goes on.

    Example: `lltoolkit demo --quick --out demo`
    """
    from lltoolkit.demo import FULL, QUICK, run_demo

    out = out or Path("lltoolkit-demo-quick" if quick else "lltoolkit-demo")
    result = run_demo(out, QUICK if quick else FULL, seed=seed)
    typer.echo("")
    for path in result.paths:
        typer.echo(path)
    for name, accuracy in result.test_accuracy.items():
        typer.echo(f"test accuracy {name}: {accuracy:.4f}")
    for name, share in result.low_loss_share.items():
        typer.echo(f"share of the plane with a loss below chance {name}: {share:.3f}")
    if quick:
        typer.echo("At 26 layers the two surfaces differ less than at 38: `lltoolkit demo` shows the effect in full.")


@app.command()
@reports_errors
def train(
    model: Annotated[str, typer.Argument(help="A network of the zoo: resnet20, vgg9, densenet121, mlp, ...")],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints and history.")],
    data: Annotated[str, typer.Option(help="digits, cifar10, ..., or the path of an .npz.")] = "digits",
    normalize: Annotated[str, typer.Option(help="Of the data: default, cifar10, imagenet or none.")] = "default",
    shortcut: Annotated[str, typer.Option(help="Of a ResNet: A, B or none.")] = "A",
    width: Annotated[int, typer.Option(help="Of a ResNet: factor on its channels.")] = 1,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    lr: Annotated[float | None, typer.Option(help="Learning rate; default 0.1 for sgd, 0.001 for adam.")] = None,
    momentum: Annotated[float, typer.Option(help="Nesterov momentum of sgd.")] = 0.9,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 128,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty.")] = 5e-4,
    epochs: Annotated[int, typer.Option(help="Passes over the training split; 300 in the paper.")] = 300,
    schedule: Annotated[str, typer.Option(help="step, cosine or constant.")] = "step",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on from what the folder holds, or train anew.")] = True,
) -> None:
    """Train a network with checkpoints; after Ctrl-C the same command goes on.

    Example: `lltoolkit train resnet20 --data digits --epochs 12 --shortcut none --out runs/noshort`
    """
    from lltoolkit import zoo

    run = zoo.train(
        model,
        zoo.load_data(data, normalize=normalize),
        model_options=_model_options(shortcut, width),
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        batch_size=batch_size,
        weight_decay=weight_decay,
        epochs=epochs,
        schedule=schedule,
        seed=seed,
        out=out,
        device=device,
        resume=resume,
    )
    last = run.history.isel(step=-1)
    figures = [
        f"{part} {name} {float(last[name].sel(split=part)):.4f}"
        for part in last["split"].values
        for name in ("loss", "accuracy")
        if name in last
    ]
    typer.echo(f"{run.path}\nepoch {float(last['epoch']):g}: {', '.join(figures)}")


@app.command()
@reports_errors
def surface(
    out: Annotated[Path, typer.Option(help="The result, NAME.surface.nc.")],
    run: Annotated[Path | None, typer.Option(help="A folder of `lltoolkit train`; or --model and --weights.")] = None,
    model: Annotated[str | None, typer.Option(help="A network of the zoo, or of torchvision, by name.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights: .safetensors or .pt.")] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10, ..., an .npz; default the run's.")] = None,
    to: Annotated[Path | None, typer.Option(help="Other weights: compute the line to them.")] = None,
    shortcut: Annotated[str, typer.Option(help="Of a ResNet: A, B or none.")] = "A",
    width: Annotated[int, typer.Option(help="Of a ResNet: factor on its channels.")] = 1,
    normalize: Annotated[
        str | None, typer.Option(help="Of the data: default, cifar10, imagenet or none; as the run's unless given.")
    ] = None,
    dims: Annotated[int, typer.Option(help="1, 2 or 3 random directions.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the directions.")] = 0,
    n_seeds: Annotated[int, typer.Option(help="An ensemble: so many draws of the directions, from SEED on.")] = 1,
    direction_normalize: Annotated[str, typer.Option(help="filter, layer, weight or none.")] = "filter",
    ignore: Annotated[str, typer.Option(help="bias_bn, none or original_code.")] = "bias_bn",
    buffers: Annotated[str, typer.Option(help="Batch-norm statistics: frozen or recompute.")] = "frozen",
    span: Annotated[str | None, typer.Option(help="S for -S to S, or LOW,HIGH.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Points per axis: N, or N,M for each.")] = None,
    examples: Annotated[int | None, typer.Option(help="At most so many of each split; default all.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Compute only what interpolation misses by more: 0.05 is 5 % of the loss.")
    ] = None,
    sampling: Annotated[
        str, typer.Option(help="all, or two-level: all examples on few cells, samples elsewhere.")
    ] = "all",
    engine: Annotated[str, typer.Option(help="auto, plain, flat, folded or batched.")] = "auto",
    precision: Annotated[str, typer.Option(help="exact, tf32 or bf16.")] = "exact",
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core where it pays.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Of a Dask cluster to compute on, tcp://HOST:PORT.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on from what the file holds, or replace it.")] = True,
) -> None:
    """Compute the loss surface of a trained network; after Ctrl-C the same command goes on.

    Of a run: `lltoolkit surface --run runs/noshort --examples 300 --out noshort.surface.nc`

    Several times faster: `--sampling two-level --tolerance 0.05`. On a cluster: `--scheduler tcp://HOST:8786`.

    Example: `lltoolkit surface --model resnet56 --weights W.safetensors --data D.npz --normalize imagenet
    --resolution 25 --examples 500 --out r56.surface.nc`
    """
    import lltoolkit as ll
    from lltoolkit.compute import grid_of
    from lltoolkit.store import require_writable

    if (model is None) != (weights is None) or (run is None) == (model is None):
        raise ValueError("give either --run, a folder of `lltoolkit train`, or both --model and --weights.")
    require_writable(out)  # before the model is measured, which may take long
    if run is not None:
        if (shortcut, width) != ("A", 1):
            raise ValueError("--run knows its network: leave --shortcut and --width out.")
        trained = ll.zoo.open_run(run)
        network = trained.model
        splits = _data_of(trained.config["data"], data, normalize)
    else:
        if data is None:
            raise ValueError("--data is missing: digits, cifar10, ..., or the path of an .npz.")
        splits = ll.zoo.load_data(data, normalize=normalize or "default")
        network = ll.zoo.build_model(
            model,
            **_model_options(shortcut, width),
            n_classes=splits.n_classes,
            in_channels=splits["train"][0].shape[1],
            input_size=splits["train"][0].shape[-1],
        )
        ll.zoo.load_weights(network, weights)
    objective = ll.Objective(network, splits, n_examples=examples, device=device, buffers=buffers)
    if to is not None:
        if (dims, seed, n_seeds, direction_normalize, ignore) != (2, 0, 1, "filter", "bias_bn"):
            raise ValueError(
                "--to gives the line: leave --dims, --seed, --n-seeds, --direction-normalize and --ignore out."
            )
        subspaces = [ll.interpolate(objective, ll.zoo.load_weights(copy.deepcopy(network), to))]
    else:
        options = {"dims": dims, "normalize": direction_normalize, "ignore": ignore}
        n_seeds = require_whole("--n-seeds", n_seeds, least=1)
        subspaces = [ll.random_subspace(objective, seed=seed + step, **options) for step in range(n_seeds)]
    subspace = subspaces[0]
    grid = {"span": _numbers("span", span), "resolution": _resolution(resolution, subspace.axes)}
    grid_of(subspace, **grid)  # a grid that is none shows before anything is measured
    typer.echo(objective.check())
    typer.echo(_expectation(objective, subspaces, **grid))
    with _connect(scheduler) as client:
        result = ll.compute_surface(
            objective,
            subspaces if n_seeds > 1 else subspace,
            path=out,
            resume=resume,
            tolerance=tolerance,
            examples=sampling,
            engine=engine,
            precision=precision,
            n_workers=workers,
            client=client,
            **grid,
        )
    typer.echo(f"{out}: {_range(result)}")
    if audited := _audit(result):
        typer.echo(audited)


@app.command()
@reports_errors
def plot(
    result: Annotated[Path, typer.Argument(help="A .surface.nc file.")],
    out: Annotated[Path | None, typer.Option(help="The figure: .png, .pdf or .svg; default beside the result.")] = None,
    form: Annotated[str, typer.Option(help=f"{', '.join(FORMS)}; default filled, for a line slice.")] = "",
    var: Annotated[str, typer.Option(help="loss, accuracy, ...")] = "loss",
    split: Annotated[str, typer.Option(help="train or test; a slice shows all.")] = "train",
    gamma: Annotated[float, typer.Option(help="Of a volume: the plane nearest to it.")] = 0.0,
) -> None:
    """Draw a stored surface; nothing is computed and torch is not needed.

    Example: `lltoolkit plot r56.surface.nc --form render --out r56.png`
    """
    from lltoolkit.labelled.schema import axes_of
    from lltoolkit.store import open_result

    dataset = open_result(result)
    if not axes_of(dataset):
        raise ValueError(f"{result} holds a {dataset.attrs['kind']}; plot draws a surface, info prints the rest.")
    if "gamma" in dataset.dims:
        dataset = dataset.sel(gamma=gamma, method="nearest")
    form = form or ("slice" if len(axes_of(dataset)) == 1 else "filled")
    require_choice("form", form, FORMS)
    if len(axes_of(dataset)) == 1 and form != "slice":
        raise ValueError(f"--form {form} takes a surface of two axes or more; a line is drawn by --form slice.")
    out = out or result.with_name(f"{result.name.removesuffix('.nc').removesuffix('.surface')}.{form}.png")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} of --out does not exist; make it first.")
    if form == "render":
        from lltoolkit.render import export_scene, render_surface

        export_scene(render_surface(dataset, var=var, split=split), out)
    else:
        _draw(dataset, out, form=form, var=var, split=split)
    typer.echo(out)


@app.command()
@reports_errors
def info(result: Annotated[Path, typer.Argument(help="Any result file, .nc.")]) -> None:
    """Print what a result file holds and how it was made.

    Example: `lltoolkit info r56.surface.nc`
    """
    from lltoolkit.store import open_result

    typer.echo(describe_file(open_result(result), result))


def describe_file(dataset: "xr.Dataset", path: Path) -> str:
    """Describe a result in lines: what it holds, then every attribute.

    Returns
    -------
    str
        For a terminal.
    """
    lines = [f"{path}: {dataset.attrs['kind']} of {dataset.attrs['model']}, {path.stat().st_size / 1e3:.0f} kB", ""]
    for name, coordinate in dataset.coords.items():
        values = coordinate.values
        words = coordinate.dtype.kind in "UOT"
        shown = ", ".join(map(str, values)) if words else f"{values.min():g} to {values.max():g}"
        lines.append(f"  {name:<14} {coordinate.size} values: {shown}")
    lines.append("")
    for name, variable in dataset.data_vars.items():
        if name == "status":
            meanings = variable.attrs["flag_meanings"].split()
            counts = {word: int((variable.values == flag).sum()) for flag, word in enumerate(meanings)}
            text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        else:
            units = variable.attrs.get("units", "1")
            text = f"{float(variable.min()):.6g} to {float(variable.max()):.6g}" + (f" {units}" if units != "1" else "")
        lines.append(f"  {name:<14} ({', '.join(map(str, variable.dims))}): {text}")
    lines.append("")
    for name, value in dataset.attrs.items():
        if isinstance(value, str) and value.startswith("{"):
            lines.append(f"  {name}:")
            lines += [f"      {key}: {inner}" for key, inner in json.loads(value).items()]
        else:
            lines.append(f"  {name}: {value}")
    return "\n".join(lines)


def _draw(dataset: "xr.Dataset", out: Path, *, form: str, var: str, split: str) -> None:
    from lltoolkit import plots

    with plots.figure((5.0, 4.0), subplot_kw={"projection": "3d"} if form == "surface" else None) as (figure, ax):
        if form == "slice":
            plots.plot_slice(dataset, var=var, ax=ax)
        elif form == "surface":
            plots.plot_surface(dataset, var=var, split=split, ax=ax)
        else:
            plots.plot_contour(dataset, var=var, split=split, form=form, ax=ax)
        figure.savefig(out)


def _connect(scheduler: str | None) -> AbstractContextManager[Any]:
    """Connect to a cluster, if there is one, for as long as it is needed."""
    if scheduler is None:
        return nullcontext()
    from lltoolkit.cluster import connect

    return connect(scheduler)


def _data_of(about: dict[str, Any], data: str | None, normalize: str | None) -> "LoadedData":
    """Load what a run was trained on, normalized as then."""
    from lltoolkit.zoo.data import NAMES, NORMALIZATIONS, load_data

    name = data or about["name"]
    if data is None and name not in NAMES:
        raise ValueError(f"--data is missing: the run was trained on {name!r}, which is no data set with a name here.")
    if normalize is not None:
        return load_data(name, normalize=normalize)
    told = about["normalize"]
    loaded = load_data(name, normalize=told if told in NORMALIZATIONS else "default")
    if loaded.normalize != told:
        raise ValueError(
            f"--normalize is missing: the run's data were normalized by {told}, those of {name!r} would be by "
            f"{loaded.normalize}."
        )
    return loaded


def _model_options(shortcut: str, width: int) -> dict[str, Any]:
    """Return the options that differ from their defaults: not every network has them."""
    options = {"shortcut": (shortcut, "A"), "width": (width, 1)}
    return {name: given for name, (given, default) in options.items() if given != default}


def _expectation(objective: "Objective", subspaces: "Sequence[Subspace]", **grid: Any) -> str:
    """Tell time and memory of a whole surface before it is computed, from one cell and the memory that it took."""
    from lltoolkit.compute import grid_of

    axes = grid_of(subspaces[0], **grid)
    n_cells = len(subspaces) * math.prod(len(values) for values in axes.values())
    seconds = objective.seconds_per_cell()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    shape = " x ".join(str(len(values)) for values in axes.values())
    several = f"{len(subspaces)} x " if len(subspaces) > 1 else ""
    return (
        f"{several}{shape} = {n_cells} cells, {seconds:.3g} s each: at most about {_duration(n_cells * seconds)} on "
        f"{objective.device}, about {peak / 1e9:.1f} GB of memory"
    )


def _audit(dataset: "xr.Dataset") -> str:
    """Tell how far off the cells are that were not computed on all examples, and what was spent."""
    attrs = dataset.attrs
    if "audited_p95_upper" not in attrs:
        return ""
    return (
        f"{attrs['n_forwards']:,} forward passes; {attrs['n_audit']} cells audited: 95 % of the others are off by at "
        f"most {attrs['audited_p95_upper']:.2g} in log loss (largest seen {attrs['audited_max']:.2g})"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _range(dataset: "xr.Dataset") -> str:
    loss = dataset["loss"].sel(split=dataset["split"].values[0])
    return f"{dataset['split'].values[0]} loss {float(loss.min()):.4g} to {float(loss.max()):.4g}"


def _numbers(name: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--{name} {text!r}: give a number S, or two as LOW,HIGH.") from error
    if len(numbers) > 2:
        raise ValueError(f"--{name} {text!r} holds {len(numbers)} numbers: give S, or LOW,HIGH.")
    return numbers[0] if len(numbers) == 1 else numbers


def _resolution(text: str | None, axes: tuple[str, ...]) -> Any:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--resolution {text!r}: give a whole number N, or one for each axis as N,M.") from error
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != len(axes):
        raise ValueError(f"--resolution {text!r} holds {len(numbers)} numbers, the axes are {', '.join(axes)}.")
    return dict(zip(axes, numbers, strict=True))
