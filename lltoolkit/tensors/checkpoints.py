"""Checkpoints: one safetensors file with a model's whole state, and one small JSON that says what it is.

The JSON is written last and marks the pair as complete: a pair that a kill cut in half is not a checkpoint. Tied
weights are stored once; the file's metadata name the others as safetensors itself does (``{"alias": "stored name"}``),
so that ``safetensors.torch.load_model`` reads the file too.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lltoolkit
from lltoolkit.errors import did_you_mean
from lltoolkit.files import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of a model.

    Attributes
    ----------
    path : Path
        The safetensors file; the JSON lies beside it.
    step : int
        Optimizer steps behind it, from 0.
    epoch : int
        Whole epochs behind it, from 0.
    metadata : dict
        What else was known: ``learning_rate``, ``loss``, ``seed``, ``lltoolkit_version``, ...
    """

    path: Path
    step: int
    epoch: int
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)

    def load(self) -> dict[str, Tensor]:
        """Read the state: parameters and buffers by name, on the CPU; tied names share one tensor.

        Returns
        -------
        dict of str to Tensor
            Fresh tensors, in the model's own types.

        Raises
        ------
        ValueError
            If the file is damaged or cut short.
        """
        return read_safetensors(self.path)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the state into `model`; a model that does not fit is left as it was.

        Returns
        -------
        nn.Module
            The same object.

        Raises
        ------
        ValueError
            If the file is damaged, or naming every key that does not fit.
        """
        return restore(model, self.load(), source=str(self.path))


def save_checkpoint(
    folder: str | Path, model: nn.Module | Mapping[str, Tensor], *, step: int, epoch: int, **metadata: object
) -> Checkpoint:
    """Write a checkpoint of `model` into `folder`, whole or not at all.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there. A checkpoint of the same step is replaced.
    model : nn.Module or mapping of str to Tensor
        A model, or its state dict.
    step, epoch : int
        Optimizer steps and whole epochs behind this state, from 0.
    **metadata
        Anything JSON-able; single numbers in tensors and arrays become plain numbers.

    Returns
    -------
    Checkpoint
        What was written.

    Raises
    ------
    ValueError
        If the state holds something that is no tensor.
    OSError
        If it can't be written; earlier checkpoints are kept.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_checkpoint(folder, nn.Linear(2, 1), step=10, epoch=1, loss=0.5)
    ...     (checkpoint,) = list_checkpoints(folder)
    ...     sorted(checkpoint.load())
    ['bias', 'weight']
    >>> checkpoint.path.name, checkpoint.step, checkpoint.metadata["loss"]
    ('step_00000010.safetensors', 10, 0.5)
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    stored, aliases = _without_aliases(state)
    metadata = {"lltoolkit_version": lltoolkit.__version__, **metadata}
    folder = Path(folder)
    path = folder / f"step_{step:08d}.safetensors"
    mark = path.with_suffix(".json")
    text = json.dumps({"step": step, "epoch": epoch, **metadata}, indent=1, default=_plain)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)  # while the tensors are replaced, the pair is not complete
        write_atomically(path, lambda temporary: save_file(stored, temporary, metadata=aliases))
        write_atomically(mark, lambda temporary: temporary.write_text(text))
    except (SafetensorError, OSError) as error:  # a full disk is a SafetensorError, which is no OSError
        raise OSError(
            f"{path} can't be written ({error}). Earlier checkpoints are kept: make room or mend the folder's rights, "
            "then call again."
        ) from error
    return Checkpoint(path, step, epoch, {key: json.loads(text)[key] for key in metadata})


def list_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """List the complete checkpoints of `folder` in the order of their steps; none gives an empty list.

    Parameters
    ----------
    folder : str or Path
        Where ``save_checkpoint`` wrote, for instance ``runs/mine/checkpoints``.

    Returns
    -------
    list of Checkpoint
        Their tensors are read by ``load()``, one at a time.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the JSON of a checkpoint is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        nearby = [other.name for other in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise FileNotFoundError(f"there is no folder {folder}.{did_you_mean(folder.name, nearby)}")
    found = [_read_mark(mark) for mark in folder.glob("step_*.json") if mark.with_suffix(".safetensors").exists()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read_mark(mark: Path) -> Checkpoint:
    try:
        content = json.loads(mark.read_text())
        step, epoch = int(content.pop("step")), int(content.pop("epoch"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{mark} is damaged ({type(error).__name__}: {error}). "
            "Remove it and its .safetensors file, or record again."
        ) from error
    return Checkpoint(mark.with_suffix(".safetensors"), step, epoch, content)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file whole, on the CPU; names tied at writing share one tensor.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to Tensor
        Fresh tensors.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, cut short or no safetensors file.
    """
    if not path.is_file():
        nearby = [other.name for other in path.parent.glob("*.*")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no file {path}.{did_you_mean(path.name, nearby)}")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping
            aliases = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged, cut short or no safetensors file ({error}). "
            "Copy it again from its source, or write it again."
        ) from error
    return state | {alias: state[name] for alias, name in aliases.items() if name in state and alias not in state}


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
    aliases = _without_aliases(own)[1]
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


def _without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state into tensors to store, and the other names of those that are the same memory."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the state holds {name!r}, a {type(tensor).__name__}; a checkpoint keeps tensors only.")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = seen.setdefault(place, name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
            continue
        tensor = tensor.detach().cpu().contiguous()
        # Two overlapping views that are not the same tensor are stored apart; safetensors refuses shared memory.
        stored[name] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    return stored, aliases


def _plain(value: Any) -> object:
    if getattr(value, "size", None) is not None and hasattr(value, "item"):
        return value.item()
    raise TypeError(
        f"a {type(value).__name__} ({value!r}) does not go into a checkpoint's JSON; give a number or a text."
    )
