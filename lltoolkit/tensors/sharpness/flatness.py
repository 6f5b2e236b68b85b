"""Flatness measures that weigh curvature with the weights themselves, to be unchanged by rescalings."""

import torch
from torch import Tensor, nn

from lltoolkit.errors import require_whole
from lltoolkit.tensors.hessian import Hessian, choose_variables
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.seeds import generator
from lltoolkit.tensors.sharpness.gradients import derivatives_along_theta
from lltoolkit.tensors.sharpness.measure import Estimate, average


def relative_flatness(
    objective: Objective,
    *,
    split: str | None = None,
    seed: int = 0,
    layer: str | None = None,
    n_probes: int = 32,
) -> Estimate:
    """Estimate the relative flatness of one layer.

    Formula: ``sum_{s, s'} <w_s, w_s'> tr(H_ss')`` with the rows w of the layer's weight and the blocks of its Hessian
    between two rows. Units: those of the loss. Range: any real number, at a minimum at least 0. **Small is flat**, in
    spite of the name.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.
    seed : int
        Of the probes.
    layer : str, optional
        Regular expression that selects the weight of one layer by name; by default that of the last ``nn.Linear`` (in
        the order in which the model holds its modules), our choice.
    n_probes : int
        Matrices of random signs R, each with one Hessian-vector product: with v = W R the mean of ``v^T H v`` is the
        value.

    Returns
    -------
    Estimate
        With the standard error over probes.

    Raises
    ------
    ValueError
        If there is no such layer, or several.

    Notes
    -----
    The theory bounds the generalization gap by it at a minimum, for labels that are locally constant in the features of
    this layer, and for features that represent the distribution densely. What is contested: how far these hold; and it
    sees one layer only, so what the layers before do is in it only through the features. It is unchanged when whole
    layers are scaled against each other, and when single rows of W are scaled against the layer behind. It does change
    when a single feature is scaled against its column of W: the inner products of rows mix features.

    References
    ----------
    Petzka et al. (2021), Relative Flatness and Generalization, definition 3.
    """
    name, weight = _choose_layer(objective, layer)
    hessian = Hessian(objective, split=split, parameters=lambda other, _: other == name)
    rows = weight.flatten(1).to(hessian.device, torch.float64)
    values = []
    with hessian.at() as point:
        for probe in range(require_whole("n_probes", n_probes, least=1)):
            stream = generator("sharpness", "relative_flatness", seed, probe)
            signs = 2 * torch.randint(2, (rows.shape[1], rows.shape[1]), generator=stream) - 1
            vector = (rows @ signs.to(rows)).flatten()
            values.append(float(torch.dot(vector, point(vector.to(hessian.dtype)).double())))
    return average(values)


def _choose_layer(objective: Objective, layer: str | None) -> tuple[str, Tensor]:
    views = objective.network.views
    matrices = [name for name, group in views.items() if group[0].ndim > 1]
    if layer is not None:
        chosen = [name for name in choose_variables(objective, layer) if name in matrices]
        if len(chosen) != 1:
            raise ValueError(
                f"layer={layer!r} selects {len(chosen)} weights with two or more axes: "
                f"{', '.join(chosen[:5]) or 'none'}; one is wanted, of {', '.join(matrices[:8])}."
            )
        return chosen[0], objective.theta[chosen[0]]
    linear = [module.weight for module in objective.network.model.modules() if isinstance(module, nn.Linear)]
    for weight in reversed(linear):
        for name in matrices:
            if any(parameter is weight for parameter in views[name]):
                return name, objective.theta[name]
    raise ValueError(
        f"relative_flatness finds no nn.Linear whose weight moves; name a layer (layer=) among "
        f"{', '.join(matrices[:8]) or 'none'}, or leave the measure out."
    )


def fisher_rao(objective: Objective, *, split: str | None = None) -> Estimate:
    """Compute the square of the Fisher-Rao norm of the weights, with the labels of the data.

    Formula: the mean over examples of ``<theta, grad l_i(theta)>^2``. Units: those of the loss, squared. Range: at
    least 0.

    Parameters
    ----------
    objective : Objective
        Whose minimizer.
    split : str, optional
        The split of the data; by default the first.

    Returns
    -------
    Estimate
        Exact.

    Raises
    ------
    ValueError
        If the loss gives no value per example, or an operator has no second derivative (it is computed by two backward
        passes).

    Notes
    -----
    The derivative along theta itself does not know in which units any weight is written, so this is unchanged by every
    linear change of coordinates that leaves the function as it is, all rescalings among them.

    When it is honest: it is a complexity of the function more than a curvature. With the labels of the data (the
    "empirical" version of Liang et al. 2019) it is not the Fisher information, whose labels are the model's
    own; and where the train loss goes to 0, so does it, fitted well or memorized (Kunstner et al. 2019 on empirical
    Fisher matrices in general). Compare models of equal train loss. The closed form with the number of layers holds
    for ReLU networks without biases only, and is not used here. Under batch norm with frozen statistics the derivative
    along a filter that training left scale-free is not 0.

    References
    ----------
    Liang et al. (2019), Fisher-Rao Metric, Geometry, and Complexity of Neural Networks, definition 2; Kunstner et al.
    (2019), Limitations of the Empirical Fisher Approximation for Natural Gradient Descent.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> nn.init.constant_(model.weight, 2.0).item()
    2.0
    >>> objective = Objective(model, (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)), loss="mse")
    >>> fisher_rao(objective).value  # the mean of (w * 2 w x^2)^2 is (8^2 + 72^2) / 2
    2624.0
    """
    found = derivatives_along_theta(objective, objective.splits[0] if split is None else split)
    found = type(found)(found.values.square(), found.weights, found.per_example)
    return Estimate(found.mean())
