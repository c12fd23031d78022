"""Token Recycling: the tokens that the target ranked best after each token.

Token Recycling (arXiv 2408.08696) keeps, for every token, the ids of the target's
largest logits in the last row that followed it; rows of rejected tokens count too, as
they are computed anyway. The paper fills a fixed tree from this table. Here the best
id continues a chain, and the others are its siblings, of which the planner takes those
that pay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Rows, Verdict
from edgecs.core.logits import best_ids
from edgecs.drafters.copies import DEPTH, DEPTHS, bucket_count
from edgecs.drafters.recycling_table import LONGEST_RUN, RANKS, RecyclingTable

# chosen: a chain by the last token alone is soon wrong.
_FEW = 6  # tokens of a proposal
# chosen: each about twice the one before.
_RUNS = (2, 3, 5, LONGEST_RUN)  # rows in which the best id stayed the same

_DEEPEST = DEPTHS[-1]  # later positions share a bucket
_PAIRS_FROM = RANKS  # ranks after two tokens
_DEPTHS_FROM = 2 * RANKS
_RUNS_FROM = _DEPTHS_FROM + bucket_count(DEPTHS)
BUCKETS = _RUNS_FROM + bucket_count(_RUNS)
# From the tuning halves of bench/edgecs_bench/data/traces.
_AFTER_ONE = (-0.9, -1.5, -2.0, -2.3, -2.7, -2.9, -3.1, -3.2)
_AFTER_TWO = (0.2, -1.0, -1.7, -2.1, -2.5, -2.7, -2.9, -3.0)


# Buckets of a token: [after two tokens, not one][draft tokens before][run][rank].
_RANKED = [
    [
        [
            [
                (first + r, _DEPTHS_FROM + DEPTH[depth], _RUNS_FROM + bucket)
                for r in range(RANKS)
            ]
            for bucket in (bisect_right(_RUNS, run) for run in range(LONGEST_RUN + 1))
        ]
        for depth in range(_DEEPEST + 1)
    ]
    for first in (0, _PAIRS_FROM)
]


class Recycling:
    """Proposes what the target ranked best after the last tokens, with branches.

    Rows are kept by the last token, as in the paper, and by the last two, which are
    looked up first. table: of other sessions too, None: an empty one.

    >>> recycling = Recycling()
    >>> recycling.learn([3], [7, 9])
    >>> recycling.propose(Context([1, 3]), 4).tokens.tolist()
    [7]
    >>> [token for token, _ in recycling.successors([1, 3], 0)]
    [7, 9]
    """

    buckets = BUCKETS
    prior: Sequence[float] = _AFTER_ONE + _AFTER_TWO + (0.0,) * (BUCKETS - 2 * RANKS)
    is_vague = False

    def __init__(
        self, table: RecyclingTable | None = None, name: str = "recycling"
    ) -> None:
        self.name = self.label = name
        self.table = self._shared = table or RecyclingTable()
        self._buckets: list[Sequence[int]] = []  # of the tokens of the last proposal

    def allow(self, allowed: bool) -> None:
        """Whether the table is used from now on; else one that is empty and dropped."""
        self.table = self._shared if allowed else RecyclingTable()

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """At most k tokens, each the best one after those before it."""
        tokens = self.continuation(context, k)
        return Draft.chain(tokens, self.name) if tokens else NOTHING

    def continuation(self, context: Context, k: int) -> list[int]:
        """The tokens of `propose`."""
        found: list[int] = []
        self._buckets = []
        end = context.tokens[-2:].tolist()
        while end and len(found) < min(k, _FEW):
            best = self.table.after_two.get((end[0], end[-1])) if len(end) > 1 else None
            pairs = best is not None
            best = best or self.table.after_one.get(end[-1])
            if best is None:
                break
            self._buckets.append(_RANKED[pairs][len(found)][best.run][0])
            found.append(best.ids[0])
            end = [end[-1], best.ids[0]]
        return found

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Buckets of each token: its rank, its position, the rows that agreed."""
        return iter(self._buckets[: len(tokens)])

    def successors(
        self, end: Sequence[int], depth: int
    ) -> Sequence[tuple[int, Sequence[int]]]:
        """The best tokens after the last two, then those after the last one."""
        depth = min(depth, _DEEPEST)
        pair = self.table.after_two.get((end[-2], end[-1])) if len(end) > 1 else None
        one = self.table.after_one.get(end[-1])
        found = []
        if pair:
            found = [*zip(pair.ids, _RANKED[1][depth][pair.run], strict=False)]
        if one:
            found += [*zip(one.ids, _RANKED[0][depth][one.run], strict=False)]
        return found

    def sync(self, context: Context) -> None:
        """Do nothing: the tables are those of all texts."""

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Learn the best ids of every row of a round, the accepted path last."""
        ends = [context.tokens[-2:].tolist()]
        for parent, token in zip(
            draft.parents.tolist(), draft.tokens.tolist(), strict=True
        ):
            ends.append([*ends[parent + 1][-1:], token])
        if not ends[0]:
            return
        path = {-1, *verdict.path}
        nodes = range(-1, len(draft))
        for node in sorted(nodes, key=path.__contains__):
            self.learn(ends[node + 1], best_ids(rows.logits[node + 1], RANKS))

    def learn(self, end: Sequence[int], ids: list[int]) -> None:
        """Replace a row of the table."""
        self.table.learn(end, ids)
