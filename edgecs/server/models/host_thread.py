"""The thread of a loaded model: it loads the model, and frees it at the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

from edgecs.errors import Cancelled
from edgecs.server.models.served import Served

logger = logging.getLogger("edgecs")

Opening = Callable[[threading.Event], AbstractContextManager[Served]]
"""Loads a model; setting the event stops that with Cancelled, and later answers."""


class HostThread:
    """Runs an `Opening` in a thread of its own, which enters and leaves it.

    opened: the engine, or the error of loading. closed: set after it was freed. Both
    belong to the running event loop.
    """

    def __init__(self, opening: Opening) -> None:
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[Served] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._opening = opening
        self._cancel, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgecs-model")
        self._thread.start()

    def cancel(self) -> None:
        """Stop loading, and answers."""
        self._cancel.set()

    def stop(self) -> None:
        """Free the model, which no answer may use."""
        self._stop.set()

    def join(self) -> None:
        """Cancel, free the model and wait for that; for the end of the program."""
        self.cancel()
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self._opening(self._cancel) as engine:
                self._tell(self.opened.set_result, engine)
                del engine
                self._stop.wait()
        except BaseException as caught:
            error = caught
        self._tell(self._finish, error)

    def _finish(self, error: BaseException | None) -> None:
        if error is not None and not self.opened.done():
            self.opened.set_exception(error)
        elif error is not None and not isinstance(error, Cancelled):
            logger.error("a model was not freed cleanly", exc_info=error)
        self.closed.set_result(None)

    def _tell(self, call: Callable[..., None], *values: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *values)
