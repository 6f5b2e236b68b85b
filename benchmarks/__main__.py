"""``python -m benchmarks``: cells, whole surfaces, curvature, memory, recording."""

import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.cases import CASES, Sources, make_case
from benchmarks.cells import bars, compare_cells
from benchmarks.curvature import curvature_bars, curvature_report, measure_curvature
from benchmarks.engines import compare_engines, engines_report
from benchmarks.limit import sgemm_rate
from benchmarks.memory import compute_one, measure_memory, memory_report
from benchmarks.recorder import measure_recorder, recorder_bars, recorder_report
from benchmarks.report import bars_table, cells_report, describe_machine, write_json
from benchmarks.surfaces import compare_surfaces, surface_bars, surfaces_report

app = typer.Typer(
    name="benchmarks",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CIFAR = typer.Option(envvar="LLTOOLKIT_CIFAR", help=".npz with x_train, y_train, x_test, y_test; else random images.")
RESNET20 = typer.Option(envvar="LLTOOLKIT_RESNET20", help="Its weights as .safetensors; fresh ones otherwise.")
RESNET56 = typer.Option(envvar="LLTOOLKIT_RESNET56", help="Its weights as .safetensors; fresh ones otherwise.")
NORMALIZE = typer.Option(help="How the weights want the images: imagenet, cifar10, none.")
OUT = typer.Option(help="Where to write the numbers as JSON.")
THREADS = typer.Option(min=1, help="Threads of every contestant.")

Cifar = Annotated[Path | None, CIFAR]
ResNet20 = Annotated[Path | None, RESNET20]
ResNet56 = Annotated[Path | None, RESNET56]
Normalize = Annotated[str, NORMALIZE]
Out = Annotated[Path | None, OUT]
Threads = Annotated[int, THREADS]
CaseName = Annotated[str, typer.Option(help=f"One of {', '.join(CASES)}.")]
Tolerance = Annotated[float, typer.Option(min=0.0, help="Of the log loss in nats; 0 computes every cell.")]


@app.callback()
def on_cpu() -> None:
    """Compare lltoolkit with the other tools, a DataLoader loop and the machine's own limit."""
    # One of the tools takes a GPU wherever it finds one, the moment it is imported: hide them, nothing has looked yet.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("MPLBACKEND", "Agg")  # the same tool draws after every grid


@app.command()
def cells(
    out: Out = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(CASES)}; may be repeated.")] = None,
    threads: Threads = 1,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns of each contestant: 5, quick 3.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer examples, rounds and checks: about 2 minutes.")] = False,
    cifar: Cifar = None,
    resnet20: ResNet20 = None,
    resnet56: ResNet56 = None,
    normalize: Normalize = "imagenet",
) -> None:
    """Time a cell of every tool on four models, in turns, and check its value."""
    torch.set_num_threads(threads)
    sources = _sources(cifar, resnet20, resnet56, normalize)
    machine = describe_machine(threads)
    machine["sgemm_gflop_per_s"] = sgemm_rate()
    content: dict[str, Any] = {"machine": machine, "cases": [], "bars": []}
    for name in only or CASES:
        case = make_case(name, sources, quick=quick)
        _tell(f"{case.label}: {case.n_examples} examples, {case.about}")
        result = compare_cells(
            case,
            n_rounds=rounds or (3 if quick else 5),
            turn_seconds=0.25 if quick else 1.0,
            n_checked=1 if quick else 3,
            n_cores=os.cpu_count() or 1,
            tell=_tell,
        )
        content["cases"].append(result)
        content["bars"] += bars(result)
        _keep(out, content)
    typer.echo(cells_report(content))


@app.command()
def engines(
    out: Out = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(CASES)}; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine at each batch size.")] = 3,
    cifar: Cifar = None,
    resnet20: ResNet20 = None,
    resnet56: ResNet56 = None,
    normalize: Normalize = "imagenet",
) -> None:
    """Time every engine at every batch size, on one thread: what "auto" and the default batch size were read from."""
    torch.set_num_threads(1)
    sources = _sources(cifar, resnet20, resnet56, normalize)
    content: dict[str, Any] = {"machine": describe_machine(1), "cases": []}
    for name in only or CASES:
        content["cases"].append(compare_engines(make_case(name, sources, quick=True), n_rounds=rounds, tell=_tell))
        _keep(out, content)
    typer.echo(engines_report(content))


