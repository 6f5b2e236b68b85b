"""Checkpoints that others wrote: any folder of files with weights, and what counts as a run."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lltoolkit.errors import did_you_mean
from lltoolkit.tensors.checkpoints import Checkpoint, list_checkpoints
from lltoolkit.tensors.weight_files import SUFFIXES, peek

USUAL_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
NUMBER = re.compile(r"(?<![\d.])\d+(?!\.?\d)")  # a whole number, not part of a decimal such as a loss in the name
SHARD = re.compile(r"-\d+-of-0*(?!1\D)[1-9]\d*\.")  # one of two files or more that hold a model together
EPOCH = re.compile(r"epoch\D?(\d+)", re.IGNORECASE)


def open_checkpoints(folder: str | Path, pattern: str | None = None, *, prefix: str | None = None) -> list[Checkpoint]:
    """List a folder of files with weights as the checkpoints of one run.

    Parameters
    ----------
    folder : str or Path
        Any folder; one of lltoolkit's own needs no `pattern`.
    pattern : str, optional
        Which files, such as ``"epoch_*.pt"`` or ``"checkpoint-*/model.safetensors"``. By default all ``.pt``, ``.pth``,
        ``.ckpt`` and ``.safetensors`` files directly in the folder. The state dict may lie inside of
        ``{"state_dict": ...}`` or ``{"model": ...}``; the prefixes ``module.`` and ``_orig_mod.`` are taken off.
    prefix : str, optional
        Keep only the entries whose names begin with it, without it: ``"model."`` for a LightningModule that holds the
        network as ``self.model``. An empty one takes no prefix off, as is done with lltoolkit's own files.

    Returns
    -------
    list of Checkpoint
        In the order of their steps. The step is the file's own ``global_step``, else the last whole number in the path
        that is not the same everywhere, else the place in the natural order of the names. The epoch is the file's own,
        else the number after ``epoch`` in the path, else -1. Files are read when they are used: a damaged one shows
        then.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If nothing is found, two files have one step, or a model is spread over several files.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in (1, 10, 2):
    ...         torch.save({"w": torch.zeros(2)}, f"{folder}/net_{epoch}.pt")
    ...     [checkpoint.step for checkpoint in open_checkpoints(folder)]
    [1, 2, 10]
    """
    folder = Path(folder)
    if not folder.is_dir():
        nearby = [other.name for other in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise FileNotFoundError(f"there is no folder {folder}.{did_you_mean(folder.name, nearby)}")
    if pattern is None:
        for place in (folder, folder / "checkpoints"):
            if place.is_dir() and (own := list_checkpoints(place)):
                return own if prefix is None else [replace(each, prefix=prefix) for each in own]
    elif Path(pattern).is_absolute():
        raise ValueError(f"pattern={pattern!r} is an absolute path; give it relative to the folder {folder}.")
    suffixes = USUAL_SUFFIXES if pattern is None else SUFFIXES
    files = sorted(
        (
            file
            for file in folder.glob(pattern or "*")
            if file.is_file() and file.suffix in suffixes and not file.name.startswith(".")
        ),
        key=lambda file: _natural(file.relative_to(folder).as_posix()),
    )
    _require_whole_models(folder, files or [*folder.glob("*-of-*.*"), *folder.glob("*/*-of-*.*")])
    if not files:
        there = sorted(file.name + "/" * file.is_dir() for file in folder.iterdir())
        wanted = f"matches {pattern!r}" if pattern else f"ends in {', '.join(USUAL_SUFFIXES)}"
        raise ValueError(
            f"nothing in {folder} {wanted}. There is "
            + (", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "") if there else "nothing")
            + (
                ". In checkpoints/ is no complete checkpoint of lltoolkit yet"
                if (folder / "checkpoints").is_dir()
                else ""
            )
            + ". Give pattern=, such as 'checkpoint-*/model.safetensors'."
        )
    inside = list(_told_inside(files))
    by_name = _steps_of([file.relative_to(folder).with_suffix("").as_posix() for file in files])
    checkpoints = []
    for file, found, step in zip(files, inside, by_name, strict=True):
        told = EPOCH.findall(file.relative_to(folder).as_posix())
        epoch = found.get("epoch", int(told[-1]) if told else -1)
        checkpoints.append(Checkpoint(file, found.get("global_step", step), epoch, prefix=prefix))
    seen: dict[int, Path] = {}
    for checkpoint in checkpoints:
        if (other := seen.setdefault(checkpoint.step, checkpoint.path)) != checkpoint.path:
            raise ValueError(
                f"{other.relative_to(folder)} and {checkpoint.path.relative_to(folder)} in {folder} both say step "
                f"{checkpoint.step}. Give pattern= that takes one of them, such as 'epoch_*.pt'."
            )
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def runs_of(source: Any) -> dict[str, list[Checkpoint]]:
    """Take whatever stands for one run or several, and list their checkpoints.

    Parameters
    ----------
    source : Run, str, Path, sequence of Checkpoint, or a sequence or mapping of these
        A Run is anything with ``.checkpoints``; a path is a run's folder, or any folder that `open_checkpoints` reads.

    Returns
    -------
    dict of str to list of Checkpoint
        Each run's name (its folder's, or the mapping's key) and its checkpoints in the order of their steps.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    ValueError
        If it is something else, or empty.
    """
    if isinstance(source, Mapping):
        runs = {str(name): _checkpoints_in(each) for name, each in source.items()}
    elif isinstance(source, Sequence) and not isinstance(source, str) and not _are_checkpoints(source):
        runs = {}
        for each in source:
            checkpoints = _checkpoints_in(each)
            name = _name_of(each, checkpoints)
            runs[name if name not in runs else f"{name} ({len(runs) + 1})"] = checkpoints
    else:
        checkpoints = _checkpoints_in(source)
        runs = {_name_of(source, checkpoints): checkpoints}
    empty = [name for name, checkpoints in runs.items() if not checkpoints]
    if empty or not runs:
        raise ValueError(
            (
                f"the run {empty[0]!r} has no complete checkpoint yet"
                if empty
                else "there is no run in an empty sequence"
            )
            + ". Give a Run (zoo.open_run), its folder, or open_checkpoints(folder, pattern)."
        )
    return runs


def _are_checkpoints(source: Iterable[object]) -> bool:
    kinds = {isinstance(each, Checkpoint) for each in source}
    return kinds == {True}


def _checkpoints_in(source: Any) -> list[Checkpoint]:
    found: list[Checkpoint]
    if hasattr(source, "checkpoints"):
        found = list(source.checkpoints)
    elif isinstance(source, str | Path):
        found = open_checkpoints(source)
    elif isinstance(source, Sequence) and (_are_checkpoints(source) or not source):
        found = list(source)
    else:
        raise ValueError(
            f"a run is a {type(source).__name__}; give a Run (zoo.open_run), its folder, or a list of checkpoints."
        )
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _name_of(source: Any, checkpoints: Sequence[Checkpoint]) -> str:
    path = getattr(source, "path", source if isinstance(source, str | Path) else None)
    if path is None and checkpoints:
        path = checkpoints[0].path.parent
    folders = [] if path is None else [Path(path).resolve(), *Path(path).resolve().parents]
    return next((folder.name for folder in folders if folder.name not in ("", "checkpoints")), "run")


def _require_whole_models(folder: Path, files: Iterable[Path]) -> None:
    if part := next((file for file in files if SHARD.search(file.name)), None):
        raise ValueError(
            f"{part.relative_to(folder)} in {folder} is one of several files (shards) that hold a model together; one "
            "file a checkpoint can be read. Save it whole, in transformers by "
            "model.save_pretrained(folder, max_shard_size='1TB')."
        )


def _told_inside(files: Sequence[Path]) -> Iterator[dict[str, int]]:
    """Look for steps and epochs inside of files; where one says nothing, others of its suffix are not opened."""
    silent: set[str] = set()
    for file in files:
        found = None if file.suffix in silent else peek(file, ("global_step", "epoch"))
        if found == {}:
            silent.add(file.suffix)
        yield found or {}


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _steps_of(names: Sequence[str]) -> list[int]:
    """Find the number that counts in each name: the last place where they differ, else the last, else the order."""
    numbers = [[int(number) for number in NUMBER.findall(name)] for name in names]
    if len({len(found) for found in numbers}) == 1:
        places = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
        if places:
            return [found[places[-1]] for found in numbers]
    return [found[-1] if found else place for place, found in enumerate(numbers)]
