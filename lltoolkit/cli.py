"""The command line: ``lltoolkit demo | train | surface | curvature | sharpness | trajectory | plot | info``.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from lltoolkit import __version__
from lltoolkit.commands.compute import curvature, sharpness, surface
from lltoolkit.commands.draw import plot
from lltoolkit.commands.inspect import info
from lltoolkit.commands.trajectory import trajectory
from lltoolkit.options import model_options, reports_errors

app = typer.Typer(
    name="lltoolkit",
    help="Loss landscapes of neural networks: compute, store and show them (after Li et al. 2018).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


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
    schedule: Annotated[str, typer.Option(help="step, cosine, one_cycle or constant.")] = "step",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    every: Annotated[
        str, typer.Option(help="When to keep a checkpoint: epoch, geometric, or a number of steps.")
    ] = "epoch",
    dtype: Annotated[
        str | None, typer.Option(help="Of stored weights: float32 or bfloat16; default the model's.")
    ] = None,
    thin: Annotated[str, typer.Option(help="none, last (first and last ten checkpoints) or projection.")] = "none",
    optimizer_state: Annotated[bool, typer.Option("--optimizer-state", help="Keep Adam's moments too.")] = False,
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
        every=int(every) if every.isdigit() else every,
        record={"dtype": dtype, "thin": thin, "optimizer_state": optimizer_state},
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


for command in (surface, curvature, sharpness, trajectory, plot, info):
    app.command()(command)
