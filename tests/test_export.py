"""Exported scenes read back: pixels, pages, films and meshes hold what the scene holds, and leave it as it was."""

import base64
import io
import json
import os
import re
import subprocess
import zipfile

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from lltoolkit import export
from lltoolkit.export import export_scene
from lltoolkit.plots import film, page
from lltoolkit.plots.flight import fly_along, turntable
from lltoolkit.plots.scene import RENDER
from lltoolkit.plots.window import view_of
from lltoolkit.render import render_surface
from tests.plots.surfaces import make_surface

SMALL = (240, 200)
QUICK = {"seconds": 0.5, "fps": 6, "size": (101, 90), "progress": False}


@pytest.fixture(scope="module")
def surface():
    return make_surface(15, 15)


@pytest.fixture(scope="module")
def trajectory():
    steps = np.linspace(1, 0, 12)
    return xr.Dataset({"alpha": ("step", -0.6 * steps), "beta": ("step", 0.5 * steps**2)})


@pytest.fixture(scope="module")
def scene(surface, trajectory):
    made = render_surface(surface, trajectory=trajectory, level={"start": 1.0}, size=SMALL)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(surface):
    made = render_surface({"one": surface, "two": surface}, size=(400, 180), theme="dark")
    yield made
    made.close()


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg"])
def test_pictures(scene, tmp_path, suffix):
    path = export_scene(scene, tmp_path / f"scene.{suffix}")
    assert 5000 < path.stat().st_size < 5e6
    assert sorted(tmp_path.iterdir()) == [path]
    if suffix == "png":
        assert pixels(path).shape[:2] == SMALL[::-1]
        assert pixels(path)[..., :3].std() > 20
    if suffix == "pdf":
        assert b"/Type3" not in path.read_bytes()


def test_the_text_of_a_vector_figure_is_vectors(scene, tmp_path):
    drawn = export.draw_figure(scene, tight=True)
    texts = {text.get_text() for text in drawn.axes[0].texts}
    assert {"$\\alpha$", "$\\beta$", "−1", "0", "1"} <= texts
    bar = drawn.axes[1]
    assert bar.get_ylabel() == "train loss [nat]"
    np.testing.assert_allclose(bar.lines[-1].get_ydata(), 1.0)  # the marked level
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["start: 1"]
    assert drawn.texts[-1].get_text().replace("\n", " ") == scene.frame.note


def test_any_size_and_the_scene_stays_as_it_was(scene, tmp_path):
    before, camera = np.array(scene.screenshot()), view_of(scene)
    shape = pixels(export_scene(scene, tmp_path / "wide.png", size=(500, 300))).shape
    assert shape[:2] == (300, 500)
    assert pixels(export_scene(scene, tmp_path / "bare.png", size=(80, 100), colorbar=False)).shape == (100, 80, 3)
    np.testing.assert_array_equal(view_of(scene).position, camera.position)
    np.testing.assert_array_equal(np.array(scene.screenshot()), before)


def test_a_camera_that_the_user_moved_stays(surface, tmp_path):
    scene = render_surface(surface, size=SMALL)
    home = pixels(export_scene(scene, tmp_path / "home.png", colorbar=False))
    scene.camera.position = (0.0, -6.0, 1.0)
    moved = pixels(export_scene(scene, tmp_path / "moved.png", colorbar=False))
    assert np.abs(moved - home).mean() > 5
    np.testing.assert_allclose(scene.camera.position, (0.0, -6.0, 1.0))
    scene.close()


def test_without_background(scene, tmp_path):
    whole = pixels(export_scene(scene, tmp_path / "whole.png", colorbar=False))
    clear = pixels(export_scene(scene, tmp_path / "clear.png", colorbar=False, transparent=True))
    assert clear[0, 0, 3] == 0
    assert (clear[..., 3] == 255).mean() > 0.2
    alpha = clear[..., 3:] / 255
    laid = np.abs(alpha * clear[..., :3] + (1 - alpha) * 255 - whole)
    assert laid.max() <= 10  # of faint pixels 8 bits tell little
    assert laid.mean() < 0.05
    figure = pixels(export_scene(scene, tmp_path / "figure.png", transparent=True))
    assert figure[-1, -1, 3] == 0
    with pytest.raises(ValueError, match="no transparent background"):
        export_scene(scene, tmp_path / "a.jpg", transparent=True)


