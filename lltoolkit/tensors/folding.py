"""Folding: a network rewritten so that a convolution carries the batch norm, sum and ReLU that follow it.

In eval mode batch norm is an affine map per channel, so it goes into the weights before it:
``w' = w s`` and ``b' = (b - mean) s + shift`` with ``s = scale / sqrt(var + eps)``. On a CPU, oneDNN then computes
convolution and sum in one pass over memory; the ReLU follows in place, since oneDNN's own makes 0 of NaN.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lltoolkit.tensors.network import Network
from lltoolkit.tensors.rewriting import (
    CONVOLUTIONS,
    CannotFold,
    find_heads,
    find_layers,
    find_stem,
    replace_module,
    reshape_for_view,
    trace,
)

Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_FUSED = "_convolution_pointwise"
_SCALES = ("scale", "variance")  # folding is affine in all entries but these
_AGREES = 1e-4  # of the largest answer: a wrong fold is off by its whole size, a right one by some 1e-6


class FoldedLayer(nn.Module):
    """A layer with folded weights, and what follows it: ``relu(layer(x) + other)``, each part where it applies.

    Parameters
    ----------
    layer : nn.Module
        The layer, for its stride, padding, ...
    relu : bool
        Whether a ReLU follows.
    fused : bool
        Whether to compute layer and sum by one operator of oneDNN.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Layer, *, relu: bool, fused: bool) -> None:
        super().__init__()
        self.relu = relu
        self.fused = fused and type(layer) is nn.Conv2d and not isinstance(layer.padding, str)
        self._function = CONVOLUTIONS.get(type(layer), functional.linear)
        self._geometry: tuple[Any, ...] = ()
        if not isinstance(layer, nn.Linear):
            self._geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Apply the layer, add `other`, take the positive part."""
        if self.fused and not torch.is_autocast_enabled(x.device.type):
            return self._by_onednn(x, other)
        out = self.apply_layer(x, self.weight, self.bias)
        if other is not None:
            out = out + other
        return out.relu() if self.relu else out

    def apply_layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the layer alone, with any weights."""
        return self._function(x, weight, bias, *self._geometry)

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self._geometry
        place = (padding, stride, dilation, groups)
        operators = getattr(torch.ops.mkldnn, _FUSED)
        # oneDNN's own ReLU makes 0 of NaN: a cell that overflows would come out as a plausible number.
        if other is None:
            out = operators.default(x, self.weight, self.bias, *place, "none", [], "")
            return out.relu_() if self.relu else out
        out = operators.binary(x, other, self.weight, self.bias, *place, "add", 1.0, None, [], "")
        return out.relu_() if self.relu else out


