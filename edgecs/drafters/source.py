"""What a planner needs of a drafter without a model: a source of proposals.

A source looks something up. It says what it found about each token of its last proposal
as *buckets*, small numbers that stand for facts such as "the match has 7 tokens" or "it
is the third token". The planner learns from every round how often tokens in a bucket
are right, whichever source they come from (`planning.acceptance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from edgecs.core.context import Context
from edgecs.core.draft import Drafter

# chosen: later ones are seldom reached, and each takes time in every round.
LOOKED_AT = 8  # tokens of a proposal that are judged one by one


class Source(Drafter, Protocol):
    """A drafter without a model that can be planned.

    buckets: how many there are. prior: the log-odds of each that learning starts from,
    [buckets]; those of a token's buckets add up.
    """

    buckets: int
    prior: Sequence[float]

    def continuation(self, context: Context, k: int) -> list[int]:
        """At most k tokens that may follow; `propose` as plain numbers."""

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """The buckets of each token of the last proposal, worked out as it is read.

        tokens: the first ones of that proposal. It is read before the next proposal,
        and as far as a planner cares.
        """

    @property
    def is_vague(self) -> bool:
        """Whether the last proposal is hardly ever right: so little speaks for it."""


@runtime_checkable
class Keeper(Protocol):
    """A source that keeps something between runs, in the profile of its target."""

    name: str

    def state(self) -> dict[str, Any]:
        """What it keeps, as JSON takes it."""

    def take(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave; raises ValueError for other data."""
