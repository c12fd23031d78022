"""Cascade Speculative Drafting: a reviewer and its drafters (arXiv 2312.11462).

Horizontal cascade: the drafters of one level write one draft, the best one its first
tokens, cheaper ones the rest. Vertical cascade: a Cascade is itself a Drafter, so a
drafter that reviews a cheaper drafter's tokens is a Cascade inside a Cascade. The
target is the outermost reviewer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import cached_property
from time import perf_counter
from typing import NamedTuple, cast

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import (
    NOTHING,
    Choose,
    Draft,
    Drafter,
    LanguageModel,
    Request,
    Rows,
    Verdict,
)
from edgecs.core.faults import blame
from edgecs.decoding.exactness import Limits
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.ratio import RatioRule
from edgecs.decoding.static_schedule import (
    Clock,
    Gathered,
    Outcome,
    Overlapping,
    Plan,
    Schedule,
    StaticSchedule,
)
from edgecs.decoding.verification import verify
from edgecs.errors import ConfigError, Faulty, ModelError
from edgecs.sampling.cascade_rules import Mixture
from edgecs.sampling.chain import Choices

logger = logging.getLogger("edgecs")

PARKED = "%s; %s for the rest of this session"  # a log message
_SCHEDULE = "schedule"  # is blamed if it is not known which drafter failed
_NOTHING_ELSE = nullcontext()  # no drafter works during a call
_NO_FAULTS: Mapping[str, str] = {}


class Round(NamedTuple):
    """One draft, one reviewer call, one verdict."""

    draft: Draft
    rows: Rows
    verdict: Verdict
    proposed: tuple[str, ...]  # drafter of each token, before any clipping
    reviewer: str
    plan: Plan | None = None  # the reasons of a planner
    drafting: float = 0.0  # seconds of drafting
    calling: float = 0.0  # seconds of the reviewer's call
    together: int = 1  # requests in this call
    faults: Mapping[str, str] = _NO_FAULTS  # drafters that failed, and why
    ahead: int = 0  # first tokens of the draft that were made during the last call
    made: int = 0  # tokens that a drafter made during this call, for the next round

    @property
    def tokens(self) -> list[int]:
        """The tokens that the round emits: the accepted ones and the reviewer's own."""
        if not self.verdict.path:  # most rounds
            return [self.verdict.token]
        drafted = self.draft.tokens.tolist()
        return [*(drafted[node] for node in self.verdict.path), self.verdict.token]

    @property
    def sources(self) -> list[str]:
        """The source of each of `tokens`."""
        if not self.verdict.path:
            return [self.reviewer]
        accepted = [self.draft.sources[node] for node in self.verdict.path]
        return [*accepted, self.reviewer]

    @property
    def rejected(self) -> int | None:
        """The first draft node that lost to the reviewer's own token, if any.

        An end token is never accepted, so one that was drafted and chosen is neither
        accepted nor rejected.
        """
        path, draft = self.verdict.path, self.draft
        nodes = np.flatnonzero(draft.parents == (path[-1] if path else -1))
        if not nodes.size or self.verdict.token in draft.tokens[nodes]:
            return None
        return int(nodes[0])


class PendingRound(NamedTuple):
    """A draft, before the reviewer has scored it."""

    request: Request
    proposed: tuple[str, ...]
    plan: Plan | None
    drafting: float  # seconds
    ahead: int = 0  # see `Round`


