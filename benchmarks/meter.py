"""How a cell is timed and checked: a loss function that notes when it is called, and a plain loop in float64."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 64  # images per pass of the float64 loop; does not show in its mean


@dataclass
class Instant:
    """A moment: wall clock and CPU time of this process, all threads together, in seconds."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)


@dataclass(frozen=True)
class Checked:
    """A value that a tool returned, and the weights and buffers under which it computed it."""

    value: float
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Turn:
    """One turn of a contestant.

    Parameters
    ----------
    n_cells : int
        Cells computed.
    wall, cpu : float
        Seconds per cell.
    setup : float
        Seconds that did not go into cells: directions, copies, plots.
    checked : sequence of Checked
        Values to be compared, where the turn was a check.
    """

    n_cells: int
    wall: float
    cpu: float
    setup: float
    checked: Sequence[Checked] = ()


class Meter:
    """Cross-entropy as a tool is given it, noting the moment at which each cell is done.

    The tools evaluate cell after cell, and each of them calls the loss function that it was given a known number of
    times a cell. Between the last call of one cell and the last call of the next lies one whole cell: setting the
    weights, reading the examples, forward passes, loss. What a tool does once (normalizing directions, drawing) lies
    outside, which is to the advantage of the tools.

    Parameters
    ----------
    calls_per_cell : int
        Batches in a cell.
    watched : nn.Module, optional
        The model that the tool moves: its weights are copied at the end of each cell.
    """

    def __init__(self, calls_per_cell: int, watched: nn.Module | None = None) -> None:
        self.marks: list[Instant] = []
        self.states: list[dict[str, Tensor]] = []
        self._calls_per_cell = calls_per_cell
        self._n_calls = 0
        self._watched = watched

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Give the mean cross-entropy of a batch."""
        loss = functional.cross_entropy(output, target)
        self._n_calls += 1
        if self._n_calls % self._calls_per_cell == 0:
            self.marks.append(Instant())
            if self._watched is not None:
                self.states.append({name: t.detach().clone() for name, t in self._watched.state_dict().items()})
        return loss

    def read(self, values: Sequence[float], started: Instant, ended: Instant) -> Turn:
        """Give the turn that was metered.

        Parameters
        ----------
        values : sequence of float
            What the tool returned, in the order in which it computed the cells.
        started, ended : Instant
            Around the tool's own call.

        Returns
        -------
        Turn
            Of all cells but the first, which has no mark before it.

        Raises
        ------
        RuntimeError
            If the tool did not call the loss function as often as it has cells.
        """
        n_cells = len(self.marks)
        if n_cells != len(values) or n_cells < 2:
            raise RuntimeError(
                f"{len(values)} values came back, and {n_cells} cells were seen; at least 2, and as many, are wanted. "
                "The tool evaluates otherwise than this benchmark was written for: look at its version."
            )
        first, last = self.marks[0], self.marks[-1]
        wall = (last.wall - first.wall) / (n_cells - 1)
        cpu = (last.cpu - first.cpu) / (n_cells - 1)
        setup = max(0.0, ended.wall - started.wall - wall * n_cells)
        checked = [Checked(float(value), state) for value, state in zip(values, self.states, strict=False)]
        return Turn(n_cells, wall, cpu, setup, checked)


def exact_loss(model: nn.Module, state: Mapping[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Compute the mean cross-entropy by a plain loop in float64.

    Parameters
    ----------
    model : nn.Module
        The architecture, with the buffers that `state` leaves out.
    state : mapping of str to Tensor
        Weights, and buffers where they moved.
    x, y : Tensor
        The examples.

    Returns
    -------
    float
        In nat.
    """
    exact = copy.deepcopy(model).double().eval()
    exact.load_state_dict(dict(state), strict=False)
    total = 0.0
    with torch.no_grad():
        for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            total += float(functional.cross_entropy(exact(images.double()), labels, reduction="sum"))
    return total / len(x)


def relative_error(value: float, reference: float) -> float:
    """Give ``|value - reference| / |reference|``; 0 where both are the same, NaN and infinity included."""
    if value == reference or (value != value and reference != reference):
        return 0.0
    return abs(value - reference) / abs(reference)
