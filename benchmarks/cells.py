"""Time per cell: all contestants and the machine's limit take turns, round by round."""

import hashlib
import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import lltoolkit
from benchmarks.cases import Case
from benchmarks.contestants import Contestant, Loop, Toolkit, recruit
from benchmarks.limit import Limit
from benchmarks.meter import Checked, Turn, exact_loss, relative_error
from lltoolkit.tensors.machine import using_threads

SMALLEST, LARGEST = 2, 40  # cells per side of a turn's grid


def compare_cells(
    case: Case,
    *,
    n_rounds: int,
    turn_seconds: float,
    n_checked: int,
    n_cores: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Let all contestants compute cells of one case in turns, after each was checked.

    Parameters
    ----------
    case : Case
        The model and its examples.
    n_rounds : int
        In every round each contestant has one turn; the order moves on by one from round to round.
    turn_seconds : float
        About how long a turn lasts at least: it sets the side of the contestant's grid.
    n_checked : int
        Cells of each contestant that are compared with the float64 loop.
    n_cores : int
        Threads of that loop, which is not timed.
    tell : callable
        Takes lines about the progress.

    Returns
    -------
    dict
        JSON-able: the case, its limit, every contestant with its medians, rounds, error and ratio.
    """
    objective = lltoolkit.Objective(case.model, {"train": (case.x, case.y)}, device="cpu")
    plane = lltoolkit.random_subspace(objective, seed=0)
    contestants, missing = recruit(case, plane)
    for reason in missing.values():
        tell(f"  left out: {reason}")
    limit = Limit(case.model, case.x)
    sides, errors = {}, {}
    known: dict[str, float] = {}
    for contestant in list(contestants):
        try:
            turn = contestant.turn(SMALLEST, check=True)  # also warms it up
        except Exception as error:  # a foreign package: the others are measured all the same
            missing[contestant.name] = f"fails with {type(error).__name__}: {error}"
            contestants.remove(contestant)
            tell(f"  left out: {contestant.name} {missing[contestant.name]}")
            continue
        with using_threads(n_cores):
            errors[contestant.name] = [_error(case, checked, known) for checked in turn.checked[:n_checked]]
        sides[contestant.name] = max(SMALLEST, min(LARGEST, math.ceil(math.sqrt(turn_seconds / turn.wall))))
        tell(f"  {contestant.name}: {turn.wall * 1e3:.2f} ms per cell, error {max(errors[contestant.name]):.1e}")
    rounds: list[dict[str, Turn]] = []
    everyone: list[Contestant | Limit] = [*contestants, limit]
    for number in range(n_rounds):
        first = number % len(everyone)
        order = everyone[first:] + everyone[:first]
        turns = {}
        for one in order:
            turns[one.name] = one.turn(turn_seconds) if isinstance(one, Limit) else one.turn(sides[one.name])
        rounds.append(turns)
        tell(f"  round {number + 1} of {n_rounds}")
    walls = {name: [turns[name].wall for turns in rounds] for name in rounds[0]}
    cpus = {name: [turns[name].cpu for turns in rounds] for name in rounds[0]}
    ours = Toolkit.name
    results = []
    for contestant in contestants:
        name = contestant.name
        results.append(
            {
                "name": name,
                "version": contestant.version,
                "wall_s": median(walls[name]),
                "cpu_s": median(cpus[name]),
                "ms_per_image": median(walls[name]) / case.n_examples * 1e3,
                "ratio_wall": median(walls[name]) / median(walls[ours]),
                "ratio_cpu": median(cpus[name]) / median(cpus[ours]),
                "setup_s": median(turns[name].setup for turns in rounds),
                "error": max(errors[name]),
                "n_checked": len(errors[name]),
                "cells_per_turn": sides[name] ** 2,
                "gives": contestant.gives,
                "note": contestant.note,
                "rounds_wall_s": walls[name],
                "rounds_cpu_s": cpus[name],
            }
        )
    floor = median(walls[limit.name])
    return {
        "case": case.name,
        "label": case.label,
        "about": case.about,
        "n_examples": case.n_examples,
        "n_params": case.n_params,
        "mflop_per_image": limit.flops / 1e6,
        "engine": next(one.engine for one in contestants if isinstance(one, Toolkit)),
        "limit": {
            "ms_per_image": floor / case.n_examples * 1e3,
            "best_ms_per_image": limit.best * 1e3,
            "gflop_per_s": limit.flops * case.n_examples / floor / 1e9,
            "share": floor / median(walls[ours]),
            "share_cpu": median(cpus[limit.name]) / median(cpus[ours]),
            "rounds_wall_s": walls[limit.name],
            "layers": limit.describe(),
        },
        "contestants": results,
        "missing": missing,
    }


def _error(case: Case, checked: Checked, known: dict[str, float]) -> float:
    """Compare a value with the float64 loop; contestants that had the very same weights share it."""
    digest = hashlib.sha256()
    for name in sorted(checked.state):
        digest.update(name.encode() + checked.state[name].numpy().tobytes())
    key = digest.hexdigest()
    if key not in known:
        known[key] = exact_loss(case.model, checked.state, case.x, case.y)
    return relative_error(checked.value, known[key])


def bars(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold one case's result against the bars.

    Parameters
    ----------
    result : mapping
        Of `compare_cells`.

    Returns
    -------
    list of dict
        ``what``, ``wanted``, ``found`` and ``met`` of each bar.
    """
    case, label = result["case"], result["label"]
    ratios = {one["name"]: one["ratio_wall"] for one in result["contestants"]}
    loop = ratios.get(Loop.name)
    peers = {name: ratio for name, ratio in ratios.items() if name not in (Toolkit.name, Loop.name)}
    wanted: list[tuple[str, float, float]] = []
    if peers:
        fastest = min(peers, key=lambda name: peers[name])
        least = 2.0 if case.startswith("resnet") else 1.0
        wanted.append((f"times as fast as the fastest peer ({fastest})", least, peers[fastest]))
    if loop is not None and case in ("mlp", "cnn"):
        wanted.append(("times as fast as a DataLoader loop", 12.0 if case == "mlp" else 4.0, loop))
    if case == "resnet20":
        wanted.append(("share of the convolution limit", 0.7, result["limit"]["share"]))
    return [
        {"what": f"{label}: {what}", "wanted": least, "found": found, "met": found >= least}
        for what, least, found in wanted
    ]
