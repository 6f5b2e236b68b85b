"""Scenes: meshes against a second interpolation, pictures that are not blank, one thread for all windows."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse.linalg import spsolve

from lltoolkit import render
from lltoolkit.plots import scene as scene_module
from lltoolkit.plots.field import pick_plane
from lltoolkit.plots.frame import follow_path, lay_frame
from lltoolkit.plots.scene import RENDER
from lltoolkit.render import export_scene, render_surface
from tests.plots.surfaces import make_surface

SMALL = (240, 200)


@pytest.fixture
def scenes():
    """Render small scenes and close them afterwards, with nothing left alive."""
    opened = []

    def make(*args, **kwargs):
        opened.append(render_surface(*args, **{"size": SMALL, **kwargs}))
        return opened[-1]

    yield make
    for scene in opened:
        scene.close()


@pytest.fixture
def surface():
    return make_surface()


@pytest.fixture
def trajectory():
    steps = np.linspace(1, 0, 12)
    return xr.Dataset({"alpha": ("step", -0.6 * steps), "beta": ("step", 0.5 * steps**2)})


def mesh_of(scene):
    return scene.actors["surface"].mapper.dataset


def test_points_are_the_spline_of_the_log(scenes, surface):
    mesh = mesh_of(scenes(surface, clip=np.inf))
    grid = (surface.alpha.values, surface.beta.values)
    other = RegularGridInterpolator(grid, np.log10(surface.loss.values[0]), method="cubic", solver=spsolve)
    places = np.random.default_rng(0).integers(0, mesh.n_points, 300)
    expected = other(np.stack([mesh["alpha"], mesh["beta"]], axis=-1)[places])
    np.testing.assert_allclose(mesh["log10_loss"][places], expected, atol=1e-4)  # scipy's boundary rows differ a little
    np.testing.assert_allclose(mesh["loss"], 10.0 ** mesh["log10_loss"], rtol=1e-12)


def test_raw_cells_are_the_cells(scenes, surface):
    mesh = mesh_of(scenes(surface, upsample=False, clip=np.inf))
    assert mesh.n_points == 31 * 31
    np.testing.assert_allclose(mesh["loss"].reshape(31, 31), surface.loss.values[0], rtol=1e-9)


def test_walls_are_cut_at_the_clip_and_told(scenes, surface):
    scene = scenes(surface, clip=50.0)
    mesh = mesh_of(scene)
    assert mesh["loss"].max() == pytest.approx(50, rel=1e-6)
    limits = np.log10([float(surface.loss[0].min()), 50.0])
    np.testing.assert_allclose(scene.actors["surface"].mapper.scalar_range, limits, rtol=1e-9)
    assert "cut at 50 (max" in scene.frame.note
    assert "spline" in scene.frame.note


def test_box_and_proportions(scenes):
    x0, x1, y0, y1, z0, z1 = mesh_of(scenes(make_surface(beta=np.linspace(-0.5, 1, 16)), clip=np.inf)).bounds
    np.testing.assert_allclose((x0, x1, y0, y1), (-1, 1, -0.75, 0.75), atol=1e-6)
    np.testing.assert_allclose((z0, z1), (0, 0.9), atol=0.01)


def test_normals_are_those_of_the_mesh(scenes, surface):
    """Second road: VTK's normals from the triangles."""
    mesh = mesh_of(scenes(surface))
    given = np.array(mesh.point_data["Normals"])
    facets = mesh.compute_normals(auto_orient_normals=False, split_vertices=False, inplace=False).point_data["Normals"]
    cosine = np.abs((given * facets).sum(axis=1))
    assert np.median(cosine) > 0.9999
    assert np.quantile(cosine, 0.01) > 0.99


@pytest.mark.parametrize("direction", [1, -1])
def test_order_of_the_grid_does_not_show(scenes, direction, surface):
    turned = surface.isel(alpha=slice(None, None, direction), beta=slice(None, None, direction))
    np.testing.assert_array_equal(mesh_of(scenes(turned)).points, mesh_of(scenes(surface)).points)


def test_cells_without_a_value_are_cut_out_and_told(scenes, surface):
    surface["loss"][0, 15, 20], surface["loss"][0, 3, 3], surface["status"][25:, :4] = np.nan, np.inf, 0
    scene = scenes(surface)
    mesh = mesh_of(scene)
    half = 1 / 30 - 1e-9
    for alpha, beta in ((0.0, 1 / 3), (-0.8, -0.8)):
        assert not ((abs(mesh["alpha"] - alpha) < half) & (abs(mesh["beta"] - beta) < half)).any()
    assert np.isfinite(mesh.points).all()
    assert "24 cells not computed: cut out; 2 cells NaN or inf: cut out" in scene.frame.note


