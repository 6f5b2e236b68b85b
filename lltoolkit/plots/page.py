"""A scene as one HTML page that asks nothing of a network: vtk.js by trame-vtk. Runs in the render thread."""

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyvista as pv

from lltoolkit.plots.composite import PANEL_INCHES, Sheet, bar_alone

_DPI = 72  # of the colour bar, an SVG
_FAVICON = "https://kitware.github.io/vtk-js/icon/favicon-"  # the only address that the viewer asks


def require_viewer() -> None:
    """Raise if no page can be written here.

    Raises
    ------
    ImportError
        Naming the extra.
    """
    if find_spec("trame_vtk") is None:
        raise ImportError('an .html takes trame-vtk: pip install "lltoolkit[html]". Or write a .png, .gltf or .vtp.')


def write_page(window: pv.Plotter, file: Path, title: str, sheet: Sheet | None = None) -> None:
    """Write a window's content as a page in which it can be turned.

    Parameters
    ----------
    window : Plotter
        Open.
    file : Path
        The page.
    title : str
        Of the page.
    sheet : Sheet, optional
        What is written around the scene: vtk.js draws no text over it, so the page does.
    """
    from trame_vtk.tools.vtksz2html import HTML_VIEWER_PATH

    page = Path(HTML_VIEWER_PATH).read_text(encoding="utf-8").replace(_FAVICON, "data:,")
    page = page.replace("<title>VTK.js | Example - OfflineLocalView</title>", f"<title>{escape(title)}</title>", 1)
    if sheet:
        page = page.replace("body { font-family", f"body {{ background: {sheet.theme.background}; font-family", 1)
    data = base64.b64encode(_pack(window)).decode()
    # The viewer empties what it fills: a place of its own leaves the rest of the page alone.
    body = (
        '<div class="content" style="position:absolute;inset:0 95px 0 0"></div>'
        "<script>function loadDataSet() { OfflineLocalView.load(document.querySelector('.content'), "
        f'{{ base64Str: "{data}" }}); }}</script>'
    )
    head, tail = page.rsplit("</body>", 1)
    file.write_text(f"{head}{body}{_overlay(sheet) if sheet else ''}</body>{tail}", encoding="utf-8")


class _Everything(list):
    """Says of everything that it is in it."""

    def __contains__(self, each: object) -> bool:
        return True


@contextmanager
def _unwatched() -> Iterator[None]:
    """Keep trame-vtk from watching the objects that it reads, and empty its cache.

    It asks VTK to call Python when one of them is deleted. The garbage collector deletes some, in whatever thread it
    runs, and the call then ends the process.
    """
    watching = import_module("trame_vtk.modules.vtk.serializers.serialize")
    cache = import_module("trame_vtk.modules.vtk.serializers.cache").PROP_CACHE
    watched, known = watching.DELETE_CALLBACKS, set(cache)
    watching.DELETE_CALLBACKS = _Everything()
    try:
        yield
    finally:
        watching.DELETE_CALLBACKS = watched
        for added in set(cache) - known:
            del cache[added]


def _pack(window: pv.Plotter) -> bytes:
    """Return the scene as trame-vtk's offline viewer reads it: a zip with one JSON."""
    read = import_module("trame_vtk.modules.vtk.serializers")
    read.initialize_serializers()
    context = read.SynchronizationContext()
    context.set_ignore_last_dependencies(True)
    camera, name = window.renderer.GetActiveCamera(), read.reference_id(window.render_window)
    with _unwatched():
        scene = read.serialize(None, window.render_window, name, context, 1)
        center = camera.GetFocalPoint()
        scene["extra"] = {"vtkRefId": name, "centerOfRotation": center, "camera": read.reference_id(camera)}
        hashes: dict[str, Any] = {}
        for entry in read.extract_array_hash(scene):
            hashes[entry["hash"]] = {**entry, "content": context.get_cached_data_array(entry["hash"], False)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        dated = zipfile.ZipInfo("index.json", (1980, 1, 1, 0, 0, 0))  # none of today
        archive.writestr(dated, json.dumps({"hashes": hashes, "scene": scene}), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _overlay(sheet: Sheet) -> str:
    """Return the colour bar, titles, legend and note as HTML that lets the mouse through."""
    theme = sheet.theme
    size = (round((1.0 + 0.2) * _DPI), round(PANEL_INCHES * _DPI))
    picture = io.BytesIO()
    bar_alone(sheet, size, _DPI).savefig(picture, format="svg", transparent=True)
    svg = picture.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    over = "position:fixed;pointer-events:none;z-index:1;"
    parts = [f'<div style="{over}right:0;top:50%;transform:translateY(-50%)">{svg}</div>']
    for title, (left, bottom, width, height) in zip(sheet.titles, sheet.boxes, strict=True):
        place = f"left:{100 * left:.2f}%;width:{100 * width:.2f}%;top:{100 * (1 - bottom - height):.2f}%"
        parts.append(
            f'<div style="{over}{place};text-align:center;padding-top:1em;font-size:1.2em">{escape(title)}</div>'
        )
    lines = "".join(f'<div><b style="color:{color}">&mdash;</b> {escape(name)}</div>' for name, color in sheet.legend)
    parts.append(f'<div style="{over}left:1em;top:1em">{lines}</div>')
    note = escape(_plain(sheet.note))
    parts.append(f'<div style="{over}left:1em;bottom:1em;font-size:.75em;color:{theme.quiet}">{note}</div>')
    return f'<div style="color:{theme.text};font-family:serif">{"".join(parts)}</div>'


def _plain(text: str) -> str:
    """Write mathtext of `scale.number` as plain text."""
    return text.replace("\\times", "×").replace("10^{", "1e").replace("×1e", "e").replace("}", "").replace("$", "")
