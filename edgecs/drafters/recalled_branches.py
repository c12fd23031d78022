"""Siblings from a corpus: what it goes on with where the chain goes on otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from edgecs.core.context import Context
from edgecs.drafters.copies import GRAM
from edgecs.drafters.recalled import BUCKETS, Recalled

# From the tuning halves of bench/edgecs_bench/data/traces: a quarter of the tokens are
# right where Max-Gram's is wrong.
_LESS = 1.0  # log-odds by which a sibling is less likely than the token of a chain


class RecalledBranches:
    """The last proposal of a `Recalled` as one branch of a tree.

    Nothing is looked up again, so there is a branch in rounds where the source was
    asked only.

    >>> from edgecs.drafters.recent_texts import RecentTexts
    >>> texts, context = RecentTexts(16), Context([1, 2, 3])
    >>> texts.add([1, 2, 3, 4, 5])
    >>> source = Recalled(texts, "recent")
    >>> branches = RecalledBranches(source)
    >>> _ = source.continuation(context, 4)
    >>> branches.sync(context)
    >>> [token for token, _ in branches.successors([2, 3, 4], 1)]
    [5]
    """

    buckets = BUCKETS

    def __init__(self, source: Recalled) -> None:
        self._source = source
        self.label, self.name = source.name, f"{source.name}-branches"
        # Of agreement nothing is known: here the chain has another token.
        self.prior: Sequence[float] = (*source.prior[:-3], *(-_LESS,) * 3)
        self._tokens: list[int] = []
        self._evidence: list[Sequence[int]] = []

    def sync(self, context: Context) -> None:
        """Take the proposal of this round, if there is one."""
        self._tokens = self._source.proposed(context)
        self._evidence = [*self._source.evidence(self._tokens)]

    def successors(
        self, end: Sequence[int], depth: int
    ) -> Sequence[tuple[int, Sequence[int]]]:
        """The next token of the proposal, after the tokens of it."""
        tokens, known = self._tokens, min(depth, GRAM)
        if (
            depth >= len(tokens)
            or [*end[len(end) - known :]] != tokens[depth - known : depth]
        ):
            return ()
        return ((tokens[depth], self._evidence[depth]),)
