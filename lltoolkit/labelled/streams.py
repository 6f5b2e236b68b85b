"""Random streams of their own, as `tensors.seeds` has them, for NumPy. Torch-free."""

import hashlib

import numpy as np


def stream(*words: object) -> np.random.Generator:
    """Make a random generator of its own out of words and numbers.

    Returns
    -------
    numpy.random.Generator
        The same for the same words, and no neighbour of any other.

    Examples
    --------
    >>> stream("audit", 0).random() == stream("audit", 1).random()
    False
    """
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
