"""Going on where a training or a recording was cut off: whether it is the same one, and where it stood."""

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lltoolkit.errors import ResumeMismatch
from lltoolkit.files import write_atomically
from lltoolkit.tensors.checkpoints import Checkpoint, list_checkpoints, open_state
from lltoolkit.tensors.restore import without_aliases
from lltoolkit.zoo.runs import RESUME, checkpoints_of, describe_model, read_note, read_rows, unwrap


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
    if told := differences(note["config"], config):
        raise ResumeMismatch(
            f"{path} holds a training of another configuration ({told}). Use another out=, or resume=False to "
            "train anew."
        )
    return not note["finished"]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Tell in what two configurations differ; an empty text where they do not."""
    there, here = _flat(there), _flat(here)
    return "; ".join(
        f"{key}: {there.get(key, 'not set')!r} there, {here.get(key, 'not set')!r} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    )


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


def going_on(
    model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: State
) -> dict[str, Mapping[str, Any]]:
    """Gather all that the next step follows from; nothing of it moves with the training, apart from `model`."""
    content = copy.deepcopy({"optimizer": optimizer.state_dict(), "state": vars(state) | {"rows": []}})
    content["state"]["rows"] = list(state.rows)
    return {"model": model, **content}


def save_state(path: Path, content: Mapping[str, Any]) -> None:
    """Keep what `going_on` gathered, in place of what was kept before."""
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


def take_up(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Read where a Recorder's recording stands.

    Parameters
    ----------
    path : Path
        Its folder.
    options : mapping
        Of the Recorder that is to go on in it.

    Returns
    -------
    config : dict
        As recorded; empty where there is nothing to go on in.
    rows : list of dict
        The history.
    last_step : int
        The step of the last complete checkpoint.

    Raises
    ------
    ResumeMismatch
        If it was made with other options, naming them.
    """
    note = read_note(path)
    if note is None:
        return {}, [], 0
    if told := differences({"recorder": note["config"].get("recorder", "a run of train()")}, {"recorder": options}):
        raise ResumeMismatch(
            f"{path} was recorded with other options ({told}). Give the same, another path, or overwrite=True."
        )
    rows, checkpoints = read_rows(path), on_disk(path)
    return (note["config"], rows, checkpoints[-1].step) if rows and checkpoints else ({}, [], 0)


def require_same_model(path: Path, there: Mapping[str, Any], model: nn.Module) -> None:
    """Raise unless a recording is of `model`.

    Parameters
    ----------
    path : Path
        The recording's folder.
    there : mapping
        What its note says of its model.
    model : nn.Module
        The model to go on with.

    Raises
    ------
    ResumeMismatch
        If it was recorded of another model, naming what differs: a word of its description, or a tensor's shape.
    """
    told = differences(there, json.loads(json.dumps(describe_model(model))))
    whole = next((found for found in on_disk(path) if not found.is_sketch), None)
    if not told and whole is not None:
        here = without_aliases(unwrap(model).state_dict())[0]
        with open_state(whole) as state:
            shapes = {name: list(state.shape(name)) for name in state.names}
        told = differences(shapes, {name: list(tensor.shape) for name, tensor in here.items()})
    if told:
        raise ResumeMismatch(
            f"{path} was recorded of another model ({told}). Give the same, another path, or overwrite=True."
        )


def on_disk(path: Path) -> list[Checkpoint]:
    """List the complete checkpoints of a run; none where it has no folder of them yet."""
    folder = checkpoints_of(path)
    return list_checkpoints(folder) if folder.is_dir() else []
