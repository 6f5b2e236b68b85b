"""Work and accuracy of a curvature map, beside scipy's eigsh as the published code of Li et al. (2018) uses it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

import lltoolkit
from benchmarks.cases import Case
from benchmarks.report import machine_line, table
from lltoolkit.tensors.hessian import Hessian, Point
from lltoolkit.tensors.lanczos import extreme_eigenvalues
from lltoolkit.tensors.seeds import generator

TOL = 1e-2  # of the map, and of the published code
TIGHT = 1e-6
BAR_FEWER = 5.0
BAR_ERROR = 0.01
ROUNDS = 3


def measure_curvature(
    case: Case,
    *,
    resolution: int,
    n_sampled: int,
    keep: Path | None,
    n_workers: int | None,
    known: Mapping[str, Any] | None,
    tell: Callable[[str], None],
    note: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Compute one map, and the same eigenvalues by other roads on random cells of it.

    Parameters
    ----------
    case : Case
        The model and its examples; the Hessian is in the weights with two or more axes, as in the published code.
    resolution : int
        Cells per side of [-1, 1]^2.
    n_sampled : int
        Random cells on which eigsh and a cold run are tried.
    keep : Path, optional
        Where the map is kept: a second call goes on from it.
    n_workers : int, optional
        Processes for the map.
    known : mapping, optional
        What an earlier call noted: its cells are not computed again.
    tell, note : callable
        Take lines about the progress, and the result so far.

    Returns
    -------
    dict
        JSON-able: the costs of a gradient and of products in forward passes, the products of each road by cell, errors.
    """
    objective = lltoolkit.Objective(case.model, {"train": (case.x, case.y)}, device="cpu")
    plane = lltoolkit.random_subspace(objective, seed=0)
    result: dict[str, Any] = {
        "case": case.name,
        "label": case.label,
        "about": case.about,
        "n_examples": case.n_examples,
        "resolution": resolution,
        "tol": TOL,
        "cost": costs(objective),
        "cells": list((known or {}).get("cells", [])),
    }
    tell(f"  in forward passes: {result['cost']}")
    curvature = lltoolkit.compute_curvature(
        objective, plane, resolution=resolution, parameters="weights", tol=TOL, path=keep, n_workers=n_workers
    )
    names = ("n_hvp_total", "n_hvp_audit", "n_hvp_median", "n_audit", "n_audit_missed", "audited_max", "n_unconverged")
    result["map"] = {name: float(curvature.attrs[name]) for name in names} | {"n_cells": curvature["status"].size}
    note(result)
    hessian = Hessian(objective, parameters="weights")
    done = {tuple(cell["cell"]) for cell in result["cells"]}
    for place in np.random.default_rng(0).permutation(resolution**2)[:n_sampled]:
        i, j = (int(step) for step in np.unravel_index(place, (resolution, resolution)))
        if (i, j) in done:
            continue
        here = curvature.isel(alpha=i, beta=j)
        with hessian.at(plane.at(float(here.alpha), float(here.beta))) as point:
            found = other_roads(point, hessian, seed=int(place))
        found |= {"cell": [i, j], "loss": float(here.loss), "n_hvp": int(here.n_hvp)}
        scale = found["eig_max"]
        for end in ("eig_min", "eig_max"):
            found[f"error_{end}"] = abs(float(here[end]) - found[end]) / scale
        result["cells"].append(found)
        tell(f"  {found}")
        note(result)
    return result


def costs(objective: lltoolkit.Objective) -> dict[str, float]:
    """Time a gradient with its graph, and products with and without it, in forward passes of one batch.

    Returns
    -------
    dict
        Medians of ratios, the three timed in turns.
    """
    hessian = Hessian(objective, parameters="weights")
    vector = torch.randn(hessian.n, generator=generator("benchmark"))
    positions = torch.arange(min(objective.batch_size, objective.n_examples["train"]))
    one = Hessian(objective, parameters="weights", positions=positions)
    rebuilt = Hessian(objective, parameters="weights", positions=positions, memory=0)
    batch = objective.examples["train"].pick(positions).take(slice(0, None))
    ratios: dict[str, list[float]] = {"gradient": [], "kept": [], "rebuilt": []}
    for _ in range(ROUNDS + 1):
        with objective.measuring():
            forward = _seconds(lambda: objective.measure_batch(batch))
        begun = time.perf_counter()
        with one.at() as point:
            ratios["gradient"].append((time.perf_counter() - begun) / forward)
            ratios["kept"].append(_seconds(lambda: point(vector)) / forward)
        with rebuilt.at() as point:
            ratios["rebuilt"].append(_seconds(lambda: point(vector)) / forward)
    return {name: median(found[1:]) for name, found in ratios.items()}  # the first of each warms up


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def other_roads(point: Point, hessian: Hessian, seed: int) -> dict[str, Any]:
    """Find both ends by eigsh, as published and to 1e-6, and by a cold run of our own.

    Returns
    -------
    dict
        The tight eigenvalues, and the products that each road took.
    """
    random = np.random.default_rng(seed)

    def by_eigsh(tol: float) -> tuple[dict[str, float], int]:
        before = point.n_hvp
        operator = LinearOperator(
            (hessian.n, hessian.n),
            matvec=lambda vector: point(torch.from_numpy(np.asarray(vector, dtype=np.float32)).flatten()).numpy(),
            dtype=np.float32,
        )
        ends = {
            name: float(eigsh(operator, k=1, which=which, tol=tol, v0=random.standard_normal(hessian.n))[0][0])
            for name, which in (("eig_min", "SA"), ("eig_max", "LA"))
        }
        return ends, point.n_hvp - before

    _, n_published = by_eigsh(TOL)
    ends, n_tight = by_eigsh(TIGHT)
    start = torch.from_numpy(random.standard_normal(hessian.n).astype(np.float32))
    cold = extreme_eigenvalues(point, start, tol=TOL)
    return ends | {"n_eigsh": n_published, "n_eigsh_tight": n_tight, "n_cold": cold.n_hvp}


