"""Find in a model's graph the layers and what follows them, and put others in their places; by torch.fx."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Shapes: TypeAlias = dict[fx.Node, torch.Size]
CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RELUS = (torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = ("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
_RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")


class CannotFold(ValueError):  # noqa: N818 - a reason, not a fault
    """The folded engine can't take this model; the text says why."""


class Found:
    """A layer in the graph with the batch norm, sum and ReLU that follow it, as far as there are any."""

    def __init__(self, graph_module: fx.GraphModule, node: fx.Node, shapes: Shapes, uses: Counter) -> None:
        self.layer: Any = graph_module.get_submodule(str(node.target))
        self.norm: Any = None
        self.other: fx.Node | None = None
        self.relu = False
        self._chain = [node]
        follower = self._follower(graph_module)
        if follower is not None and _is_norm(graph_module, follower, uses) and self._by_channel(shapes):
            self.norm = graph_module.get_submodule(str(follower.target))
            self._chain.append(follower)
            follower = self._follower(graph_module)
        if follower is not None and isinstance(self.layer, nn.Conv2d) and _is_sum(follower):
            other = next((part for part in follower.all_input_nodes if part is not self._chain[-1]), None)
            if other is not None and shapes.get(other) == shapes.get(self._chain[-1]):
                self.other = other
                self._chain.append(follower)
                follower = self._follower(graph_module)
        if follower is not None and _is_relu(graph_module, follower):
            self.relu = True
            self._chain.append(follower)

    def _follower(self, graph_module: fx.GraphModule) -> fx.Node | None:
        """Return the only user of the chain's end, unless something is written in place on the way to it."""
        # The layer will be computed where the chain ends; its inputs must be the same there.
        follower = _only_user(self._chain[-1])
        between = self._chain[-1].next
        while follower is not None and between is not follower:
            if _is_in_place(graph_module, between):
                return None
            between = between.next
        return follower

    def _by_channel(self, shapes: Shapes) -> bool:
        """Whether batch norm sees the layer's outputs as its channels: of a linear layer only without further axes."""
        return not isinstance(self.layer, nn.Linear) or len(shapes.get(self._chain[0], ())) == 2

    def replace(self, graph_module: fx.GraphModule, layer: nn.Module, name: str) -> None:
        """Put `layer` in the place of all that it carries, where the last of it stood."""
        graph = graph_module.graph
        graph_module.add_submodule(name, layer)
        arguments = (self._chain[0].args[0], *([] if self.other is None else [self.other]))
        with graph.inserting_after(self._chain[-1]):
            new = graph.call_module(name, arguments)
        self._chain[-1].replace_all_uses_with(new)
        for node in reversed(self._chain):
            graph.erase_node(node)


def find_layers(graph_module: fx.GraphModule, shapes: Shapes) -> Iterator[Found]:
    """Find convolutions, linear layers before a batch norm, and the linear layers that read the inputs.

    Yields
    ------
    Found
        In the order of the graph, which may be changed meanwhile at what was found.
    """
    uses = Counter(node.target for node in graph_module.graph.nodes if node.op == "call_module")
    for node in list(graph_module.graph.nodes):
        if node.op != "call_module" or uses[node.target] > 1 or len(node.args) != 1 or node.kwargs:
            continue
        layer = graph_module.get_submodule(node.target)
        convolves = type(layer) in CONVOLUTIONS and layer.padding_mode == "zeros"
        if convolves or type(layer) is nn.Linear:
            found = Found(graph_module, node, shapes, uses)
            if convolves or found.norm is not None or _reads_inputs(node):
                yield found


def find_heads(graph_module: fx.GraphModule, shapes: Shapes, most: int) -> list[fx.Node]:
    """Find the linear layers of at most so many outputs, on inputs without further axes."""
    return [
        node
        for node in graph_module.graph.nodes
        if node.op == "call_module" and len(node.args) == 1 and len(shapes.get(node, ())) == 2
        if type(layer := graph_module.get_submodule(node.target)) is nn.Linear and layer.out_features <= most
    ]


def replace_module(graph_module: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let a node call another module."""
    node.target = f"{node.name}_replaced"
    graph_module.add_submodule(node.target, module)


def find_stem(graph_module: fx.GraphModule, kind: type) -> list[str]:
    """Find the layer of a kind that alone reads the model's one input, reshaped at most.

    Returns
    -------
    list of str
        The names of the nodes from the input to that layer, if there is one: all that comes after it needs its
        outputs alone. Empty otherwise.
    """
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        return []
    chain, node = inputs, _only_user(inputs[0])
    while node is not None and _is_reshape(graph_module, node):
        chain.append(node)
        node = _only_user(node)
    if node is None or node.op != "call_module" or len(node.all_input_nodes) != 1:
        return []
    stands = type(graph_module.get_submodule(str(node.target))) is kind
    return [each.name for each in [*chain, node]] if stands else []


def _reads_inputs(node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    while source.op != "placeholder":
        if not _is_reshape(source.graph.owning_module, source):
            return False
        source = source.all_input_nodes[0]
    return True


def _is_reshape(graph_module: fx.GraphModule | None, node: fx.Node) -> bool:
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module" and graph_module is not None:
        return type(graph_module.get_submodule(str(node.target))) is nn.Flatten
    return node.op in ("call_function", "call_method") and node.target in _RESHAPES


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_norm(graph_module: fx.GraphModule, node: fx.Node, uses: Counter) -> bool:
    if node.op != "call_module" or uses[node.target] > 1:
        return False
    module = graph_module.get_submodule(str(node.target))
    return type(module) in _NORMS and module.running_mean is not None


def _is_in_place(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph_module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_method", "call_function"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    changes = name.endswith("_") and not name.endswith("__")
    named = node.target in (operator.setitem, operator.delitem) or name in _IN_PLACE
    return changes or named or bool(node.kwargs.get("inplace"))


def _is_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))) is nn.ReLU
    return node.target in _RELUS


def _is_sum(node: fx.Node) -> bool:
    plain = len(node.args) == 2 and all(isinstance(part, fx.Node) for part in node.args) and not node.kwargs
    return node.op in ("call_function", "call_method") and node.target in _SUMS and plain


def trace(model: nn.Module, inputs: Any) -> tuple[fx.GraphModule, Shapes]:
    """Trace a model in eval mode, and note the shapes of what its nodes give on some inputs.

    Returns
    -------
    graph_module : fx.GraphModule
        It shares the model's modules.
    shapes : dict
        Node to shape.

    Raises
    ------
    CannotFold
        If it can't be traced.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        raise CannotFold("it has forward hooks, which want every layer's own output")
    try:
        graph_module = fx.GraphModule(model, _Tracer().trace(model))
        return graph_module, _record_shapes(graph_module, inputs)
    except Exception as error:  # a forward that asks its data what to do, in whatever way
        raise CannotFold(f"its forward can't be traced by torch.fx ({type(error).__name__}: {error})") from error


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # arithmetic on a buffer, which a subspace may move, is part of the graph


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


def reshape_for_view(graph: fx.Graph) -> None:
    """Turn ``view`` into ``reshape``, which also takes tensors whose channels are last."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"
