"""``save_figure``: a figure as a file that says what it shows and how that was computed. Torch-free."""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

import lltoolkit
from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.files import write_atomically
from lltoolkit.labelled.describe import describe
from lltoolkit.labelled.facts import kind_of
from lltoolkit.labelled.schema import label, validate
from lltoolkit.plots.style import UNDATED, WRITING, PrintFigure
from lltoolkit.store import save_result

SUFFIXES = ("png", "pdf", "svg", "jpg", "jpeg")
DATA = ("csv", "nc")
# What tells a result from all others; NetCDF attributes by name.
IDENTIFYING = (
    "kind",
    "model",
    "n_params",
    "run",
    "theta_sha256",
    "data_sha256",
    "subspace_id",
    "config_sha256",
    "lltoolkit_version",
    "torch_version",
    "git_commit",
    "created_at",
    "schema_version",
)
# The variable that a plot of a kind shows: a table of it has the others that run over the same dims, or some of them.
DRAWN = {"sharpness": "value", "spectrum": "density", "curvature": "eig_max"}


def save_figure(
    figure_or_axes: Any,
    path: str | Path,
    *,
    result: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    data: Literal["csv", "nc"] | None = None,
    dpi: float | None = None,
    transparent: bool = False,
) -> Path:
    """Write a figure, with what it shows in the file's metadata.

    Fonts are embedded, there is no date, and the same figure gives the same bytes. A file of that name is replaced at
    once or not at all.

    Parameters
    ----------
    figure_or_axes : Figure, Axes or array of Axes
        Of matplotlib, made by lltoolkit or not.
    path : str or Path
        ``.png``, ``.jpg``, ``.pdf`` or ``.svg``, in a folder that exists.
    result : xr.Dataset or mapping of str to xr.Dataset, optional
        What is drawn. Its hashes, versions, commit and the text of `describe` go into the metadata as JSON, by name
        where there are several: in a PNG under ``lltoolkit``, in PDF and SVG under keywords, in a JPEG as the comment.
    data : {"csv", "nc"}, optional
        Write `result` beside the figure too, under the same stem (``<stem>-<name>`` of several). "csv": a row for each
        point, of the variables that run over the dims of the one that is drawn. "nc": all of it.
    dpi : float, optional
        Pixels per inch of a PNG or JPEG, and of what is pixels inside a PDF or SVG; default 300.
    transparent : bool
        No background; not for JPEG.

    Returns
    -------
    Path
        The figure's file.

    Raises
    ------
    ValueError
        If the suffix, `data` or `dpi` is unknown, `data` is asked for without `result`, or a JPEG is to be transparent.
    TypeError
        If `figure_or_axes` is neither.
    SchemaError
        If `result` is no result of lltoolkit, or for "nc" an incomplete one.
    OSError
        If `path` can't be written. All of these before anything is written, where it can be known.

    Examples
    --------
    >>> import tempfile
    >>> from lltoolkit.plots import figure
    >>> surface = xr.Dataset(attrs={"kind": "surface", "model": "resnet20"})
    >>> with tempfile.TemporaryDirectory() as folder, figure("icml") as (fig, ax):
    ...     line = ax.plot([0, 1])
    ...     save_figure(fig, f"{folder}/line.pdf", result=surface).name
    'line.pdf'
    """
    path = Path(path)
    form = path.suffix.lower().removeprefix(".")
    if form not in SUFFIXES:
        listed = ", ".join(f".{suffix}" for suffix in SUFFIXES)
        raise ValueError(
            f"path={str(path)!r}: the suffix {path.suffix!r} is not one of {listed}.{did_you_mean(form, SUFFIXES)}"
        )
    form = "jpg" if form == "jpeg" else form
    if data is not None:
        require_choice("data", data, DATA)
        if result is None:
            raise ValueError(f"data={data!r} writes the result beside the figure; give it, result=surface for example.")
    if dpi is not None and (isinstance(dpi, bool | str) or not 0 < dpi < np.inf):
        raise ValueError(f"dpi={dpi!r}: give a number above 0, 300 for print.")
    if transparent and form == "jpg":
        raise ValueError("transparent=True: a JPEG has no transparency. Write a .png, .pdf or .svg.")
    fig = _figure_of(figure_or_axes)
    results = _by_name(result)
    metadata = _metadata(results) if results else {}
    writers = _data_files(results, path, data) if data else {}
    for each in (path, *writers):
        require_place(each)
    kwargs = _told(form, metadata)
    kwargs |= {"dpi": dpi or getattr(fig, "print_dpi", PrintFigure.print_dpi), "transparent": transparent}

    def write(temporary: Path) -> None:
        settled = fig.settled() if isinstance(fig, PrintFigure) else nullcontext()
        with rc_context(dict(WRITING)), settled:
            Figure.savefig(fig, temporary, format=form, **kwargs)

    _write(path, write)
    for file, writer in writers.items():
        _write(file, writer)
    return path


