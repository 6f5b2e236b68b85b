"""Evaluator: cells measured as somebody asked for them, in this process or in a worker's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lltoolkit.tensors.engines import Engine, make_engine
from lltoolkit.tensors.examples import Examples
from lltoolkit.tensors.objective import Objective, PerExample, Values
from lltoolkit.tensors.subspace import Subspace


@dataclass(frozen=True)
class Task:
    """Some cells to measure together.

    Attributes
    ----------
    cells : ndarray
        Shape ``(k,)``: their numbers, for whoever asked.
    points : list
        For each cell the place of its subspace in the list of them, and its coordinates.
    positions : dict or None
        By split the examples to measure, shape ``(m,)``, int64; None: all of them, and their means.
    examples : bool
        Give every example's values, too.
    """

    cells: np.ndarray
    points: list[tuple[int, tuple[float, ...]]]
    positions: dict[str, np.ndarray] | None = None
    examples: bool = False


@dataclass(frozen=True)
class Result:
    """What a task gave, cell by cell.

    Attributes
    ----------
    values : list of dict
        Means over all examples; empty where only some were measured.
    examples : list of dict
        ``{(split, name): ndarray}`` of the examples measured, where asked for.
    batch_size : int
        Of the forward passes; smaller than it was set to where memory ran out.
    """

    values: list[Values]
    examples: list[dict[tuple[str, str], np.ndarray]]
    batch_size: int


class Evaluator:
    """Do tasks: an objective with the engines of some subspaces.

    Parameters
    ----------
    objective : Objective
        What is measured.
    subspaces : sequence of Subspace
        Where; their engines are made when they are first needed.
    how : mapping
        ``engine``, ``batch_size``, ``n_threads`` and ``precision``.
    """

    def __init__(self, objective: Objective, subspaces: Sequence[Subspace], how: Mapping[str, Any]) -> None:
        self._objective = objective
        self._subspaces = subspaces
        self._engine = str(how["engine"])
        self._engines: dict[int, Engine] = {}
        objective.compute_as(int(how["batch_size"]), int(how["n_threads"]), str(how["precision"]))

    @classmethod
    def make(
        cls,
        objective: Objective,
        subspaces: Sequence[Subspace],
        how: Mapping[str, Any],
        examples: Mapping[str, Examples],
        device: str | None,
    ) -> "Evaluator":
        """Make one in a worker, from an objective that came without its examples."""
        objective.attach(examples)
        return cls(objective, subspaces, how)

    def engine(self, place: int) -> Engine:
        """Return the engine of a subspace."""
        if place not in self._engines:
            self._engines[place] = make_engine(self._objective, self._subspaces[place], self._engine)
        return self._engines[place]

    def __call__(self, task: Task) -> Result:
        """Measure a task's cells.

        Returns
        -------
        Result
            In the order of the task.

        Raises
        ------
        ValueError
            If values of every example are wanted, and a function of the caller's gives means of batches.
        """
        positions = None
        if task.positions is not None:
            positions = {split: torch.as_tensor(chosen) for split, chosen in task.positions.items()}
        values: list[Values] = []
        examples: list[dict[tuple[str, str], np.ndarray]] = []
        with self._objective.measuring():
            for gathered in self._gather(task, positions):
                if positions is None:
                    values.append(self._objective.summarize(gathered))
                if task.examples or positions is not None:
                    if coarse := [name for (_, name), found in gathered.items() if not found.per_example]:
                        raise ValueError(
                            f"{coarse[0]} is a mean over a batch; examples='two-level' needs the value of every "
                            "example. Return a tensor of shape (B,)."
                        )
                    examples.append({key: found.values.cpu().numpy() for key, found in gathered.items()})
        return Result(values, examples, self._objective.batch_size)

    def _gather(self, task: Task, positions: Mapping[str, Tensor] | None) -> Iterator[PerExample]:
        start = 0
        while start < len(task.points):  # neighbours of one subspace together
            place = task.points[start][0]
            stop = start
            while stop < len(task.points) and task.points[stop][0] == place:
                stop += 1
            yield from self.engine(place).gather([point for _, point in task.points[start:stop]], positions)
            start = stop
