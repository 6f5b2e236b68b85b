"""A scene's window: a place for each panel, a strip for the colour bar, and the camera. Runs in the render thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyvista as pv

from lltoolkit.plots.camera import View, fit_view
from lltoolkit.plots.composite import BAR_INCHES, PANEL_INCHES, Box, bar_alone, pixels_of
from lltoolkit.plots.scene import Scene
from lltoolkit.plots.stage import NUMBERS
from lltoolkit.plots.themes import Theme

BAR, TITLE = "colour bar", "title"
_TITLE_ROOM = 0.07  # of a panel's height


@dataclass
class Layout:
    """How the panels of a window lie, and how they were last aimed at.

    Attributes
    ----------
    n_panels, n_rows, n_columns : int
        Row by row; the last row may be shorter.
    seen : ndarray
        Shape ``(k, 3)``: what the camera must show.
    view : (float, float)
        Elevation and azimuth in degrees.
    fitted : View, optional
        As the camera was set; where it stands elsewhere, the user moved it.
    height : float
        Of a panel in pixels, for which lines and letters have their sizes.
    """

    n_panels: int
    n_rows: int
    n_columns: int
    seen: np.ndarray
    view: tuple[float, float]
    fitted: View | None = None
    height: float = 1000.0

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column of each panel."""
        return [divmod(place, self.n_columns) for place in range(self.n_panels)]

    def boxes(self, size: tuple[int, int], *, bar: bool = True) -> tuple[Box, ...]:
        """Return left, bottom, width and height of each panel as fractions of a window of `size` pixels."""
        strip = min(BAR_INCHES / PANEL_INCHES * size[1] / self.n_rows / size[0], 1 / 3) if bar else 0.0
        across, up = (1 - strip) / self.n_columns, 1 / self.n_rows
        return tuple((column * across, 1 - (row + 1) * up, across, up) for row, column in self.places)


def open_window(n_rows: int, n_columns: int, theme: Theme) -> Scene:
    """Open a window with a subplot for each panel, and one for the colour bar in the last column.

    Returns
    -------
    Scene
        Without a size of its own.
    """
    layout = {"shape": (n_rows, n_columns + 1), "border": False}
    if n_rows > 1:
        layout["groups"] = [(slice(None), n_columns)]
    scene = Scene(off_screen=True, lighting="none", **layout)
    scene.set_background(theme.background, all_renderers=True)
    return scene


def write_title(scene: Scene, title: str, theme: Theme) -> None:
    """Write a title above the active panel."""
    from matplotlib import get_data_path

    font = f"{get_data_path()}/fonts/ttf/STIXGeneral.ttf"
    text = scene.add_text(title, position=(0.5, 0.945), viewport=True, color=theme.text, font_file=font, name=TITLE)
    text.prop.font_size, text.prop.justification_horizontal = 28, "center"


@contextmanager
def unseen(scene: Scene) -> Iterator[None]:
    """Draw nothing while several things are changed: PyVista draws the whole scene after each."""
    before = scene.suppress_rendering
    scene.suppress_rendering = True
    try:
        yield
    finally:
        scene.suppress_rendering = before


def arrange(scene: Scene, size: tuple[int, int], *, bar: bool = True) -> None:
    """Give a window its size: panels, lines, letters, colour bar and, unless the user moved it, the camera.

    Parameters
    ----------
    scene : Scene
        With a layout and a sheet.
    size : (int, int)
        Width and height in pixels.
    bar : bool
        Whether the strip of the colour bar is kept.
    """
    with unseen(scene):
        _arrange(scene, size, bar)


def _arrange(scene: Scene, size: tuple[int, int], bar: bool) -> None:
    layout = scene.layout
    boxes = layout.boxes(size, bar=bar)
    scene.window_size = list(size)
    scene.sheet = replace(scene.sheet, boxes=boxes)
    factor = boxes[0][3] * size[1] / layout.height
    layout.height *= factor
    for place, (left, bottom, width, height) in zip(layout.places, boxes, strict=True):
        scene.subplot(*place)
        scene.renderer.viewport = (left, bottom, left + width, bottom + height)
        for actor in scene.actors.values():
            if isinstance(actor, pv.Actor):
                actor.prop.line_width *= factor
            elif isinstance(actor, pv.Text):
                actor.prop.font_size = max(6, round(28 * layout.height / 1000))
    _hang_bar(scene, size, boxes)
    scene.subplot(0, 0)
    _aim(scene, (round(boxes[0][2] * size[0]), round(boxes[0][3] * size[1])))


