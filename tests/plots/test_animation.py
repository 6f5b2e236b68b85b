"""Films read back: their pictures are those that plot_trajectory draws, and a page asks nothing of a network."""

import re
import subprocess
from base64 import b64decode
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lltoolkit.plots import animation, film
from lltoolkit.plots.animation import animate_trajectory
from tests.plots.surfaces import make_path, make_surface

SHORT = {"seconds": 0.5, "fps": 4, "size": (301, 320)}  # 2 pictures of growth, 4 of the whole


@pytest.fixture(scope="module")
def path():
    return make_path(8, drops=(4,))


@pytest.fixture(scope="module")
def surface():
    return make_surface(11, 11)


@pytest.fixture(scope="module")
def page(path, surface, tmp_path_factory):
    return animate_trajectory(path, surface, tmp_path_factory.mktemp("film") / "film.html", **SHORT).read_text()


def pictures(page):
    """The still and the layers of a page."""
    still, frames = re.search(r'img src="data:image/png;base64,([^"]+)"', page), re.search(r"frames = \[(.*?)\]", page)
    coded = [still[1], *(each.strip('"') for each in frames[1].split(","))]
    return [np.asarray(Image.open(BytesIO(b64decode(each)))) for each in coded]


def test_a_page_holds_everything(page):
    assert not re.findall(r"https?:|src=\"(?!data:)|<link|@import", page)
    still, *layers = pictures(page)
    assert still.shape == (320, 302, 3)  # films take even numbers
    assert len(layers) == 6
    assert all(layer.shape == (320, 302, 4) for layer in layers)
    grown = [np.count_nonzero(layer[40:, :, 3]) for layer in layers]  # below the captions
    assert 0 < grown[0] < 0.6 * grown[1]
    assert len(set(grown[1:])) == 1


def test_gif_and_page_show_the_same(path, surface, page, tmp_path):
    file = animate_trajectory(path, surface, tmp_path / "film.gif", **SHORT)
    still, first, *_ = pictures(page)
    alpha = first[..., 3:] / 255
    expected = alpha * first[..., :3] + (1 - alpha) * still
    with Image.open(file) as film:
        shown = np.asarray(film.convert("RGB")).astype(float)
        assert film.info["duration"] == 250
        assert film.info["loop"] == 0
    assert np.abs(shown - expected).mean() < 1.5  # 255 colours
    assert sorted(each.name for each in tmp_path.iterdir()) == ["film.gif"]


def test_mp4_has_all_pictures(path, surface, page, tmp_path):
    library = pytest.importorskip("imageio_ffmpeg", reason='needs the extra "video"')
    file = animate_trajectory(path, surface, tmp_path / "film.mp4", **SHORT)
    command = [library.get_ffmpeg_exe(), "-i", str(file), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run(command, check=True, capture_output=True)
    assert re.search(r"h264.*yuv420p.* 302x320.* 4 fps", read.stderr.decode())
    frames = np.frombuffer(read.stdout, np.uint8).reshape(-1, 320, 302, 3)
    assert len(frames) == 6
    still, *_, last = pictures(page)
    alpha = last[..., 3:] / 255
    assert np.abs(frames[-1] - (alpha * last[..., :3] + (1 - alpha) * still)).mean() < 4


def test_captions_tell_the_checkpoint(path):
    told = animation._caption(path, "", 3, var="loss", split="train")
    true, plane = (float(path[name].sel(split="train")[3]) for name in ("loss", "plane_loss"))
    residual = float(path["residual"][3])
    assert (
        told == f"epoch 3, learning rate 0.1, train loss {true:.3g} (on the plane {plane:.3g}), residual {residual:.2f}"
    )
    bare = path.drop_vars(["epoch", "learning_rate", "loss", "residual"])
    assert animation._caption(bare, "b", 3, var="loss", split="train") == "b: step 66"


def test_the_head_moves_straight_from_checkpoint_to_checkpoint(path):
    from lltoolkit.plots.paths import pick_paths

    (one,), _ = pick_paths({"": path})
    part, _ = animation._first_part(one, None, 4.25)
    np.testing.assert_array_equal(part.points[:5], one.points[:5])
    np.testing.assert_allclose(part.points[5], 0.75 * one.points[4] + 0.25 * one.points[5])
    assert part.drops.tolist() == [4]
    whole, _ = animation._first_part(one, None, 8.0)
    np.testing.assert_array_equal(whole.points, one.points)


def test_several_runs_move_in_time(path):
    from lltoolkit.plots.paths import pick_paths

    runs = {"long": path, "short": path.isel(step=slice(0, 5))}
    paths, _ = pick_paths(runs)
    shots = animation._shots(runs, paths, 9, 1)
    np.testing.assert_allclose(shots[:, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 8])
    np.testing.assert_allclose(shots[:, 1], [0, 1, 2, 3, 4, 4, 4, 4, 4, 4])


def test_settings_stay_and_a_failure_leaves_the_old_file(path, surface, tmp_path, monkeypatch):
    before = dict(matplotlib.rcParams)
    (tmp_path / "film.gif").write_text("old")
    monkeypatch.setattr(animation, "_lay", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        animate_trajectory({"a": path, "b": path}, surface, tmp_path / "film.gif", **SHORT)
    assert [each.name for each in tmp_path.iterdir()] == ["film.gif"]
    assert (tmp_path / "film.gif").read_text() == "old"
    assert dict(matplotlib.rcParams) == before


def test_bad_input_is_told_before_drawing(path, surface, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "_draw_still", lambda *_, **__: pytest.fail("drew first"))
    with pytest.raises(ValueError, match=r"'.mp5' is not one of .mp4, .gif, .html. Did you mean 'mp4'"):
        animate_trajectory(path, surface, tmp_path / "film.mp5")
    for wrong in ({"seconds": 0}, {"fps": 100}, {"size": (100, 900)}):
        with pytest.raises(ValueError, match="give more than 0 seconds"):
            animate_trajectory(path, surface, tmp_path / "film.gif", **wrong)
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        animate_trajectory(path, surface, tmp_path / "folder.gif")
    monkeypatch.setattr(film, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "lltoolkit\[video\]"'):
        animate_trajectory(path, surface, tmp_path / "film.mp4")
