"""The Scene: a PyVista plotter that works in one thread, and a window for it on machines without a screen."""

import atexit
import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache, wraps
from inspect import getdoc, getmembers_static, isfunction
from pathlib import Path
from typing import Any

import pyvista as pv

from lltoolkit.plots.composite import Sheet
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.page import require_viewer, write_page
from lltoolkit.plots.renderthread import RenderThread
from lltoolkit.plots.stage import Panel
from lltoolkit.plots.style import PrintFigure

RENDER = RenderThread()
NO_OPENGL = (
    "No OpenGL library works here. On Debian and Ubuntu: apt-get install libegl1 libgl1-mesa-dri (or libosmesa6); no "
    "screen is needed. plot_surface and plot_contour draw without OpenGL."
)


class Scene(pv.Plotter):
    """A ``pyvista.Plotter`` whose work runs in the render thread, whichever thread calls.

    Methods and properties are those of ``pyvista.Plotter``. ``panels`` are the surfaces in it, ``frame`` says where the
    values of the first lie, ``sheet`` what is written around them.
    """

    panels: tuple[Panel, ...] = ()
    sheet: Sheet | None = None
    layout: Any = None
    compose: Callable[["Scene"], PrintFigure] | None = None

    @property
    def frame(self) -> Frame | None:
        """Where the values of the first surface lie; ``frame.note`` says what was smoothed, cut and left out."""
        return self.panels[0].frame if self.panels else None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.surfaces: list[tuple[pv.Actor, pv.PolyData]] = []  # of the panels
        RENDER.run(pv.Plotter.__init__, self, *args, **kwargs)

    def screenshot(self, *args: Any, **kwargs: Any) -> Any:
        """Take the picture as ``pyvista.Plotter`` does, of the scene as it now is: never an older one."""
        return RENDER.run(_take_picture, self, args, kwargs)

    def export_html(self, filename: str | Path) -> None:
        """Write the scene as one page that asks nothing of a network; as `export_scene` does, with all points."""
        require_viewer()
        RENDER.run(write_page, self, Path(filename), Path(filename).stem, self.sheet)

    def _repr_png_(self) -> bytes | None:
        # In a notebook a scene that is the value of a cell is seen as a finished figure.
        closed = self.render_window is None
        return None if closed or self.compose is None else self.compose(self)._repr_png_()

    def __del__(self) -> None:
        # Whichever thread drops the last reference; the window must die in its own.
        if not sys.is_finalizing():
            RENDER.run_later(pv.Plotter.__del__, self)


def _take_picture(scene: Scene, args: tuple, kwargs: dict) -> Any:
    if scene.render_window is not None and not scene._first_time:
        scene.render()  # else PyVista gives what was drawn last
    return pv.Plotter.screenshot(scene, *args, **kwargs)


def _in_render_thread(function: Callable) -> Callable:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return RENDER.run(function, *args, **kwargs)

    call.__doc__ = _summary(function)
    return call


def _summary(member: object) -> str:
    # Without PyVista's examples, which doctest would take for ours.
    return f"{(getdoc(member) or '').partition(chr(10))[0]} As in ``pyvista.Plotter``, in the render thread.".strip()


for _name, _member in getmembers_static(pv.Plotter):
    if _name.startswith("_") or _name in vars(Scene):
        continue
    if isfunction(_member):
        setattr(Scene, _name, _in_render_thread(_member))
    elif isinstance(_member, property):
        _parts = (part and _in_render_thread(part) for part in (_member.fget, _member.fset, _member.fdel))
        setattr(Scene, _name, property(*_parts, doc=_summary(_member)))


@atexit.register
def _close_scenes() -> None:
    """Close what is open in the thread that made it: an EGL window that dies elsewhere may crash at exit."""
    if RENDER._thread is not None:
        RENDER.run(_close_all)
        RENDER.stop()


def _close_all() -> None:
    for plotter in list((pv.plotting.plotter._ALL_PLOTTERS or {}).values()):
        if isinstance(plotter, Scene):
            plotter.close()


def choose_window() -> None:
    """Have VTK open a window without a screen, where there is none; a choice of the user's stays.

    Raises
    ------
    RuntimeError
        If there is neither a screen nor a library that draws without one.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform != "linux" or screen or "VTK_DEFAULT_OPENGL_WINDOW" in os.environ:
        return
    # VTK tries X first, and warns or even crashes without it.
    for library, window in (("libEGL.so.1", "vtkEGLRenderWindow"), ("libOSMesa.so.8", "vtkOSOpenGLRenderWindow")):
        if _loads(library):
            os.environ["VTK_DEFAULT_OPENGL_WINDOW"] = window
            return
    raise RuntimeError(NO_OPENGL)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@cache
def require_opengl() -> None:
    """Raise if a window cannot be drawn in, asked once per process; VTK alone would only warn and give no picture.

    Raises
    ------
    RuntimeError
        Naming the packages.
    """
    window = pv._vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    works = bool(window.SupportsOpenGL())
    window.Finalize()
    if not works:
        raise RuntimeError(NO_OPENGL)
