"""The rules of PROTOCOL.md: from stored results to numbers, and from these to a verdict on each claim."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.interpolate import RectBivariateSpline

import lltoolkit as ll

WINDOW = 5  # epochs: the first ones, and those on each side of the first drop of the learning rate
ISOTROPIC = 2 / np.pi  # mean |cosine| of two random directions in a plane
SHARE = (0.4, 0.9)  # of the variation in two components, in the paper
NOTHING, SOMETHING = 0.01, 0.1  # captured shares


def judge(results: Path, names: Sequence[str]) -> dict[str, Any]:
    """Measure what the claims are about, and judge them.

    Parameters
    ----------
    results : Path
        With the surfaces, trajectories and statistics of `make.py`.
    names : sequence of str
        Of the VGG-9 runs.

    Returns
    -------
    dict
        ``claims``, with a verdict and a sentence each; and the numbers, by run.
    """
    runs = {name: numbers_of(results, name) for name in names}
    planes = {name: numbers_of(results, name) for name in ("random", "random-and-start")}
    schedules = {name: schedule_numbers(results, name) for name in ("step", "constant", "cosine", "one_cycle")}
    drop = first_drop(ll.open_result(results / "schedule-step.statistics.nc"))
    at_drop = {name: cosines_around(statistics(results, f"schedule-{name}"), drop) for name in ("step", "constant")}
    return {
        "claims": {
            "1": random_planes(planes["random"]["captured_share"]),
            "2": low_dimension(runs),
            "3": orbits(runs),
            "4": turns(runs, at_drop),
        },
        "vgg9": runs,
        "planes": planes,
        "schedules": schedules,
        "around the first drop of the step schedule": at_drop,
    }


def numbers_of(results: Path, name: str) -> dict[str, float]:
    """Measure one run in one plane."""
    path = ll.open_result(results / f"{name}.trajectory.nc")
    surface = ll.open_result(results / f"{name}.surface.nc")
    found = {"captured_share": float(path.attrs["captured_share"]), **off_the_plane(path)}
    if path.attrs["subspace_kind"] != "pca":
        return found
    found["explained_variance"] = float(path["explained_variance"].sum())
    found["explained_variance_null"] = float(path["explained_variance_null"].sum())
    aligned = alignment(path, surface)
    drop = first_drop(path)
    found["alignment_early"] = float(np.nanmean(aligned[:WINDOW]))
    found["alignment_late"] = float(np.nanmean(aligned[drop - WINDOW : drop]))
    return found | cosines_around(statistics(results, name), drop)


def schedule_numbers(results: Path, name: str) -> dict[str, float]:
    """Measure one of the runs that differ in their schedules."""
    path = ll.open_result(results / f"schedule-{name}.trajectory.nc")
    told = statistics(results, f"schedule-{name}")
    test = float(path["accuracy"].sel(split="test")[-1])
    return {
        "explained_variance": float(path["explained_variance"].sum()),
        "explained_variance_null": float(path["explained_variance_null"].sum()),
        "path_length": float(told["path_length"][-1]),
        "distance_from_start": float(told["distance_from_start"][-1]),
        "final_train_loss": float(path["loss"].sel(split="train")[-1]),
        "final_test_error": 1 - test,
    }


def statistics(results: Path, name: str) -> xr.Dataset:
    """Open the statistics of a run."""
    return ll.open_result(results / f"{name}.statistics.nc")


def off_the_plane(path: xr.Dataset) -> dict[str, float]:
    """Compare the loss of the checkpoints with that of their projections: median and largest ratio, either way."""
    true, plane = (path[name].sel(split="train").values for name in ("loss", "plane_loss"))
    ratio = np.abs(np.log(plane / true))[:-1]  # the last one is the origin
    ratio = ratio[np.isfinite(ratio)]
    return {"plane_loss_off_median": float(np.exp(np.median(ratio))), "plane_loss_off_max": float(np.exp(ratio.max()))}


def first_drop(path: xr.Dataset) -> int:
    """Count the epochs, one from each checkpoint to the next, before the learning rate first falls to half or less."""
    rate = path["learning_rate"].values[1:]  # of the step that led to each checkpoint
    return int(np.flatnonzero(rate[1:] <= 0.5 * rate[:-1])[0]) + 1


def alignment(path: xr.Dataset, surface: xr.Dataset) -> np.ndarray:
    """Give |cosine| between each step in the plane and the gradient of log loss at its middle.

    The directions of a PCA plane are orthogonal and of length 1, so that angles in it are angles of weights.

    Returns
    -------
    ndarray
        Shape ``(n_checkpoints - 1,)``; NaN for a step of length 0.
    """
    loss = surface["loss"].sel(split="train").transpose("alpha", "beta")
    spline = RectBivariateSpline(loss["alpha"].values, loss["beta"].values, np.log(loss.values))
    points = np.stack([path["alpha"].values, path["beta"].values], axis=1)
    middle, steps = (points[1:] + points[:-1]) / 2, np.diff(points, axis=0)
    slope = np.stack([spline.ev(*middle.T, dx=1), spline.ev(*middle.T, dy=1)], axis=1)
    lengths = np.linalg.norm(steps, axis=1) * np.linalg.norm(slope, axis=1)
    return np.abs((steps * slope).sum(axis=1)) / np.where(lengths > 0, lengths, np.nan)


def cosines_around(told: xr.Dataset, drop: int) -> dict[str, float]:
    """Give the mean cosine of the steps to the end of the path, before and after a drop of the learning rate."""
    cosines = told["cosine_to_end"].values[1:]  # of the step that led to each checkpoint
    return {
        "cosine_to_end_before": float(cosines[drop - WINDOW : drop].mean()),
        "cosine_to_end_after": float(cosines[drop : drop + WINDOW].mean()),
    }


def random_planes(share: float) -> dict[str, Any]:
    """Judge claim 1."""
    verdict = "agrees" if share < NOTHING else "disagrees" if share > SOMETHING else "undecided"
    return {"verdict": verdict, "because": f"the random plane captures {share:.2g} of the path"}


def low_dimension(runs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Judge claim 2."""
    inside = sum(SHARE[0] <= run["explained_variance"] <= SHARE[1] for run in runs.values())
    beyond = sum(run["explained_variance"] > run["explained_variance_null"] for run in runs.values())
    verdict = "agrees" if inside == len(runs) else "disagrees" if 2 * inside < len(runs) else "undecided"
    because = (
        f"two components hold 40 to 90 % in {inside} of {len(runs)} runs; more than a random walk's in {beyond} of "
        f"{len(runs)}"
    )
    return {"verdict": verdict, "because": because}


