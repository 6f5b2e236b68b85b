"""CUDA graphs: a network's kernels recorded once and replayed, so that small layers don't wait for their launches."""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lltoolkit.tensors.machine import is_out_of_memory

log = logging.getLogger(__name__)

_WARM_UP = 3  # passes before the recording, in which libraries choose kernels and take memory


class Replayed:
    """A function of a batch, replayed from a CUDA graph for every shape that it is given often.

    The function's weights must stay where they are in memory; they are read anew at each replay, so that writing other
    weights there is all that a new cell needs.

    Parameters
    ----------
    function : callable
        From inputs (a tensor, a tuple or a dict of them) to any nesting of tensors; it never waits for the GPU.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._graphs: dict[Any, tuple[Any, list[Tensor], Any]] = {}
        self._eager = False

    def __call__(self, inputs: Any) -> Any:
        """Run the function on a batch; the answer is the caller's to keep."""
        if self._eager:
            return self._function(inputs)
        leaves, structure = tree_flatten(inputs)
        key = (structure, tuple((leaf.shape, leaf.dtype, leaf.stride()) for leaf in leaves))
        if key not in self._graphs:
            try:
                self._graphs[key] = self._record(leaves, structure)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                # A model that asks the GPU for a number, for instance, can't be recorded; it runs as it always does.
                log.info("no CUDA graph of this model: %s", str(error).splitlines()[0])
                self._eager = True
                return self._function(inputs)
        graph, places, answer = self._graphs[key]
        for place, leaf in zip(places, leaves, strict=True):
            place.copy_(leaf)
        graph.replay()
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, answer)

    def _record(self, leaves: list[Tensor], structure: Any) -> tuple[Any, list[Tensor], Any]:
        places = [leaf.clone() for leaf in leaves]
        inputs = tree_unflatten(places, structure)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._function(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = self._function(inputs)
        return graph, places, answer
