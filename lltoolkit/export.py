"""A scene as a file: a figure, pixels, a page, a film, or a mesh for other programs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.files import write_atomically
from lltoolkit.plots.composite import Mark, axis_marks, compose, without_margins
from lltoolkit.plots.film import require_encoder, write_film
from lltoolkit.plots.flight import fly_along, turn_around, turntable
from lltoolkit.plots.page import require_viewer, write_page
from lltoolkit.plots.relief import thin
from lltoolkit.plots.scene import NO_OPENGL, RENDER, Scene
from lltoolkit.plots.stage import Panel, add_ball, lifted, surface_mesh
from lltoolkit.plots.style import PrintFigure
from lltoolkit.plots.window import at_size, bare, fit, look_from, unseen, view_of

_PIXELS, _VECTORS = ("png", "jpg", "jpeg"), ("pdf", "svg")
_MESHES = ("vtp", "vtk", "obj")
_FILMS = ("mp4", "gif")
_SUFFIXES = (*_PIXELS, *_VECTORS, "html", *_FILMS, *_MESHES, "gltf")
_MOTIONS = ("turntable", "flight")
_HEAD = "head"  # of the path, while a flight is drawn
Shots = Callable[[int], Iterator[np.ndarray]]
_WIDEST = 2000  # pixels of the picture within a PDF or SVG: such a file stays below 5 MB
_PAGE_POINTS = 150  # along an axis, at least, where the surface has more
_FILM_SIZE = (960, 824)


def export_scene(
    scene: Scene,
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    colorbar: bool = True,
    transparent: bool = False,
    motion: Literal["turntable", "flight"] = "turntable",
    seconds: float = 8.0,
    fps: int = 24,
    progress: bool = True,
) -> Path:
    """Write a scene to a file; the suffix says as what.

    Parameters
    ----------
    scene : Scene
        From `render_surface`, not yet closed.
    path : str or Path
        ``.png``, ``.jpg``: the picture from the scene's camera with colour bar, axis numbers and notes.
        ``.pdf``, ``.svg``: the same with vector text and colour bar, without empty margins, below 5 MB.
        ``.html``: one page in which the scene can be turned, that asks nothing of a network (takes
        ``pip install "lltoolkit[html]"``).
        ``.mp4`` (takes ``pip install "lltoolkit[video]"``), ``.gif``: a film.
        ``.vtp``, ``.vtk``, ``.obj``: the surface alone, for ParaView and others; ``.gltf``: the scene.
        An existing file is replaced once the new one is whole.
    size : (int, int), optional
        Width and height in pixels, of pictures and films; lines and text grow with the height. Default: as the scene
        was built, films (960, 824). Each pixel is the mean of four.
    colorbar : bool
        False: the bare pixels (png and jpg), without numbers, notes and bar.
    transparent : bool
        Leave the background out (png, pdf, svg).
    motion : {"turntable", "flight"}
        Of a film: once around the scene, or along the (first) trajectory from behind.
    seconds : float
        How long a film is.
    fps : int
        Pictures of a film in a second, 1 to 60.
    progress : bool
        Show a bar while a film is drawn.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ImportError
        If an MP4 or a page is asked for and its library is not there.
    ValueError
        If the suffix or the motion is unknown, a number impossible, `scene` no scene of lltoolkit or closed, or what is
        asked for takes a trajectory, a PNG, or one surface, and there is none.
    OSError
        If `path` is a folder or its folder is missing or not writable; before anything is drawn.
    """
    path = Path(path)
    kind = _require_kind(path)
    require_choice("motion", motion, _MOTIONS)
    if not isinstance(scene, Scene) or not scene.panels:
        raise ValueError(f"scene is a {type(scene).__name__}, not a scene from lltoolkit.render_surface.")
    if size is not None and min(size) < 16:
        raise ValueError(f"size={size!r} is too small for a picture; give pixels, for example (1400, 1200).")
    if transparent and kind not in {"png", *_VECTORS}:
        raise ValueError(f"a .{kind} has no transparent background; write a .png, .pdf or .svg.")
    if kind in _MESHES and len(scene.panels) > 1:
        raise ValueError(
            f"a .{kind} holds one surface, this scene {len(scene.panels)}; render and export them one by one."
        )
    _require_writable(path)
    if kind in _FILMS:
        _require_film(scene, motion, seconds, fps)
        moves = (motion, max(2, round(seconds * fps)), fps, progress)
        write_atomically(path, lambda temporary: RENDER.run(_film, scene, temporary, size or _FILM_SIZE, *moves))
    elif kind == "html":
        write_atomically(path, lambda temporary: RENDER.run(_page, scene, temporary, path.stem))
    elif kind in _MESHES or kind == "gltf":
        write_atomically(path, lambda temporary: RENDER.run(_export_mesh, scene, temporary, kind))
    elif not colorbar and kind in _PIXELS:
        image, _ = RENDER.run(_photograph, scene, size, transparent)
        write_atomically(path, lambda temporary: _save_pixels(image, temporary))
    else:
        figure = draw_figure(scene, size=size, transparent=transparent, tight=kind in _VECTORS)
        write_atomically(path, figure.savefig)
    return path


def draw_figure(
    scene: Scene, *, size: tuple[int, int] | None = None, transparent: bool = False, tight: bool = False
) -> PrintFigure:
    """Compose the picture of a scene with vector text.

    Parameters
    ----------
    scene, size, transparent
        As for `export_scene`.
    tight : bool
        Cut off empty margins, and keep to what a vector file can carry.

    Returns
    -------
    PrintFigure
        At its own resolution the picture's pixels are kept one to one.
    """
    if tight:
        width, height = size or scene.window_size
        shrink = min(1.0, _WIDEST / width)
        size = (round(width * shrink), round(height * shrink))
    image, marks = RENDER.run(_photograph, scene, size, transparent)
    sheet = scene.sheet
    dpi = sheet.dpi(image.shape[0])
    if tight:
        image, sheet, marks = without_margins(image, sheet, marks)
    return compose(image, sheet, marks, dpi=dpi, transparent=transparent)


def _require_kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _SUFFIXES:
        listed = ", ".join(f".{suffix}" for suffix in _SUFFIXES)
        raise ValueError(f"path={str(path)!r}: the suffix {path.suffix!r} is not one of {listed}."
                         f"{did_you_mean(kind, _SUFFIXES)}")  # fmt: skip
    require_encoder(kind, "a .gif")
    if kind == "html":
        require_viewer()
    return kind


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is not writable; choose another.")


def _require_film(scene: Scene, motion: str, seconds: float, fps: int) -> None:
    if not (0 < seconds <= 3600 and 1 <= fps <= 60):
        raise ValueError(
            f"seconds={seconds!r}, fps={fps!r}: give more than 0 seconds and 1 to 60 pictures in each; for example "
            "seconds=8, fps=24."
        )
    if motion == "flight" and not any(path.pieces for path in scene.panels[0].paths.values()):
        raise ValueError(
            "motion='flight' follows a trajectory, and none lies on the first surface: give trajectory= to "
            "render_surface, or take motion='turntable'."
        )


def _require_open(scene: Scene) -> None:
    if scene.render_window is None:
        raise ValueError("this scene is closed; build it again with render_surface and export it before closing.")


def _photograph(scene: Scene, size: tuple[int, int] | None, transparent: bool) -> tuple[np.ndarray, list[Mark]]:
    """Return the bare picture, shape ``(height, width, 3 or 4)``, and the axes in it; runs in the render thread."""
    _require_open(scene)
    with at_size(scene, size) as (width, height), bare(scene):
        image = np.array(scene.screenshot(return_img=True, transparent_background=transparent))
        if transparent:
            image = _lift_off(image, scene.sheet.theme.background)
        marks = []
        for place, panel, (left, bottom, across, up) in zip(
            scene.layout.places, scene.panels, scene.sheet.boxes, strict=True
        ):
            scene.subplot(*place)
            if "floor" not in scene.actors:
                continue
            corner = np.array([left * width, (1 - bottom - up) * height])
            for mark in axis_marks(panel.frame, view_of(scene), (round(across * width), round(up * height))):
                marks.append(Mark(mark.start + corner, mark.stop + corner, mark.text, mark.align))
        scene.subplot(0, 0)
    if image.min() == image.max():
        raise RuntimeError(f"the renderer gave an empty picture. {NO_OPENGL}")
    return image, marks


def _lift_off(image: np.ndarray, background: str) -> np.ndarray:
    """Take the background out of half-covered pixels, with which VTK has mixed it."""
    from matplotlib.colors import to_rgb

    alpha = image[..., 3:] / 255.0
    behind = 255 * np.array(to_rgb(background))
    color = np.divide(image[..., :3] - (1 - alpha) * behind, alpha, out=np.zeros(image[..., :3].shape), where=alpha > 0)
    return np.concatenate([np.rint(color.clip(0, 255)).astype(np.uint8), image[..., 3:]], axis=-1)


def _save_pixels(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(image).save(path, **({"quality": 95} if path.suffix.lower() != ".png" else {}))


def _page(scene: Scene, file: Path, title: str) -> None:
    _require_open(scene)
    width, height = scene.window_size
    # vtk.js draws lines as wide as they are told; here each pixel is the mean of four, which halves them.
    with at_size(scene, (width // 2, height // 2), bar=False), _thinned(scene):
        write_page(scene, file, title, scene.sheet)


@contextmanager
def _thinned(scene: Scene) -> Iterator[None]:
    """Show coarser surfaces for a while: a page with all points of a spline would take a dozen megabytes."""
    whole = []
    for (actor, mesh), panel in zip(scene.surfaces, scene.panels, strict=True):
        step = max(panel.relief.height.shape) // _PAGE_POINTS if isinstance(panel, Panel) else 1
        if step > 1:
            whole.append((actor.mapper, mesh))
            actor.mapper.dataset = surface_mesh(replace(panel, relief=thin(panel.relief, step), extras={}))
    try:
        yield
    finally:
        for mapper, mesh in whole:
            mapper.dataset = mesh


def _film(
    scene: Scene, file: Path, size: tuple[int, int], motion: str, n_pictures: int, fps: int, progress: bool
) -> None:
    from tqdm.auto import tqdm

    _require_open(scene)
    even = (2 * -(-int(size[0]) // 2), 2 * -(-int(size[1]) // 2))  # films take even numbers
    with at_size(scene, even):
        shots = _turn(scene) if motion == "turntable" else _fly(scene)
        pictures = tqdm(shots(n_pictures), total=n_pictures, desc=motion, unit="picture", disable=not progress)
        write_film(file, pictures, fps)
        with unseen(scene):
            scene.remove_actor(_HEAD)


def _turn(scene: Scene) -> Shots:
    _, _, across, up = scene.sheet.boxes[0]
    box = (round(across * scene.window_size[0]), round(up * scene.window_size[1]))
    first = fit(scene, box, scene.layout.view, turn_around(scene.layout.seen))

    def shots(n_pictures: int) -> Iterator[np.ndarray]:
        for view in turntable(first, n_pictures):
            look_from(scene, view)
            yield np.array(scene.screenshot(return_img=True))

    return shots


def _fly(scene: Scene) -> Shots:
    panel = scene.panels[0]
    track = next(path for path in panel.paths.values() if path.pieces)

    def shots(n_pictures: int) -> Iterator[np.ndarray]:
        for view, at in fly_along(track, panel.frame, panel.relief, n_pictures):
            with unseen(scene):
                add_ball(scene, _HEAD, lifted(panel.frame, panel.relief, at), scene.sheet.theme.end, 0.034)
                look_from(scene, view)
            yield np.array(scene.screenshot(return_img=True))

    return shots


def _export_mesh(scene: Scene, file: Path, kind: str) -> None:
    _require_open(scene)
    if kind == "gltf":
        with bare(scene):
            scene.export_gltf(str(file))
    else:
        scene.surfaces[0][1].save(file)