@pytest.mark.parametrize("suffix", ["vtp", "vtk", "obj"])
def test_meshes_open_again(scene, surface, tmp_path, suffix):
    import pyvista

    mesh = pyvista.read(export_scene(scene, tmp_path / f"scene.{suffix}"))
    np.testing.assert_allclose(mesh.bounds, scene.actors["surface"].mapper.dataset.bounds, atol=1e-5)
    if suffix == "obj":
        return
    assert {"alpha", "beta", "loss", "log10_loss", "accuracy"} <= set(mesh.point_data)
    for i, j in ((7, 7), (5, 8), (9, 6)):
        alpha, beta = float(surface.alpha[i]), float(surface.beta[j])
        point = np.argmin(np.hypot(mesh["alpha"] - alpha, mesh["beta"] - beta))
        for name in ("loss", "accuracy"):
            assert mesh[name][point] == pytest.approx(float(surface[name][0, i, j]), rel=1e-5)


def test_gltf_holds_the_scene(scene, tmp_path):
    told = json.loads(export_scene(scene, tmp_path / "scene.gltf").read_text())
    assert len(told["meshes"]) > 4
    assert scene.actors["axis numbers"].GetVisibility()


def unpacked(file):
    text = file.read_text()
    packed = base64.b64decode(re.search(r'base64Str: "([^"]+)"', text)[1])
    return text, json.loads(zipfile.ZipFile(io.BytesIO(packed)).read("index.json"))


def nodes(tree):
    yield tree
    for child in tree.get("dependencies", []):
        yield from nodes(child)


@pytest.mark.parametrize("many", [False, True])
def test_a_page_asks_nothing_of_a_network_and_holds_the_scene(scene, pair, tmp_path, many):
    pytest.importorskip("trame_vtk", reason='needs the extra "html"')
    text, told = unpacked(export_scene(pair if many else scene, tmp_path / "scene.html"))
    assert not re.findall(r"""(?:src|href)=["'](?!data:|\$|#)[^"']*:""", text)
    assert "kitware.github.io/vtk-js/icon" not in text
    assert "<title>scene</title>" in text
    assert "cubic spline through the cells" in text
    assert text.count("<svg") >= 1
    kinds = [each["type"] for each in nodes(told["scene"])]
    assert sum(kind.endswith("Renderer") for kind in kinds) >= 1 + many
    wanted = {entry["hash"] for entry in told["hashes"].values()}
    assert all(told["hashes"][entry]["content"] for entry in wanted)
    # Colours by an array of logarithms on a linear scale: vtk.js ignores log scales.
    assert '"log10_loss"' in json.dumps(told["scene"])


def test_a_page_leaves_the_whole_mesh_to_the_scene(scene, tmp_path):
    pytest.importorskip("trame_vtk", reason='needs the extra "html"')
    before = scene.actors["surface"].mapper.dataset.n_points
    size = export_scene(scene, tmp_path / "scene.html").stat().st_size
    assert scene.actors["surface"].mapper.dataset.n_points == before
    scene.export_html(tmp_path / "whole.html")
    assert size < 0.7 * (tmp_path / "whole.html").stat().st_size


def test_a_turn_comes_round_and_a_flight_follows_the_path(scene, surface):
    view = view_of(scene)
    first, *_ = views = list(turntable(view, 8))
    np.testing.assert_allclose(first.position, view.position)
    np.testing.assert_allclose([np.linalg.norm(each.position) for each in views], np.linalg.norm(view.position))
    step = np.diff(np.unwrap([np.arctan2(*each.position[1::-1]) for each in views]))
    np.testing.assert_allclose(step, np.pi / 4)
    panel = scene.panels[0]
    flight = list(fly_along(panel.paths[""], panel.frame, panel.relief, 20))
    assert len(flight) == 20
    np.testing.assert_allclose(flight[0][1], [-0.6, 0.5], atol=1e-9)
    np.testing.assert_allclose(flight[-1][1], [0.0, 0.0], atol=1e-9)
    for each, _ in flight:
        first, second, height = panel.frame.coordinates(each.position[None])
        ground = np.minimum(panel.relief.spline.ev(first, second), panel.frame.heights(panel.frame.high))
        assert abs(first) > 1 or abs(second) > 1 or height > ground


