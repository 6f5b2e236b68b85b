"""Folding: a network rewritten so that a convolution carries the batch norm, sum and ReLU that follow it.

In eval mode batch norm is an affine map per channel, so it goes into the weights before it:
``w' = w s`` and ``b' = (b - mean) s + shift`` with ``s = scale / sqrt(var + eps)``. On a CPU, oneDNN then computes
convolution, sum and ReLU in one pass over memory.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lltoolkit.tensors.network import Network

Shapes: TypeAlias = dict[fx.Node, torch.Size]
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_FUNCTIONS: dict[type, Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RELUS = (torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUSED = "_convolution_pointwise"
_SCALES = ("scale", "variance")  # folding is affine in all entries but these
_AGREES = 1e-4  # of the largest answer: a wrong fold is off by its whole size, a right one by some 1e-6


class CannotFold(ValueError):  # noqa: N818 - a reason, not a fault
    """The folded engine can't take this model; the text says why."""


class FoldedLayer(nn.Module):
    """A layer with folded weights, and what follows it: ``relu(layer(x) + other)``, each part where it applies.

    Parameters
    ----------
    layer : nn.Module
        The layer, for its stride, padding, ...
    relu : bool
        Whether a ReLU follows.
    fused : bool
        Whether to compute it all by one operator of oneDNN.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Layer, *, relu: bool, fused: bool) -> None:
        super().__init__()
        self._relu = relu
        self.fused = fused and type(layer) is nn.Conv2d and not isinstance(layer.padding, str)
        self._function = _FUNCTIONS.get(type(layer), functional.linear)
        self._geometry: tuple[Any, ...] = ()
        if not isinstance(layer, nn.Linear):
            self._geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Apply the layer, add `other`, take the positive part."""
        if self.fused and not torch.is_autocast_enabled(x.device.type):
            return self._by_onednn(x, other)
        out = self._function(x, self.weight, self.bias, *self._geometry)
        if other is not None:
            out = out + other
        return out.relu() if self._relu else out

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self._geometry
        place = (padding, stride, dilation, groups)
        operators = getattr(torch.ops.mkldnn, _FUSED)
        if other is None:
            return operators.default(x, self.weight, self.bias, *place, "relu" if self._relu else "none", [], "")
        relu = "relu" if self._relu else None
        return operators.binary(x, other, self.weight, self.bias, *place, "add", 1.0, relu, [], "")


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

    Raises
    ------
    CannotFold
        If the model can't be traced, has no convolution, or the folded network gives other answers.
    """

    def __init__(self, network: Network, inputs: Any) -> None:
        self._network = network
        self._graph_module, shapes = _trace(network.model, inputs)
        self._units: list[Unit] = []
        self._layers: list[FoldedLayer] = []
        first_names = {id(twin): name for name, twins in network.views.items() for twin in twins}
        first_names |= {id(buffer): name for name, buffer in network.model.named_buffers()}
        on_cpu = network.device.type == "cpu" and network.flat.dtype == torch.float32
        # The operators are private to torch: they are used where they are there and give the right answer.
        self.fused = on_cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, _FUSED)
        for found in _find(self._graph_module, shapes):
            layer = FoldedLayer(found.layer, relu=found.relu, fused=self.fused)
            self._units.append(Unit(found.layer, found.norm, first_names))
            self._layers.append(layer)
            found.replace(self._graph_module, layer, name=f"folded_{len(self._layers)}")
        if not any(len(unit.shape) > 2 for unit in self._units):
            raise CannotFold("it has no convolution of torch.nn")
        _reshape_for_view(self._graph_module.graph)
        self._graph_module.recompile()
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

    def _lay_out(self) -> Tensor:
        """Give every layer views of one flat tensor, weights with their channels last."""
        sizes = [math.prod(unit.shape) + unit.shape[0] for unit in self._units]
        flat = self._network.flat.new_empty(sum(sizes))
        for unit, layer, part in zip(self._units, self._layers, flat.split(sizes), strict=True):
            rows, columns, *kernel = unit.shape
            weight, layer.bias = part[:-rows], part[-rows:]
            layer.weight = weight.view(rows, *kernel, columns).movedim(-1, 1)
        return flat

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


class _Found:
    """A layer in the graph with the batch norm, sum and ReLU that follow it, as far as there are any."""

    def __init__(self, graph_module: fx.GraphModule, node: fx.Node, shapes: Shapes, uses: Counter) -> None:
        self.layer: Any = graph_module.get_submodule(str(node.target))
        self.norm: Any = None
        self.other: fx.Node | None = None
        self.relu = False
        self._chain = [node]
        follower = _only_user(node)
        if follower is not None and _is_norm(graph_module, follower, uses) and self._by_channel(shapes):
            self.norm = graph_module.get_submodule(str(follower.target))
            follower = self._take(follower)
        if follower is not None and isinstance(self.layer, nn.Conv2d) and _is_sum(follower):
            other = next((part for part in follower.all_input_nodes if part is not self._chain[-1]), None)
            if other is not None and shapes.get(other) == shapes.get(self._chain[-1]):
                self.other = other
                follower = self._take(follower)
        if follower is not None and _is_relu(graph_module, follower):
            self.relu = True
            self._take(follower)

    def _take(self, node: fx.Node) -> fx.Node | None:
        self._chain.append(node)
        return _only_user(node)

    def _by_channel(self, shapes: Shapes) -> bool:
        """Whether batch norm sees the layer's outputs as its channels: of a linear layer only without further axes."""
        return not isinstance(self.layer, nn.Linear) or len(shapes.get(self._chain[0], ())) == 2

    def replace(self, graph_module: fx.GraphModule, layer: FoldedLayer, name: str) -> None:
        """Put `layer` in the place of all that it carries, where the last of it stood."""
        graph = graph_module.graph
        graph_module.add_submodule(name, layer)
        arguments = (self._chain[0].args[0], *([] if self.other is None else [self.other]))
        with graph.inserting_after(self._chain[-1]):
            new = graph.call_module(name, arguments)
        self._chain[-1].replace_all_uses_with(new)
        for node in reversed(self._chain):
            graph.erase_node(node)


