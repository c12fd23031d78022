"""A thread in which a drafter works while the target computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from edgecs.errors import Cancelled

Step = Callable[[], bool]
"""One step of the work; returns whether there is another one."""


class Worker(Protocol):
    """Runs the steps of one piece of work at a time, until it is told to stop."""

    stopping: threading.Event  # set while it is to stop; ends long steps early

    def start(self, step: Step) -> None:
        """Begin to call `step`. Raises RuntimeError if that is not possible."""

    def finish(self) -> None:
        """Wait for the step under way, and call no other; raises its exception.

        A step that was cancelled because of `stopping` raises nothing.
        """

    def close(self) -> None:
        """End the work and the thread; may be called again."""


class WorkerThread:
    """A `Worker` with a thread of its own, which starts with the first work."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None

    def start(self, step: Step) -> None:
        """See `Worker`."""
        assert self._work is None, "the last work was not finished"
        self.stopping.clear()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "edgecs-drafter")
        self._work = self._pool.submit(self._run, step)

    def _run(self, step: Step) -> None:
        while not self.stopping.is_set() and step():
            pass

    def finish(self) -> None:
        """See `Worker`."""
        if self._work is None:
            return
        self.stopping.set()
        interrupt: BaseException | None = None
        while not self._work.done():
            try:
                wait([self._work])
            except KeyboardInterrupt as pressed:  # its model must not be freed now
                interrupt = pressed
        work, self._work = self._work, None
        if interrupt:
            raise interrupt
        error = work.exception()
        if error is not None and not isinstance(error, Cancelled):
            raise error

    def close(self) -> None:
        """See `Worker`."""
        try:
            self.finish()
        except Exception:  # the drafter is not used any more
            pass
        finally:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.shutdown()
