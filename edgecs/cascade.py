"""Cascade Speculative Drafting: one reviewer over its drafters (arXiv 2312.11462).

Horizontal cascade: the drafters of one level write one draft, the best one its first
tokens, cheaper ones the rest. Vertical cascade: a Cascade is itself a Drafter, so a
drafter that reviews a cheaper drafter's tokens is a Cascade inside a Cascade. The
target is the outermost reviewer.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from edgecs.context import Context
from edgecs.draft import NOTHING, Choose, Draft, Drafter, LanguageModel, Rows, Verdict
from edgecs.verify import verify


class Round(NamedTuple):
    """One draft, one reviewer call, one verdict."""

    draft: Draft
    rows: Rows
    verdict: Verdict
    proposed: tuple[str, ...]  # who wrote each proposed token, before any clipping
    reviewer: str

    @property
    def tokens(self) -> list[int]:
        """What the round emits: the accepted tokens and the reviewer's own."""
        drafted = self.draft.tokens.tolist()
        return [*(drafted[node] for node in self.verdict.path), self.verdict.token]

    @property
    def sources(self) -> list[str]:
        """Who wrote each of `tokens`."""
        accepted = [self.draft.sources[node] for node in self.verdict.path]
        return [*accepted, self.reviewer]


class Cascade:
    """A reviewer and the drafters that write for it, each up to its count a round.

    counts: tokens taken from each drafter, the row of the K matrix in the convention
    of the official code. ends: end-of-generation tokens, nothing follows them.
    """

    def __init__(
        self,
        reviewer: LanguageModel,
        drafters: Sequence[Drafter],
        counts: Sequence[int],
        *,
        ends: Container[int] = (),
        name: str = "target",
    ) -> None:
        if len(drafters) != len(counts):
            raise ValueError(f"{len(drafters)} drafters but {len(counts)} counts")
        self.reviewer = reviewer
        self.drafters = tuple(drafters)
        self.counts = tuple(counts)
        self.ends = ends
        self.name = name

    def step(self, context: Context, choose: Choose, most: int) -> Round:
        """One round: gather at most `most` draft tokens, score them, verify.

        Emits between 1 and most + 1 tokens. Nothing is committed.
        """
        draft, proposed = self._gather(context, choose, most)
        rows = self.reviewer.score(context, draft)
        verdict = verify(draft, rows, choose, context, self.ends)
        return Round(draft, rows, verdict, proposed, self.name)

    def propose(self, context: Context, k: int, choose: Choose) -> Draft:
        """Rounds of this level until k tokens are written (vertical cascade)."""
        draft, reviewer = NOTHING, self.reviewer
        while len(draft) < k and len(context) + len(draft) <= reviewer.n_ctx:
            here = context.with_tail(draft.tokens)
            free = min(k - len(draft) - 1, reviewer.n_ctx - len(here))
            done = self.step(here, choose, min(free, reviewer.max_draft))
            draft = draft.then(Draft.chain(done.tokens, done.sources))
            if done.verdict.token in self.ends:
                break
        return draft

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Passes the outcome on to every drafter of this level."""
        for drafter in self.drafters:
            drafter.observe(context, draft, rows, verdict)

    def _gather(
        self, context: Context, choose: Choose, most: int
    ) -> tuple[Draft, tuple[str, ...]]:
        draft = NOTHING
        proposed: tuple[str, ...] = ()
        for drafter, count in zip(self.drafters, self.counts, strict=True):
            room = min(count, most - len(draft))
            if room > 0:
                here = context.with_tail(draft.tokens) if len(draft) else context
                part = drafter.propose(here, room, choose)
                proposed += part.sources
                draft = draft.then(part.clip(room))
        return draft, proposed
