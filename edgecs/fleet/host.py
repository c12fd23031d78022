"""What a worker process runs: it prepares itself once, then computes items."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple, Protocol

import edgecs
from edgecs.errors import EdgecsError


class Ready(NamedTuple):
    """A prepared worker on a machine of a kind."""

    machine: str
    kind: str


class Done(NamedTuple):
    """The result of an item."""

    value: Any


class Problem(NamedTuple):
    """An exception of this library: its class and its sentence."""

    error: str
    why: str


class Prepared(NamedTuple):
    """A prepared worker's function, and the kind of its machine."""

    compute: Callable[[Any], Any]
    kind: str = ""


class Setup(Protocol):
    """How a worker prepares itself; it is sent to the workers."""

    def opened(self) -> AbstractContextManager[Prepared]:
        """Prepares, for as long as the context is open. Raises EdgecsError."""


class Host:
    """One worker process. setup: see `Setup`. version: of the library that sent it."""

    def __init__(self, setup: Setup, version: str) -> None:
        self._setup, self._version = setup, version
        self._closing = ExitStack()
        self._prepared: Prepared | None = None

    def start(self) -> Ready | Problem:
        """Prepares the worker."""
        machine = platform.node() or "a machine"
        if edgecs.__version__ != self._version:
            return Problem(
                "ConfigError",
                f"{machine} has edgecs {edgecs.__version__}, not {self._version}: "
                "install the same version there",
            )
        try:
            self._prepared = self._closing.enter_context(self._setup.opened())
        except EdgecsError as error:
            return Problem(type(error).__name__, str(error))
        return self.ready()

    def ready(self) -> Ready:
        """Says that a prepared worker is there."""
        assert self._prepared is not None
        return Ready(platform.node() or "a machine", self._prepared.kind)

    def compute(self, payload: Any) -> Done | Problem:
        """The result of an item."""
        assert self._prepared is not None
        try:
            return Done(self._prepared.compute(payload))
        except EdgecsError as error:
            return Problem(type(error).__name__, str(error))