class Cascade:
    """A reviewer and the schedule of its drafters.

    ends: end-of-generation tokens; nothing follows them. limits: permitted widths of
    its calls. lenience: 1 or more; above 1 the reviewer also accepts drafted tokens
    that it would not have chosen itself, which only an inner reviewer may do.
    confident: state the reviewer's probability of every proposed token, for a lenient
    reviewer above. sequence: the KV sequence of the reviewer. mixes: a cascade rule,
    for a target that is `decoding.beside: Beside`. ratio: verifies drafts by ratios,
    for a schedule that takes no token out of a draft because of what it is. clock:
    returns seconds. forwards: number of calls of the reviewer so far.
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
        sequence: int = 0,
        mixes: Mixture | None = None,
        ratio: RatioRule | None = None,
        clock: Clock = perf_counter,
    ) -> None:
        if not lenience >= 1:
            raise ConfigError(f"lenience must be 1 (off) or more, got {lenience}")
        self.reviewer = reviewer
        self.schedule = schedule
        self.limits = limits or Limits()
        self.ends = ends
        self.name = name
        self.lenience = lenience
        self.confident = confident
        self.sequence = sequence
        self.mixes = mixes
        self.ratio = ratio
        self.cancel: threading.Event | None = None  # ends the reviewer's calls early
        self.forwards = 0
        self.faults: dict[str, str] = {}  # disabled drafters, and why
        self._off = False  # whether drafting is off
        overlaps = isinstance(schedule, Overlapping) and schedule.overlaps
        self._overlaps = cast(Overlapping, schedule) if overlaps else None
        self._made = 0  # tokens made ahead during the last call
        self._clock = clock

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters of the reviewer, the best first."""
        return self.schedule.drafters

    def begin(self, start: int = 0) -> None:
        """Called when an answer begins. start: number of tokens before it."""
        if self._off:
            return
        try:
            self.schedule.begin()
            for level in self._inner:
                if begin := getattr(level.reviewer, "begin", None):
                    begin(start, level.sequence)
        except Exception as error:
            self._park(error)

    def step(self, context: Context, choices: Choices, most: int) -> Round:
        """One round: gather at most `most` draft tokens, score them, verify.

        Emits between 1 and most + 1 tokens. Nothing is committed. Errors of the
        reviewer's own call are raised.
        """
        pending = self.prepare(context, choices, most)
        rows, seconds = self.call(pending.request)
        return self.finish(pending, rows, choices, seconds)

    def prepare(
        self, context: Context, choices: Choices, most: int, together: int = 1
    ) -> PendingRound:
        """The first part of `step`: a draft of at most `most` tokens.

        A drafter that fails is disabled, and the draft is empty. together: requests
        that the call will have.
        """
        began, gathered = self._clock(), Gathered(NOTHING, ())
        if self.ratio:
            choices = self.ratio.choices(choices, context)
        if not self._off:
            try:
                gathered = self._gather(context, choices.drafters, most, together)
            except Exception as error:
                self._park(error)
        return self._pending(context, gathered, began)

    def call(self, request: Request) -> tuple[Rows, float]:
        """The rows of a call with one request, and its seconds."""
        began = self._clock()
        rows = self.reviewer.score((request,))[0]
        return rows, self._clock() - began

    def finish(
        self,
        pending: PendingRound,
        rows: Rows,
        choices: Choices,
        calling: float,
        together: int = 1,
    ) -> Round:
        """The last part of `step`: verifies the rows of the request.

        calling: seconds of the call. together: number of its requests.
        """
        (context, draft, *_), proposed, plan, drafting, ahead = pending
        made, self._made = self._made, 0
        self.forwards += 1
        if self.ratio:
            choices = self.ratio.choices(choices, context)
            verdict = self.ratio.verify(draft, rows, choices, context, self.ends)
        else:
            verdict = verify(
                draft,
                rows,
                choices.target,
                context,
                self.ends,
                self.lenience,
                self.mixes,
            )
        return Round(
            draft,
            rows,
            verdict,
            proposed,
            self.name,
            plan,
            drafting,
            calling,
            together,
            ahead=min(ahead, len(draft)),
            made=made,
        )

    def ahead(
        self, pending: PendingRound, choices: Choices, most: int
    ) -> AbstractContextManager[None]:
        """A block in which the reviewer is called, and a drafter may go on.

        Drafters must not be used in it. most: tokens that may follow the draft and the
        reviewer's own token. A drafter that fails is disabled at the end of the block.
        """
        overlaps = self._overlaps
        if self._off or overlaps is None or self.ratio or self.mixes:
            return _NOTHING_ELSE
        return self._going_on(overlaps, pending.request, choices.drafters, most)

    @contextmanager
    def _going_on(
        self, overlaps: Overlapping, request: Request, choose: Choose, most: int
    ) -> Iterator[None]:
        try:
            goes_on = overlaps.go_on(request.context, request.draft, choose, most)
        except Exception as error:
            goes_on = False
            self._park(error)
        if not goes_on:
            yield
            return
        try:
            yield
        finally:
            try:
                self._made = overlaps.come_back()
            except Exception as error:
                self._park(error)

    def close(self) -> None:
        """Ends work that goes on beside the reviewer; may be called again."""
        if self._overlaps is not None:
            self._overlaps.close()

    def attempt(self, context: Context, choices: Choices, most: int) -> Round:
        """A round of an inner level: raises Faulty where a drafter fails."""
        began = self._clock()
        gathered = self._gather(context, choices.drafters, most)
        pending = self._pending(context, gathered, began)
        rows, seconds = self.call(pending.request)
        done = self.finish(pending, rows, choices, seconds)
        token, size = done.verdict.token, self.reviewer.vocab_size
        if not 0 <= token < size:
            raise ModelError(f"it chose token {token}, but {_ids(size)}")
        return done

    def rows_after(self, context: Context, draft: Draft) -> tuple[Rows, float]:
        """The rows of a call that verifies nothing, and its seconds."""
        self._check(draft, self.reviewer.max_draft)
        done = self.call(Request(context, draft, self.sequence, self.cancel))
        self.forwards += 1
        return done

    def _gather(
        self, context: Context, choose: Choose, most: int, together: int = 1
    ) -> Gathered:
        """A draft that the reviewer can score; raises Faulty for an invalid one."""
        # The last token of the context is computed by this call: its cell is the first.
        depth = len(context) - 1
        gathered = self.schedule.draft(
            context, choose, most, self.limits.allowed(depth), together
        )
        draft = gathered.draft
        if draft is NOTHING:
            return gathered
        self._check(draft, most)
        if not draft.is_chain and self.limits.tier(depth) == "strict":
            # Probes cover chains only, so nothing is known about the rows of a tree.
            draft = draft.first_path
        clipped = draft.clip(self.limits.fits(depth, 1 + len(draft)) - 1)
        same = clipped is gathered.draft
        return gathered if same else gathered._replace(draft=clipped)

    def _check(self, draft: Draft, most: int) -> None:
        """Raises Faulty or ConfigError for a draft that the reviewer cannot score."""
        draft.check()
        if len(draft) > most:
            raise ConfigError(f"a draft had {len(draft)} tokens, at most {most} fit")
        ids, size = draft.tokens.tolist(), self.reviewer.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= size):
            at = next(i for i, token in enumerate(ids) if not 0 <= token < size)
            why = f"it proposed token {ids[at]}, but {_ids(size)}"
            raise Faulty(draft.sources[at], why)
        most_leaves = self.reviewer.max_leaves
        if not draft.is_chain and len(draft.leaves) > most_leaves:
            takes = f"{most_leaves} leaves" if most_leaves > 1 else "chains"
            why = f"it proposed a tree, but {self.name} takes {takes}"
            raise Faulty(draft.sources[0], why)

    def _pending(
        self, context: Context, gathered: Gathered, began: float
    ) -> PendingRound:
        request = Request(context, gathered.draft, self.sequence, self.cancel)
        drafting = self._clock() - began
        proposed, plan = gathered.proposed, gathered.plan
        return PendingRound(request, proposed, plan, drafting, gathered.ahead)

    def propose(self, context: Context, k: int, choose: Choose) -> Draft:
        """Rounds of this level until k tokens are written (vertical cascade)."""
        draft, reviewer = NOTHING, self.reviewer
        choices = Choices(choose, choose)
        while len(draft) < k and len(context) + len(draft) <= reviewer.n_ctx:
            here = context.with_tail(draft.tokens)
            free = min(k - len(draft) - 1, reviewer.n_ctx - len(here))
            done = self.attempt(here, choices, min(free, reviewer.max_draft))
            stated = confidences(done, here, choose) if self.confident else None
            # A lenient reviewer's tokens are not drawn from its law.
            drew = (self.name,) * len(done.tokens) if self.lenience == 1 else ()
            draft = draft.then(Draft.chain(done.tokens, done.sources, stated, drew))
            if done.verdict.token in self.ends:
                break
        return draft

    def learn(self, context: Context, done: Round) -> None:
        """Reports the outcome of a round to the schedule and to all drafters."""
        if self._off:
            return
        outcome = Outcome(
            done.draft,
            done.rows,
            done.verdict,
            done.drafting,
            done.calling,
            done.together,
        )
        try:
            self.schedule.learn(context, outcome)
        except Exception as error:
            self._park(error)
        self.observe(context, done.draft, done.rows, done.verdict)

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Reports the outcome to every drafter, once each."""
        for drafter in self._leaf_drafters:
            if drafter.name in self.faults:
                continue
            try:
                drafter.observe(context, draft, rows, verdict)
            except Exception as error:
                self._park(error, drafter.name)

    def _park(self, error: Exception, name: str = _SCHEDULE) -> None:
        """Disables a drafter that failed, at every level.

        name: blamed for an error that names no drafter. If that is the schedule, or if
        it calls a disabled drafter, drafting is turned off.
        """
        try:
            blame(error, name)
        except Faulty as named:
            fault = named
        levels = self.levels()
        known = {drafter.name for level in levels for drafter in level.drafters}
        self._off |= fault.name in self.faults or fault.name not in known
        self.faults.setdefault(fault.name, fault.reason)
        who = "speculation is off" if self._off else "the drafter is disabled"
        logger.warning(PARKED, fault, who)
        logger.debug("where it failed", exc_info=fault)
        for level in levels:
            with suppress(Exception):
                level.schedule.park(fault.name)
                if level is not self and level.name == fault.name:
                    level.drop_cells()  # they may be invalid

    def drop_cells(self) -> None:
        """Drop the reviewer's cells of this conversation."""
        if self.reviewer.sequences > 1:
            self.reviewer.forget(self.sequence)
        else:
            self.reviewer.reset()

    def levels(self) -> list[Cascade]:
        """This reviewer and all inner ones, each once, the outermost first."""
        found = {id(self): self}
        for drafter in self.drafters:
            if isinstance(drafter, Cascade):
                found.update((id(inner), inner) for inner in drafter.levels())
        return list(found.values())

    def excerpts(self, context: Context) -> dict[str, int]:
        """Tokens that drafters read of a context, by name, if that is an excerpt."""
        found = dict[str, int]()
        for level in self._inner:
            reads = getattr(level.reviewer, "reads", None)
            tokens = reads(context, level.sequence) if reads else None
            if tokens is not None:
                found[level.name] = tokens
        return found

    @cached_property
    def _inner(self) -> list[Cascade]:
        """All inner levels, the outermost first."""
        return self.levels()[1:]

    @cached_property
    def _leaf_drafters(self) -> list[Drafter]:
        """All drafters that are not reviewers, each once."""
        every = [drafter for level in self.levels() for drafter in level.drafters]
        plain = [drafter for drafter in every if not isinstance(drafter, Cascade)]
        return list({id(drafter): drafter for drafter in plain}.values())


