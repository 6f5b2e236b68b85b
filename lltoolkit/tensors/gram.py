"""Inner products between checkpoints, and their linear combinations, with few of them in memory at a time.

A path of n checkpoints spans at most n - 1 dimensions, whatever the number of weights: distances, angles and principal
components all follow from the n x n inner products of the displacements from one point.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lltoolkit.errors import require_choice
from lltoolkit.tensors.checkpoints import SKETCH, Checkpoint, open_state
from lltoolkit.tensors.params import Params, weights_of
from lltoolkit.tensors.sketch import sketch
from lltoolkit.tensors.weight_files import StoredState

BUFFER_ENDINGS = ("running_mean", "running_var", "num_batches_tracked")
BUDGET = 64_000_000  # bytes
BUDGET_TORCH = 256_000_000  # bytes; each opening of a file of torch unpickles it, 20 times as slow as safetensors

log = logging.getLogger(__name__)


def parameter_names(checkpoints: Sequence[Checkpoint], model: Any = None) -> tuple[str, ...]:
    """Say which entries of checkpoints are weights that move: floating-point parameters, each tied weight once.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        Of one model; the first that keeps weights is looked at.
    model : nn.Module, Objective or Run, optional
        What tells parameters from buffers. Otherwise the checkpoint's own note does; without one, entries that end in
        ``running_mean``, ``running_var`` or ``num_batches_tracked`` count as buffers.

    Returns
    -------
    tuple of str
        In the model's order, else the file's; ``("lltoolkit.sketch",)`` where only sketches were kept.

    Raises
    ------
    ValueError
        If there are no checkpoints, none of the entries is a weight, or a parameter of the model is not among them.
    """
    if not checkpoints:
        raise ValueError("there are no checkpoints.")
    first = next((checkpoint for checkpoint in checkpoints if not checkpoint.is_sketch), None)
    if first is None:
        return (SKETCH,)
    stored = _shapes(first, getattr(model, "config", None))
    wanted = list(weights_of(model)) if isinstance(model, nn.Module) else list(getattr(model, "theta", stored))
    with open_state(first) as state:
        missing = [name for name in wanted if name not in state]  # a tied weight may go by any of its names
    if missing:
        raise ValueError(
            f"{first.path} lacks {missing[0]}, a parameter of the model; it has {', '.join(list(stored)[:5])}, ... "
            "Give the model that was trained, or open_checkpoints(..., prefix=...)."
        )
    if not wanted:
        raise ValueError(f"{first.path} holds no floating-point weights.")
    return tuple(wanted)


def readable(checkpoints: Iterable[Checkpoint], *, damaged: Literal["stop", "skip"] = "stop") -> list[Checkpoint]:
    """Check that checkpoints can be opened and are of one model, before anything is computed from them.

    Parameters
    ----------
    checkpoints : iterable of Checkpoint
        Their files are opened, not read.
    damaged : {"stop", "skip"}
        What a missing or damaged file does: "stop" is an error; "skip" leaves it out with a warning.

    Returns
    -------
    list of Checkpoint
        Those that can be used, in the same order.

    Raises
    ------
    ValueError
        If a file is missing or damaged, or two checkpoints differ in the names or shapes of their weights: then naming
        the first difference.
    """
    require_choice("damaged", damaged, ("stop", "skip"))
    kept: list[Checkpoint] = []
    first: dict[bool, tuple[Checkpoint, dict[str, tuple[int, ...]]]] = {}  # of sketches and of whole weights
    for checkpoint in checkpoints:
        try:
            shapes = _shapes(checkpoint)
        except (FileNotFoundError, ValueError) as error:
            if damaged == "stop":
                raise ValueError(f"{error} Or leave it out: damaged='skip'.") from error
            log.warning("step %d is left out: %s", checkpoint.step, error)
            continue
        _require_same(checkpoint, shapes, *first.setdefault(checkpoint.is_sketch, (checkpoint, shapes)))
        kept.append(checkpoint)
    return kept


def finite(checkpoints: Iterable[Checkpoint], names: Sequence[str]) -> list[Checkpoint]:
    """Leave out the checkpoints that hold NaN or infinite weights or can't be read, each with a warning.

    Parameters
    ----------
    checkpoints : iterable of Checkpoint
        With whole weights, of one model; all are read, one at a time.
    names : sequence of str
        See `parameter_names`.

    Returns
    -------
    list of Checkpoint
        The others, in the same order.
    """
    kept = []
    for checkpoint in checkpoints:
        try:
            load_parameters(checkpoint, names)
        except (FileNotFoundError, ValueError) as error:
            log.warning("step %d is left out: %s", checkpoint.step, error)
            continue
        kept.append(checkpoint)
    return kept


def load_parameters(checkpoint: Checkpoint, names: Iterable[str]) -> Params:
    """Read some entries of a checkpoint as weights to compute with.

    Parameters
    ----------
    checkpoint : Checkpoint
        With whole weights.
    names : iterable of str
        See `parameter_names`.

    Returns
    -------
    Params
        Fresh tensors on the CPU; half precision becomes float32.

    Raises
    ------
    ValueError
        If the file is damaged, lacks an entry, or holds NaN or infinite weights.
    """
    loaded: Params = {}
    with open_state(checkpoint) as state:
        for name in names:
            _require_entry(state, name, checkpoint)
            tensor = state.tensor(name)
            dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
            loaded[name] = tensor.to(dtype=dtype, copy=True).contiguous()
            if not loaded[name].isfinite().all():
                raise ValueError(_not_finite(checkpoint, name))
    return loaded


def gram(
    checkpoints: Sequence[Checkpoint],
    *,
    names: Sequence[str] | None = None,
    reference: int | Params = 0,
    budget_bytes: int | None = None,
) -> Tensor:
    """Compute the inner products of the displacements of checkpoints from one point.

    All files are read slice by slice, so that the slices of all of them fit into the budget.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        Of one model. Where one of them is a sketch, the others are sketched too, and the products are estimates.
    names : sequence of str, optional
        Which entries count; by default `parameter_names`.
    reference : int or Params
        The point: the place of a checkpoint in the sequence, or weights. Nearby, for no precision to be lost.
    budget_bytes : int, optional
        Memory for the slices; by default 64 MB (256 MB for files of torch, which are slow to open), or two checkpoints
        in float64 where that is more.

    Returns
    -------
    Tensor
        Shape ``(n, n)``, float64, symmetric. Displacements are formed and summed in float64.

    Raises
    ------
    ValueError
        If a file is missing or damaged, is of another model, or holds NaN or infinite weights: naming it.
    """
    checkpoints = list(checkpoints)
    if any(checkpoint.is_sketch for checkpoint in checkpoints):
        rows = _sketches(checkpoints, names, reference)
        return rows @ rows.T
    names = parameter_names(checkpoints) if names is None else names
    point = load_parameters(checkpoints[reference], names) if isinstance(reference, int) else reference
    matrix = torch.zeros(len(checkpoints), len(checkpoints), dtype=torch.float64)
    for block in _blocks(checkpoints, {name: point[name] for name in names}, budget_bytes):
        matrix.addmm_(block, block.T)
    return (matrix + matrix.T) / 2


def combine(
    checkpoints: Sequence[Checkpoint],
    weights: Tensor,
    *,
    names: Sequence[str] | None = None,
    reference: int | Params = 0,
) -> list[Params]:
    """Sum displacements of checkpoints from one point with weights, one file in memory at a time.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        Of one model, with whole weights.
    weights : Tensor
        Shape ``(k, n)``: a row for each sum, a column for each checkpoint.
    names, reference
        As in `gram`.

    Returns
    -------
    list of Params
        `k` sums in float64, added in the order of the checkpoints: the number of threads does not show.

    Raises
    ------
    ValueError
        If a file is damaged, of another model or keeps only a sketch: naming it.
    """
    names = parameter_names(checkpoints) if names is None else names
    point = load_parameters(checkpoints[reference], names) if isinstance(reference, int) else reference
    sums = [{name: torch.zeros(point[name].shape, dtype=torch.float64) for name in names} for _ in weights]
    for checkpoint, column in zip(checkpoints, weights.double().T, strict=True):
        if not column.any():
            continue
        with _opened(checkpoint) as state:
            for name in names:
                _require_entry(state, name, checkpoint, tuple(point[name].shape))
                moved = state.tensor(name).double() - point[name].double()
                for total, weight in zip(sums, column.tolist(), strict=True):
                    total[name].add_(moved, alpha=weight)
    return sums


def _blocks(checkpoints: Sequence[Checkpoint], point: Params, budget: int | None) -> Iterator[Tensor]:
    """Yield the displacements ``(n, width)`` in float64, slice by slice, in one buffer."""
    size = sum(tensor.numel() for tensor in point.values())
    if budget is None:
        mapped = all(checkpoint.path.suffix == ".safetensors" for checkpoint in checkpoints)
        budget = max(BUDGET if mapped else BUDGET_TORCH, 2 * 8 * size)
    width = max(1, min(size, budget // (8 * len(checkpoints))))
    buffer = torch.empty(len(checkpoints), width, dtype=torch.float64)
    whole = torch.cat([tensor.reshape(-1).double() for tensor in point.values()])
    passed = 0
    for pieces in _cut({name: tensor.numel() for name, tensor in point.items()}, width):
        for row, checkpoint in zip(buffer, checkpoints, strict=True):
            # Closed at once: pages that were read stay in memory as long as their file is open.
            with _opened(checkpoint) as state:
                for name, start, stop, place in pieces:
                    _require_entry(state, name, checkpoint, tuple(point[name].shape))
                    row[place : place + stop - start] = state.slice(name, start, stop)
        filled = pieces[-1][3] + pieces[-1][2] - pieces[-1][1]
        block = buffer[:, :filled].sub_(whole[passed : passed + filled])
        passed += filled
        if not (sums := block.sum(dim=1)).isfinite().all():
            where = int((~sums.isfinite()).int().argmax())
            column = int((~block[where].isfinite()).int().argmax())
            name = [name for name, _, _, place in pieces if place <= column][-1]
            raise ValueError(_not_finite(checkpoints[where], name))
        yield block


def _cut(sizes: Mapping[str, int], width: int) -> Iterator[list[tuple[str, int, int, int]]]:
    """Cut flattened tensors into runs of `width` entries: (name, start, stop, place in the run)."""
    pieces: list[tuple[str, int, int, int]] = []
    filled = 0
    for name, size in sizes.items():
        start = 0
        while start < size:
            stop = min(size, start + width - filled)
            pieces.append((name, start, stop, filled))
            filled += stop - start
            start = stop
            if filled == width:
                yield pieces
                pieces, filled = [], 0
    if pieces:
        yield pieces


def _sketches(checkpoints: Sequence[Checkpoint], names: Sequence[str] | None, reference: int | Params) -> Tensor:
    sizes = {checkpoint.metadata["sketch"]: checkpoint for checkpoint in checkpoints if checkpoint.is_sketch}
    if len(sizes) > 1:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise ValueError(f"{one.path} keeps a sketch of {a} numbers, {other.path} one of {b}: they can't be compared.")
    (size,) = sizes
    whole = [checkpoint for checkpoint in checkpoints if not checkpoint.is_sketch]
    if whole and (names is None or list(names) == [SKETCH]):
        names = parameter_names(whole)
    rows = [
        checkpoint.sketch() if checkpoint.is_sketch else sketch(load_parameters(checkpoint, names or ()), size)
        for checkpoint in checkpoints
    ]
    if bad := [checkpoint for checkpoint, row in zip(checkpoints, rows, strict=True) if not row.isfinite().all()]:
        raise ValueError(_not_finite(bad[0], SKETCH))
    point = rows[reference] if isinstance(reference, int) else sketch(reference, size)
    return torch.stack(rows).double() - point.double()


def _shapes(checkpoint: Checkpoint, config: Any = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the entries that are weights, not buffers."""
    notes = (checkpoint.metadata, config if isinstance(config, Mapping) else {})
    note = next((note["buffers"] for note in notes if "buffers" in note), None)
    with open_state(checkpoint) as state:
        return {
            name: state.shape(name)
            for name in state.names
            if state.is_floating_point(name)
            and not (name.endswith(BUFFER_ENDINGS) if note is None else state.key(name) in note)
        }


