"""The command line: ``lltoolkit demo | train | surface | curvature | sharpness | plot | info``.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

import copy
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from lltoolkit import __version__
from lltoolkit.errors import require_choice
from lltoolkit.options import (
    Buffers,
    Data,
    Device,
    Dims,
    DirectionNormalize,
    Ignore,
    Model,
    NExamples,
    Normalize,
    Parameters,
    ResolutionText,
    Resume,
    RunFolder,
    Scheduler,
    Seed,
    Shortcut,
    Source,
    SpanText,
    Weights,
    Width,
    Workers,
    choose_subspaces,
    connect_to,
    data_of,
    expectation,
    grid_options,
    model_options,
)

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

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
        model_options=model_options(shortcut, width),
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
    run: RunFolder = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    to: Annotated[Path | None, typer.Option(help="Other weights: compute the line to them.")] = None,
    shortcut: Shortcut = "A",
    width: Width = 1,
    normalize: Normalize = None,
    dims: Dims = 2,
    seed: Seed = 0,
    n_seeds: Annotated[int, typer.Option(help="An ensemble: so many draws of the directions, from SEED on.")] = 1,
    direction_normalize: DirectionNormalize = "filter",
    ignore: Ignore = "bias_bn",
    buffers: Buffers = "frozen",
    span: SpanText = None,
    resolution: ResolutionText = None,
    examples: NExamples = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Compute only what interpolation misses by more: 0.05 is 5 % of the loss.")
    ] = None,
    sampling: Annotated[
        str, typer.Option(help="all, or two-level: all examples on few cells, samples elsewhere.")
    ] = "all",
    engine: Annotated[str, typer.Option(help="auto, plain, flat, folded or batched.")] = "auto",
    precision: Annotated[str, typer.Option(help="exact, tf32 or bf16.")] = "exact",
    workers: Workers = None,
    scheduler: Scheduler = None,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Compute the loss surface of a trained network; after Ctrl-C the same command goes on.

    Of a run: `lltoolkit surface --run runs/noshort --examples 300 --out noshort.surface.nc`

    Several times faster: `--sampling two-level --tolerance 0.05`. On a cluster: `--scheduler tcp://HOST:8786`.

    Example: `lltoolkit surface --model resnet56 --weights W.safetensors --data D.npz --normalize imagenet
    --resolution 25 --examples 500 --out r56.surface.nc`
    """
    import lltoolkit as ll
    from lltoolkit.store import require_writable

    require_writable(out)  # before the model is measured, which may take long
    network, splits = Source(run, model, weights, data, normalize, shortcut, width).load()
    objective = ll.Objective(network, splits, n_examples=examples, device=device, buffers=buffers)
    subspaces = choose_subspaces(
        objective,
        network,
        to=to,
        dims=dims,
        seed=seed,
        n_seeds=n_seeds,
        normalize=direction_normalize,
        ignore=ignore,
    )
    grid = grid_options(span, resolution, subspaces[0])
    typer.echo(objective.check())
    typer.echo(expectation(objective, subspaces, **grid))
    with connect_to(scheduler) as client:
        result = ll.compute_surface(
            objective,
            subspaces if n_seeds > 1 else subspaces[0],
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
def curvature(
    out: Annotated[Path, typer.Option(help="The result, NAME.curvature.nc.")],
    run: RunFolder = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    to: Annotated[Path | None, typer.Option(help="Other weights: map the line to them.")] = None,
    shortcut: Shortcut = "A",
    width: Width = 1,
    normalize: Normalize = None,
    dims: Dims = 2,
    seed: Seed = 0,
    direction_normalize: DirectionNormalize = "filter",
    ignore: Ignore = "bias_bn",
    buffers: Buffers = "frozen",
    span: SpanText = None,
    resolution: ResolutionText = None,
    examples: NExamples = None,
    split: Annotated[str | None, typer.Option(help="Whose loss is differentiated; default the first.")] = None,
    parameters: Parameters = None,
    metric: Annotated[
        str, typer.Option(help="euclidean, or filter: in the units of the surface's axes.")
    ] = "euclidean",
    tol: Annotated[float, typer.Option(help="Residuals, as a share of the largest eigenvalue.")] = 1e-2,
    workers: Workers = None,
    scheduler: Scheduler = None,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Map the extreme Hessian eigenvalues and their ratio: is what looks convex convex? After Ctrl-C it goes on.

    A cell costs about 10 Hessian-vector products, about six forward passes each: take a few hundred examples.

    Example: `lltoolkit curvature --run runs/r20 --examples 500 --parameters weights --out r20.curvature.nc`
    """
    import lltoolkit as ll
    from lltoolkit.store import require_writable

    require_writable(out, 0, "curvature")
    network, splits = Source(run, model, weights, data, normalize, shortcut, width).load()
    objective = ll.Objective(network, splits, n_examples=examples, device=device, buffers=buffers)
    (subspace,) = choose_subspaces(
        objective, network, to=to, dims=dims, seed=seed, n_seeds=1, normalize=direction_normalize, ignore=ignore
    )
    grid = grid_options(span, resolution, subspace)
    typer.echo(objective.check())
    with connect_to(scheduler) as client:
        result = ll.compute_curvature(
            objective,
            subspace,
            split=split,
            parameters=parameters,
            metric=metric,
            tol=tol,
            path=out,
            resume=resume,
            n_workers=workers,
            client=client,
            **grid,
        )
    attrs = result.attrs
    ratio = result["eig_ratio"]
    typer.echo(f"{out}: |smallest / largest eigenvalue| {float(ratio.min()):.3g} to {float(ratio.max()):.3g}")
    typer.echo(
        f"{attrs['n_hvp_total']:,} Hessian-vector products, {attrs['n_hvp_median']:g} a cell (median); "
        f"{attrs['n_audit_missed']} of {attrs['n_audit']} audited cells are off by more than {tol:g} of the largest "
        f"eigenvalue (at most {attrs['audited_max']:.2g}); {attrs['n_unconverged']} cells did not converge"
    )


@app.command()
@reports_errors
def sharpness(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `lltoolkit train`.")],
    out: Annotated[Path, typer.Option(help="The table, NAME.sharpness.nc.")],
    measures: Annotated[
        str | None, typer.Option(help="Their names, with commas: lambda_max,trace,sam,...; default all.")
    ] = None,
    data: Data = None,
    normalize: Normalize = None,
    examples: NExamples = None,
    training: Annotated[bool, typer.Option("--training", help="Of one run: measure each of its checkpoints.")] = False,
    against: Annotated[str, typer.Option(help="error_gap, loss_gap, test_loss or test_error.")] = "error_gap",
    seed: Annotated[int, typer.Option(help="Of the measures' random numbers.")] = 0,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Measure how sharp minimizers are, and whether that goes with their generalization. After Ctrl-C it goes on.

    One run while it trains: `lltoolkit sharpness runs/gd --training --measures lambda_max --out gd.sharpness.nc`

    Example: `lltoolkit sharpness runs/small runs/large runs/adam --out table.sharpness.nc`
    """
    import lltoolkit as ll
    from lltoolkit.store import require_writable

    require_writable(out, 0, "sharpness")
    require_choice("against", against, ("error_gap", "loss_gap", "test_loss", "test_error"))
    if training and len(runs) > 1:
        raise ValueError(f"--training follows the checkpoints of one run; {len(runs)} are given.")
    names = None if measures is None else [name.strip() for name in measures.split(",") if name.strip()]
    opened = {folder.name: ll.zoo.open_run(folder) for folder in runs}
    if len(opened) < len(runs):
        raise ValueError("two of the folders have one name, which is what a table calls its models: rename one.")
    objectives = {
        name: ll.Objective(run.model, data_of(run.config["data"], data, normalize), n_examples=examples, device=device)
        for name, run in opened.items()
    }
    if training:
        ((name, run),) = opened.items()
        table = ll.compute_sharpness(
            run, objective=objectives[name], measures=names, seed=seed, path=out, resume=resume
        )
    else:
        table = ll.compute_sharpness(
            objectives,
            measures=names,
            attributes={name: _recipe(run.config) for name, run in opened.items()},
            initial={name: run.checkpoints[0].load_into(copy.deepcopy(run.model)) for name, run in opened.items()},
            seed=seed,
            path=out,
            resume=resume,
        )
    typer.echo(table["value"].to_pandas().T.to_string(float_format=lambda value: f"{value:.4g}"))
    if not training and len(opened) > 1:
        found = ll.rank_correlation(table, against=against).sel(against=against)
        names = ["tau", "tau_low", "tau_high", "verdict"]
        columns = found[names].to_dataframe()[names]
        typer.echo(f"\nKendall's tau with {against}, and its 95 % interval:")
        typer.echo(columns.to_string(float_format=lambda value: f"{value:.2f}"))
    typer.echo(out)


@app.command()
@reports_errors
def plot(
    result: Annotated[
        Path, typer.Argument(help="A result, .surface.nc, .curvature.nc, .sharpness.nc or .spectrum.nc.")
    ],
    out: Annotated[Path | None, typer.Option(help="The figure: .png, .pdf or .svg; default beside the result.")] = None,
    form: Annotated[
        str, typer.Option(help=f"Of a surface or map: {', '.join(FORMS)}; default filled, for a line slice.")
    ] = "",
    var: Annotated[str, typer.Option(help="loss, accuracy, eig_ratio, ...; default loss, of a map eig_ratio.")] = "",
    split: Annotated[str, typer.Option(help="train or test; a slice shows all.")] = "train",
    gamma: Annotated[float, typer.Option(help="Of a volume: the plane nearest to it.")] = 0.0,
    against: Annotated[str, typer.Option(help="Of a table of sharpness: what it is drawn against.")] = "error_gap",
) -> None:
    """Draw a stored result; no network is run and torch is not needed.

    Example: `lltoolkit plot r56.surface.nc --form render --out r56.png`
    """
    from lltoolkit.labelled.schema import axes_of
    from lltoolkit.store import open_result

    dataset = open_result(result)
    kind = str(dataset.attrs["kind"])
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} of --out does not exist; make it first.")
    stem = result.name.removesuffix(".nc").removesuffix(f".{kind}")
    if kind in ("sharpness", "spectrum"):
        out = out or result.with_name(f"{stem}.{kind}.png")
        _draw_other(dataset, out, against)
        typer.echo(out)
        return
    if not axes_of(dataset):
        raise ValueError(f"{result} holds a {kind}, which plot does not draw; info prints it.")
    var = var or ("eig_ratio" if kind == "curvature" else "loss")
    if "gamma" in dataset.dims:
        dataset = dataset.sel(gamma=gamma, method="nearest")
    form = form or ("slice" if len(axes_of(dataset)) == 1 else "filled")
    require_choice("form", form, FORMS)
    if len(axes_of(dataset)) == 1 and form != "slice":
        raise ValueError(f"--form {form} takes a surface of two axes or more; a line is drawn by --form slice.")
    # A map, or another variable, has a name of its own: no picture replaces another one.
    which = "" if (kind, var) == ("surface", "loss") else f".{var}"
    out = out or result.with_name(f"{stem}{which}.{form}.png")
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
        lines.append(f"  {name:<14} {coordinate.size} values: {_summary(coordinate.values)}")
    lines.append("")
    for name, variable in dataset.data_vars.items():
        if name == "status":
            meanings = variable.attrs["flag_meanings"].split()
            counts = {word: int((variable.values == flag).sum()) for flag, word in enumerate(meanings)}
            text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        elif variable.dtype.kind in "UOT":
            text = _summary(variable.values)
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


def _summary(values: "np.ndarray") -> str:
    """Give a range of numbers, or some of the words."""
    if values.dtype.kind not in "UOT":
        return f"{values.min():g} to {values.max():g}"
    different = list(dict.fromkeys(str(value) for value in values.flat))
    if len(different) == 1:
        return f"all {different[0]}"
    return ", ".join(different[:12]) + (f" and {len(different) - 12} more" if len(different) > 12 else "")


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


def _draw_other(dataset: "xr.Dataset", out: Path, against: str) -> None:
    from lltoolkit import plots

    if dataset.attrs["kind"] == "sharpness":
        plots.plot_sharpness(dataset, against=against).savefig(out)
        return
    with plots.figure((5.0, 3.0)) as (figure, ax):
        plots.plot_spectrum(dataset, ax=ax)
        figure.savefig(out)


def _audit(dataset: "xr.Dataset") -> str:
    """Tell how far off the cells are that were not computed on all examples, and what was spent."""
    attrs = dataset.attrs
    if "audited_p95_upper" not in attrs:
        return ""
    return (
        f"{attrs['n_forwards']:,} forward passes; {attrs['n_audit']} cells audited: 95 % of the others are off by at "
        f"most {attrs['audited_p95_upper']:.2g} in log loss (largest seen {attrs['audited_max']:.2g})"
    )


def _range(dataset: "xr.Dataset") -> str:
    loss = dataset["loss"].sel(split=dataset["split"].values[0])
    return f"{dataset['split'].values[0]} loss {float(loss.min()):.4g} to {float(loss.max()):.4g}"


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a run's note what tells its model from others in a table."""
    names = ("optimizer", "lr", "momentum", "batch_size", "weight_decay", "seed")
    return {name: config[name] for name in names if name in config}
