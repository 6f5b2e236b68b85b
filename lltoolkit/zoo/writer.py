"""A thread that writes to disk while the training goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

IN_FLIGHT = 2  # works that may be unfinished at a time: one on its way to the disk, one waiting


class Writer:
    """Carries out works one after another, in the order they came, in one thread in the background.

    An error of a work is raised by the next ``check``, ``wait`` or ``close``, once; handing in never raises one. What
    waits behind it is carried out nevertheless. The interpreter does not end before the works do.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lltoolkit-writer")
        self._pending: deque[Future[None]] = deque()
        self._errors: list[BaseException] = []  # that nobody was told of yet

    def make_room(self) -> None:
        """Wait until one more work may be handed in; what it is to write takes memory only from then on."""
        while len(self._pending) >= IN_FLIGHT:
            self._finish_first()

    def submit(self, work: Callable[[], None]) -> None:
        """Hand in a work; returns at once where there is room."""
        self.make_room()
        self._pending.append(self._pool.submit(work))

    def check(self) -> None:
        """Raise the error of a work that has ended with one; the first, where there are several."""
        while self._pending and self._pending[0].done():
            self._finish_first()
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def wait(self) -> None:
        """Return when all works have ended.

        Raises
        ------
        Exception
            The first error of a work, when all have ended.
        """
        wait(self._pending)
        self.check()

    def close(self) -> None:
        """Wait for all works, then end the thread."""
        try:
            self.wait()
        finally:
            self._pending.clear()
            self._pool.shutdown()

    def _finish_first(self) -> None:
        wait([self._pending[0]])  # an interrupt here leaves the work where it is
        if (error := self._pending.popleft().exception()) is not None:
            self._errors.append(error)
