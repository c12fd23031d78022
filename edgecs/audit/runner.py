"""Compares answers with plain decoding: as planned, and with forced widths.

A planner avoids expensive widths, so alone it proves little. Two forced runs use every
permitted width in turn, round by round: one with Max-Gram, one with a drafter that has
the plain answer and is wrong half of the time. If drafts may be trees, a third one
drafts trees in which the plain answer is among other tokens.

Every answer starts from an empty cache and is compared with plain decoding token by
token. The first token that differs is a *fork*; later tokens are not compared. A fork
breaks strict if its round and all rounds before it in the answer were strict: the bits
of other rounds stay in the cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import numpy as np

from edgecs.audit.report import Fork, Plain, Prompt, Report, Run
from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Choose, Drafter, LanguageModel, Row
from edgecs.core.faults import refuse
from edgecs.decoding.cascade import Round
from edgecs.decoding.exactness import EVERY, Allowed, Limits, range_of
from edgecs.decoding.static_schedule import Gathered, Outcome, Schedule, StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import Cancelled, ConfigError
from edgecs.sampling.chain import Rule, always, greedy
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs.testing.fakes import ScriptedDrafter
from edgecs.testing.scripted_trees import ScriptedTree
from edgecs.text.detokenizer import Tokenizer

FORCED = (2, 3, 4, 6, 8, 16)  # widths that are forced where every width is allowed
_STEP = 3  # offset in widths from one prompt to the next
_GREEDY = always(greedy)


@dataclass(frozen=True)
class Subject:
    """What is audited: a target that is not in use, and how its tokens are chosen.

    limits: the permitted widths. max_tokens: of every answer; the first one comes with
    the prompt and is not drafted.
    """

    target: LanguageModel
    tokenizer: Tokenizer
    limits: Limits
    rule: Rule = _GREEDY
    max_tokens: int = 64

    def widths(self, depth: int) -> list[int]:
        """Widths to force from a depth on: the strict class, or a few of all widths."""
        some = list(FORCED)
        if self.limits.tier(depth) == "strict":
            start, _ = range_of(
                depth
            )  # the whole class of the range, not the rest of it
            some = (np.flatnonzero(self.limits.allowed(start)) + 1).tolist()
        most = 1 + self.target.max_draft if self.target.rewindable else 1
        return [width for width in some if 1 < width <= most]


class _Case(NamedTuple):
    """A run, its prompts, and its schedule."""

    run: Run
    prompts: list[Plain]
    schedule: Callable[[Plain], Schedule]


class _Answer(NamedTuple):
    """An answer and its calls; the first call is prefill."""

    tokens: list[int]
    depths: list[int]  # tokens before each call
    widths: list[int]  # of each call
    stats: Stats


def audit(
    subject: Subject,
    prompts: Sequence[Prompt],
    planned: Callable[[], Schedule],
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Answers every prompt in every way and compares.

    planned: returns the schedule of the run that is not forced. progress: called with
    status messages. Prompts that leave no room for an answer are skipped. Raises
    ConfigError if none is left, Cancelled if the target's `cancel` is set.
    """
    n_ctx, limits = subject.target.n_ctx, subject.limits
    fitting = [prompt for prompt in prompts if prompt.tokens.size < n_ctx]
    if not fitting:
        raise ConfigError(
            f"no prompt leaves room for an answer in a context of {n_ctx} tokens: give "
            "shorter ones or a larger context (-c)"
        )
    progress(f"{len(fitting)} prompts, first with plain decoding")
    plain = [_plain(subject, prompt) for prompt in fitting]
    cases, deepest = list(_cases(subject, plain, planned)), 0
    for run, chosen, schedule in cases:
        for reference in chosen:
            answer = _answer(subject, reference.prompt, schedule(reference))
            _compare(limits, run, reference, answer)
            deepest = max(deepest, answer.depths[-1])
        progress(f"{run.name}: {run.identical} of {run.answers} identical")
    why = "no probed width is bit-identical to plain decoding there"
    if not subject.target.rewindable:
        why = "this model cannot remove rejected tokens"
    return Report(
        plain,
        [prompt for prompt in prompts if prompt.tokens.size >= n_ctx],
        [case.run for case in cases],
        limits.describe(_ranges(deepest)),
        why,
    )


def _cases(
    subject: Subject, plain: list[Plain], planned: Callable[[], Schedule]
) -> Iterator[_Case]:
    """The schedule itself, then every width in turn with each drafter."""
    yield _Case(Run("as generate"), plain, lambda reference: planned())
    if chosen := [one for one in plain if one.widths]:
        yield _forced("mag", chosen, subject)
        yield _forced("half wrong", chosen, subject)
        if subject.target.max_leaves > 1:
            yield _forced("trees", chosen, subject)


