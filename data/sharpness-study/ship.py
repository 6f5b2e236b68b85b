"""Copy what is small of the study's outcome into a folder that is committed, and draw the paper's pair."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from judge import TABLES

import lltoolkit as ll
from lltoolkit.plots.series import color_of, dashes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL_TABLE = 300_000  # bytes, with all values of test examples
WITH_ERRORS = 500_000  # bytes, with only the errors of test examples
IN_ALL = 3_000_000  # bytes
FIGURES = ("cifar10-grid.png", "digits-grid.png")
PAIR = "digits-vgg-vgg9-momentum-lr0.1-wd{}-s0"
INSIDE = 0.995  # share of the weights that is drawn


def ship_results(work: Path, folder: Path, *, echo: Callable[[str], object]) -> list[Path]:
    """Copy tables, verdicts, correlations, the drawn lines, histograms and three figures.

    Parameters
    ----------
    work : Path
        Where the study was made and judged.
    folder : Path
        Where to; made if it is not there. `judge` comes to the same verdicts on it, but for the counts of the diverged,
        which lie in the folders of the trainings, and the spreads over test examples that were left out.
    echo : callable
        Takes lines about the outcome.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ValueError
        If `folder` is `work`, or the files are too large to be committed.
    """
    if folder.resolve() == work.resolve():
        raise ValueError(f"ship={str(folder)!r} is where the study is made; name another folder.")
    (folder / "lines").mkdir(parents=True, exist_ok=True)
    files = [_ship_table(path, folder) for name in TABLES if (path := work / f"{name}.sharpness.nc").exists()]
    drawn = [path.name.removesuffix(".weights.nc") for path in sorted((work / "lines").glob("*.weights.nc"))]
    copied = ["verdicts.json", "correlations.csv", *FIGURES]
    copied += [f"lines/{path.name}" for path in sorted((work / "lines").glob("*.json"))]
    copied += [f"lines/{name}{end}" for name in drawn for end in (".surface.nc", ".weights.nc")]
    files += [Path(shutil.copy(work / name, folder / name)) for name in copied if (work / name).exists()]
    if (figure := draw_pair(work / "lines")) is not None:
        files.append(folder / "pair.png")
        figure.savefig(files[-1], dpi=150)
    sizes = {path: path.stat().st_size for path in files}
    for path, size in sizes.items():
        echo(f"{size / 1000:7.0f} kB  {path}")
    if (n_bytes := sum(sizes.values())) >= IN_ALL:
        raise ValueError(f"{folder} holds {n_bytes / 1e6:.1f} MB, and less than {IN_ALL / 1e6:.0f} MB are committed.")
    return files


def _ship_table(path: Path, folder: Path) -> Path:
    """Save a table, without its values per test example as far as they are too large."""
    table = ll.open_result(path)
    saved = ll.save_result(table, folder / path.name)
    if saved.stat().st_size <= SMALL_TABLE:
        return saved
    table = table.drop_vars("test_example_loss", errors="ignore")
    if "test_example_error" in table and table["test_example_error"].isin((0, 1)).all():
        saved = ll.save_result(table.assign(test_example_error=table["test_example_error"].astype(np.int8)), saved)
        if saved.stat().st_size < WITH_ERRORS:
            return saved
    return ll.save_result(table.drop_vars("test_example_error", errors="ignore"), saved)


def draw_pair(lines: Path) -> "Figure | None":
    """Draw the paper's figure 2: a line without and one with weight decay, each beside the weights of its ends.

    Parameters
    ----------
    lines : Path
        Folder with the lines and the histograms.

    Returns
    -------
    Figure or None
        None unless both pairs are there.
    """
    names = {decay: PAIR.format(decay) for decay in ("0", "0.0005")}
    paths = {decay: [lines / f"{name}{end}" for end in (".surface.nc", ".weights.nc")] for decay, name in names.items()}
    if not all(path.exists() for pair in paths.values() for path in pair):
        return None
    with ll.plots.figure("neurips", n_rows=2, n_columns=2, aspect=0.75) as (figure, axes):
        for row, (decay, (surface, weights)) in zip(axes, paths.items(), strict=True):
            ll.plot_slice(ll.open_result(surface), split="train", ax=row[0])
            row[0].set_xlabel(f"small batch at 0, large at 1\nweight decay {float(decay):g}")
            _draw_weights(row[1], xr.load_dataset(weights)["count"])
        widest = max(axes[0, 1].get_xlim()[1], axes[1, 1].get_xlim()[1])
        for ax in axes[:, 1]:
            ax.set_xlim(-widest, widest)
    return figure


def _draw_weights(ax: "Axes", counts: xr.DataArray) -> None:
    """Draw histograms as densities, and as far out as nearly all weights lie."""
    middles = counts["weight"].values
    width = middles[1] - middles[0]
    edges = np.append(middles - width / 2, middles[-1] + width / 2)
    reach = 0.0
    for place, (name, values) in enumerate(zip(counts["model"].values, counts.values, strict=True)):
        share = values / values.sum()
        order = np.argsort(np.abs(middles), kind="stable")
        last = np.searchsorted(np.cumsum(share[order]), INSIDE)
        reach = max(reach, float(np.abs(middles[order[min(last, len(order) - 1)]]) + width / 2))
        style = {"edgecolor": color_of(place), "linestyle": dashes_of(place)}
        ax.stairs(share / width, edges, baseline=0, label=f"{str(name).rpartition('-')[2]} batch", **style)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("weight")
    ax.set_ylabel("density")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
