"""What several commands share: their options, the network, examples and subspace that these name, and their errors."""

import copy
import functools
import logging
import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from lltoolkit.errors import require_whole

if TYPE_CHECKING:
    from torch import nn

    from lltoolkit.tensors.objective import Objective
    from lltoolkit.tensors.subspace import Subspace
    from lltoolkit.zoo.data import LoadedData

TYPED = {
    "resume=False": "--no-resume",
    "damaged='skip'": "--damaged skip",
    "buffers='recompute'": "--buffers recompute",
    "Give pattern=": "Give --pattern",
    "prefix=": "--prefix ",
}

P = ParamSpec("P")
R = TypeVar("R")

RunFolder = Annotated[
    Path | None, typer.Option("--run", help="A folder of `lltoolkit train`; or --model and --weights.")
]
Model = Annotated[str | None, typer.Option(help="A network of the zoo, or of torchvision, by name.")]
Weights = Annotated[Path | None, typer.Option(help="Its weights: .safetensors or .pt.")]
Data = Annotated[str | None, typer.Option(help="digits, cifar10, ..., an .npz; default the run's.")]
Shortcut = Annotated[str, typer.Option(help="Of a ResNet: A, B or none.")]
Width = Annotated[int, typer.Option(help="Of a ResNet: factor on its channels.")]
Normalize = Annotated[
    str | None, typer.Option(help="Of the data: default, cifar10, imagenet or none; as the run's unless given.")
]
Dims = Annotated[int, typer.Option(help="1, 2 or 3 random directions.")]
Seed = Annotated[int, typer.Option(help="Of the directions.")]
DirectionNormalize = Annotated[str, typer.Option(help="filter, layer, weight or none.")]
Ignore = Annotated[str, typer.Option(help="bias_bn, none or original_code.")]
Buffers = Annotated[str, typer.Option(help="Batch-norm statistics: frozen or recompute.")]
SpanText = Annotated[str | None, typer.Option("--span", help="S for -S to S, or LOW,HIGH.")]
ResolutionText = Annotated[str | None, typer.Option("--resolution", help="Points per axis: N, or N,M for each.")]
NExamples = Annotated[int | None, typer.Option("--examples", help="At most so many of each split; default all.")]
Parameters = Annotated[
    str | None, typer.Option(help="Which the Hessian is of: weights (two or more axes), or a regular expression.")
]
Workers = Annotated[int | None, typer.Option(help="Processes; default one a core where it pays.")]
Scheduler = Annotated[str | None, typer.Option(help="Of a Dask cluster to compute on, tcp://HOST:PORT.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Resume = Annotated[bool, typer.Option(help="Go on from what the file holds, or replace it.")]


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
            typer.echo(f"Error: {_as_typed(str(error))}", err=True)
            raise typer.Exit(1) from None

    return wrapped


def _as_typed(message: str) -> str:
    """Name the arguments that an error advises as options of the command line."""
    for argument, option in TYPED.items():
        message = message.replace(argument, option)
    return message


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes
    ----------
    run : Path or None
        A folder of `lltoolkit train`; or `model` and `weights`.
    model, weights, data, normalize, shortcut, width
        As the options of their names.
    """

    run: Path | None
    model: str | None
    weights: Path | None
    data: str | None
    normalize: str | None
    shortcut: str
    width: int

    def load(self) -> "tuple[nn.Module, LoadedData]":
        """Load the network and its examples.

        Returns
        -------
        model, data
            Trained, and normalized as in training.

        Raises
        ------
        ValueError
            If the options contradict each other, or one is missing.
        """
        from lltoolkit import zoo

        if (self.model is None) != (self.weights is None) or (self.run is None) == (self.model is None):
            raise ValueError("give either --run, a folder of `lltoolkit train`, or both --model and --weights.")
        if self.run is not None:
            if (self.shortcut, self.width) != ("A", 1):
                raise ValueError("--run knows its network: leave --shortcut and --width out.")
            trained = zoo.open_run(self.run)
            return trained.model, data_of(trained.config["data"], self.data, self.normalize)
        if self.data is None:
            raise ValueError("--data is missing: digits, cifar10, ..., or the path of an .npz.")
        splits = zoo.load_data(self.data, normalize=self.normalize or "default")
        return zoo.load_weights(build_for(splits, self.model, self.shortcut, self.width), self.weights), splits


def build_for(splits: "LoadedData", model: str, shortcut: str, width: int) -> "nn.Module":
    """Build a network of the zoo for the images and classes of a data set."""
    from lltoolkit import zoo

    images = splits["train"][0]
    return zoo.build_model(
        model,
        **model_options(shortcut, width),
        n_classes=splits.n_classes,
        in_channels=images.shape[1],
        input_size=images.shape[-1],
    )


def choose_subspaces(
    objective: "Objective",
    network: "nn.Module",
    *,
    to: Path | None,
    dims: int,
    seed: int,
    n_seeds: int,
    normalize: str,
    ignore: str,
) -> "list[Subspace]":
    """Make the subspaces that options name: random ones, or the line to other weights.

    Returns
    -------
    list of Subspace
        One, or one for each seed.

    Raises
    ------
    ValueError
        If --to comes with options of random directions.
    """
    import lltoolkit as ll

    if to is not None:
        if (dims, seed, n_seeds, normalize, ignore) != (2, 0, 1, "filter", "bias_bn"):
            raise ValueError(
                "--to gives the line: leave --dims, --seed, --n-seeds, --direction-normalize and --ignore out."
            )
        return [ll.interpolate(objective, ll.zoo.load_weights(copy.deepcopy(network), to))]
    n_seeds = require_whole("--n-seeds", n_seeds, least=1)
    options: Mapping[str, Any] = {"dims": dims, "normalize": normalize, "ignore": ignore}
    return [ll.random_subspace(objective, seed=seed + step, **options) for step in range(n_seeds)]


def grid_options(span: str | None, resolution: str | None, subspace: "Subspace") -> dict[str, Any]:
    """Read --span and --resolution, and check that they make a grid before anything is measured."""
    from lltoolkit.compute import grid_of

    grid = {"span": _numbers("span", span), "resolution": _resolution(resolution, subspace.axes)}
    grid_of(subspace, **grid)
    return grid


def connect_to(scheduler: str | None) -> AbstractContextManager[Any]:
    """Connect to a cluster, if there is one, for as long as it is needed."""
    if scheduler is None:
        return nullcontext()
    from lltoolkit.cluster import connect

    return connect(scheduler)


def data_of(about: dict[str, Any], data: str | None, normalize: str | None) -> "LoadedData":
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


def model_options(shortcut: str, width: int) -> dict[str, Any]:
    """Return the options that differ from their defaults: not every network has them."""
    options = {"shortcut": (shortcut, "A"), "width": (width, 1)}
    return {name: given for name, (given, default) in options.items() if given != default}


def expectation(objective: "Objective", subspaces: "Sequence[Subspace]", **grid: Any) -> str:
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
