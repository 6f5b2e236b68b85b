"""Loss landscapes of neural networks: compute, store, compare and show them.

Public names load on first use (PEP 562), so that ``import lltoolkit`` stays instant and a stored
result opens and draws on a machine without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lltoolkit import plots, zoo
    from lltoolkit.compute import compute_surface
    from lltoolkit.curvature import compute_curvature
    from lltoolkit.errors import DivergedTraining, NondeterministicObjective, ResumeMismatch, SchemaError
    from lltoolkit.export import export_scene
    from lltoolkit.labelled.citation import cite
    from lltoolkit.labelled.correlation import rank_correlation
    from lltoolkit.labelled.describe import describe
    from lltoolkit.labelled.statistics import surface_statistics
    from lltoolkit.motion import trajectory_statistics
    from lltoolkit.plots.animation import animate_trajectory
    from lltoolkit.plots.contour import plot_contour
    from lltoolkit.plots.grid import plot_grid
    from lltoolkit.plots.lines import plot_slice
    from lltoolkit.plots.path_loss import plot_trajectory_loss
    from lltoolkit.plots.path_statistics import plot_trajectory_statistics
    from lltoolkit.plots.saving import save_figure
    from lltoolkit.plots.sharpness import plot_sharpness
    from lltoolkit.plots.spectrum import plot_spectrum
    from lltoolkit.plots.surface3d import plot_surface
    from lltoolkit.plots.trajectory import plot_trajectory
    from lltoolkit.plots.weights import plot_weights
    from lltoolkit.render import render_surface
    from lltoolkit.sharpness import compute_sharpness
    from lltoolkit.spectrum import hessian_spectrum
    from lltoolkit.store import open_result, save_result
    from lltoolkit.tensors.directions import hessian_subspace, interpolate, random_subspace
    from lltoolkit.tensors.foreign import open_checkpoints
    from lltoolkit.tensors.objective import Objective
    from lltoolkit.tensors.pca import pca_subspace
    from lltoolkit.tensors.stability import stability_threshold
    from lltoolkit.tensors.subspace import Subspace
    from lltoolkit.trajectory import project_trajectory
    from lltoolkit.zoo.recorder import Recorder

__version__ = "0.1.0"

# name -> module that holds it
_HOME = {
    "DivergedTraining": "lltoolkit.errors",
    "NondeterministicObjective": "lltoolkit.errors",
    "Objective": "lltoolkit.tensors.objective",
    "Recorder": "lltoolkit.zoo.recorder",
    "ResumeMismatch": "lltoolkit.errors",
    "SchemaError": "lltoolkit.errors",
    "Subspace": "lltoolkit.tensors.subspace",
    "animate_trajectory": "lltoolkit.plots.animation",
    "cite": "lltoolkit.labelled.citation",
    "compute_curvature": "lltoolkit.curvature",
    "compute_sharpness": "lltoolkit.sharpness",
    "compute_surface": "lltoolkit.compute",
    "describe": "lltoolkit.labelled.describe",
    "export_scene": "lltoolkit.export",
    "hessian_spectrum": "lltoolkit.spectrum",
    "hessian_subspace": "lltoolkit.tensors.directions",
    "interpolate": "lltoolkit.tensors.directions",
    "open_checkpoints": "lltoolkit.tensors.foreign",
    "open_result": "lltoolkit.store",
    "pca_subspace": "lltoolkit.tensors.pca",
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
    "project_trajectory": "lltoolkit.trajectory",
    "random_subspace": "lltoolkit.tensors.directions",
    "rank_correlation": "lltoolkit.labelled.correlation",
    "render_surface": "lltoolkit.render",
    "save_figure": "lltoolkit.plots.saving",
    "save_result": "lltoolkit.store",
    "stability_threshold": "lltoolkit.tensors.stability",
    "surface_statistics": "lltoolkit.labelled.statistics",
    "trajectory_statistics": "lltoolkit.motion",
}
_SUBPACKAGES = ("plots", "zoo")

__all__ = [  # noqa: RUF022 - grouped by what they do
    # measure
    "Objective",
    "Subspace",
    "random_subspace",
    "interpolate",
    "hessian_subspace",
    "pca_subspace",
    "project_trajectory",
    "compute_surface",
    "compute_curvature",
    "compute_sharpness",
    "hessian_spectrum",
    "stability_threshold",
    # compare
    "rank_correlation",
    "surface_statistics",
    "trajectory_statistics",
    "describe",
    "cite",
    # store
    "open_result",
    "save_result",
    "open_checkpoints",
    # draw
    "plot_contour",
    "plot_grid",
    "plot_slice",
    "plot_surface",
    "plot_sharpness",
    "plot_spectrum",
    "plot_weights",
    "plot_trajectory",
    "plot_trajectory_loss",
    "plot_trajectory_statistics",
    "animate_trajectory",
    "save_figure",
    "render_surface",
    "export_scene",
    "plots",
    # train
    "Recorder",
    "zoo",
    # errors
    "DivergedTraining",
    "NondeterministicObjective",
    "ResumeMismatch",
    "SchemaError",
]


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return import_module(f"lltoolkit.{name}")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    from lltoolkit.errors import did_you_mean

    raise AttributeError(f"lltoolkit has no name {name!r}.{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