class NarrowLinear(nn.Module):
    """A linear layer of a few outputs, computed the other way round: ``(W x^T)^T``, several times as fast on a CPU.

    Parameters
    ----------
    layer : nn.Linear
        Its weights are read where they are.
    """

    MOST = 32  # outputs; from there on the usual way fills the registers, too

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, n_in)`` to ``(B, n_out)``, whose memory is laid out output by output."""
        weight, bias = self.layer.weight, self.layer.bias
        return (weight @ x.T if bias is None else torch.addmm(bias[:, None], weight, x.T)).T


class Unit:
    """A layer and the batch norm that is folded into it.

    Attributes
    ----------
    entries : dict
        Role (``weight``, ``bias``, ``scale``, ``shift``, ``mean``, ``variance``) to the entry's name in a subspace and
        the network's live tensor.
    """

    def __init__(self, layer: Layer, norm: _BatchNorm | None, names: Mapping[int, str]) -> None:
        self.eps = 0.0 if norm is None else norm.eps
        tensors: dict[str, Tensor | None] = {"weight": layer.weight, "bias": layer.bias}
        if norm is not None:
            tensors |= {"scale": norm.weight, "shift": norm.bias}
            tensors |= {"mean": norm.running_mean, "variance": norm.running_var}
        self.entries = {
            role: (names.get(id(tensor), ""), tensor) for role, tensor in tensors.items() if tensor is not None
        }

    @property
    def shape(self) -> torch.Size:
        """Shape of the layer's weight."""
        return self.entries["weight"][1].shape

    def fold(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Fold in float64: weight and bias at `values`, and at the network's present values for all other entries."""
        at = {role: values.get(name, live).to(live.device).double() for role, (name, live) in self.entries.items()}
        weight = at["weight"]
        bias = at.get("bias", weight.new_zeros(len(weight)))
        if "variance" in at:
            factor = (at["variance"] + self.eps).rsqrt() * at.get("scale", 1.0)
            weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
            bias = (bias - at["mean"]) * factor + at.get("shift", 0.0)
        return weight, bias


class FoldedNetwork:
    """A network whose convolutions carry what follows them, beside the network that it was made of.

    Parameters
    ----------
    network : Network
        The objective's, at the weights to compare at; all that is not folded stays shared with it.
    inputs : Tensor, tuple or dict
        A few examples: to learn shapes from, and to compare the answers on.

    Attributes
    ----------
    fused : bool
        Whether oneDNN's fused convolutions run.
    convolves : bool
        Whether any convolution was folded.

    Raises
    ------
    CannotFold
        If the model can't be traced, has no layer to fold, or the folded network gives other answers.
    """

    def __init__(self, network: Network, inputs: Any) -> None:
        self._network = network
        self._graph_module, shapes = trace(network.model, inputs)
        self._units: list[Unit] = []
        self._layers: list[FoldedLayer] = []
        first_names = {id(twin): name for name, twins in network.views.items() for twin in twins}
        first_names |= {id(buffer): name for name, buffer in network.model.named_buffers()}
        on_cpu = network.device.type == "cpu" and network.flat.dtype == torch.float32
        # The operators are private to torch: they are used where they are there and give the right answer.
        self.fused = on_cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, _FUSED)
        for found in find_layers(self._graph_module, shapes):
            layer = FoldedLayer(found.layer, relu=found.relu, fused=self.fused)
            self._units.append(Unit(found.layer, found.norm, first_names))
            self._layers.append(layer)
            found.replace(self._graph_module, layer, name=f"folded_{len(self._layers)}")
        self.convolves = any(len(unit.shape) > 2 for unit in self._units)
        if not self._units:
            raise CannotFold("it has no convolution of torch.nn, and does not begin with a linear layer")
        if network.device.type == "cpu":
            for node in find_heads(self._graph_module, shapes, NarrowLinear.MOST):
                head: Any = self._graph_module.get_submodule(str(node.target))
                replace_module(self._graph_module, node, NarrowLinear(head))
        reshape_for_view(self._graph_module.graph)
        self._graph_module.recompile()
        self._stem, self._before, self._after = self._part_at_stem()
        self._flat = self._lay_out()
        self.write(self.fold())
        try:
            self._compare(inputs)
        except CannotFold:
            if not self.fused:
                raise
            self.fused = False
            for layer in self._layers:
                layer.fused = False
            self._compare(inputs)

    def __call__(self, inputs: Any) -> Any:
        """Run the folded network on a batch."""
        if isinstance(inputs, Tensor):
            return self._graph_module(_channels_last(inputs))
        if isinstance(inputs, dict):
            return self._graph_module(**inputs)
        return self._graph_module(*map(_channels_last, inputs))

    def fold(self, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """Fold in float64.

        Parameters
        ----------
        values : mapping, optional
            Weights and buffers by name; entries that are absent have the network's present values.

        Returns
        -------
        Tensor
            Shape ``(n_folded,)``, to be given to `write`.
        """
        parts = []
        for unit in self._units:
            weight, bias = unit.fold(values or {})
            parts += [weight.movedim(1, -1).flatten(), bias]  # channels last, as the views of `_lay_out`
        return torch.cat(parts)

    def write(self, folded: Tensor) -> None:
        """Set the folded weights and biases, rounded from float64 once."""
        self._flat.copy_(folded)

    def is_affine_in(self, moved: set[str]) -> bool:
        """Tell whether the folded weights are affine in the coordinates where only the entries `moved` move."""
        return not any(
            name in moved for unit in self._units for role, (name, _) in unit.entries.items() if role in _SCALES
        )

    @property
    def stem(self) -> FoldedLayer | None:
        """The layer that is applied to the inputs and whose outputs are all that the rest needs, if there is one."""
        return self._stem

    def stem_outputs(self, inputs: Tensor, folded: Tensor) -> Tensor:
        """Apply the stem, without its ReLU, with the weights that stand in `folded`, in float64."""
        if self._stem is None or self._before is None:
            raise CannotFold("its first layer is not alone in reading the inputs")
        place = next(place for place, layer in enumerate(self._layers) if layer is self._stem)
        start = sum(self._sizes[:place])
        weight, bias = self._views(self._units[place], folded[start : start + self._sizes[place]])
        return self._stem.apply_layer(self._before(_channels_last(inputs.double())), weight, bias)

    def after_stem(self, outputs: Tensor) -> Any:
        """Run the rest of the network on what the stem gives, its ReLU applied."""
        if self._after is None:
            raise CannotFold("its first layer is not alone in reading the inputs")
        return self._after(outputs)

    @property
    def folds_more_than_stem(self) -> bool:
        """Whether layers after the stem were folded, too."""
        return len(self._layers) > (self._stem is not None)

    def _part_at_stem(self) -> tuple[FoldedLayer | None, fx.GraphModule | None, fx.GraphModule | None]:
        """Part the graph into what comes before the stem, the stem, and what comes after it."""
        names = find_stem(self._graph_module, FoldedLayer)
        if not names:
            return None, None, None
        before, after = copy.deepcopy(self._graph_module.graph), copy.deepcopy(self._graph_module.graph)
        stem = {node.name: node for node in before.nodes}[names[-1]]
        for node in reversed([node for node in before.nodes if node.name not in names[:-1]]):
            before.erase_node(node)
        before.output({node.name: node for node in before.nodes}[names[-2]])
        chain = [{node.name: node for node in after.nodes}[name] for name in names]
        with after.inserting_before(chain[0]):
            chain[-1].replace_all_uses_with(after.placeholder("stem"))
        for node in reversed(chain):
            after.erase_node(node)
        layer = self._graph_module.get_submodule(str(stem.target))
        parts = fx.GraphModule(self._graph_module, before), fx.GraphModule(self._graph_module, after)
        return layer, *parts  # type: ignore[return-value]

    def _lay_out(self) -> Tensor:
        """Give every layer views of one flat tensor, weights with their channels last."""
        self._sizes = [math.prod(unit.shape) + unit.shape[0] for unit in self._units]
        flat = self._network.flat.new_empty(sum(self._sizes))
        for unit, layer, part in zip(self._units, self._layers, flat.split(self._sizes), strict=True):
            layer.weight, layer.bias = self._views(unit, part)
        return flat

    @staticmethod
    def _views(unit: Unit, part: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns, *kernel = unit.shape
        return part[:-rows].view(rows, *kernel, columns).movedim(-1, 1), part[-rows:]

    def _compare(self, inputs: Any) -> None:
        """Compare the answers with the network's own: tracing can't see all that Python does."""
        with torch.no_grad():
            expected = self._network(inputs)
            try:
                found = self(inputs)
            except Exception as error:  # whatever a rewritten graph stumbles over
                raise CannotFold(f"its folded form fails with {type(error).__name__}: {error}") from error
        if not agree(expected, found):
            raise CannotFold("its folded form gives other answers: its forward depends on what tracing can't see")


def _channels_last(leaf: Tensor) -> Tensor:
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf


def agree(expected: Any, found: Any) -> bool:
    """Tell whether two answers of a model are the same up to the rounding of another order of operations.

    Returns
    -------
    bool
        Every tensor within 1e-4 of its largest value: a wrong engine is off by all of it, a right one by some 1e-6.
        False where there is no tensor to compare.
    """
    pairs = [_tensors(expected), _tensors(found)]
    if not pairs[0] or len(pairs[0]) != len(pairs[1]):
        return False
    for a, b in zip(*pairs, strict=True):
        if a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0
        if not torch.allclose(a, b, rtol=0.0, atol=_AGREES * scale, equal_nan=True):
            return False
    return True


def _tensors(answer: Any) -> list[Tensor]:
    """Give the tensors of an answer: those of its fields, where it is an object of its own."""
    found = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
    return found or [leaf for leaf in tree_leaves(getattr(answer, "__dict__", None)) if isinstance(leaf, Tensor)]