def _ids(vocab_size: int) -> str:
    return f"ids go from 0 to {vocab_size - 1}"


class NamedModel(NamedTuple):
    """A language model that takes part in a cascade, and its name in statistics.

    right: share of its tokens that are right, if measured.
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

    models: the best one first. last: the cheapest drafter, Max-Gram, which is not a
    reviewer. Use the result with `matrix.counts(0)`. Raises ConfigError if the matrix
    does not fit.
    """
    matrix.check([*(named.name for named in models), last.name])
    drafters: list[Drafter] = [last]
    for level in range(len(models), 0, -1):
        name, model, _ = models[level - 1]
        counts = matrix.counts(level)
        inner = Cascade(
            model,
            StaticSchedule(drafters, counts, ends),
            ends=ends,
            name=name,
            lenience=lenience,
            confident=lenience > 1 and level > 1,
        )
        drafters = [inner, *drafters]
    return drafters


def confidences(done: Round, context: Context, choose: Choose) -> list[float]:
    """The reviewer's probability of each token that its round emits."""
    stated, view = [], context
    for node, token in zip((-1, *done.verdict.path), done.tokens, strict=True):
        row = done.rows.logits[node + 1]
        stated.append(choose.confidence(row, view.tokens, token))
        view = view.with_tail((token,))
    return stated
