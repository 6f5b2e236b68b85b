"""Time and accuracy of whole surfaces: lltoolkit on one and two processes, beside the fastest peer's cells."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xarray as xr

import lltoolkit
from benchmarks.cases import Case
from benchmarks.contestants import PEERS, Loop, recruit
from benchmarks.meter import Turn
from benchmarks.report import machine_line, table

LOSS_WHERE_LOOKED = 10.0  # contours end here
CENTRAL = 0.5  # the central quarter of [-1, 1]^2
CELLS_PER_SIDE = 2  # of a peer's grid before and after ours
BAR_TWO_CORES = 1.7
COMPUTED = 1  # the status of a cell that was measured on all examples
SAME = ("theta_sha256", "data_sha256", "subspace_id")


def compare_surfaces(
    case: Case,
    *,
    resolution: int,
    examples: str,
    tolerance: float | None,
    workers: Sequence[int],
    exact: Path | None,
    keep: Path | None,
    peers: Sequence[str] | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Compute one surface with each number of processes, between two turns of the peers.

    Parameters
    ----------
    case : Case
        The model and its examples.
    resolution : int
        Cells per side.
    examples, tolerance
        As `lltoolkit.compute_surface` takes them: how many examples a cell is measured on.
    workers : sequence of int
        Numbers of local processes, one run each.
    exact : Path, optional
        A surface of all examples to compare with.
    keep : Path, optional
        Where to write the first run's surface, to be an `exact` one later.
    peers : sequence of str, optional
        Which peers to time; all, and the DataLoader loop, unless given.
    tell : callable
        Takes lines about the progress.

    Returns
    -------
    dict
        JSON-able.

    Raises
    ------
    ValueError
        If `exact` is of other weights, examples or directions, lacks cells of the grid, or is not exact itself.
    """
    objective = lltoolkit.Objective(case.model, {"train": (case.x, case.y)}, device="cpu")
    plane = lltoolkit.random_subspace(objective, seed=0)
    reference = lltoolkit.open_result(exact) if exact is not None else None
    if reference is not None:
        _require_same(reference, objective, plane)
    contestants, missing = recruit(case, plane, peers or (*PEERS, Loop.name))
    turns: dict[str, list[Turn]] = {one.name: [] for one in contestants}

    def time_peers() -> None:
        for one in contestants:
            turns[one.name].append(one.turn(CELLS_PER_SIDE))
            tell(f"  {one.name}: {turns[one.name][-1].wall:.3g} s per cell")

    time_peers()
    runs = []
    for place, n_workers in enumerate(workers):
        before, cpu_before = time.perf_counter(), _cpu_seconds()
        surface = lltoolkit.compute_surface(
            objective,
            plane,
            resolution=resolution,
            examples=examples,
            tolerance=tolerance,
            n_workers=n_workers,
            path=keep if place == 0 else None,
            resume=False,
            progress=False,
        )
        seconds = time.perf_counter() - before
        run: dict[str, Any] = {"n_workers": n_workers, "wall_s": seconds, "cpu_s": _cpu_seconds() - cpu_before}
        if "n_forwards" in surface.attrs:
            n_forwards = float(surface.attrs["n_forwards"])
            run |= {"n_forwards": n_forwards, "share_of_forwards": n_forwards / (resolution**2 * case.n_examples)}
        if reference is not None:
            run["errors"] = log_errors(surface, reference)
        runs.append(run)
        tell(f"  lltoolkit, {n_workers} process{'es' * (n_workers > 1)}: {seconds:.1f} s")
    time_peers()
    others = {name: median(turn.wall for turn in done) for name, done in turns.items()}
    for run in runs:
        run["speedup"] = runs[0]["wall_s"] / run["wall_s"]
        run["ratios"] = {name: wall * resolution**2 / run["wall_s"] for name, wall in others.items()}
    return {
        "case": case.name,
        "label": case.label,
        "about": case.about,
        "n_examples": case.n_examples,
        "resolution": resolution,
        "examples": examples,
        "tolerance": tolerance,
        "runs": runs,
        "peers_s_per_cell": others,
        "missing": missing,
    }


