"""The folder of a run: checkpoints, a history, and a note of how it was made.

::

    <path>/run.json                                  the configuration, and whether the training finished
    <path>/<name>.history.nc                         loss, accuracy, learning rate over the steps
    <path>/checkpoints/step_00000012.safetensors     with its .json beside it
    <path>/rows.jsonl                                the history's rows while it is written; gone when it is whole
    <path>/resume.pt                                 what a training goes on from; gone when it has finished
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import xarray as xr
from torch import nn

from lltoolkit.errors import did_you_mean
from lltoolkit.files import leftovers, write_atomically
from lltoolkit.labelled.provenance import provenance
from lltoolkit.labelled.schema import label
from lltoolkit.store import open_result, save_result
from lltoolkit.tensors.checkpoints import Checkpoint, list_checkpoints
from lltoolkit.tensors.params import weights_of
from lltoolkit.zoo.models import build_model

Every: TypeAlias = Literal["epoch", "geometric"] | int

NOTE = "run.json"
ROWS = "rows.jsonl"
WORDS = ("epoch", "geometric")  # that `every` may be
RESUME = "resume.pt"


class Run:
    """A training on disk.

    Attributes
    ----------
    path : Path
        Its folder.
    config : dict
        How it was trained.
    finished : bool
        Whether it came to its end.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], *, finished: bool = True, model: nn.Module | None = None
    ) -> None:
        self.path = path
        self.config = dict(config)
        self.finished = finished
        self._model = model

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The saved states in the order of their steps, the initial weights first."""
        return list_checkpoints(checkpoints_of(self.path))

    @property
    def history(self) -> xr.Dataset:
        """Loss, accuracy and learning rate over dim ``step``, as far as they are on disk."""
        history = open_result(history_of(self.path))
        if (self.path / ROWS).exists():  # it is being written, or was killed: the last rows are not in the file yet
            rows = read_rows(self.path)
            if len(rows) > history.sizes["step"]:
                history = label(_as_history(rows, history.attrs, history["loss"].attrs["units"]))
        return history

    @property
    def model(self) -> nn.Module:
        """The model of the last checkpoint, on the CPU, in eval mode; the same object at each access.

        Raises
        ------
        ValueError
            If the run does not say how to build its model, or has no checkpoint yet.
        """
        if self._model is None:
            options = dict(self.config["model"])
            if "name" not in options:
                raise ValueError(
                    f"{self.path} was trained with a {options.get('class')}, which lltoolkit cannot build. Build it "
                    "and pass it: open_run(path, model=...)."
                )
            options.pop("initial_sha256", None)
            with torch.random.fork_rng(devices=[]):
                self._model = self._filled(build_model(**options))
        return self._model

    def _filled(self, model: nn.Module) -> nn.Module:
        checkpoints = self.checkpoints
        if not checkpoints:
            raise ValueError(f"{self.path} has no complete checkpoint yet.")
        return checkpoints[-1].load_into(model).eval()

    def __repr__(self) -> str:
        model = self.config["model"]
        return f"Run({str(self.path)!r}, model={model.get('name') or model.get('class')!r}, finished={self.finished})"


def open_run(path: str | Path, *, model: nn.Module | None = None) -> Run:
    """Open what ``train`` or a ``Recorder`` wrote, also while it is being written.

    Parameters
    ----------
    path : str or Path
        The run's folder.
    model : nn.Module, optional
        Needed for ``Run.model`` where the network is not of the zoo; the last checkpoint is loaded into it.

    Returns
    -------
    Run
        With ``.model``, ``.checkpoints``, ``.history``, ``.path`` and ``.config``.

    Raises
    ------
    FileNotFoundError
        If there is no run in `path`.
    ValueError
        If its note is damaged, or `model` does not fit its checkpoints.
    """
    path = Path(path)
    if (note := read_note(path)) is None:
        nearby = [other.parent.name for other in path.parent.glob(f"*/{NOTE}")] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"{path} holds no run: there is no {NOTE} in it. Give the folder that train(out=...) or Recorder(...) had."
            + did_you_mean(path.name, nearby)
        )
    run = Run(path, note["config"], finished=note["finished"])
    if model is not None:
        run._model = run._filled(model)
    return run


def require_every(every: Every) -> None:
    """Raise unless `every` says when to keep a checkpoint.

    Raises
    ------
    ValueError
        If it is neither ``"epoch"``, ``"geometric"`` nor a whole number of at least 1.
    """
    known = (
        every in WORDS
        if isinstance(every, str)
        else not isinstance(every, bool) and isinstance(every, int) and every >= 1
    )
    if not known:
        raise ValueError(
            f"every={every!r}: give 'epoch', 'geometric', or a whole number of steps of at least 1."
            f"{did_you_mean(every, WORDS) if isinstance(every, str) else ''}"
        )


def next_due(every: Every, step: int) -> float:
    """Return the first step after `step` at which a checkpoint is due; infinity where epochs decide.

    ``"geometric"``: steps 1, 2, 3, ..., the next always about 10 % later, ``max(s + 1, ceil(1.1 s))``.

    Returns
    -------
    float
        A whole number, or infinity.

    Examples
    --------
    >>> next_due(100, 250), next_due("geometric", 3), next_due("geometric", 100)
    (300, 4, 104)
    """
    if every == "epoch":
        return math.inf
    if every != "geometric":
        return (step // every + 1) * every
    due = 1
    while due <= step:
        due = max(due + 1, -(-11 * due // 10))  # in whole numbers: 1.1 * 10 is more than 11 in floating point
    return due


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module inside of torch.compile or (Distributed)DataParallel, which prefix its names."""
    while True:
        if type(model).__name__ == "OptimizedModule":  # importing the type would load all of torch._dynamo
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Say what a model is, for the record: its ``zoo_config``, or the name of its class."""
    model = unwrap(model)
    return dict(getattr(model, "zoo_config", None) or {"class": type(model).__name__})


def checkpoints_of(path: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return path / "checkpoints"


def history_of(path: Path) -> Path:
    """Return the file of a run's history."""
    return path / f"{path.resolve().name}.history.nc"


