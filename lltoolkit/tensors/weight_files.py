"""Files with weights, ours and others': safetensors and files of torch, read whole or entry by entry.

No code in a file is ever run: files of torch are read with ``weights_only=True``.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lltoolkit.errors import did_you_mean, require_choice

Look: TypeAlias = Callable[[str], tuple[tuple[int, ...], bool]]  # shape, and whether it is of a floating-point type

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


class StoredState:
    """The entries of an open file; what is not asked for is not read. Made by `open_weights`.

    Attributes
    ----------
    names : tuple of str
        The entries in the file's order, each tied weight once; it is found under its other names too.
    """

    def __init__(
        self, keys: Mapping[str, str], aliases: Mapping[str, str], read: Callable[[str], Tensor], look: Look
    ) -> None:
        self._keys = {name: aliases.get(key, key) for name, key in keys.items()}
        self._read = read
        self._look = look
        firsts: dict[str, str] = {}
        for name, key in self._keys.items():
            firsts.setdefault(key, name)
        self.names = tuple(firsts.values())

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def tensor(self, name: str) -> Tensor:
        """Return an entry; its values are read when they are used."""
        return self._read(self._keys[name])

    def key(self, name: str) -> str:
        """Return what an entry is called in the file, prefixes included."""
        return self._keys[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an entry."""
        return self._look(self._keys[name])[0]

    def is_floating_point(self, name: str) -> bool:
        """Say whether an entry can be a weight."""
        return self._look(self._keys[name])[1]

    def slice(self, name: str, start: int, stop: int) -> Tensor:
        """Return the entries ``start:stop`` of a flattened tensor; copy them before the file is closed."""
        return self.tensor(name).reshape(-1)[start:stop]


def read_weights(path: Path, *, prefix: str | None = None) -> dict[str, Tensor]:
    """Read a state dict, on the CPU.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file, or one of torch (``.pt``, ``.pth``, ``.th``, ``.bin``, ``.ckpt``), also with the state
        dict inside of ``{"state_dict": ...}`` or ``{"model": ...}``. The prefixes ``module.`` and ``_orig_mod.`` are
        taken off.
    prefix : str, optional
        Keep only the entries whose names begin with it, without it: ``"model."`` where a LightningModule holds the
        network as ``self.model``. An empty one takes no prefix off.

    Returns
    -------
    dict of str to Tensor
        Fresh tensors; tied names share one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of another format, or holds no state dict.
    """
    require_choice("the suffix of path", path.suffix, SUFFIXES)
    state = read_safetensors(path) if path.suffix == ".safetensors" else _state_dict(path, _load_torch(path))
    return {name: state[key] for name, key in _plain_names(state, prefix, path).items()}


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
    with _open_safetensors(path) as (keys, read, _, aliases):
        state = {name: read(name) for name in keys}
    return state | {alias: state[name] for alias, name in aliases.items()}


@contextmanager
def open_weights(path: Path, *, prefix: str | None = None) -> Iterator[StoredState]:
    """Open a file of weights without reading it whole; see `read_weights` for what it may be.

    Safetensors and torch's present format are mapped into memory; torch's format of before 1.6 is read whole.

    Parameters
    ----------
    path : Path
        The file.
    prefix : str, optional
        As in `read_weights`.

    Yields
    ------
    StoredState
        Valid until the block ends.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of another format, or holds no state dict.
    """
    require_choice("the suffix of path", path.suffix, SUFFIXES)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as (keys, read, look, aliases):
            yield StoredState(_plain_names([*keys, *aliases], prefix, path), aliases, read, look)
        return
    state = _state_dict(path, _load_torch(path, mapped=True))
    seen: dict[tuple[object, ...], str] = {}
    firsts = {name: seen.setdefault(place_of(name, tensor), name) for name, tensor in state.items()}
    yield StoredState(
        _plain_names(state, prefix, path),
        {name: first for name, first in firsts.items() if first != name},
        state.__getitem__,
        lambda key: (tuple(state[key].shape), state[key].is_floating_point()),
    )


def peek(path: Path, keys: tuple[str, ...]) -> dict[str, int] | None:
    """Look for whole numbers beside the weights, such as ``global_step``, without reading these.

    Parameters
    ----------
    path : Path
        The file.
    keys : tuple of str
        What to look for.

    Returns
    -------
    dict of str to int, or None
        What is there; None where the file can't be read, which shows when its weights are wanted.
    """
    if path.suffix not in TORCH_SUFFIXES:
        return {}
    if not zipfile.is_zipfile(path):  # damaged, or of a format that can only be read whole
        return None
    try:
        held = _load_torch(path, mapped=True)
    except ValueError:
        return None
    found = held if isinstance(held, dict) else {}
    return {key: found[key] for key in keys if isinstance(found.get(key), int)}


def place_of(name: str, tensor: Tensor) -> tuple[object, ...]:
    """Tell tensors apart by the memory that they are, so that tied weights are found; empty ones by their name."""
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return place if tensor.numel() else (name,)


@contextmanager
def _open_safetensors(path: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor], Look, dict[str, str]]]:
    _require_file(path)
    # What the caller's block raises is no damage of this file, hence no `try` around the yield.
    try:
        file = safe_open(path, framework="pt")
        keys = list(file.keys())
        tied = {alias: key for alias, key in (file.metadata() or {}).items() if key in keys and alias not in keys}
    except (SafetensorError, OSError) as error:
        raise _damaged_safetensors(path, error) from error

    def read(key: str) -> Tensor:
        try:
            return file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise _damaged_safetensors(path, error) from error

    def look(key: str) -> tuple[tuple[int, ...], bool]:
        entry = file.get_slice(key)  # a tensor costs ten times as much
        return tuple(entry.get_shape()), entry.get_dtype().startswith(("F", "BF"))

    with file:
        yield keys, read, look, tied


def _damaged_safetensors(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged, cut short or no safetensors file ({error}). Copy it again from its source, or write it "
        "again."
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        nearby = [other.name for other in path.parent.glob("*.*")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no file {path}.{did_you_mean(path.name, nearby)}")


def _load_torch(path: Path, *, mapped: bool = False) -> object:
    _require_file(path)
    try:
        # Only the zip format can be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is no file of torch; it is not read, since it could run code. Where "
            "you trust it, keep its weights alone: torch.save(torch.load(path, weights_only=False)['state_dict'], "
            "new_path)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise ValueError(
            f"{path} is damaged, cut short or no file of torch ({type(error).__name__}: {reason:.120}). Copy it again "
            "from its source, or write it again."
        ) from error


def _state_dict(path: Path, held: Any) -> dict[str, Tensor]:
    state = held
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        held = f"a dict of {', '.join(map(str, list(state)[:8]))}" if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} holds {held}, no state dict. Save one with torch.save(model.state_dict(), path).")
    return state


def _plain_names(keys: Any, prefix: str | None, path: Path) -> dict[str, str]:
    """Map names without prefixes to the names in the file."""
    names = {key: key for key in keys}
    if prefix == "":
        return names
    plain = _without_prefixes(names)
    if prefix is None:
        return plain
    for each in (plain, names):  # the prefix may be one of those, too
        kept = {name.removeprefix(prefix): key for name, key in each.items() if name.startswith(prefix)}
        if kept:
            return _without_prefixes(kept)
    raise ValueError(
        f"{path} has no entry whose name begins with prefix={prefix!r}; there are {', '.join(list(plain)[:5])}, ... "
        "Give the prefix as it stands there, with its dot, or leave it out."
    )


def _without_prefixes(names: dict[str, str]) -> dict[str, str]:
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): key for name, key in names.items()}
    return names
