"""Make docs/gallery.md and its pictures: every type of figure, from shipped results, with the code that drew it.

``make gallery``, or ``python docs/gallery.py``: half a minute on one core. ``--compute`` first makes the two results
that only the gallery has, a curvature map and a spectrum: some minutes more.
"""

import contextlib
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

import lltoolkit as ll

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "docs/gallery"
DPI = 150
INTRO = """# Gallery

Every type of figure, each drawn by the lines below it from results that lie in this repository: run them in its root
after `import lltoolkit as ll`. `ll.save_figure(fig, "fig.pdf", result=...)` writes any of them at this size as PDF or
SVG, with embedded fonts. Made by `make gallery`; 3D scenes are drawn by `ll.render_surface`.
"""


def filled_contours() -> tuple[Any, Any]:
    """Draw filled contours, the default: levels 1, 2, 5, 10, ... for a loss, the minimizer a star."""
    surface = ll.open_result("data/skip-connections/with-shortcuts.surface.nc")
    with ll.plots.figure("icml", aspect=0.85) as (fig, ax):
        ll.plot_contour(surface, ax=ax)
    return fig, surface


def contour_lines() -> tuple[Any, Any]:
    """Draw contour lines at the paper's levels, 0.1 to 10 in steps of 0.5; the colour bar tells what lies beyond."""
    surface = ll.open_result("data/skip-connections/without-shortcuts.surface.nc")
    with ll.plots.figure("icml", aspect=0.85) as (fig, ax):
        ll.plot_contour(surface, form="lines", levels="paper", ax=ax)
    return fig, surface


def heat_map() -> tuple[Any, Any]:
    """Show the cells as they were measured, here the test accuracy."""
    surface = ll.open_result("data/skip-connections/without-shortcuts.surface.nc")
    with ll.plots.figure("icml", aspect=0.85) as (fig, ax):
        ll.plot_contour(surface, var="accuracy", split="test", form="heat", ax=ax)
    return fig, surface


def surface_in_3d() -> tuple[Any, Any]:
    """Draw a surface in 3D by matplotlib, where there is no OpenGL."""
    surface = ll.open_result("data/skip-connections/with-shortcuts.surface.nc")
    with ll.plots.figure("icml", aspect=0.85, subplot_kw={"projection": "3d"}) as (fig, ax):
        ll.plot_surface(surface, ax=ax)
    return fig, surface


def two_surfaces() -> tuple[Any, Any]:
    """Set surfaces side by side on one scale, titled with the test error: the paper's figure 5 in miniature."""
    names = {"with shortcuts": "with-shortcuts", "without shortcuts": "without-shortcuts"}
    surfaces = {name: ll.open_result(f"data/skip-connections/{file}.surface.nc") for name, file in names.items()}
    fig = ll.plot_grid(surfaces, clip=100)
    return fig, surfaces


def table_of_surfaces() -> tuple[Any, Any]:
    """Set surfaces into a table of rows and columns, by pairs of names, on one scale."""
    files = {
        ("SGD", "batch 16"): "sgd-small-wd0",
        ("SGD", "batch 230"): "sgd-large-wd0",
        ("Adam", "batch 16"): "adam-small-wd0",
        ("Adam", "batch 230"): "adam-large-wd0",
    }
    surfaces = {pair: ll.open_result(f"data/optimizer-paths/results/{name}.surface.nc") for pair, name in files.items()}
    fig = ll.plot_grid(surfaces)
    return fig, {", ".join(pair): surface for pair, surface in surfaces.items()}


def slice_of_a_surface() -> tuple[Any, Any]:
    """Draw loss and accuracy along a line: train solid, test dashed, as in the paper; bands are one standard error."""
    surface = ll.open_result("data/skip-connections/without-shortcuts.surface.nc")
    with ll.plots.figure("icml") as (fig, ax):
        ll.plot_slice(surface, ax=ax)
    return fig, surface


def interpolation() -> tuple[Any, Any]:
    """Go from one minimizer to another, small batch at 0 and large at 1: the paper's figure 2."""
    line = ll.open_result("data/sharpness-study/results/lines/digits-vgg-vgg9-momentum-lr0.1-wd0.0005-s0.surface.nc")
    with ll.plots.figure("icml") as (fig, ax):
        ll.plot_slice(line, ax=ax)
    return fig, line


def weights() -> tuple[Any, Any]:
    """Compare the weights of the two minimizers above. Here from stored histograms; models are given as they are."""
    counts = xr.open_dataset("data/sharpness-study/results/lines/digits-vgg-vgg9-momentum-lr0.1-wd0.0005-s0.weights.nc")
    small, large = (np.repeat(counts.weight.values, row)[:, None] for row in counts["count"].values)
    with ll.plots.figure("icml") as (fig, ax):
        ll.plot_weights({"small batch": {"w": small}, "large batch": {"w": large}}, bins=60, ax=ax)
    return fig, None


def curvature_map() -> tuple[Any, Any]:
    """Map the smallest over the largest Hessian eigenvalue: near 0, what looks convex is so in all directions."""
    curvature = ll.open_result("data/gallery/resnet8.curvature.nc")
    with ll.plots.figure("icml", aspect=0.85) as (fig, ax):
        ll.plot_contour(curvature, var="eig_ratio", ax=ax)
    return fig, curvature


