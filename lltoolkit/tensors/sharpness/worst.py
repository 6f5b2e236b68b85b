"""Sharpness as a worst case: how much the loss rises within a box or a ball around the minimizer."""

import math

import torch
from torch import Tensor

from lltoolkit.errors import require_whole
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.sharpness.ascent import Ball, Box, rise_within
from lltoolkit.tensors.sharpness.gradients import LossAt
from lltoolkit.tensors.sharpness.measure import Estimate, average, require_positive


def keskar_epsilon(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    eps: float = 1e-3,
    n_steps: int = 20,
    logit_normalized: bool = False,
) -> Estimate:
    """Find how much the loss rises, in the worst case, within a box around the minimizer.

    Formula: ``100 * (max f - f) / (1 + f)``, the maximum over ``|z_i| <= eps (|x_i| + 1)``. Units: percent (of
    1 + f, so not quite a share of anything). Range: at least 0.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data, all of its examples; by default the first.
    seed : int
        Of a first point, where the gradient is exactly 0.
    eps : float
        Size of the box; Keskar et al. (2017) have 1e-3 and 5e-4.
    n_steps : int
        Gradients at most. Theirs were 10 iterations of L-BFGS-B; here they are steps towards the corner that the
        gradient's signs point to, see `rise_within`.
    logit_normalized : bool
        Of the loss of normalized logits; see `sam`.

    Returns
    -------
    Estimate
        A lower bound of the maximum: it is searched for, not proven.

    Raises
    ------
    ValueError
        If a number is out of range, or logits are to be normalized and there are no class labels or fewer than 3.

    Notes
    -----
    What is contested: Dinh et al. (2017) scale layers and make sharpness as large as they like, with the function
    unchanged: the half-width of this box only goes from `eps` to twice `eps` as a weight grows from 0 to 1, so small
    weights are moved by many times their size. It is the full-space variant (A = I); theirs with random
    subspaces of 100 dimensions is not here. A box in n dimensions has corners at a distance of ``eps sqrt(n)``, so
    larger models are looked at farther out.

    References
    ----------
    Keskar et al. (2017), On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima, metric 2.1;
    Dinh et al. (2017), Sharp Minima Can Generalize For Deep Nets.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> torch.nn.init.zeros_(model.weight).item()
    0.0
    >>> objective = Objective(model, (torch.ones(1, 1), torch.zeros(1, 1)), loss="mse")
    >>> round(keskar_epsilon(objective, eps=0.1).value, 4)  # w^2 at w = 0.1 (0 + 1)
    1.0
    """
    eps, n_steps = require_positive("eps", eps), require_whole("n_steps", n_steps, least=1)
    loss = LossAt(objective, objective.splits[0] if split is None else split, logit_normalized=logit_normalized)
    with objective.measuring():
        base, rise = rise_within(
            loss, Box(eps * (loss.theta.abs() + 1)), n_steps=n_steps, generator=generator("sharpness", "keskar", seed)
        )
    return Estimate(100 * rise / (1 + base))


def sam(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    rho: float = 0.05,
    n_steps: int = 20,
    m: int = 128,
    n_batches: int = 8,
    logit_normalized: bool = False,
) -> Estimate:
    """Find how much the loss of a batch rises, in the worst case, within a ball around the minimizer.

    Formula: the mean over batches B of m examples of ``max L_B(theta + d) - L_B(theta)`` over ``||d||_2 <= rho``.
    Units: those of the loss. Range: at least 0.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        Of the draw of batches.
    rho : float
        Radius, in the units of the weights; 0.05 is the default of Foret et al. (2021).
    n_steps : int
        Gradients at most; 20 as in the code of Andriushchenko et al. (2023). With 1 it is SAM's own first-order step.
    m : int
        Examples in a batch: part of the definition. The smaller, the larger the value, for each batch has a worst case
        of its own. Where the split has fewer, they are one batch.
    n_batches : int
        Batches without common examples (8 of 128 in the evaluation of Andriushchenko et al. 2023); fewer where the
        split has no more. Models compare on the same ones: same split, same `seed`.
    logit_normalized : bool
        Divide the logits of each example by the root mean square of their differences from their mean (Andriushchenko
        et al. 2023, section 3). The loss then does not see the scale of the logits, which changes no decision: with
        `asam` the value is the same however the last layer is scaled. It is the sharpness of another loss than the one
        that was trained. It takes three classes or more: of two, the normalized logits are always 1 and -1.

    Returns
    -------
    Estimate
        A lower bound of the maximum, since it is searched for; the standard error is over batches, NaN for one batch.

    Raises
    ------
    ValueError
        If a number is out of range, or logits are to be normalized and there are no class labels or fewer than 3.

    Notes
    -----
    What is contested: it changes with every rescaling that leaves the function as it is (see `asam`), of a filter
    before batch norm, too. Foret et al. (2021) find it more predictive the smaller m is; Andriushchenko et al. (2023)
    find that it rather goes with the learning rate, and can even go against generalization.

    References
    ----------
    Foret et al. (2021), Sharpness-Aware Minimization for Efficiently Improving Generalization, section 2;
    Andriushchenko et al. (2023), A Modern Look at the Relationship between Sharpness and Generalization.
    """
    weights = objective.network.flatten(objective.theta).double()
    ball = Ball(torch.ones_like(weights), require_positive("rho", rho))
    return _over_batches(objective, ball, split, seed, n_steps, m, n_batches, logit_normalized)


