"""The demo: one deep network with and without skip connections, trained here and now, and both loss surfaces.

The finding of Li et al. (2018), section 5 and figure 5, in miniature and offline: scikit-learn's 1,797 digits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lltoolkit as ll

if TYPE_CHECKING:
    import xarray as xr

VARIANTS = {"with shortcuts": "A", "without shortcuts": "none"}


@dataclass(frozen=True)
class Recipe:
    """What the demo trains and how finely it looks.

    Attributes
    ----------
    model : str
        A ResNet of the zoo.
    epochs : int
        Passes over the 1,437 training images.
    lr : float
        First learning rate of the step schedule.
    resolution : int
        Points per axis of both planes, on [-1, 1].
    n_examples : int
        Examples of each split that a cell is measured on.
    """

    model: str
    epochs: int
    lr: float
    resolution: int
    n_examples: int


FULL = Recipe(model="resnet32", epochs=20, lr=0.1, resolution=31, n_examples=300)
QUICK = Recipe(model="resnet20", epochs=8, lr=0.1, resolution=15, n_examples=100)


@dataclass(frozen=True)
class Result:
    """What the demo made: all files in the order of making, and the accuracy on all test images by variant."""

    paths: tuple[Path, ...]
    test_accuracy: dict[str, float]


def run_demo(out: str | Path, recipe: Recipe = FULL, *, seed: int = 0, progress: bool = True) -> Result:
    """Train both variants, compute both surfaces, draw them; called again, go on from what is there.

    Parameters
    ----------
    out : str or Path
        Folder of the results.
    recipe : Recipe
        `FULL` or `QUICK`.
    seed : int
        Seed of both trainings and of the directions.
    progress : bool
        Show progress bars.

    Returns
    -------
    Result
        Files and test accuracies.
    """
    out = Path(out)
    data = ll.zoo.load_data("digits")
    surfaces: dict[str, xr.Dataset] = {}
    accuracy: dict[str, float] = {}
    paths: list[Path] = []
    for variant, shortcut in VARIANTS.items():
        stem = variant.replace(" ", "-")
        run = ll.zoo.train(
            recipe.model,
            data,
            model_options={"shortcut": shortcut},
            lr=recipe.lr,
            epochs=recipe.epochs,
            seed=seed,
            out=out / stem,
            progress=progress,
        )
        accuracy[variant] = ll.Objective(run.model, data).at_minimizer()["test", "accuracy"]
        objective = ll.Objective(run.model, data, n_examples=recipe.n_examples)
        path = out / f"{stem}.surface.nc"
        plane = ll.random_subspace(objective, seed=seed)
        surfaces[variant] = ll.compute_surface(
            objective, plane, span=1.0, resolution=recipe.resolution, path=path, progress=progress
        )
        paths += [run.path, path]
    return Result((*paths, *draw(surfaces, accuracy, recipe, out)), accuracy)


def draw(surfaces: "dict[str, xr.Dataset]", accuracy: dict[str, float], recipe: Recipe, out: Path) -> tuple[Path, ...]:
    """Draw both surfaces side by side as contours (PNG and PDF) and each in 3D (PNG).

    Returns
    -------
    tuple of Path
        The four figures.
    """
    depth = recipe.model.removeprefix("resnet")
    titles = {variant: f"ResNet-{depth} {variant}" for variant in surfaces}
    figure = ll.plot_grid(
        {titles[variant]: surface for variant, surface in surfaces.items()},
        captions={titles[variant]: f"test error {100 * (1 - value):.1f} %" for variant, value in accuracy.items()},
    )
    paths = [out / "contours.png", out / "contours.pdf"]
    for path in paths:
        figure.savefig(path, dpi=200)
    for variant, surface in surfaces.items():
        path = out / f"{variant.replace(' ', '-')}.png"
        ll.export_scene(ll.render_surface(surface), path)
        paths.append(path)
    return tuple(paths)
