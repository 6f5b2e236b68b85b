"""One surface on stage: its mesh, iso-lines, floor, axes and trajectories as actors. Runs in the render thread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as with_default
from typing import Any

import numpy as np
import pyvista as pv

from lltoolkit.plots.field import Field
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.lettering import letter, merge
from lltoolkit.plots.relief import Relief
from lltoolkit.plots.scale import choose_scale
from lltoolkit.plots.themes import Theme
from lltoolkit.plots.ticks import STROKE, lay_ticks
from lltoolkit.plots.tracks import Track, color_of_run

SURFACE = "surface"  # name of the actor whose mesh is the surface
NUMBERS = "axis numbers"
# Colours by a precomputed log10 array: vtk.js ignores log scales, and an exported page would differ.
_LIGHT = {"ambient": 0.30, "diffuse": 0.70, "specular": 0.18, "specular_power": 18}
_LINES = 11  # at least
_STEPS = (1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 8, 1 / 10, 1 / 12, 1 / 16, 1 / 20)  # decades; 1, 10, 100 have lines
_LAMPS = (((-0.8, 0.9, 1.0), 0.75), ((0.9, -0.1, 0.8), 0.30), ((0.0, 0.0, 1.0), 0.20))


@dataclass(frozen=True)
class Panel:
    """One surface of a scene, decided and ready to be built.

    Attributes
    ----------
    title : str
        Above it; empty for a surface alone.
    var : str
        What is shown.
    field, frame, relief : Field, Frame, Relief
        Its cells, where they lie, and the heights between them.
    paths : mapping of str to Track
        Trajectories by the names of their runs.
    levels : mapping of str to float
        Values that are marked, by their names.
    extras : mapping of str to (bool, Relief)
        Other variables for the mesh: whether the heights are log10, and the heights.
    """

    title: str
    var: str
    field: Field
    frame: Frame
    relief: Relief
    paths: Mapping[str, Track] = with_default(default_factory=dict)
    levels: Mapping[str, float] = with_default(default_factory=dict)
    extras: Mapping[str, tuple[bool, Relief]] = with_default(default_factory=dict)


def build_panel(
    scene: pv.Plotter, panel: Panel, theme: Theme, towards: np.ndarray, *, floor: bool, minimizer: bool
) -> tuple[pv.Actor, pv.PolyData]:
    """Put a surface with all that belongs to it into the active subplot, with lines as for a panel of 1000 pixels.

    Parameters
    ----------
    scene : Plotter
        Where.
    panel, theme : Panel, Theme
        What, and in which colours.
    towards : ndarray
        Shape ``(3,)``: from the scene to the camera.
    floor, minimizer : bool
        Whether to draw these.

    Returns
    -------
    (Actor, PolyData)
        Of the surface. Keep both: the garbage collector may empty Python's side of a VTK object that nobody holds, and
        the actor's name or the mesh would be lost.
    """
    frame, relief = panel.frame, panel.relief
    mesh = surface_mesh(panel)
    heights = f"log10_{panel.var}" if frame.log else panel.var
    limits = [float(frame.heights(frame.low)), float(frame.heights(frame.high))]
    if limits[0] == limits[1]:
        limits[1] += 1e-9 + 1e-9 * abs(limits[1])
    colors = {"scalars": heights, "cmap": frame.cmap, "clim": limits, "show_scalar_bar": False}
    actor = scene.add_mesh(mesh, name=SURFACE, **colors, **_LIGHT, smooth_shading=None, interpolate_before_map=True)
    actor.prop.interpolation = "Phong" if relief.height.shape != panel.field.values.shape else "Flat"

    lines = _iso_lines(panel.field, frame, mesh, heights)
    flat = {"lighting": False, "render_lines_as_tubes": False}
    if lines.n_points:
        look = {"color": theme.line, "opacity": 0.55, "line_width": 1.6}
        scene.add_mesh(_lift(lines, frame, relief, 0.004), name="iso-lines", **look, **flat)
    rim = _rim(mesh)
    if rim.n_points:
        look = {"color": theme.line, "opacity": 0.35, "line_width": 1.4}
        scene.add_mesh(rim, name="rim", **look, **flat)
    if floor:
        _add_floor(scene, frame, lines, colors, theme, towards)
    for name, value in panel.levels.items():
        _add_level(scene, panel, mesh, heights, name, value, theme, floor)
    for run, path in panel.paths.items():
        _add_path(scene, frame, relief, path, floor, run, color_of_run(run, frame), theme)
    holds_origin = frame.first[0] <= 0 <= frame.first[1] and frame.second[0] <= 0 <= frame.second[1]
    if minimizer and not panel.paths and not panel.field.at and holds_origin:
        add_ball(scene, "minimizer", lifted(frame, relief, np.zeros(2)), theme.start, 0.02)
    add_lamps(scene)
    return actor, mesh


def add_lamps(scene: pv.Plotter) -> None:
    """Light the active subplot from the camera's side."""
    for position, intensity in _LAMPS:
        scene.add_light(pv.Light(position=position, intensity=intensity, light_type="camera light"), only_active=True)


