"""Checkpoints: one safetensors file with a model's whole state, and one small JSON that says what it is.

The JSON is written last and marks the pair as complete: a pair that a kill cut in half is not a checkpoint. Tied
weights are stored once; the file's metadata name the others as safetensors itself does (``{"alias": "stored name"}``),
so that ``safetensors.torch.load_model`` reads the file too.

::

    step_00000012.safetensors              the weights and buffers, or a sketch of them
    step_00000012.optimizer.safetensors    the optimizer's state, where it was asked for
    step_00000012.json                     step, epoch, learning rate, loss, the names of the buffers, ...
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import lltoolkit
from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.files import write_atomically
from lltoolkit.tensors.restore import restore, without_aliases
from lltoolkit.tensors.weight_files import StoredState, open_weights, read_safetensors, read_weights

StoredType: TypeAlias = Literal["float32", "bfloat16"] | torch.dtype | None

SKETCH = "lltoolkit.sketch"  # the one entry of a checkpoint that keeps no weights
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of a model.

    Attributes
    ----------
    path : Path
        The file of weights; a checkpoint of our own has a JSON beside it.
    step : int
        Optimizer steps behind it, from 0.
    epoch : int
        Whole epochs behind it, from 0; -1 where nobody knows.
    metadata : dict
        What else was known: ``learning_rate``, ``loss``, ``seed``, ``lltoolkit_version``, ...; ``buffers``: names of
        the entries that are no weights.
    prefix : str, optional
        What is taken off the names in a file of others, see `open_checkpoints`; empty where they are used as they
        stand, as in our own.
    """

    path: Path
    step: int
    epoch: int
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)
    prefix: str | None = None

    @property
    def is_sketch(self) -> bool:
        """Whether only a sketch of the weights was kept."""
        return "sketch" in self.metadata

    @property
    def optimizer_path(self) -> Path:
        """The file of the optimizer's state, which need not be there."""
        return self.path.with_suffix(".optimizer.safetensors")

    def load(self) -> dict[str, Tensor]:
        """Read the state: parameters and buffers by name, on the CPU; tied names share one tensor.

        Returns
        -------
        dict of str to Tensor
            Fresh tensors, in the types they were stored in.

        Raises
        ------
        ValueError
            If the file is damaged or cut short, or keeps only a sketch.
        """
        if self.is_sketch:
            raise ValueError(
                f"{self.path} keeps only a sketch of the weights ({self.metadata['sketch']} numbers), of which "
                "trajectory_statistics makes distances and angles. For weights, record without thin='projection'."
            )
        return read_weights(self.path, prefix=self.prefix)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the state into `model`; a model that does not fit is left as it was.

        Returns
        -------
        nn.Module
            The same object.

        Raises
        ------
        ValueError
            If the file is damaged or a sketch, or naming every key that does not fit.
        """
        return restore(model, self.load(), source=str(self.path))

    def sketch(self) -> Tensor:
        """Read the sketch that was kept instead of weights.

        Returns
        -------
        Tensor
            Shape ``(n,)``, float32; see `lltoolkit.tensors.sketch.sketch`.

        Raises
        ------
        ValueError
            If whole weights were kept, or the file is damaged.
        """
        if not self.is_sketch:
            raise ValueError(f"{self.path} keeps whole weights, no sketch: load() reads them.")
        state = read_safetensors(self.path)
        if list(state) != [SKETCH]:
            raise ValueError(f"{self.path} is damaged: it should hold {SKETCH!r} alone. Remove it and its .json file.")
        return state[SKETCH]

    def load_optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Read the optimizer's state that was kept beside the weights.

        Returns
        -------
        dict of str to dict of str to Tensor
            By parameter name, then by the optimizer's own word: ``{"fc.weight": {"exp_avg": ..., "step": ...}}``.

        Raises
        ------
        ValueError
            If none was kept, or the file is damaged.
        """
        if not self.optimizer_path.is_file():
            raise ValueError(
                f"no optimizer state was kept beside {self.path}. Record with one: Recorder(..., optimizer=optimizer), "
                "or save_checkpoint(..., optimizer_state=...)."
            )
        state: dict[str, dict[str, Tensor]] = {}
        for key, tensor in read_safetensors(self.optimizer_path).items():
            name, _, word = key.rpartition("/")
            state.setdefault(name, {})[word] = tensor
        return state


@contextmanager
def open_state(checkpoint: Checkpoint) -> Iterator[StoredState]:
    """Open a checkpoint without reading it whole: ``.names``, ``.shape(name)``, ``.slice(name, start, stop)``.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of our own or of others. A sketch has the one entry ``"lltoolkit.sketch"``.

    Yields
    ------
    StoredState
        Valid until the block ends; each tied weight stands in it once.

    Raises
    ------
    FileNotFoundError
        If its file is gone.
    ValueError
        If its file is damaged.
    """
    with open_weights(checkpoint.path, prefix=checkpoint.prefix) as state:
        yield state


