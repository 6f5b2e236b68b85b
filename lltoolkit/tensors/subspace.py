"""Subspace: an origin and one, two or three directions; where a point of a plot lies in weight space."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lltoolkit.files import write_atomically
from lltoolkit.tensors.params import Params, move, norm, sha256
from lltoolkit.tensors.projection import Projector, gram_of, require_fit

AXIS_NAMES = ("alpha", "beta", "gamma")


class Subspace:
    """A line, plane or volume in weight space: ``origin + alpha * d_1 + beta * d_2 + gamma * d_3``.

    Directions are the units of their axes and need not be orthogonal. Entries whose names are in
    `buffer_names` are buffers (batch-norm statistics): they move along, but count neither as weights in
    norms nor in projections.

    Parameters
    ----------
    origin : Params
        The weights at coordinate 0, by parameter name.
    directions : sequence of Params
        One to three, each with the names and shapes of `origin`.
    kind : str
        How the directions were made: ``"random"``, ``"interpolation"``, ``"custom"``, ...
    options : mapping, optional
        The options they were made with, JSON-able, kept in results.
    buffer_names : iterable of str, optional
        Which entries are buffers.

    Attributes
    ----------
    dims : int
        Number of directions.
    axes : tuple of str
        Names of the coordinates: ``("alpha", "beta", "gamma")[:dims]``.
    id : str
        64 hexadecimal digits that change with anything that would change a point's weights.

    Raises
    ------
    ValueError
        If there are not one to three directions, one does not fit the origin, or the origin holds no weights.

    Examples
    --------
    >>> import torch
    >>> line = Subspace({"w": torch.zeros(2)}, [{"w": torch.tensor([2.0, 0.0])}])
    >>> line.at(0.5)
    {'w': tensor([1., 0.])}
    >>> line.project({"w": torch.tensor([1.0, 0.0])})
    ((0.5,), 0.0)
    """

    def __init__(
        self,
        origin: Params,
        directions: Sequence[Params],
        *,
        kind: str = "custom",
        options: Mapping[str, object] | None = None,
        buffer_names: Iterable[str] = (),
    ) -> None:
        if not 1 <= len(directions) <= len(AXIS_NAMES):
            raise ValueError(f"{len(directions)} directions given; a subspace has 1, 2 or 3.")
        if not origin:
            raise ValueError("the origin has no weights: give a mapping from parameter names to tensors.")
        if whole := [f"{name} ({tensor.dtype})" for name, tensor in origin.items() if not tensor.is_floating_point()]:
            raise ValueError(
                f"the origin holds {', '.join(whole[:5])}; only floating-point tensors can move. Leave the others out."
            )
        for axis, direction in zip(AXIS_NAMES, directions, strict=False):
            require_fit(direction, origin, what=f"the direction of {axis}", against="the origin")
        self.origin = {name: _copy(tensor, tensor.dtype) for name, tensor in origin.items()}
        self.directions = tuple(
            {name: _copy(direction[name], tensor.dtype) for name, tensor in origin.items()} for direction in directions
        )
        self.kind = kind
        self.options = dict(options or {})
        self.buffer_names = frozenset(buffer_names)
        # A random direction follows from its options bit for bit only up to the rounding of a norm, which may differ
        # between machines: what names it is the recipe. Any other direction is named by its values.
        content = [] if kind == "random" else list(self.directions)
        recipe = json.dumps({**self.config, "buffers": sorted(self.buffer_names)}, sort_keys=True)
        self.id = hashlib.sha256((recipe + sha256(self.origin, *content)).encode()).hexdigest()

    @property
    def dims(self) -> int:
        """Number of directions."""
        return len(self.directions)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        return AXIS_NAMES[: self.dims]

    @property
    def config(self) -> dict[str, object]:
        """How the subspace was made, JSON-able."""
        return {"kind": self.kind, "dims": self.dims, **self.options}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"Subspace({options}, id={self.id[:12]})"

    def at(self, *coordinates: float) -> Params:
        """Return the weights at a point, always fresh tensors.

        Parameters
        ----------
        *coordinates : float
            One number for each axis.

        Returns
        -------
        Params
            Named and shaped as the origin; moved buffers included.

        Raises
        ------
        ValueError
            If the number of coordinates is not `dims`.
        """
        if len(coordinates) != self.dims:
            raise ValueError(f"{len(coordinates)} coordinates given; this subspace has {self.dims}: {self.axes}.")
        return move(self.origin, self.directions, coordinates)

    def project(self, theta: Params) -> tuple[tuple[float, ...], float]:
        """Project weights on the subspace by least squares.

        Parameters
        ----------
        theta : Params
            Weights with the names and shapes of the origin; buffers may be left out.

        Returns
        -------
        coordinates : tuple of float
            In units of the axes, so that ``at(*coordinates)`` is the nearest point of the subspace.
        residual : float
            Norm of the part of ``theta - origin`` outside the subspace over the norm of the whole, in
            [0, 1]; 0 at the origin.

        Raises
        ------
        ValueError
            If `theta` is of another model.
        """
        found = self.projector().project(theta)
        return found.coordinates, found.residual()

    def projector(self) -> Projector:
        """Prepare the projection of many points, and of groups of tensors: ``projector().project(theta)``.

        Returns
        -------
        Projector
            It shares memory with this subspace.
        """
        return Projector(self.weights(self.origin), self._axes_of_weights(), self.buffer_names)

    def weights(self, vector: Params) -> Params:
        """Return the entries of `vector` that are weights, not buffers."""
        return {name: tensor for name, tensor in vector.items() if name not in self.buffer_names}

    def _axes_of_weights(self) -> list[Params]:
        return [self.weights(direction) for direction in self.directions]

    def geometry(self) -> dict[str, float]:
        """Describe the directions in numbers, over the weights (not the buffers).

        Returns
        -------
        dict
            ``direction_cosine``, or ``direction_cosine_alpha_beta``, ``..._alpha_gamma``, ``..._beta_gamma`` in
            three dimensions (beside ``direction_cosine`` of the first pair; NaN for a line): they are not
            orthogonal unless asked. ``direction_norm_<axis>``: norm of the direction over the norm of theta.
            ``moved_share``: share of the parameters, in [0, 1], that any direction moves.
        """
        axes = self._axes_of_weights()
        gram = gram_of(axes)
        lengths = gram.diagonal().sqrt()
        length_of_theta = norm(self.weights(self.origin))
        numbers = {"direction_cosine": float("nan")}
        for i, j in ((0, 1), (0, 2), (1, 2)):
            if j < self.dims:
                cosine = float(gram[i, j] / (lengths[i] * lengths[j])) if lengths[i] * lengths[j] > 0 else float("nan")
                if (i, j) == (0, 1):
                    numbers["direction_cosine"] = cosine
                if self.dims == 3:
                    numbers[f"direction_cosine_{self.axes[i]}_{self.axes[j]}"] = cosine
        for axis, length in zip(self.axes, lengths, strict=True):
            numbers[f"direction_norm_{axis}"] = float(length) / length_of_theta if length_of_theta > 0 else float("nan")
        moved = {name: torch.stack([d[name] != 0 for d in axes]).any(dim=0) for name in axes[0]}
        total = sum(mask.numel() for mask in moved.values())
        numbers["moved_share"] = sum(int(mask.sum()) for mask in moved.values()) / total
        return numbers

    def save(self, path: str | Path) -> Path:
        """Write origin, directions and options to one safetensors file.

        Parameters
        ----------
        path : str or Path
            For example ``"plane.safetensors"``; the folder must exist.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        OSError
            If the file can't be written.
        """
        path = Path(path)
        tensors = {f"origin/{name}": tensor for name, tensor in self.origin.items()}
        for axis, direction in zip(self.axes, self.directions, strict=True):
            tensors |= {f"{axis}/{name}": tensor for name, tensor in direction.items()}
        about = {"config": self.config, "buffer_names": sorted(self.buffer_names), "id": self.id}
        metadata = {"lltoolkit.subspace": json.dumps(about | {"sha256": sha256(tensors)})}
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first.")
        try:
            write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
        except SafetensorError as error:
            raise OSError(f"{path} can't be written: {error}") from error
        return path

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or Path
            The safetensors file.

        Returns
        -------
        Subspace
            With the same `id`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged or holds no subspace.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; Subspace.save(path) writes one.")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["lltoolkit.subspace"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
                config, digest = about["config"], about["sha256"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no subspace, perhaps the weights of a model. Use a file of Subspace.save."
            ) from error
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged or no safetensors file ({error}). Write it again with Subspace.save."
            ) from error
        if (found := sha256(tensors)) != digest:  # a random subspace's id does not cover its directions
            raise ValueError(
                f"{path} was changed after it was written: its hash is {found:.12}, not {digest:.12}. Use the original."
            )
        parts: dict[str, Params] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        options = {name: value for name, value in config.items() if name not in ("kind", "dims")}
        origin, axes = parts["origin"], AXIS_NAMES[: config["dims"]]
        return cls(
            origin,
            [parts[axis] for axis in axes],
            kind=config["kind"],
            options=options,
            buffer_names=about["buffer_names"],
        )


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