def row(
    step: int,
    epoch: int,
    learning_rate: float = math.nan,
    loss: Mapping[str, float] | None = None,
    accuracy: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Make one row of a history; `loss` and `accuracy` by split, NaN where they were not measured."""
    return {
        "step": step,
        "epoch": epoch,
        "learning_rate": learning_rate,
        "loss": dict(loss or {}),
        "accuracy": dict(accuracy or {}),
    }


def history_attrs(model: nn.Module, config: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Gather the provenance of a history once, at the start of a training."""
    model = unwrap(model)
    named = describe_model(model)
    first = next(model.parameters(), torch.empty(0))
    return provenance(
        "history",
        config=config,
        model=named.get("name", named.get("class", "")),
        n_params=sum(group[0].numel() for group in weights_of(model).values()),
        device=str(first.device),
        torch_version=torch.__version__,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the history of a training that was left, or killed, as far as it reached the disk.

    Returns
    -------
    list of dict
        As ``row`` makes them, in the order of their steps.
    """
    rows: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        for line in (path / ROWS).read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # a kill may have cut the last one
                rows.append(row(*json.loads(line)))
    if history_of(path).exists():
        history = open_result(history_of(path))
        for place, step in enumerate(history["step"].values.tolist()):
            if not rows or step > rows[-1]["step"]:
                told = [
                    {split: float(history[name].sel(split=split)[place]) for split in history["split"].values.tolist()}
                    for name in ("loss", "accuracy")
                ]
                rows.append(row(step, int(history["epoch"][place]), float(history["learning_rate"][place]), *told))
    return rows


def save_history(
    path: Path, rows: Sequence[Mapping[str, Any]], attrs: Mapping[str, str | int | float], *, units: str = "1"
) -> None:
    """Write the history of a run.

    Parameters
    ----------
    path : Path
        The run's folder.
    rows : sequence of mapping
        As ``row`` makes them, in the order of their steps.
    attrs : mapping
        As ``history_attrs`` gives them.
    units : str
        Of the loss.
    """
    save_result(_as_history(rows, attrs, units), history_of(path))


def _as_history(rows: Sequence[Mapping[str, Any]], attrs: Mapping[str, Any], units: str) -> xr.Dataset:
    splits = list(dict.fromkeys(split for row in rows for split in (*row["loss"], *row["accuracy"]))) or ["train"]

    def by_split(name: str) -> np.ndarray:
        return np.array([[row[name].get(split, math.nan) for row in rows] for split in splits], dtype=np.float64)

    return xr.Dataset(
        {
            "loss": (("split", "step"), by_split("loss"), {"units": units}),
            "accuracy": (("split", "step"), by_split("accuracy")),
            "epoch": ("step", np.array([row["epoch"] for row in rows], dtype=np.int64)),
            "learning_rate": ("step", np.array([row["learning_rate"] for row in rows], dtype=np.float64)),
        },
        coords={"split": splits, "step": np.array([row["step"] for row in rows], dtype=np.int64)},
        attrs=dict(attrs),
    )


def write_note(path: Path, config: Mapping[str, Any], *, finished: bool) -> None:
    """Write what a run is; its folder is made."""
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"config": config, "finished": finished}, indent=1)
    write_atomically(path / NOTE, lambda temporary: temporary.write_text(text))


def read_note(path: Path) -> dict[str, Any] | None:
    """Read what a run is; None where there is no run.

    Returns
    -------
    dict or None
        With ``config`` and ``finished``.

    Raises
    ------
    ValueError
        If the note is damaged.
    """
    note = path / NOTE
    if not note.exists():
        return None
    try:
        content = json.loads(note.read_text())
        return {"config": dict(content["config"]), "finished": bool(content["finished"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{note} is damaged ({type(error).__name__}: {error}). Remove the folder, or train again."
        ) from error


def clear_run(path: Path) -> None:
    """Remove an older run from its folder, and nothing else that lies there."""
    folder = checkpoints_of(path)
    old = [path / NOTE, history_of(path), path / RESUME, path / ROWS]
    for file in [*old, *folder.glob("step_*.json"), *folder.glob("step_*.safetensors")]:
        file.unlink(missing_ok=True)
    sweep(path)


def sweep(path: Path) -> None:
    """Remove what a killed writer left half-way; to be called by the only writer of the folder."""
    folder = checkpoints_of(path)
    halves = [
        file for file in folder.glob("step_*.safetensors") if not (folder / f"{file.name.split('.')[0]}.json").exists()
    ]
    parts = [part for file in (NOTE, ROWS, RESUME, history_of(path).name) for part in leftovers(path / file)]
    for file in [*halves, *parts, *folder.glob(".step_*.part.*"), *path.glob(".*.probe")]:
        file.unlink(missing_ok=True)