def log_errors(surface: xr.Dataset, exact: xr.Dataset) -> dict[str, dict[str, float]]:
    """Compare two surfaces in log loss, where people look and overall.

    Parameters
    ----------
    surface, exact : xr.Dataset
        Results of `lltoolkit.compute_surface`; `exact` has every cell of `surface`, and perhaps more.

    Returns
    -------
    dict
        For ``all``, ``loss <= 10`` and ``central quarter``: ``p95``, ``rms`` and ``max`` of the absolute difference in
        nats, over ``n`` cells in which both losses are finite and above 0, and ``n_left_out``.

    Raises
    ------
    ValueError
        If `exact` lacks cells.
    """
    axes = [axis for axis in ("alpha", "beta", "gamma") if axis in surface.dims]
    found = surface["loss"].isel(split=0)
    try:
        wanted = exact["loss"].isel(split=0).sel({axis: found[axis] for axis in axes}, method="nearest", tolerance=1e-9)
    except KeyError as error:
        raise ValueError(
            f"the exact surface has the sizes {dict(exact.sizes)} and lacks cells of the grid compared, "
            f"{dict(surface.sizes)}. Use its resolution, or one whose cells are among its own."
        ) from error
    a, b = found.transpose(*axes).values, wanted.transpose(*axes).values
    usable = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(np.log(a) - np.log(b))
    inner = np.ones(a.shape, dtype=bool)
    for number, axis in enumerate(axes):
        shape = [-1 if place == number else 1 for place in range(len(axes))]
        inner &= (np.abs(found[axis].values) <= CENTRAL + 1e-9).reshape(shape)
    regions = {"all": np.ones(a.shape, dtype=bool), "loss <= 10": b <= LOSS_WHERE_LOOKED, "central quarter": inner}
    return {
        name: _summary(difference[region & usable], int((region & ~usable).sum())) for name, region in regions.items()
    }


def _summary(difference: np.ndarray, n_left_out: int) -> dict[str, float]:
    if not len(difference):
        return {"n": 0, "n_left_out": n_left_out, "p95": float("nan"), "rms": float("nan"), "max": float("nan")}
    return {
        "n": len(difference),
        "n_left_out": n_left_out,
        "p95": float(np.quantile(difference, 0.95)),
        "rms": float(np.sqrt(np.mean(difference**2))),
        "max": float(difference.max()),
    }


def _require_same(reference: xr.Dataset, objective: lltoolkit.Objective, plane: lltoolkit.Subspace) -> None:
    how = (
        "Compute one with python -m benchmarks surface --examples all --tolerance 0 --keep FILE, for the same case, "
        "number of examples, images and weights."
    )
    own = dict(zip(SAME, (objective.theta_sha256, objective.data_sha256, plane.id), strict=True))
    if other := [name for name in SAME if reference.attrs.get(name) != own[name]]:
        raise ValueError(f"the exact surface differs in {', '.join(other)}. {how}")
    if n_others := int((reference["status"] != COMPUTED).sum()):
        raise ValueError(f"{n_others} cells of the exact surface were not computed on all examples. {how}")


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def surfaces_report(content: Mapping[str, Any]) -> str:
    """Draw the tables of a whole surface as Markdown."""
    result = content["surface"]
    side = result["resolution"]
    rows = [
        [
            f"lltoolkit, {run['n_workers']} process{'es' * (run['n_workers'] > 1)}",
            f"{run['wall_s']:.1f} s",
            f"{run['cpu_s']:.1f} s",
            f"{1 / run['speedup']:.2f}",
            f"{run['share_of_forwards']:.1%}" if "n_forwards" in run else "",
        ]
        for run in result["runs"]
    ]
    first = result["runs"][0]
    for name, wall in sorted(result["peers_s_per_cell"].items(), key=lambda item: item[1]):
        rows.append(
            [f"{name}, cells x time per cell", f"{wall * side**2:.1f} s", "", f"{first['ratios'][name]:.2f}", ""]
        )
    about = (
        f"{side}x{side} cells, {result['n_examples']} examples; examples={result['examples']!r}, "
        f"tolerance={result['tolerance']}; {result['about']}"
    )
    head = ["", "time", "CPU time", "ratio", "forwards"]
    parts = [f"### {result['label']}: the whole surface", f"{about}.", table(head, rows)]
    if errors := result["runs"][0].get("errors"):
        rows = [
            [name, str(found["n"]), *(f"{found[key]:.2g}" for key in ("p95", "rms", "max"))]
            for name, found in errors.items()
        ]
        parts.append(table(["absolute difference of log loss, nats", "cells", "p95", "rms", "max"], rows))
    parts.append(machine_line(content["machine"]))
    return "\n\n".join(parts) + "\n"


def surface_bars(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold a whole surface against the bar for two cores."""
    return [
        {
            "what": f"{result['label']}: 2 processes against 1",
            "wanted": BAR_TWO_CORES,
            "found": run["speedup"],
            "met": run["speedup"] >= BAR_TWO_CORES,
        }
        for run in result["runs"]
        if run["n_workers"] == 2 and result["runs"][0]["n_workers"] == 1
    ]