def surface_mesh(panel: Panel) -> pv.PolyData:
    """Return the surface below its rim, without holes' cells, with analytic normals.

    Parameters
    ----------
    panel : Panel
        What to build.

    Returns
    -------
    PolyData
        With the point data of its axes, the variable, its log10 where height follows it, and the extras.
    """
    frame, relief = panel.frame, panel.relief
    n, m = relief.height.shape
    first, second = (grid.ravel() for grid in np.meshgrid(relief.first, relief.second, indexing="ij"))
    height = relief.height.ravel()
    corner = (np.arange(n - 1)[:, None] * m + np.arange(m - 1)).ravel()
    quads = np.stack([corner, corner + m, corner + m + 1, corner + 1], axis=-1)
    quads = quads[~relief.hole.ravel()[quads].any(axis=1)]
    mesh = pv.PolyData.from_regular_faces(frame.place(first, second, height), quads)
    heights = f"log10_{panel.var}" if frame.log else panel.var
    mesh[frame.axes[0]], mesh[frame.axes[1]], mesh[heights] = first, second, height
    for name, (log, other) in panel.extras.items():
        mesh[f"log10_{name}" if log else name] = np.where(other.hole, np.nan, other.height).ravel()
    mesh.point_data.active_normals = frame.normals(relief, first, second)
    if frame.cut:  # only then: a spline swings a hair above its highest cell, and a cut there would punch a hole
        mesh = mesh.clip_scalar(scalars=heights, invert=True, value=float(frame.heights(frame.high)))
    for name in [*([panel.var] if frame.log else []), *(name for name, (log, _) in panel.extras.items() if log)]:
        mesh[name] = 10.0 ** mesh[f"log10_{name}"]  # after the cut, which interpolates every array in a straight line
    return mesh


def _iso_lines(field: Field, frame: Frame, mesh: pv.PolyData, heights: str) -> pv.PolyData:
    """Return lines of equal value on the mesh, below the rim."""
    low, high = float(frame.heights(frame.low)), float(frame.heights(frame.high))
    if frame.log:
        step = next((step for step in _STEPS if (high - low) / step >= _LINES), (high - low) / _LINES or 1.0)
        levels = step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)
    else:
        levels = choose_scale([replace(field, values=np.clip(field.values, low, high))], "linear").levels
    # A line along the rim would look like a border.
    levels = levels[(levels > low) & (high - levels > 0.02 * (high - low))]
    return mesh.contour(isosurfaces=levels.tolist(), scalars=heights) if levels.size else pv.PolyData()


def _rim(mesh: pv.PolyData) -> pv.PolyData:
    return mesh.extract_feature_edges(
        boundary_edges=True, feature_edges=False, manifold_edges=False, non_manifold_edges=False
    )


def _lift(lines: pv.PolyData, frame: Frame, relief: Relief, height: float) -> pv.PolyData:
    moved = lines.copy()
    moved.points = lines.points + height * frame.normals(relief, lines[frame.axes[0]], lines[frame.axes[1]])
    return moved


def _on_floor(lines: pv.PolyData, frame: Frame) -> pv.PolyData:
    flat = lines.copy()
    flat.points[:, 2] = frame.floor
    return flat


def _add_floor(
    scene: pv.Plotter,
    frame: Frame,
    lines: pv.PolyData,
    colors: dict[str, Any],
    theme: Theme,
    towards: np.ndarray,
) -> None:
    x, y = frame.half
    corners = np.array([(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)])
    border = pv.lines_from_points(np.column_stack([corners, np.full(5, frame.floor)]))
    scene.add_mesh(border, name="floor", color=theme.edge, line_width=1.0, lighting=False)
    if lines.n_points:
        flat = _on_floor(lines, frame)
        scene.add_mesh(flat, name="floor lines", **colors, line_width=1.8, lighting=False)
    add_ticks(scene, frame, theme, towards)


def add_ticks(scene: pv.Plotter, frame: Frame, theme: Theme, towards: np.ndarray) -> None:
    """Lay numbers and names around the floor."""
    ticks = list(lay_ticks(frame, towards))
    texts = merge([letter(tick.text, tick.place, tick.right, 0.062) for tick in ticks])
    scene.add_mesh(texts, name=NUMBERS, color=theme.text, lighting=False)
    ends = [(tick.edge, tick.edge + STROKE * tick.outward) for tick in ticks if tick.has_stroke]
    strokes = pv.line_segments_from_points(np.concatenate(ends))
    scene.add_mesh(strokes, name=f"{NUMBERS} strokes", color=theme.quiet, line_width=1.0, lighting=False)


