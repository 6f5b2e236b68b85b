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

from lltoolkit.export import draw_figure
from lltoolkit.plots import scene as scene_module
from lltoolkit.plots.field import pick_plane
from lltoolkit.plots.frame import lay_frame
from lltoolkit.plots.scene import RENDER
from lltoolkit.plots.tracks import follow_path
from lltoolkit.render import render_surface
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
    mesh = mesh_of(scenes(surface, smooth=False, clip=np.inf))
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
    assert "1 point of the trajectory outside" in scene.frame.note
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
    assert "points of Adam outside" in scene.frame.note
    assert "of SGD outside" not in scene.frame.note
    (legend,) = compose(np.array(scene.screenshot()), scene.sheet, []).legends
    assert [text.get_text() for text in legend.get_texts()] == ["SGD", "Adam"]


def test_a_trajectory_of_another_subspace_is_refused(surface, trajectory):
    surface.attrs["subspace_id"], trajectory.attrs["subspace_id"] = "abc", "abd"
    with pytest.raises(ValueError, match="other directions"):
        render_surface(surface, trajectory=trajectory)


def test_the_rim_rises_to_the_start_of_a_trajectory(scenes, surface):
    """Half of the drawn height at most: one spike may not flatten the rest."""
    steps = np.linspace(1, 0, 12)
    path = xr.Dataset({"alpha": ("step", -0.85 * steps), "beta": ("step", -0.8 * steps)})
    plain, raised = scenes(surface), scenes(surface, trajectory=path)
    start = float(surface.loss[0].interp(alpha=-0.85, beta=-0.8))
    assert plain.frame.high < start < raised.frame.high
    assert "start" in raised.actors
    low, high, top = np.log10([plain.frame.low, plain.frame.high, raised.frame.high])
    assert top <= high + 0.5 * (high - low) + 1e-9
    assert scenes(surface, trajectory=path, clip=10.0).frame.high == 10.0


def test_a_level_is_a_line_at_its_value(scenes, surface):
    scene = scenes(surface, level={"initialization": 2.3, "nowhere": 1e9})
    line = scene.actors["level initialization"].mapper.dataset
    np.testing.assert_allclose(line["loss"], 2.3, rtol=2e-3)
    below = scene.actors["floor level initialization"].mapper.dataset.points
    np.testing.assert_allclose(below[:, 2], scene.frame.floor)
    assert "level nowhere" not in scene.actors
    assert "nowhere ($10^{9}$) lies outside what is shown" in scene.frame.note
    assert ("initialization: 2.3", scene.sheet.theme.level) in scene.sheet.legend
    for bad in (np.nan, {"a": "2"}, True):
        with pytest.raises(ValueError, match="no finite number"):
            render_surface(surface, level=bad)


@pytest.mark.parametrize(
    ("camera", "towards"),
    [("top", (0, 0, 1)), ("front", (0, -0.93, 0.37)), ("side", (0.93, 0, 0.37)), ((0, 90), (0, 1, 0))],
)
def test_cameras(scenes, surface, camera, towards):
    scene = scenes(surface, camera=camera)
    away = np.subtract(scene.camera.position, scene.camera.focal_point)
    np.testing.assert_allclose(away / np.linalg.norm(away), towards, atol=0.02)


def test_from_the_top_the_axes_run_as_in_a_contour_plot(scenes, surface):
    from lltoolkit.plots.window import view_of

    scene = scenes(surface, camera="top")
    origin, right, up = view_of(scene).project(np.array([(0.0, 0, 0), (1, 0, 0), (0, 1, 0)]), SMALL)
    assert right[0] > origin[0] + 20
    assert up[1] < origin[1] - 20


def test_themes_differ_in_the_background(scenes, surface):
    light, dark = (np.array(scenes(surface, theme=theme).screenshot()) for theme in ("light", "dark"))
    assert (light[0, 0] == 255).all()
    assert dark[0, 0].max() < 40


def test_side_by_side_on_one_scale_with_one_camera(scenes, surface):
    other = surface.assign(loss=10 * surface["loss"]).sel(alpha=slice(-0.5, 1))
    scene = scenes({"one": surface, "ten": other}, size=(400, 180), trajectory=None)
    one, ten = (panel.frame for panel in scene.panels)
    assert (one.low, one.high) == (ten.low, ten.high)
    assert one.low == pytest.approx(float(surface.loss[0].min()))
    ranges = {renderer.actors["surface"].mapper.scalar_range for renderer in scene.renderers[:2]}
    assert len(ranges) == 1
    assert scene.renderers[0].camera is scene.renderers[1].camera
    assert scene.sheet.titles == ("one", "ten")
    assert "the axes span different ranges" in scene.sheet.note
    # The same value is equally high.
    for renderer in scene.renderers[:2]:
        mesh = renderer.actors["surface"].mapper.dataset
        height = (mesh["log10_loss"] - np.log10(one.low)) * one.steepness
        np.testing.assert_allclose(mesh.points[:, 2], height, atol=1e-5)


