"""A chat's reader for commands that a test gives itself."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class NoReader:
    """Nothing is typed."""

    commands = True

    def __call__(self) -> str | None:
        return None

    def answered(self, *, stopped: bool) -> None:
        self.stopped = stopped

    def usual(self) -> Any:
        return nullcontext()