def test_a_gif_turns(scene, tmp_path):
    before = np.array(scene.screenshot())
    file = export_scene(scene, tmp_path / "turn.gif", **QUICK)
    with Image.open(file) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (3, (102, 90), 0)
        frames = []
        for place in range(3):
            gif.seek(place)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert np.abs(frames[1] - frames[0]).mean() > 2
    np.testing.assert_array_equal(np.array(scene.screenshot()), before)
    assert [each.name for each in tmp_path.iterdir()] == ["turn.gif"]


def test_an_mp4_flies(scene, tmp_path, capsys):
    library = pytest.importorskip("imageio_ffmpeg", reason='needs the extra "video"')
    file = export_scene(scene, tmp_path / "fly.mp4", motion="flight", **QUICK | {"progress": True})
    assert "flight" in capsys.readouterr().err
    command = [library.get_ffmpeg_exe(), "-i", str(file), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run(command, check=True, capture_output=True)
    frames = np.frombuffer(read.stdout, np.uint8).reshape(-1, 90, 102, 3).astype(int)
    assert len(frames) == 3
    assert np.abs(frames[2] - frames[0]).mean() > 2
    assert "head" not in scene.actors


def test_side_by_side_goes_into_pictures_and_films_but_not_into_a_mesh(pair, tmp_path):
    image = pixels(export_scene(pair, tmp_path / "pair.png", size=(600, 260)))
    assert image.shape[:2] == (260, 600)
    assert export.draw_figure(pair).texts[0].get_text() == "one"
    with pytest.raises(ValueError, match="holds one surface, this scene 2"):
        export_scene(pair, tmp_path / "pair.vtp")


def test_bad_input_is_told_before_drawing(scene, pair, tmp_path, monkeypatch):
    for name in ("_photograph", "_film", "_page"):
        monkeypatch.setattr(export, name, lambda *_: pytest.fail("drew first"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"'.pgn' is not one of .png, .*Did you mean 'png'"):
        export_scene(scene, tmp_path / "a.pgn")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_scene(scene, tmp_path / "folder.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_scene(scene, tmp_path / "nowhere" / "a.png")
    with pytest.raises(ValueError, match="Did you mean 'flight'"):
        export_scene(scene, tmp_path / "a.gif", motion="fligth")
    with pytest.raises(ValueError, match="follows a trajectory"):
        export_scene(pair, tmp_path / "a.gif", motion="flight")
    with pytest.raises(ValueError, match="1 to 60 pictures"):
        export_scene(scene, tmp_path / "a.gif", fps=0)
    with pytest.raises(ValueError, match="too small"):
        export_scene(scene, tmp_path / "a.png", size=(5, 5))
    with pytest.raises(ValueError, match="scene is a Dataset"):
        export_scene(xr.Dataset(), tmp_path / "a.png")
    monkeypatch.setattr(film, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "lltoolkit\[video\]"'):
        export_scene(scene, tmp_path / "a.mp4")
    monkeypatch.setattr(page, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "lltoolkit\[html\]"'):
        export_scene(scene, tmp_path / "a.html")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="not writable"):
        export_scene(scene, tmp_path / "a.png")


def test_a_closed_scene_is_told(surface, tmp_path):
    scene = render_surface(surface, size=SMALL)
    assert scene._repr_png_().startswith(b"\x89PNG")
    scene.close()
    assert scene._repr_png_() is None
    for suffix in ("png", "vtp", "gif"):
        with pytest.raises(ValueError, match="closed"):
            export_scene(scene, tmp_path / f"a.{suffix}", **QUICK)
    assert not list(tmp_path.iterdir())


def test_an_export_from_another_thread_is_drawn_in_the_render_thread(scene, tmp_path):
    assert RENDER.run(export_scene, scene, tmp_path / "a.png").stat().st_size > 5000
