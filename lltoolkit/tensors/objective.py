"""Objective: what is measured at given weights. A model, a loss and fixed examples; theta in, numbers out."""

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lltoolkit.errors import NondeterministicObjective, require_choice, require_whole
from lltoolkit.tensors.examples import Batch, Examples, read_splits, sha256_of_splits
from lltoolkit.tensors.machine import (
    arithmetic,
    count_flops,
    default_batch_size,
    default_threads,
    is_out_of_memory,
    largest_activation,
    resolve_device,
    using_threads,
    without_cudnn,
)
from lltoolkit.tensors.measures import (
    LOSSES,
    Gathered,
    Measure,
    Measures,
    is_classification,
    require_labels,
    standard_error,
)
from lltoolkit.tensors.network import Network, device_to_load_on
from lltoolkit.tensors.params import ParameterFilter, Params, name_of_filter, sha256
from lltoolkit.tensors.subspace import require_fit

Values: TypeAlias = dict[tuple[str, str], float]
PerExample: TypeAlias = dict[tuple[str, str], Gathered]
# From a batch, and the split whose own examples it holds, if it does, to the answer of each cell in turn.
Forward: TypeAlias = Callable[[Batch, str | None], Sequence[Any]]
R = TypeVar("R")
BUFFERS = ("frozen", "interpolate", "recompute")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
REPEAT_TOLERANCE = 1e-6  # two measurements of the same weights may differ by so much, relative or absolute

log = logging.getLogger(__name__)