def require_place(path: Path) -> None:
    """Check that a file can be written where it is to lie; its folder is not made.

    Raises
    ------
    IsADirectoryError
        If the path is a folder.
    FileNotFoundError
        If its folder is missing.
    PermissionError
        If its folder is not writable.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is not writable; choose another.")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        reason = f"{path} can't be written ({error.strerror or error}). Choose another path, or make room"
        raise type(error)(error.errno, reason) from error


def _figure_of(given: Any) -> Figure:
    """Find the figure that axes belong to."""
    if isinstance(given, np.ndarray) and given.size:
        given = given.flat[0]
    while isinstance(given, Axes | SubFigure):
        given = given.figure
    if not isinstance(given, Figure):
        raise TypeError(
            f"figure_or_axes is a {type(given).__name__}; give a matplotlib Figure or Axes, as plot_* return them. A "
            "scene of render_surface is written by export_scene."
        )
    return given


def _by_name(result: xr.Dataset | Mapping[str, xr.Dataset] | None) -> dict[str, xr.Dataset]:
    """Give the results by name; one alone has an empty one."""
    if result is None:
        return {}
    if isinstance(result, xr.Dataset) or not isinstance(result, Mapping):  # a Dataset is a mapping, too
        return {"": result}
    if not result:
        raise ValueError("result is an empty mapping; give what is drawn by name, or leave it out.")
    return {str(name): each for name, each in result.items()}


def _metadata(results: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """Say what is drawn: a title, a paragraph, and JSON."""
    told = {name: _identity(each) for name, each in results.items()}
    if "" in told:
        about = told[""]
        title = " of ".join(str(about[name]) for name in ("kind", "model") if name in about)
        return {"title": title, "text": str(about["description"]), "json": json.dumps(about)}
    text = "\n\n".join(f"{name}: {about['description']}" for name, about in told.items())
    return {"title": ", ".join(told), "text": text, "json": json.dumps(told)}


def _identity(result: xr.Dataset) -> dict[str, str | int | float]:
    kind_of(result)  # or an error that says what it is
    known = {name: result.attrs[name] for name in IDENTIFYING if name in result.attrs}
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in known.items()}
    return plain | {"description": describe(result)}


def _told(form: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Lay metadata out as a format takes them."""
    maker = f"lltoolkit {lltoolkit.__version__}, Matplotlib {mpl.__version__}"
    if form == "jpg":
        return {"pil_kwargs": {"comment": metadata["json"].encode()}} if metadata else {}
    if form == "png":
        told = {"Software": maker}
        if metadata:
            told |= {"Title": metadata["title"], "Description": metadata["text"], "lltoolkit": metadata["json"]}
        return {"metadata": told}
    undated: dict[str, Any] = {**UNDATED[form], "Creator": maker}
    if metadata:
        undated |= {"Title": metadata["title"], "Keywords": metadata["json"]}
        undated |= {"Subject" if form == "pdf" else "Description": metadata["text"]}
    return {"metadata": undated}


def _data_files(results: Mapping[str, xr.Dataset], path: Path, form: str) -> dict[Path, Callable[[Path], object]]:
    """Prepare the files of what is drawn."""
    files: dict[Path, Callable[[Path], object]] = {}
    for name, each in results.items():
        named = "-" + re.sub(r"[^\w.-]+", "-", name) if name else ""
        file = path.with_name(f"{path.stem}{named}.{form}")
        if file in files:
            raise ValueError(f"two results would be written to {file.name}; give them names that differ in letters.")
        files[file] = _netcdf(each, file) if form == "nc" else _table(each)
    return files


def _netcdf(result: xr.Dataset, file: Path) -> Callable[[Path], object]:
    validate(label(result.copy()), source=f"the result for {file.name}")
    return lambda temporary: save_result(result, temporary)


def _table(result: xr.Dataset) -> Callable[[Path], object]:
    """Lay out a row for each point of what is drawn."""
    names = [str(name) for name in result.data_vars]
    if not names:
        raise ValueError("data='csv': the result has no variables.")
    fullest = max(names, key=lambda name: result[name].ndim)  # the first of them
    dims = result[DRAWN.get(kind_of(result), fullest)].dims
    chosen = result[[name for name in names if set(result[name].dims) <= set(dims)]]
    frame = chosen.to_dataframe(dim_order=list(dims)).reset_index()
    return lambda temporary: frame.to_csv(temporary, index=False, lineterminator="\n")
