"""Examples in one file without a name, which the parent and all its workers map: the data are in memory once."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lltoolkit.tensors.examples import Examples

PAGE = 4096  # each tensor begins on a page of its own: as well aligned as torch's own memory


@dataclass(frozen=True)
class Leaf:
    """Where one tensor lies among the bytes, and how it is laid out there."""

    offset: int
    n_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What the bytes mean: plain data, to be sent to another process.

    Attributes
    ----------
    splits : dict
        Split name to ``(inputs, target, n_total)``, with a Leaf in the place of each tensor.
    n_bytes : int
        Length of the whole.
    """

    splits: dict[str, tuple[Any, Leaf | None, int]]
    n_bytes: int


def lay_out(examples: Mapping[str, Examples]) -> tuple[Layout, list[tuple[int, Tensor]]]:
    """Plan the bytes of some splits.

    Parameters
    ----------
    examples : mapping of str to Examples
        On any device.

    Returns
    -------
    layout : Layout
        The plan.
    pieces : list of (int, Tensor)
        Offsets, and the bytes that belong there: uint8, on the CPU, views where that is possible.
    """
    end = 0
    pieces: list[tuple[int, Tensor]] = []

    def place(tensor: Tensor) -> Leaf:
        nonlocal end
        tensor = tensor.detach().cpu()
        if _extent(tensor) != tensor.numel():  # an expanded tensor, or a slice with gaps
            tensor = tensor.contiguous()
        # Memory as it lies, whatever the strides: channels_last stays so, as it shows in the last bits of a result.
        data = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        leaf = Leaf(end, data.numel(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        pieces.append((end, data))
        end += -(-data.numel() // PAGE) * PAGE
        return leaf

    splits = {
        name: (_each(part.inputs, place), None if part.target is None else place(part.target), part.n_total)
        for name, part in examples.items()
    }
    return Layout(splits, max(end, 1)), pieces


def read(layout: Layout, memory: Any) -> dict[str, Examples]:
    """Give the examples that lie in some memory.

    Parameters
    ----------
    layout : Layout
        What `lay_out` planned.
    memory : writable buffer
        The bytes.

    Returns
    -------
    dict
        Split name to Examples: views of `memory`, which they keep alive.
    """
    whole = torch.frombuffer(memory, dtype=torch.uint8, count=layout.n_bytes)

    def find(leaf: Leaf) -> Tensor:
        data = whole[leaf.offset : leaf.offset + leaf.n_bytes].view(leaf.dtype)
        return data.as_strided(leaf.shape, leaf.stride)

    return {
        name: Examples(_each(inputs, find), None if target is None else find(target), n_total)
        for name, (inputs, target, n_total) in layout.splits.items()
    }


class Shared:
    """Examples in a file that has no name: it is gone with the last process that has it open, however that ends.

    Parameters
    ----------
    descriptor : int
        Of the open file; a worker inherits it from its parent. It is closed by `close`.
    layout : Layout
        What the file holds.
    """

    def __init__(self, descriptor: int, layout: Layout) -> None:
        self.descriptor = descriptor
        self.layout = layout

    def open(self) -> dict[str, Examples]:
        """Map the examples: every process sees the same pages.

        Returns
        -------
        dict
            Split name to Examples, on the CPU. They outlive `close`. A page that is written to becomes the
            process's own (copy on write), so that no model can change the data of another process.
        """
        return read(self.layout, mmap.mmap(self.descriptor, self.layout.n_bytes, access=mmap.ACCESS_COPY))

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def share(examples: Mapping[str, Examples]) -> Shared:
    """Write examples to a file without a name in the folder for temporary files.

    Parameters
    ----------
    examples : mapping of str to Examples
        On any device; layouts such as channels_last are kept.

    Returns
    -------
    Shared
        To be opened here and in every worker.

    Raises
    ------
    OSError
        If there is no room for them.
    """
    layout, pieces = lay_out(examples)
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.truncate(layout.n_bytes)
            for offset, data in pieces:
                _write(file.fileno(), data.numpy().data, offset)
            return Shared(os.dup(file.fileno()), layout)
    except OSError as error:
        reason = f"the examples ({layout.n_bytes / 1e6:.0f} MB) can't be written to {folder} for the worker processes"
        raise type(error)(
            error.errno, f"{reason} ({error.strerror}). Set TMPDIR to a folder with room, or use n_workers=1"
        ) from error


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)  # at most 2 GB at a time
        data, offset = data[written:], offset + written


def _extent(tensor: Tensor) -> int:
    """Count the numbers from the tensor's first to its last in memory."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _each(inputs: Any, function: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: function(leaf) for name, leaf in inputs.items()}
    return tuple(function(leaf) for leaf in inputs) if isinstance(inputs, tuple) else function(inputs)