def spectrum() -> tuple[Any, Any]:
    """Draw the spectrum of the Hessian at the minimizer, with both extremes."""
    density = ll.open_result("data/gallery/resnet8.spectrum.nc")
    with ll.plots.figure("icml") as (fig, ax):
        ll.plot_spectrum(density, xscale="symlog", ax=ax)
    return fig, density


def sharpness() -> tuple[Any, Any]:
    """Draw sharpness measures against generalization over many minimizers, with Kendall's tau."""
    table = ll.open_result("data/sharpness-study/results/digits-grid.sharpness.nc")
    measures = ("lambda_max", "trace", "filter_curvature")
    fig = ll.plot_sharpness(table, measures=measures, group="weight_decay")
    return fig, table


def sharpness_while_training() -> tuple[Any, Any]:
    """Follow the sharpness while training, with the threshold that the optimizer bears."""
    table = ll.open_result("data/edge-of-stability/lr-0.5.sharpness.nc")
    with ll.plots.figure("icml") as (fig, ax):
        ll.plot_sharpness(table, measures="lambda_max", ax=ax)
    return fig, table


def trajectory() -> tuple[Any, Any]:
    """Draw an optimizer's path over the contours of the plane of its principal components: the paper's figure 9."""
    stem = "data/optimizer-paths/results/sgd-small-wd0.0005"
    path, surface = (ll.open_result(f"{stem}.{kind}.nc") for kind in ("trajectory", "surface"))
    with ll.plots.figure("neurips", aspect=0.6) as (fig, ax):
        ll.plot_trajectory(path, surface=surface, ax=ax)
    return fig, path


def loss_along_the_path() -> tuple[Any, Any]:
    """Draw the loss along the same path, true against the plane's below it: what the picture above hides."""
    path = ll.open_result("data/optimizer-paths/results/sgd-small-wd0.0005.trajectory.nc")
    with ll.plots.figure("neurips", aspect=0.5) as (fig, ax):
        ll.plot_trajectory_loss(path, ax=ax)
    return fig, path


def path_in_numbers() -> tuple[Any, Any]:
    """Tell a path in numbers that need no plane."""
    statistics = ll.open_result("data/optimizer-paths/results/sgd-small-wd0.0005.statistics.nc")
    fig = ll.plot_trajectory_statistics(statistics)
    return fig, statistics


FIGURES: tuple[Callable[[], tuple[Any, Any]], ...] = (
    filled_contours,
    contour_lines,
    heat_map,
    surface_in_3d,
    two_surfaces,
    table_of_surfaces,
    slice_of_a_surface,
    interpolation,
    weights,
    curvature_map,
    spectrum,
    sharpness,
    sharpness_while_training,
    trajectory,
    loss_along_the_path,
    path_in_numbers,
)


def picture_of(figure: Callable[[], tuple[Any, Any]]) -> str:
    """Name the picture of a figure, relative to the page."""
    return f"gallery/{figure.__name__.replace('_', '-')}.png"


def section(figure: Callable[[], tuple[Any, Any]]) -> str:
    """Write a figure's part of the page: its name, what it shows, the picture, the code."""
    name = figure.__name__.replace("_", " ").capitalize().replace("3d", "3D")
    body = textwrap.dedent(re.split(r'""".*?"""\n', inspect.getsource(figure), maxsplit=1, flags=re.S)[1])
    code = re.sub(r"^return .*\n", "", body, flags=re.M).rstrip()
    about = " ".join((figure.__doc__ or "").split())
    return f"## {name}\n\n{about}\n\n![{name}]({picture_of(figure)})\n\n```python\n{code}\n```\n"


def page(root: Path = ROOT) -> str:
    """Write the page, of the figures whose pictures are there."""
    parts = [section(figure) for figure in FIGURES if (root / "docs" / picture_of(figure)).exists()]
    return "\n".join([INTRO, *parts])


def compute() -> None:
    """Train a small network and compute a curvature map and a spectrum of it, unless they are there."""
    folder = Path("data/gallery")
    folder.mkdir(exist_ok=True)
    data = ll.zoo.load_data("digits")
    recipe: dict[str, Any] = {"epochs": 15, "lr": 0.1, "batch_size": 64, "seed": 0, "device": "cpu"}
    run = ll.zoo.train("resnet8", data, out=folder / ".resnet8", weight_decay=5e-4, **recipe)
    objective = ll.Objective(run.model, data, n_examples=200, device="cpu")
    plane = ll.random_subspace(objective, seed=0)
    chosen: dict[str, Any] = {"split": "train"}
    ll.compute_curvature(objective, plane, resolution=13, tol=0.05, path=folder / "resnet8.curvature.nc", **chosen)
    ll.hessian_spectrum(objective, n_probes=4, path=folder / "resnet8.spectrum.nc", **chosen)


def main(
    compute_first: Annotated[bool, typer.Option("--compute", help="Make data/gallery, too.")] = False,
    root: Annotated[Path, typer.Option(help="Of the repository.")] = ROOT,
) -> None:
    """Draw all figures whose results are there, and write the page."""
    with contextlib.chdir(root):
        if compute_first:
            compute()
        Path(PICTURES).mkdir(exist_ok=True)
        for figure in FIGURES:
            try:
                drawn, result = figure()
            except FileNotFoundError as error:
                typer.echo(f"{figure.__name__} is left out: {error}", err=True)
                continue
            typer.echo(ll.save_figure(drawn, f"docs/{picture_of(figure)}", result=result, dpi=DPI))
        Path("docs/gallery.md").write_text(page(root))


if __name__ == "__main__":
    typer.run(main)
