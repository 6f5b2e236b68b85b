"""Who computes the cells: this process, worker processes of this machine, or a cluster. That shows in no value."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lltoolkit.tensors.evaluate import Evaluator
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.shared import share
from lltoolkit.tensors.subspace import Subspace
from lltoolkit.workers import LocalPool, Pool, pickle_make

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

WORTH_WORKERS = 15.0  # seconds of work below which starting processes (each imports torch) costs more than it saves
WORKER_BYTES = 400e6  # of a worker's own, beside the model and the activations of a batch


class InProcess:
    """Do tasks here, one after the other; see `workers.Pool`."""

    n_workers = 1

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self._do = do

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Do tasks in order."""
        for task in tasks:
            yield task, self._do(task)


@contextmanager
def choose_pool(
    objective: Objective,
    subspaces: Sequence[Subspace],
    how: Mapping[str, Any],
    client: "Client | None",
    n_workers: int | None,
    seconds: float,
    evaluator: type[Any] = Evaluator,
    **here: Any,
) -> Iterator[Pool]:
    """Choose who computes. That shows in no value: every cell is the same from any process.

    Parameters
    ----------
    objective, subspaces, how
        What the evaluator is made of.
    client, n_workers
        As `compute_surface` takes them.
    seconds : float
        Of work in one process, about.
    evaluator : type
        `Evaluator` or alike: who does a task.
    **here
        Further arguments of one in this process.

    Yields
    ------
    Pool
        Ready to do tasks.
    """
    if client is not None:
        from lltoolkit.cluster import DaskPool

        hosts = Counter(address.rpartition(":")[0] for address in client.nthreads())
        shared_by = {"n_beside": max(hosts.values(), default=1)}
        make = functools.partial(evaluator.make, objective, subspaces, {**how, **shared_by})
        with DaskPool(make, client, objective.examples) as pool:
            yield pool
        return
    gpus = _gpus(objective.device)
    if n_workers is None:
        n_workers = _default_workers(objective, how, gpus) if seconds > WORTH_WORKERS else 1
    if n_workers == 1:
        yield InProcess(evaluator(objective, subspaces, how, **here))
        return
    with share(objective.examples) as shared:
        if objective.device.type == "cpu":
            objective.attach(shared.open())  # the same pages as the workers': the data are in memory once
        beside = -(-n_workers // max(1, len(gpus)))
        make = functools.partial(evaluator.make, objective, subspaces, {**how, "n_beside": beside})
        with LocalPool(make, n_workers, shared, devices=gpus or None) as pool:
            yield pool


def _gpus(device: torch.device) -> list[str]:
    """Name the GPUs to use: all of them, unless the device is one of them."""
    if device.type != "cuda" or device.index is not None:
        return [] if device.type == "cpu" else [str(device)]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def _default_workers(objective: Objective, how: Mapping[str, Any], gpus: Sequence[str]) -> int:
    if gpus or objective.device.type != "cpu":
        return max(1, len(gpus))
    if int(how["n_threads"]) != 1 or not can_travel(objective):
        return 1
    each = WORKER_BYTES + 6 * 4 * objective.n_params
    room = 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(torch.get_num_threads(), int(room / each)))


def can_travel(objective: Objective) -> bool:
    """Tell whether an objective can be sent to a worker process; if so, each computes on one thread."""
    if objective.device.type != "cpu":
        return False
    try:
        pickle_make(functools.partial(Evaluator.make, objective))
    except ValueError as error:
        log.info("%s It is computed in this process alone.", error)
        return False
    return True