def save_checkpoint(
    folder: str | Path,
    model: nn.Module | Mapping[str, Tensor],
    *,
    step: int,
    epoch: int,
    dtype: StoredType = None,
    buffers: Iterable[str] | None = None,
    optimizer_state: Mapping[str, Mapping[str, Tensor]] | None = None,
    **metadata: object,
) -> Checkpoint:
    """Write a checkpoint of `model` into `folder`, whole or not at all.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there. A checkpoint of the same step is replaced.
    model : nn.Module or mapping of str to Tensor
        A model, or its state dict. A mapping of ``"lltoolkit.sketch"`` alone to a vector is a sketch.
    step, epoch : int
        Optimizer steps and whole epochs behind this state, from 0.
    dtype : {None, "float32", "bfloat16"}
        In which type floating-point tensors are stored; None keeps the model's own. bfloat16 has 8 bits of precision:
        half the space, and weights rounded by up to 0.4 %, which hides steps that are smaller.
    buffers : iterable of str, optional
        Which entries are buffers, not weights. A module tells by itself; a state dict doesn't.
    optimizer_state : mapping, optional
        Parameter name to the optimizer's tensors of it, kept in a file beside and in their own types.
    **metadata
        Anything JSON-able; single numbers in tensors and arrays become plain numbers.

    Returns
    -------
    Checkpoint
        What was written.

    Raises
    ------
    ValueError
        If the state holds something that is no tensor, or `dtype` is unknown.
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
    stored, aliases = without_aliases(state)
    stored = _in_type(stored, dtype)
    if buffers is None and isinstance(model, nn.Module):
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        buffers = [name for name in state if name not in weights]
    known: dict[str, object] = {"lltoolkit_version": lltoolkit.__version__}
    if buffers is not None:
        known["buffers"] = list(buffers)
    if SKETCH in state:
        known["sketch"] = state[SKETCH].numel()
    folder = Path(folder)
    checkpoint = Checkpoint(folder / f"step_{step:08d}.safetensors", step, epoch, prefix="")
    mark = checkpoint.path.with_suffix(".json")
    metadata = known | metadata
    text = json.dumps({"step": step, "epoch": epoch, **metadata}, indent=1, default=_plain)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)  # while the tensors are replaced, the pair is not complete
        checkpoint.optimizer_path.unlink(missing_ok=True)
        write_atomically(checkpoint.path, lambda temporary: save_file(stored, temporary, metadata=aliases))
        if optimizer_state is not None:
            moments = without_aliases(_flat(optimizer_state))[0]
            write_atomically(checkpoint.optimizer_path, lambda temporary: save_file(moments, temporary))
        write_atomically(mark, lambda temporary: temporary.write_text(text))
    except (SafetensorError, OSError) as error:  # a full disk is a SafetensorError, which is no OSError
        raise OSError(
            f"{checkpoint.path} can't be written ({error}). Earlier checkpoints are kept: make room or mend the "
            "folder's rights, then go on."
        ) from error
    checkpoint.metadata.update({key: json.loads(text)[key] for key in metadata})
    return checkpoint


def list_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """List the complete checkpoints of `folder` in the order of their steps; none gives an empty list.

    The folder may be one that is being written and thinned out: what is removed meanwhile is not listed.

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
    marks = (mark for mark in folder.glob("step_*.json") if mark.with_suffix(".safetensors").exists())
    found = (checkpoint for mark in marks if (checkpoint := _read_mark(mark)) is not None)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read_mark(mark: Path) -> Checkpoint | None:
    """Read the JSON of a checkpoint; None where it is gone."""
    try:
        content = json.loads(mark.read_text())
        step, epoch = int(content.pop("step")), int(content.pop("epoch"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{mark} is damaged ({type(error).__name__}: {error}). "
            "Remove it and its .safetensors file, or record again."
        ) from error
    return Checkpoint(mark.with_suffix(".safetensors"), step, epoch, content, prefix="")


def _in_type(state: dict[str, Tensor], dtype: StoredType) -> dict[str, Tensor]:
    if dtype is None:
        return state
    if not isinstance(dtype, torch.dtype):
        require_choice("dtype", dtype, [None, *TYPES])
        dtype = TYPES[dtype]
    elif not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} holds no weights: give None, 'float32' or 'bfloat16'.")
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _flat(optimizer_state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name each tensor ``"<parameter>/<word>"``; what an optimizer has not made yet (None) is left out."""
    return {
        f"{name}/{word}": torch.as_tensor(value)
        for name, words in optimizer_state.items()
        for word, value in words.items()
        if value is not None
    }


def _plain(value: Any) -> object:
    if getattr(value, "size", None) is not None and hasattr(value, "item"):
        return value.item()
    raise TypeError(
        f"a {type(value).__name__} ({value!r}) does not go into a checkpoint's JSON; give a number or a text."
    )
