"""A plane as a 3D scene by PyVista: built, drawn and exported."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyvista as pv
import xarray as xr

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.files import write_atomically
from lltoolkit.plots.camera import View, azimuth_behind, fit_view
from lltoolkit.plots.composite import axis_marks, compose
from lltoolkit.plots.field import Field, pick_plane
from lltoolkit.plots.frame import Frame, Track, clear_elevation, color_of_run, follow_paths, lay_frame, name_paths
from lltoolkit.plots.relief import Relief
from lltoolkit.plots.scale import choose_scale
from lltoolkit.plots.scene import NO_OPENGL, RENDER, Scene, choose_window, require_opengl

SURFACE = "surface"  # name of the actor whose mesh is the surface
_SCALES = ("auto", "log", "linear")
_PICTURES = ("png", "jpg", "jpeg", "pdf", "svg")
_MESHES = ("vtp", "vtk", "obj", "gltf")
_SUFFIXES = (*_PICTURES, *_MESHES)


def render_surface(
    surface: xr.Dataset,
    *,
    var: str = "loss",
    split: str = "train",
    trajectory: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    scale: Literal["auto", "log", "linear"] = "auto",
    clip: float | None = None,
    upsample: bool = True,
    floor: bool = True,
    minimizer: bool = True,
    elevation: float | None = None,
    azimuth: float | None = None,
    size: tuple[int, int] = (1400, 1200),
    cmap: str | None = None,
) -> Scene:
    """Build a 3D scene of a two-dimensional surface.

    Parameters
    ----------
    surface : xr.Dataset
        A surface with two axes. Cells without a finite value are cut out.
    var, split : str
        What to show.
    trajectory : xr.Dataset or mapping of str to xr.Dataset, optional
        With ``alpha(step)`` and ``beta(step)`` (the surface's axes): drawn as a tube on the surface and a line on the
        floor; or several runs by name, each in the colour that `plot_trajectory` gives it, with a legend in the
        exported picture. Parts outside the surface or above its rim are left out.
    scale : {"auto", "log", "linear"}
        Of height and colour; ``"auto"``: log for a loss, linear for the rest, and where a log is not possible.
    clip : float, optional
        Value at which the walls are cut, ``inf`` for none; default for a loss: the quantile 0.88 of its cells.
    upsample : bool
        Draw a cubic spline through the cells (of log10 for a log scale); False: the cells, with flat pieces between.
    floor : bool
        Draw the iso-lines, and the trajectory, on a floor below.
    minimizer : bool
        Mark the origin with a small ball if there is no trajectory.
    elevation, azimuth : float, optional
        Where to look from, in degrees; by default so that alpha runs to the right, or the trajectory starts at the far
        wall, and as low as the lowest point can still be seen. Give both to compare scenes.
    size : (int, int)
        Width and height in pixels.
    cmap : str, optional
        A matplotlib colour map; default viridis for a loss, cividis for the rest.

    Returns
    -------
    Scene
        A ``pyvista.Plotter``; ``scene.screenshot(path)`` takes the bare picture, `export_scene` a finished figure or
        a mesh, ``scene.close()`` frees it. What was smoothed, cut and left out stands in ``scene.frame.note``. The mesh
        (actor ``"surface"``) has the point data ``alpha``, ``beta``, ``<var>`` and ``log10_<var>``.

    Raises
    ------
    ValueError
        If a choice is unknown, `surface` has no such plane, variable or split, or nothing to draw, or `trajectory`
        lacks its axes or lies in another subspace.
    RuntimeError
        If this machine has no OpenGL library; the message names the Debian packages.
    """
    require_choice("scale", scale, _SCALES)
    if min(size) < 16:
        raise ValueError(f"size={size!r} is too small for a picture; give pixels, for example (1400, 1200).")
    field = pick_plane(surface, var, split)
    frame, relief = lay_frame(field, scale=scale, clip=clip, upsample=upsample, cmap=cmap)
    paths = {} if trajectory is None else follow_paths(trajectory, surface, frame, relief)
    choose_window()
    frame = name_paths(frame, paths)
    if azimuth is None:
        shown = [path.pieces for path in paths.values() if path.pieces]
        azimuth = azimuth_behind(shown[0][0][0], shown[0][-1][-1]) if shown else -60.0
    if elevation is None:
        elevation = clear_elevation(frame, relief, azimuth)
    view = (elevation, azimuth)
    return RENDER.run(_build, field, frame, relief, paths, view, size, var, upsample, floor, minimizer)


def _build(
    field: Field,
    frame: Frame,
    relief: Relief,
    paths: Mapping[str, Track],
    view: tuple[float, float],
    size: tuple[int, int],
    var: str,
    upsample: bool,
    floor: bool,
    minimizer: bool,
) -> Scene:
    """Put the scene together; runs in the render thread."""
    require_opengl()
    scene = Scene(off_screen=True, window_size=list(size), lighting="none", border=False)
    scene.frame = frame
    scene.set_background("white")
    thick = size[1] / 1000  # lines are in pixels and must look alike at any size
    mesh = _mesh(frame, relief, var)
    heights = f"log10_{var}" if frame.log else var
    limits = [float(frame.heights(frame.low)), float(frame.heights(frame.high))]
    if limits[0] == limits[1]:
        limits[1] += 1e-9 + 1e-9 * abs(limits[1])
    # Colours by a precomputed log10 array: vtk.js ignores log scales, and an exported page would differ.
    colors = {"scalars": heights, "cmap": frame.cmap, "clim": limits, "show_scalar_bar": False}
    light = {"ambient": 0.30, "diffuse": 0.70, "specular": 0.18, "specular_power": 18}
    actor = scene.add_mesh(mesh, name=SURFACE, **colors, **light, smooth_shading=None, interpolate_before_map=True)
    actor.prop.interpolation = "Phong" if upsample else "Flat"

    lines = _iso_lines(field, frame, mesh, heights)
    if lines.n_points:
        lifted = lines.copy()
        lifted.points = lines.points + 0.004 * frame.normals(relief, lines[frame.axes[0]], lines[frame.axes[1]])
        scene.add_mesh(lifted, name="iso-lines", color="black", opacity=0.55, line_width=1.6 * thick, lighting=False)
    if floor:
        _add_floor(scene, frame, lines, colors, thick)
    for run, path in paths.items():
        _add_path(scene, frame, relief, path, thick, floor, run, color_of_run(run, frame))
    if not paths and (
        minimizer and not field.at and frame.first[0] <= 0 <= frame.first[1] and frame.second[0] <= 0 <= frame.second[1]
    ):
        _add_ball(scene, "minimizer", frame, relief, np.zeros(2), "white", 0.02)
    for position, intensity in (((-0.8, 0.9, 1.0), 0.75), ((0.9, -0.1, 0.8), 0.30), ((0.0, 0.0, 1.0), 0.20)):
        scene.add_light(pv.Light(position=position, intensity=intensity, light_type="camera light"))
    _look(scene, frame, mesh.points, view, floor)
    scene.enable_anti_aliasing("ssaa")
    return scene


def _mesh(frame: Frame, relief: Relief, var: str) -> pv.PolyData:
    """Return the surface below its roof, without holes' cells, with analytic normals."""
    n, m = relief.height.shape
    first, second = (grid.ravel() for grid in np.meshgrid(relief.first, relief.second, indexing="ij"))
    height = relief.height.ravel()
    corner = (np.arange(n - 1)[:, None] * m + np.arange(m - 1)).ravel()
    quads = np.stack([corner, corner + m, corner + m + 1, corner + 1], axis=-1)
    quads = quads[~relief.hole.ravel()[quads].any(axis=1)]
    mesh = pv.PolyData.from_regular_faces(frame.place(first, second, height), quads)
    heights = f"log10_{var}" if frame.log else var
    mesh[frame.axes[0]], mesh[frame.axes[1]], mesh[heights] = first, second, height
    mesh.point_data.active_normals = frame.normals(relief, first, second)
    if frame.cut:  # only then: a spline swings a hair above its highest cell, and a cut there would punch a hole
        mesh = mesh.clip_scalar(scalars=heights, invert=True, value=float(frame.heights(frame.high)))
    if frame.log:
        mesh[var] = 10.0 ** mesh[heights]  # after the cut, which interpolates every array in a straight line
    return mesh


def _iso_lines(field: Field, frame: Frame, mesh: pv.PolyData, heights: str) -> pv.PolyData:
    """Return lines of equal value on the mesh, at round values below the roof."""
    capped = replace(field, values=np.clip(field.values, frame.low, frame.high))
    levels = choose_scale([capped], "log" if frame.log else "linear").levels
    levels = frame.heights(levels[(levels > frame.low) & (levels < frame.high)])
    # A line along the rim would look like a border.
    levels = levels[frame.heights(frame.high) - levels > 0.02 * (frame.heights(frame.high) - frame.heights(frame.low))]
    return mesh.contour(isosurfaces=levels.tolist(), scalars=heights) if levels.size else pv.PolyData()


def _add_floor(scene: Scene, frame: Frame, lines: pv.PolyData, colors: dict[str, Any], thick: float) -> None:
    x, y = frame.half
    corners = np.array([(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)])
    border = pv.lines_from_points(np.column_stack([corners, np.full(5, frame.floor)]))
    scene.add_mesh(border, name="floor", color="grey", line_width=1.0 * thick, lighting=False)
    if lines.n_points:
        flat = lines.copy()
        flat.points[:, 2] = frame.floor
        scene.add_mesh(flat, name="floor lines", **colors, line_width=1.6 * thick, lighting=False)


def _add_path(
    scene: Scene, frame: Frame, relief: Relief, path: Track, thick: float, floor: bool, run: str, color: str
) -> None:
    of = f" {run}" if run else ""
    for place, piece in enumerate(path.pieces):
        points = frame.place(*piece.T)
        # Along the normal: lifted straight up, a tube would pierce steep walls.
        lifted = points + 0.02 * frame.normals(relief, piece[:, 0], piece[:, 1])
        tube = pv.lines_from_points(lifted).tube(radius=0.016, n_sides=24)
        scene.add_mesh(
            tube, name=f"trajectory{of} {place}", color=color, ambient=0.35, specular=0.3, smooth_shading=True
        )
        if floor:
            points[:, 2] = frame.floor
            shadow = pv.lines_from_points(points)
            scene.add_mesh(
                shadow, name=f"floor trajectory{of} {place}", color=color, line_width=3 * thick, lighting=False
            )
    for name, at, shade in (("start", path.start, "white"), ("end", path.end, "#ffe13a")):
        if at is not None:
            _add_ball(scene, f"{name}{of}", frame, relief, at, shade, 0.034)


def _add_ball(scene: Scene, name: str, frame: Frame, relief: Relief, at: np.ndarray, color: str, radius: float) -> None:
    first, second = at[:1], at[1:]
    center = frame.place(first, second, relief.spline.ev(first, second)) + 0.02 * frame.normals(relief, first, second)
    ball = pv.Sphere(radius=radius, center=center[0], theta_resolution=48, phi_resolution=48)
    scene.add_mesh(ball, name=name, color=color, ambient=0.4, specular=0.3, smooth_shading=True)


def _look(scene: Scene, frame: Frame, points: np.ndarray, view: tuple[float, float], floor: bool) -> None:
    """Aim the camera so that the scene fills the window without being cut."""
    # Room for the numbers along the edges of the floor.
    base = 1.13 * np.array([(sx * frame.half[0], sy * frame.half[1], 0.0) for sx in (-1, 1) for sy in (-1, 1)])
    base[:, 2] = frame.floor if floor else 0.0
    points = np.concatenate([points[:: max(1, len(points) // 20_000)], base])
    fitted = fit_view(points, *view, scene.window_size)
    scene.camera.position, scene.camera.focal_point = fitted.position, fitted.focus
    scene.camera.up, scene.camera.view_angle = (0.0, 0.0, 1.0), fitted.angle
    scene.camera_set = True
    scene.reset_camera_clipping_range()


def _view_of(scene: Scene) -> View:
    camera = scene.camera
    return View(np.array(camera.position), np.array(camera.focal_point), float(camera.view_angle))


def export_scene(scene: Scene, path: str | Path, *, colorbar: bool = True) -> Path:
    """Write a scene to a file; the suffix says as what.

    Parameters
    ----------
    scene : Scene
        From `render_surface`, not yet closed.
    path : str or Path
        ``.png``, ``.jpg``, ``.pdf``, ``.svg``: the picture from the scene's camera as a finished figure with
        vector colour bar, axis numbers and notes.
        ``.vtp``, ``.vtk``, ``.obj``: the surface alone, for ParaView and others; ``.gltf``: the scene.
        An existing file is replaced.
    colorbar : bool
        False: the bare pixels (png and jpg).

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If the suffix is unknown or `scene` is no scene of lltoolkit.
    OSError
        If `path` is a folder or its folder is missing or not writable; before anything is drawn.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _SUFFIXES:
        listed = ", ".join(f".{suffix}" for suffix in _SUFFIXES)
        raise ValueError(f"path={str(path)!r}: the suffix {path.suffix!r} is not one of {listed}."
                         f"{did_you_mean(kind, _SUFFIXES)}")  # fmt: skip
    if not isinstance(scene, Scene) or scene.frame is None:
        raise ValueError(f"scene is a {type(scene).__name__}, not a scene from lltoolkit.render_surface.")
    _require_writable(path)
    if kind in _PICTURES:
        image = RENDER.run(_photograph, scene)
        if colorbar or kind in {"pdf", "svg"}:
            size = (image.shape[1], image.shape[0])
            marks = axis_marks(scene.frame, _view_of(scene), size) if "floor" in scene.actors else []
            write_atomically(path, compose(image, scene.frame, marks).savefig)
        else:
            write_atomically(path, lambda temporary: _save_pixels(image, temporary))
    else:
        RENDER.run(_export_mesh, scene, path, kind)
    return path


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is not writable; choose another.")


def _photograph(scene: Scene) -> np.ndarray:
    """Return the picture, shape ``(height, width, 3)``; runs in the render thread."""
    if scene.render_window is None:
        raise ValueError("this scene is closed; build it again with render_surface and export it before closing.")
    image = np.array(scene.screenshot(return_img=True))
    if image.min() == image.max():
        raise RuntimeError(f"the renderer gave an empty picture. {NO_OPENGL}")
    return image


def _save_pixels(image: np.ndarray, path: Path) -> None:
    from matplotlib.image import imsave

    imsave(path, image)


def _export_mesh(scene: Scene, path: Path, kind: str) -> None:
    if kind == "gltf":
        write_atomically(path, lambda temporary: scene.export_gltf(str(temporary)))
    elif kind == "obj":
        scene.actors[SURFACE].mapper.dataset.save(path)
    else:
        write_atomically(path, scene.actors[SURFACE].mapper.dataset.save)
