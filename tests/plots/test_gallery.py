"""The gallery says what made its pictures, and shows every type of figure whose results are shipped."""

import importlib.util
import re
from pathlib import Path

import pytest

import lltoolkit.plots

ROOT = Path(__file__).parents[2]
SHOWN_ELSEWHERE = {"animate_trajectory", "save_figure", "figure"}


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_writes(gallery):
    assert (ROOT / "docs" / "gallery.md").read_text() == gallery.page()


def test_every_kind_of_plot_has_a_figure(gallery):
    code = "".join(gallery.section(figure) for figure in gallery.FIGURES)
    assert set(re.findall(r"ll\.(plot_\w+)\(", code)) == set(lltoolkit.plots.__all__) - SHOWN_ELSEWHERE


def test_the_code_on_the_page_draws(gallery, monkeypatch):
    """Second road: the lines as a reader copies them; one figure, the quickest, stands for all."""
    monkeypatch.chdir(ROOT)
    code = gallery.section(gallery.sharpness_while_training).split("```python\n")[1].split("```")[0]
    names = {"ll": lltoolkit}
    exec(code, names)
    assert names["fig"].axes


def test_pictures_are_few_and_small(gallery):
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs" / "gallery").glob("*.png")}
    assert set(pictures) <= {Path(gallery.picture_of(figure)).name for figure in gallery.FIGURES}
    assert sum(pictures.values()) < 1.5e6
