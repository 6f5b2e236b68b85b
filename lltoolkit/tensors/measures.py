"""Loss and metrics of one batch, in float64 from the model's output on."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lltoolkit.errors import require_choice

Measure: TypeAlias = Callable[[Any, Any], Tensor]
IGNORED = -100  # the label that torch's cross-entropy leaves out: padding in token targets

RESERVED = ("status", "split", "alpha", "beta", "gamma")  # names that a result uses for something else

log = logging.getLogger(__name__)


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """Cross-entropy of each example in nats, shape ``(B,)``; the mean over positions where there are several."""
    logits = class_axis_second(logits_of(output), target)
    target = target.long()  # torch takes no int32 labels, which many files hold
    if logits.ndim == 2:  # examples side by side in memory: a few classes fill no vector register, examples do
        side_by_side = logits.T.contiguous()[None]
        return functional.cross_entropy(side_by_side, target[None], reduction="none", ignore_index=IGNORED)[0]
    losses = functional.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
    return _mean_over_positions(losses, target)


def accuracy(output: Any, target: Tensor) -> Tensor:
    """Share of right answers of each example in [0, 1], shape ``(B,)``; NaN where the model's answer is NaN."""
    logits = class_axis_second(logits_of(output), target)
    largest, answer = logits.max(dim=1)  # NaN where any of the logits is
    right = (answer == target).double().masked_fill_(largest.isnan(), torch.nan)
    return _mean_over_positions(right, target.long())


def mse(output: Any, target: Tensor) -> Tensor:
    """Squared error of each example, shape ``(B,)``: the mean over its outputs."""
    output = logits_of(output)
    if _shape(output) != _shape(target):
        raise ValueError(
            f"the output {tuple(output.shape)} and the target {tuple(target.shape)} differ in shape; axes of length 1 "
            "aside, they must agree."
        )
    return (output - target.reshape(output.shape)).square().reshape(len(output), -1).mean(dim=1)


def _shape(tensor: Tensor) -> list[int]:
    return [*tensor.shape[:1], *(length for length in tensor.shape[1:] if length != 1)]


def _mean_over_positions(values: Tensor, target: Tensor) -> Tensor:
    if values.ndim == 1:
        return values
    counted = (target != IGNORED).flatten(1)
    return torch.where(counted, values.flatten(1), 0).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


LOSSES: dict[str, Measure] = {"cross_entropy": cross_entropy, "mse": mse}
METRICS: dict[str, Measure] = {"accuracy": accuracy}
UNITS = {"cross_entropy": "nat"}


def logits_of(output: Any) -> Tensor:
    """Take the tensor out of a model's answer.

    Returns
    -------
    Tensor
        The answer itself, or its ``.logits`` (Hugging Face), in float64.

    Raises
    ------
    ValueError
        If the output is neither.
    """
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model returns a {type(output).__name__}; a tensor or an object with .logits is wanted. "
            "Otherwise pass loss=, a function of (output, target)."
        )
    return output.double()


def class_axis_second(logits: Tensor, target: Tensor) -> Tensor:
    """Bring logits into torch's order.

    Returns
    -------
    Tensor
        ``(B, C, ...)``; moved there from ``(B, ..., C)`` where only that fits the target.

    Raises
    ------
    ValueError
        If no axis order fits the target.
    """
    if logits.ndim == target.ndim + 1:
        if logits.shape[:1] + logits.shape[2:] == target.shape:
            return logits
        if logits.shape[:-1] == target.shape:
            return logits.movedim(-1, 1)
    raise ValueError(
        f"logits {tuple(logits.shape)} do not fit the target {tuple(target.shape)}: wanted are (B, C) with class "
        "labels (B,), (B, C, ...) or (B, ..., C) with (B, ...). For regression use loss='mse'."
    )