def test_a_huge_cell_does_not_ring(scenes, surface):
    clean = mesh_of(scenes(surface, clip=100))
    surface["loss"][0, 1, 1] = 1e300
    spiked = mesh_of(scenes(surface, clip=100))
    near = [abs(mesh["alpha"]) + abs(mesh["beta"]) < 0.5 for mesh in (clean, spiked)]
    np.testing.assert_allclose(spiked["log10_loss"][near[1]], clean["log10_loss"][near[0]], atol=1e-3)


def test_trajectory_lies_on_the_surface(scenes, surface, trajectory):
    scene = scenes(surface, trajectory=trajectory)
    assert {"trajectory 0", "floor trajectory 0", "start", "end"} <= set(scene.actors)
    frame, relief = lay_frame(pick_plane(surface, "loss", "train"))
    track = follow_path(trajectory, frame, relief)
    (piece,) = track.pieces
    np.testing.assert_allclose(piece[::24, 0], trajectory.alpha)
    np.testing.assert_allclose(
        piece[-1, 2], np.log10(surface.loss.sel(alpha=0, beta=0, method="nearest")[0]), atol=1e-9
    )
    # Lifted along the normal by 0.02, with radius 0.016: the tube stays outside the surface and close to it.
    tube = scene.actors["trajectory 0"].mapper.dataset
    distance = np.abs(tube.compute_implicit_distance(mesh_of(scene))["implicit_distance"])
    assert distance.min() > 0.002
    assert distance.max() < 0.04


def test_trajectory_outside_is_left_out_and_told(scenes, surface):
    path = xr.Dataset({"alpha": ("step", [-3.0, -0.5, 0.0, 0.2]), "beta": ("step", [0.0, 0.0, 0.0, 0.1])})
    scene = scenes(surface, trajectory=path)
    assert "1 points of the trajectory lie outside" in scene.frame.note
    assert "start" not in scene.actors
    assert "end" in scene.actors


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (xr.Dataset({"alpha": ("step", [0.0, 1.0])}), "no 'beta'"),
        (xr.Dataset({"alpha": ("step", [0.0, np.nan]), "beta": ("step", [0.0, 1.0])}), "1 finite point"),
    ],
)
def test_bad_trajectories(surface, path, words):
    with pytest.raises(ValueError, match=words):
        render_surface(surface, trajectory=path)


def test_three_threads_get_one_picture(scenes, surface):
    scene = scenes(surface)
    pictures = {}
    callers = [
        threading.Thread(target=lambda n=n: pictures.update({n: np.array(scene.screenshot())})) for n in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert pictures[0].std() > 20
    for picture in (pictures[1], pictures[2], np.array(scene.image)):
        np.testing.assert_array_equal(picture, pictures[0])


def test_nothing_is_left_after_closing(surface):
    import gc

    def alive():
        gc.collect()
        RENDER.run(gc.collect)
        kinds = ("vtkEGLRenderWindow", "vtkXOpenGLRenderWindow", "vtkOpenGLActor", "vtkOpenGLRenderer", "Scene")
        return sum(type(each).__name__ in kinds for each in gc.get_objects())

    render_surface(surface, size=SMALL).close()
    before, threads = alive(), threading.active_count()
    for _ in range(3):
        scene = render_surface(surface, size=SMALL)
        scene.screenshot()
        scene.close()
        del scene
    assert alive() <= before
    assert threading.active_count() == threads


def test_errors_come_back_from_the_render_thread(scenes, surface):
    with pytest.raises(NotImplementedError, match="xarray"):
        scenes(surface).add_mesh(surface)


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg"])
def test_pictures(scenes, surface, tmp_path, suffix):
    path = export_scene(scenes(surface), tmp_path / f"scene.{suffix}")
    assert path.stat().st_size > 5000
    assert sorted(tmp_path.iterdir()) == [path]
    if suffix == "png":
        from matplotlib.image import imread

        assert imread(path).std() > 0.1
    if suffix == "pdf":
        assert b"/Type3" not in path.read_bytes()


@pytest.mark.parametrize("suffix", ["vtp", "vtk", "obj"])
def test_meshes_open_again(scenes, surface, tmp_path, suffix):
    import pyvista

    scene = scenes(surface)
    mesh = pyvista.read(export_scene(scene, tmp_path / f"scene.{suffix}"))
    np.testing.assert_allclose(mesh.bounds, mesh_of(scene).bounds, atol=1e-5)
    if suffix != "obj":
        assert {"alpha", "beta", "loss", "log10_loss"} <= set(mesh.point_data)


def test_gltf_and_bare_pixels(scenes, surface, tmp_path):
    from matplotlib.image import imread

    scene = scenes(surface)
    assert export_scene(scene, tmp_path / "scene.gltf").read_text().startswith("{")
    assert imread(export_scene(scene, tmp_path / "bare.png", colorbar=False)).shape[:2] == SMALL[::-1]


def test_bad_paths_are_told_before_drawing(scenes, surface, tmp_path, monkeypatch):
    scene = scenes(surface)
    monkeypatch.setattr(render, "_photograph", lambda _: pytest.fail("drew before looking at the path"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"'.pgn' is not one of .png, .*Did you mean 'png'"):
        export_scene(scene, tmp_path / "a.pgn")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_scene(scene, tmp_path / "folder.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_scene(scene, tmp_path / "nowhere" / "a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="not writable"):
        export_scene(scene, tmp_path / "a.png")


def test_a_closed_scene_is_told(surface, tmp_path):
    scene = render_surface(surface, size=SMALL)
    scene.close()
    with pytest.raises(ValueError, match="closed"):
        export_scene(scene, tmp_path / "a.png")


@pytest.mark.parametrize("values", [0.7, 0.0, -3.0])
def test_flat_surfaces(scenes, values):
    surface = make_surface(6, 5)
    surface["loss"][:] = values
    assert np.array(scenes(surface).screenshot()).std() > 5


def test_accuracy_is_linear_and_whole(scenes, surface):
    mesh = mesh_of(scenes(surface, var="accuracy"))
    assert mesh["accuracy"].min() >= surface.accuracy[0].min()
    assert mesh["accuracy"].max() <= surface.accuracy[0].max()
    assert mesh.bounds[0] == pytest.approx(-1)
    assert "log10_accuracy" not in mesh.point_data


def test_other_planes_of_a_volume(scenes, surface):
    volume = surface.rename(beta="gamma").expand_dims(beta=[0.0])
    assert "gamma" in mesh_of(scenes(volume.isel(beta=0))).point_data


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda s: s, {"scale": "logg"}, "Did you mean 'log'"),
        (lambda s: s, {"var": "los"}, "Did you mean 'loss'"),
        (lambda s: s, {"size": (0, 5)}, "too small"),
        (lambda s: s, {"clip": 1e-9}, "leaves nothing"),
        (lambda s: s.isel(beta=[0]), {}, "plot_slice"),
        (lambda s: s.where(s.loss < 0), {}, "nothing to render"),
    ],
)
def test_what_cannot_be_rendered(surface, change, options, words):
    with pytest.raises(ValueError, match=words):
        render_surface(change(surface), **options)


