"""Whether derivatives are those of the loss: what autograd gives is compared with differences of what is measured."""

import logging
import math

import torch
from torch import Tensor

from lltoolkit.tensors.differentiable import kinks_of
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.params import Params
from lltoolkit.tensors.seeds import generator

SLOPE = 0.05  # the gradient may differ so much from a difference of losses, relative
SYMMETRY = 1e-3  # and a^T H b from b^T H a, in units of their typical size
PRODUCT = 0.05  # and a product from a difference of gradients, where nothing has kinks
STEP = 1e-3  # of the loss, or of the norm of theta

log = logging.getLogger(__name__)


def check_derivatives(hessian: Hessian) -> list[str]:
    """Compare gradient and Hessian with differences at the minimizer; what is doubtful goes to the log as a warning.

    A forward that detaches, a function with a backward of its own, or a fault of torch makes derivatives that are not
    those of the loss, and nothing in them shows it. Costs about four gradients and two products.

    Parameters
    ----------
    hessian : Hessian
        At whose minimizer.

    Returns
    -------
    list of str
        The doubts; empty where all agree, or where the loss is not finite.
    """
    objective = hessian.objective
    stream = generator("check derivatives")
    a, b = (
        torch.randn(hessian.n, generator=stream, dtype=torch.float64).to(hessian.device, hessian.dtype)
        for _ in range(2)
    )
    with hessian.at() as point:
        loss, gradient = point.loss, point.gradient
        if not (math.isfinite(loss) and bool(gradient.isfinite().all())):
            return []
        product_a, product_b = point(a), point(b)
        kinks = kinks_of(point.any_loss())
    doubts = []
    length = float(gradient.norm())
    size = max(float(hessian.flatten(objective.theta).norm()), 1e-6)
    if length > 0:
        unit = gradient / length
        step = min(STEP * abs(loss) / length, 10 * STEP * size) or STEP * size
        ahead, _ = _measure(hessian, step * unit)
        behind, _ = _measure(hessian, -step * unit)
        slope = (ahead - behind) / (2 * step)
        rounding = 4 * torch.finfo(hessian.dtype).eps * abs(loss) / step
        if abs(slope - length) > SLOPE * length + rounding:
            doubts.append(
                f"along its own gradient the loss rises by {slope:.4g} per unit, the gradient says {length:.4g}: part "
                "of forward runs without gradients (detach, no_grad, .data), or a backward of its own is wrong"
            )
    difference = abs(float(a.double() @ product_b.double()) - float(b.double() @ product_a.double()))
    typical = float(product_a.norm() * b.norm() + product_b.norm() * a.norm()) / (2 * math.sqrt(hessian.n))
    if difference > SYMMETRY * typical:
        doubts.append(
            f"the Hessian is not symmetric (a^T H b and b^T H a differ by {difference:.3g}, typical is {typical:.3g}): "
            "some operator's second derivative is wrong, torch's weight_norm for example"
        )
    if kinks:
        log.info("%s has kinks (%s): the Hessian does not hold what they add", objective.model_name, ", ".join(kinks))
    else:
        step = STEP * size / float(b.norm())
        _, ahead_gradient = _measure(hessian, step * b)
        _, behind_gradient = _measure(hessian, -step * b)
        found = (ahead_gradient - behind_gradient) / (2 * step)
        rounding = 20 * torch.finfo(hessian.dtype).eps * length / step
        off = float((found - product_b).norm())
        if off > PRODUCT * float(found.norm()) + rounding:
            doubts.append(
                f"a product with the Hessian differs by {off:.3g} from a difference of gradients, whose norm is "
                f"{float(found.norm()):.3g}: a backward of its own is not differentiated whole"
            )
    for doubt in doubts:
        log.warning("derivatives of %s are doubtful: %s", objective.model_name, doubt)
    return doubts


def _measure(hessian: Hessian, step: Tensor) -> tuple[float, Tensor]:
    """Give loss and gradient a step away from the minimizer, in the metric."""
    theta: Params = dict(hessian.objective.theta)
    moved = hessian.unflatten(step if hessian.scale is None else hessian.scale * step)
    with hessian.at(theta | {name: theta[name] + moved[name] for name in moved}) as point:
        return point.loss, point.gradient
