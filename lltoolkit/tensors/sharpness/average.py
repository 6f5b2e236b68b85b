"""Sharpness as an average: how much the loss rises under Gaussian noise on the weights."""

import torch

from lltoolkit.errors import require_whole
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.sharpness.gradients import LossAt
from lltoolkit.tensors.sharpness.measure import Estimate, average, require_positive


def average_perturbation(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    sigma: float = 0.01,
    magnitude_aware: bool = False,
    n_draws: int = 16,
    logit_normalized: bool = False,
) -> Estimate:
    """Average how much the loss rises under Gaussian noise on all weights.

    Formula: ``E[L(theta + sigma s xi)] - L(theta)`` with standard normal xi and s = 1, or ``s = |theta|`` entry by
    entry if `magnitude_aware`. Units: those of the loss. Range: any real number; negative where the minimizer is none.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data, all of its examples; by default the first.
    seed : int
        Of the noise.
    sigma : float
        Standard deviation of the noise: in units of the weights, or a share of each weight if `magnitude_aware`.
    magnitude_aware : bool
        Scale the noise to each weight; the registered name with it is ``average_perturbation_adaptive``, with a `sigma`
        of 0.1. It is then unchanged by rescalings of single weights, as `asam` is.
    n_draws : int
        Draws, each with both signs: what is linear in the noise cancels and adds nothing to the error.
    logit_normalized : bool
        Of the loss of normalized logits; see `sam`.

    Returns
    -------
    Estimate
        With the standard error over draws.

    Raises
    ------
    ValueError
        If a number is out of range, or logits are to be normalized and there are no class labels or fewer than 3.

    Notes
    -----
    For a small `sigma` it is ``sigma^2 / 2 * sum_i s_i^2 H_ii``: half of `trace`, weighted. It is the sharpness term of
    PAC-Bayes bounds, but not a bound: those choose sigma for each model, so that the error under noise stays below a
    given one (Jiang et al. 2020; here one sigma serves all models), and add the distance from the prior.

    What is contested: in Jiang et al. (2020) sharpness measures of this kind go best with generalization, in particular
    the magnitude-aware ones; Dziugaite et al. (2020) find none that is robust over all of their environments.

    References
    ----------
    Jiang et al. (2020), Fantastic Generalization Measures and Where to Find Them; Dziugaite et al.
    (2020), In search of robust measures of generalization.
    """
    sigma = require_positive("sigma", sigma)
    n_draws = require_whole("n_draws", n_draws, least=1)
    loss = LossAt(objective, objective.splits[0] if split is None else split, logit_normalized=logit_normalized)
    scale = sigma * loss.theta.abs() if magnitude_aware else sigma
    with objective.measuring():
        base = loss(loss.theta)
        rises = []
        for draw in range(n_draws):
            stream = generator("sharpness", "average", seed, draw)
            noise = torch.randn(loss.theta.shape, generator=stream, dtype=torch.float64).to(loss.theta) * scale
            rises.append((loss(loss.theta + noise) + loss(loss.theta - noise)) / 2 - base)
    return average(rises)
