"""Least squares on the directions of a subspace, prepared once for any number of points."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lltoolkit.tensors.params import Params, dot


@dataclass(frozen=True)
class Projection:
    """Where a point lies on a subspace, and what of it lies outside.

    Attributes
    ----------
    coordinates : tuple of float
        In units of the axes.
    squares : dict of str to float
        Squared norm of the displacement from the origin, by parameter name.
    outside : dict of str to float
        Squared norm of the part of it outside the subspace, by parameter name.
    """

    coordinates: tuple[float, ...]
    squares: dict[str, float]
    outside: dict[str, float]

    @property
    def distance(self) -> float:
        """Norm of the displacement from the origin."""
        return sum(self.squares.values()) ** 0.5

    def residual(self, among: Callable[[str], bool] | None = None) -> float:
        """Give the norm of what lies outside over the norm of the displacement.

        Parameters
        ----------
        among : callable, optional
            ``f(name) -> bool``: over these parameters only.

        Returns
        -------
        float
            In [0, 1] over all parameters; over some of them it may pass 1, where the best fit to all misfits these. 0
            where there is no displacement.
        """
        names = [name for name in self.squares if among is None or among(name)]
        whole = sum(self.squares[name] for name in names)
        outside = sum(self.outside[name] for name in names)
        if whole == 0:
            return 0.0
        return min(1.0, (outside / whole) ** 0.5) if among is None else (outside / whole) ** 0.5


class Projector:
    """Project weights on a subspace by least squares; made by `Subspace.projector`.

    Parameters
    ----------
    origin : Params
        The weights at coordinate 0, without buffers.
    axes : sequence of Params
        The directions, without buffers.
    buffer_names : iterable of str
        What a point may have beside.
    """

    def __init__(self, origin: Params, axes: Sequence[Params], buffer_names: Iterable[str] = ()) -> None:
        self.origin = origin
        self.axes = list(axes)
        self.buffer_names = frozenset(buffer_names)
        gram = gram_of(self.axes)
        lengths = gram.diagonal().sqrt()
        # On directions of length 1, or the cut-off would drop a short one beside a long one.
        self._lengths = torch.where(lengths > 0, lengths, 1.0)
        self._cosines = gram / self._lengths.outer(self._lengths)

    def project(self, theta: Params) -> Projection:
        """Project a point.

        Parameters
        ----------
        theta : Params
            Weights with the names and shapes of the origin; buffers may be left out.

        Returns
        -------
        Projection
            Its coordinates, and squared norms of the displacement and of the part outside, by parameter name.

        Raises
        ------
        ValueError
            If `theta` is of another model.
        """
        require_fit(theta, self.origin, what="theta", against="this subspace", extra=self.buffer_names)
        moved = {name: theta[name].detach().cpu().double() - tensor.double() for name, tensor in self.origin.items()}
        squares = {name: float(tensor.square().sum()) for name, tensor in moved.items()}
        if not any(squares.values()):
            return Projection((0.0,) * len(self.axes), squares, dict.fromkeys(squares, 0.0))
        right = torch.tensor([dot(axis, moved) for axis in self.axes], dtype=torch.float64) / self._lengths
        # With a cut-off, rather than solve: directions may be parallel, or zero on a subset of the weights.
        solution = torch.linalg.lstsq(self._cosines, right.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        coordinates = tuple(float(value) for value in solution / self._lengths)
        outside = {}
        for name, tensor in moved.items():
            for axis, coordinate in zip(self.axes, coordinates, strict=True):
                tensor.sub_(axis[name].double(), alpha=coordinate)
            outside[name] = float(tensor.square().sum())
        return Projection(coordinates, squares, outside)


def gram_of(axes: Sequence[Params]) -> Tensor:
    """Compute the inner products of directions: ``(dims, dims)``, float64."""
    return torch.tensor([[dot(a, b) for b in axes] for a in axes], dtype=torch.float64)


def require_fit(vector: Params, reference: Params, *, what: str, against: str, extra: Iterable[str] = ()) -> None:
    """Check that `vector` has the names and shapes of `reference`.

    Parameters
    ----------
    vector, reference : Params
        What is given, and what it should look like.
    what, against : str
        Their names in an error.
    extra : iterable of str
        Further names that `vector` may have.

    Raises
    ------
    ValueError
        Naming what is missing, unknown or misshapen.
    """
    missing = [name for name in reference if name not in vector]
    unknown = [name for name in vector if name not in reference and name not in set(extra)]
    wrong = [
        f"{name} {tuple(vector[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in reference.items()
        if name in vector and vector[name].shape != tensor.shape
    ]
    faults = [
        f"{label}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for label, names in (("missing", missing), ("unknown", unknown), ("misshapen", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"{what} does not fit {against} ({'; '.join(faults)}). Is it of another model?")