def asam(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    rho: float = 0.5,
    n_steps: int = 20,
    m: int = 128,
    n_batches: int = 8,
    logit_normalized: bool = False,
) -> Estimate:
    """Find how much the loss of a batch rises, in the worst case, within a ball that is scaled to each weight.

    Formula: the mean over batches B of m examples of ``max L_B(theta + d) - L_B(theta)`` over ``||d / |theta|||_2 <=
    rho``, entry by entry. Units: those of the loss. Range: at least 0.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        Of the draw of batches.
    rho : float
        Radius, without units: relative changes of all weights, their squares summed. 0.5 is what Kwon et al. (2021)
        train with on CIFAR-10.
    n_steps, m, n_batches, logit_normalized
        As for `sam`.

    Returns
    -------
    Estimate
        A lower bound of the maximum, with a standard error over batches.

    Raises
    ------
    ValueError
        If a number is out of range, or logits are to be normalized and there are no class labels or fewer than 3.

    Notes
    -----
    It does not change under any rescaling of single weights that leaves the function as it is: layers of ReLU
    networks, one filter against the next layer's column, filters before batch norm (statistics along), query against
    key. Kwon et al. (2021) add 0.01 to the scale when they train; here it is left out, since it would break that. So
    a weight of exactly 0 (a fresh batch norm's bias) does not move.

    What is contested: invariance alone does not make it go with generalization. Andriushchenko et al. (2023) find that
    sharpness, adaptive sharpness included, does not correlate well with generalization in modern settings, and that the
    right measure depends on the data. Rotations of heads and other symmetries that mix weights do change it.

    References
    ----------
    Kwon et al. (2021), ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
    Networks, section 3; Andriushchenko et al. (2023), A Modern Look at the Relationship between Sharpness and
    Generalization.
    """
    weights = objective.network.flatten(objective.theta).double()
    ball = Ball(weights.abs(), require_positive("rho", rho))
    return _over_batches(objective, ball, split, seed, n_steps, m, n_batches, logit_normalized)


def _over_batches(
    objective: Objective,
    ball: Ball,
    split: str | None,
    seed: int,
    n_steps: int,
    m: int,
    n_batches: int,
    logit_normalized: bool,
) -> Estimate:
    split = objective.splits[0] if split is None else split
    n_steps = require_whole("n_steps", n_steps, least=1)
    rises = []
    with objective.measuring():
        for place, positions in enumerate(draw_batches(objective.n_examples[split], m, n_batches, seed)):
            loss = LossAt(objective, split, positions=positions, logit_normalized=logit_normalized)
            stream = generator("sharpness", "ball", seed, place)
            rises.append(rise_within(loss, ball, n_steps=n_steps, generator=stream)[1])
    return average(rises) if len(rises) > 1 else Estimate(rises[0], math.nan)


def draw_batches(n_examples: int, m: int, n_batches: int, seed: int) -> list[Tensor]:
    """Draw batches without common examples.

    Parameters
    ----------
    n_examples : int
        Size of the split.
    m, n_batches : int
        Examples in a batch, and batches, if there are enough examples.
    seed : int
        Of the draw.

    Returns
    -------
    list of Tensor
        Positions, each of shape ``(min(m, n_examples),)``; in order, so that a split that is one batch is read as it
        is.

    Raises
    ------
    ValueError
        If a number is not above 0.
    """
    m = min(require_whole("m", m, least=1), n_examples)
    n_batches = min(require_whole("n_batches", n_batches, least=1), n_examples // m)
    shuffled = torch.randperm(n_examples, generator=generator("sharpness", "batches", seed))
    return [positions.sort().values for positions in shuffled[: m * n_batches].split(m)]
