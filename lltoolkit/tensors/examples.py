"""The examples that an objective measures on: read once, in a fixed order, kept as tensors."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from lltoolkit.errors import require_whole
from lltoolkit.tensors.params import sha256
from lltoolkit.tensors.seeds import generator

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
READ_BATCH = 256  # examples collated at a time while a Dataset is read; shows in nothing


@dataclass(frozen=True)
class Batch:
    """Some examples together, from number `start` of their split on.

    `target` is None where the inputs are a dict that the loss reads itself.
    """

    inputs: Inputs
    target: Tensor | None
    start: int = 0

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(_leaves(self.inputs)[0])

    @property
    def answer(self) -> Any:
        """What the loss compares the output with: the target, or the whole batch dict."""
        return self.inputs if self.target is None else self.target


@dataclass(frozen=True)
class Examples:
    """The chosen examples of one split.

    Attributes
    ----------
    inputs : Tensor, tuple of Tensor or dict of Tensor
        First axis: the example. A tuple is passed as ``model(*inputs)``, a dict as ``model(**inputs)``.
    target : Tensor or None
        First axis: the example. None where `inputs` is a whole batch dict that the loss reads itself.
    n_total : int
        Size of the split that the examples were drawn from.
    """

    inputs: Inputs
    target: Tensor | None
    n_total: int

    def __len__(self) -> int:
        return len(_leaves(self.inputs)[0])

    def batches(self, size: int, smallest: int = 1) -> Iterator[Batch]:
        """Yield views of `size` examples, in order; a rest of fewer than `smallest` joins the last batch."""
        starts = list(range(0, len(self), size))
        if len(starts) > 1 and len(self) - starts[-1] < smallest:
            starts.pop()
        for start, stop in zip(starts, [*starts[1:], len(self)], strict=True):
            yield self.take(slice(start, stop))

    def take(self, part: slice) -> Batch:
        """Return the examples of a slice."""
        target = None if self.target is None else self.target[part]
        return Batch(_map(self.inputs, lambda leaf: leaf[part]), target, part.start)

    def pick(self, positions: Tensor) -> "Examples":
        """Copy the examples at `positions`, shape ``(m,)``, in that order."""

        def chosen(leaf: Tensor) -> Tensor:
            return leaf.index_select(0, positions.to(leaf.device))

        target = None if self.target is None else chosen(self.target)
        return Examples(_map(self.inputs, chosen), target, self.n_total)

    def shapes(self) -> str:
        """Describe the inputs of one example for an error message."""
        if isinstance(self.inputs, Tensor):
            return f"{tuple(self.inputs.shape)} {self.inputs.dtype}"
        leaves = self.inputs.items() if isinstance(self.inputs, dict) else enumerate(self.inputs)
        return ", ".join(f"{name}: {tuple(leaf.shape)} {leaf.dtype}" for name, leaf in leaves)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Examples":
        """Copy to `device`; floating-point inputs take `dtype`; targets keep theirs, as labels and tokens do."""

        def place(leaf: Tensor) -> Tensor:
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else leaf.dtype)

        target = None if self.target is None else self.target.to(device)
        return Examples(_map(self.inputs, place), target, self.n_total)

    def sha256(self) -> str:
        """Hash inputs and targets."""
        leaves = [*_leaves(self.inputs), *([] if self.target is None else [self.target])]
        return sha256({f"{place:04}": leaf for place, leaf in enumerate(leaves)})


def _map(inputs: Inputs, function: Any) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(leaf) for name, leaf in inputs.items()}
    return tuple(function(leaf) for leaf in inputs)


def _leaves(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def read_splits(data: Any, n_examples: int | Mapping[str, int] | None, seed: int) -> dict[str, Examples]:
    """Read data in any of the accepted forms.

    Parameters
    ----------
    data : mapping, tuple, Dataset or DataLoader
        Splits by name, or one split alone, which is then called ``"train"``. A split is
        ``(inputs, target)`` of tensors or arrays (inputs may be a tuple or a dict of them), one batch
        dict, a map-style Dataset or a DataLoader.
    n_examples : int, mapping or None
        At most so many examples of each split, drawn without replacement; None: all of them.
    seed : int
        Seed of that draw; each split has its own stream, so that splits don't disturb each other.

    Returns
    -------
    dict
        Split name to Examples, on the CPU; copies, never views of the caller's data.

    Raises
    ------
    ValueError
        For an empty split, lengths that differ, a bad `n_examples` or data of no accepted form.
    """
    splits = dict(data) if isinstance(data, Mapping) and not _is_batch(data) else {"train": data}
    if not splits:
        raise ValueError('data is an empty mapping. Give at least one split, e.g. {"train": (x, y), "test": (x, y)}.')
    if isinstance(n_examples, Mapping) and (unknown := set(n_examples) - set(splits)):
        raise ValueError(f"n_examples names {sorted(unknown)}, the data have the splits {sorted(splits)}.")
    read = {}
    for name, split in splits.items():
        wanted = n_examples.get(name) if isinstance(n_examples, Mapping) else n_examples
        if wanted is not None:
            wanted = require_whole("n_examples", wanted, least=1)
        read[str(name)] = _read_split(str(name), split, wanted, seed)
    return read


def sha256_of_splits(splits: Mapping[str, Examples]) -> str:
    """Hash the examples of all splits, names included."""
    hashes = {
        name: torch.frombuffer(bytearray.fromhex(part.sha256()), dtype=torch.uint8) for name, part in splits.items()
    }
    return sha256(hashes)


def _is_batch(data: Any) -> bool:
    """Tell a dict of tensors (one batch) from a dict of splits."""
    if not isinstance(data, Mapping) or not data:
        return False
    return all(isinstance(value, Tensor | np.ndarray) for value in data.values())


def _read_split(name: str, split: Any, wanted: int | None, seed: int) -> Examples:
    if isinstance(split, DataLoader):
        return _read_loader(name, split, wanted, seed)
    if isinstance(split, tuple | list) and len(split) == 2:
        inputs, target = _as_inputs(name, split[0]), _as_tensor(name, split[1])
    elif _is_batch(split):
        inputs, target = _as_inputs(name, split), None
    elif hasattr(split, "__getitem__") and hasattr(split, "__len__") and not isinstance(split, Mapping | str):
        return _read_dataset(name, split, default_collate, wanted, seed)
    else:
        raise ValueError(
            f"split {name!r} is a {type(split).__name__}. Give (inputs, target), a map-style Dataset, a DataLoader, "
            "or one batch as a dict of tensors."
        )
    _require_examples(name, inputs, target)
    total = len(_leaves(inputs)[0])
    chosen = choose(total, wanted, seed, name)
    return Examples(_map(inputs, lambda leaf: leaf[chosen]), None if target is None else target[chosen], total)


def choose(total: int, wanted: int | None, seed: int, name: str) -> Tensor:
    """Draw `wanted` of `total` positions without replacement; ascending, the same for the same `seed` and `name`."""
    if wanted is None or wanted >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=generator("examples", seed, name))[:wanted].sort().values


def _read_loader(name: str, loader: DataLoader, wanted: int | None, seed: int) -> Examples:
    dataset: Any = loader.dataset
    # The loader's order may be shuffled and its last batch dropped: read what it chooses from, in order.
    if not isinstance(dataset, IterableDataset) and type(loader.batch_sampler) is BatchSampler:
        sampler: Any = loader.batch_sampler.sampler  # loader.sampler is another one where batch_sampler= was given
        if isinstance(sampler, SubsetRandomSampler):
            return _read_dataset(name, Subset(dataset, sorted(sampler.indices)), loader.collate_fn, wanted, seed)
        shuffled = isinstance(sampler, RandomSampler) and not sampler.replacement
        if (shuffled or isinstance(sampler, SequentialSampler)) and len(sampler.data_source) == len(dataset):
            return _read_dataset(name, dataset, loader.collate_fn, wanted, seed)
    with _own_generator(seed):
        examples = _gather(name, list(loader))
    chosen = choose(len(examples), wanted, seed, name)
    target = None if examples.target is None else examples.target[chosen]
    return Examples(_map(examples.inputs, lambda leaf: leaf[chosen]), target, examples.n_total)


def _read_dataset(name: str, dataset: Any, collate: Any, wanted: int | None, seed: int) -> Examples:
    total = len(dataset)
    if total == 0:
        raise ValueError(f"split {name!r} is empty: it has 0 examples. Leave it out, or give it data.")
    chosen = choose(total, wanted, seed, name).tolist()
    first = chosen[: min(4, len(chosen))]
    # One process: workers would have to be started for a single pass, and need a picklable Dataset.
    with _own_generator(seed):
        parts = [chosen[start : start + READ_BATCH] for start in range(0, len(chosen), READ_BATCH)]
        examples = _gather(name, [_fetch(dataset, part, collate) for part in parts], n_total=total)
        again = _gather(name, [_fetch(dataset, first, collate)])
    if (
        Examples(_map(examples.inputs, lambda leaf: leaf[: len(first)]), None, 0).sha256()
        != Examples(again.inputs, None, 0).sha256()
    ):
        warnings.warn(
            f"split {name!r}: two reads of its first examples differ, so the data set augments at random. One fixed "
            "draw is used at every cell; for the loss of the data themselves, take the augmentation out.",
            stacklevel=5,
        )
    return examples


def _fetch(dataset: Any, positions: list[int], collate: Any) -> Any:
    return collate(Subset(dataset, positions).__getitems__(list(range(len(positions)))))


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Give what draws while data are read its own stream of torch's generator; the caller's is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _gather(name: str, batches: list[Any], n_total: int | None = None) -> Examples:
    parts = [_read_batch(name, batch) for batch in batches]
    if not parts:
        raise ValueError(f"split {name!r} is empty: its DataLoader yields no batch. Leave it out, or give it data.")
    first_inputs, first_target = parts[0]
    if isinstance(first_inputs, Tensor):
        inputs: Inputs = _join(name, [inputs for inputs, _ in parts])
    elif isinstance(first_inputs, dict):
        inputs = {key: _join(name, [inputs[key] for inputs, _ in parts]) for key in first_inputs}
    else:
        inputs = tuple(_join(name, [inputs[place] for inputs, _ in parts]) for place in range(len(first_inputs)))
    target = None if first_target is None else _join(name, [target for _, target in parts])
    _require_examples(name, inputs, target)
    total = len(_leaves(inputs)[0])
    return Examples(inputs, target, total if n_total is None else n_total)


def _join(name: str, leaves: list[Tensor]) -> Tensor:
    try:
        return torch.cat(leaves)
    except RuntimeError as error:
        shapes = ", ".join(sorted({str(tuple(leaf.shape)) for leaf in leaves})[:4])
        raise ValueError(
            f"split {name!r}: its batches have different shapes ({shapes}); only their first axis may differ. Pad all "
            "examples to one length, in the Dataset or by collate_fn."
        ) from error


def _read_batch(name: str, batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        return _as_inputs(name, batch), None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return _as_inputs(name, batch[0]), _as_tensor(name, batch[1])
    raise ValueError(
        f"split {name!r} yields a {type(batch).__name__} for a batch; (inputs, target) or a dict of tensors is "
        "wanted. Give the loader a collate_fn that makes one."
    )


def _as_inputs(name: str, value: Any) -> Inputs:
    if isinstance(value, Mapping):
        return {str(key): _as_tensor(name, leaf) for key, leaf in value.items()}
    if isinstance(value, tuple | list) and value and all(isinstance(leaf, Tensor | np.ndarray) for leaf in value):
        return tuple(_as_tensor(name, leaf) for leaf in value)
    return _as_tensor(name, value)


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        # torch takes no negative strides and no foreign byte order, and warns of read-only memory.
        value = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"split {name!r} holds a {type(value).__name__} that is no tensor or array of numbers: {error}"
        ) from error
    if tensor.ndim == 0:
        raise ValueError(f"split {name!r} holds a single number; tensors with one example per row are wanted.")
    return tensor.detach().cpu()


def _require_examples(name: str, inputs: Inputs, target: Tensor | None) -> None:
    lengths = {len(leaf) for leaf in [*_leaves(inputs), *([] if target is None else [target])]}
    if len(lengths) > 1:
        raise ValueError(f"split {name!r}: inputs and target have {sorted(lengths)} examples; the numbers must agree.")
    if lengths == {0}:
        raise ValueError(f"split {name!r} is empty: it has 0 examples. Leave it out, or give it data.")
