"""Figures of results, by matplotlib: they draw and never compute. Names load on first use (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lltoolkit.plots.animation import animate_trajectory
    from lltoolkit.plots.contour import plot_contour
    from lltoolkit.plots.grid import plot_grid
    from lltoolkit.plots.lines import plot_slice
    from lltoolkit.plots.path_loss import plot_trajectory_loss
    from lltoolkit.plots.path_statistics import plot_trajectory_statistics
    from lltoolkit.plots.saving import save_figure
    from lltoolkit.plots.sharpness import plot_sharpness
    from lltoolkit.plots.spectrum import plot_spectrum
    from lltoolkit.plots.style import figure
    from lltoolkit.plots.surface3d import plot_surface
    from lltoolkit.plots.trajectory import plot_trajectory
    from lltoolkit.plots.weights import plot_weights

_HOME = {
    "animate_trajectory": "lltoolkit.plots.animation",
    "figure": "lltoolkit.plots.style",
    "plot_contour": "lltoolkit.plots.contour",
    "plot_grid": "lltoolkit.plots.grid",
    "plot_sharpness": "lltoolkit.plots.sharpness",
    "plot_slice": "lltoolkit.plots.lines",
    "plot_spectrum": "lltoolkit.plots.spectrum",
    "plot_surface": "lltoolkit.plots.surface3d",
    "plot_trajectory": "lltoolkit.plots.trajectory",
    "plot_trajectory_loss": "lltoolkit.plots.path_loss",
    "plot_trajectory_statistics": "lltoolkit.plots.path_statistics",
    "plot_weights": "lltoolkit.plots.weights",
    "save_figure": "lltoolkit.plots.saving",
}

__all__ = [
    "animate_trajectory",
    "figure",
    "plot_contour",
    "plot_grid",
    "plot_sharpness",
    "plot_slice",
    "plot_spectrum",
    "plot_surface",
    "plot_trajectory",
    "plot_trajectory_loss",
    "plot_trajectory_statistics",
    "plot_weights",
    "save_figure",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    from lltoolkit.errors import did_you_mean

    raise AttributeError(f"lltoolkit.plots has no name {name!r}.{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
