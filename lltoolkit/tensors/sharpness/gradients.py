"""The loss of one split at flat weights, with its gradient; and the logits that it may be normalized by."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lltoolkit.tensors.differentiable import explained, require_second_derivatives, twice_differentiable
from lltoolkit.tensors.examples import Batch
from lltoolkit.tensors.machine import without_cudnn
from lltoolkit.tensors.measures import Gathered, class_axis_second, logits_of
from lltoolkit.tensors.objective import Objective

MIN_CLASSES = 3  # for logits to say anything after normalization


class LossAt:
    """The mean loss over one split, or some examples of it, as a function of flat weights.

    In eval mode, with the minimizer's batch-norm statistics, or with those estimated anew at each point if the
    objective says "recompute": there the gradient takes them as constants.

    Parameters
    ----------
    objective : Objective
        Whose loss; its network does the work.
    split : str
        The split of the data.
    positions : Tensor, optional
        Shape ``(m,)``, int64: only these examples of the split.
    logit_normalized : bool
        Divide the logits of each example by their standard deviation over the classes, so that their scale, which the
        decisions don't see, is not seen by the loss either (Andriushchenko et al. 2023, section 3).

    Attributes
    ----------
    theta : Tensor
        Shape ``(n,)``, float64, on the objective's device: the minimizer.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> objective = Objective(model, (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)), loss="mse")
    >>> loss = LossAt(objective, "train")  # the mean of x^2 w^2 is 5 w^2
    >>> loss(torch.tensor([2.0])), loss.with_gradient(torch.tensor([2.0]))[1].item()
    (20.0, 20.0)
    """

    def __init__(
        self,
        objective: Objective,
        split: str,
        *,
        positions: Tensor | None = None,
        logit_normalized: bool = False,
    ) -> None:
        self._objective = objective
        self._examples = objective.examples[split]
        if positions is not None:
            self._examples = self._examples.pick(positions)
        self._logit_normalized = logit_normalized
        self.theta = objective.network.flatten(objective.theta).double()

    def __call__(self, weights: Tensor) -> float:
        """Give the mean loss at `weights`, shape ``(n,)``."""

        def run(batch_size: int) -> float:
            return Gathered.join([self._measure(batch) for batch in self._examples.batches(batch_size)]).mean()

        with self._standing_at(weights):
            return self._objective._fitting(run)

    def with_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Give the mean loss at `weights` and its gradient, shape ``(n,)``, float64; zero where the loss has none."""
        objective = self._objective

        def run(batch_size: int) -> tuple[float, Tensor]:
            loss, total = 0.0, 0.0
            with objective.network.gradients() as gradient:
                # A quarter of a batch: the graph keeps every activation, where measuring keeps one at a time.
                for batch in self._examples.batches(-(-batch_size // 4)):
                    measured = self._measure(batch)
                    summed = measured.sum()
                    if summed.requires_grad:
                        summed.backward()
                    loss += float(summed.detach())
                    total += measured.total_weight()
                return loss / total, gradient() / total

        with self._standing_at(weights), without_cudnn():
            return objective._fitting(run)

    @contextmanager
    def _standing_at(self, weights: Tensor) -> Iterator[None]:
        with self._objective.measuring():
            stand_at(self._objective, weights)
            yield

    def _measure(self, batch: Batch) -> Gathered:
        if not self._logit_normalized:
            return self._objective.measure_batch(batch)
        output = self._objective.network(batch.inputs)
        normalized = normalize_logits(output, batch.target)
        return self._objective._measures(normalized, batch.answer, batch.size)["loss"]


def stand_at(objective: Objective, weights: Tensor) -> None:
    """Write flat weights and the buffers that belong to them into the network; inside of `Objective.measuring`."""
    network = objective.network
    network.flat.copy_(weights)
    network.write_buffers({})
    if objective.buffers == "recompute":
        first = objective.examples[objective.splits[0]]
        objective._fitting(lambda size: network.recompute_buffers(first, size))


def normalize_logits(output: object, target: Tensor | None) -> Tensor:
    """Divide logits by their standard deviation over the classes.

    Parameters
    ----------
    output : object
        The model's answer, with logits ``(B, C)``, ``(B, C, ...)`` or ``(B, ..., C)``.
    target : Tensor
        Class labels.

    Returns
    -------
    Tensor
        The same shape, float64: each example's (position's) logits over the root mean square of their differences
        from their mean. NaN where all logits of an example are equal.

    Raises
    ------
    ValueError
        If the target holds no class labels, or there are fewer than three classes: of two, the normalized logits are
        always 1 and -1, so the loss would not change with the weights but where a decision does.

    References
    ----------
    Andriushchenko et al. (2023), A Modern Look at the Relationship between Sharpness and Generalization, section 3.
    """
    if target is None or target.is_floating_point():
        raise ValueError(
            "logit_normalized=True needs class labels as the target, and there are none: it divides the logits by "
            "their spread over the classes. Leave it out, and the measures that are named *_logit_normalized."
        )
    logits = logits_of(output)
    axis = 1 if class_axis_second(logits, target) is logits else -1
    if (n_classes := logits.shape[axis]) < MIN_CLASSES:
        raise ValueError(
            f"logit_normalized=True needs {MIN_CLASSES} classes or more, and the logits are of {n_classes}: of two, "
            "normalized ones are 1 and -1 whatever the weights, and the value would always be 0. Leave it out, and the "
            "measures that are named *_logit_normalized."
        )
    return logits / logits.std(dim=axis, correction=0, keepdim=True)


def derivatives_along_theta(objective: Objective, split: str) -> Gathered:
    """Differentiate the loss of every example along the minimizer's weights themselves.

    Parameters
    ----------
    objective : Objective
        Whose loss.
    split : str
        The split of the data.

    Returns
    -------
    Gathered
        ``<theta, grad l_i>`` of each example, shape ``(n,)``, and how much each counts.

    Raises
    ------
    ValueError
        If the loss gives no value per example, or an operator has no second derivative.

    Notes
    -----
    The sum of ``s_i l_i`` has the gradient ``g(s)``, linear in s; the derivative of ``<theta, g(s)>`` by ``s_i`` is the
    number wanted. So two backward passes serve a whole batch, where gradients of single examples would need one each.
    """
    network = objective.network
    leaves = [parameter for group in network.views.values() for parameter in group]

    def along(batch: Batch) -> Gathered:
        measured = objective.measure_batch(batch)
        if not measured.per_example:
            raise ValueError(
                "fisher_rao needs the loss of every example, and this loss gives the mean of a batch. Return a tensor "
                "of shape (B,)."
            )
        values = measured.values
        if not values.requires_grad:
            return Gathered(torch.zeros_like(values), measured.weights, per_example=True)
        shares = torch.ones_like(values, requires_grad=True)
        try:
            slopes = torch.autograd.grad(values, leaves, grad_outputs=shares, create_graph=True, allow_unused=True)
            require_second_derivatives([values, *slopes], objective.model_name)
            parts = [
                (slope * leaf.detach()).sum() for slope, leaf in zip(slopes, leaves, strict=True) if slope is not None
            ]
            (found,) = torch.autograd.grad(torch.stack(parts).sum(), shares)
        except RuntimeError as error:
            raise explained(error, objective.model_name, "second") from error
        return Gathered(found.detach(), measured.weights, per_example=True)

    def run(batch_size: int) -> Gathered:
        with network.gradients():
            return Gathered.join([along(b) for b in objective.examples[split].batches(-(-batch_size // 4))])

    with objective.measuring(), twice_differentiable():
        stand_at(objective, network.flatten(objective.theta))
        return objective._fitting(run)
