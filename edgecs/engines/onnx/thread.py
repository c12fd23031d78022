"""Where ONNX Runtime computes: in the caller's thread, or in one of its own.

ONNX Runtime, PyTorch and llama.cpp set up the processor's matrix tiles (AMX) for
themselves, llama.cpp once for each of its threads. What one leaves in a thread is wrong
for the other: the target would compute nonsense after a drafter's call, or crash after
a training.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Aside:
    """Runs functions one after the other, always in the same thread; closes.

    apart: whether that is a thread of its own, which costs some 0.05 ms a call.
    """

    def __init__(self, apart: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "onnx") if apart else None

    def __call__(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """What the function gives or raises."""
        if self._thread is None:
            return function(*args, **kwargs)
        return self._thread.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """Ends the thread; may be called again."""
        if self._thread:
            self._thread.shutdown()
