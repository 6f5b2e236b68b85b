"""The machine's own limit for a model: each of its layers alone, in the fastest way that torch offers.

A model's floor is the sum over its convolutions and linear layers of the layer's operations divided by the best rate
that was measured for its shape. Nothing else is in it: no batch norm, no activation, no shortcut, no weights to be
written. Rates are of direct convolutions as oneDNN does them; an algorithm with fewer multiplications (Winograd) may go
below the floor.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.meter import Instant, Turn

BATCHES = (8, 16, 32, 64, 128)
MATRIX = 1024  # side of the matrices of the sgemm rate
ENOUGH = 0.02  # seconds: a way is called until so much time is measured, at least MIN_CALLS times
MIN_CALLS = 3


@dataclass(frozen=True)
class Layer:
    """The shape of a convolution or linear layer, as one model runs it.

    Parameters
    ----------
    weight : tuple of int
        Shape of its weight.
    image : tuple of int
        Shape of one example's input.
    output : tuple of int
        Shape of one example's output.
    stride, padding, dilation : tuple of int
        Of a convolution; empty for a linear layer.
    groups : int
        Of a convolution.
    """

    weight: tuple[int, ...]
    image: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, not a linear layer."""
        return len(self.weight) == 4

    @property
    def flops(self) -> int:
        """Floating-point operations for one example: two for each multiply-add."""
        n_positions = self.output[-2] * self.output[-1] if self.is_convolution else 1
        return 2 * n_positions * torch.Size(self.weight).numel()

    def __str__(self) -> str:
        if not self.is_convolution:
            return f"linear {self.weight[1]}->{self.weight[0]}"
        (outgoing, _, height, width), size = self.weight, "x".join(map(str, self.image[1:]))
        step = f" stride {self.stride[0]}" if self.stride[0] > 1 else ""
        return f"{height}x{width} {self.image[0]}->{outgoing} on {size}{step}"


@dataclass(frozen=True)
class Way:
    """A way to run a layer, and how fast it was at its best.

    Parameters
    ----------
    batch : int
        Examples a call.
    how : str
        Layout and operator.
    run : callable
        Runs it once.
    seconds : float
        Per example, the shortest of the calls.
    """

    batch: int
    how: str
    run: Callable[[], Tensor]
    seconds: float


class Limit:
    """The floor of one model, measured again in every round.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    x : Tensor
        Its examples; one cell is all of them.

    Attributes
    ----------
    layers : Counter of Layer
        How often each shape occurs.
    ways : dict of Layer to Way
        The fastest way for each.
    """

    name = "convolution limit"

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.n_examples = len(x)
        self.layers = layers_of(model, x[:2])
        self.ways = {layer: fastest_way(layer) for layer in self.layers}

    @property
    def flops(self) -> int:
        """Operations of one forward pass of one example."""
        return sum(layer.flops * count for layer, count in self.layers.items())

    @property
    def best(self) -> float:
        """The floor in seconds per example, from the shortest call of each shape."""
        return sum(self.ways[layer].seconds * count for layer, count in self.layers.items())

    def turn(self, seconds: float) -> Turn:
        """Measure every shape's fastest way again, for about `seconds` in all; give a cell's floor."""
        wall = cpu = 0.0
        with torch.no_grad():
            for layer, count in self.layers.items():
                way = self.ways[layer]
                n_calls = max(MIN_CALLS, int(seconds / len(self.layers) / (way.seconds * way.batch)))
                start = Instant()
                for _ in range(n_calls):
                    way.run()
                end = Instant()
                share = count * self.n_examples / (n_calls * way.batch)
                wall += (end.wall - start.wall) * share
                cpu += (end.cpu - start.cpu) * share
        return Turn(1, wall, cpu, 0.0)

    def describe(self) -> list[dict[str, Any]]:
        """List the shapes with their fastest ways, for the record."""
        return [
            {
                "layer": str(layer),
                "count": count,
                "mflop": layer.flops / 1e6,
                "gflop_per_s": layer.flops / self.ways[layer].seconds / 1e9,
                "batch": self.ways[layer].batch,
                "how": self.ways[layer].how,
            }
            for layer, count in self.layers.items()
        ]


def layers_of(model: nn.Module, x: Tensor) -> Counter[Layer]:
    """Collect the shapes of a model's convolutions and linear layers as a forward pass meets them.

    Returns
    -------
    Counter of Layer
        How often each occurs.
    """
    found: Counter[Layer] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes = tuple(module.weight.shape), tuple(inputs[0].shape[1:]), tuple(output.shape[1:])
        if isinstance(module, nn.Conv2d):
            # zero padding given by numbers is all that the measured models have
            found[Layer(*shapes, module.stride, tuple(module.padding), module.dilation, module.groups)] += 1
        else:
            found[Layer(*shapes)] += 1

    hooks = [
        module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def fastest_way(layer: Layer) -> Way:
    """Try batches, layouts and operators for a layer."""
    ways = []
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.weight, generator=draw)
    with torch.no_grad():
        for batch in BATCHES:
            x = torch.randn(batch, *layer.image, generator=draw)
            for how, run in _roads(layer, x, weight):
                ways.append(Way(batch, how, run, shortest(run) / batch))
    return min(ways, key=lambda way: way.seconds)


def _roads(layer: Layer, x: Tensor, weight: Tensor) -> list[tuple[str, Callable[[], Tensor]]]:
    if not layer.is_convolution:
        return [("linear", lambda: functional.linear(x, weight))]
    options = layer.stride, layer.padding, layer.dilation, layer.groups
    roads: list[tuple[str, Callable[[], Tensor]]] = []
    for layout, memory in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        laid, filters = x.to(memory_format=memory), weight.to(memory_format=memory)
        roads.append((f"{layout} conv2d", lambda a=laid, w=filters: functional.conv2d(a, w, None, *options)))
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                weight, layer.padding, layer.stride, layer.dilation, layer.groups, list(laid.shape)
            )
            roads += [
                (f"{layout} oneDNN{kind}", lambda a=laid, w=w: _pointwise(a, w, layer))
                for kind, w in (("", filters), (", packed", packed))
            ]
    return roads


def _pointwise(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, None, layer.padding, layer.stride, layer.dilation, layer.groups, "none", [], ""
    )


def shortest(run: Callable[[], Tensor]) -> float:
    """Give the shortest of some calls in seconds; one before them is not counted."""
    run()
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or sum(seconds) < ENOUGH:
        start = Instant()
        run()
        seconds.append(Instant().wall - start.wall)
    return min(seconds)


def sgemm_rate() -> float:
    """Measure the rate of a large matrix product in GFLOP/s."""
    a, b = (torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    return 2 * MATRIX**3 / shortest(lambda: a @ b) / 1e9