def is_classification(output: Any, target: Any) -> bool:
    """Tell whether the target holds class labels of the model's output."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        return False
    try:
        logits = class_axis_second(logits_of(output), target)
    except ValueError:
        return False
    return logits.shape[1] > 1  # the class of a single logit is a matter of its sign, which argmax does not see


def require_labels(output: Any, target: Tensor, where: str) -> None:
    """Check class labels against the number of classes.

    Raises
    ------
    ValueError
        With the range found and the range allowed.
    """
    if target.is_floating_point():
        raise ValueError(
            f"{where}: the labels are {target.dtype}; class labels are whole numbers (torch.long). For a "
            "regression use loss='mse'; for soft labels pass a loss of your own."
        )
    try:
        n_classes = class_axis_second(logits_of(output), target[: len(logits_of(output))]).shape[1]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    counted = target if target.ndim == 1 else target[target != IGNORED]
    low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"{where}: labels run from {low} to {high}, the model has {n_classes} classes, so 0 to {n_classes - 1} are "
            "allowed. Check the labels, or build the model with more classes (n_classes)."
        )


@dataclass(frozen=True)
class Gathered:
    """Values of one quantity over examples, and how much each counts in their mean.

    Attributes
    ----------
    values : Tensor
        Shape ``(n,)``, float64.
    weights : Tensor or None
        The same shape; None where each counts as one.
    per_example : bool
        Whether each value belongs to one example; otherwise to a batch.
    """

    values: Tensor
    weights: Tensor | None
    per_example: bool

    @classmethod
    def join(cls, parts: Sequence["Gathered"]) -> "Gathered":
        """Put the values of several batches together, in order."""
        if len(parts) == 1:
            return parts[0]
        weights = None
        if any(part.weights is not None for part in parts):
            weights = torch.cat([torch.ones_like(p.values) if p.weights is None else p.weights for p in parts])
        return cls(torch.cat([p.values for p in parts]), weights, all(p.per_example for p in parts))

    def sum(self) -> Tensor:
        """Sum the weighted values, a scalar that still has its gradient."""
        return self.values.sum() if self.weights is None else (self.weights * self.values).sum()

    def total_weight(self) -> float:
        """Sum the weights."""
        return float(self.values.numel() if self.weights is None else self.weights.sum())

    def mean(self) -> float:
        """Average the values; NaN where the weights sum to 0."""
        total = self.total_weight()
        return float(self.sum()) / total if total else math.nan


class Measures:
    """The loss and the metrics of an objective.

    Parameters
    ----------
    loss : str or callable
        A name of ``LOSSES``, or ``loss(output, target)`` (``loss(output, batch)`` for dict batches)
        returning per-example values ``(B,)`` or a mean.
    metrics : None, iterable of str, or mapping of str to callable
        None: accuracy where the task is a classification.
    count : callable, optional
        ``count(target or batch)``: how much each example (``(B,)``) or the batch (a number) counts in the
        mean, for instance its number of tokens.

    Raises
    ------
    ValueError
        For an unknown name, or a metric's name that a result needs for something else.
    """

    def __init__(
        self,
        loss: str | Measure,
        metrics: Iterable[str] | Mapping[str, Measure] | None,
        count: Callable[[Any], Tensor | float] | None,
    ) -> None:
        self.loss_name = loss if isinstance(loss, str) else _name(loss)
        self.units = UNITS.get(self.loss_name, "1")
        self.functions: dict[str, Measure] = {"loss": _resolve("loss", loss, LOSSES)}
        self.choose_metrics = metrics is None
        if isinstance(metrics, str):
            metrics = [metrics]
        for name in metrics or ():
            given = metrics[name] if isinstance(metrics, Mapping) else name
            if name in RESERVED or str(name).endswith("_se") or (name == "loss" and given != "loss"):
                raise ValueError(
                    f"a metric can't be called {name!r}: results use loss, *_se, {', '.join(RESERVED)} for something "
                    "else. Give it another name; the loss is set by loss=."
                )
            if name != "loss":
                self.functions[str(name)] = _resolve("metrics", given, METRICS)
        self.count = count
        self.exact: dict[str, bool] = {}

    @property
    def has_own_functions(self) -> bool:
        """Whether some function is the caller's, so that its name does not say what it computes."""
        known = [*LOSSES.values(), *METRICS.values()]
        return self.count is not None or any(function not in known for function in self.functions.values())

    def to(self, device: torch.device) -> None:
        """Move what loss modules hold, class weights for instance, to where the model answers."""
        for function in self.functions.values():
            if isinstance(function, nn.Module):
                function.to(device)

    def leave_accuracy_out(self) -> None:
        """Choose no accuracy, also where a split before had labels for one."""
        self.choose_metrics = False
        self.functions.pop("accuracy", None)

    def settle(self, output: Any, target: Any, size: int) -> None:
        """Decide from one small batch what depends on the model: accuracy or not, float64 or not; and try it."""
        if self.choose_metrics and is_classification(output, target):
            self.functions["accuracy"] = accuracy
        for name, function in self.functions.items():
            try:
                function(_cast(output), _cast(target))
                self.exact[name] = True
            except RuntimeError as error:
                # A loss with float32 constants of its own refuses float64 outputs; any other fault shows again here.
                function(output, _cast(target, torch.float32))
                self.exact[name] = False
                log.info("%s is computed in the model's own precision: in float64 it fails with %s", name, error)
        self(output, target, size)

    def __call__(self, output: Any, target: Any, size: int) -> dict[str, Gathered]:
        """Measure one batch.

        Returns
        -------
        dict
            Name to what was measured: one value per example, or one for the batch where the function returns a mean.

        Raises
        ------
        ValueError
            If a function returns another shape.
        """
        exact = (_cast(output), _cast(target)) if any(self.exact.values()) else None
        measured = {}
        for name, function in self.functions.items():
            given = exact if exact and self.exact[name] else (output, _cast(target, torch.float32))
            values = torch.as_tensor(function(*given)).double()
            if values.shape not in ((), (size,)):
                raise ValueError(
                    f"{name} has the shape {tuple(values.shape)} for a batch of {size}: return one value per example, "
                    f"({size},), or their mean, a single number."
                )
            weights = self._weights(name, target, size, values)
            measured[name] = Gathered(values.reshape(-1), weights, per_example=values.ndim == 1)
        return measured

    def _weights(self, name: str, target: Any, size: int, values: Tensor) -> Tensor | None:
        """Weights of `values` in the mean over all examples, float64; None where each counts as one."""
        if self.count is None:
            return None if values.ndim else torch.full((1,), float(size), dtype=torch.float64, device=values.device)
        counted = torch.as_tensor(self.count(target)).to(device=values.device, dtype=torch.float64)
        if values.ndim == 0:
            return counted.sum().reshape(1)
        if counted.shape != values.shape:
            raise ValueError(
                f"count returned the shape {tuple(counted.shape)}, {name} has {tuple(values.shape)}: values per "
                f"example need a count per example. Return ({size},), or leave {name} out (metrics=[])."
            )
        return counted

    def config(self) -> dict[str, object]:
        """Describe the choice for the record."""
        return {
            "loss": self.loss_name,
            "metrics": {name: _name(function) for name, function in self.functions.items() if name != "loss"},
            "count": "none" if self.count is None else _name(self.count),
        }