def test_what_cannot_stand_side_by_side(surface, trajectory):
    with pytest.raises(ValueError, match="hold different things"):
        render_surface({"a": surface, "b": surface.assign(loss=surface["loss"].assign_attrs(units="bit"))})
    with pytest.raises(ValueError, match="run over different things"):
        render_surface({"a": surface, "b": surface.rename(beta="gamma")})
    with pytest.raises(ValueError, match="surface is empty"):
        render_surface({})
    with pytest.raises(ValueError, match="for several surfaces give trajectory="):
        render_surface({"a": surface, "b": surface}, trajectory=trajectory)
    with pytest.raises(ValueError, match="Did you mean 'one'"):
        render_surface({"one": surface, "b": surface}, trajectory={"onee": trajectory})
    with pytest.raises(TypeError, match=r"not an xarray\.Dataset"):
        render_surface({"a": surface, "b": 3})


def make_volume(n=9):
    axis = np.linspace(-1, 1, n)
    a, b, c = np.meshgrid(axis, axis, axis, indexing="ij")
    loss = 10 ** (-2 + 3 * (a**2 + 0.7 * b**2 + 0.5 * c**2))
    grid = {"alpha": axis, "beta": axis, "gamma": axis}
    return xr.Dataset({"loss": (tuple(grid), loss, {"units": "nat"})}, coords=grid)


def test_isosurfaces_of_a_volume_lie_at_their_values(scenes):
    """Second road: the closed form. Towards the camera they are cut open."""
    scene = scenes(make_volume())
    mesh = mesh_of(scene)
    expected = -2 + 3 * (mesh["alpha"] ** 2 + 0.7 * mesh["beta"] ** 2 + 0.5 * mesh["gamma"] ** 2)
    np.testing.assert_allclose(mesh["log10_loss"], expected, atol=0.03)
    assert len(np.unique(mesh["log10_loss"].round(3))) == 5
    towards = np.sign(np.subtract(scene.camera.position, scene.camera.focal_point))
    centers = np.stack([mesh["alpha"], mesh["beta"], mesh["gamma"]], axis=-1) * towards
    assert not (centers > 0.02).all(axis=1).any()
    assert (scene.frame.axes, scene.frame.third[0]) == (("alpha", "beta"), "gamma")


def test_slices_of_a_volume_go_through_the_minimizer(scenes):
    volume = make_volume()
    volume["loss"][2, 2, 2] = np.nan
    scene = scenes(volume, form="slices", smooth=False, clip=np.inf)
    mesh = mesh_of(scene)
    on_plane = np.min([np.abs(mesh[name]) for name in ("alpha", "beta", "gamma")], axis=0)
    np.testing.assert_allclose(on_plane, 0, atol=1e-6)
    assert "1 cells without a value" in scene.frame.note


def test_what_a_volume_cannot_be(surface, trajectory):
    volume = make_volume(4)
    with pytest.raises(ValueError, match="Did you mean 'slices'"):
        render_surface(volume, form="slice")
    with pytest.raises(ValueError, match="drawn alone"):
        render_surface(volume, trajectory=trajectory)
    with pytest.raises(ValueError, match="drawn alone"):
        render_surface({"a": volume, "b": surface})
    with pytest.raises(ValueError, match="no volume"):
        render_surface(volume.isel(gamma=[0]))
    with pytest.raises(ValueError, match="nothing to render"):
        render_surface(volume.where(volume.loss < 0))


def test_bad_choices(surface):
    for wrong, words in (
        ({"camera": "topp"}, "Did you mean 'top'"),
        ({"camera": (100, 0)}, "elevation of -90 to 90"),
        ({"camera": 5}, "elevation of -90 to 90"),
        ({"theme": "drak"}, "Did you mean 'dark'"),
    ):
        with pytest.raises(ValueError, match=words):
            render_surface(surface, **wrong)


def test_three_threads_build_one_picture(surface):
    pictures = {}

    def build(n):
        scene = render_surface(surface, size=SMALL)
        pictures[n] = np.array(scene.screenshot())
        scene.close()

    callers = [threading.Thread(target=build, args=(n,)) for n in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert pictures[0].std() > 20
    np.testing.assert_array_equal(pictures[1], pictures[0])
    np.testing.assert_array_equal(pictures[2], pictures[0])


def test_two_cells_along_an_axis_are_a_surface(scenes):
    corners = xr.DataArray([[1.0, 2.0], [3.0, 4.0]], coords={"alpha": [0.0, 1.0], "beta": [0.0, 1.0]}, name="loss")
    image = scenes(corners.to_dataset(), clip=np.inf).screenshot(None, return_img=True)
    assert image.std() > 5


def test_filled_cells_are_counted_without_dots(scenes, surface):
    surface["status"] = (("alpha", "beta"), np.full(surface["loss"].shape[1:], 2, dtype=np.int8))
    note = scenes(surface).frame.note
    assert note.endswith(f"{surface['status'].size} of {surface['status'].size} cells interpolated")


def test_the_bar_of_a_nearly_constant_loss_has_few_numbers(scenes, surface):
    surface["loss"] = surface["loss"] * 0 + 2
    figure = draw_figure(scenes(surface))
    figure.draw_without_rendering()
    words = [tick.get_text() for ax in figure.axes[1:] for tick in ax.get_yticklabels(which="both") if tick.get_text()]
    assert 1 <= len(words) <= 5
    assert all("times" not in word for word in words)
