"""Figures on disk: what is in the metadata is the result's, the bytes repeat, and nothing is written after an error."""

import csv
import json
import os
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from lltoolkit.errors import SchemaError
from lltoolkit.labelled.describe import describe
from lltoolkit.labelled.provenance import provenance
from lltoolkit.plots import figure, plot_contour
from lltoolkit.plots.saving import SUFFIXES, save_figure
from lltoolkit.store import open_result
from tests.plots.surfaces import make_path, make_surface

MANY = ("png", "pdf", "svg", "jpg")


@pytest.fixture
def surface():
    """A surface with all attributes that a file needs, a name that no ASCII holds, and brackets that PDF escapes."""
    told = provenance(
        "surface", config={"loss": "mse"}, model="réseau(a=1)", n_params=7, device="cpu", torch_version="2"
    )
    told |= dict.fromkeys(("theta_sha256", "data_sha256", "subspace_id"), "0123456789abcdef" * 4)
    told |= {"data_normalize": "none", "dtype": "float32", "precision": "exact", "engine": "flat", "batch_size": 8}
    told |= {"grad_norm": 0.1, "subspace_kind": "random", "seed": 0, "direction_cosine": 0.0}
    made = make_surface(9, 7)
    return made.assign_attrs({**made.attrs, **told})


def draw(surface):
    with figure("icml") as (fig, ax):
        plot_contour(surface, ax=ax)
    return fig


def plain():
    """A figure of matplotlib's own: constrained by nothing, Type 3 fonts by default."""
    fig = Figure()
    fig.subplots().set_title("plain $x^2$ é")
    return fig


def of_png(path):
    with Image.open(path) as image:
        return image.text["lltoolkit"], image.text["Title"], image.text["Description"]


def of_jpg(path):
    with Image.open(path) as image:
        return image.info["comment"].decode(), None, None


def of_svg(path):
    names = {"dc": "http://purl.org/dc/elements/1.1/", "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#"}
    root = ElementTree.parse(path).getroot()
    return tuple(
        root.find(f".//{tag}", names).text for tag in ("dc:subject/rdf:Bag/rdf:li", "dc:title", "dc:description")
    )


def of_pdf(path):
    """Read the info dictionary: PDF strings in brackets, escaped, in UTF-16 where they are not ASCII."""
    info = path.read_bytes().rpartition(b"/Creator")
    info = info[1] + info[2].partition(b"endobj")[0]
    told = {}
    escapes = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
    for key, raw in re.findall(rb"/(\w+) \(((?:\\.|[^\\)])*)\)", info, flags=re.DOTALL):
        text = re.sub(rb"\\(.)", lambda found: escapes.get(found[1], found[1]), raw, flags=re.DOTALL)
        told[key.decode()] = text.decode("utf-16") if text.startswith(b"\xfe\xff") else text.decode("latin-1")
    return told["Keywords"], told["Title"], told["Subject"]


READ = {"png": of_png, "jpg": of_jpg, "svg": of_svg, "pdf": of_pdf}


@pytest.mark.parametrize("suffix", MANY)
def test_metadata_is_the_result(surface, suffix, tmp_path):
    path = save_figure(plain(), tmp_path / f"a.{suffix}", result=surface)
    told, title, text = READ[suffix](path)
    found = json.loads(told)
    for name in ("kind", "model", "theta_sha256", "config_sha256", "lltoolkit_version", "git_commit"):
        assert found[name] == surface.attrs[name]
    assert found["description"] == describe(surface)
    assert title in (None, "surface of réseau(a=1)")
    assert text in (None, describe(surface))


@pytest.mark.parametrize("suffix", MANY)
def test_metadata_of_several_results_goes_by_name(surface, suffix, tmp_path):
    path = save_figure(plain(), tmp_path / f"a.{suffix}", result={"one": surface, "ru n": make_path()})
    found = json.loads(READ[suffix](path)[0])
    assert {name: each["kind"] for name, each in found.items()} == {"one": "surface", "ru n": "trajectory"}
    assert found["ru n"]["run"] == "sgd"


