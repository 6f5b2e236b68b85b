"""Directions and the subspaces they span: random and filter-normalized, through other models, or along the Hessian."""

import logging
import math
from typing import Literal

import torch
from torch import Tensor, nn

from lltoolkit.errors import require_choice, require_whole
from lltoolkit.tensors.derivative_check import check_derivatives
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.lanczos import eigenpairs
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import (
    ParameterFilter,
    Params,
    buffers_of,
    filter_norms,
    name_of_filter,
    norm,
    parameters_of,
    subtract,
)
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.subspace import AXIS_NAMES, Subspace, require_fit

NORMALIZATIONS = ("filter", "layer", "weight", "none")
IGNORES = ("bias_bn", "none", "original_code")
ENDS = ("top", "both")
SCALES = ("curvature", "theta", "unit")
TINY = 1e-30  # keeps 0 / 0 at 0: a filter of zeros stays where it is

log = logging.getLogger(__name__)


def random_subspace(
    objective: Objective | nn.Module,
    *,
    dims: Literal[1, 2, 3] = 2,
    seed: int = 0,
    normalize: Literal["filter", "layer", "weight", "none"] = "filter",
    ignore: Literal["bias_bn", "none", "original_code"] = "bias_bn",
    orthogonalize: bool = False,
) -> Subspace:
    """Draw Gaussian directions around a minimizer and scale them to its weights.

    Parameters
    ----------
    objective : Objective or nn.Module
        Whose weights are the origin. A module: all its parameters move.
    dims : {1, 2, 3}
        Number of directions.
    seed : int
        Every tensor of every axis has its own stream made from `seed`, the axis and the parameter's name:
        a line, a plane and a volume of one seed share their first directions, and nothing drawn before or
        beside them shows.
    normalize : {"filter", "layer", "weight", "none"}
        "filter": each filter takes the norm of theta's filter (Li et al. 2018, section 4). A filter is a slice
        along axis 0: an output channel, a row of a linear layer or of an embedding, of a recurrent or
        attention matrix; for transposed convolutions axis 0 is the input channel. "layer": each tensor takes
        the norm of theta's. "weight": each entry is multiplied by theta's. "none": standard normal entries.
    ignore : {"bias_bn", "none", "original_code"}
        What tensors with fewer than two axes (biases, batch norm) do. "bias_bn": stay, as in the paper's
        figures. "none": each is one filter. "original_code": their direction is theta's own value, as in
        the code published with the paper when it is told to ignore nothing.
    orthogonalize : bool
        Make each direction orthogonal to the ones before within every filter, which leaves the norms of the
        filters as asked; a filter with fewer weights than directions then stays. Not with "weight" or
        "original_code". Off in the paper: random directions in high dimension are nearly orthogonal, and their
        cosine is recorded.

    Returns
    -------
    Subspace
        Centred at the minimizer.

    Raises
    ------
    ValueError
        For unknown options, or options that exclude each other.

    Notes
    -----
    A filter-normalized surface is unchanged when a whole layer of a ReLU network is scaled up and the next one
    down, or when a filter before batch norm is scaled together with its running statistics. It does change
    when one filter is scaled against the matching column of the next layer: that changes the row norms there
    unevenly.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 4.

    Examples
    --------
    >>> plane = random_subspace(torch.nn.Linear(3, 2), seed=1)
    >>> plane.dims, plane.axes
    (2, ('alpha', 'beta'))
    """
    require_choice("dims", dims, (1, 2, 3))
    seed = require_whole("seed", seed)
    require_choice("normalize", normalize, NORMALIZATIONS)
    require_choice("ignore", ignore, IGNORES)
    if orthogonalize and (normalize == "weight" or ignore == "original_code"):
        raise ValueError(
            f"orthogonalize=True with normalize={normalize!r}, ignore={ignore!r}: normalize='weight' would turn the "
            "directions again, ignore='original_code' gives all of them theta's biases. Leave one of them out."
        )
    theta = _theta(objective)
    directions: list[Params] = []
    for axis in AXIS_NAMES[:dims]:
        direction = {}
        for name, weights in theta.items():
            # float64 until the end, so that the order of a sum on some machine does not reach the direction.
            raw = _draw(seed, axis, name, weights)
            if orthogonalize:
                raw = _orthogonal_within_filters(raw, [previous[name].double() for previous in directions])
            direction[name] = _scale(raw, weights.double(), normalize, ignore).to(weights.dtype)
        directions.append(direction)
    options = {"seed": seed, "normalize": normalize, "ignore": ignore, "orthogonalize": int(orthogonalize)}
    return Subspace(theta, directions, kind="random", options=options)


