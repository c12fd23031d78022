"""The interface between a planner and a model-free drafter: a source of proposals.

A source looks tokens up. It describes each token of its last proposal by *buckets*,
small numbers that stand for facts such as "the match has 7 tokens" or "it is the third
token". The planner learns from every round how often tokens in a bucket are right, for
any source (`planning.acceptance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from edgecs.core.context import Context
from edgecs.core.draft import Drafter, Remembering

# chosen: later ones are seldom reached, and each takes time in every round.
LOOKED_AT = 8  # tokens of a proposal with their own evidence


class Weighed(Protocol):
    """Whatever describes tokens by buckets.

    buckets: number of buckets. prior: initial log-odds of each, [buckets]; those of a
    token's buckets add up.
    """

    name: str
    buckets: int
    prior: Sequence[float]


class Source(Weighed, Drafter, Protocol):
    """A model-free drafter for a planner."""

    def continuation(self, context: Context, k: int) -> list[int]:
        """At most k tokens that may follow: `propose` as plain integers."""

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """The buckets of each token of the last proposal, computed lazily.

        tokens: the first tokens of that proposal. The iterator is read before the next
        proposal, and not always to its end.
        """

    @property
    def is_vague(self) -> bool:
        """Whether the last proposal is hardly ever right, as its evidence is weak."""


@runtime_checkable
class StoreSource(Remembering, Protocol):
    """A source that looks the end of the text up in other texts, which takes time.

    A planner asks it where the time is expected to pay, after the sources before it.
    """

    def compare(self, tokens: Sequence[int]) -> None:
        """The best proposal of the sources before it, called before `evidence`.

        It is empty if there is none.
        """


class Branches(Weighed, Protocol):
    """A source of several tokens for one position: siblings in a tree.

    label: name of the drafter in statistics. The log-odds of a token's buckets are
    given that its parent is right and that the siblings before it are wrong.
    """

    label: str

    def successors(
        self, end: Sequence[int], depth: int
    ) -> Sequence[tuple[int, Sequence[int]]]:
        """Tokens that may follow, and their buckets; usually the best one first.

        Of a token that is named twice the first counts. end: the last tokens before, at
        most GRAM and at least one. depth: how many draft tokens are before. The text
        is that of the last `sync`.
        """

    def sync(self, context: Context) -> None:
        """Take new committed tokens of a text; called once before a tree grows."""


@runtime_checkable
class Keeper(Protocol):
    """A source with persistent state, stored in the profile of its target."""

    name: str

    def state(self) -> dict[str, Any]:
        """Its persistent state, as JSON values."""

    def take(self, state: dict[str, Any]) -> None:
        """Restore `state`; raises ValueError for other data."""