@pytest.mark.parametrize("suffix", MANY)
@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_same_bytes_and_undated(surface, suffix, kind, tmp_path, monkeypatch):
    written = []
    for turn in range(2):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(10**9 * turn))  # where matplotlib takes a date from, if it is asked
        fig = draw(surface) if kind == "ours" else plain()
        written += [save_figure(fig, tmp_path / f"{turn}.{suffix}", result=surface, dpi=100).read_bytes()]
    assert written[0] == written[1]
    assert not re.search(rb"CreationDate|<dc:date|2001-09", written[1])


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_fonts_are_embedded_outlines(surface, kind, tmp_path):
    before = mpl.rcParams.copy()
    fig = draw(surface) if kind == "ours" else plain()
    content = save_figure(fig, tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in content
    assert b"/FontFile2" in content
    svg = save_figure(fig, tmp_path / "a.svg").read_text()
    assert "<text" not in svg
    assert mpl.rcParams == before


def test_without_a_result_nothing_is_told(tmp_path):
    save_figure(plain(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert set(image.text) == {"Software"}
    save_figure(plain(), tmp_path / "a.svg")
    assert "dc:description" not in (tmp_path / "a.svg").read_text()


def test_a_second_copy_of_one_figure_is_the_same(surface, tmp_path):
    fig = draw(surface)
    first, second = (save_figure(fig, tmp_path / name, dpi=100).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


@pytest.mark.parametrize("suffix", [*SUFFIXES, "PDF", "JPEG"])
def test_suffixes(suffix, tmp_path):
    signature = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8", "jpeg": b"\xff\xd8"}
    path = save_figure(Figure(figsize=(1, 1)), str(tmp_path / f"a.{suffix}"))
    assert path.read_bytes().startswith(signature[suffix.lower()])


def test_pixels(tmp_path):
    fig = Figure(figsize=(2, 1))
    for dpi, transparent in ((None, False), (50, True)):
        with Image.open(save_figure(fig, tmp_path / "a.png", dpi=dpi, transparent=transparent)) as image:
            assert image.size == (2 * (dpi or 300), dpi or 300)
            assert np.asarray(image)[0, 0, 3] == (0 if transparent else 255)


def test_axes_stand_for_their_figure(tmp_path):
    fig = Figure(figsize=(2, 1))
    inner = fig.subfigures(1, 2)[0].subplots(1, 2)
    sizes = []
    for given in (fig, inner, inner[1]):
        with Image.open(save_figure(given, tmp_path / "a.png", dpi=50)) as image:
            sizes += [image.size]
    assert sizes == [(100, 50)] * 3


def test_netcdf_beside_it_is_the_result(surface, tmp_path):
    save_figure(plain(), tmp_path / "a.b.pdf", result=surface, data="nc")
    again = open_result(tmp_path / "a.b.nc")
    xr.testing.assert_equal(again, surface)
    assert again.attrs == surface.attrs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.nc", "a.b.pdf"]


def test_csv_beside_it_is_the_result(surface, tmp_path):
    path = save_figure(plain(), tmp_path / "a.pdf", result=surface, data="csv")
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == surface["loss"].size
    for row in rows:
        there = surface.sel(split=row["split"], alpha=float(row["alpha"]), beta=float(row["beta"]))
        assert {name: float(row[name]) for name in surface.data_vars} == {
            name: float(there[name]) for name in surface.data_vars
        }


def test_csv_of_a_path_and_of_a_spectrum_has_what_is_drawn(tmp_path):
    path = make_path()
    spectrum = xr.Dataset(
        {"density": ("eigenvalue", [0.1, 0.2, 0.1]), "ritz_value": (("probe", "node"), [[1.0, 2.0]])},
        coords={"eigenvalue": [0.0, 1.0, 2.0]},
        attrs={"kind": "spectrum"},
    )
    save_figure(plain(), tmp_path / "a.png", result={"run/1": path, "of H": spectrum}, data="csv")
    of_path, of_spectrum = (pd.read_csv(tmp_path / name) for name in ("a-run-1.csv", "a-of-H.csv"))
    assert len(of_path) == path.sizes["split"] * path.sizes["step"]
    assert {"split", "step", "epoch", "alpha", "beta", "residual", "plane_loss"} <= set(of_path)
    assert "explained_variance" not in of_path
    assert list(of_spectrum) == ["eigenvalue", "density"]


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("a.pgn", {}, ValueError, r"not one of \.png, .*Did you mean 'png'"),
        ("a", {}, ValueError, "the suffix ''"),
        ("missing/a.png", {}, FileNotFoundError, "missing does not exist; make it first"),
        ("folder.png", {}, IsADirectoryError, "is a folder"),
        ("a.jpg", {"transparent": True}, ValueError, "no transparency"),
        ("a.png", {"dpi": 0}, ValueError, "dpi=0"),
        ("a.png", {"dpi": "high"}, ValueError, "dpi='high'"),
        ("a.png", {"data": "csv"}, ValueError, "give it, result=surface"),
        ("a.png", {"data": "cvs", "result": make_surface(3, 3)}, ValueError, "Did you mean 'csv'"),
        ("a.png", {"result": xr.Dataset()}, SchemaError, "no result"),
        ("a.png", {"result": {}}, ValueError, "empty mapping"),
        ("a.png", {"result": make_surface(3, 3), "data": "nc"}, SchemaError, "schema_version"),
        ("a.png", {"result": xr.Dataset(attrs={"kind": "surface"}), "data": "csv"}, ValueError, "no variables"),
        ("taken.png", {"result": make_surface(3, 3), "data": "csv"}, IsADirectoryError, "taken.csv is a folder"),
        ("a.png", {"result": dict.fromkeys(("x y", "x/y"), make_path()), "data": "csv"}, ValueError, "a-x-y.csv"),
    ],
)
def test_bad_input_writes_nothing(name, options, error, words, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(error, match=words):
        save_figure(plain(), tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "taken.csv"]


def test_what_is_no_figure(tmp_path):
    for given in (3, None, np.array([])):
        with pytest.raises(TypeError, match="give a matplotlib Figure or Axes"):
            save_figure(given, tmp_path / "a.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_no_files(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="not writable"):
        save_figure(plain(), tmp_path / "a.png")


def test_an_older_file_is_kept_where_drawing_fails(tmp_path):
    path = save_figure(plain(), tmp_path / "a.png")
    before = path.read_bytes()
    fig = plain()
    fig.axes[0].set_title("$x^$")  # no formula: fails while it is drawn
    with pytest.raises(ValueError, match=r"x\^"):
        save_figure(fig, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