def _add_level(
    scene: pv.Plotter,
    panel: Panel,
    mesh: pv.PolyData,
    heights: str,
    name: str,
    value: float,
    theme: Theme,
    floor: bool,
) -> None:
    line = mesh.contour(isosurfaces=[float(panel.frame.heights(value))], scalars=heights)
    if not line.n_points:
        return
    look = {"color": theme.level, "lighting": False}
    raised = _lift(line, panel.frame, panel.relief, 0.006)
    scene.add_mesh(raised, name=f"level {name}", line_width=4.5, **look)
    if floor:
        scene.add_mesh(_on_floor(line, panel.frame), name=f"floor level {name}", line_width=3, **look)


def _add_path(
    scene: pv.Plotter,
    frame: Frame,
    relief: Relief,
    path: Track,
    floor: bool,
    run: str,
    color: str,
    theme: Theme,
) -> None:
    of = f" {run}" if run else ""
    for place, piece in enumerate(path.pieces):
        points = frame.place(*piece.T)
        # Along the normal: lifted straight up, a tube would pierce steep walls.
        above = points + 0.02 * frame.normals(relief, piece[:, 0], piece[:, 1])
        tube = round_tube(above, 0.016)
        look = {"color": color, "ambient": 0.35, "specular": 0.3, "smooth_shading": True}
        scene.add_mesh(tube, name=f"trajectory{of} {place}", **look)
        if floor:
            points[:, 2] = frame.floor
            shadow = pv.lines_from_points(points)
            look = {"color": color, "line_width": 3, "lighting": False}
            scene.add_mesh(shadow, name=f"floor trajectory{of} {place}", **look)
    for name, at, shade in (("start", path.start, theme.start), ("end", path.end, theme.end)):
        if at is not None:
            add_ball(scene, f"{name}{of}", lifted(frame, relief, at), shade, 0.034)


def round_tube(points: np.ndarray, radius: float) -> pv.PolyData:
    """Return a tube with a ball in each bend, where the pieces of a plain one would gape."""
    kept = np.r_[True, np.linalg.norm(np.diff(points, axis=0), axis=1) > 1e-9]
    points = points[kept]
    if len(points) < 2:
        return pv.Sphere(radius=radius, center=points[0])
    tube = pv.lines_from_points(points).tube(radius=radius, n_sides=24)
    steps = np.diff(points, axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    bends = points[1:-1][(steps[1:] * steps[:-1]).sum(axis=1) < 0.995]
    if not len(bends):
        return tube
    ball = pv.Sphere(radius=radius, theta_resolution=24, phi_resolution=24)
    return merge([tube, pv.PolyData(bends).glyph(geom=ball, scale=False, orient=False)])


def lifted(frame: Frame, relief: Relief, at: np.ndarray) -> np.ndarray:
    """Return the scene point a little above the surface at two coordinates, shape ``(3,)``."""
    first, second = at[:1], at[1:]
    ground = frame.place(first, second, relief.spline.ev(first, second))
    return (ground + 0.02 * frame.normals(relief, first, second))[0]


def add_ball(scene: pv.Plotter, name: str, center: np.ndarray, color: str, radius: float) -> None:
    """Put a ball into the active subplot."""
    ball = pv.Sphere(radius=radius, center=center, theta_resolution=48, phi_resolution=48)
    scene.add_mesh(ball, name=name, color=color, ambient=0.4, specular=0.3, smooth_shading=True)


def extent_of(frames: Sequence[Frame], points: np.ndarray, floor: bool) -> np.ndarray:
    """Return what a camera must see, shape ``(k, 3)``: the surface, and room for the numbers around the floor."""
    corners = []
    for frame in frames:
        base = np.array([(sx * frame.half[0], sy * frame.half[1], 0.0) for sx in (-1, 1) for sy in (-1, 1)])
        base += 0.17 * np.sign(base) * floor
        base[:, 2] = frame.floor if floor else 0.0
        corners.append(base)
        if floor:  # and the names of the axes, in the middle of the edges
            names = np.array([(frame.half[0], 0.0), (-frame.half[0], 0.0), (0.0, frame.half[1]), (0.0, -frame.half[1])])
            corners.append(np.column_stack([names + 0.33 * np.sign(names), np.full(4, frame.floor)]))
        if frame.third:
            corners.append(base + np.array([0.0, 0.0, frame.third[3]]))
    return np.concatenate([points[:: max(1, len(points) // 20_000)], *corners])
