"""Terminate calls of ONNX Runtime that do not return.

A graph may come from an untrusted source and contain an infinite loop. The engine
checks for termination between nodes, and in every iteration of a loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import onnxruntime as ort

from edgecs.errors import Cancelled, ModelError

R = TypeVar("R")

# chosen: a thousand times the usual time, which is milliseconds.
LONGEST = 10.0  # seconds; time limit of one call of a drafter
# chosen: short enough for Ctrl-C to seem immediate.
_LOOK = 0.25  # seconds between two checks of a call


class Watch:
    """Runs calls with run options that can terminate them; has to be closed.

    A call may take LONGEST. Time in which the process was suspended (Ctrl-Z) does not
    count. cancel: terminates a call as well.
    """

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel
        self._running: ort.RunOptions | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[ort.RunOptions], R]) -> R:
        """The result of a call; raises Cancelled or ModelError if it was terminated."""
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
                f"a call did not return within {LONGEST:.0f} s, where milliseconds are "
                "usual: its graph may contain an infinite loop"
            ) from error
        finally:
            self._running = None

    def close(self) -> None:
        """End the thread; may be called again."""
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
