"""The sharpness measures by name."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from lltoolkit.errors import require_choice
from lltoolkit.tensors.sharpness.average import average_perturbation
from lltoolkit.tensors.sharpness.controls import distance_from_init, weight_norm
from lltoolkit.tensors.sharpness.curvature import filter_curvature, lambda_max, trace
from lltoolkit.tensors.sharpness.flatness import fisher_rao, relative_flatness
from lltoolkit.tensors.sharpness.measure import Kind, Measure, options_of
from lltoolkit.tensors.sharpness.volume import volume_epsilon
from lltoolkit.tensors.sharpness.worst import asam, keskar_epsilon, sam


def _entry(
    name: str,
    long_name: str,
    units: str,
    kind: Kind,
    formula: str,
    function: Any,
    *,
    fixed: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
    needs_initial: bool = False,
    default: bool = True,
    lower_is_sharper: bool = False,
) -> Measure:
    """Describe a function, with options `fixed` by the name, and defaults that are its `own`."""
    fixed = fixed or {}
    options = options_of(function, **(own or {}))
    defaults = {option: value for option, value in options.items() if option not in fixed}
    return Measure(
        name,
        long_name,
        units,
        kind,
        formula,
        partial(function, **fixed) if fixed else function,
        defaults,
        needs_initial,
        default,
        "logit_normalized" in defaults,
        lower_is_sharper,
    )


_ALL = (
    _entry("lambda_max", "largest Hessian eigenvalue", "{loss}", "estimate", "max_d d^T H d / d^T d", lambda_max),
    _entry("trace", "trace of the Hessian", "{loss}", "estimate", "tr H = E[v^T H v], v random signs", trace),
    _entry(
        "filter_curvature",
        "curvature of filter-normalized random slices",
        "{loss}",
        "estimate",
        "E[d^T H d] = sum over filters of norm^2 / size * tr H_filter, d filter-normalized",
        filter_curvature,
    ),
    _entry(
        "volume_epsilon",
        "filter-normalized radius of the basin (large is flat)",
        "1",
        "estimate",
        "median of min {r : L(theta + r d) - L(theta) >= eps}, d filter-normalized, both signs",
        volume_epsilon,
        lower_is_sharper=True,
    ),
    _entry(
        "keskar_epsilon",
        "worst case in a box",
        "%",
        "lower bound",
        "100 (max f - f) / (1 + f) over |z_i| <= eps (|x_i| + 1)",
        keskar_epsilon,
    ),
    _entry(
        "sam",
        "worst case in a ball",
        "{loss}",
        "lower bound",
        "mean over batches of m of max L_B(theta + d) - L_B(theta) over ||d|| <= rho",
        sam,
    ),
    _entry(
        "asam",
        "worst case in an adaptive ball",
        "{loss}",
        "lower bound",
        "mean over batches of m of max L_B(theta + d) - L_B(theta) over ||d / |theta||| <= rho",
        asam,
    ),
    _entry(
        "sam_logit_normalized",
        "worst case in a ball, logits normalized",
        "{loss}",
        "lower bound",
        "as sam, of the loss of logits / std of logits over classes",
        sam,
        fixed={"logit_normalized": True},
        default=False,
    ),
    _entry(
        "asam_logit_normalized",
        "worst case in an adaptive ball, logits normalized",
        "{loss}",
        "lower bound",
        "as asam, of the loss of logits / std of logits over classes",
        asam,
        fixed={"logit_normalized": True},
        default=False,
    ),
    _entry(
        "average_perturbation",
        "average rise under Gaussian noise",
        "{loss}",
        "estimate",
        "E[L(theta + sigma xi)] - L(theta), xi standard normal",
        average_perturbation,
        fixed={"magnitude_aware": False},
    ),
    _entry(
        "average_perturbation_adaptive",
        "average rise under noise proportional to each weight",
        "{loss}",
        "estimate",
        "E[L(theta + sigma |theta| xi)] - L(theta), xi standard normal",
        average_perturbation,
        fixed={"magnitude_aware": True},
        own={"sigma": 0.1},
    ),
    _entry(
        "relative_flatness",
        "relative flatness of one layer (small is flat)",
        "{loss}",
        "estimate",
        "sum_{s,s'} <w_s, w_s'> tr H_ss' over rows of the last linear layer",
        relative_flatness,
    ),
    _entry(
        "fisher_rao",
        "squared Fisher-Rao norm, labels of the data",
        "{loss}^2",
        "exact",
        "mean_i <theta, grad l_i>^2",
        fisher_rao,
        default=False,
    ),
    _entry("weight_norm", "norm of the weights", "1", "exact", "||theta||_2", weight_norm),
    _entry(
        "distance_from_init",
        "distance from initialization",
        "1",
        "exact",
        "||theta - theta_0||_2",
        distance_from_init,
        needs_initial=True,
        default=False,
    ),
)
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}


def measure_named(name: str) -> Measure:
    """Find a measure by its name.

    Parameters
    ----------
    name : str
        One of `MEASURES`.

    Returns
    -------
    Measure
        It.

    Raises
    ------
    ValueError
        If there is none, with the nearest.

    Examples
    --------
    >>> measure_named("sam").kind
    'lower bound'
    """
    require_choice("measure", name, MEASURES)
    return MEASURES[name]
