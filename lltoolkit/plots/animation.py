"""An optimizer path that grows over the contours of its loss, as MP4, GIF or a page. Torch-free."""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import rc_context

from lltoolkit.errors import did_you_mean
from lltoolkit.files import require_folder, write_atomically
from lltoolkit.labelled.schema import axes_of
from lltoolkit.plots.contour import Form
from lltoolkit.plots.field import pick_variable
from lltoolkit.plots.film import require_encoder, write_film
from lltoolkit.plots.path_marks import PATH_PARTS, Coloring, Colors, color_points, draw_path
from lltoolkit.plots.paths import PlanePath, name_runs, over_steps, pick_paths, residual_of, time_axis
from lltoolkit.plots.scale import number
from lltoolkit.plots.style import PrintFigure, page_style
from lltoolkit.plots.trajectory import plot_trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = ("mp4", "gif", "html")
_WIDTH = 6.4  # inches, whatever the pixels: text grows with the picture
_HOLD = 1.0  # seconds that the whole path stands before the film ends or begins again
_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font-family: sans-serif; margin: 1em; } #film { position: relative; width: ${width}px; height: ${height}px; }
#film img { position: absolute; left: 0; top: 0; } #where { width: ${slider}px; vertical-align: middle; }
</style></head><body>
<div id="film"><img src="$still" alt="$title"><img id="path" alt=""></div>
<p><button id="play">pause</button> <input id="where" type="range" min="0" max="$last" value="0" aria-label="time"></p>
<script>
const frames = [$frames], path = document.getElementById("path");
const where = document.getElementById("where"), play = document.getElementById("play");
let at = 0, timer = null;
function show(place) { at = place; path.src = "data:image/png;base64," + frames[at]; where.value = at; }
function stop() { clearInterval(timer); timer = null; play.textContent = "play"; }
function start() {
  timer = setInterval(() => show((at + 1) % frames.length), $pause);
  play.textContent = "pause";
}
play.onclick = () => timer ? stop() : start();
where.oninput = () => { stop(); show(Number(where.value)); };
show(0); start();
</script></body></html>
""")


def animate_trajectory(
    path: xr.Dataset | Mapping[str, xr.Dataset],
    surface: xr.Dataset,
    file: str | Path,
    *,
    var: str = "loss",
    split: str = "train",
    form: Form = "lines",
    color: Coloring = "auto",
    drops: bool = True,
    seconds: float = 8.0,
    fps: int = 20,
    size: tuple[int, int] = (960, 900),
) -> Path:
    """Write a film of a path that grows over its surface.

    Parameters
    ----------
    path : xr.Dataset or mapping of str to xr.Dataset
        From `project_trajectory`; or several runs by name, which then move together in time.
    surface : xr.Dataset
        The loss on the same subspace.
    file : str or Path
        ``.mp4`` (takes ``pip install "lltoolkit[video]"``), ``.gif``, or ``.html``: one page that asks nothing of a
        network. An existing file is replaced once the new one is whole.
    var, split, form, color, drops
        As in `plot_trajectory`.
    seconds : float
        How long the path grows: at even pace in checkpoints, several runs at even pace in epochs. Then the whole path
        stands for one second.
    fps : int
        Pictures in a second, 1 to 60.
    size : (int, int)
        Width and height in pixels, each at least 300; odd ones grow by one, since films take even numbers.

    Returns
    -------
    Path
        The file. Above the picture a line for each run tells epoch, learning rate, the checkpoint's own loss beside the
        plane's, and the residual. The last picture is that of `plot_trajectory`.

    Raises
    ------
    ImportError
        If an MP4 is asked for and imageio-ffmpeg is not there.
    TypeError
        If `path` is neither a Dataset nor a mapping of Datasets.
    ValueError
        If a choice is unknown, a number is impossible, or path and surface do not belong together.
    OSError
        If `file` is a folder, or its folder can't be written; before anything is drawn.
    """
    file = Path(file)
    kind = _require_kind(file)
    if not (0 < seconds <= 3600 and 1 <= fps <= 60 and min(size) >= 300):
        raise ValueError(
            f"seconds={seconds!r}, fps={fps!r}, size={size!r}: give more than 0 seconds, 1 to 60 pictures in each, and "
            "at least 300 pixels each way; for example seconds=8, fps=20, size=(960, 900)."
        )
    require_folder(file.parent, of=file)
    runs = name_runs(path, "path", "trajectory")
    options = {"surface": surface, "var": var, "split": split, "form": form, "color": color, "drops": drops}
    with rc_context(page_style(9)):
        still, ax = _draw_still(runs, size, options)
        paths, _ = pick_paths(runs, axes_of(surface))
        shots = _shots(runs, paths, max(2, round(seconds * fps)), round(_HOLD * fps))
        layers = _layers(ax, shots, paths, color_points(color, runs, paths), drops, _captions(runs, var, split))
        title = f"{surface.attrs.get('model', 'path')}: {split} {var}"
        if kind == "html":
            write_atomically(file, lambda temporary: _write_page(temporary, still, layers, fps, len(shots), title))
        else:
            pictures = (_lay(still, layer) for layer in layers)
            write_atomically(file, lambda temporary: write_film(temporary, pictures, fps))
    return file


def _require_kind(file: Path) -> str:
    kind = file.suffix.lower().removeprefix(".")
    if kind not in _SUFFIXES:
        listed = ", ".join(f".{suffix}" for suffix in _SUFFIXES)
        raise ValueError(
            f"file={str(file)!r}: the suffix {file.suffix!r} is not one of {listed}.{did_you_mean(kind, _SUFFIXES)}"
        )
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; give the name of a file in it.")
    require_encoder(kind, "a .gif or .html")
    return kind


def _draw_still(
    runs: Mapping[str, xr.Dataset], size: tuple[int, int], options: Mapping[str, Any]
) -> tuple[np.ndarray, "Axes"]:
    """Draw what never moves, once; return its pixels, shape ``(height, width, 3)``, and the axes of the path."""
    width, height = (2 * -(-int(pixels) // 2) + 1e-3 for pixels in size)  # a whole number of pixels is cut down to
    dpi = width / _WIDTH
    figure = PrintFigure(figsize=(_WIDTH, height / dpi), dpi=dpi, layout="constrained")
    ax = figure.subplots()
    # What plot_trajectory shows, with room for the captions and without the path itself.
    plot_trajectory(dict(runs) if "" not in runs else runs[""], ax=ax, **options)
    figure.suptitle("\n".join([" "] * len(runs)), fontsize="medium")
    for _ in range(4):  # one pass of the layout leaves labels beside axes of equal scales a little outside
        figure.draw_without_rendering()
    _remove_path(ax)
    return _pixels(figure)[..., :3].copy(), ax


def _remove_path(ax: "Axes") -> None:
    for artist in list(ax.get_children()):
        if artist.get_gid() in PATH_PARTS:
            artist.remove()


def _pixels(figure: PrintFigure) -> np.ndarray:
    """Draw a figure; return a view of its pixels, shape ``(height, width, 4)``, uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _shots(runs: Mapping[str, xr.Dataset], paths: Sequence[PlanePath], n_shots: int, n_held: int) -> np.ndarray:
    """Say where each run is in each picture: places among its seen checkpoints, shape ``(n, n_runs)``."""
    if len(paths) == 1:
        shots = np.linspace(0, len(paths[0].seen) - 1, n_shots)[:, None]
    else:
        along = time_axis(runs)
        times = [run[along].values.astype(np.float64)[one.seen] for run, one in zip(runs.values(), paths, strict=True)]
        clock = np.linspace(min(map(np.min, times)), max(map(np.max, times)), n_shots)
        shots = np.stack([np.interp(clock, each, np.arange(len(each))) for each in times], axis=1)
    return np.concatenate([shots, np.repeat(shots[-1:], n_held, axis=0)])


