"""A model has one holder at a time: its KV cache serves one conversation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgecs.errors import ModelError


class OneHolder:
    """Lets one `with` block in; name: what the message of a ModelError calls it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Claims it for the time of a `with` block."""
        if self._held:
            raise ModelError(
                f"{self._name} is in use by another session: close that one"
            )
        self._held = True
        try:
            yield
        finally:
            self._held = False
