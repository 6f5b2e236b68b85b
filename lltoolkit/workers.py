"""Tasks in worker processes of this machine: ``python -m lltoolkit.workers``, fed through pipes.

A worker never imports the caller's ``__main__``, writes no file, and ends with its parent, however that ends.
"""

# Light at the top: a worker watches its parent before it spends a second on importing torch.
import faulthandler
import importlib
import logging
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, TypeVar

import cloudpickle

from lltoolkit.errors import require_whole

if TYPE_CHECKING:
    from lltoolkit.tensors.examples import Examples
    from lltoolkit.tensors.shared import Shared

log = logging.getLogger(__name__)

T = TypeVar("T")
# make(examples, device) -> function of a task; called once in each worker.
Make = Callable[[Any, Any], Callable[[Any], Any]]

ATTEMPTS = 3  # so many workers may die of one task, or one after the other while they start
AHEAD = 4  # results per worker that may wait for the caller before the workers wait, too
KEPT_LINES = 20  # of what a worker wrote to stderr, for the error if it dies
WATCH_SECONDS = 0.5
# Before torch is imported: each worker computes on one thread, and its libraries start no others.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
FACTORY = "Give Objective a factory: a function without arguments that returns the trained model"


class Pool(Protocol):
    """Where tasks are done; a context manager."""

    @property
    def n_workers(self) -> int:
        """Number of tasks done at a time."""

    def run(self, tasks: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """Do tasks, begun in order, and yield each with its result as it comes, in any order."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def pickle_make(make: Make) -> bytes:
    """Pickle what every worker calls, by value where it lives in a notebook or a script.

    Parameters
    ----------
    make : callable
        ``make(examples, device)`` returns the function that does a task.

    Returns
    -------
    bytes
        For `LocalPool` and `DaskPool`.

    Raises
    ------
    ValueError
        If something in it can't be pickled, saying what and what to do.
    """
    import torch

    try:
        return cloudpickle.dumps((make, torch.get_default_dtype()))
    except Exception as error:  # whatever a __reduce__ of the user's raises
        raise ValueError(
            "the model, its loss or a metric can't be sent to worker processes: pickling fails with "
            f"{type(error).__name__}: {error}. {FACTORY}; or use n_workers=1."
        ) from error


class LocalPool:
    """Worker processes on this machine, each on one thread.

    Parameters
    ----------
    make : callable
        ``make(examples, device)``, called once in each worker with `examples` mapped into its memory and its
        device, returns the function that does a task. It goes by cloudpickle.
    n_workers : int
        Number of processes.
    examples : mapping of str to Examples, Shared or None
        What `make` is given. A mapping is written to a file without a name and belongs to the pool; a `Shared` stays
        the caller's, who may map it, too.
    devices : sequence of str, optional
        The workers' devices in turn, ``("cuda:0", "cuda:1")``; networks in `make` are unpickled there. None: `make`
        is given None, and networks go where they were.

    Raises
    ------
    ValueError
        If `make` can't be pickled, or `n_workers` is no positive number.
    OSError
        If there is no room for the examples in the folder for temporary files.

    Examples
    --------
    >>> with LocalPool(lambda examples, device: abs, 1, None) as pool:
    ...     sorted(pool.run([-1, 2]))
    [(-1, 1), (2, 2)]
    """

    def __init__(
        self,
        make: Make,
        n_workers: int,
        examples: "Mapping[str, Examples] | Shared | None",
        *,
        devices: Sequence[str] | None = None,
    ) -> None:
        self.n_workers = require_whole("n_workers", n_workers, least=1)
        self._devices = [devices[place % len(devices)] if devices else None for place in range(self.n_workers)]
        self._payload = pickle_make(make)
        self._examples = examples
        self._shared: Shared | None = None
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        # All that follows is guarded by it.
        self._closed = True
        self._n_serving = self.n_workers
        self._workers: set[_Worker] = set()
        self._run = 0
        self._todo: deque[_Job] = deque()
        self._finished: deque[tuple[Any, Any]] = deque()
        self._error: BaseException | None = None  # of this run
        self._fatal: BaseException | None = None  # of the pool: no worker can be started

    def __enter__(self) -> Self:
        from lltoolkit.tensors.shared import share

        self._shared = share(self._examples) if isinstance(self._examples, Mapping) else self._examples
        self._closed = False
        # A thread for each worker, so that none waits while the caller writes a file between two results.
        self._threads = [
            threading.Thread(target=self._serve, args=(device,), daemon=True, name=f"lltoolkit worker {place}")
            for place, device in enumerate(self._devices)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._todo.clear()
            # At once and by force: a worker holds nothing that it could save, and may be deep in a computation.
            for worker in self._workers:
                worker.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._shared is not None and self._shared is not self._examples:
            self._shared.close()

    def run(self, tasks: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """Do tasks, one run at a time.

        Parameters
        ----------
        tasks : iterable
            Finite; each goes to one worker, begun in this order. A worker that dies is replaced, and its task done
            again.

        Yields
        ------
        task : object
            One of `tasks`.
        result : object
            What the function made of it. In the order in which they are done.

        Raises
        ------
        RuntimeError
            If a task kills its worker three times, if no worker can be started, or the pool is closed.
        ValueError
            If what was pickled can't be unpickled in a worker.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed: call run inside `with LocalPool(...) as pool:`.")
            self._run += 1
            self._todo.extend(_Job(self._run, task) for task in tasks)
            n_left = len(self._todo)
            self._changed.notify_all()
        try:
            for _ in range(n_left):
                with self._changed:
                    self._changed.wait_for(lambda: self._finished or self._error or self._fatal)
                    if not self._finished and (error := self._error or self._fatal):
                        raise error  # only now: what was done before it came is handed out first
                    done = self._finished.popleft()
                    self._changed.notify_all()
                yield done
        finally:
            with self._changed:
                self._run += 1  # what comes in from now on is of a run that nobody waits for
                self._todo.clear()
                self._finished.clear()
                self._error = None

    def _serve(self, device: str | None) -> None:
        """Keep one worker alive and busy; runs in a thread of its own."""
        worker = None
        try:
            worker = self._start(device)
            while worker is not None and (job := self._take()) is not None:
                if not worker.alive:  # it died of something else, between two tasks
                    self._give_back(job)
                    worker.stop()
                    worker = self._start(device)
                    continue
                try:
                    result = worker.ask(job.task)
                except _WorkerDied as death:
                    worker.stop()
                    self._blame(job, death)
                    worker = self._start(device)
                except Exception as error:
                    self._fail(job, error)
                else:
                    self._finish(job, result)
        except BaseException as error:  # this thread has no caller: the one who waits for results is told
            with self._changed:
                self._fatal = self._fatal or error
                self._changed.notify_all()
        finally:
            if worker is not None:
                worker.stop()

    def _start(self, device: str | None) -> "_Worker | None":
        """Start a worker; None if the pool is closed meanwhile, or it won't start and there are others."""
        deaths = 0
        while True:
            worker = _Worker(() if self._shared is None else (self._shared.descriptor,))
            with self._changed:
                if not self._closed:
                    self._workers = {other for other in self._workers if other.alive} | {worker}
                else:
                    worker.kill()
            try:
                worker.prepare(self._payload, self._shared, device)
                return worker
            except _WorkerDied as death:
                deaths += 1
                worker.stop()
                if self._closed:
                    return None
                if deaths == ATTEMPTS:
                    with self._changed:
                        self._n_serving -= 1
                    if self._n_serving == 0:
                        raise RuntimeError(f"no worker process can be started. {death}") from None
                    log.warning("a worker process can't be started; %d go on. %s", self._n_serving, death)
                    return None
            except BaseException:
                worker.stop()
                raise

    def _take(self) -> "_Job | None":
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._todo and len(self._finished) < AHEAD * self.n_workers)
            )
            return None if self._closed else self._todo.popleft()

    def _finish(self, job: "_Job", result: Any) -> None:
        with self._changed:
            if job.run == self._run:
                self._finished.append((job.task, result))
                self._changed.notify_all()

    def _fail(self, job: "_Job", error: BaseException) -> None:
        with self._changed:
            if job.run == self._run:
                self._todo.clear()
                self._error = self._error or error
                self._changed.notify_all()

    def _blame(self, job: "_Job", death: Exception) -> None:
        job.deaths += 1
        if job.deaths == ATTEMPTS:
            self._fail(job, RuntimeError(f"one task killed {ATTEMPTS} worker processes. {death}"))
        else:
            self._give_back(job)

    def _give_back(self, job: "_Job") -> None:
        with self._changed:
            if job.run == self._run and not self._error:
                self._todo.appendleft(job)
                self._changed.notify_all()


