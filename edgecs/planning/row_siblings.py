"""The tokens that a neural drafter ranks after its choice: siblings of it in a tree.

A drafter chooses with the noise of the target, so the tokens that follow its choice in
the order of the perturbed scores are the likely choices of the target where they differ
(with greedy choices, the next largest logits).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from edgecs.drafters.copies import DEPTH, DEPTHS, bucket_count
from edgecs.planning.acceptance import Acceptance

MOST = 4  # siblings at a position; later ones are hardly ever right
# chosen: each about twice the one before.
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)  # of the probability that is left
_MIDDLES = (0.01, 0.035, 0.07, 0.15, 0.27, 0.42, 0.6, 0.8)
_RANKS_FROM = bucket_count(_SHARES)
_DEPTHS_FROM = _RANKS_FROM + MOST

Walked = tuple[int, ...]
"""The draft tokens from the context to a node of a tree, that of the node included."""


class Sibling(NamedTuple):
    """A candidate at one position, from a source's branches or a drafter's row.

    Its odds are given that its parent is right and that those before it are wrong.
    """

    token: int
    buckets: Sequence[int]
    label: str  # drafter
    acceptance: Acceptance


class RowSiblings:
    """The buckets of such tokens: share of the probability left, rank, position.

    >>> RowSiblings("d").described([(7, 0.2), (9, 0.1)], 0.5, 0)[0][0]
    7
    """

    buckets = _DEPTHS_FROM + bucket_count(DEPTHS)
    prior: Sequence[float] = (
        *(math.log(p / (1 - p)) for p in _MIDDLES),
        *(0.0 for _ in range(MOST + bucket_count(DEPTHS))),
    )

    def __init__(self, drafter: str) -> None:
        self.name = f"{drafter}-siblings"

    def described(
        self, ranked: Sequence[tuple[int, float]], first: float, depth: int
    ) -> list[tuple[int, Sequence[int]]]:
        """The tokens with their buckets.

        ranked: the tokens after the choice, with probabilities. first: probability of
        the choice. depth: number of draft tokens before.
        """
        left, found = 1 - first, list[tuple[int, Sequence[int]]]()
        place = _DEPTHS_FROM + DEPTH[min(depth, len(DEPTH) - 1)]
        for rank, (token, p) in enumerate(ranked[:MOST]):
            share = bisect_right(_SHARES, p / left) if left > p else len(_SHARES)
            found.append((token, (share, _RANKS_FROM + rank, place)))
            left -= p
        return found
