"""Copying a state into a model, all of it or nothing, and finding tied weights in one."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lltoolkit.tensors.weight_files import place_of

log = logging.getLogger(__name__)


def restore(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> nn.Module:
    """Copy a state into `model`; where anything does not fit, say all of it and change nothing.

    Parameters
    ----------
    model : nn.Module
        Changed in place, on its own device.
    state : mapping of str to Tensor
        A tied weight may go by any of its names. ``num_batches_tracked`` may be absent: files of before
        torch 0.4.1 have none.
    source : str
        What to call the state in an error: the path, as a rule.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    ValueError
        With every missing, extra and misshapen key, and every type that would lose precision.
    """
    own = model.state_dict()
    aliases = without_aliases(own)[1]
    names_of: dict[str, list[str]] = {}
    for name in own:
        names_of.setdefault(aliases.get(name, name), []).append(name)
    faults = [f"extra {name} {tuple(state[name].shape)}" for name in state if name not in own]
    for names in names_of.values():
        given = [name for name in names if name in state]
        if not given and not names[0].endswith("num_batches_tracked"):
            faults.append(f"missing {names[0]} {tuple(own[names[0]].shape)}")
        for name in given:
            faults += _misfit(name, state[name], own[name])
            if state[name].shape == state[given[0]].shape and not _same(state[name], state[given[0]]):
                faults.append(f"{name} differs from {given[0]}, to which the model ties it")
    if faults:
        raise ValueError(
            f"{source} does not fit this {type(model).__name__} ({len(faults)} of {len(own)} keys): "
            + "; ".join(faults)
            + ". Build the model with the options that the weights were trained with; it is unchanged."
        )
    if widened := [name for name in state if state[name].dtype != own[name].dtype]:
        log.info("%s: %d tensors are widened to the model's type, %s the first", source, len(widened), widened[0])
    model.load_state_dict(dict(state), strict=False)
    return model


def _misfit(name: str, given: Tensor, own: Tensor) -> list[str]:
    if given.shape != own.shape:
        return [f"misshapen {name}: {tuple(given.shape)} in the file, {tuple(own.shape)} in the model"]
    if torch.promote_types(given.dtype, own.dtype) != own.dtype:
        return [f"{name} is {given.dtype} in the file, which the model's {own.dtype} cannot hold exactly"]
    return []


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or bool(((a == b) | (a.isnan() & b.isnan())).all())


def without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state into tensors to store, and the other names of those that are the same memory.

    Returns
    -------
    (dict of str to Tensor, dict of str to str)
        Tensors on the CPU, contiguous, no two in one storage; and each further name with the name it is stored under.

    Raises
    ------
    ValueError
        If the state holds something that is no tensor.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the state holds {name!r}, a {type(tensor).__name__}; a checkpoint keeps tensors only.")
        first = seen.setdefault(place_of(name, tensor), name)
        if first != name:
            aliases[name] = first
            continue
        tensor = tensor.detach().cpu().contiguous()
        # Two overlapping views that are not the same tensor are stored apart; safetensors refuses shared memory.
        stored[name] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    return stored, aliases
