"""Which token follows a row of logits: one deterministic choice per position."""

from __future__ import annotations

from dataclasses import dataclass

from edgecs.context import Tokens
from edgecs.draft import Choose, Row
from edgecs.errors import ConfigError


def greedy(row: Row, tokens: Tokens) -> int:
    """The most probable token; of several, the one with the smallest id."""
    return int(row.argmax())


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the target's law. Greedy is all there is so far."""

    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature != 0:
            raise ConfigError(
                f"temperature {self.temperature:g} asks for sampling, which this "
                "version does not have: use --temp 0 (greedy)"
            )

    def chooser(self) -> Choose:
        """The rule as a function of (row, tokens)."""
        return greedy
