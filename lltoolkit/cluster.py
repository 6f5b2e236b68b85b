"""Tasks on a Dask cluster: a LocalCluster, SLURM by dask-jobqueue, Kubernetes, or whatever gives a Client."""

import logging
import pickle
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import cloudpickle
import numpy as np
import torch

from lltoolkit.tensors.examples import Examples
from lltoolkit.tensors.machine import using_threads
from lltoolkit.tensors.shared import Layout, lay_out, read
from lltoolkit.workers import FACTORY, Make, pickle_make

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_SECONDS = 30.0  # for the first worker to come
IN_FLIGHT = 2  # tasks per worker that the scheduler knows: one is computed, one waits; a cancel loses no more
RETRIES = 1  # a task that fails on one machine, for want of memory perhaps, may succeed on another
LOSSES = 3  # so often may everything sent to the workers be lost with the last of them
KEPT = 2  # functions per worker process: those of pools that were killed are dropped by the next
COUNT_SECONDS = 1.0  # the number of workers is asked for so often: a cluster grows and shrinks

# In a worker: the functions that pools have had made here. One task at a time: a network has one set of weights.
_FUNCTIONS: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {}
_LOCK = threading.RLock()


def connect(address: str, timeout: float = 10.0) -> "Client":
    """Connect to a Dask scheduler.

    Parameters
    ----------
    address : str
        For example ``"tcp://10.0.0.1:8786"``.
    timeout : float
        Seconds to wait for an answer.

    Returns
    -------
    distributed.Client
        To be closed by the caller.

    Raises
    ------
    ModuleNotFoundError
        If distributed is not installed.
    ConnectionError
        If no scheduler answers there.
    """
    distributed = _import_distributed()
    try:
        distributed.comm.get_address_host(address)  # a Client that fails on what is no address hangs the next one
        return distributed.Client(address, timeout=timeout)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address!r} ({type(error).__name__}: {error}). Start one with `dask "
            "scheduler`, workers with `dask worker ADDRESS --nthreads 1 --nworkers auto`, and give the address that "
            "the scheduler prints, e.g. tcp://10.0.0.1:8786."
        ) from error


def _import_distributed() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "computing on a cluster needs dask.distributed, which isn't installed: pip install 'lltoolkit[cluster]'"
        ) from error
    return distributed


