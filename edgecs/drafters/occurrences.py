"""Several continuations of the text: what followed the last tokens elsewhere in it.

Max-Gram copies the continuation of one occurrence. The other occurrences of the same
last tokens may go on differently; these tokens are siblings of the copied one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from edgecs.core.context import Context
from edgecs.drafters.copies import DEPTH, DEPTHS, GRAM, bucket_count
from edgecs.drafters.maxgram import MaxGram

_TIMES = (2, 3, 5)  # occurrences with this successor
_MOST = 6  # candidates; later ones are hardly ever right
_RANKS_FROM = GRAM * bucket_count(_TIMES)
_DEPTHS_FROM = _RANKS_FROM + _MOST
_BUCKETS = _DEPTHS_FROM + bucket_count(DEPTHS)
# From the tuning halves of bench/edgecs_bench/data/traces; the longest gram comes last.
_PRIOR = (-2.2,) * 4 + (-1.2,) * 4 + (-0.4,) * 4


class Occurrences:
    """The successors of earlier occurrences in the index of a `MaxGram`.

    >>> mag = MaxGram()
    >>> branches = Occurrences(mag)
    >>> branches.sync(Context([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]))
    >>> [token for token, _ in branches.successors([1, 2, 3], 0)]
    [5, 4]
    """

    buckets = _BUCKETS
    prior: Sequence[float] = _PRIOR + (0.0,) * (_BUCKETS - len(_PRIOR))

    def __init__(self, mag: MaxGram) -> None:
        self._mag = mag
        self.label = mag.name
        self.name = f"{mag.name}-branches"

    def sync(self, context: Context) -> None:
        """Index new committed tokens."""
        self._mag.sync(context)

    def successors(
        self, end: Sequence[int], depth: int
    ) -> Sequence[tuple[int, Sequence[int]]]:
        """What followed the longest grams first; of one gram, the most frequent."""
        place = _DEPTHS_FROM + DEPTH[min(depth, len(DEPTH) - 1)]
        found: dict[int, tuple[int, int, int]] = {}
        for n in range(min(GRAM, len(end)), 0, -1):
            base = (n - 1) * bucket_count(_TIMES)
            for token, times in self._mag.followers(end[-n:]):
                if token in found:
                    continue
                often = base + bisect_right(_TIMES, times)
                rank = _RANKS_FROM + len(found)
                found[token] = often, rank, place
                if len(found) == _MOST:
                    return [*found.items()]
        return [*found.items()]
