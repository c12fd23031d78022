"""Cascade Speculative Drafting: one reviewer over its drafters (arXiv 2312.11462).

Horizontal cascade: the drafters of one level write one draft, the best one its first
tokens, cheaper ones the rest. Vertical cascade: a Cascade is itself a Drafter, so a
drafter that reviews a cheaper drafter's tokens is a Cascade inside a Cascade. The
target is the outermost reviewer.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from edgecs.choice import Choices
from edgecs.context import Context
from edgecs.draft import NOTHING, Choose, Draft, Drafter, LanguageModel, Rows, Verdict
from edgecs.errors import ConfigError
from edgecs.kmatrix import KMatrix
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
    """A reviewer and the drafters that write for it.

    counts: quota of each drafter a round, a row of the K matrix: a drafter goes on
    until the quotas up to its own are written. ends: end-of-generation tokens, nothing
    follows them. lenience: 1 or more; above 1 the reviewer lets drafted tokens stand
    that it would not have chosen itself, which only an inner reviewer may. confident:
    state the reviewer's probability for every token proposed, for a lenient reviewer
    above. forwards: how many calls the reviewer had since it was made.
    """

    def __init__(
        self,
        reviewer: LanguageModel,
        drafters: Sequence[Drafter],
        counts: Sequence[int],
        *,
        ends: Container[int] = (),
        name: str = "target",
        lenience: float = 1.0,
        confident: bool = False,
    ) -> None:
        if len(drafters) != len(counts):
            raise ValueError(f"{len(drafters)} drafters but {len(counts)} counts")
        if not lenience >= 1:
            raise ConfigError(
                f"lenience must be 1 (no other choice stands) or more, got {lenience}"
            )
        self.reviewer = reviewer
        self.drafters = tuple(drafters)
        self.counts = tuple(counts)
        self.ends = ends
        self.name = name
        self.lenience = lenience
        self.confident = confident
        self.forwards = 0
        self._goals = tuple(accumulate(counts))

    def step(self, context: Context, choices: Choices, most: int) -> Round:
        """One round: gather at most `most` draft tokens, score them, verify.

        Emits between 1 and most + 1 tokens. Nothing is committed.
        """
        draft, proposed = self._gather(context, choices.drafters, most)
        rows = self.reviewer.score(context, draft)
        self.forwards += 1
        verdict = verify(draft, rows, choices.target, context, self.ends, self.lenience)
        return Round(draft, rows, verdict, proposed, self.name)

    def propose(self, context: Context, k: int, choose: Choose) -> Draft:
        """Rounds of this level until k tokens are written (vertical cascade)."""
        draft, reviewer = NOTHING, self.reviewer
        choices = Choices(choose, choose)
        while len(draft) < k and len(context) + len(draft) <= reviewer.n_ctx:
            here = context.with_tail(draft.tokens)
            free = min(k - len(draft) - 1, reviewer.n_ctx - len(here))
            done = self.step(here, choices, min(free, reviewer.max_draft))
            stated = _confidences(done, here, choose) if self.confident else None
            draft = draft.then(Draft.chain(done.tokens, done.sources, stated))
            if done.verdict.token in self.ends:
                break
        return draft

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Passes the outcome on to everyone who drafts, once each."""
        for drafter in self._writers:
            drafter.observe(context, draft, rows, verdict)

    def levels(self) -> list[Cascade]:
        """This reviewer and all inner ones, each once, the outermost first."""
        found = {id(self): self}
        for drafter in self.drafters:
            if isinstance(drafter, Cascade):
                found.update((id(inner), inner) for inner in drafter.levels())
        return list(found.values())

    @cached_property
    def _writers(self) -> list[Drafter]:
        """All drafters that review nobody, each once."""
        every = [drafter for level in self.levels() for drafter in level.drafters]
        plain = [drafter for drafter in every if not isinstance(drafter, Cascade)]
        return list({id(drafter): drafter for drafter in plain}.values())

    def _gather(
        self, context: Context, choose: Choose, most: int
    ) -> tuple[Draft, tuple[str, ...]]:
        draft = NOTHING
        proposed: tuple[str, ...] = ()
        for drafter, goal in zip(self.drafters, self._goals, strict=True):
            room = min(goal, most) - len(draft)
            if room > 0:
                here = context.with_tail(draft.tokens) if len(draft) else context
                part = drafter.propose(here, room, choose)
                proposed += part.sources
                draft = draft.then(part.clip(room))
                if len(part) and int(draft.tokens[-1]) in self.ends:
                    break
        return draft, proposed


class NamedModel(NamedTuple):
    """A language model that takes part in a cascade, and its name in statistics."""

    name: str
    model: LanguageModel


def stack(
    models: Sequence[NamedModel],
    last: Drafter,
    matrix: KMatrix,
    *,
    lenience: float = 1.0,
    ends: Container[int] = (),
) -> list[Drafter]:
    """The drafters of the target: every model reviews all that come after it.

    models: the best one first. last: the cheapest drafter, Max-Gram, which reviews
    nobody. The result goes with `matrix.counts(0)`. Raises ConfigError when the matrix
    does not fit.
    """
    matrix.check([*(name for name, _ in models), last.name])
    drafters: list[Drafter] = [last]
    for level in range(len(models), 0, -1):
        name, model = models[level - 1]
        counts = matrix.counts(level)
        inner = Cascade(
            model,
            drafters,
            counts,
            ends=ends,
            name=name,
            lenience=lenience,
            confident=lenience > 1 and level > 1,
        )
        drafters = [inner, *drafters]
    return drafters


def _confidences(done: Round, context: Context, choose: Choose) -> list[float]:
    """What the reviewer thought of each token that its round emits."""
    stated, view = [], context
    for node, token in zip((-1, *done.verdict.path), done.tokens, strict=True):
        row = done.rows.logits[node + 1]
        stated.append(choose.confidence(row, view.tokens, token))
        view = view.with_tail((token,))
    return stated
