"""Sharpness as the size of the basin: how far the loss stays within eps along filter-normalized directions."""

import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lltoolkit.errors import require_whole
from lltoolkit.tensors.directions import random_subspace
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.sharpness.gradients import LossAt
from lltoolkit.tensors.sharpness.measure import Estimate, require_positive

log = logging.getLogger(__name__)

N_RESAMPLES = 1000
SMALLEST_SHARE = 1e-6  # of r_max: where a loss has risen even there, rounding moves it, and not the weights
N_RUNGS = 6  # the search doubles the radius from r_max / 2^6 on


def volume_epsilon(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    eps: float = 0.1,
    r_max: float = 1.0,
    n_seeds: int = 10,
    tol: float = 0.01,
) -> Estimate:
    """Find the filter-normalized radius at which the loss has risen by `eps`.

    Formula: the median over random directions d and signs of ``min {r : L(theta + r d) - L(theta) >= eps}``. Units: 1,
    a share of the weights' own size. Range: [1e-6 r_max, r_max], or NaN. **Large is flat**, against all other measures.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        The directions are those of ``random_subspace(objective, dims=1, seed=s)`` for s from `seed` to
        ``seed + n_seeds - 1``.
    eps : float
        The rise, in units of the loss; above what rounding does to the loss.
    r_max : float
        Where the search ends; 1 is the edge of the paper's plots, where a direction is as long as the weights.
    n_seeds : int
        Directions; each is searched to both sides.
    tol : float
        Relative precision of a radius.

    Returns
    -------
    Estimate
        NaN, with a warning in the log, where the loss has risen by `eps` within ``1e-6 r_max`` of the minimizer: then
        `eps` is below the rounding of the loss. ``censored`` where the median lies at or beyond `r_max`; then it is a
        lower bound, without an error. The standard error comes from resampling directions with replacement, both sides
        of one together, since they are not independent; and the median's error has no simple formula.

    Raises
    ------
    ValueError
        If no weight that moves has two or more axes, or a number is not above 0.

    Notes
    -----
    What is contested: the name. A volume would be the mean of ``r^n`` over directions, in n dimensions, and is
    decided by the few widest directions, which no sample finds (Huang et al. 2020 call such averages volumes); the
    median radius is what can be estimated. Radii depend on `eps` and on the loss at the minimizer: of two models with
    one basin the one that was trained further has more to rise. The invariances are those of `filter_curvature`, of
    which it is the finite counterpart: about ``sqrt(2 eps / curvature)`` for a small `eps` at a minimum. A loss that
    is not finite counts as risen. The search doubles the radius and then bisects: a hump that is narrower than a
    factor of 2 may be jumped.

    References
    ----------
    Huang et al. (2020), Understanding Generalization through Visualizations; Li et al. (2018), Visualizing the Loss
    Landscape of Neural Nets, section 4.
    """
    eps, r_max, tol = (
        require_positive("eps", eps),
        require_positive("r_max", r_max),
        require_positive("tol", tol),
    )
    n_seeds = require_whole("n_seeds", n_seeds, least=1)
    if all(tensor.ndim < 2 for tensor in objective.theta.values()):
        raise ValueError(
            "volume_epsilon needs a weight with two or more axes among those that move: filter-normalized directions "
            "leave all others where they are. Leave the measure out."
        )
    loss = LossAt(objective, objective.splits[0] if split is None else split)
    base = loss(loss.theta)
    if not math.isfinite(base):
        return Estimate(math.nan)
    radii = torch.empty(n_seeds, 2, dtype=torch.float64)
    for place in range(n_seeds):
        direction = objective.network.flatten(random_subspace(objective, dims=1, seed=seed + place).directions[0])
        for side, step in enumerate((direction.double(), -direction.double())):
            radii[place, side] = _first_radius(partial(_has_risen, loss, step, base + eps), r_max, tol)
    if radii.isnan().any():
        log.warning(
            "volume_epsilon: in %d of %d directions and signs the loss of %.6g rises by eps=%g within %g of the "
            "minimizer: eps is below the loss's rounding, and the value is NaN. Raise eps, or compute in float64.",
            int(radii.isnan().sum()),
            radii.numel(),
            base,
            eps,
            SMALLEST_SHARE * r_max,
        )
        return Estimate(math.nan)
    return _median(radii, r_max, seed)


def _has_risen(loss: LossAt, step: Tensor, level: float, radius: float) -> bool:
    return not loss(loss.theta + radius * step) < level  # NaN has risen


def _first_radius(has_risen: Callable[[float], bool], r_max: float, tol: float) -> float:
    """Find where a loss has first risen; infinite where it has not up to `r_max`, NaN where it has at no distance."""
    below, above = 0.0, math.inf
    for rung in range(-N_RUNGS, 1):
        radius = r_max * 2.0**rung
        if has_risen(radius):
            above = radius
            break
        below = radius
    if above == math.inf:
        return math.inf
    while above - below > tol * above:
        if above < SMALLEST_SHARE * r_max:
            return math.nan
        middle = (below + above) / 2
        if has_risen(middle):
            above = middle
        else:
            below = middle
    return (below + above) / 2


def _median(radii: Tensor, r_max: float, seed: int) -> Estimate:
    """Take the median of radii ``(n_seeds, 2)``, infinite where censored, with a bootstrap over seeds."""
    clipped = radii.clamp_max(r_max)
    ordered = radii.flatten().sort().values
    value = float(clipped.quantile(0.5))
    if ordered[len(ordered) // 2].isinf():  # the upper of the two in the middle
        return Estimate(value, censored=True)
    if len(radii) == 1:
        return Estimate(value)
    draws = torch.randint(len(radii), (N_RESAMPLES, len(radii)), generator=generator("sharpness", "median", seed))
    return Estimate(value, float(clipped[draws].flatten(1).quantile(0.5, dim=1).std()))
