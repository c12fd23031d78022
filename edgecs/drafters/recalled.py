"""Drafts from other texts than the conversation: a corpus as a source.

The corpora are asked from the most to the least local one, as in Hierarchy Drafting
(the conversation itself is that of Max-Gram).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Rows, Verdict
from edgecs.drafters.copies import DEPTH, DEPTHS, GRAM, LONGEST, bucket_count
from edgecs.drafters.corpus import Corpus, Match

# chosen, all edges: finer where few tokens differ.
_LENGTHS = (4, 5, 6, 7, 9, 12, 17, 25)  # tokens of the match
_TIMES = (2, 3, 6)  # occurrences that go on with the proposed token
_SHARES = (0.67, 0.99)  # of the occurrences that were looked at
# chosen: as many as are looked at in RAM.
_LOOKED = 16  # occurrences that a corpus is taken to have looked at, if it has them

_DEPTHS_FROM = bucket_count(_LENGTHS)
_SUPPORT_FROM = _DEPTHS_FROM + bucket_count(DEPTHS)
_SUPPORT = bucket_count(_TIMES) * bucket_count(_SHARES)
_BESIDE_FROM = _SUPPORT_FROM + _SUPPORT
BUCKETS = _BESIDE_FROM + 3  # nothing is proposed beside it, another token, the same
# From the tuning halves of bench/edgecs_bench/data/traces, each looked up in those
# before it; longer matches than 12 tokens do not occur, so they follow Max-Gram's. The
# lengths are 0.3 less than fitted: the best of several estimates is usually too high.
_OF_LENGTH = (-1.2, -0.9, -0.1, 0.0, 0.1, 0.3, 0.6, 1.1, 1.5)
_OF_SUPPORT = (-0.7, -0.3, 0.0, -0.1, 0.0, 0.0, -0.6, 0.0, 0.4, 0.0, 0.2, 0.6)
_OF_AGREEMENT = (0.0, -1.6, 1.7)
_PRIOR = (*_OF_LENGTH, *(0.0,) * bucket_count(DEPTHS), *_OF_SUPPORT, *_OF_AGREEMENT)

_LENGTH = [bisect_right(_LENGTHS, n) for n in range(LONGEST + 1)]
_UNKNOWN, _OTHER, _SAME = range(_BESIDE_FROM, BUCKETS)


class Recalled:
    """Proposes what followed the longest match of the end of the text in a corpus.

    vocab_size: a continuation ends before an id that is not below it, as a corpus may
    be read from files; None: its ids are known to be tokens.

    >>> from edgecs.drafters.recent_texts import RecentTexts
    >>> texts = RecentTexts(16)
    >>> texts.add([1, 2, 3, 4, 5])
    >>> Recalled(texts, "recent").propose(Context([1, 2, 3]), 4).tokens.tolist()
    [4, 5]
    """

    buckets = BUCKETS
    prior: Sequence[float] = _PRIOR
    is_vague = False

    def __init__(
        self, corpus: Corpus, name: str, *, vocab_size: int | None = None
    ) -> None:
        self.name = name
        self._corpus, self._vocab_size = corpus, vocab_size
        self._match: Match | None = None  # of the last proposal
        self._beside: Sequence[int] = ()
        self._for: tuple[Context, int] | None = None  # its context and the length of it
        self._tokens: list[int] = []
        self.allowed = True

    def allow(self, allowed: bool) -> None:
        """Whether the corpus may be looked up from now on."""
        self.allowed = allowed

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """At most k tokens that followed the longest match."""
        tokens = self.continuation(context, k)
        return Draft.chain(tokens, self.name) if tokens else NOTHING

    def continuation(self, context: Context, k: int) -> list[int]:
        """The tokens of `propose`."""
        self._match, self._beside, self._tokens = None, (), []
        self._for = context.root, len(context)
        if not self.allowed or len(context) < GRAM or k <= 0:
            return []
        found = self._corpus.match(context.tokens[-LONGEST:].tolist(), k)
        if found is None:
            return []
        tokens = found.tokens[:k]
        if self._vocab_size is not None:
            tokens = _valid(tokens, self._vocab_size)
        self._match, self._tokens = found, tokens
        return tokens

    def proposed(self, context: Context) -> list[int]:
        """The tokens of the last proposal if it was made for this context, else []."""
        return self._tokens if self._for == (context.root, len(context)) else []

    def compare(self, tokens: Sequence[int]) -> None:
        """Compare the last proposal with that of other sources."""
        self._beside = tokens

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Buckets: match length, position, share of occurrences, agreement."""
        match, agrees = self._match, True
        if match is None:
            return
        support, beside = _support(match), self._beside
        for depth, token in enumerate(tokens):
            says = _UNKNOWN
            if agrees and depth < len(beside):
                agrees = beside[depth] == token
                says = _SAME if agrees else _OTHER
            length = _LENGTH[max(0, min(match.length + depth, LONGEST))]
            yield length, _DEPTHS_FROM + DEPTH[min(depth, 63)], support, says

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Do nothing: a corpus is filled by others."""


def _support(match: Match) -> int:
    agreeing = max(1, match.agreeing)
    share = agreeing / max(1, min(match.times, _LOOKED))
    row = bisect_right(_TIMES, agreeing) * bucket_count(_SHARES)
    return _SUPPORT_FROM + row + bisect_right(_SHARES, share)


def _valid(tokens: list[int], vocab_size: int) -> list[int]:
    """The tokens before the first id that is not one."""
    for i, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            return tokens[:i]
    return tokens
