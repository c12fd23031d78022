"""Cascade Speculative Drafting: one reviewer over its drafters (arXiv 2312.11462).

Horizontal cascade: the drafters of one level write one draft, the best one its first
tokens, cheaper ones the rest. Vertical cascade: a Cascade is itself a Drafter, so a
drafter that reviews a cheaper drafter's tokens is a Cascade inside a Cascade. The
target is the outermost reviewer.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import cached_property
from time import perf_counter
from typing import NamedTuple

from edgecs.choice import Choices
from edgecs.context import Context
from edgecs.draft import NOTHING, Choose, Draft, Drafter, LanguageModel, Rows, Verdict
from edgecs.errors import ConfigError
from edgecs.exactness import Limits
from edgecs.kmatrix import KMatrix
from edgecs.schedule import Clock, Outcome, Plan, Quotas, Schedule
from edgecs.verify import verify


class Round(NamedTuple):
    """One draft, one reviewer call, one verdict."""

    draft: Draft
    rows: Rows
    verdict: Verdict
    proposed: tuple[str, ...]  # who wrote each proposed token, before any clipping
    reviewer: str
    plan: Plan | None = None  # why it was drafted so, where a planner decided
    drafting: float = 0.0  # seconds until the draft was there
    calling: float = 0.0  # seconds of the reviewer's call
    again: bool = False  # whether the last choice was made again at width 1

    @property
    def tokens(self) -> list[int]:
        """What the round emits: the accepted tokens and the reviewer's own."""
        if not self.verdict.path:  # most rounds
            return [self.verdict.token]
        drafted = self.draft.tokens.tolist()
        return [*(drafted[node] for node in self.verdict.path), self.verdict.token]

    @property
    def sources(self) -> list[str]:
        """Who wrote each of `tokens`."""
        if not self.verdict.path:
            return [self.reviewer]
        accepted = [self.draft.sources[node] for node in self.verdict.path]
        return [*accepted, self.reviewer]


class Cascade:
    """A reviewer and the schedule of the drafters that write for it.

    ends: end-of-generation tokens, nothing follows them. limits: which widths its
    calls may have, and when a choice is made again. lenience: 1 or more; above 1 the
    reviewer lets drafted tokens stand that it would not have chosen itself, which only
    an inner reviewer may. confident: state the reviewer's probability for every token
    proposed, for a lenient reviewer above. clock: gives seconds. forwards: how many
    calls the reviewer had since it was made.
    """

    def __init__(
        self,
        reviewer: LanguageModel,
        schedule: Schedule,
        *,
        limits: Limits | None = None,
        ends: Container[int] = (),
        name: str = "target",
        lenience: float = 1.0,
        confident: bool = False,
        clock: Clock = perf_counter,
    ) -> None:
        if not lenience >= 1:
            raise ConfigError(
                f"lenience must be 1 (no other choice stands) or more, got {lenience}"
            )
        self.reviewer = reviewer
        self.schedule = schedule
        self.limits = limits or Limits()
        self.ends = ends
        self.name = name
        self.lenience = lenience
        self.confident = confident
        self.forwards = 0
        self._clock = clock

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Who writes for the reviewer, the best first."""
        return self.schedule.drafters

    def step(self, context: Context, choices: Choices, most: int) -> Round:
        """One round: gather at most `most` draft tokens, score them, verify.

        Emits between 1 and most + 1 tokens. Nothing is committed.
        """
        # The last token of the context is computed by this call: its cell is the first.
        depth, began = len(context) - 1, self._clock()
        draft, proposed, plan = self.schedule.draft(
            context, choices.drafters, most, self.limits.allowed(depth)
        )
        draft = draft.clip(self.limits.fits(depth, 1 + len(draft)) - 1)
        drafted = self._clock()
        rows = self.reviewer.score(context, draft)
        scored = self._clock()
        self.forwards += 1
        verdict = verify(draft, rows, choices.target, context, self.ends, self.lenience)
        noise = self.limits.guard(depth) if len(draft) else 0.0
        again = self._unsure(draft, rows, verdict, choices, context, noise)
        if again is not None:
            verdict = again
        return Round(
            draft,
            rows,
            verdict,
            proposed,
            self.name,
            plan,
            drafted - began,
            scored - drafted,
            again is not None,
        )

    def propose(self, context: Context, k: int, choose: Choose) -> Draft:
        """Rounds of this level until k tokens are written (vertical cascade)."""
        draft, reviewer = NOTHING, self.reviewer
        choices = Choices(choose, choose)
        while len(draft) < k and len(context) + len(draft) <= reviewer.n_ctx:
            here = context.with_tail(draft.tokens)
            free = min(k - len(draft) - 1, reviewer.n_ctx - len(here))
            done = self.step(here, choices, min(free, reviewer.max_draft))
            stated = confidences(done, here, choose) if self.confident else None
            draft = draft.then(Draft.chain(done.tokens, done.sources, stated))
            if done.verdict.token in self.ends:
                break
        return draft

    def learn(self, context: Context, done: Round) -> None:
        """Tells the schedule and everyone who drafts what came of a round."""
        outcome = Outcome(
            done.draft, done.rows, done.verdict, done.drafting, done.calling
        )
        self.schedule.learn(context, outcome)
        self.observe(context, done.draft, done.rows, done.verdict)

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

    def _unsure(
        self,
        draft: Draft,
        rows: Rows,
        verdict: Verdict,
        choices: Choices,
        context: Context,
        noise: float,
    ) -> Verdict | None:
        """The verdict up to the first choice that noise could turn, made again alone.

        That position's cell is removed and computed at width 1, as plain decoding
        would; the rest of the draft is dropped. None: there is no such choice.
        """
        if not noise:
            return None
        path = [int(draft.tokens[node]) for node in verdict.path]
        for at, node in enumerate((-1, *verdict.path)):
            here = context.with_tail(path[:at])
            if choices.target.margin(rows.logits[node + 1], here.tokens) < noise:
                row = self.reviewer.score(here, NOTHING).logits[0]
                token = choices.target(row, here.tokens)
                return Verdict(verdict.path[:at], token)
        return None


class NamedModel(NamedTuple):
    """A language model that takes part in a cascade, and its name in statistics.

    right: share of its tokens that is right, where somebody counted.
    """

    name: str
    model: LanguageModel
    right: float | None = None


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
    matrix.check([*(named.name for named in models), last.name])
    drafters: list[Drafter] = [last]
    for level in range(len(models), 0, -1):
        name, model, _ = models[level - 1]
        counts = matrix.counts(level)
        inner = Cascade(
            model,
            Quotas(drafters, counts, ends),
            ends=ends,
            name=name,
            lenience=lenience,
            confident=lenience > 1 and level > 1,
        )
        drafters = [inner, *drafters]
    return drafters


def confidences(done: Round, context: Context, choose: Choose) -> list[float]:
    """What the reviewer thought of each token that its round emits."""
    stated, view = [], context
    for node, token in zip((-1, *done.verdict.path), done.tokens, strict=True):
        row = done.rows.logits[node + 1]
        stated.append(choose.confidence(row, view.tokens, token))
        view = view.with_tail((token,))
    return stated
