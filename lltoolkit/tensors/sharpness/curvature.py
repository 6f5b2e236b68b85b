"""Sharpness as curvature at the minimizer: numbers from Hessian-vector products."""

import logging
import math

import torch

from lltoolkit.errors import require_whole
from lltoolkit.tensors.directions import random_subspace
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.lanczos import extreme_eigenvalues
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import ParameterFilter
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.sharpness.measure import Estimate, average

log = logging.getLogger(__name__)


def lambda_max(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    parameters: ParameterFilter = None,
    tol: float = 1e-3,
    max_steps: int = 500,
) -> Estimate:
    """Find the largest eigenvalue of the Hessian of the mean loss.

    Formula: ``max_d d^T H d / d^T d``. Units: those of the loss, per unit of weight squared. Range: any real number;
    negative only where the loss curves down in every direction.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        Of the vector that Lanczos starts from.
    parameters : str, callable or None
        Which weights are variables; see `Hessian`. None: all. "weights": tensors with two or more axes, as in the
        code of Li et al. (2018).
    tol : float
        The residuals at both ends of the spectrum are at most ``tol`` times the value; the value's own error is of the
        order of ``tol`` squared.
    max_steps : int
        Hessian-vector products at most.

    Returns
    -------
    Estimate
        Without a standard error. ``censored`` where Lanczos did not converge: a Ritz value is never above the
        eigenvalue (but for rounding), so the value is a lower bound.

    Notes
    -----
    What is contested: it changes when the layers of a ReLU network are scaled against each other and the function
    stays the same (Dinh et al. 2017), so models compare only where nothing rescales them. A filter before batch norm
    has a free scale, which weight decay and learning rate set and not the data: scaled up by a with its statistics,
    its block of the Hessian falls by a^2. With cross-entropy and no weight decay the value shrinks with the train
    loss, and then says how long a model was trained. Under full-batch gradient descent it ends near 2 / lr (Cohen et
    al. 2021): it may say more of the optimizer than of generalization. Of a ReLU network it misses what the kinks
    add.

    References
    ----------
    Dinh et al. (2017), Sharp Minima Can Generalize For Deep Nets; Cohen et al. (2021), Gradient Descent on
    Neural Networks Typically Occurs at the Edge of Stability.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> objective = Objective(model, (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)), loss="mse")
    >>> round(lambda_max(objective).value, 4)  # the mean of x^2 w^2 has the second derivative 2 * 5
    10.0
    """
    hessian = Hessian(objective, split=split, parameters=parameters)
    start = torch.randn(hessian.n, generator=generator("sharpness", "lambda_max", seed), dtype=torch.float64)
    with hessian.at() as point:
        found = extreme_eigenvalues(point, start.to(hessian.device, hessian.dtype), tol=tol, max_steps=max_steps)
    unsure = not found.converged and math.isfinite(found.eig_max)
    if unsure:
        log.warning(
            "lambda_max: Lanczos has not converged after %d products (residuals %.3g and %.3g of %.6g): the value is a "
            "lower bound. Raise max_steps, or tol.",
            found.n_hvp,
            found.residual_min,
            found.residual_max,
            found.eig_max,
        )
    return Estimate(found.eig_max, censored=unsure)


def trace(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    parameters: ParameterFilter = None,
    n_probes: int = 32,
) -> Estimate:
    """Estimate the trace of the Hessian of the mean loss.

    Formula: ``tr H = E[v^T H v]`` over vectors of random signs (Hutchinson 1989). Units: those of the loss, per unit of
    weight squared. Range: any real number, at a minimum at least 0. It is the sum of all eigenvalues, so it grows with
    the number of weights.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        Of the probes.
    parameters : str, callable or None
        Which weights are variables; see `Hessian`.
    n_probes : int
        Vectors of random signs, each with one Hessian-vector product.

    Returns
    -------
    Estimate
        With the standard error over probes; the variance of one is twice the sum of the squares of the Hessian's
        off-diagonal entries.

    Notes
    -----
    What is contested: the same rescalings as for `lambda_max` change it, and it shrinks with the train loss in the same
    way. It is what an average over small Gaussian perturbations sees (``sigma^2 / 2 * tr H``), so it is nearer to
    PAC-Bayes bounds than the largest eigenvalue is. Negative eigenvalues cancel positive ones without a trace.

    References
    ----------
    Hutchinson (1989), A stochastic estimator of the trace of the influence matrix; Yao et al. (2020), PyHessian.
    """
    hessian = Hessian(objective, split=split, parameters=parameters)
    values = []
    with hessian.at() as point:
        for probe in range(require_whole("n_probes", n_probes, least=1)):
            signs = torch.randint(2, (hessian.n,), generator=generator("sharpness", "trace", seed, probe))
            vector = (2 * signs - 1).to(hessian.device, hessian.dtype)
            values.append(float(torch.dot(vector.double(), point(vector).double())))
    return average(values)


def filter_curvature(objective: Objective, *, split: str | None = None, seed: int = 0, n_seeds: int = 10) -> Estimate:
    """Average the curvature of filter-normalized random slices: the number behind the paper's plots.

    Formula: ``E[d^T H d]`` over directions d as `random_subspace` draws them, the second derivative at 0 of the curve
    that a 1-D plot shows. Units: those of the loss (the direction is as long as the weights, so its coordinate has no
    units). Range: any real number, at a minimum at least 0.

    The expectation is the sum over filters of ``norm^2 / size`` times the trace of the filter's block of the Hessian: a
    random direction shows a weighted trace, in which every eigenvalue counts, and not `lambda_max`. A picture can look
    flat although one direction is steep.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        The directions are those of ``random_subspace(objective, dims=1, seed=s)`` for s from `seed` to
        ``seed + n_seeds - 1``: each can be plotted.
    n_seeds : int
        Directions, each with one Hessian-vector product.

    Returns
    -------
    Estimate
        With the standard error over directions.

    Raises
    ------
    ValueError
        If no weight that moves has two or more axes.

    Notes
    -----
    What is contested: it does not change when whole layers of a ReLU network are scaled against each other, nor when
    a filter is scaled before batch norm (statistics along), but it does when one filter is scaled against the
    matching column of the next layer, so it is no invariant of the function. Biases and batch-norm weights don't
    count. Li et al. (2018) compare pictures by eye; that their sharpness goes with test error is the claim, and this
    is its number.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, sections 4 and 5.
    """
    hessian = Hessian(objective, split=split, parameters="weights")
    values = []
    with hessian.at() as point:
        for place in range(require_whole("n_seeds", n_seeds, least=1)):
            vector = hessian.flatten(random_subspace(objective, dims=1, seed=seed + place).directions[0])
            values.append(float(torch.dot(vector.double(), point(vector).double())))
    return average(values)
