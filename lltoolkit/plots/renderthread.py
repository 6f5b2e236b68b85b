"""One thread for all windows: OpenGL binds a window to the thread that made it."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class RenderThread:
    """The one thread that makes windows and draws in them.

    An OpenGL window is bound to the thread that made it: an image taken from another one is black or garbage, with
    no error. Notebooks run widget callbacks on several threads, so all work goes through this one.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def run(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call `function` in the thread, wait, and return its value or raise its exception."""
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        return self._submit(function, args, kwargs).result()

    def run_later(self, function: Callable, *args: Any) -> None:
        """Call `function` in the thread without waiting for it."""
        self._submit(function, args, {})

    def stop(self) -> None:
        """Finish what waits and end the thread; the next call starts a new one."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            self._jobs.put(None)
            thread.join()

    def _submit(self, function: Callable, args: tuple, kwargs: dict) -> Future:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():  # also in a forked child, where threads are gone
                self._jobs = queue.SimpleQueue()
                # A daemon, so that an interpreter that ends reaches the atexit hook below, which stops it.
                self._thread = threading.Thread(
                    target=self._work, args=(self._jobs,), name="lltoolkit-render", daemon=True
                )
                self._thread.start()
        future: Future = Future()
        self._jobs.put((future, function, args, kwargs))
        return future

    @staticmethod
    def _work(jobs: queue.SimpleQueue) -> None:
        while (job := jobs.get()) is not None:
            future, function, args, kwargs = job
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # also KeyboardInterrupt: the caller raises it
                future.set_exception(error)
            del job, future, function, args, kwargs  # hold no scene while waiting