def _layers(
    ax: "Axes",
    shots: np.ndarray,
    paths: Sequence[PlanePath],
    colors: Colors,
    drops: bool,
    captions: Sequence[Callable[[int], str]],
) -> Iterator[np.ndarray]:
    """Draw the path and its caption for each picture, on nothing; yield pixels, shape ``(height, width, 4)``."""
    still = ax.figure
    figure = PrintFigure(figsize=still.get_size_inches(), dpi=still.dpi, facecolor="none")
    layer = figure.add_axes(ax.get_position(), facecolor="none", xlim=ax.get_xlim(), ylim=ax.get_ylim())
    layer.set_axis_off()
    text = figure.text(0.02, 0.99, "", ha="left", va="top", fontsize="medium", linespacing=1.2)
    for row in shots:
        _remove_path(layer)
        words = []
        for place, (one, at) in enumerate(zip(paths, row, strict=True)):
            values = None if colors.values is None else colors.values[place]
            part, shown = _first_part(one, values, float(at))
            # Only this run's values are asked for, at its own place.
            shown_colors = replace(colors, values=None if shown is None else [shown] * len(paths))
            draw_path(layer, part, place, shown_colors, drops=drops)
            words.append(captions[place](int(one.seen[int(at)])))
        text.set_text("\n".join(words))
        yield _pixels(figure)


