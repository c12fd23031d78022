"""Run ONNX Runtime in the caller's thread, or in a separate thread.

ONNX Runtime, PyTorch and llama.cpp each configure the CPU's matrix tiles (AMX),
llama.cpp once per thread. The tile configuration of one library is wrong for the others
in the same thread: the target would compute wrong results after a drafter's call, or
crash after a training.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Aside:
    """Runs functions one after the other in the same thread; has to be closed.

    apart: use a separate thread, which costs about 0.05 ms per call.
    """

    def __init__(self, apart: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "onnx") if apart else None

    def __call__(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return the function's result, or raise its exception."""
        if self._thread is None:
            return function(*args, **kwargs)
        return self._thread.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """End the thread; may be called again."""
        if self._thread:
            self._thread.shutdown()
