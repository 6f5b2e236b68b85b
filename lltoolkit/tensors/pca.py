"""The plane that a path itself moves in: principal components of the checkpoints of one run or several."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from lltoolkit.errors import require_choice
from lltoolkit.tensors.checkpoints import Checkpoint, open_state
from lltoolkit.tensors.foreign import runs_of
from lltoolkit.tensors.gram import combine, finite, gram, load_parameters, parameter_names, readable
from lltoolkit.tensors.params import Params, name_of_filter, norm, select
from lltoolkit.tensors.random_walk import Point, center_weights, walk_variance
from lltoolkit.tensors.subspace import Subspace

WeightFilter: TypeAlias = str | Callable[[str, Tensor], bool] | None

R = TypeVar("R")

SCALES = ("unit", "path")
DIGITS = 10  # of what an id is made of: the last bits of an eigenvector depend on the number of threads


def pca_subspace(
    run: Any,
    *,
    dims: Literal[1, 2, 3] = 2,
    origin: Point = "final",
    center: Literal["origin", "mean"] = "origin",
    scale: Literal["unit", "path"] = "unit",
    parameters: WeightFilter = None,
    model: Any = None,
    damaged: Literal["stop", "skip"] = "stop",
) -> Subspace:
    """Span a subspace by the principal components of the checkpoints of a path.

    Parameters
    ----------
    run : Run, str, Path, sequence of Checkpoint, or a sequence or mapping of these
        One run, or several on one plane. A path is a run's folder or any folder that `open_checkpoints` reads.
    dims : {1, 2, 3}
        Number of components.
    origin : {"final", "start", "mean"}
        Where the plane stands: in the last checkpoint (of the first run), its first one, or the mean of all.
    center : {"origin", "mean"}
        What the variance is taken about, whatever the origin: "origin" is the paper's matrix of ``theta_i - theta_n``;
        "mean" is the usual PCA, and what the code published with the paper computes.
    scale : {"unit", "path"}
        The one length of each axis; components are not filter-normalized, which would turn them out of the plane.
        "unit": 1. "path": the path's largest coordinate is 1 or -1 on each axis.
    parameters : str, callable or None
        Which weights are variables: a regular expression searched in the name, ``"weights"`` for tensors with two or
        more axes, or ``f(name, tensor) -> bool``. The others stay at the origin. For an objective that moves some of
        the weights only, give it as `model` instead.
    model : nn.Module or Objective, optional
        Tells weights from buffers where the files of others don't: the plane then has this model's weights, or those
        that this objective moves. Otherwise see `parameter_names`.
    damaged : {"stop", "skip"}
        What a missing or damaged file, or one with NaN, does: "stop" is an error; "skip" leaves it out with a warning
        (and reads all files once more).

    Returns
    -------
    Subspace
        Of kind "pca", with orthogonal directions; buffers are no part of it. On each axis the checkpoint that is
        farthest from the origin lies on the negative side, so that a path to the origin runs from left to right.
        ``config`` holds the options, ``n_checkpoints``, ``n_runs``, ``steps`` (first, last), and for each axis
        ``singular_values`` (of the displacements, in units of the weights), ``explained_variance``,
        ``explained_variance_null`` and ``extent`` (lowest and highest coordinate of a checkpoint).
        ``explained_variance_null`` is the share that a random walk of as many steps gives, see `walk_variance`; None
        where several runs have no common start.

    Raises
    ------
    ValueError
        If there are fewer than ``dims + 1`` checkpoints or they span fewer dimensions, they are of different models,
        hold NaN, are damaged or only sketches, or an option is unknown.

    Notes
    -----
    Components come from the n x n inner products of the checkpoints, read slice by slice: memory for a few
    checkpoints, whatever their number.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 7.2; Antognini and Sohl-Dickstein (2018),
    PCA of high dimensional random walks with comparison to neural network training.

    Examples
    --------
    >>> import tempfile
    >>> from lltoolkit.tensors.checkpoints import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step, place in enumerate([[9.0, 1.0, 5.0], [4.0, -2.0, 5.0], [0.0, 0.0, 5.0]]):
    ...         _ = save_checkpoint(folder, {"w": torch.tensor(place)}, step=step, epoch=step)
    ...     plane = pca_subspace(folder)
    >>> plane.origin
    {'w': tensor([0., 0., 5.])}
    >>> round(plane.project({"w": torch.tensor([9.0, 1.0, 6.0])})[1], 3)  # 1 lies outside, of sqrt(83)
    0.11
    """
    require_choice("dims", dims, (1, 2, 3))
    require_choice("scale", scale, SCALES)
    runs = [kept for each in runs_of(run).values() if (kept := readable(each, damaged=damaged))]
    _require_enough([checkpoint for each in runs for checkpoint in each], dims)
    if len(runs) > 1:
        readable(each[0] for each in runs)  # the runs are of one model
    names = parameter_names(runs[0], run if model is None else model)
    if damaged == "skip":
        runs = [kept for each in runs if (kept := finite(each, names))]
    checkpoints = [checkpoint for each in runs for checkpoint in each]
    _require_enough(checkpoints, dims)
    lengths = [len(each) for each in runs]
    about_origin = center_weights(lengths, origin=origin, center="origin")
    about = center_weights(lengths, origin=origin, center=center)
    end = _or_skip(load_parameters, checkpoints[lengths[0] - 1], names)
    variables = {name: end[name] for name in choose_weights(end, parameters)}
    products = _or_skip(gram, checkpoints, names=list(variables), reference=end)
    values, vectors = _principal(products, about)
    _require_rank(values, dims, rounding=_rounding(checkpoints[0], variables) * len(checkpoints) ** 0.5)
    lengths_of_axes = values[:dims].sqrt()
    # A unit axis is this sum of the checkpoints' displacements; from which point they go drops out.
    weights = ((vectors[:, :dims] - about.outer(vectors[:, :dims].sum(0))) / lengths_of_axes).T
    coordinates = products @ weights.T
    coordinates = coordinates - about_origin @ coordinates
    for axis, along in enumerate(coordinates.T):
        factor = _factor(along, scale)
        weights[axis] *= factor
        along /= factor
    directions = combine(checkpoints, _rounded(weights), names=list(variables), reference=end)
    theta = _point(origin, checkpoints, about_origin, end)
    options = {
        "origin": origin,
        "center": center,
        "scale": scale,
        "parameters": name_of_filter(parameters),
        "n_checkpoints": len(checkpoints),
        "n_runs": len(runs),
        "steps": [min(each.step for each in checkpoints), max(each.step for each in checkpoints)],
        "singular_values": [_short(value) for value in lengths_of_axes],
        "explained_variance": [_short(value) for value in values[:dims] / values.sum()],
        "explained_variance_null": None,
        "extent": [[_short(along.min()), _short(along.max())] for along in coordinates.T],
    }
    if _common_start(products, lengths):
        steps = [[checkpoint.step for checkpoint in each] for each in runs]
        n_weights = sum(tensor.numel() for tensor in variables.values())
        null = walk_variance(steps, n_components=dims, origin=origin, center=center, n_weights=n_weights)
        options["explained_variance_null"] = [_short(value) for value in null]
    whole = [{name: part.get(name, torch.zeros_like(theta[name])) for name in names} for part in directions]
    return Subspace(theta, whole, kind="pca", options=options)


def _require_enough(checkpoints: Sequence[Checkpoint], dims: int) -> None:
    for checkpoint in checkpoints:
        if checkpoint.is_sketch:
            checkpoint.load()  # which says what a sketch is good for
    if len(checkpoints) <= dims:
        raise ValueError(
            f"{len(checkpoints)} checkpoint{'s' * (len(checkpoints) != 1)} can't span dims={dims}: that takes "
            f"{dims + 1}. Record more often (Recorder(..., every=)), wait for the run to go on, or choose "
            + ("fewer dims." if dims > 1 else "another run.")
        )


def _or_skip(read: Callable[..., R], *args: Any, **options: Any) -> R:
    try:
        return read(*args, **options)
    except ValueError as error:
        raise ValueError(f"{error} Leave such ones out: damaged='skip'.") from error


def choose_weights(theta: Params, parameters: WeightFilter) -> list[str]:
    """Name the weights that vary: as `select` does, and "weights" for those with two or more axes."""
    if parameters == "weights":
        return [name for name, tensor in theta.items() if tensor.ndim > 1]
    return select(theta, parameters)


def _principal(products: Tensor, about: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the inner products about a weighted mean, the largest first."""
    shifted = products - about @ products
    shifted = shifted - (shifted @ about)[:, None]
    values, vectors = torch.linalg.eigh((shifted + shifted.T) / 2)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _rounding(checkpoint: Checkpoint, variables: Params) -> float:
    """Norm of what storing the weights rounded off: 0.21 of the spacing of numbers on average, and a margin."""
    with open_state(checkpoint) as state:
        return 0.3 * math.hypot(
            *(torch.finfo(state.tensor(name).dtype).eps * norm({name: value}) for name, value in variables.items())
        )


