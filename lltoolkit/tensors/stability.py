"""How sharp a loss full-batch training bears: the curvature at which each optimizer begins to diverge on a quadratic.

Every threshold here is where the linear recurrence of an optimizer on ``h w^2 / 2`` leaves the unit circle. It does so
at the root -1, the weight that changes its sign at each step, so the threshold follows from the characteristic
polynomial at -1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lltoolkit.errors import require_choice

OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Threshold:
    """The sharpness that an optimizer bears, and of which Hessian.

    Attributes
    ----------
    value : float
        In the units of that Hessian's eigenvalues.
    hessian : {"euclidean", "preconditioned"}
        ``"euclidean"``: the largest eigenvalue of the Hessian of the data loss is held against `value`.
        ``"preconditioned"``: that of ``P^-1 H`` with Adam's ``P = diag(sqrt(v_hat) + eps)``; `value` says nothing of
        the Hessian itself.
    text : str
        The formula with its numbers, and whether it is known to hold for this training.
    """

    value: float
    hessian: Literal["euclidean", "preconditioned"]
    text: str


def stability_threshold(
    *,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> float:
    r"""Give the sharpness above which full-batch training diverges on a quadratic.

    With learning rate :math:`\eta`, momentum :math:`\beta` and first beta :math:`\beta_1`:

    ====================================  ================================================  =======================
    optimizer                             threshold                                         of the largest eigenvalue
    ====================================  ================================================  =======================
    gradient descent                      :math:`2/\eta`                                    of the Hessian
    SGD with momentum (heavy ball)        :math:`(2+2\beta)/\eta`                           of the Hessian
    SGD with Nesterov momentum            :math:`(2+2\beta)/(\eta(1+2\beta))`               of the Hessian
    Adam, AdamW                           :math:`(2+2\beta_1)/((1-\beta_1)\eta)`            of :math:`P^{-1}H`
    ====================================  ================================================  =======================

    It is a statement on full batches, on the loss's local quadratic, and for Adam on a preconditioner
    :math:`P=\mathrm{diag}(\sqrt{\hat v}+\epsilon)` that stands still; the second beta is therefore not in it.
    It is no statement on minibatches.

    Parameters
    ----------
    optimizer : {"sgd", "adam", "adamw"}
        As in ``torch.optim``, without dampening and AMSGrad.
    lr : float
        Learning rate, above 0.
    momentum : float
        Of SGD, in [0, 1): ``buffer = momentum * buffer + gradient``. 0 is gradient descent.
    nesterov : bool
        SGD looks ahead along its momentum, which then must be above 0. ``zoo.train`` always does.
    betas : (float, float)
        Of Adam and AdamW, in [0, 1).
    weight_decay : float
        At least 0. SGD's adds ``weight_decay`` to every eigenvalue, so the loss without it bears that much less.
        AdamW's shrinks the weights by ``1 - lr * weight_decay`` at each step, which takes
        ``weight_decay * (1 + beta_1) / (1 - beta_1)`` off. Adam's is a part of the loss before preconditioning: the
        threshold stays, but holds for ``P^-1 (H + weight_decay * I)``.

    Returns
    -------
    float
        In units of an eigenvalue; not above 0 where weight decay alone already makes training diverge.

    Raises
    ------
    ValueError
        If an option is not allowed or a number is out of range.

    References
    ----------
    Cohen et al. (2021), Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, section 2 and
    the appendix on momentum. Cohen et al. (2022), Adaptive Gradient Methods at the Edge of Stability, section 2: 38 /
    lr for Adam with a first beta of 0.9.

    Examples
    --------
    >>> stability_threshold(lr=0.1)
    20.0
    >>> round(stability_threshold(lr=0.1, momentum=0.9), 6)
    38.0
    >>> round(stability_threshold(optimizer="adam", lr=1e-3), 6)
    38000.0
    """
    require_choice("optimizer", optimizer, OPTIMIZERS)
    lr = _within("lr", lr, "a finite number above 0", lambda value: value > 0)
    decay = _within("weight_decay", weight_decay, "a finite number of at least 0", lambda value: value >= 0)
    if optimizer == "sgd":
        beta = _within("momentum", momentum, "a number in [0, 1)", lambda value: 0 <= value < 1)
        if nesterov and beta == 0:
            raise ValueError(
                "nesterov=True looks ahead along the momentum, which is 0. Give momentum=, or leave it out."
            )
        return (2 + 2 * beta) / (lr * (1 + 2 * beta if nesterov else 1)) - decay
    if momentum != 0 or nesterov:
        raise ValueError(
            f"momentum={momentum!r}, nesterov={nesterov!r} are SGD's; {optimizer} takes betas=(0.9, 0.999)."
        )
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas={betas!r}: give two numbers in [0, 1), (0.9, 0.999) for example.")
    beta, _ = (_within("betas", value, "two numbers in [0, 1)", lambda value: 0 <= value < 1) for value in betas)
    kept = 2.0 - lr * decay if optimizer == "adamw" else 2.0
    return kept * (1 + beta) / ((1 - beta) * lr)


def threshold_of(config: Mapping[str, Any], *, lr: float | None = None, n_examples: int | None = None) -> Threshold:
    """Read the threshold of a training from its record.

    Parameters
    ----------
    config : mapping
        As ``Run.config`` of ``zoo.train``: ``optimizer``, ``lr``, ``momentum`` (the first beta of Adam and AdamW),
        ``weight_decay``, ``batch_size``. Its SGD is with Nesterov momentum where there is momentum. A record without
        ``momentum`` or ``weight_decay`` has none, Adam then torch's 0.9.
    lr : float, optional
        The learning rate at the step in question, where the schedule changed it; by default the one at the start.
    n_examples : int, optional
        Of the training data: tells whether the training was on full batches.

    Returns
    -------
    Threshold
        Its value, the Hessian that it is held against, and a text that says where it holds.

    Raises
    ------
    ValueError
        If the record does not say how the weights were trained.

    Examples
    --------
    >>> found = threshold_of({"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "batch_size": 1437}, n_examples=1437)
    >>> found.value, found.hessian
    (20.0, 'euclidean')
    >>> print(found.text)
    gradient descent: 2/lr = 20 at lr=0.1; full batches
    """
    if lacking := [key for key in ("optimizer", *(("lr",) if lr is None else ())) if key not in config]:
        raise ValueError(
            f"this run's record does not say its {' and '.join(lacking)}; it has {', '.join(sorted(config))}. "
            "zoo.train records both; for another training call stability_threshold(optimizer=..., lr=...)."
        )
    optimizer, decay = config["optimizer"], config.get("weight_decay", 0.0)
    require_choice("optimizer", optimizer, OPTIMIZERS)
    rate = float(config["lr"] if lr is None else lr)
    adaptive = optimizer != "sgd"
    momentum = config.get("momentum", 0.9 if adaptive else 0.0)
    options: dict[str, Any] = {"betas": (momentum, 0.999)} if adaptive else {"momentum": momentum}
    nesterov = not adaptive and momentum > 0
    value = stability_threshold(optimizer=optimizer, lr=rate, nesterov=nesterov, weight_decay=decay, **options)
    name, formula, numbers = _told(optimizer, momentum, decay)
    size = config.get("batch_size")
    return Threshold(
        value,
        "preconditioned" if adaptive else "euclidean",
        f"{name}: {formula} = {value:.4g} at lr={rate:g}{numbers}; {_where_it_holds(size, n_examples)}",
    )


def _told(optimizer: str, momentum: float, decay: float) -> tuple[str, str, str]:
    """Give the optimizer's name, the formula of its threshold, and its numbers beside the learning rate."""
    numbers = f", weight_decay={decay:g}" if decay else ""
    if optimizer == "sgd":
        minus = " - weight_decay" if decay else ""
        if momentum == 0:
            return "gradient descent", f"2/lr{minus}", numbers
        formula = f"(2 + 2 momentum)/(lr (1 + 2 momentum)){minus}"
        return "SGD with Nesterov momentum", formula, f", momentum={momentum:g}{numbers}"
    kept = "(2 - lr weight_decay)(1 + beta1)" if optimizer == "adamw" and decay else "(2 + 2 beta1)"
    of = " + weight_decay" if optimizer == "adam" and decay else ""
    name = "Adam" if optimizer == "adam" else "AdamW"
    return f"{name}, of P^-1 (H{of})", f"{kept}/((1 - beta1) lr)", f", beta1={momentum:g}{numbers}"


def _where_it_holds(batch_size: int | None, n_examples: int | None) -> str:
    if batch_size is None or n_examples is None:
        return "holds for full batches only"
    if batch_size >= n_examples:
        return "full batches"
    return f"it holds for full batches, these had {batch_size} of {n_examples} examples: no statement on this training"


def _within(name: str, value: Any, allowed: str, is_allowed: Any) -> float:
    try:
        number = float(value)
        if isinstance(value, str | bool) or not (math.isfinite(number) and is_allowed(number)):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r}: give {allowed}.") from error
    return number
