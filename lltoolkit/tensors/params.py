"""Vectors shaped like a model: dictionaries from parameter names to tensors, and the arithmetic on them.

Nothing here changes its arguments, and nothing returned shares memory with a model.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lltoolkit.errors import did_you_mean

Params: TypeAlias = dict[str, Tensor]
ParameterFilter: TypeAlias = str | Callable[[str, nn.Parameter], bool] | None


def parameters_of(model: nn.Module, names: Iterable[str] | None = None) -> Params:
    """Copy the floating-point parameters of `model`, each tied weight once, under its first name.

    Parameters
    ----------
    model : nn.Module
        Any module; it is not changed.
    names : iterable of str, optional
        Copy these parameters only, in the model's order.

    Returns
    -------
    Params
        Detached copies on the CPU; half precision becomes float32, in which it can be perturbed
        (bfloat16 rounding alone is 0.2 %).
    """
    wanted = None if names is None else set(names)
    return {
        name: _working_copy(group[0]) for name, group in weights_of(model).items() if wanted is None or name in wanted
    }


def name_of_filter(parameters: ParameterFilter) -> str:
    """Name a choice of parameters for the record: "all", the expression, or the function's name."""
    if parameters is None or isinstance(parameters, str):
        return parameters or "all"
    return str(getattr(parameters, "__qualname__", type(parameters).__name__))


def select(weights: Mapping[str, Any], parameters: Any) -> list[str]:
    """Name the weights that a filter selects, in their order.

    Parameters
    ----------
    weights : mapping of str to Tensor
        By name; at least one.
    parameters : str, callable or None
        A regular expression searched in the name, ``f(name, weight) -> bool``, or None for all.

    Returns
    -------
    list of str
        At least one name.

    Raises
    ------
    ValueError
        If nothing is selected, or the regular expression is none.
    """
    if parameters is None:
        return list(weights)
    if isinstance(parameters, str):
        try:
            pattern = re.compile(parameters)
        except re.error as error:
            raise ValueError(f"parameters={parameters!r} is no regular expression: {error}.") from error
        chosen = [name for name in weights if pattern.search(name)]
    else:
        chosen = [name for name, weight in weights.items() if parameters(name, weight)]
    if not chosen:
        raise ValueError(
            f"parameters={parameters!r} selects none of the {len(weights)} parameters "
            f"({', '.join(list(weights)[:8])}, ...).{did_you_mean(parameters, weights)}"
        )
    return chosen


def weights_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group the floating-point parameters of `model` by the weight they hold.

    Returns
    -------
    dict
        First name of each weight to all parameters that share it: one object under two names, or
        two objects on one storage (``a.data = b.data``). Moving a weight must move all of them, once.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        place = (parameter.device, parameter.data_ptr(), parameter.shape, parameter.stride())
        first = seen.setdefault(place, name) if parameter.numel() else name
        groups.setdefault(first, []).append(parameter)
    return groups


def buffers_of(model: nn.Module) -> Params:
    """Copy the floating-point buffers of `model` (batch-norm statistics above all) to the CPU."""
    return {name: _working_copy(buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def _working_copy(tensor: Tensor) -> Tensor:
    dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()


def move(origin: Params, directions: Sequence[Params], coordinates: Sequence[float]) -> Params:
    """Return ``origin + sum_i coordinates[i] * directions[i]``, always as fresh tensors.

    Returns
    -------
    Params
        Summed in the order of the axes and from the origin, so one point has one value, however it was reached.
    """
    moved = {name: tensor.clone() for name, tensor in origin.items()}
    for direction, coordinate in zip(directions, coordinates, strict=True):
        for name, step in direction.items():
            moved[name].add_(step, alpha=float(coordinate))
    return moved


def subtract(a: Params, b: Params) -> Params:
    """Return ``a - b``, entry by entry."""
    return {name: tensor - b[name] for name, tensor in a.items()}


def dot(a: Params, b: Params) -> float:
    """Inner product over the entries of `a`, accumulated in float64."""
    return float(sum(torch.dot(a[name].double().flatten(), b[name].double().flatten()) for name in a))


def norm(a: Params) -> float:
    """Euclidean norm over all entries, accumulated in float64."""
    return dot(a, a) ** 0.5


def filter_norms(tensor: Tensor) -> Tensor:
    """Norm of each filter, shaped to broadcast against `tensor`.

    A filter is one slice along axis 0 of a tensor with two or more axes (an output channel of a
    convolution, a row of a linear layer); a tensor with fewer axes is one filter.

    Returns
    -------
    Tensor
        Shape ``(n_filters, 1, ..., 1)``, or a scalar for fewer than two axes.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 4.
    """
    if tensor.ndim < 2:
        return tensor.norm()
    return tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))


def sha256(*vectors: Params) -> str:
    """Hash names, shapes, types and values: equal hashes mean equal tensors, bit for bit."""
    digest = hashlib.sha256()
    for vector in vectors:
        for name in sorted(vector):
            tensor = vector[name].detach().cpu().contiguous()
            digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
