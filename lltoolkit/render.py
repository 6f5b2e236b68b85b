"""A plane, several beside each other, or a volume as a 3D scene by PyVista."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.export import draw_figure, export_scene
from lltoolkit.labelled.schema import axes_of
from lltoolkit.plots.camera import Camera, azimuth_behind, pick_camera
from lltoolkit.plots.composite import Sheet
from lltoolkit.plots.field import Field, pick_plane
from lltoolkit.plots.frame import Span, choose_span, clear_elevation, lay_frame
from lltoolkit.plots.paths import name_runs
from lltoolkit.plots.relief import Relief, smooth_relief
from lltoolkit.plots.scale import number
from lltoolkit.plots.scene import RENDER, Scene, choose_window, require_opengl
from lltoolkit.plots.stage import Panel, build_panel, extent_of
from lltoolkit.plots.themes import Theme, ThemeName, pick_theme
from lltoolkit.plots.tracks import follow_paths, highest_on_path, name_paths
from lltoolkit.plots.volume import FORMS, Form, Volume, build_volume, pick_volume
from lltoolkit.plots.window import Layout, arrange, open_window, write_title

__all__ = ["export_scene", "render_surface"]

_SCALES = ("auto", "log", "linear")
_EXTRAS = ("loss", "accuracy")  # on the mesh whatever is drawn, for other programs


def render_surface(
    surface: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    var: str = "loss",
    split: str = "train",
    trajectory: xr.Dataset | Mapping[str, Any] | None = None,
    level: float | Mapping[str, float] | None = None,
    form: Form = "isosurfaces",
    scale: Literal["auto", "log", "linear"] = "auto",
    clip: float | None = None,
    smooth: bool = True,
    floor: bool = True,
    minimizer: bool = True,
    camera: Camera = "default",
    theme: ThemeName = "light",
    size: tuple[int, int] | None = None,
    cmap: str | None = None,
) -> Scene:
    """Build a 3D scene of a surface, or of several side by side.

    Parameters
    ----------
    surface : xr.Dataset or mapping of str to xr.Dataset
        A surface with two axes; cells without a finite value are cut out. Or several by their titles: side by side, on
        one scale, with one colour bar and cameras that move together. Or a volume, with three axes.
    var, split : str
        What to show.
    trajectory : xr.Dataset or mapping of str to xr.Dataset, optional
        With ``alpha(step)`` and ``beta(step)`` (the surface's axes): drawn as a tube on the surface and a line on the
        floor; or several runs by name, each in the colour that `plot_trajectory` gives it, with a legend in the
        exported picture. Parts outside the surface or above its rim are left out. For several surfaces: a mapping from
        their titles to one of these.
    level : float or mapping of str to float, optional
        Values of `var` to mark by a bold line on the surface, on the floor and in the colour bar; with a name:
        ``{"initialization": 2.3}``.
    form : {"isosurfaces", "slices"}
        Of a volume: nested shells around what is low, cut open, or three planes through the minimizer.
    scale : {"auto", "log", "linear"}
        Of height and colour; ``"auto"``: log for a loss, linear for the rest, and where a log is not possible.
    clip : float, optional
        Value at which the walls are cut, ``inf`` for none; default for a loss: the quantile 0.88 of its cells, raised
        to the highest point of a trajectory, but not by more than half of the height.
    smooth : bool
        Draw a cubic spline through the cells (of log10 for a log scale); False: the cells, with flat pieces between.
    floor : bool
        Draw the iso-lines, the trajectory and the axes on a floor below.
    minimizer : bool
        Mark the origin with a small ball if there is no trajectory.
    camera : str or (float, float)
        ``"default"``: alpha runs to the right, or the trajectory starts at the far wall, as low as the lowest point
        can still be seen; ``"top"``, ``"front"``, ``"side"``; or elevation and azimuth in degrees: give these to
        compare scenes.
    theme : {"light", "dark"}
        White for print, or dark for talks.
    size : (int, int), optional
        Width and height in pixels; default (1400, 1200), for several surfaces by their number.
    cmap : str, optional
        A matplotlib colour map; default viridis for a loss, cividis for the rest.

    Returns
    -------
    Scene
        A ``pyvista.Plotter``, shown as a finished figure where it is the value of a notebook's cell.
        ``scene.screenshot(path)`` takes the picture, `export_scene` writes a figure, a page, a film or a mesh,
        ``scene.close()`` frees it. What was smoothed, cut and left out stands in ``scene.frame.note``. The mesh (actor
        ``"surface"``) has the point data ``alpha``, ``beta``, ``loss``, ``log10_loss``, ``accuracy`` as far as present.

    Raises
    ------
    ValueError
        If a choice is unknown, `surface` has no such plane, variable or split, or nothing to draw, several surfaces
        hold different things, or `trajectory` lacks their axes or lies in another subspace.
    RuntimeError
        If this machine has no OpenGL library; the message names the Debian packages.
    """
    require_choice("scale", scale, _SCALES)
    look, chosen = pick_theme(theme), pick_camera(camera)
    if size is not None and min(size) < 16:
        raise ValueError(f"size={size!r} is too small for a picture; give pixels, for example (1400, 1200).")
    surfaces = {"": surface} if not isinstance(surface, Mapping) or isinstance(surface, xr.Dataset) else dict(surface)
    if not surfaces:
        raise ValueError("surface is empty; give a Dataset, or {'title': Dataset} with one or more.")
    require_choice("form", form, FORMS)
    levels = _name_levels(level, var)
    if any(isinstance(each, xr.Dataset) and len(axes_of(each)) == 3 for each in surfaces.values()):
        if len(surfaces) > 1 or trajectory is not None or levels:
            raise ValueError(
                "a volume is drawn alone, without trajectory and level. Choose a plane of each for these: "
                "surface.sel(gamma=0, method='nearest')."
            )
        (title, only), choices = *surfaces.items(), {"scale": scale, "clip": clip, "smooth": smooth, "cmap": cmap}
        volume = pick_volume(only, title, var, split, form=form, **choices)
        choose_window()
        return RENDER.run(_build, [volume], look, chosen or (28.0, -55.0), size, floor, minimizer)
    fields = {title: pick_plane(each, var, split) for title, each in surfaces.items()}
    _require_alike(fields)
    runs = _runs_by_title(trajectory, surfaces)
    reach = max(
        [highest_on_path(run, fields[title]) for title in runs for run in runs[title].values()], default=-np.inf
    )
    span = choose_span(list(fields.values()), scale=scale, clip=clip, reach=reach)
    panels = [
        _make_panel(title, var, split, surfaces[title], field, span, runs.get(title, {}), levels, smooth, cmap)
        for title, field in fields.items()
    ]
    view = chosen or _default_view(panels)
    choose_window()
    return RENDER.run(_build, panels, look, view, size, floor, minimizer)


def _name_levels(level: float | Mapping[str, float] | None, var: str) -> dict[str, float]:
    if level is None:
        return {}
    named = level if isinstance(level, Mapping) else {var: level}
    for name, value in named.items():
        if isinstance(value, str | bool) or not np.isfinite(value):
            raise ValueError(f"level={level!r}: {value!r} of {name!r} is no finite number; give a value of {var}.")
    return {str(name): float(value) for name, value in named.items()}


def _require_alike(fields: Mapping[str, Field]) -> None:
    """Check that surfaces can share a scale, and that a shared camera shows the same axes."""
    for what, found in (
        ("hold", {field.label for field in fields.values()}),
        ("run over", {" and ".join(field.axes) for field in fields.values()}),
    ):
        if len(found) > 1:
            raise ValueError(
                f"these surfaces {what} different things and cannot share a scene: {', '.join(sorted(found))}."
            )


def _runs_by_title(
    trajectory: xr.Dataset | Mapping[str, Any] | None, surfaces: Mapping[str, xr.Dataset]
) -> dict[str, dict[str, xr.Dataset]]:
    if trajectory is None:
        return {}
    if "" in surfaces:
        return {"": name_runs(trajectory, "trajectory", "trajectory")}
    titles = ", ".join(map(repr, surfaces))
    if isinstance(trajectory, xr.Dataset) or not isinstance(trajectory, Mapping):
        raise ValueError(f"for several surfaces give trajectory={{title: ...}}, with titles among {titles}.")
    if unknown := [title for title in trajectory if title not in surfaces]:
        raise ValueError(
            f"trajectory has {unknown[0]!r}, which is no title of a surface; the titles are {titles}."
            f"{did_you_mean(unknown[0], surfaces)}"
        )
    return {title: name_runs(each, f"trajectory[{title!r}]", "trajectory") for title, each in trajectory.items()}


def _make_panel(
    title: str,
    var: str,
    split: str,
    surface: xr.Dataset,
    field: Field,
    span: Span,
    runs: Mapping[str, xr.Dataset],
    levels: Mapping[str, float],
    smooth: bool,
    cmap: str | None,
) -> Panel:
    frame, relief = lay_frame(field, span, smooth=smooth, cmap=cmap)
    paths = follow_paths(dict(runs) if "" not in runs else runs[""], surface, frame, relief) if runs else {}
    frame = name_paths(frame, paths)
    lowest, highest = frame.heights(frame.low), np.nanmax(np.where(relief.hole, np.nan, relief.height))
    for name, value in levels.items():
        if (frame.log and value <= 0) or not lowest <= frame.heights(value) <= min(highest, frame.heights(frame.high)):
            frame = replace(frame, note=f"{frame.note}; {name} ({number(value)}) lies outside what is shown")
    return Panel(title, var, field, frame, relief, paths, levels, _extras(surface, var, split, field, smooth))


def _extras(surface: xr.Dataset, var: str, split: str, field: Field, smooth: bool) -> dict[str, tuple[bool, Relief]]:
    """Lay reliefs through what else was measured in the cells, for the mesh."""
    extras = {}
    for name in _EXTRAS:
        if name == var or name not in surface or not set(field.axes) <= set(surface[name].dims):
            continue
        other = pick_plane(surface, name, split)
        values = np.where(other.drawn, other.values, np.nan)
        log = other.is_loss and bool((other.finite > 0).all())
        if other.finite.size:
            heights = np.log10(values) if log else values
            extras[name] = log, smooth_relief(other.first, other.second, heights, 400 * smooth, bounded=not log)
    return extras


def _default_view(panels: Sequence[Panel]) -> tuple[float, float]:
    shown = [path.pieces for panel in panels for path in panel.paths.values() if path.pieces]
    azimuth = azimuth_behind(shown[0][0][0], shown[0][-1][-1]) if shown else -60.0
    return max(clear_elevation(panel.frame, panel.relief, azimuth) for panel in panels), azimuth


def _build(
    panels: Sequence[Panel | Volume],
    theme: Theme,
    view: tuple[float, float],
    size: tuple[int, int] | None,
    floor: bool,
    minimizer: bool,
) -> Scene:
    """Put the scene together; runs in the render thread."""
    require_opengl()
    n_columns = min(len(panels), 4)
    n_rows = -(-len(panels) // n_columns)
    side = 1000 if n_columns <= 2 else 800
    scene = open_window(n_rows, n_columns, theme)
    tilt, turn = np.radians(view)
    towards = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    for place, panel in enumerate(panels):
        scene.subplot(*divmod(place, n_columns))
        build = build_volume if isinstance(panel, Volume) else build_panel
        scene.surfaces.append(build(scene, panel, theme, towards, floor=floor, minimizer=minimizer))
        if panel.title:
            write_title(scene, panel.title, theme)
    points = np.concatenate([np.array(mesh.points) for _, mesh in scene.surfaces])
    seen = extent_of([panel.frame for panel in panels], points, floor)
    scene.panels, scene.layout = tuple(panels), Layout(len(panels), n_rows, n_columns, seen, view)
    scene.sheet = _sheet(panels, theme)
    if len(panels) > 1:
        scene.link_views([int(scene.renderers.loc_to_index(place)) for place in scene.layout.places])
    arrange(scene, size or ((1400, 1200) if len(panels) == 1 else (side * n_columns + side // 5, side * n_rows)))
    scene.enable_anti_aliasing("ssaa", all_renderers=True)
    scene.compose = draw_figure
    return scene


def _sheet(panels: Sequence[Panel | Volume], theme: Theme) -> Sheet:
    notes: dict[str, list[str]] = {}
    for panel in panels:
        notes.setdefault(panel.frame.note, []).append(panel.title)
    single = len(notes) == 1
    told = [note if single else f"{', '.join(titles)}: {note}" for note, titles in notes.items()]
    if len({(panel.frame.first, panel.frame.second) for panel in panels}) > 1:
        told.append("the axes span different ranges")
    levels = panels[0].levels
    legend = dict(pair for panel in panels for pair in panel.frame.runs)
    legend |= {f"{name}: {number(value)}": theme.level for name, value in levels.items()}
    titles = tuple(panel.title for panel in panels)
    return Sheet(panels[0].frame, "; ".join(told), theme, titles, legend=tuple(legend.items()), levels=levels)
