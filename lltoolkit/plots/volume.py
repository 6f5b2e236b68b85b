"""A volume on stage: nested isosurfaces, or slices. All but `pick_volume` runs in the render thread."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import pyvista as pv
import xarray as xr
from scipy.interpolate import make_interp_spline

from lltoolkit.labelled.schema import STATUS, axes_of
from lltoolkit.plots.field import label_of, pick_variable, require_no_more_dims
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.relief import fill_from_neighbours, subdivide
from lltoolkit.plots.scale import number
from lltoolkit.plots.stage import SURFACE, add_ball, add_lamps, add_ticks
from lltoolkit.plots.style import FRACTION_COLORS, LOSS_COLORS
from lltoolkit.plots.themes import Theme

Form: TypeAlias = Literal["isosurfaces", "slices"]
FORMS = ("isosurfaces", "slices")
_SHELLS = 5
_OUTER = 0.5  # quantile of a loss up to which there are shells: farther out they are cut by the box
_FINE = 96  # points per axis


@dataclass(frozen=True)
class Volume:
    """A volume, decided and ready to be built.

    Attributes
    ----------
    title, var : str
        Above it, and what is shown.
    frame : Frame
        The floor, the colours and the label.
    axes : tuple of ndarray
        Fine coordinates of the three axes.
    height : ndarray
        Shape ``(n, m, k)``: values, or their log10.
    form : {"isosurfaces", "slices"}
        How it is drawn.
    paths, levels : mapping
        Empty: nothing is marked in a volume.
    """

    title: str
    var: str
    frame: Frame
    axes: tuple[np.ndarray, ...]
    height: np.ndarray
    form: Form
    paths: Mapping = field(default_factory=dict)
    levels: Mapping = field(default_factory=dict)


def pick_volume(
    surface: xr.Dataset, title: str, var: str, split: str, *, scale: str, clip: float | None, smooth: bool, form: Form,
    cmap: str | None,
) -> Volume:  # fmt: skip
    """Take one variable of a volume and decide on colours and proportions.

    Parameters
    ----------
    surface : xr.Dataset
        With three axes.
    title, var, split : str
        What to take.
    scale, clip, smooth, cmap
        As in `render_surface`.
    form : {"isosurfaces", "slices"}
        How it will be drawn.

    Returns
    -------
    Volume
        Cells without a value take that of their neighbours, which the note counts.

    Raises
    ------
    ValueError
        If no value is finite, or an axis has one point.
    """
    array = pick_variable(surface, var, split)
    names = axes_of(surface)
    require_no_more_dims(array, names)
    array = array.sortby(list(names)).transpose(*names)
    values = array.values.astype(np.float64)
    if "status" in surface and set(surface["status"].dims) == set(names):
        status = surface["status"].sortby(list(names)).transpose(*names).values
        values = np.where(status == STATUS["missing"], np.nan, values)
    good = np.isfinite(values)
    if not good.any():
        raise ValueError(f"{label_of(array)}: no cell of this volume has a finite value; there is nothing to render.")
    if min(values.shape) < 2:
        raise ValueError(f"{label_of(array)}: a grid of {values.shape} cells is no volume. Draw a plane of it: "
                         f"surface.isel({names[int(np.argmin(values.shape))]}=0).")  # fmt: skip
    is_loss = "loss" in var
    positive = values[good & (values > 0)]
    log = (scale == "log" or (scale == "auto" and is_loss)) and 2 * positive.size > good.sum()
    shown = positive if log else values[good]
    high = float(np.quantile(shown, _OUTER)) if is_loss else float(shown.max())
    high = high if clip is None else min(float(clip), float(shown.max()))
    low = max(float(shown.min()), high * 1e-8) if log else float(shown.min())
    notes = ["cubic spline through the cells" if smooth else "cells as measured"]
    notes += [f"shown up to {number(high)} (max {number(values[good].max())})"] if values[good].max() > high else []
    notes += [f"{np.count_nonzero(~good)} cells without a value: as their neighbours"] if not good.all() else []
    coordinates = [array[name].values.astype(np.float64) for name in names]
    height = fill_from_neighbours(np.where(good, values, np.nan))
    height = np.log10(np.maximum(height, low)) if log else height
    # The spline must not ring below what is far above the shells.
    top = (np.log10(high) + 2.0) if log else high + 2 * (high - low)
    height = np.minimum(height, top) if values[good].max() > high else height
    fine = [subdivide(points, _FINE) if smooth else points for points in coordinates]
    if smooth:
        for axis, (points, finer) in enumerate(zip(coordinates, fine, strict=True)):
            spline = make_interp_spline(points, height, k=min(3, len(points) - 1), axis=axis)
            height = spline(finer)
    spans = np.array([np.ptp(points) for points in coordinates])
    half = spans / spans.max() if spans.min() * 3 >= spans.max() else np.ones(3)
    ends = [(float(points[0]), float(points[-1])) for points in coordinates]
    frame = Frame(
        (names[0], names[1]), ends[0], ends[1], (float(half[0]), float(half[1])), low, max(high, low),
        bool(values[good].max() > high), log, label_of(array),
        cmap or (LOSS_COLORS if is_loss else FRACTION_COLORS), "; ".join(notes),
        third=(names[2], *ends[2], float(2 * half[2])),
    )  # fmt: skip
    return Volume(title, var, frame, tuple(fine), height, form)


def build_volume(
    scene: pv.Plotter, volume: Volume, theme: Theme, towards: np.ndarray, *, floor: bool, minimizer: bool
) -> tuple[pv.Actor, pv.PolyData]:
    """Put a volume into the active subplot, with lines as for a panel of 1000 pixels.

    Parameters
    ----------
    scene : Plotter
        Where.
    volume, theme : Volume, Theme
        What, and in which colours.
    towards : ndarray
        Shape ``(3,)``: from the scene to the camera.
    floor, minimizer : bool
        Whether to draw the axes and the origin.

    Returns
    -------
    (Actor, PolyData)
        Of the shells or slices; keep both, as for `build_panel`.
    """
    frame = volume.frame
    grid, heights = _grid(volume)
    low, high = float(frame.heights(frame.low)), float(frame.heights(frame.high))
    colors = {"scalars": heights, "cmap": frame.cmap, "clim": [low, high if high > low else low + 1e-9]}
    light = {"ambient": 0.35, "diffuse": 0.65, "specular": 0.25, "specular_power": 20, "show_scalar_bar": False}
    if volume.form == "isosurfaces" and high > low:
        levels = low + (high - low) * (np.arange(_SHELLS) + 0.7) / _SHELLS
        mesh = grid.contour(isosurfaces=levels.tolist(), scalars=heights)
        # An eighth is cut out towards the camera, and not veils: they need sorting, which no other program does alike.
        mesh = mesh.clip_box(_octant(volume, towards), invert=True).extract_surface(algorithm="dataset_surface")
        mesh = mesh.compute_normals(split_vertices=False, auto_orient_normals=False)
        light |= {"smooth_shading": None}
    else:
        x, y, z = (_middle(volume, axis) for axis in range(3))
        mesh = grid.slice_orthogonal(x=x, y=y, z=z).combine().extract_surface(algorithm="dataset_surface")
        if frame.cut:
            mesh = mesh.clip_scalar(scalars=heights, invert=True, value=high)
        lines = mesh.contour(isosurfaces=np.linspace(low, high, 12)[1:-1].tolist(), scalars=heights)
        light = {"lighting": False, "show_scalar_bar": False}
        if lines.n_points:
            look = {"color": theme.line, "opacity": 0.5, "line_width": 1.4, "lighting": False}
            scene.add_mesh(lines, name="iso-lines", **look)
    if frame.log and mesh.n_points:
        mesh[volume.var] = 10.0 ** mesh[heights]
    actor = scene.add_mesh(mesh, name=SURFACE, **colors, **light)
    if floor:
        x, y, tall = *frame.half, frame.third[3]
        box = pv.Box(bounds=(-x, x, -y, y, 0.0, tall)).extract_all_edges()
        scene.add_mesh(box, name="floor", color=theme.edge, line_width=1.2, lighting=False)
        add_ticks(scene, frame, theme, towards)
    ends = (frame.first, frame.second, frame.third[1:3])
    if minimizer and all(first <= 0 <= last for first, last in ends):
        place = np.array([_scene(volume, axis, 0.0) for axis in range(3)])
        add_ball(scene, "minimizer", place, theme.start, 0.03)
    add_lamps(scene)
    return actor, mesh


def _octant(volume: Volume, towards: np.ndarray) -> list[float]:
    """Return bounds of the eighth of the box, about the minimizer, that is nearest to the camera."""
    bounds: list[float] = []
    for axis in range(3):
        ends = [float(each) for each in _scene(volume, axis, volume.axes[axis][[0, -1]])]
        middle = _middle(volume, axis)
        bounds += [middle, ends[1] + 1.0] if towards[axis] > 0 else [ends[0] - 1.0, middle]
    return bounds


def _scene(volume: Volume, axis: int, value: np.ndarray | float) -> np.ndarray:
    """Return scene coordinates along one axis."""
    first, last = volume.axes[axis][[0, -1]]
    share = (np.asarray(value) - first) / (last - first)
    return (2 * share - 1) * volume.frame.half[axis] if axis < 2 else share * volume.frame.third[3]


def _middle(volume: Volume, axis: int) -> float:
    first, last = volume.axes[axis][[0, -1]]
    return float(_scene(volume, axis, 0.0 if first <= 0 <= last else (first + last) / 2))


def _grid(volume: Volume) -> tuple[pv.RectilinearGrid, str]:
    grid = pv.RectilinearGrid(*(_scene(volume, axis, points) for axis, points in enumerate(volume.axes)))
    heights = f"log10_{volume.var}" if volume.frame.log else volume.var
    grid[heights] = volume.height.ravel(order="F")
    names = (*volume.frame.axes, volume.frame.third[0])
    for name, points in zip(names, np.meshgrid(*volume.axes, indexing="ij"), strict=True):
        grid[name] = points.ravel(order="F")
    return grid, heights
