"""Engines: many points of subspaces measured fast, each the same whatever was measured before it.

``plain``
    The weights of a cell are made anew and given to the objective, as a loop by hand would do.
``flat``
    They are written into one flat tensor on the device, from the origin and never by accumulated steps.
``folded``
    As flat, and every convolution carries the batch norm, sum and ReLU that follow it; see `folding`.
``batched``
    Several cells at once, by `torch.func.vmap`.

Which one is best follows from the model and the device alone (`auto`), never from a clock.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from lltoolkit.errors import require_choice
from lltoolkit.tensors.examples import Batch, Inputs
from lltoolkit.tensors.folding import FoldedNetwork, agree
from lltoolkit.tensors.graphs import Replayed
from lltoolkit.tensors.machine import arithmetic
from lltoolkit.tensors.objective import Forward, Objective, PerExample, Values
from lltoolkit.tensors.params import move
from lltoolkit.tensors.rewriting import CannotFold
from lltoolkit.tensors.stem import Stem
from lltoolkit.tensors.subspace import Subspace, require_fit

Point: TypeAlias = Sequence[float]
ENGINES = ("auto", "plain", "flat", "folded", "batched")
_TRIAL = 4  # examples on which an engine is compared with the network itself

log = logging.getLogger(__name__)


class CannotBatch(ValueError):  # noqa: N818 - a reason, not a fault
    """The batched engine can't take this model; the text says why."""


class Engine:
    """Measure an objective at points of a subspace.

    Parameters
    ----------
    objective : Objective
        What is measured.
    subspace : Subspace
        Where.

    Attributes
    ----------
    name : str
        Of the engine.

    Raises
    ------
    ValueError
        If the subspace is of another model, or of another minimizer whose buffers nobody knows.
    """

    name = "plain"
    group = 1  # cells that it takes at once

    def __init__(self, objective: Objective, subspace: Subspace) -> None:
        require_match(objective, subspace)
        self.objective = objective
        self.subspace = subspace

    def measure(self, point: Point) -> Values:
        """Measure one point, given by its coordinates."""
        return self.measure_points([point])[0]

    def measure_points(self, points: Sequence[Point]) -> list[Values]:
        """Measure points, each given by its coordinates."""
        with self.objective.measuring():
            return [self.objective.summarize(gathered) for gathered in self.gather(points)]

    def gather(self, points: Sequence[Point], positions: Mapping[str, Tensor] | None = None) -> Iterator[PerExample]:
        """Measure every example, or those at `positions` of each split, at each point in turn."""
        for point in points:
            with self.objective.lock:
                self._write(point)
                yield from self.objective.gather(self._forward(), positions=positions)

    def _write(self, point: Point) -> None:
        network = self.objective.network
        theta = self.subspace.at(*point)
        network.flat.copy_(network.flatten(theta))
        network.write_buffers(theta)

    def _forward(self) -> Forward:
        return lambda batch, _: [self.objective.network(batch.inputs)]


class FlatEngine(Engine):
    """Write a cell's weights into one flat tensor on the device."""

    name = "flat"

    def __init__(self, objective: Objective, subspace: Subspace) -> None:
        super().__init__(objective, subspace)
        network = objective.network
        self._origin = network.flatten(subspace.origin)
        self._directions = [network.flatten(direction) for direction in subspace.directions]
        moved = subspace.buffer_names
        device = network.device
        self._buffers = {name: subspace.origin[name].to(device) for name in moved}
        self._buffer_steps = [{name: direction[name].to(device) for name in moved} for direction in subspace.directions]
        self._network = self._replayed(network)

    def _replayed(self, network: Callable[[Inputs], Any]) -> Callable[[Inputs], Any]:
        """Replay a network from CUDA graphs, on a GPU and where its buffers stay as they are while it runs."""
        on_gpu = self.objective.device.type == "cuda" and self.objective.buffers != "recompute"
        return Replayed(network) if on_gpu else network

    def _forward(self) -> Forward:
        return lambda batch, _: [self._network(batch.inputs)]

    def _write(self, point: Point) -> None:
        network = self.objective.network
        network.flat.copy_(self._origin)
        for direction, coordinate in zip(self._directions, point, strict=True):
            network.flat.add_(direction, alpha=float(coordinate))
        network.write_buffers(move(self._buffers, self._buffer_steps, point))


