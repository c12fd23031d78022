"""Exclusive use of a model, as its KV cache serves one conversation at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgecs.errors import ModelError


class ExclusiveUse:
    """Allows one `with` block at a time; name: of the model, for error messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Claim it for the duration of a `with` block; raises ModelError if in use."""
        if self._held:
            raise ModelError(
                f"{self._name} is in use by another session: close that one"
            )
        self._held = True
        try:
            yield
        finally:
            self._held = False
