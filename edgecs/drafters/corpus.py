"""The interface of a store of texts that a drafter looks the end of a text up in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from edgecs.core.context import Tokens


class Match(NamedTuple):
    """Where the end of a text occurred in a corpus, and what followed there.

    length: tokens of the longest match, at most LONGEST (`copies`). times: occurrences
    of the match, counted up to a bound. agreeing: how many of the occurrences that
    were looked at go on with tokens[0]. tokens: what followed, at most k, at least one;
    usually the most frequent continuation, of equally frequent ones the newest.
    """

    length: int
    times: int
    agreeing: int
    tokens: list[int]


class Corpus(Protocol):
    """Texts that may be looked up: any number of tokens, all of one tokenizer."""

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """The longest match of the end of a text.

        end: its last tokens; more than LONGEST need not be compared. k: most tokens to
        return. None: nothing matches, or less than the corpus cares for.
        """


class GrowingCorpus(Corpus, Protocol):
    """A corpus that texts can be added to."""

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """Add a text."""