class DaskPool:
    """Workers of a Dask cluster, each of them doing one task at a time on one thread.

    Parameters
    ----------
    make : callable
        ``make(examples, None)``, called once in each worker process, returns the function that does a task. It goes
        by cloudpickle; networks live on the device that they were pickled on.
    client : distributed.Client
        Of any cluster. It stays open.
    examples : mapping of str to Examples or None
        What `make` is given. Sent once to every worker.
    timeout : float
        Seconds to wait for a first worker.

    Raises
    ------
    ModuleNotFoundError
        If distributed is not installed.
    ValueError
        If `make` can't be pickled.
    """

    def __init__(
        self,
        make: Make,
        client: "Client",
        examples: Mapping[str, Examples] | None,
        *,
        timeout: float = WAIT_SECONDS,
    ) -> None:
        self._distributed = _import_distributed()
        self._client = client
        self._examples = examples
        self._timeout = timeout
        self._payload = pickle_make(make)
        self._key = uuid.uuid4().hex
        self._versions = _probe()()
        self._layout: Layout | None = None
        self._sent: list[Future] = []

    @property
    def n_workers(self) -> int:
        """Number of worker processes at this moment."""
        return len(self._client.nthreads())

    def __enter__(self) -> Self:
        self._await_worker()
        require_same_versions(self._versions, self._client.run(_probe()))
        if several := [worker for worker, n in self._client.nthreads().items() if n > 1]:
            log.warning(
                "%d Dask workers have several threads, but a process does one task at a time: start more of them with "
                "--nthreads 1 (threads_per_worker=1 of a LocalCluster)",
                len(several),
            )
        self._send()
        return self

    def __exit__(self, *_: object) -> None:
        self._sent = []  # the scheduler lets go of what no future asks for
        with suppress(Exception):  # a cluster that is gone has forgotten all the same
            self._client.run(forget, self._key, wait=False)

    def _await_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._timeout)
        except TimeoutError:
            address = self._client.scheduler.address if self._client.scheduler else "(closed)"
            raise RuntimeError(
                f"the Dask scheduler at {address} has no worker, and none came within {self._timeout:g} s. Start some, "
                f"e.g. `dask worker {address} --nthreads 1 --nworkers auto`, or cluster.scale(8), and try again."
            ) from None

    def _send(self) -> None:
        """Send to every worker what all tasks need: what to make, and the examples as one array of bytes."""
        memory = None
        if self._examples is not None:
            self._layout, pieces = lay_out(self._examples)
            memory = np.zeros(self._layout.n_bytes, dtype=np.uint8)
            for offset, data in pieces:
                memory[offset : offset + len(data)] = data.numpy()
        for attempt in range(LOSSES):
            self._await_worker()
            try:
                self._sent = self._client.scatter([self._payload, memory], broadcast=True, hash=False)
                return
            except Exception as error:  # a worker died meanwhile: the scheduler says it in many ways
                if attempt == LOSSES - 1:
                    raise RuntimeError(
                        "the model and the examples can't be sent to the Dask workers, which come and go: "
                        f"{type(error).__name__}: {error}. Look at the workers' logs (memory?) and start again."
                    ) from error
                time.sleep(1.0)

    def run(self, tasks: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """Do tasks; whatever ends this early cancels what is queued.

        Parameters
        ----------
        tasks : iterable
            Finite; begun in this order. What a worker that dies was doing is done again by another.

        Yields
        ------
        task : object
            One of `tasks`.
        result : object
            What the function made of it. In the order in which they come.

        Raises
        ------
        RuntimeError
            If a task kills its workers again and again, or all workers are lost and none comes back.
        """
        todo = deque(tasks)
        doing: dict[Future, T] = {}
        coming = self._distributed.as_completed(loop=self._client.loop)
        losses, limit, counted = 0, 0, -COUNT_SECONDS
        try:
            while todo or doing:
                if (now := time.monotonic()) - counted > COUNT_SECONDS:
                    limit, counted = IN_FLIGHT * max(1, self.n_workers), now
                while todo and len(doing) < limit:
                    future = self._submit(todo[0])
                    doing[future] = todo.popleft()
                    coming.add(future)
                future = next(coming)
                task = doing.pop(future)
                try:
                    result = self._result(future)
                except self._distributed.CancelledError as error:
                    # Not by us: what all tasks need was lost with the last worker that held it.
                    losses += 1
                    if losses > LOSSES or self._client.status != "running":
                        raise RuntimeError(
                            f"the Dask cluster lost all its workers, or its scheduler: {error} What was computed is "
                            "kept; look at the workers' logs (memory?) and start again."
                        ) from error
                    todo.extendleft([*reversed(doing.values()), task])
                    self._client.cancel(list(doing))
                    doing.clear()
                    coming = self._distributed.as_completed(loop=self._client.loop)
                    self._send()
                else:
                    yield task, result
        finally:
            if doing:
                with suppress(Exception):  # the reason for ending is what the caller must see
                    self._client.cancel(list(doing), force=True)

    def _submit(self, task: Any) -> "Future":
        # As bytes, or Dask would look for graphs and keys of its own inside.
        frame = cloudpickle.dumps(task)
        return self._client.submit(
            do_task, self._key, *self._sent, self._layout, self._versions, frame, pure=False, retries=RETRIES
        )

    def _result(self, future: "Future") -> Any:
        try:
            return pickle.loads(future.result())
        except self._distributed.KilledWorker as error:
            raise RuntimeError(
                f"one task killed several Dask workers: {error} As a rule their memory ran out: give them more, or "
                "use a smaller batch_size."
            ) from error
        finally:
            future.release()  # now, and not when the last traceback that knows it is gone


def require_same_versions(own: Mapping[str, str], found: Mapping[str, Mapping[str, str]]) -> None:
    """Check that workers run what the caller runs.

    Parameters
    ----------
    own : mapping
        Name to version: lltoolkit, torch, python.
    found : mapping of str to mapping
        The same by address of the worker.

    Raises
    ------
    RuntimeError
        Naming what differs, on which workers, and what to install there.
    """
    faults, install = [], []
    for name, version in own.items():
        others: dict[str, list[str]] = {}
        for worker, theirs in found.items():
            if theirs[name] != version:
                others.setdefault(theirs[name], []).append(worker)
        for other, workers in others.items():
            some = ", ".join(workers[:3]) + (f" and {len(workers) - 3} more" if len(workers) > 3 else "")
            faults.append(f"{name} {other} on {some}")
        if others:
            install.append(f"Python {version}" if name == "python" else f"pip install {name}=={version}")
    if faults:
        here = ", ".join(f"{name} {version}" for name, version in own.items())
        raise RuntimeError(
            f"Dask workers run other versions than this process ({here}): {'; '.join(faults)}. Their results could "
            f"differ. Install the same there: {', '.join(install)}."
        )


def _probe() -> Callable[[], dict[str, str]]:
    def probe() -> dict[str, str]:
        # A function inside a function is pickled by value: it runs where lltoolkit is missing, too.
        from importlib import import_module
        from platform import python_version_tuple

        versions = {}
        for name in ("lltoolkit", "torch"):
            try:
                versions[name] = import_module(name).__version__.split("+")[0]  # without the build, "+cpu" or "+cu130"
            except ImportError:
                versions[name] = "(missing)"
        return {**versions, "python": ".".join(python_version_tuple()[:2])}

    return probe


def do_task(
    key: str, payload: bytes, memory: np.ndarray | None, layout: Layout | None, versions: dict[str, str], task: bytes
) -> bytes:
    """Do one task in a worker; the function is made with the first.

    Parameters
    ----------
    key : str
        Of the pool.
    payload : bytes
        Of `pickle_make`.
    memory, layout
        The examples.
    versions : dict
        What the caller runs.
    task : bytes
        Pickled.

    Returns
    -------
    bytes
        The pickled result.

    Raises
    ------
    RuntimeError
        If this worker, which may have come later than the check, runs other versions.
    """
    with _LOCK, using_threads(1):
        if key not in _FUNCTIONS:
            require_same_versions(versions, {_import_distributed().get_worker().address: _probe()()})
            while len(_FUNCTIONS) >= KEPT:
                _FUNCTIONS.pop(next(iter(_FUNCTIONS)), None)
            _FUNCTIONS[key] = _make(payload, memory, layout)
        function, dtype = _FUNCTIONS[key]
        with _default_dtype(dtype):
            return cloudpickle.dumps(function(pickle.loads(task)))


async def forget(key: str) -> None:
    """Drop the function of a pool in this worker; without the lock, which its event loop must not wait for."""
    _FUNCTIONS.pop(key, None)


def _make(payload: bytes, memory: np.ndarray | None, layout: Layout | None) -> tuple[Callable[[Any], Any], torch.dtype]:
    try:
        make, dtype = pickle.loads(payload)
    except Exception as error:
        raise ValueError(
            "the model, its loss or a metric can't be rebuilt in a Dask worker: "
            f"{type(error).__name__}: {error}. {FACTORY}, and install the packages that it imports there."
        ) from error
    examples = None
    if memory is not None and layout is not None:
        examples = read(layout, memory if memory.flags.writeable else memory.copy())
    with _default_dtype(dtype):
        return make(examples, None), dtype


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
