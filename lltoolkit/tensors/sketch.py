"""A sketch: a model's weights mapped linearly to few numbers, which keep norms and inner products on average."""

import torch
from torch import Tensor

from lltoolkit.errors import require_whole
from lltoolkit.tensors.params import Params
from lltoolkit.tensors.seeds import generator

CHUNK = 1 << 20  # weights whose bins are drawn at once; part of the map's definition


def sketch(params: Params, n: int) -> Tensor:
    """Map weights to `n` numbers: each weight goes, with a random sign, into one of `n` bins (a CountSketch).

    The map is linear and the same for all weights of one model: bins and signs follow from the parameters' names alone.
    ``sketch(a) @ sketch(b)`` is ``a @ b`` on average over maps, with a standard deviation of at most
    ``sqrt(2 / n) |a| |b|``.

    Parameters
    ----------
    params : Params
        The weights, without buffers.
    n : int
        Number of bins, at least 1.

    Returns
    -------
    Tensor
        Shape ``(n,)``, float32, on the CPU; summed in float64.

    Raises
    ------
    ValueError
        If `n` is no whole number of at least 1, or there are no weights.

    References
    ----------
    Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams; Weinberger et al. (2009), Feature
    hashing for large scale multitask learning, for its inner products.

    Examples
    --------
    >>> weights = {"w": torch.arange(100.0)}
    >>> twice = {"w": 2 * weights["w"]}
    >>> torch.equal(2 * sketch(weights, 10), sketch(twice, 10))
    True
    """
    n = require_whole("n", n, least=1)
    if not params:
        raise ValueError("there are no weights to sketch: give a mapping from parameter names to tensors.")
    bins = torch.zeros(n, dtype=torch.float64)
    for name, tensor in params.items():
        stream = generator("sketch", name)
        for part in tensor.detach().flatten().split(CHUNK):
            # One draw gives both: the lowest bit is the sign, the others the bin.
            drawn = torch.randint(2 * n, part.shape, generator=stream)
            bins.index_add_(0, drawn >> 1, part.cpu().double() * (1 - 2 * (drawn & 1)))
    return bins.float()
