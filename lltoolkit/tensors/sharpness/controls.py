"""Controls: numbers that know nothing of the loss, and that a sharpness measure should beat."""

from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import Params, norm, subtract
from lltoolkit.tensors.sharpness.measure import Estimate
from lltoolkit.tensors.subspace import require_fit


def weight_norm(objective: Objective) -> Estimate:
    """Compute the Euclidean norm of all weights that move.

    Formula: ``||theta||_2``. Units: 1. Range: at least 0. Nothing of the data or the loss is in it.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.

    Returns
    -------
    Estimate
        Exact.

    Notes
    -----
    A control: weight decay, width and batch norm move it, and plain sharpness measures with it. A measure that goes
    with generalization no better than this one says nothing of curvature. It changes under every rescaling.

    References
    ----------
    Jiang et al. (2020), Fantastic Generalization Measures and Where to Find Them, where norms go badly
    with generalization.

    Examples
    --------
    >>> from torch import nn, ones
    >>> model = nn.Linear(4, 1, bias=False)
    >>> nn.init.ones_(model.weight).sum().item()
    4.0
    >>> weight_norm(Objective(model, (ones(2, 4), ones(2, 1)), loss="mse")).value
    2.0
    """
    return Estimate(norm(objective.theta))


def distance_from_init(objective: Objective, *, initial: Params | None = None) -> Estimate:
    """Compute the Euclidean distance of the weights that move from those at initialization.

    Formula: ``||theta - theta_0||_2``. Units: 1. Range: at least 0. Nothing of the data or the loss is in it.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    initial : Params
        The weights at initialization, by parameter name; further names, buffers for instance, are not looked at.

    Returns
    -------
    Estimate
        Exact.

    Raises
    ------
    ValueError
        If `initial` is missing, or of another model.

    Notes
    -----
    A control: the length of the way, which grows with learning rate and training time. It is the term of the prior in
    PAC-Bayes bounds with a prior at the initialization. It changes under every rescaling of the trained weights.

    References
    ----------
    Nagarajan and Kolter (2019), Generalization in Deep Networks: The Role of Distance from Initialization.
    """
    if initial is None:
        raise ValueError("distance_from_init needs the weights at initialization: give initial=, by parameter name.")
    require_fit(initial, objective.theta, what="initial", against="this objective", extra=initial)
    there = {name: initial[name].detach().cpu().double() for name in objective.theta}
    return Estimate(norm(subtract({name: tensor.double() for name, tensor in objective.theta.items()}, there)))