def interpolate(
    a: Objective | nn.Module,
    b: Objective | nn.Module,
    c: Objective | nn.Module | None = None,
    *,
    buffers: Literal["interpolate", "frozen"] = "interpolate",
) -> Subspace:
    """Give the line through two models, or the plane through three.

    Parameters
    ----------
    a : Objective or nn.Module
        At 0, or (0, 0).
    b : Objective or nn.Module
        At 1, or (1, 0); the same architecture.
    c : Objective or nn.Module, optional
        At (0, 1).
    buffers : {"interpolate", "frozen"}
        "interpolate": batch-norm statistics move along, so that every model's own values stand at its point
        (the ``states`` of the paper's code). Beyond the models a running variance may turn negative and the
        loss NaN. "frozen": the weights move alone, with the statistics of the objective.

    Returns
    -------
    Subspace
        Of kind "interpolation".

    Raises
    ------
    ValueError
        If the models' parameters differ in name or shape, or two models are equal.

    References
    ----------
    Goodfellow, Vinyals and Saxe (2015), Qualitatively characterizing neural network optimization problems.

    Examples
    --------
    >>> a, b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> line = interpolate(a, b)
    >>> torch.allclose(line.at(1.0)["weight"], b.weight)
    True
    """
    require_choice("buffers", buffers, ("interpolate", "frozen"))
    origin = _theta(a)
    statistics = _buffers(a) if buffers == "interpolate" else {}
    directions = []
    for label, other in (("b", b), ("c", c)):
        if other is None:
            continue
        there = _theta(other)
        require_fit(there, origin, what=f"model {label}", against="model a")
        if buffers == "interpolate":
            moved = _buffers(other)
            require_fit(moved, statistics, what=f"the buffers of model {label}", against="those of model a")
            there |= moved
        direction = subtract({name: there[name] for name in (*origin, *statistics)}, origin | statistics)
        if not any(tensor.any() for tensor in direction.values()):
            raise ValueError(f"models a and {label} have equal weights, so there is no line between them.")
        directions.append(direction)
    return Subspace(
        origin | statistics,
        directions,
        kind="interpolation",
        options={"buffers": buffers},
        buffer_names=statistics,
    )