def _resolve(argument: str, given: str | Measure, known: Mapping[str, Measure]) -> Measure:
    if isinstance(given, str):
        require_choice(argument, given, known)
        return known[given]
    if isinstance(given, nn.Module):
        return copy.deepcopy(given).double().eval()  # its own constants, class weights for instance, in float64 too
    if not callable(given):
        raise ValueError(f"{argument}={given!r} is neither a name ({', '.join(known)}) nor a function.")
    return given


def _name(function: Any) -> str:
    if isinstance(function, nn.Module):
        return repr(function)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def _cast(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Cast floating-point tensors, and those in a tuple or dict; anything else stays as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(part, dtype) for part in value)
    if type(value) is dict:
        return {key: _cast(part, dtype) for key, part in value.items()}
    return value


def standard_error(values: Tensor, weights: Tensor | None, n_total: int) -> float:
    """Estimate the standard error of a weighted mean over examples drawn without replacement.

    Parameters
    ----------
    values, weights : Tensor
        Shape ``(n,)``, float64; weights None for equal ones.
    n_total : int
        Size of what they were drawn from, at least n.

    Returns
    -------
    float
        ``s / sqrt(n) * sqrt(1 - n / n_total)`` for equal weights (the last factor is the correction for a
        finite population, 0 where everything was drawn); linearized for a ratio of sums otherwise. NaN for a
        single example of more.
    """
    n = values.numel()
    if n == n_total:
        return 0.0
    if n < 2:
        return math.nan
    weights = torch.ones_like(values) if weights is None else weights
    residuals = weights * (values - (weights * values).sum() / weights.sum())
    variance = residuals.square().sum() / (n - 1) * n / weights.sum().square()
    return float((variance * (1 - n / n_total)).sqrt())