def _forced(who: str, chosen: list[Plain], subject: Subject) -> _Case:
    """Drafts of every length, of Max-Gram or of a drafter that is often wrong."""
    size, ends = subject.target.vocab_size, subject.tokenizer.ends
    leaves = subject.target.max_leaves

    def schedule(plain: Plain) -> Schedule:
        script = [*plain.prompt.tokens.tolist(), *plain.tokens]
        at = chosen.index(plain)
        drafter: Drafter = MaxGram()
        if who == "half wrong":
            drafter = ScriptedDrafter(script, wrong=0.5, vocab_size=size, seed=at)
        elif who == "trees":
            drafter = ScriptedTree(
                script, leaves=leaves, vocab_size=size, wrong=0.2, seed=at
            )
        first = at * _STEP % len(plain.widths)
        turns = [*plain.widths[first:], *plain.widths[:first]]
        return _EveryWidth(drafter, turns, ends)

    return _Case(Run(who, forced=True), chosen, schedule)


class _EveryWidth:
    """Drafts that cycle through some widths of calls."""

    def __init__(
        self, drafter: Drafter, widths: Sequence[int], ends: frozenset[int]
    ) -> None:
        self.drafters = (drafter,)
        self._turns = cycle(
            [StaticSchedule(self.drafters, [width - 1], ends) for width in widths]
        )

    def begin(self) -> None:
        """Does nothing."""

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """A draft for the next width; shorter if the drafter proposes less."""
        turn = next(self._turns) if most else StaticSchedule()
        return turn.draft(context, choose, most, allowed, together)

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Does nothing."""

    def park(self, name: str) -> None:
        """Turns drafting off."""
        self._turns = cycle([StaticSchedule()])

    def describe(self) -> str:
        """A description of the schedule."""
        return "every width in turn"


class _Watched:
    """A choice that records its margins."""

    def __init__(self, choose: Choose) -> None:
        self.gaps: dict[int, float] = {}
        self.confidence, self.margin = choose.confidence, choose.margin
        self.keeps, self.alternatives = choose.keeps, choose.alternatives
        self._choose = choose

    def __call__(self, row: Row, tokens: Tokens) -> int:
        self.gaps[tokens.size] = self.margin(row, tokens)
        return self._choose(row, tokens)


def _plain(subject: Subject, prompt: Prompt) -> Plain:
    size = prompt.tokens.size
    watched = _Watched(subject.rule(size).target)
    tokens = _answer(subject, prompt, StaticSchedule(), always(watched)).tokens
    tier, widths = subject.limits.tier(size), subject.widths(size)
    return Plain(prompt, tier, widths, tokens, watched.gaps)


def _answer(
    subject: Subject, prompt: Prompt, schedule: Schedule, rule: Rule | None = None
) -> _Answer:
    """One answer from an empty cache. Raises Cancelled."""
    depths, widths = [prompt.tokens.size], [0]

    def note(context: Context, done: Round) -> None:
        depths.append(len(context))
        widths.append(1 + len(done.draft))

    target, tokenizer, limits = subject.target, subject.tokenizer, subject.limits
    target.reset()
    rule = rule or subject.rule
    with Session(
        target, tokenizer, schedule=schedule, limits=limits, rule=rule
    ) as session:
        session.on_round = note
        stream = session.generate(prompt.tokens, max_tokens=subject.max_tokens)
        tokens = [token.id for token in stream]
    if session.finish_reason == "cancelled":
        raise Cancelled("stopped during the audit: there is no result")
    refuse(session.stats.faults)
    return _Answer(tokens, depths, widths, session.stats)


def _compare(limits: Limits, run: Run, plain: Plain, answer: _Answer) -> None:
    """Adds an answer to a run, up to its first fork."""
    one, other, start = plain.tokens, answer.tokens, answer.depths[0]
    pairs = enumerate(zip(one, other, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    forked = same < max(len(one), len(other))
    tiers = [limits.tier(depth - 1) for depth in answer.depths]  # cells before a call
    calls = [
        bisect_right(answer.depths, start + i) - 1 for i in range(same + int(forked))
    ]
    run.answers += 1
    run.tokens += len(calls)
    run.tiers.update(tiers[call] for call in calls)
    run.accepted += answer.stats.accepted
    run.rejected += answer.stats.tested - answer.stats.accepted
    run.widths.update(answer.stats.rounds_by_width)
    if forked:
        call = calls[-1]
        fork = Fork(
            prompt=plain.prompt.id,
            token=same,
            context=start + same,
            width=answer.widths[call],
            tier=tiers[call],
            plain=one[same] if same < len(one) else None,
            said=other[same] if same < len(other) else None,
            gap=plain.gaps.get(start + same),
            broken=all(tier == "strict" for tier in tiers[: call + 1]),
        )
        run.forks.append(fork)


def _ranges(deepest: int) -> list[int]:
    """Starts of the ranges of depth up to that of `deepest`."""
    starts = [0]
    while (end := range_of(starts[-1])[1]) <= deepest:
        starts.append(end)
    return starts