@app.command()
def surface(
    case: CaseName = "resnet20",
    n_examples: Annotated[int, typer.Option(min=2, help="Training examples of the surface.")] = 1600,
    resolution: Annotated[int, typer.Option(min=3, help="Cells per side.")] = 25,
    examples: Annotated[str, typer.Option(help="two-level or all.")] = "two-level",
    tolerance: Tolerance = 0.05,
    workers: Annotated[list[int] | None, typer.Option(help="Numbers of processes, one run each; 1 and 2.")] = None,
    exact: Annotated[Path | None, typer.Option(help="A surface of all examples to compare with.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Where to write the first run's surface.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only these peers; may be repeated.")] = None,
    out: Out = None,
    cifar: Cifar = None,
    resnet20: ResNet20 = None,
    resnet56: ResNet56 = None,
    normalize: Normalize = "imagenet",
) -> None:
    """Time a whole surface on one and two processes, beside the peers' cells, and measure its error."""
    torch.set_num_threads(1)
    sources = _sources(cifar, resnet20, resnet56, normalize)
    machine = describe_machine(1)
    result = compare_surfaces(
        make_case(case, sources, n_examples=n_examples),
        resolution=resolution,
        examples=examples,
        tolerance=tolerance or None,
        workers=workers or (1, 2),
        exact=exact,
        keep=keep,
        peers=peer,
        tell=_tell,
    )
    content = {"machine": machine, "surface": result, "bars": surface_bars(result)}
    _keep(out, content)
    typer.echo(surfaces_report(content))
    if content["bars"]:
        typer.echo(bars_table(content["bars"]))


@app.command()
def curvature(
    case: CaseName = "resnet20",
    n_examples: Annotated[int, typer.Option(min=2, help="Training examples.")] = 500,
    resolution: Annotated[int, typer.Option(min=2, help="Cells per side.")] = 15,
    sampled: Annotated[int, typer.Option(min=1, help="Random cells that are computed by other roads, too.")] = 20,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes for the map; default one a core.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Where the map is kept: a second call goes on from it.")] = None,
    out: Out = None,
    cifar: Cifar = None,
    resnet20: ResNet20 = None,
    resnet56: ResNet56 = None,
    normalize: Normalize = "imagenet",
) -> None:
    """Count the work of a curvature map beside scipy's eigsh, and measure its error; goes on from --out and --keep."""
    torch.set_num_threads(1)
    content: dict[str, Any] = {"machine": describe_machine(1)}
    known = None
    if out is not None and out.exists():
        known = json.loads(out.read_text()).get("curvature")

    def note(result: dict[str, Any]) -> None:
        _keep(out, content | {"curvature": result})

    content["curvature"] = measure_curvature(
        make_case(case, _sources(cifar, resnet20, resnet56, normalize), n_examples=n_examples),
        resolution=resolution,
        n_sampled=sampled,
        keep=keep,
        n_workers=workers,
        known=known,
        tell=_tell,
        note=note,
    )
    content["bars"] = curvature_bars(content["curvature"])
    _keep(out, content)
    typer.echo(curvature_report(content))
    typer.echo(bars_table(content["bars"]))


@app.command()
def recorder(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training, of 12 steps.")] = 15,
    out: Out = None,
) -> None:
    """Measure what recording costs a training of ResNet-20 on the digits, in turns with a plain loop."""
    torch.set_num_threads(1)
    content: dict[str, Any] = {
        "machine": describe_machine(1),
        "recorder": measure_recorder(n_epochs=epochs, tell=_tell),
    }
    content["bars"] = recorder_bars(content["recorder"])
    _keep(out, content)
    typer.echo(recorder_report(content))
    typer.echo(bars_table(content["bars"]))


@app.command()
def memory(
    case: CaseName = "resnet20",
    n_examples: Annotated[int, typer.Option(min=2, help="Examples; random images for the ResNets.")] = 2000,
    resolution: Annotated[int, typer.Option(min=2, help="Cells per side.")] = 3,
    examples: Annotated[str, typer.Option(help="two-level or all.")] = "all",
    tolerance: Tolerance = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Computing processes.")] = 2,
    out: Out = None,
) -> None:
    """Measure the peak memory of a surface's processes."""
    machine = describe_machine(1)
    arguments = ["--case", case, "--n-examples", n_examples, "--resolution", resolution, "--examples", examples]
    arguments += ["--tolerance", tolerance, "--workers", workers]
    result = measure_memory([str(argument) for argument in arguments], n_workers=workers)
    content = {"machine": machine, "memory": result}
    _keep(out, content)
    typer.echo(memory_report(content))


@app.command(hidden=True)
def one_surface(
    case: CaseName,
    n_examples: Annotated[int, typer.Option()],
    resolution: Annotated[int, typer.Option()],
    examples: Annotated[str, typer.Option()],
    tolerance: Annotated[float, typer.Option()],
    workers: Annotated[int, typer.Option()],
) -> None:
    """Compute one surface and print its sizes as JSON: the process that `memory` watches."""
    torch.set_num_threads(1)
    # Random images, exactly as many as are used: those of a file would be read whole, and stand in the peak.
    made = make_case(case, Sources(None, {}, "none"), n_examples=n_examples)
    sizes = compute_one(made, resolution=resolution, n_workers=workers, examples=examples, tolerance=tolerance or None)
    typer.echo(json.dumps(sizes))


def _sources(cifar: Path | None, resnet20: Path | None, resnet56: Path | None, normalize: str) -> Sources:
    weights = {"resnet20": resnet20, "resnet56": resnet56}
    return Sources(cifar, {name: path for name, path in weights.items() if path is not None}, normalize)


def _keep(out: Path | None, content: dict[str, Any]) -> None:
    if out is not None:
        write_json(out, content)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    app()
