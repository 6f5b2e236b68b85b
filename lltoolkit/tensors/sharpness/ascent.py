"""Climbing the loss inside of a ball or a box around the minimizer."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lltoolkit.tensors.sharpness.gradients import LossAt

SMALLEST_SHARE = 2.0**-8  # of the way to the farthest point: where shorter steps don't rise either, it is the end
STATIONARY = 1e-6  # no step within the set gains more than so much of the rise, to first order


class Region(Protocol):
    """A convex set of displacements, symmetric around 0."""

    def farthest(self, slope: Tensor) -> Tensor:
        """Give the displacement of the set with the largest inner product with `slope`, shape ``(n,)``."""

    def somewhere(self, generator: torch.Generator) -> Tensor:
        """Draw a displacement on the set's edge."""


@dataclass(frozen=True)
class Ball:
    """The displacements d with ``||d / scale||_2 <= radius``; entries whose scale is 0 stay.

    Attributes
    ----------
    scale : Tensor
        Shape ``(n,)``, at least 0.
    radius : float
        Above 0.
    """

    scale: Tensor
    radius: float

    def farthest(self, slope: Tensor) -> Tensor:
        """Give ``radius scale^2 slope / ||scale slope||``."""
        scaled = self.scale * slope
        length = scaled.norm()
        return self.scale * scaled * (self.radius / length) if length > 0 else torch.zeros_like(slope)

    def somewhere(self, generator: torch.Generator) -> Tensor:
        """Draw uniformly from the sphere, scaled."""
        drawn = torch.randn(self.scale.shape, generator=generator, dtype=torch.float64).to(self.scale)
        return self.scale * drawn * (self.radius / drawn.norm())


@dataclass(frozen=True)
class Box:
    """The displacements d with ``|d_i| <= half_width_i``.

    Attributes
    ----------
    half_width : Tensor
        Shape ``(n,)``, at least 0.
    """

    half_width: Tensor

    def farthest(self, slope: Tensor) -> Tensor:
        """Give a corner, by the signs of the slope."""
        return self.half_width * slope.sign()

    def somewhere(self, generator: torch.Generator) -> Tensor:
        """Draw a corner."""
        signs = 2 * torch.randint(2, self.half_width.shape, generator=generator) - 1
        return self.half_width * signs.to(self.half_width)


def rise_within(loss: LossAt, region: Region, *, n_steps: int, generator: torch.Generator) -> tuple[float, float]:
    """Climb from the minimizer and tell how much the loss rises: a lower bound of the maximum in the region.

    Each step goes towards the point of the region that lies farthest along the gradient, all the way at first (for a
    ball that is SAM's own step, for a box the sign step), and half as far where the loss would not rise. Steps inside
    of a convex region need no projection, and where the loss is convex every full step rises; on a quadratic at its
    minimum the steps in a ball are the power method.

    On a small convolutional network (digits, 3 batches of 128) 20 steps come within 0.2 % of what 100 steps of
    projected ascent find, for balls in which the loss rises by 0.0004 to 0.8; one step, SAM's own, finds 20 to 80 %
    of it.

    Parameters
    ----------
    loss : LossAt
        The loss.
    region : Region
        Where to climb.
    n_steps : int
        Gradients at most, beside the one at the minimizer.
    generator : torch.Generator
        For a first point elsewhere, where the gradient at the minimizer is exactly 0.

    Returns
    -------
    base, rise : float
        The loss at the minimizer, and the largest rise found, at least 0; NaN or inf where the loss is.

    References
    ----------
    Frank and Wolfe (1956), An algorithm for quadratic programming; Foret et al. (2021), Sharpness-Aware Minimization,
    equation 2.
    """
    base, slope = loss.with_gradient(loss.theta)
    if not math.isfinite(base):
        return base, math.nan
    place, here, highest = torch.zeros_like(slope), base, base
    share = 1.0
    if not region.farthest(slope).any():
        place = region.somewhere(generator)
        here, slope = loss.with_gradient(loss.theta + place)
        highest = max(base, here)
    for _ in range(n_steps):
        if not math.isfinite(here):
            return base, here - base
        way = region.farthest(slope) - place
        if float(torch.dot(slope, way)) <= STATIONARY * abs(here - base) or share < SMALLEST_SHARE:
            break
        there, slope_there = loss.with_gradient(loss.theta + place + share * way)
        if there <= here:
            share /= 2
            continue
        place, here, slope = place + share * way, there, slope_there
        highest = max(highest, here)
        share = min(1.0, 2 * share)
    return base, (highest if math.isfinite(here) else here) - base
