"""Checks of grammars and schemas, which take up to a second, in their own threads.

They share no threads with anything else, so many of them delay only each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from edgecs.server.batching.job import Busy

P = ParamSpec("P")
T = TypeVar("T")
MOST_WAITING = 32  # chosen: at some seconds each, the last one is not told too late


class Checks:
    """Calls in two threads; at most `most` wait or run. Belongs to an event loop."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most, self._open = most, 0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="edgecs-checks")

    async def run(self, check: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
        """The result of a call; a cancelled one does not begin. Raises Busy."""
        if self._open >= self._most:
            raise Busy(f"{self._open} schemas are already checked: retry later")
        self._open += 1
        try:
            work = self._threads.submit(check, *values, **named)
            return await asyncio.wrap_future(work)
        finally:
            self._open -= 1

    def close(self) -> None:
        """End it; calls that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