class FoldedEngine(FlatEngine):
    """As flat, with batch norm, sums and ReLU folded into the convolutions before them; a small stem is kept.

    Where no direction moves a batch norm's scale or variance, the folded weights are affine in the coordinates: origin
    and directions are folded once, in float64. Otherwise every cell is folded anew.

    Raises
    ------
    CannotFold
        If the model can't be folded; the text says why.
    """

    name = "folded"

    def __init__(self, objective: Objective, subspace: Subspace) -> None:
        if objective.buffers == "recompute":
            raise CannotFold("buffers='recompute' needs batch norm as a layer of its own")
        super().__init__(objective, subspace)
        with objective.lock, torch.no_grad(), arithmetic(objective.device):
            self._write_flat([0.0] * subspace.dims)
            inputs = objective.examples[objective.splits[0]].take(slice(0, _TRIAL)).inputs
            self._folded = FoldedNetwork(objective.network, inputs)
            self._network = self._replayed(self._folded)
            self._affine: list[Tensor] | None = None
            origin = {name: tensor.double() for name, tensor in subspace.origin.items()}
            moved = {name for d in subspace.directions for name, step in d.items() if bool(step.any())}
            if self._folded.is_affine_in(moved):
                base = self._folded.fold(origin)
                ends = [{name: origin[name] + step for name, step in d.items()} for d in subspace.directions]
                self._affine = [base, *(self._folded.fold(end) - base for end in ends)]
            self._stem = self._keep_stem()
            if self._stem is None and not self._folded.convolves:
                raise CannotFold("it has no convolution of torch.nn, and no first layer that is worth keeping")
            self._compare()

    def _compare(self) -> None:
        """Compare the answers with the network's own, also away from the origin: tracing can't see all that is done.

        Raises
        ------
        CannotFold
            If they differ.
        """
        forward, objective = self._forward(), self.objective
        for coordinate in (0.0, 1.0, -1.0):
            self._write([coordinate] * self.subspace.dims)
            for split, examples in objective.examples.items():
                last = max(0, len(examples) - _TRIAL)
                for start in sorted({0, last}):
                    batch = examples.take(slice(start, start + _TRIAL))
                    own = objective.network(batch.inputs)
                    if not all(agree(own, forward(batch, where)[0]) for where in (None, split)):
                        raise CannotFold("its folded form gives other answers: its forward does what tracing can't see")

    def _keep_stem(self) -> Stem | None:
        examples = self.objective.examples
        on_cpu = self.objective.device.type == "cpu"
        if self._affine is None or not on_cpu or not Stem.fits(self._folded, len(self._affine), examples):
            return None
        return Stem(self._folded, self._affine, examples)

    def _forward(self) -> Forward:
        def forward(batch: Batch, split: str | None) -> list[Any]:
            stem = None if split is None else self._stem
            if not self._folded_here and (stem is None or self._folded.folds_more_than_stem):
                self._write_folded()
            return [self._network(batch.inputs) if stem is None or split is None else stem.run(batch, split)]

        return forward

    def _write_flat(self, point: Point) -> None:
        super()._write(point)

    def _write(self, point: Point) -> None:
        self._write_flat(point)  # all that is not folded
        self._point, self._folded_here = point, False  # the rest when it is needed
        if self._stem is not None:
            self._stem.move(point)

    def _write_folded(self) -> None:
        self._folded_here = True
        if self._affine is None:
            self._folded.write(self._folded.fold())
            return
        base, *steps = self._affine
        folded = base.clone()
        for step, coordinate in zip(steps, self._point, strict=True):
            folded.add_(step, alpha=float(coordinate))
        self._folded.write(folded)


