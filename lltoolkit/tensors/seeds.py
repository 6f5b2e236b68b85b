"""Random streams of their own: nothing here reads or moves a global random state."""

import hashlib

import torch


def stream(*parts: object) -> int:
    """Make a seed out of words and numbers: seed 1 of one thing must not be a neighbour of seed 0 of another.

    Returns
    -------
    int
        In [0, 2**63).

    Examples
    --------
    >>> stream("direction", 0) == stream("direction", 1)
    False
    """
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """Return a CPU generator at the start of the stream that `parts` name."""
    return torch.Generator(device="cpu").manual_seed(stream(*parts))
