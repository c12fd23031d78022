"""Ends calls of ONNX Runtime that do not come back.

A graph comes from anywhere, and may hold a loop without an end. The engine looks
between two nodes, and in every turn of a loop, whether its call is to be given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import onnxruntime as ort

from edgecs.errors import Cancelled, ModelError

R = TypeVar("R")

# chosen: a thousand times what is usual.
LONGEST = 10.0  # seconds; of a drafter for a few tokens, which are milliseconds
# chosen: so Ctrl-C seems to act at once.
_LOOK = 0.25  # seconds between two looks at a call


class Watch:
    """Runs calls, each with the options by which it can be ended; closes.

    A call may take LONGEST. A while in which the process was stopped (Ctrl-Z) does not
    count. cancel: ends a call as well.
    """

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel
        self._running: ort.RunOptions | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[ort.RunOptions], R]) -> R:
        """What a call gives or raises; Cancelled or ModelError where it was ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        options = self._running = ort.RunOptions()
        try:
            return call(options)
        except Exception as error:
            if not options.terminate:
                raise
            if self._cancel.is_set():
                raise Cancelled("stopped while a drafter computed") from error
            raise ModelError(
                f"a call did not come back within {LONGEST:.0f} s, for which "
                "milliseconds are usual: its graph may have a loop without an end"
            ) from error
        finally:
            self._running = None

    def close(self) -> None:
        """Ends the thread; may be called again."""
        self._closed.set()

    def _look(self) -> None:
        watched: ort.RunOptions | None = None
        looks = 0
        while not self._closed.wait(_LOOK):
            running = self._running
            looks = looks + 1 if running is watched else 0
            watched = running
            late = looks * _LOOK >= LONGEST
            if watched is not None and (late or self._cancel.is_set()):
                watched.terminate = True
