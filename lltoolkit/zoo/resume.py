"""Going on where a training was cut off: whether it is the same one, and the state it stood in."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lltoolkit.errors import ResumeMismatch
from lltoolkit.files import write_atomically
from lltoolkit.zoo.runs import RESUME, read_note


def may_go_on(path: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether there is something left to train in `path`.

    Returns
    -------
    bool
        False where the same training has finished.

    Raises
    ------
    ResumeMismatch
        If `path` holds a training of another configuration, naming what differs.
    """
    note = read_note(path)
    if note is None:
        return True
    there, here = _flat(note["config"]), _flat(config)
    if differ := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
        told = "; ".join(
            f"{key}: {there.get(key, 'not set')!r} there, {here.get(key, 'not set')!r} here" for key in differ
        )
        raise ResumeMismatch(
            f"{path} holds a training of another configuration ({told}). Use another out=, or resume=False to "
            "train anew."
        )
    return not note["finished"]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@dataclass
class State:
    """Where a training stands, apart from weights and optimizer."""

    step: int = 0
    loss_sum: float = 0.0  # over the epoch so far, as are the next two
    n_right: int = 0
    n_seen: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Keep all that the next step follows from, in place of what was kept before."""
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": vars(state)}
    write_atomically(path / RESUME, lambda temporary: torch.save(content, temporary))


def restore_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Put `model` and `optimizer` where the training was cut off; the beginning where nothing is kept.

    Returns
    -------
    State
        The counters and the history so far.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    file = path / RESUME
    if not file.exists():
        return State()
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}). Train anew with resume=False.") from error
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return State(**content["state"])
