"""How much variance a few principal components hold of a path that went nowhere: the null of a PCA plane."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lltoolkit.errors import require_choice, require_whole
from lltoolkit.tensors.seeds import generator

Point: TypeAlias = Literal["final", "start", "mean"]

POINTS = ("final", "start", "mean")
CENTERS = ("origin", "mean")
N_DRAWS = 16
MANY = 20  # weights per checkpoint from which the limit of many weights is taken


def walk_variance(
    steps: Sequence[int] | Sequence[Sequence[int]],
    *,
    n_components: int = 2,
    origin: Point = "final",
    center: Literal["origin", "mean"] = "origin",
    n_weights: int | None = None,
    seed: int = 0,
) -> list[float]:
    """Give the share of variance that principal components hold of a random walk, on average.

    The walk's increments are independent and Gaussian, equally large along each weight, with a variance proportional to
    the optimizer steps between two checkpoints. A path with a share like this shows no more structure than chance.

    Parameters
    ----------
    steps : sequence of int, or sequence of these
        Optimizer steps of the checkpoints of a run, or of several: these walk from one common start.
    n_components : int
        How many components, the largest first; at least 1.
    origin : {"final", "start", "mean"}
        The point of ``center="origin"``: the last checkpoint of the first run, its first one, or the mean of all.
    center : {"origin", "mean"}
        What the variance is taken about: that point, or the mean of all checkpoints.
    n_weights : int, optional
        Number of weights; None stands for many.
    seed : int
        Of the walks that are drawn.

    Returns
    -------
    list of float
        `n_components` shares in [0, 1]; 0 beyond the rank.

    Raises
    ------
    ValueError
        If there are no checkpoints, steps go back, or an option is unknown.

    Notes
    -----
    With many weights the inner products of a walk are those of its covariance, ``min(t_i, t_j)`` within a run and 0
    between two; the shares follow from its eigenvalues, and a single walk is off by ``O(sqrt(n / n_weights))``. With
    fewer than 20 weights per checkpoint, the mean over 16 walks is taken instead.

    References
    ----------
    Antognini and Sohl-Dickstein (2018), PCA of high dimensional random walks with comparison to neural network
    training: about the mean, component k of a long walk holds ``6 / (pi k)^2``, whatever the length.

    Examples
    --------
    >>> [round(sum(walk_variance(range(300), center=center)), 2) for center in ("mean", "origin")]
    [0.76, 0.9]
    """
    n_components = require_whole("n_components", n_components, least=1)
    several = [[int(step) for step in run] for run in _several(steps)]
    lengths = [len(run) for run in several]
    about = center_weights(lengths, origin=origin, center=center)
    factor = _increments(several)
    factor = factor - about @ factor
    n, n_increments = factor.shape
    if n_weights is not None and n_weights < MANY * n:
        shares = torch.zeros(n, dtype=torch.float64)
        source = generator("random walk", require_whole("seed", seed))
        for _ in range(N_DRAWS):
            walk = factor @ torch.randn(n_increments, n_weights, generator=source, dtype=torch.float64)
            shares += _shares(walk) / N_DRAWS
    else:
        shares = _shares(factor)
    found = shares[:n_components].tolist()
    return found + [0.0] * (n_components - len(found))


def center_weights(lengths: Sequence[int], *, origin: Point, center: Literal["origin", "mean"]) -> Tensor:
    """Write the point that variance is taken about as a weighted sum of the checkpoints of all runs.

    Parameters
    ----------
    lengths : sequence of int
        Number of checkpoints of each run, which follow each other.
    origin, center
        As in `walk_variance`.

    Returns
    -------
    Tensor
        Shape ``(n,)``, float64, with sum 1.

    Raises
    ------
    ValueError
        If there are no checkpoints, or an option is unknown.
    """
    require_choice("origin", origin, POINTS)
    require_choice("center", center, CENTERS)
    if not lengths or not all(lengths):
        raise ValueError(f"the runs have {list(lengths)} checkpoints; each needs one at least.")
    point = origin if center == "origin" else "mean"
    n = sum(lengths)
    if point == "mean":
        return torch.full((n,), 1 / n, dtype=torch.float64)
    weights = torch.zeros(n, dtype=torch.float64)
    weights[0 if point == "start" else lengths[0] - 1] = 1
    return weights


def _several(steps: Any) -> Sequence[Sequence[int]]:
    return steps if all(isinstance(run, Iterable) for run in steps) else [steps]


def _increments(runs: Sequence[Sequence[int]]) -> Tensor:
    """Write each checkpoint, less the start, as a sum of increments of variance 1: ``(n, n_increments)``."""
    rows, wide = [], 0
    for run in runs:
        gaps = torch.tensor([late - early for early, late in pairwise(run)], dtype=torch.float64)
        if (gaps < 0).any():
            raise ValueError(f"the steps of a run must not go back: {list(run)[:10]}.")
        rows.append(torch.tril(gaps.sqrt().expand(len(run), -1), diagonal=-1))
        wide += len(gaps)
    factor = torch.zeros(sum(map(len, rows)), max(1, wide), dtype=torch.float64)
    top = left = 0
    for block in rows:
        factor[top : top + block.shape[0], left : left + block.shape[1]] = block
        top, left = top + block.shape[0], left + block.shape[1]
    return factor


def _shares(rows: Tensor) -> Tensor:
    """Shares of the squared singular values, the largest first, one for each row."""
    values = torch.linalg.eigvalsh(rows @ rows.T).flip(0).clamp_min(0)
    return values / values.sum() if values.sum() > 0 else values
