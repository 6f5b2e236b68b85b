"""Pictures against those that were looked at and found good; only where the same matplotlib draws them.

``python -m tests.plots.test_golden`` draws them anew: look at each before it is committed.
"""

import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lltoolkit.plots import figure, plot_contour, plot_grid, plot_slice
from tests.plots.surfaces import make_surface

GOLDEN = Path(__file__).parent / "golden"
PINNED = re.search(r"^matplotlib==(.*)$", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.M)[1]
TOLERANCE = 2.0  # root mean square of the differences, of 255


def filled():
    surface = make_surface(21, 21)
    surface["status"][::2, 1::2], surface["status"][16:, :4] = 2, 0
    surface["loss"][:, 2:4, 16:18] = np.nan
    with figure((2.6, 2.1)) as (fig, ax):
        plot_contour(surface, clip=1000, ax=ax)
    return fig


def lines():
    with figure((2.6, 2.1)) as (fig, ax):
        plot_contour(make_surface(21, 21, rugged=1.0), form="lines", levels="paper", ax=ax)
    return fig


def curves():
    with figure((2.6, 1.9)) as (fig, ax):
        plot_slice(make_surface(21, 21).assign_attrs(subspace_kind="interpolation"), ax=ax)
    return fig


def table():
    small, other = make_surface(15, 15), make_surface(15, 15, rugged=1.0)
    pairs = {("SGD", "wd 0"): small, ("SGD", "wd 5e-4"): other, ("Adam", "wd 0"): other}
    return plot_grid(pairs, venue="icml", columns=1)


FIGURES = (filled, lines, curves, table)


def draw(make, folder):
    path = folder / f"{make.__name__}.png"
    make().savefig(path, dpi=80)
    return path


@pytest.mark.skipif(version("matplotlib") != PINNED, reason=f"golden images are of matplotlib {PINNED}")
@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_the_picture_is_as_it_was(make, tmp_path):
    drawn, golden = (imread(path) for path in (draw(make, tmp_path), GOLDEN / f"{make.__name__}.png"))
    assert drawn.shape == golden.shape
    difference = 255 * np.sqrt(np.mean((drawn - golden) ** 2))
    assert difference < TOLERANCE, f"the drawn picture differs by {difference:.1f} of 255; look at it"


def test_there_are_few_golden_images():
    assert {path.stem for path in GOLDEN.glob("*.png")} == {make.__name__ for make in FIGURES}
    assert len(FIGURES) <= 5


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in FIGURES:
        draw(each, GOLDEN)