class BatchedEngine(FlatEngine):
    """Run several cells at once, by `torch.func.vmap` over their weights.

    Raises
    ------
    CannotBatch
        If the model can't be run so; the text says why.
    """

    name = "batched"
    group = 8  # enough to spread the calls, few enough for the cache

    def __init__(self, objective: Objective, subspace: Subspace) -> None:
        if objective.buffers == "recompute":
            raise CannotBatch("buffers='recompute' needs the batch norm of one cell at a time")
        super().__init__(objective, subspace)
        self._moving = self._moving_tensors()
        self._compare()

    def gather(self, points: Sequence[Point], positions: Mapping[str, Tensor] | None = None) -> Iterator[PerExample]:
        """Measure every example, or those at `positions` of each split, at each point in turn."""
        for start in range(0, len(points), self.group):
            group = list(points[start : start + self.group])
            # Always as many cells: a library may compute another number of them in another order of additions.
            with self.objective.lock:
                self._stack(group + [group[-1]] * (self.group - len(group)))
                yield from self.objective.gather(self._forward(), self.group, positions)[: len(group)]

    def _moving_tensors(self) -> dict[str, Tensor]:
        """Give what moves by every name that the model has for it: tied weights have several."""
        network = self.objective.network
        weights = {id(twin) for twins in network.views.values() for twin in twins}
        moving = {name: tensor for name, tensor in network.model.named_parameters() if id(tensor) in weights}
        return moving | {name: t for name, t in network.model.named_buffers() if name in self.subspace.buffer_names}

    def _stack(self, points: Sequence[Point]) -> None:
        cells = []
        for point in points:
            self._write(point)
            cells.append({name: tensor.clone() for name, tensor in self._moving.items()})
        self._stacked = {name: torch.stack([cell[name] for cell in cells]) for name in cells[0]}

    def _forward(self) -> Forward:
        network = self.objective.network

        def run(state: dict[str, Tensor], inputs: Any) -> Any:
            arguments = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
            named = inputs if isinstance(inputs, dict) else None
            return functional_call(network.model, state, arguments, named, tie_weights=True)

        def forward(batch: Batch, split: str | None) -> list[Any]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # vmap tells of operators that it runs one by one
                together = vmap(run, in_dims=(0, None))(self._stacked, batch.inputs)
            return [tree_map(lambda leaf, cell=cell: leaf[cell], together) for cell in range(self.group)]

        return forward

    def _compare(self) -> None:
        """Compare the answers with the network's own: vmap can't do all that a forward may."""
        objective = self.objective
        batch = objective.examples[objective.splits[0]].take(slice(0, _TRIAL))
        with objective.lock, torch.no_grad(), arithmetic(objective.device):
            origin = [0.0] * self.subspace.dims
            self._stack([origin] * self.group)
            try:
                found = self._forward()(batch, None)[0]
            except Exception as error:  # whatever vmap stumbles over
                raise CannotBatch(f"vmap fails with {type(error).__name__}: {str(error).splitlines()[0]}") from error
            self._write(origin)
            if not agree(objective.network(batch.inputs), found):
                raise CannotBatch("vmap gives other answers than the network itself")


def make_engine(objective: Objective, subspace: Subspace, engine: str = "auto") -> Engine:
    """Choose and make the engine for a model, from static facts alone.

    Parameters
    ----------
    objective : Objective
        What is measured.
    subspace : Subspace
        Where.
    engine : {"auto", "plain", "flat", "folded", "batched"}
        By name, or "auto": folded where the model has convolutions that can be folded, else flat. (Batched was nowhere
        measured to win on a CPU.) One that can't take the model gives way to flat, with the reason in the log.

    Returns
    -------
    Engine
        `engine.name` says which it became.

    Raises
    ------
    ValueError
        For an unknown name, or a subspace that does not fit the objective.
    """
    require_choice("engine", engine, ENGINES)
    if engine in ("auto", "folded"):
        try:
            return FoldedEngine(objective, subspace)
        except CannotFold as error:
            level = logging.INFO if engine == "auto" else logging.WARNING
            log.log(level, "the folded engine can't take this model: %s; flat computes it", error)
    if engine == "batched":
        try:
            return BatchedEngine(objective, subspace)
        except CannotBatch as error:
            log.warning("the batched engine can't take this model: %s; flat computes it", error)
    return Engine(objective, subspace) if engine == "plain" else FlatEngine(objective, subspace)


def group_of(engine: str) -> int:
    """Tell how many cells an engine takes at once."""
    return BatchedEngine.group if engine == BatchedEngine.name else 1


def require_match(objective: Objective, subspace: Subspace) -> None:
    """Check that a subspace can be measured by an objective.

    Raises
    ------
    ValueError
        If names or shapes differ, if the buffer policy can't be met, or if a random plane was drawn around other
        weights.
    """
    require_fit(subspace.weights(subspace.origin), objective.theta, what="the subspace", against="this objective")
    if unknown := sorted(subspace.buffer_names - set(objective.network.buffers)):
        raise ValueError(f"the subspace moves the buffers {unknown[:5]}, which this objective's model lacks.")
    if objective.buffers == "interpolate" and objective.network.buffers and not subspace.buffer_names:
        raise ValueError(
            f"buffers='interpolate', but this subspace ({subspace.kind}) moves no buffers; interpolate(a, b) makes one "
            "that does. Use buffers='frozen' or 'recompute'."
        )
    same = all(_equal(subspace.origin[name].to(tensor), tensor) for name, tensor in objective.theta.items())
    if same or subspace.buffer_names:
        return
    if subspace.kind == "random":
        raise ValueError(
            "this random subspace was drawn around other weights than the objective's minimizer: its directions are "
            "scaled to those. Draw it again with random_subspace(objective, ...)."
        )
    if objective.network.buffers and objective.buffers != "recompute":
        raise ValueError(
            "the subspace has its origin at other weights than the objective's minimizer and does not say which "
            "batch-norm statistics belong to them. Use an objective of the origin's model, interpolate(a, b) with "
            "buffers='interpolate', or buffers='recompute'."
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())  # a minimizer with NaN has its own message