def _hang_bar(scene: Scene, size: tuple[int, int], boxes: tuple[Box, ...]) -> None:
    """Put the colour bar of composed figures into its strip, pixel for pixel."""
    scene.subplot(0, scene.layout.n_columns)
    left = min(scene.sheet.strip, 0.98)  # OpenGL has no empty viewport
    width, height = round((1 - left) * size[0]), size[1]
    scene.renderer.viewport = (left, 0.0, 1.0, 1.0)
    if scene.sheet.strip > left:
        scene.remove_actor(BAR)
        return
    figure = bar_alone(scene.sheet, (width, height), scene.sheet.dpi(height))
    picture = pv.Plane(i_size=width / height, j_size=1.0)
    scene.add_mesh(picture, name=BAR, texture=pv.Texture(pixels_of(figure)), lighting=False)
    scene.view_xy()
    scene.camera.enable_parallel_projection()
    scene.camera.parallel_scale = 0.5


def view_of(scene: Scene) -> View:
    """Return where the camera of the first panel stands."""
    camera = scene.camera
    return View(np.array(camera.position), np.array(camera.focal_point), float(camera.view_angle))


def look_from(scene: Scene, view: View) -> None:
    """Move the camera, which all panels share; draws nothing."""
    with unseen(scene):
        _move(scene, view)


def _move(scene: Scene, view: View) -> None:
    camera = scene.camera
    camera.position, camera.focal_point, camera.view_angle = view.position, view.focus, view.angle
    camera.up = (0.0, 0.0, 1.0)
    for place in scene.layout.places[::-1]:
        scene.subplot(*place)
        scene.camera_set = True
        scene.reset_camera_clipping_range()


def fit(scene: Scene, size: tuple[int, int], view: tuple[float, float], points: np.ndarray | None = None) -> View:
    """Find the view from a direction that shows the scene in a panel of `size` pixels, below its title.

    Returns
    -------
    View
        As by `fit_view`.
    """
    top = _TITLE_ROOM if any(scene.sheet.titles) else 0.0
    return fit_view(scene.layout.seen if points is None else points, *view, size, top=top)


def _aim(scene: Scene, size: tuple[int, int]) -> None:
    fitted, now = scene.layout.fitted, view_of(scene)
    if fitted is None or (np.allclose(now.position, fitted.position) and np.allclose(now.focus, fitted.focus)):
        scene.layout.fitted = fit(scene, size, scene.layout.view)
        look_from(scene, scene.layout.fitted)


@contextmanager
def at_size(scene: Scene, size: tuple[int, int] | None, *, bar: bool = True) -> Iterator[tuple[int, int]]:
    """Give a window another size for a while.

    Parameters
    ----------
    scene : Scene
        The window.
    size : (int, int), optional
        In pixels; by default as it is.
    bar : bool
        Whether the strip of the colour bar is kept.

    Yields
    ------
    (int, int)
        The size.
    """
    before, camera = tuple(scene.window_size), view_of(scene)
    was_fitted = scene.layout.fitted
    arrange(scene, size or before, bar=bar)
    try:
        yield size or before
    finally:
        with unseen(scene):
            arrange(scene, before)
            scene.layout.fitted = was_fitted
            look_from(scene, camera)


@contextmanager
def bare(scene: Scene) -> Iterator[None]:
    """Hide for a while what a composed figure draws as vectors: numbers, titles, the colour bar."""
    hidden = []
    for place in (*scene.layout.places, (0, scene.layout.n_columns)):
        scene.subplot(*place)
        for name, actor in scene.actors.items():
            if name.startswith((NUMBERS, TITLE, BAR)) and actor.GetVisibility():
                actor.SetVisibility(False)
                hidden.append(actor)
    scene.subplot(0, 0)
    try:
        yield
    finally:
        for actor in hidden:
            actor.SetVisibility(True)
