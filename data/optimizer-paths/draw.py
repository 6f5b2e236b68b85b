"""Figures of the study: random planes as in figure 8 of Li et al. (2018), PCA planes as in figure 9, and more."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

import lltoolkit as ll

WORDS = {"sgd": "SGD", "adam": "Adam", "small": "batch 16", "large": "batch 230"}
DECAY = {"wd0": "", "wd0.0005": ", weight decay"}


def draw_figures(results: Path, names: Sequence[str]) -> None:
    """Draw all figures of the study into its folder.

    Parameters
    ----------
    results : Path
        With the surfaces, trajectories and statistics of `make.py`.
    names : sequence of str
        Of the VGG-9 runs.
    """
    random_planes(results)
    pca_planes(results, names)
    together(results)
    schedules(results)


def random_planes(results: Path) -> None:
    """Draw one path in a random plane and in one that holds the way from the start, as in figure 8."""
    planes = {"two random directions": "random", "the start and a random one": "random-and-start"}
    with ll.plots.figure((5.5, 2.7), n_columns=2) as (fig, axes):
        for ax, (title, name) in zip(axes, planes.items(), strict=True):
            path = over_its_surface(results, name, ax)
            ax.set_title(f"{title}: {100 * path.attrs['captured_share']:.2g} % in the plane", fontsize="medium")
        ll.save_figure(fig, results / "figure-8.png")


def pca_planes(results: Path, names: Sequence[str]) -> None:
    """Draw each run in the plane of its own principal components: small batches left, large right, as in figure 9."""
    rows = [name for name in names if "small" in name]
    with ll.plots.figure((5.5, 7.4), n_rows=len(rows), n_columns=2) as (fig, axes):
        for pair, small in zip(axes, rows, strict=True):
            for ax, name in zip(pair, (small, small.replace("small", "large")), strict=True):
                over_its_surface(results, name, ax)
                optimizer, batch, decay = name.split("-", 2)
                ax.set_title(f"{WORDS[optimizer]}, {WORDS[batch]}{DECAY[decay]}", fontsize="medium")
                ax.set_aspect("auto")
        ll.save_figure(fig, results / "figure-9.png", dpi=200)


def over_its_surface(results: Path, name: str, ax: Any) -> xr.Dataset:
    """Draw a path over the contours of its plane; a square is the start, red discs are drops of the learning rate."""
    path, surface = (ll.open_result(results / f"{name}.{kind}.nc") for kind in ("trajectory", "surface"))
    ll.plot_contour(surface, form="lines", minimizer=False, colorbar=False, ax=ax)
    ll.plot_trajectory(path, color="run", legend=False, ax=ax)
    return path


def together(results: Path) -> None:
    """Draw SGD and Adam from one start on one plane, with the loss along both paths."""
    paths = {label: ll.open_result(results / f"together-{key}.trajectory.nc") for key, label in list(WORDS.items())[:2]}
    surface = ll.open_result(results / "together.surface.nc")
    with ll.plots.figure((5.5, 2.9), n_columns=2) as (fig, (ax, beside)):
        ll.plot_trajectory(paths, surface=surface, companion=beside, ax=ax)
        ll.save_figure(fig, results / "together.png")


def schedules(results: Path) -> None:
    """Draw how runs move that differ in their schedules."""
    told = {
        name.replace("_", "-"): ll.open_result(results / f"schedule-{name}.statistics.nc")
        for name in ("step", "constant", "cosine", "one_cycle")
    }
    ll.save_figure(ll.plot_trajectory_statistics(told), results / "schedules.png")
