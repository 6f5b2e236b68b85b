"""The stem: what a network's first layer makes of the examples, kept for all of them.

The first layer reads the same examples at every cell, so its outputs are affine in the coordinates, as its weights are:
``out(alpha, beta) = out_0 + alpha out_1 + beta out_2``. Two passes over memory take the place of the layer. That pays
where the outputs of all examples stay in the cache, and in no larger network, where the layer is a small part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lltoolkit.tensors.examples import Batch, Examples
from lltoolkit.tensors.folding import FoldedNetwork

PIECE = 256  # examples at a time while the outputs are computed, in float64
LARGEST = 16 * 2**20  # bytes; of a cache that several cores share, so that what is kept for all examples stays in it


class Stem:
    """The outputs of a folded network's stem at every cell.

    Parameters
    ----------
    folded : FoldedNetwork
        It has a stem, see `fits`.
    vectors : sequence of Tensor
        The folded origin and directions, each ``(n_folded,)``, float64.
    examples : mapping of str to Examples
        By split.
    """

    def __init__(self, folded: FoldedNetwork, vectors: Sequence[Tensor], examples: Mapping[str, Examples]) -> None:
        self._folded = folded
        self._relu = folded.stem is not None and folded.stem.relu

        def outputs_of(part: Examples, vector: Tensor) -> Tensor:
            pieces = [batch.inputs for batch in part.batches(PIECE)]
            return torch.cat([folded.stem_outputs(piece, vector).to(piece.dtype) for piece in pieces])  # type: ignore

        self._outputs = {split: [outputs_of(part, vector) for vector in vectors] for split, part in examples.items()}
        # Memory of its own, written anew at every cell: fetching fresh pages would cost more than the arithmetic.
        self._here = {split: torch.empty_like(outputs[0]) for split, outputs in self._outputs.items()}
        self._point: Sequence[float] = ()

    @staticmethod
    def fits(folded: FoldedNetwork, n_vectors: int, examples: Mapping[str, Examples]) -> bool:
        """Tell whether there is a stem, and room for what it makes of all examples."""
        first = next(iter(examples.values()))
        if folded.stem is None or not isinstance(first.inputs, Tensor) or not first.inputs.is_floating_point():
            return False
        one, two = (folded.stem_outputs(first.inputs[:k], folded.fold()) for k in (1, 2))
        if (len(one), len(two)) != (1, min(2, len(first))):  # an axis of the input went into the batch
            return False
        n_examples = sum(map(len, examples.values()))
        return one.numel() * first.inputs.element_size() * n_examples * n_vectors <= LARGEST

    def move(self, point: Sequence[float]) -> None:
        """Go to a cell, given by its coordinates."""
        self._point = point

    def run(self, batch: Batch, split: str) -> Any:
        """Run the network on a batch of a split's own examples, from the stem's outputs on."""
        part = slice(batch.start, batch.start + batch.size)
        here = self._here[split][part]
        so_far, *steps = (outputs[part] for outputs in self._outputs[split])
        for step, coordinate in zip(steps, self._point, strict=True):
            so_far = torch.add(so_far, step, alpha=float(coordinate), out=here)
        if self._relu:
            here.relu_()
        return self._folded.after_stem(here)