def hessian_subspace(
    objective: Objective,
    *,
    dims: Literal[1, 2, 3] = 2,
    ends: Literal["top", "both"] = "top",
    split: str | None = None,
    parameters: ParameterFilter = None,
    scale: Literal["curvature", "theta", "unit"] = "curvature",
    tol: float = 1e-3,
    seed: int = 0,
) -> Subspace:
    """Span a subspace by eigenvectors of the Hessian at the minimizer.

    Parameters
    ----------
    objective : Objective
        Whose minimizer and loss.
    dims : {1, 2, 3}
        Number of directions.
    ends : {"top", "both"}
        "top": the eigenvectors of the largest eigenvalues, the largest first. "both": alpha belongs to the largest,
        beta to the smallest, which is negative where the loss bends down; gamma to the second largest.
    split : str, optional
        Of the data; by default the first.
    parameters : str, callable or None
        Which weights are variables, see `Hessian`; the others stay.
    scale : {"curvature", "theta", "unit"}
        The one length of each axis; the eigenvectors themselves are not filter-normalized, which would turn them.
        "curvature": ``sqrt(2 / |lambda|)``, so that by the quadratic model the loss has changed by 1 at coordinate 1,
        but at most the norm of theta. "theta": the norm of theta's moving weights, about the length of a
        filter-normalized direction. "unit": 1.
    tol : float
        Residuals of the eigenpairs, as a share of the largest eigenvalue.
    seed : int
        Of the start vector. The sign of an eigenvector is chosen so that its largest entry is positive.

    Returns
    -------
    Subspace
        Of kind "hessian", centred at the minimizer; ``config`` holds the eigenvalues and their residuals.

    Raises
    ------
    ValueError
        For unknown options, if the Hessian does not exist, or if it has fewer different eigenvalues than axes.

    References
    ----------
    Yao et al. (2020), PyHessian: Neural networks through the lens of the Hessian, section 3.

    Examples
    --------
    >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1)), loss="mse")
    >>> line = hessian_subspace(objective, dims=1)
    >>> round(line.config["eigenvalues"][0], 4)
    1.0
    """
    require_choice("dims", dims, (1, 2, 3))
    require_choice("ends", ends, ENDS)
    require_choice("scale", scale, SCALES)
    if ends == "both" and dims == 1:
        raise ValueError("ends='both' needs two axes at least: dims=2 or 3, or ends='top'.")
    seed = require_whole("seed", seed)
    n_low = 1 if ends == "both" else 0
    hessian = Hessian(objective, split=split, parameters=parameters)
    if hessian.n < dims:
        raise ValueError(f"{hessian.n} weights can't span {dims} axes: choose fewer dims, or other parameters.")
    objective.verify()
    check_derivatives(hessian)
    start = torch.randn(hessian.n, generator=generator("hessian subspace", seed), dtype=torch.float32)
    with hessian.at() as point:
        found = eigenpairs(
            point, start.to(device=hessian.device, dtype=hessian.dtype), n_low=n_low, n_high=dims - n_low, tol=tol
        )
    if found.vectors is None:
        raise ValueError("the loss is not finite at the minimizer, so it has no Hessian. objective.check() tells more.")
    overlap = (found.vectors @ found.vectors.T - torch.eye(dims).to(found.vectors)).abs().max()
    if overlap > 0.5:  # one eigenvector stands at both ends
        raise ValueError(
            f"the Hessian has fewer than {dims} different eigenvalues that can be told apart: choose fewer dims."
        )
    if not found.converged:
        log.warning("the eigenvectors did not converge to tol=%g; their residuals stand in the subspace's config", tol)
    order = [*range(dims - 1, n_low - 1, -1), *range(n_low)]  # the largest first
    if ends == "both":
        order.insert(1, order.pop())
    variables = {name: objective.theta[name] for name in hessian.names}
    length_of_theta = norm(variables)
    directions: list[Params] = []
    for place in order:
        vector = found.vectors[place]
        vector = vector * torch.sign(vector[vector.abs().argmax()])
        length = {"theta": length_of_theta, "unit": 1.0}.get(scale)
        if length is None:
            length = min(math.sqrt(2 / max(abs(float(found.values[place])), TINY)), length_of_theta or math.inf)
        moved = hessian.unflatten(vector * length)
        directions.append({name: moved.get(name, torch.zeros_like(t)) for name, t in objective.theta.items()})
    options = {
        "ends": ends,
        "split": hessian.split,
        "parameters": name_of_filter(parameters),
        "scale": scale,
        "tol": tol,
        "seed": seed,
        "eigenvalues": [float(found.values[place]) for place in order],
        "residuals": [float(found.residuals[place]) for place in order],
        "converged": int(found.converged),
    }
    return Subspace(objective.theta, directions, kind="hessian", options=options)


def _theta(source: Objective | nn.Module) -> Params:
    return dict(source.theta) if isinstance(source, Objective) else parameters_of(source)


def _buffers(source: Objective | nn.Module) -> Params:
    return dict(source.network.buffers) if isinstance(source, Objective) else buffers_of(source)


def _draw(seed: int, axis: str, name: str, like: Tensor) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator("direction", seed, axis, name), dtype=torch.float32)
    return drawn.double()


def _scale(raw: Tensor, weights: Tensor, normalize: str, ignore: str) -> Tensor:
    """Scale a raw float64 direction of one tensor to its weights."""
    if weights.ndim < 2 and ignore == "bias_bn":
        return torch.zeros_like(raw)
    if weights.ndim < 2 and ignore == "original_code":
        return weights.clone()
    if normalize == "filter":
        return raw * (filter_norms(weights) / filter_norms(raw).clamp_min(TINY))
    if normalize == "layer":
        return raw * (weights.norm() / raw.norm().clamp_min(TINY))
    return raw * weights if normalize == "weight" else raw


def _orthogonal_within_filters(raw: Tensor, previous: list[Tensor]) -> Tensor:
    rows = raw.flatten(1) if raw.ndim > 1 else raw.reshape(1, -1)
    before = rows.norm(dim=1, keepdim=True)
    for other in previous:
        axis = other.reshape(rows.shape)
        rows = rows - (rows * axis).sum(1, keepdim=True) / axis.square().sum(1, keepdim=True).clamp_min(TINY) * axis
    # What is left of a filter with too few weights is rounding: normalizing it would blow the rounding up.
    rows = torch.where(rows.norm(dim=1, keepdim=True) > 1e-10 * before, rows, 0.0)
    return rows.reshape(raw.shape)
