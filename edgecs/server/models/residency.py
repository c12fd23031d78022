"""How many models are in memory and how long, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from edgecs.runtime.served_models import ServedModel
from edgecs.server.models.keep_alive import USUAL
from edgecs.server.models.served import Served

State = Literal["loading", "loaded", "unloading"]


@dataclass(frozen=True)
class Limits:
    """How many models are in memory, and how long.

    most: 0: as many as fit. keep_alive: seconds after the last answer; None: for ever.
    """

    most: int = 1
    keep_alive: float | None = USUAL


class Resident(NamedTuple):
    """A snapshot of a model in memory.

    users: requests that use it or wait for it. expires_at: `time.time` at which it is
    unloaded if no request comes; None: never.
    """

    model: ServedModel
    state: State
    users: int
    expires_at: float | None
    engine: Served | None  # None: not loaded yet, or being freed

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.model.name

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return self.model.size