@dataclass
class _Job:
    run: int
    task: Any
    deaths: int = 0


class _WorkerDied(Exception):  # noqa: N818 - named after what happened
    """The process ended without an answer."""


class _Worker:
    """The parent's end of one worker process; used by one thread, but for `kill`."""

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        # The parent's path by the environment, without the current folder (-P) unless it is on that path: lltoolkit
        # and the caller's modules are found where the caller found them.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path if isinstance(entry, str))
        self._process: Any = subprocess.Popen(
            [sys.executable, "-P", "-m", "lltoolkit.workers", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone, who stops the workers
        )
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self._process.stderr:
            self._lines.append(line.decode(errors="replace").rstrip())
            log.info("worker %d: %s", self._process.pid, self._lines[-1])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def prepare(self, payload: bytes, shared: "Shared | None", device: str | None) -> None:
        """Have the worker make its function; wait for it."""
        data = None if shared is None else (shared.descriptor, shared.layout)
        self._exchange({"payload": payload, "shared": data, "device": device})

    def ask(self, task: Any) -> Any:
        """Have a task done; raise what it raised."""
        return self._exchange(task)

    def _exchange(self, message: Any) -> Any:
        frame = cloudpickle.dumps(message)
        try:
            _send(self._process.stdin, frame)
            answer = _receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise _WorkerDied(self._last_words())
        reply = pickle.loads(answer)
        if isinstance(reply, _Failure):
            raise reply.error()
        return reply

    def _last_words(self) -> str:
        self.kill()  # it closed its pipes, so it is as good as dead
        code = self._process.wait()
        self._listener.join(timeout=1)
        return describe_death(code, list(self._lines))

    def kill(self) -> None:
        """End the process at once; from any thread."""
        self._process.kill()

    def stop(self) -> None:
        """End the process and close its pipes."""
        self.kill()
        self._process.wait()
        self._listener.join(timeout=1)  # a process that the model started may hold the pipe open
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is self._process.stderr and self._listener.is_alive():
                continue
            with suppress(BrokenPipeError):  # what was not sent is dropped
                pipe.close()


def describe_death(code: int, lines: Sequence[str]) -> str:
    """Say how a process ended and what to do.

    Parameters
    ----------
    code : int
        Its return code; negative: the signal.
    lines : sequence of str
        The last it wrote to stderr.

    Returns
    -------
    str
        Sentences.

    Examples
    --------
    >>> describe_death(3, [])
    'The last one ended with exit code 3.'
    """
    name = str(-code)
    with suppress(ValueError):
        name = signal.Signals(-code).name
    how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {name}"
    hint = ""
    if name == "SIGKILL":
        hint = " So the system ends processes when memory runs out: use fewer workers or a smaller batch_size."
    elif name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"):
        hint = " That is a fault in compiled code: try n_workers=1 to see whether the model does it there, too."
    said = "\n".join(lines)
    return f"The last one {how}.{hint}" + (f" It wrote last:\n{said}" if said else "")


@dataclass
class _Failure:
    """An exception on its way from a worker to its parent."""

    stage: str
    name: str
    message: str
    trace: str
    pickled: bytes | None

    def error(self) -> Exception:
        """Give the exception, with the worker's traceback as a note."""
        error: BaseException | None = None
        if self.stage == "load":
            error = ValueError(
                f"the model, its loss or a metric can't be rebuilt in a worker process: {self.name}: {self.message}. "
                f"{FACTORY}; or use n_workers=1."
            )
        elif self.pickled is not None:
            with suppress(Exception):
                error = pickle.loads(self.pickled)
        if not isinstance(error, Exception):  # not picklable, or a SystemExit, which is the worker's affair
            error = RuntimeError(f"a task failed with {self.name}: {self.message}")
        error.add_note(f"In a worker process of lltoolkit:\n{self.trace.rstrip()}")
        return error


def _failure(stage: str, error: BaseException) -> _Failure:
    pickled = None
    with suppress(Exception):
        pickled = cloudpickle.dumps(error)
        pickle.loads(pickled)
    return _Failure(stage, type(error).__name__, str(error), traceback.format_exc(), pickled)


def _send(pipe: BinaryIO, frame: bytes) -> None:
    pipe.write(struct.pack("!Q", len(frame)))
    pipe.write(frame)
    pipe.flush()


def _receive(pipe: BinaryIO) -> bytes | None:
    """Read one frame; None where the other end is gone."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("!Q", head)
    frame = pipe.read(length)
    return frame if len(frame) == length else None


def main() -> None:
    """Be a worker: make the function from the first message, then answer each task, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()  # a fault in compiled code tells its place on stderr
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What the model prints must not get among the replies, and what it starts must not hold the pipes.
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_feed, args=(requests, frames), daemon=True).start()
    threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()

    do: Callable[[Any], Any] = _prepare
    while True:
        stage = "load"
        try:
            message = pickle.loads(frames.get())
            if do is _prepare:
                make, examples, device = _prepare(message)
                stage = "make"
                do, result = make(examples, device), None
            else:
                stage = "task"
                result = do(message)
            reply = cloudpickle.dumps(result)
        except BaseException as error:
            reply = cloudpickle.dumps(_failure(stage, error))
        with suppress(BrokenPipeError):
            _send(replies, reply)


def _prepare(message: Mapping[str, Any]) -> tuple[Make, Any, str | None]:
    """Set the process up and unpickle what it needs."""
    import torch

    from lltoolkit.tensors.network import loading_on
    from lltoolkit.tensors.shared import Shared

    torch.set_num_threads(1)
    examples = None
    if message["shared"] is not None:
        with Shared(*message["shared"]) as shared:
            examples = shared.open()
    with loading_on(message["device"]):
        make, dtype = pickle.loads(message["payload"])
    torch.set_default_dtype(dtype)
    return make, examples, message["device"]


def _feed(requests: BinaryIO, frames: "queue.SimpleQueue[bytes]") -> None:
    while (frame := _receive(requests)) is not None:
        frames.put(frame)
    os._exit(0)  # the parent is gone, or done: also in the middle of a computation


def _watch(parent: int) -> None:
    """End when another process has become the parent: a child of the parent's may still hold the pipe open."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    # Under its own name, so that what is pickled by reference to this module is found again in the parent.
    importlib.import_module("lltoolkit.workers").main()
