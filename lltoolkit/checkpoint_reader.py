"""The checkpoints of one training, read one at a time: of one model, whole and finite, or left out with a reason."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from lltoolkit.labelled.trajectory import Row
from lltoolkit.tensors.checkpoints import Checkpoint
from lltoolkit.tensors.foreign import runs_of
from lltoolkit.tensors.gram import parameter_names, readable
from lltoolkit.tensors.params import Params, sha256
from lltoolkit.tensors.projection import require_fit
from lltoolkit.tensors.subspace import Subspace
from lltoolkit.zoo.runs import NOTE, Run, open_run

Source: TypeAlias = Run | str | Path | Sequence[Checkpoint]
State: TypeAlias = Mapping[str, Tensor]

log = logging.getLogger(__name__)


class CheckpointReader:
    """Read the checkpoints of one training, one at a time.

    Parameters
    ----------
    run : Run, path of a folder, or sequence of Checkpoint
        The training. A folder is a run's, or any that `open_checkpoints` reads.
    damaged : {"stop", "skip"}
        What to do about one that can't be read, or holds NaN: raise, or leave it out with a warning in the log.
    call : str
        What the user calls for one `run`, to be shown where several are given.

    Attributes
    ----------
    name : str
        Of the training: its folder's, without the folders above it.
    model : str
        The name of its model, "unknown" where it is not on record.
    checkpoints : list of Checkpoint
        Those that can be opened, in the order of their steps; at least one, each of its own step.
    skipped : set of int
        The steps that were left out so far.

    Raises
    ------
    ValueError
        For several runs, no checkpoint, two of one step, or different models.
    FileNotFoundError
        If there is no such folder.

    Examples
    --------
    >>> CheckpointReader({"sgd": [], "adam": []}, "stop", call="f(run)")
    Traceback (most recent call last):
        ...
    ValueError: run is a dict; one training gives one result. Of several: {name: f(run) for name, run in runs.items()}.
    """

    def __init__(self, run: Source, damaged: str, *, call: str) -> None:
        of_checkpoints = isinstance(run, Sequence) and all(isinstance(each, Checkpoint) for each in run)
        if isinstance(run, Mapping) or (isinstance(run, Sequence) and not isinstance(run, str) and not of_checkpoints):
            raise ValueError(
                f"run is a {type(run).__name__}; one training gives one result. Of several: "
                f"{{name: {call} for name, run in runs.items()}}."
            )
        ((self.name, given),) = runs_of(run).items()
        steps = [each.step for each in given]
        if twice := sorted({step for step in steps if steps.count(step) > 1}):
            paths = " and ".join(str(each.path) for each in given if each.step == twice[0])
            raise ValueError(f"step {twice[0]} is there twice: {paths}. Give the checkpoints of one training.")
        self._damaged = damaged
        self.checkpoints = readable(given, damaged=damaged)  # type: ignore[arg-type]
        self.skipped = set(steps) - {each.step for each in self.checkpoints}
        if not self.checkpoints:
            raise ValueError(f"none of the {len(given)} checkpoints of {self.name!r} can be read; the log says why.")
        self.run = open_run(run) if isinstance(run, str | Path) and (Path(run) / NOTE).exists() else run
        of_model: Mapping[str, Any] = getattr(self.run, "config", {}).get("model", {})
        self.model = str(of_model.get("name") or of_model.get("class") or "unknown")

    def read(self, steps: set[int]) -> Iterator[tuple[int, Checkpoint, State]]:
        """Read those of these steps that can be read.

        Yields
        ------
        (int, Checkpoint, mapping of str to Tensor)
            Its place among `checkpoints`, and its parameters and buffers.
        """
        for place, checkpoint in enumerate(self.checkpoints):
            if checkpoint.step not in steps or checkpoint.step in self.skipped:
                continue
            try:
                state = checkpoint.load()
            except (OSError, ValueError) as error:
                self.skip(checkpoint, error)
                continue
            yield place, checkpoint, state

    def hashes(self, steps: set[int]) -> dict[int, str]:
        """Hash the tensors of these steps' checkpoints."""
        return {checkpoint.step: sha256(dict(state)) for _, checkpoint, state in self.read(steps)}

    def skip(self, checkpoint: Checkpoint, error: Exception) -> None:
        """Leave a checkpoint out and say so in the log, or raise."""
        if self._damaged == "stop":
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{error} Or leave it out: damaged='skip'.") from error
        self.skipped.add(checkpoint.step)
        log.warning("step %d is left out: %s", checkpoint.step, error)

    def require_weights(self) -> None:
        """Check that whole weights were kept.

        Raises
        ------
        ValueError
            If a checkpoint keeps only a sketch.
        """
        for checkpoint in self.checkpoints:
            if checkpoint.is_sketch:
                checkpoint.load()  # which says what it is good for

    def require_all_in(self, subspace: Subspace) -> None:
        """Check that a subspace has all the weights of the model, where no objective knows which ones it moves.

        Raises
        ------
        ValueError
            Naming the first weight that the subspace lacks.
        """
        for name in parameter_names(self.checkpoints, self.run):
            if name not in subspace.origin:
                raise ValueError(
                    f"{self.checkpoints[0].path} holds {name!r}, which this subspace lacks. Is it of another model? "
                    "For a subspace of some of the weights give objective=, which knows the others."
                )


def weights_in(checkpoint: Checkpoint, state: State, subspace: Subspace) -> Params:
    """Take the weights that a subspace has out of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        For an error.
    state : mapping of str to Tensor
        All that it holds.
    subspace : Subspace
        Of the same model.

    Returns
    -------
    Params
        Named and shaped as the weights of the subspace's origin.

    Raises
    ------
    ValueError
        If the checkpoint is of another model.
    """
    origin = subspace.weights(subspace.origin)
    chosen = {name: state[name] for name in origin if name in state}
    require_fit(chosen, origin, what=f"the checkpoint {checkpoint.path}", against="this subspace")
    return chosen


def row_of(checkpoint: Checkpoint, digest: str = "") -> Row:
    """Tell what a checkpoint says of itself, and the hash of its tensors where it is known."""
    rate = checkpoint.metadata.get("learning_rate")
    return Row(
        checkpoint.step,
        math.nan if checkpoint.epoch < 0 else checkpoint.epoch,
        math.nan if rate is None else float(rate),
        digest,
    )