class Objective:
    """A deterministic function from weights to loss and metrics on fixed examples.

    The model is copied: the caller's module keeps its weights, buffers, mode, ``requires_grad`` and
    device. Measuring is in eval mode, without augmentation, on the same examples every time, and in
    float64 from the model's output on. The loss is the data's; weight decay is not part of it.

    Parameters
    ----------
    model : nn.Module or callable
        Any module, on any device, in any mode, with any mixture of dtypes. Or a factory, a function without arguments
        that returns one, trained: for models that can't be pickled on their way to other processes and machines.
    data : mapping, tuple, Dataset or DataLoader
        ``{"train": split, "test": split}`` or one split. A split is ``(inputs, target)`` of tensors or
        arrays (inputs may be a tuple or a dict of tensors), a map-style Dataset, a DataLoader, or one
        batch dict for ``model(**batch)`` with ``loss(output, batch)``.
    loss : {"cross_entropy", "mse"} or callable
        ``loss(output, target)`` returning per-example values ``(B,)`` or a mean. Standard errors need
        per-example values.
    metrics : None, iterable of str, or mapping of str to callable
        None: accuracy, where the task is a classification.
    buffers : {"frozen", "interpolate", "recompute"}
        Batch-norm statistics away from the minimizer. "frozen": as the subspace gives them, that is the
        minimizer's (Li et al. 2018 for random planes), or moved along by `interpolate`. "interpolate":
        the same, but a subspace that does not move them is refused. "recompute": estimated anew at
        every cell from the examples of the first split, in batches of `batch_size` and weighted by their sizes.
    batch_size : int, optional
        Examples per forward pass; by default from the sizes of activations, see `default_batch_size`. Where memory runs
        out, it is halved, until it fits.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    dtype : {"float32", "float64"}
        In which the network runs. Half-precision weights are lifted to it.
    n_examples : int or mapping of split to int, optional
        Measure on at most so many examples of each split, drawn once with `seed`, and give standard
        errors.
    parameters : str or callable, optional
        Which parameters are weights to be moved: a regular expression searched in the name, or
        ``f(name, parameter) -> bool``. None: all. The others keep the minimizer's values.
    seed : int
        Seed of the draw of examples.
    count : callable, optional
        ``count(target or batch)``: how much each example counts in the mean, e.g. its tokens.

    Attributes
    ----------
    theta : Params
        The minimizer: copies on the CPU, each tied weight once.
    network : Network
        The private copy of the model.
    splits : tuple of str
        Names of the splits, in order.
    n_examples, n_total : dict
        Examples measured, and there to draw from, by split.
    units : str
        Units of the loss.

    Raises
    ------
    ValueError
        At once for unknown names, an empty split, shapes that don't fit the model, labels out of range.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> objective = Objective(model, (torch.eye(2), torch.tensor([0, 1])))
    >>> sorted(objective.at_minimizer())
    [('train', 'accuracy'), ('train', 'loss')]
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Any,
        *,
        loss: str | Measure = "cross_entropy",
        metrics: Iterable[str] | Mapping[str, Measure] | None = None,
        buffers: Literal["frozen", "interpolate", "recompute"] = "frozen",
        batch_size: int | None = None,
        device: str = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        n_examples: int | Mapping[str, int] | None = None,
        parameters: ParameterFilter = None,
        seed: int = 0,
        count: Callable[[Any], Tensor | float] | None = None,
    ) -> None:
        require_choice("buffers", buffers, BUFFERS)
        require_choice("dtype", dtype, DTYPES)
        self._factory = None if isinstance(model, nn.Module) else model
        model = _build(model)
        if batch_size is not None:
            batch_size = require_whole("batch_size", batch_size, least=1)
        seed = require_whole("seed", seed)
        self.buffers = buffers
        self.dtype = dtype
        self.device = resolve_device(device)
        self.seed = seed
        self.parameters = parameters
        self.model_name = model_name(model)
        self.lock = threading.RLock()  # a widget's callback may run beside a cell of the notebook

        splits = read_splits(data, n_examples, seed)
        self.splits = tuple(splits)
        self.n_examples = {name: len(examples) for name, examples in splits.items()}
        self.n_total = {name: examples.n_total for name, examples in splits.items()}
        self.data_sha256 = sha256_of_splits(splits)
        self.data_normalize = str(getattr(data, "normalize", "unknown"))
        self.examples = {name: examples.to(self.device, DTYPES[dtype]) for name, examples in splits.items()}

        self.network = Network(model, parameters, self.device, DTYPES[dtype])
        self.theta = self.network.theta
        if buffers == "recompute" and not self.network.batch_norms:
            raise ValueError(
                "buffers='recompute', but the model has no batch norm with running statistics: use 'frozen'."
            )
        self._measures = Measures(loss, metrics, count)
        self._measures.to(self.device)
        self.units = self._measures.units
        self.precision = "exact"
        largest_output = self._settle()
        first = self.examples[self.splits[0]].take(slice(0, 2))
        activation = largest_activation(lambda: self.network(first.inputs)) // first.size
        self.batch_size = batch_size or default_batch_size(activation, largest_output, self.device)
        self.flops = count_flops(lambda: self.network(first.inputs)) / first.size  # of one example
        self.n_threads = default_threads(self.flops * min(self.batch_size, max(self.n_examples.values())))
        self._minimum: Values | None = None
        self._seconds: float | None = None
        self._is_measuring = False

    @property
    def n_params(self) -> int:
        """Number of floating-point parameters of the model, each tied weight once."""
        return self.network.n_params

    @property
    def theta_sha256(self) -> str:
        """Hash of the minimizer's weights and buffers."""
        return sha256(self.network.theta, self.network.buffers)

    @property
    def has_own_functions(self) -> bool:
        """Whether loss, a metric or `count` is a function of the caller's: only its values tell it from another."""
        return self._measures.has_own_functions

    @property
    def config(self) -> dict[str, object]:
        """All that decides the measured values beside weights and examples, JSON-able."""
        return {
            **self._measures.config(),
            "buffers": self.buffers,
            "parameters": name_of_filter(self.parameters),
            "n_weights": self.network.flat.numel(),
            "n_examples": self.n_examples,
            "seed": self.seed,
            "dtype": self.dtype,
            "precision": self.precision,
        }

    def __repr__(self) -> str:
        examples = ", ".join(f"{split} {n}" for split, n in self.n_examples.items())
        return f"Objective({self.model_name}, {self.n_params:,} parameters, examples: {examples}, device={self.device})"

    def __getstate__(self) -> dict[str, Any]:
        # On its way to another process: the examples go by a shared file, see `attach`.
        left_behind = {"lock", "examples", *([] if self._factory is None else ["network"])}
        state = {name: value for name, value in self.__dict__.items() if name not in left_behind}
        return state | {"minimizer": None if self._factory is None else (self.network.theta, self.network.buffers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        minimizer = state.pop("minimizer")
        self.__dict__.update(state)
        self.lock = threading.RLock()
        if self._factory is not None:
            device = device_to_load_on(self.device)
            self.network = Network(_build(self._factory), self.parameters, device, DTYPES[self.dtype])
            self.network.theta, self.network.buffers = minimizer
            self.theta = self.network.theta
        self.device = self.network.device
        self._measures.to(self.device)

    def attach(self, examples: Mapping[str, Examples]) -> None:
        """Give the examples back to an objective that was sent without them, or the same ones from another place."""
        self.examples = {name: part.to(self.device, DTYPES[self.dtype]) for name, part in examples.items()}

    def moved_to(self, theta: Params, buffers: Params | None = None) -> "Objective":
        """Make the objective of another minimizer of the same model, a checkpoint for example; the examples are shared.

        Parameters
        ----------
        theta : Params
            Every weight of `self.theta` by name. Parameters that this objective does not move may stand beside them;
            those that don't keep their values.
        buffers : Params, optional
            Floating-point buffers (batch-norm statistics) by name; those that are not in it keep their values.

        Returns
        -------
        Objective
            As if it were made of a model with these weights. Neither shows in the other.

        Raises
        ------
        ValueError
            If `theta` or `buffers` is of another model.
        """
        fixed = {
            name: parameter
            for name, parameter in self.network.model.named_parameters(remove_duplicate=False)
            if name in theta and name not in self.theta
        }
        require_fit(theta, self.theta | fixed, what="theta", against="this objective")
        buffers = self.network.buffers | (buffers or {})
        require_fit(buffers, self.network.buffers, what="buffers", against="this objective")

        def own(values: Params, like: Params) -> Params:
            return {name: values[name].detach().to("cpu", old.dtype, copy=True) for name, old in like.items()}

        moved = object.__new__(type(self))
        with self.lock, torch.no_grad():
            moved.__dict__.update(self.__dict__)
            moved.network = network = copy.deepcopy(self.network)
            network.theta, network.buffers = own(theta, self.theta), own(buffers, self.network.buffers)
            parameters = dict(network.model.named_parameters(remove_duplicate=False))
            for name in fixed:
                parameters[name].copy_(theta[name])
            network.flat.copy_(network.flatten(network.theta))
            network.write_buffers({})
        if fixed:
            moved._factory = None  # its models have other values there
        moved.theta = network.theta
        moved.lock = threading.RLock()
        moved._minimum = moved._seconds = None
        moved._is_measuring = False
        return moved

    def measure(self, theta: Params) -> Values:
        """Measure at given weights.

        Parameters
        ----------
        theta : Params
            Every weight of `self.theta` by name; moved buffers may stand beside them, the others keep the
            minimizer's values.

        Returns
        -------
        dict
            ``{("train", "loss"): float, ("test", "accuracy"): float, ...}``. Where a subset of a split is
            measured, ``(split, "loss_se")`` is the standard error against the whole split, from sampling
            without replacement: 0 where all of its examples are used.

        Raises
        ------
        ValueError
            If `theta` is of another model.
        """
        require_fit(theta, self.theta, what="theta", against="this objective", extra=self.network.buffers)
        with self.lock:
            self.network.flat.copy_(self.network.flatten(theta))
            self.network.write_buffers(theta)
            return self.measure_current()

    def at_minimizer(self) -> Values:
        """Measure at the minimizer itself; done once, then remembered."""
        with self.lock:
            if self._minimum is None:
                self._minimum = self.measure(self.theta)
            return dict(self._minimum)

    def compute_as(self, batch_size: int, n_threads: int, precision: str = "exact") -> None:
        """Measure in such batches, threads and precision from now on; all of them show in a value's last bits."""
        with self.lock:
            if (batch_size, n_threads, precision) != (self.batch_size, self.n_threads, self.precision):
                self.batch_size, self.n_threads, self.precision = batch_size, n_threads, precision
                self._minimum = self._seconds = None  # to be measured again, in the same way

    def measure_current(self) -> Values:
        """Measure the network as its weights and buffers now stand; engines write these first."""
        return self.summarize(self.gather()[0])

    def measure_batch(self, batch: Batch) -> Gathered:
        """Run the network as it stands on a batch and give its losses, with their graph where gradients are on."""
        return self._measures(self.network(batch.inputs), batch.answer, batch.size)["loss"]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold what many measurements share: the lock, the arithmetic, the threads. One in another costs nothing."""
        with self.lock:
            if self._is_measuring:
                yield
                return
            self._is_measuring = True
            try:
                with torch.no_grad(), arithmetic(self.device, self.precision), using_threads(self.n_threads):
                    yield
            finally:
                self._is_measuring = False

    def gather(
        self, forward: Forward | None = None, n_cells: int = 1, positions: Mapping[str, Tensor] | None = None
    ) -> list[PerExample]:
        """Measure every example at the weights as they now stand.

        Parameters
        ----------
        forward : callable, optional
            Gives the answers of `n_cells` cells to a batch of inputs; by default the network's own.
        n_cells : int
            How many cells `forward` runs at once.
        positions : mapping of str to Tensor, optional
            Measure these examples of each split only, shape ``(m,)``, int64.

        Returns
        -------
        list of dict
            For each cell ``{(split, name): values}``, in float64.
        """
        forward = forward or (lambda batch, _: [self.network(batch.inputs)])
        cells: list[PerExample] = [{} for _ in range(n_cells)]
        with self.measuring():
            if self.buffers == "recompute":
                first = self.examples[self.splits[0]]
                self._fitting(lambda size: self.network.recompute_buffers(first, size))
            for split in self.splits:
                examples = self.examples[split]
                if positions is not None:
                    examples = examples.pick(positions[split])
                own = split if positions is None else None
                for cell, found in zip(cells, self._gather_split(examples, own, forward, n_cells), strict=True):
                    cell |= {(split, name): values for name, values in found.items()}
        return cells

    def summarize(self, gathered: PerExample) -> Values:
        """Reduce all examples' values to means and, of a subset, their standard errors.

        Returns
        -------
        dict
            As `measure`.
        """
        # All values first, then one sum in float64: the batch size and the order must not show in the mean.
        values: Values = {}
        for split in self.splits:
            found = {name: measured for (part, name), measured in gathered.items() if part == split}
            values |= {(split, name): measured.mean() for name, measured in found.items()}
            if self.n_examples != self.n_total:
                values |= {
                    (split, f"{name}_se"): standard_error(measured.values, measured.weights, self.n_total[split])
                    for name, measured in found.items()
                    if measured.per_example
                }
        return values

    def _gather_split(
        self, examples: Examples, split: str | None, forward: Forward, n_cells: int
    ) -> list[dict[str, Gathered]]:
        def run(batch_size: int) -> list[dict[str, list[Gathered]]]:
            cells: list[dict[str, list[Gathered]]] = [{} for _ in range(n_cells)]
            for batch in examples.batches(batch_size):
                for cell, output in zip(cells, forward(batch, split), strict=True):
                    for name, measured in self._measures(output, batch.answer, batch.size).items():
                        cell.setdefault(name, []).append(measured)
            return cells

        return [{name: Gathered.join(parts) for name, parts in cell.items()} for cell in self._fitting(run)]

    def _fitting(self, run: Callable[[int], R]) -> R:
        """Run in batches that fit into memory: where it runs out, they are halved, for all that follows too."""
        while True:
            try:
                return run(self.batch_size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
                log.warning("memory ran out at batches of %d examples; going on with half of it", self.batch_size)
                self.batch_size = (self.batch_size + 1) // 2
            # Outside of the except block, whose traceback keeps the tensors that were too large alive.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _settle(self) -> int:
        """Run two examples of each split, so that faults show here and measures settle; size one example's answer."""
        largest = 1
        with torch.no_grad(), arithmetic(self.device):
            for split, examples in self.examples.items():
                batch = examples.take(slice(0, 2))
                try:
                    output = self.network(batch.inputs)
                except Exception as error:
                    lifted = (
                        f" Its half-precision weights are lifted to {self.dtype}: where forward casts to half, let it "
                        "cast to the dtype of its weights."
                    )
                    raise ValueError(
                        f"the model ({self.model_name}) fails on the inputs of split {split!r} ({examples.shapes()}) "
                        f"with {type(error).__name__}: {error}. Give them as its forward takes them; whole numbers "
                        f"stay as they are, others become {self.dtype}.{lifted if self.network.was_half else ''}"
                    ) from error
                self._check_target(split, output, examples)
                try:
                    self._measures.settle(output, batch.answer, batch.size)
                except Exception as error:
                    raise ValueError(
                        f"loss {self._measures.loss_name!r} or a metric fails on split {split!r} with "
                        f"{type(error).__name__}: {error}"
                    ) from error
                answer = getattr(output, "logits", output)
                if isinstance(answer, Tensor) and answer.ndim:
                    largest = max(largest, answer[0].numel())
        return largest

    def _check_target(self, split: str, output: Any, examples: Examples) -> None:
        name, target = self._measures.loss_name, examples.target
        if target is None and name in LOSSES:
            raise ValueError(
                f"loss={name!r} needs a target, and split {split!r} is one batch dict ({examples.shapes()}) that goes "
                "to the model as a whole. Give (inputs, target), where inputs may be a dict, or a loss of your own, "
                "for instance loss=lambda output, batch: output.loss."
            )
        if target is not None and name == "cross_entropy":
            require_labels(output, target, f"split {split!r}")
        elif target is not None and self._measures.choose_metrics and is_classification(output, target[:2]):
            try:
                require_labels(output, target, f"split {split!r}")
            except ValueError as error:  # a loss with an ignore_index of its own, for instance
                log.warning("accuracy is left out, since it would count what is no class as wrong: %s", error)
                self._measures.leave_accuracy_out()

    def verify(self) -> None:
        """Measure the minimizer a second time and compare, before a grid is trusted to this objective.

        Raises
        ------
        ValueError
            If a value at the minimizer is NaN or infinite.
        NondeterministicObjective
            If the two measurements differ by more than 1e-6, relative and absolute.
        """
        first = self.at_minimizer()
        for (split, name), value in first.items():
            if not math.isfinite(value) and not name.endswith("_se"):  # of a single example the error is not known
                own = self.network.theta | self.network.buffers
                broken = [name for name, tensor in own.items() if not tensor.isfinite().all()]
                raise ValueError(
                    f"{name} on {split} is {value} at the minimizer itself. "
                    + (f"The model holds NaN or inf in {', '.join(broken[:5])}. " if broken else "")
                    + "Look at the model: are the weights loaded, the inputs finite and normalized as in training, the "
                    f"logits within {self.dtype}?"
                )
        second = self._measure_timed()
        for key, value in first.items():
            if not math.isclose(value, second[key], rel_tol=REPEAT_TOLERANCE, abs_tol=REPEAT_TOLERANCE) and not (
                math.isnan(value) and math.isnan(second[key])
            ):
                raise NondeterministicObjective(
                    f"two measurements of the same weights differ: {key[1]} on {key[0]} is {value!r}, then "
                    f"{second[key]!r}. Usual causes: functional dropout without training=self.training, a random "
                    "operation in forward, a layer that keeps state between calls, a loss that samples. Make them "
                    "deterministic in eval mode."
                )

    def check(self) -> str:
        """Verify the objective and report what it is.

        Returns
        -------
        str
            Some lines: model, examples, values at the minimizer, gradient norm, time per cell.

        Raises
        ------
        ValueError
            If a value at the minimizer is NaN or infinite.
        NondeterministicObjective
            If two measurements differ.
        """
        self.verify()
        lines = [
            f"{self.model_name}: {self.n_params:,} parameters, {self.network.flat.numel():,} of them move",
            f"loss {self._measures.loss_name} [{self.units}], buffers {self.buffers}, {self.dtype} on {self.device}, "
            f"batches of {self.batch_size}",
        ]
        minimum = self.at_minimizer()
        for split in self.splits:
            values = ", ".join(f"{name} {value:.6g}" for (part, name), value in minimum.items() if part == split)
            lines.append(f"{split}: {self.n_examples[split]} of {self.n_total[split]} examples; {values}")
        lines.append(f"gradient norm at the minimizer ({self.splits[0]}): {self.gradient_norm():.4g}")
        lines.append(f"two measurements agree to {REPEAT_TOLERANCE:g}; one takes {self.seconds_per_cell():.3g} s")
        return "\n".join(lines)

    def seconds_per_cell(self) -> float:
        """Time one measurement; the first one, with its set-up, is not counted."""
        self.at_minimizer()
        if self._seconds is None:
            self._measure_timed()
        return self._seconds or 0.0

    def _measure_timed(self) -> Values:
        start = time.perf_counter()
        values = self.measure(self.theta)
        self._seconds = time.perf_counter() - start
        return values

    def example_weights(self) -> dict[str, np.ndarray]:
        """Tell how much each example counts in the mean, by split; empty where all count the same."""
        if self._measures.count is None:
            return {}
        gathered = self.gather()[0]
        found = {split: gathered[split, "loss"].weights for split in self.splits}
        return {split: weights.cpu().numpy() for split, weights in found.items() if weights is not None}

    def gradient_norm(self) -> float:
        """Norm of the gradient of the first split's loss with respect to the weights, at the minimizer.

        Returns
        -------
        float
            In units of the loss per unit of weight: how far from a critical point on these examples. NaN
            where the loss has no gradient.
        """
        with self.lock, arithmetic(self.device), without_cudnn():
            self.network.flat.copy_(self.network.flatten(self.theta))
            self.network.write_buffers({})
            examples = self.examples[self.splits[0]]
            if self.buffers == "recompute":
                with torch.no_grad():
                    self.network.recompute_buffers(examples, self.batch_size)
            total = 0.0
            try:
                with self.network.gradients() as gradient:
                    # A quarter of a batch: the graph keeps every activation, where measuring keeps one at a time.
                    for batch in examples.batches(-(-self.batch_size // 4)):
                        loss = self.measure_batch(batch)
                        loss.sum().backward()
                        total += loss.total_weight()
                    return float(gradient().norm()) / total
            except RuntimeError as error:
                log.info("no gradient norm: %s", error)
                return math.nan


def _build(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    built = model() if callable(model) and not isinstance(model, nn.Module | type) else model
    if not isinstance(built, nn.Module):
        made = "" if built is model else f", a function that returns a {type(built).__name__}"
        raise ValueError(
            f"model is a {type(model).__name__}{made}; a torch.nn.Module is wanted, or a function without arguments "
            "that returns one."
        )
    return built


def model_name(model: nn.Module) -> str:
    """Name a model: as the zoo built it, or by its class."""
    options: Mapping[str, object] | None = getattr(model, "zoo_config", None)
    if not options:
        return type(model).__name__
    details = ", ".join(f"{key}={value}" for key, value in options.items() if key != "name")
    return f"{options['name']}({details})"