def orbits(runs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Judge claim 3."""
    chosen = [run for name, run in runs.items() if "small-wd0.0005" in name]
    turned = [run["alignment_late"] < min(run["alignment_early"], ISOTROPIC) for run in chosen]
    told = ", ".join(f"{run['alignment_early']:.2f} to {run['alignment_late']:.2f}" for run in chosen)
    verdict = "agrees" if all(turned) else "undecided" if any(turned) else "disagrees"
    return {"verdict": verdict, "because": f"alignment from early to late, small batches with weight decay: {told}"}


def turns(runs: dict[str, dict[str, float]], at_drop: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Judge claim 4."""
    rise = {name: each["cosine_to_end_after"] - each["cosine_to_end_before"] for name, each in at_drop.items()}
    risen = sum(run["cosine_to_end_after"] > run["cosine_to_end_before"] for run in runs.values())
    beyond = rise["step"] > max(rise["constant"], 0)
    verdict = "agrees" if beyond and risen >= len(runs) - 1 else "disagrees" if rise["step"] <= 0 else "undecided"
    because = (
        f"the cosine to the end changes by {rise['step']:+.2f} at the drop and by {rise['constant']:+.2f} over the "
        f"same epochs of a constant learning rate; it rises in {risen} of {len(runs)} VGG-9 runs"
    )
    return {"verdict": verdict, "because": because}
