"""The paper's recipe: the optimizer, the learning rate over the steps, and the augmentation of images.

References
----------
Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, section 3 and the recipe of its published code.
Smith and Topin (2019), Super-Convergence, section 3: the one-cycle schedule.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}  # with the default learning rate
SCHEDULES = ("step", "cosine", "one_cycle", "constant")
AUGMENTS = ("auto", "crop_flip", "none")
DROPS = ((1, 2), (3, 4), (11, 12))  # of the epochs: 150, 225, 275 of the paper's 300
RISE = 0.3  # share of a one-cycle training until the largest learning rate; this and the next two as torch's OneCycleLR
START_DIVISOR = 25.0  # the largest learning rate by the first
END_DIVISOR = 1e4  # the first learning rate by the last
PADDING = 4  # pixels on each side before the crop


def build_optimizer(model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of the weights that require a gradient; SGD with Nesterov momentum, as the paper's."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    lr, momentum, decay = config["lr"], config["momentum"], config["weight_decay"]
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(weights, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    kind = torch.optim.Adam if config["optimizer"] == "adam" else torch.optim.AdamW
    return kind(weights, lr=lr, betas=(momentum, 0.999), weight_decay=decay)


def learning_rate_at(step: int, n_steps: int, config: Mapping[str, Any]) -> float:
    """Return the learning rate of a step.

    Parameters
    ----------
    step : int
        Optimizer steps before it, from 0.
    n_steps : int
        Steps of an epoch.
    config : mapping
        With ``lr``, ``schedule`` and ``epochs``.

    Returns
    -------
    float
        Not negative.

    References
    ----------
    Li et al. (2018): ``"step"``. Loshchilov and Hutter (2017), SGDR, equation 5 without restarts: ``"cosine"``. Smith
    and Topin (2019), section 3: ``"one_cycle"``, here with half cosines for straight lines, and a constant momentum.
    """
    lr, epochs = config["lr"], config["epochs"]
    if config["schedule"] == "step":
        # In whole numbers: 300 * (11 / 12) is not 275 in floating point.
        return lr / 10 ** sum(step // n_steps * below >= epochs * above for above, below in DROPS)
    if config["schedule"] == "cosine":
        return _half_cosine(lr, 0.0, step / (epochs * n_steps))
    if config["schedule"] == "one_cycle":
        first, top, last = lr / START_DIVISOR, RISE * epochs * n_steps - 1, epochs * n_steps - 1
        if step <= top:
            return _half_cosine(first, lr, step / top)
        return _half_cosine(lr, first / END_DIVISOR, (step - top) / (last - top))
    return lr


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def choose_augment(augment: str, x: Tensor) -> str:
    """Choose for ``"auto"``: crops and mirror images for colour images of 32x32, as the paper does for CIFAR.

    Returns
    -------
    str
        ``"crop_flip"`` or ``"none"``.

    Raises
    ------
    ValueError
        If crops are asked for of what is no image.
    """
    if augment == "auto":
        augment = "crop_flip" if x.shape[1:] == (3, 32, 32) else "none"
    if augment == "crop_flip" and x.ndim != 4:
        raise ValueError(f"augment='crop_flip' needs images (N, C, H, W), the inputs are {tuple(x.shape)}. Use 'none'.")
    return augment


def crop_and_flip(images: Tensor, fill: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels and mirror every second one, at random.

    Parameters
    ----------
    images : Tensor
        Shape ``(B, C, H, W)``; it is not changed.
    fill : Tensor
        Shape ``(C,)``: the normalized value of black, which comes in at the borders.
    generator : torch.Generator
        On the CPU, so that every device draws the same.

    Returns
    -------
    Tensor
        Shape ``(B, C, H, W)``.
    """
    n, channels, height, width = images.shape
    shifts = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator).to(images.device)
    flips = torch.randint(2, (n, 1), generator=generator).bool().to(images.device)
    padded = fill.view(1, -1, 1, 1).repeat(n, 1, height + 2 * PADDING, width + 2 * PADDING)
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = images
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, -1)
    columns = shifts[1] + torch.where(flips, width - 1 - columns, columns)
    example = torch.arange(n, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[example, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]


def black_of(data: Any, x: Tensor) -> Tensor:
    """Return what black is after normalization, ``(C,)``; 0, the mean colour, where the normalization is not known."""
    if hasattr(data, "mean") and hasattr(data, "std"):
        return -data.mean / data.std
    return torch.zeros(x.shape[1])