def summarize(result: Mapping[str, Any]) -> dict[str, float]:
    """Put work per cell into forward passes.

    Returns
    -------
    dict
        ``ours`` with audits, ``eigsh`` with graphs rebuilt for every product, ``cold`` with kept graphs, their ratios
        to ours, and the largest errors.
    """
    cost, cells, found = result["cost"], result["cells"], result["map"]
    ours = found["n_hvp_total"] / found["n_cells"] * cost["kept"] + cost["gradient"]
    eigsh_work = mean(cell["n_eigsh"] for cell in cells) * cost["rebuilt"]
    cold = mean(cell["n_cold"] for cell in cells) * cost["kept"] + cost["gradient"]
    return {
        "ours": ours,
        "eigsh": eigsh_work,
        "cold": cold,
        "fewer_than_eigsh": eigsh_work / ours,
        "fewer_than_cold": cold / ours,
        "error_eig_min": max(cell["error_eig_min"] for cell in cells),
        "error_eig_max": max(cell["error_eig_max"] for cell in cells),
    }


def curvature_bars(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold the figures against the bars; see `report.bars_table`."""
    found = summarize(result)
    return [
        _bar("fewer forward passes than two eigsh with rebuilt graphs", found["fewer_than_eigsh"], BAR_FEWER),
        _bar("fewer than a cold run for both ends with kept graphs", found["fewer_than_cold"], 1.0),
        _bar("largest error of lambda_max / lambda_max", found["error_eig_max"], BAR_ERROR, most=True),
        _bar("largest error of lambda_min / lambda_max", found["error_eig_min"], BAR_ERROR, most=True),
    ]


def _bar(what: str, found: float, wanted: float, *, most: bool = False) -> dict[str, Any]:
    return {"what": what, "wanted": wanted, "found": found, "met": found <= wanted if most else found >= wanted}


def curvature_report(content: Mapping[str, Any]) -> str:
    """Draw the tables of a curvature map as Markdown."""
    result = content["curvature"]
    cost, found, work = result["cost"], result["map"], summarize(result)
    cells = result["cells"]
    rows = [
        ["lltoolkit, audits included", f"{found['n_hvp_total'] / found['n_cells']:.1f}", f"{work['ours']:.0f}", "1"],
        [
            "two eigsh, graphs rebuilt",
            f"{mean(cell['n_eigsh'] for cell in cells):.1f}",
            f"{work['eigsh']:.0f}",
            f"{work['fewer_than_eigsh']:.1f}",
        ],
        [
            "one cold run for both ends, graphs kept",
            f"{mean(cell['n_cold'] for cell in cells):.1f}",
            f"{work['cold']:.0f}",
            f"{work['fewer_than_cold']:.1f}",
        ],
    ]
    return "\n\n".join(
        [
            f"### Curvature map of {result['label']}",
            f"{result['resolution']}x{result['resolution']} cells, {result['n_examples']} examples; {result['about']}; "
            f"in forward passes a gradient costs {cost['gradient']:.1f}, a product {cost['kept']:.1f} with its graph "
            f"kept and {cost['rebuilt']:.1f} without.",
            table(["", "products a cell", "forward passes a cell", "ratio"], rows),
            f"Median of products a cell: {found['n_hvp_median']:g}. {found['n_audit_missed']:g} of "
            f"{found['n_audit']:g} audited cells missed, the largest difference {found['audited_max']:.1g} of "
            f"lambda_max. On {len(cells)} random cells against eigsh at 1e-6: lambda_max off by at most "
            f"{work['error_eig_max']:.1g}, lambda_min by {work['error_eig_min']:.1g} of lambda_max.",
            machine_line(content["machine"]),
        ]
    )
