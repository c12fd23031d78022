"""The paper's bigram fill, with a table of the target's own bigrams.

Where Max-Gram finds nothing, CS Drafting (arXiv 2312.11462, section 4.1) fills a draft
from a table of bigrams of the training text. Here the table holds the token that the
target last chose after each token, in any answer, so that no data is needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Rows, Verdict
from edgecs.drafters.copies import DEPTH, DEPTHS, bucket_count

# chosen: each about twice the one before.
_RUNS = (1, 2, 3, 5, 9, 17)  # how often in a row the same token followed
# chosen: 5 to 8 % of the third tokens are right (docs/drafters.md).
_FEW = 4  # tokens of a proposal: hardly one in five of the first tokens is right


class Bigrams:
    """Proposes the token that last followed the preceding one, repeatedly.

    >>> bigrams, context = Bigrams(), Context([1, 2, 3, 1, 2])
    >>> bigrams.learn([1, 2, 3])
    >>> bigrams.propose(context, 4).tokens.tolist()
    [3]
    """

    buckets = bucket_count(_RUNS) + bucket_count(DEPTHS)
    # A fifth of the first tokens is right in greedy answers: docs/drafters.md.
    prior: Sequence[float] = (-1.4,) * bucket_count(_RUNS) + (0.0,) * bucket_count(
        DEPTHS
    )
    is_vague = False

    def __init__(self, name: str = "bigram") -> None:
        self.name = name
        self._next: dict[int, tuple[int, int]] = {}  # token, how often in a row
        self._runs: list[int] = []  # of the tokens of the last proposal

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """At most k tokens, each of which last followed the one before it."""
        tokens = self.continuation(context, k)
        return Draft.chain(tokens, self.name) if tokens else NOTHING

    def continuation(self, context: Context, k: int) -> list[int]:
        """The tokens of `propose`."""
        found: list[int] = []
        self._runs = []
        last = context.last if len(context) else None
        while last is not None and len(found) < min(k, _FEW):
            known = self._next.get(last)
            if known is None:
                break
            last, run = known
            found.append(last)
            self._runs.append(run)
        return found

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Buckets of each token: how often in a row it followed, and its position."""
        for depth, run in enumerate(self._runs[: len(tokens)]):
            place = bucket_count(_RUNS) + DEPTH[depth]
            yield bisect_right(_RUNS, run), place

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Learn the tokens that the target chose in a round."""
        if len(context):
            accepted = [int(draft.tokens[i]) for i in verdict.path]
            self.learn([context.last, *accepted, verdict.token])

    def learn(self, tokens: Sequence[int]) -> None:
        """Learn the bigrams of a text."""
        known = self._next
        for token, follower in pairwise(tokens):
            before = known.get(token)
            run = before[1] + 1 if before and before[0] == follower else 1
            known[token] = follower, run