def test_without_any_opengl_the_packages_are_named(surface, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "VTK_DEFAULT_OPENGL_WINDOW"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(scene_module.sys, "platform", "linux")
    monkeypatch.setattr(scene_module, "_loads", lambda _: False)
    with pytest.raises(RuntimeError, match="apt-get install libegl1 libgl1-mesa-dri"):
        render_surface(surface)


def test_a_users_choice_of_window_stays(surface, monkeypatch):
    monkeypatch.setenv("VTK_DEFAULT_OPENGL_WINDOW", "mine")
    scene_module.choose_window()
    assert os.environ["VTK_DEFAULT_OPENGL_WINDOW"] == "mine"


def test_a_fresh_process_is_silent_and_ends_well():
    """No VTK warning on stderr, and no crash at exit with a scene still open."""
    code = (
        "from tests.plots.surfaces import make_surface; from lltoolkit.render import render_surface; "
        f"scene = render_surface(make_surface(), size={SMALL}); print(scene.screenshot().std() > 20)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


def test_several_trajectories_have_colours_and_a_legend(scenes, surface, trajectory, tmp_path):
    from lltoolkit.plots.composite import compose
    from lltoolkit.plots.series import color_of

    other = xr.Dataset({"alpha": -trajectory["alpha"], "beta": 3 * trajectory["beta"]})
    scene = scenes(surface, trajectory={"SGD": trajectory, "Adam": other})
    assert {"trajectory SGD 0", "floor trajectory Adam 0", "start SGD", "end Adam"} <= set(scene.actors)
    assert scene.frame.runs == (("SGD", color_of(0)), ("Adam", color_of(1)))
    for name, color in scene.frame.runs:
        assert scene.actors[f"trajectory {name} 0"].prop.color.hex_rgb == color.lower()
    assert "points of Adam lie outside" in scene.frame.note
    assert "SGD lie" not in scene.frame.note
    (legend,) = compose(np.array(scene.screenshot()), scene.frame, []).legends
    assert [text.get_text() for text in legend.get_texts()] == ["SGD", "Adam"]


def test_a_trajectory_of_another_subspace_is_refused(surface, trajectory):
    surface.attrs["subspace_id"], trajectory.attrs["subspace_id"] = "abc", "abd"
    with pytest.raises(ValueError, match="other directions"):
        render_surface(surface, trajectory=trajectory)
