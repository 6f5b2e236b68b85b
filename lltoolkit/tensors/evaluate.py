"""Engines: many points of one subspace measured fast.

There is one engine so far, "flat": the weights of a cell are written into one flat buffer from the origin
(never by accumulated steps, which drift), with the data resident on the device.
"""

from collections.abc import Sequence

from torch import Tensor

from lltoolkit.tensors.objective import Objective, Values
from lltoolkit.tensors.params import move
from lltoolkit.tensors.subspace import Subspace, require_fit


class FlatEngine:
    """Measure an objective at points of a subspace.

    Parameters
    ----------
    objective : Objective
        What is measured.
    subspace : Subspace
        Where.

    Raises
    ------
    ValueError
        If the subspace is of another model, or of another minimizer whose buffers nobody knows.
    """

    name = "flat"

    def __init__(self, objective: Objective, subspace: Subspace) -> None:
        require_match(objective, subspace)
        self.objective = objective
        network = objective.network
        self._origin = network.flatten(subspace.origin)
        self._directions = [network.flatten(direction) for direction in subspace.directions]
        moved = subspace.buffer_names
        device = network.device
        self._buffers = {name: subspace.origin[name].to(device) for name in moved}
        self._buffer_steps = [{name: direction[name].to(device) for name in moved} for direction in subspace.directions]

    def measure(self, coordinates: Sequence[float]) -> Values:
        """Measure one point, given by its coordinates."""
        network = self.objective.network
        with self.objective.lock:
            network.flat.copy_(self._origin)
            for direction, coordinate in zip(self._directions, coordinates, strict=True):
                network.flat.add_(direction, alpha=float(coordinate))
            network.write_buffers(move(self._buffers, self._buffer_steps, coordinates))
            return self.objective.measure_current()


def require_match(objective: Objective, subspace: Subspace) -> None:
    """Check that a subspace can be measured by an objective.

    Raises
    ------
    ValueError
        If names or shapes differ, if the buffer policy can't be met, or if a random plane was drawn around other
        weights.
    """
    require_fit(subspace.weights(subspace.origin), objective.theta, what="the subspace", against="this objective")
    if unknown := sorted(subspace.buffer_names - set(objective.network.buffers)):
        raise ValueError(f"the subspace moves the buffers {unknown[:5]}, which this objective's model lacks.")
    if objective.buffers == "interpolate" and objective.network.buffers and not subspace.buffer_names:
        raise ValueError(
            f"buffers='interpolate', but this subspace ({subspace.kind}) moves no buffers; interpolate(a, b) makes one "
            "that does. Use buffers='frozen' or 'recompute'."
        )
    same = all(_equal(subspace.origin[name].to(tensor), tensor) for name, tensor in objective.theta.items())
    if same or subspace.buffer_names:
        return
    if subspace.kind == "random":
        raise ValueError(
            "this random subspace was drawn around other weights than the objective's minimizer: its directions are "
            "scaled to those. Draw it again with random_subspace(objective, ...)."
        )
    if objective.network.buffers and objective.buffers != "recompute":
        raise ValueError(
            "the subspace has its origin at other weights than the objective's minimizer and does not say which "
            "batch-norm statistics belong to them. Use an objective of the origin's model, interpolate(a, b) with "
            "buffers='interpolate', or buffers='recompute'."
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())  # a minimizer with NaN has its own message