def _require_rank(values: Tensor, dims: int, *, rounding: float) -> None:
    n = len(values)
    # The products themselves are exact to n eps of the largest.
    floor = max(rounding**2, 10 * n * torch.finfo(torch.float64).eps * float(values[0]))
    rank = int((values > floor).sum())
    if rank == 0:
        raise ValueError(
            f"the {n} checkpoints are equal, up to the rounding of the type they are stored in: there is no path. Was "
            "the model that was recorded the one that was trained?"
        )
    if rank < dims:
        raise ValueError(
            f"the {n} checkpoints span {rank} dimension{'s' * (rank > 1)} beyond the rounding of the type they are "
            f"stored in, fewer than dims={dims}. Choose dims={rank}, or record more checkpoints, in float32."
        )


def _factor(along: Tensor, scale: str) -> float:
    """Return what a unit axis is multiplied by, so that its sign and its length are as promised."""
    far = along.abs()
    first = int((far >= (1 - 1e-6) * far.max()).int().argmax())  # of equally far ones the earliest
    return -float(along[first].sign()) * (1.0 if scale == "unit" else float(far.max()))


def _point(origin: Point, checkpoints: Sequence[Checkpoint], about_origin: Tensor, end: Params) -> Params:
    if origin == "final":
        return end
    if origin == "start":
        return load_parameters(checkpoints[0], end)
    (shift,) = combine(checkpoints, about_origin[None], names=list(end), reference=end)
    return {name: (tensor.double() + shift[name]).to(tensor.dtype) for name, tensor in end.items()}


def _common_start(products: Tensor, lengths: Sequence[int]) -> bool:
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    first = starts[0]
    apart = [products[first, first] + products[i, i] - 2 * products[first, i] for i in starts]
    return max(map(float, apart)) <= 1e-10 * float(products.diagonal().max())


def _rounded(weights: Tensor) -> Tensor:
    """Drop the last bits, which depend on the number of threads and would show in the subspace's id."""
    unit = weights.abs().amax(dim=1, keepdim=True) / 10**DIGITS
    return (weights / unit).round() * unit


def _short(value: float | Tensor) -> float:
    return float(f"{float(value):.{DIGITS}g}")