def _require_same(
    checkpoint: Checkpoint, shapes: Mapping[str, object], first: Checkpoint, expected: Mapping[str, object]
) -> None:
    for name in (*expected, *shapes):
        if shapes.get(name) != expected.get(name):
            has = f"{name} {shapes[name]}" if name in shapes else f"no {name}"
            had = f"{name} {expected[name]}" if name in expected else f"no {name}"
            raise ValueError(
                f"{checkpoint.path} is of another model than {first.path}: it has {has}, the other {had}. Give "
                "checkpoints of one model; open_checkpoints(folder, pattern) chooses among files."
            )


def _opened(checkpoint: Checkpoint) -> Any:
    if checkpoint.is_sketch:
        checkpoint.load()  # which says what a sketch is good for
    return open_state(checkpoint)


def _require_entry(state: StoredState, name: str, checkpoint: Checkpoint, shape: tuple[int, ...] | None = None) -> None:
    if name not in state:
        raise ValueError(f"{checkpoint.path} has no {name}. Is it of another model?")
    if shape is not None and (found := state.shape(name)) != shape:
        raise ValueError(f"{checkpoint.path} has {name} {found} instead of {shape}: it is of another model.")


def _not_finite(checkpoint: Checkpoint, name: str) -> str:
    return (
        f"{checkpoint.path} has NaN or infinite weights in {name}: the training diverged before step {checkpoint.step}."
    )
