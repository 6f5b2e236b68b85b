"""The Hessian of an objective's loss as an operator: products with vectors, at any weights."""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.tensors.differentiable import explained, require_second_derivatives, twice_differentiable
from lltoolkit.tensors.examples import Batch, Examples
from lltoolkit.tensors.machine import available_memory, is_out_of_memory
from lltoolkit.tensors.network import choose_parameters
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import ParameterFilter, Params, filter_norms
from lltoolkit.tensors.subspace import require_fit

Metric: TypeAlias = Literal["euclidean", "filter"]
METRICS = ("euclidean", "filter")
log = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of the memory that is free: so much may kept graphs take


class Hessian:
    """The Hessian of the mean loss over one split, as an operator on flat vectors.

    Products are exact, by differentiating twice. Of a ReLU network they are those of the piecewise smooth function: a
    kink has no second derivative, so the Hessian says nothing of what the kinks add to the curvature over a distance.
    Batch norm is in eval mode: its statistics are constants, with ``buffers="recompute"`` too, where they are estimated
    anew at the point and then held.

    Parameters
    ----------
    objective : Objective
        Whose loss; its network does the work.
    split : str, optional
        The split of the data; by default the first.
    parameters : str, callable or None
        Which of the objective's weights are variables. None: all. ``"weights"``: tensors with two or more axes, as in
        the code of Li et al. (2018). Otherwise a regular expression searched in the name, or ``f(name, parameter)``.
    metric : {"euclidean", "filter"}
        "filter": the operator is ``D H D`` with D the norm of the minimizer's filter over the square root of its size,
        that is, the size of an entry of a filter-normalized direction: curvature in the units in which the paper's
        surfaces are drawn. Tensors with fewer than two axes, which do not move there, are left out.
    positions : Tensor, optional
        Shape ``(m,)``, int64: only these examples of the split.
    memory : int, optional
        Bytes that the graphs of a point may take; by default, and at most, half of what is free. What does not fit is
        computed again at every product. It shows in no value.
    beside : int
        Processes that share this memory.

    Attributes
    ----------
    n : int
        Entries of a vector.
    names : tuple of str
        The parameters in the order of a vector.
    scale : Tensor or None
        D, shape ``(n,)``; None for "euclidean".
    batch_size : int
        Examples of a graph: the objective's, or fewer where not even one graph of so many fits into memory, which
        shows in the last bits.

    Raises
    ------
    ValueError
        For unknown options, no examples, or if no parameter is chosen.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> objective = Objective(model, (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)), loss="mse")
    >>> with Hessian(objective).at() as point:  # the mean of x^2 w^2 has the second derivative 2 * 5
    ...     point(torch.ones(1))
    tensor([10.])
    """

    def __init__(
        self,
        objective: Objective,
        *,
        split: str | None = None,
        parameters: ParameterFilter = None,
        metric: Metric = "euclidean",
        positions: Tensor | None = None,
        memory: int | None = None,
        beside: int = 1,
    ) -> None:
        if not isinstance(objective, Objective):
            raise ValueError(f"objective is a {type(objective).__name__}; give Objective(model, data).")
        require_choice("metric", metric, METRICS)
        self.objective = objective
        self.split = objective.splits[0] if split is None else split
        require_choice("split", self.split, objective.splits)
        views = objective.network.views
        chosen = choose_variables(objective, parameters)
        if metric == "filter":
            chosen = [name for name in chosen if objective.theta[name].ndim > 1]
            if not chosen:
                raise ValueError(
                    "metric='filter' needs a tensor with two or more axes among the parameters; there is none. Use "
                    "metric='euclidean', or choose others."
                )
        self.names = tuple(chosen)
        self._leaves = [parameter for name in chosen for parameter in views[name]]
        # Tied weights: every leaf of a group is moved by the same part of a vector, and their answers are summed.
        self._groups = [len(views[name]) for name in chosen]
        self._sizes = [views[name][0].numel() for name in chosen]
        self.n = sum(self._sizes)
        self.dtype, self.device = objective.network.flat.dtype, objective.device
        self.scale = self.flatten(_filter_scale(objective.theta)) if metric == "filter" else None
        self._examples: Examples = objective.examples[self.split]
        if positions is not None:
            self._examples = self._examples.pick(torch.as_tensor(positions))
        if len(self._examples) == 0:
            raise ValueError("positions is empty: give at least one example.")
        if self.scale is not None and not self.scale.any():
            raise ValueError("metric='filter': all chosen filters are 0, so none of them moves. Choose others.")
        self.batch_size = objective.batch_size
        self._memory, self._beside = memory, beside
        self._graph_bytes: tuple[float, float] | None = None

    @property
    def variables_sha256(self) -> str:
        """Hash of the names: two functions may bear one name and choose different parameters."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def flatten(self, vector: Params) -> Tensor:
        """Take the variables out of a vector shaped like the model: shape ``(n,)``."""
        return torch.cat([vector[name].to(device=self.device, dtype=self.dtype).flatten() for name in self.names])

    def unflatten(self, vector: Tensor) -> Params:
        """Give a flat vector the shapes of the variables, on the CPU."""
        views = self.objective.network.views
        parts = zip(self.names, vector.detach().cpu().split(self._sizes), strict=True)
        return {name: part.reshape(views[name][0].shape).clone() for name, part in parts}

    @contextmanager
    def at(self, theta: Params | None = None) -> Iterator["Point"]:
        """Stand at some weights.

        Parameters
        ----------
        theta : Params, optional
            As `Objective.measure` takes them, moved buffers included; by default the minimizer.

        Yields
        ------
        Point
            The operator there, for as long as the block lasts: measure nothing else with this objective meanwhile.

        Raises
        ------
        ValueError
            If `theta` is of another model, or the network can't be differentiated twice.
        """
        objective = self.objective
        network = objective.network
        theta = objective.theta if theta is None else theta
        require_fit(theta, objective.theta, what="theta", against="this objective", extra=network.buffers)
        with objective.measuring(), twice_differentiable():
            network.flat.copy_(network.flatten(theta))
            network.write_buffers(theta)
            if objective.buffers == "recompute":
                network.recompute_buffers(objective.examples[objective.splits[0]], objective.batch_size)
            with network.gradients(self.names):
                point = Point(self)
                try:
                    with torch.no_grad():
                        yield point
                finally:
                    point.close()

    def _measure_graph(self) -> tuple[float, float]:
        """Measure what the graph of a batch keeps: bytes per batch and per example, from two small batches."""
        if self._graph_bytes is None:
            n = len(self._examples)
            few, more = min(2, n), min(4, n)
            small = self._saved_bytes(self._examples.take(slice(0, few)))
            large = self._saved_bytes(self._examples.take(slice(0, more))) if more > few else small
            each = max(0.0, (large - small) / (more - few)) if more > few else small / few
            self._graph_bytes = max(0.0, small - few * each), each
        return self._graph_bytes

    def _saved_bytes(self, batch: Batch) -> float:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # autograd puts its history on again; with it, this would be a cycle

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = self._differentiate(batch)
        require_second_derivatives([graph.loss, *graph.gradients], self.objective.model_name)
        own = {leaf.untyped_storage().data_ptr() for leaf in self._leaves}
        total = float(sum(size for place, size in kept.items() if place not in own))
        del graph
        return total

    def _differentiate(self, batch: Batch, *, again: bool = True) -> "_Graph":
        """Run a batch and its gradient; with a graph to differentiate the gradient `again`."""
        objective = self.objective
        with torch.enable_grad():
            measured = objective.measure_batch(batch)
            loss = measured.sum()
            if not loss.requires_grad:
                raise ValueError(
                    f"the loss of {objective.model_name} has no gradient in {', '.join(self.names[:5])}: its forward "
                    "runs without gradients (torch.no_grad, detach, .data), or does not use them. Take that out, or "
                    "choose other parameters."
                )
            try:
                gradients = torch.autograd.grad(loss, self._leaves, create_graph=again, allow_unused=True)
            except RuntimeError as error:
                raise explained(error, objective.model_name, "first") from error
        return _Graph(loss, measured.total_weight(), gradients)

    def _assemble(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Lay out what belongs to the leaves as one float64 vector, tied ones summed."""
        joined = []
        start = 0
        for count, size in zip(self._groups, self._sizes, strict=True):
            found = [part.detach().double().flatten() for part in parts[start : start + count] if part is not None]
            none = torch.zeros(size, dtype=torch.float64, device=self.device)
            joined.append(torch.stack(found).sum(dim=0) if len(found) > 1 else found[0] if found else none)
            start += count
        return torch.cat(joined)

    def _spread(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector to the shapes of the leaves."""
        parts = []
        start = 0
        for count, part in zip(self._groups, vector.split(self._sizes), strict=True):
            parts += [part.view(leaf.shape) for leaf in self._leaves[start : start + count]]
            start += count
        return parts


class Point:
    """The Hessian at one point; made by `Hessian.at`.

    Graphs are kept for as many batches as memory allows: a product then costs two thirds of what it costs
    without (ResNet-20 on a CPU: 6.7 forward passes instead of 10).

    Attributes
    ----------
    loss : float
        The mean loss.
    gradient : Tensor
        Shape ``(n,)``: of the mean loss, in the metric.
    n_hvp : int
        Products so far.
    kept_share : float
        Share of the examples whose graph is kept.
    """

    def __init__(self, hessian: Hessian) -> None:
        self._hessian = hessian
        self.n_hvp = 0
        self._here = _bits(hessian.objective.network.flat).clone()
        self._kept: list[_Graph] = []
        self._rest: list[Batch] = []
        self._gather()

    def _gather(self) -> None:
        """Go through the examples: loss, gradient, and the graphs that fit; again with less where memory runs out."""
        hessian = self._hessian
        fixed, each = hessian._measure_graph()
        free = MEMORY_SHARE * available_memory(hessian.device) / hessian._beside
        room = free if hessian._memory is None else min(float(hessian._memory), free)
        # A single batch must fit, whether it is kept or not.
        self._shrink(max(1, int((free - fixed) / max(each, 1.0))))
        while True:
            try:
                self._go_through(room, fixed, each)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (not self._kept and hessian.batch_size == 1):
                    raise
                kept_some = bool(self._kept)
            # Outside of the except block, whose traceback keeps the tensors that were too large alive.
            self.close()
            if kept_some:  # somebody else took what was free: keep nothing
                room = -math.inf
            else:
                self._shrink((hessian.batch_size + 1) // 2)
            if hessian.device.type == "cuda":
                torch.cuda.empty_cache()

    def _shrink(self, size: int) -> None:
        hessian = self._hessian
        if size < hessian.batch_size:
            log.warning("memory is short for the graph of %d examples; going on with %d", hessian.batch_size, size)
            hessian.batch_size = size

    def _go_through(self, room: float, fixed: float, each: float) -> None:
        hessian = self._hessian
        loss, total, n_kept = 0.0, 0.0, 0
        gradient = torch.zeros(hessian.n, dtype=torch.float64, device=hessian.device)
        for batch in hessian._examples.batches(hessian.batch_size):
            room -= fixed + each * batch.size
            graph = hessian._differentiate(batch, again=room >= 0)
            loss += float(graph.loss.detach())
            total += graph.weight
            gradient += hessian._assemble(graph.gradients)
            if room >= 0:
                graph.batch = batch
                self._kept.append(graph)
                n_kept += batch.size
            else:
                self._rest.append(batch)
        self._total = total
        self.loss = loss / total if total else math.nan
        self.kept_share = n_kept / len(hessian._examples)
        gradient = (gradient / total).to(hessian.dtype) if total else torch.full_like(gradient, math.nan)
        self.gradient = gradient if hessian.scale is None else hessian.scale * gradient

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply the Hessian with a vector.

        Parameters
        ----------
        vector : Tensor
            Shape ``(n,)``.

        Returns
        -------
        Tensor
            Shape ``(n,)``, for the mean over the examples; NaN where the loss is not finite.

        Raises
        ------
        RuntimeError
            If the objective was measured at other weights meanwhile, or the block is over.
        ValueError
            If some operator has no second derivative, naming it.
        MemoryError
            If it runs out, with nothing kept.
        """
        hessian = self._hessian
        if not (self._kept or self._rest):
            raise RuntimeError("this point is closed: multiply inside `with hessian.at(theta) as point:`.")
        if vector.shape != (hessian.n,):
            raise ValueError(f"the vector has the shape {tuple(vector.shape)}; ({hessian.n},) is wanted.")
        if not torch.equal(_bits(hessian.objective.network.flat), self._here):
            raise RuntimeError(
                "the weights are others than when this point was opened: the objective was measured meanwhile (do that "
                "after the block), or the model writes its own weights in forward, as Embedding(max_norm=...) does."
            )
        self.n_hvp += 1
        if not math.isfinite(self.loss):
            return torch.full_like(vector, math.nan)
        scaled = vector if hessian.scale is None else hessian.scale * vector
        parts = hessian._spread(scaled.to(hessian.dtype))
        try:
            product = self._multiply(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._kept:
                raise
            product = None
        if product is None:  # outside of the except block, which keeps what was too large alive
            log.warning("memory ran out; the graphs of this point are computed again at every product")
            self._rest = [graph.batch for graph in self._kept if graph.batch is not None] + self._rest
            self._kept.clear()
            if hessian.device.type == "cuda":
                torch.cuda.empty_cache()
            product = self._multiply(parts)
        product = (product / self._total).to(vector.dtype)
        return product if hessian.scale is None else hessian.scale.to(vector.dtype) * product

    def _multiply(self, parts: Sequence[Tensor]) -> Tensor:
        hessian = self._hessian
        product = torch.zeros(hessian.n, dtype=torch.float64, device=hessian.device)
        for graph in self._kept:
            product += self._differentiate_again(graph, parts, keep=True)
        for batch in self._rest:
            product += self._differentiate_again(hessian._differentiate(batch), parts, keep=False)
        return product

    def _differentiate_again(self, graph: "_Graph", parts: Sequence[Tensor], *, keep: bool) -> Tensor:
        hessian = self._hessian
        pairs = [
            (gradient, part)
            for gradient, part in zip(graph.gradients, parts, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:  # linear in the variables
            return torch.zeros(hessian.n, dtype=torch.float64, device=hessian.device)
        gradients, vectors = zip(*pairs, strict=True)
        try:
            found = torch.autograd.grad(
                gradients, hessian._leaves, grad_outputs=vectors, retain_graph=keep, allow_unused=True
            )
        except RuntimeError as error:
            raise explained(error, hessian.objective.model_name, "second") from error
        return hessian._assemble(found)

    def any_loss(self) -> Tensor:
        """Give the loss of the first batch with its graph, to look at."""
        return self._kept[0].loss if self._kept else self._hessian._differentiate(self._rest[0]).loss

    def close(self) -> None:
        """Let go of the graphs."""
        self._kept.clear()
        self._rest.clear()


@dataclass
class _Graph:
    """The loss of a batch and its gradient, which can be differentiated again."""

    loss: Tensor
    weight: float
    gradients: Sequence[Tensor | None]
    batch: Batch | None = None


def choose_variables(objective: Objective, parameters: ParameterFilter) -> list[str]:
    """Name the parameters that a filter selects among those which the objective moves; see `Hessian`.

    Returns
    -------
    list of str
        At least one, in the model's order.

    Raises
    ------
    ValueError
        If nothing is selected.
    """
    moved: Mapping[str, Sequence[nn.Parameter]] = objective.network.views
    if parameters is None:
        return list(moved)
    if not (isinstance(parameters, str) or callable(parameters)):
        raise ValueError(
            f"parameters={parameters!r}: give None, 'weights', a regular expression or f(name, parameter) -> bool."
        )
    if isinstance(parameters, str) and parameters == "weights":
        chosen = [name for name, group in moved.items() if group[0].ndim > 1]
    else:
        selected = set(choose_parameters(objective.network.model, parameters))
        chosen = [name for name in moved if name in selected]
    if not chosen:
        raise ValueError(
            f"parameters={parameters!r} selects none of the {len(moved)} parameters that move "
            f"({', '.join(list(moved)[:8])}, ...).{did_you_mean(str(parameters), moved)}"
        )
    return chosen


def _filter_scale(theta: Params) -> Params:
    """Size of an entry of a filter-normalized direction (Li et al. 2018, section 4)."""
    scale = {}
    for name, tensor in theta.items():
        size = tensor[0].numel() if tensor.ndim > 1 and len(tensor) else max(1, tensor.numel())
        scale[name] = (filter_norms(tensor.double()) / math.sqrt(max(1, size))).expand(tensor.shape).to(tensor.dtype)
    return scale


def _bits(tensor: Tensor) -> Tensor:
    """View numbers as what they are made of: NaN equals itself there."""
    return tensor.view(torch.int64 if tensor.dtype == torch.float64 else torch.int32)