def _find(graph_module: fx.GraphModule, shapes: Shapes) -> Iterator[_Found]:
    uses = Counter(node.target for node in graph_module.graph.nodes if node.op == "call_module")
    for node in list(graph_module.graph.nodes):
        if node.op != "call_module" or uses[node.target] > 1 or len(node.args) != 1 or node.kwargs:
            continue
        layer = graph_module.get_submodule(node.target)
        convolves = type(layer) in _FUNCTIONS and layer.padding_mode == "zeros"
        if convolves or type(layer) is nn.Linear:
            found = _Found(graph_module, node, shapes, uses)
            if convolves or found.norm is not None:
                yield found


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_norm(graph_module: fx.GraphModule, node: fx.Node, uses: Counter) -> bool:
    if node.op != "call_module" or uses[node.target] > 1:
        return False
    module = graph_module.get_submodule(str(node.target))
    return type(module) in _NORMS and module.running_mean is not None


def _is_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))) is nn.ReLU
    return node.target in _RELUS


def _is_sum(node: fx.Node) -> bool:
    plain = len(node.args) == 2 and all(isinstance(part, fx.Node) for part in node.args) and not node.kwargs
    return node.op in ("call_function", "call_method") and node.target in _SUMS and plain


def _trace(model: nn.Module, inputs: Any) -> tuple[fx.GraphModule, Shapes]:
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        raise CannotFold("it has forward hooks, which want every layer's own output")
    try:
        graph_module = fx.GraphModule(model, fx.Tracer().trace(model))
        return graph_module, _record_shapes(graph_module, inputs)
    except Exception as error:  # a forward that asks its data what to do, in whatever way
        raise CannotFold(f"its forward can't be traced by torch.fx ({type(error).__name__}: {error})") from error


def _record_shapes(graph_module: fx.GraphModule, inputs: Any) -> Shapes:
    """Run the graph once and note the shape of what each node gives."""
    shapes: Shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = value.shape
            return value

    names = [node.target for node in graph_module.graph.nodes if node.op == "placeholder"]
    arguments = [inputs] if isinstance(inputs, Tensor) else inputs
    if isinstance(inputs, dict):
        arguments = [inputs[name] for name in names if name in inputs]
    with torch.no_grad():
        Recorder(graph_module).run(*arguments)
    return shapes


def _reshape_for_view(graph: fx.Graph) -> None:
    """Turn ``view`` into ``reshape``, which also takes tensors whose channels are last."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"


def _channels_last(leaf: Tensor) -> Tensor:
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf


def agree(expected: Any, found: Any) -> bool:
    """Tell whether two answers of a model are the same up to the rounding of another order of operations.

    Returns
    -------
    bool
        Every tensor within 1e-4 of its largest value: a wrong engine is off by all of it, a right one by some 1e-6.
    """
    pairs = [tree_leaves(expected), tree_leaves(found)]
    if len(pairs[0]) != len(pairs[1]):
        return False
    for a, b in zip(*pairs, strict=True):
        if not isinstance(a, Tensor):
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0
        if not torch.allclose(a, b, rtol=0.0, atol=_AGREES * scale, equal_nan=True):
            return False
    return True
