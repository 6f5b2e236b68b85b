"""Engines and batch sizes in turns: what the rules of `lltoolkit.tensors.engines` and `.machine` were read from."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import lltoolkit
from benchmarks.cases import Case
from benchmarks.report import machine_line, table
from lltoolkit.tensors.engines import ENGINES, make_engine
from lltoolkit.tensors.machine import using_threads

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024, 4096)
POINTS = [(0.3, -0.2), (-0.7, 0.4), (0.1, 0.9)]


def compare_engines(case: Case, *, n_rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Time a cell by every engine that takes the model, at every batch size up to the number of examples.

    Parameters
    ----------
    case : Case
        The model and its examples.
    n_rounds : int
        Turns of each; medians are given.
    tell : callable
        Takes lines about the progress.

    Returns
    -------
    dict
        JSON-able: ``chosen``, engine and batch size by the rules, and ``ms_per_image`` by engine and batch size.
    """
    objective = lltoolkit.Objective(case.model, {"train": (case.x, case.y)}, device="cpu")
    plane = lltoolkit.random_subspace(objective, seed=0)
    chosen = {"engine": make_engine(objective, plane).name, "batch_size": objective.batch_size}
    engines = {name: make_engine(objective, plane, name) for name in ENGINES if name != "auto"}
    engines = {name: engine for name, engine in engines.items() if engine.name == name}
    sizes = [size for size in BATCH_SIZES if size < 2 * case.n_examples]
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in engines for size in sizes}
    for number in range(n_rounds + 1):  # the first warms up
        tell(f"{case.label}: round {number} of {n_rounds}")
        for (name, size), found in times.items():
            objective.compute_as(size, 1)
            points = POINTS if engines[name].group == 1 else POINTS[:1] * engines[name].group
            with using_threads(1):
                start = perf_counter()
                engines[name].measure_points(points)
                seconds = perf_counter() - start
            if number:
                found.append(seconds / len(points) / case.n_examples)
    milliseconds: dict[str, dict[str, float]] = {}
    for (name, size), found in times.items():
        milliseconds.setdefault(name, {})[str(size)] = 1e3 * median(found)
    return {"name": case.name, "label": case.label, "chosen": chosen, "ms_per_image": milliseconds}


def engines_report(content: Mapping[str, Any]) -> str:
    """Draw a table for each model: engines in rows, batch sizes in columns, microseconds per image."""
    parts = []
    for result in content["cases"]:
        sizes: Sequence[str] = list(next(iter(result["ms_per_image"].values())))
        rows = [
            [name, *(f"{1e3 * times[size]:.3g}" for size in sizes)] for name, times in result["ms_per_image"].items()
        ]
        chosen = result["chosen"]
        parts += [
            f"### {result['label']}: {chosen['engine']}, batches of {chosen['batch_size']}",
            table(["microseconds per image", *sizes], rows),
        ]
    return "\n\n".join([*parts, machine_line(content["machine"])]) + "\n"