def _first_part(path: PlanePath, values: np.ndarray | None, at: float) -> tuple[PlanePath, np.ndarray | None]:
    """Cut a path at a place among its seen checkpoints, on the straight line between two of them."""
    seen = path.seen
    whole = int(at)
    kept = seen[: whole + 1]
    points = path.points[kept]
    if at > whole:
        ahead = path.points[seen[whole + 1]]
        points = np.vstack([points, points[-1] + (at - whole) * (ahead - points[-1])])
        kept = np.append(kept, kept[-1])
    drops = np.flatnonzero(np.isin(seen[: whole + 1], path.drops))
    part = PlanePath(path.name, points, path.residual[kept], path.epoch[kept], drops)
    return part, None if values is None else values[kept]


def _captions(runs: Mapping[str, xr.Dataset], var: str, split: str) -> list[Callable[[int], str]]:
    return [partial(_caption, run, name, var=var, split=split) for name, run in runs.items()]


def _caption(run: xr.Dataset, name: str, at: int, *, var: str, split: str) -> str:
    """Tell a checkpoint in a line; what is not known is left out."""
    known = {key: float(over_steps(run, key, run.sizes["step"])[at]) for key in ("step", "epoch", "learning_rate")}
    along = "epoch" if np.isfinite(known["epoch"]) else "step"
    words = [f"{along} {known[along]:g}"] if np.isfinite(known[along]) else [f"checkpoint {at + 1}"]
    if np.isfinite(known["learning_rate"]):
        words.append(f"learning rate {number(known['learning_rate'])}")
    if var in run.data_vars:
        text = f"{split} {var}" if "split" in run[var].dims else var
        text += f" {number(float(pick_variable(run, var, split)[at]))}"
        if f"plane_{var}" in run.data_vars:
            text += f" (on the plane {number(float(pick_variable(run, f'plane_{var}', split)[at]))})"
        words.append(text)
    if np.isfinite(residual := residual_of(run)[at]):
        words.append(f"residual {residual:.2f}")
    return (f"{name}: " if name else "") + ", ".join(words)


def _lay(still: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Lay a picture with alpha over one without, shape ``(height, width, 3)``, uint8."""
    picture = still.copy()
    drawn = layer[..., 3] > 0  # a few per cent of all
    alpha = layer[drawn, 3:] / 255
    picture[drawn] = np.rint(alpha * layer[drawn, :3] + (1 - alpha) * still[drawn])
    return picture


def _write_page(
    file: Path, still: np.ndarray, layers: Iterator[np.ndarray], fps: int, n_shots: int, title: str
) -> None:
    height, width = still.shape[:2]
    with file.open("w", encoding="utf-8") as page:
        head, tail = _PAGE.safe_substitute(
            title=title, width=width, height=height, slider=width - 100, last=n_shots - 1, pause=round(1000 / fps),
            still=f"data:image/png;base64,{_png(still)}",
        ).split("$frames")  # fmt: skip
        page.write(head)
        for place, layer in enumerate(layers):
            page.write(f'{"," if place else ""}"{_png(layer)}"')
        page.write(tail)


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return b64encode(buffer.getvalue()).decode()
