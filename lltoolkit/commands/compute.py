"""Commands that run a network: ``lltoolkit surface | curvature | sharpness``."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    reports_errors,
)

if TYPE_CHECKING:
    import xarray as xr


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
