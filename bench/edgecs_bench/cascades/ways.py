"""The ways to answer that a cascade sweep compares.

    large        the target alone
    small        the drafter alone
    speculative  the target with drafts: the same tokens as large
    RULE:A       a speculative cascade, see `edgecs.sampling.cascade_rules`
    lenient:A    lenient speculative sampling
    deferral:A   a plain cascade without drafts, with the rule chow

Every way is a choice from the rows of two models (`mixtures`), and a run with these
models (`ways`). All drafts are of the same length, so that the rules are compared and
not a planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import NamedTuple

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import LanguageModel, Laws, Row
from edgecs.decoding.beside import Beside, RowKeeper
from edgecs.decoding.cascade import NamedModel, Round, stack
from edgecs.decoding.exactness import Limits
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.sampling.cascade_rules import CascadeRule, Mixture, RuleName
from edgecs.sampling.chain import always
from edgecs.session.session import Session
from edgecs.text.detokenizer import Tokenizer
from edgecs_bench.cascades.baselines import Lenient, deferred

LARGE, SMALL, SPECULATIVE = "large", "small", "speculative"
LENIENT, DEFERRAL = "lenient", "deferral"

Over = Callable[[Sequence[int]], bool]
"""Whether an answer of these tokens ends here, though no end token was chosen."""


def never(tokens: Sequence[int]) -> bool:
    """No answer ends early."""
    return False


class Counts(NamedTuple):
    """What an answer took.

    calls: of the target, that which reads the prompt included. accepted, rejected:
    drafted tokens that were accepted, and rounds that ended at one that was not.
    """

    calls: int
    accepted: int = 0
    rejected: int = 0


class Spoken(NamedTuple):
    """An answer; times are in seconds."""

    tokens: list[int]
    counts: Counts
    ttft: float
    decode: float


@dataclass(frozen=True)
class Pair:
    """A target, a small model, and how they are used. drafted: tokens of a draft."""

    target: LanguageModel
    small: LanguageModel
    tokenizer: Tokenizer
    limits: Limits
    drafted: int


@dataclass(frozen=True)
class Alone:
    """The choice of one of the two models."""

    small: bool

    def choose(self, choose: Laws, row: Row, small: Row, tokens: Tokens) -> int:
        """See `CascadeRule.choose`."""
        return choose(small if self.small else row, tokens)


class Question(NamedTuple):
    """What is answered. most: tokens of the answer. over: may end it earlier."""

    choose: Laws
    prompt: Tokens
    most: int
    over: Over = never


Way = Callable[[Question], Spoken]
"""Answers a question from empty caches."""


def kind(way: str) -> str:
    """The name of a way without its alpha."""
    return way.partition(":")[0]


def mixtures(
    rules: Sequence[RuleName], alphas: Sequence[float], seed: int
) -> dict[str, Mixture]:
    """The choice of every way by its name; alphas outside a rule's range are left out.

    seed: of the sampling.
    """
    found: dict[str, Mixture] = {
        LARGE: Alone(small=False),
        SMALL: Alone(small=True),
        SPECULATIVE: Alone(small=False),
    }
    for name in rules:
        low, high = CascadeRule.limits(name)
        for alpha in alphas:
            if low <= alpha <= high:
                found[f"{name}:{alpha:g}"] = CascadeRule(name, alpha)
    for alpha in alphas:
        if 0 <= alpha < 1:
            found[f"{LENIENT}:{alpha:g}"] = Lenient(alpha, seed)
            found[f"{DEFERRAL}:{alpha:g}"] = CascadeRule("chow", alpha)
    return found


def ways(
    pair: Pair, rules: Sequence[RuleName], alphas: Sequence[float], seed: int
) -> dict[str, Way]:
    """Every way of `mixtures` with the models of a pair."""
    found = dict[str, Way]()
    for name, mixture in mixtures(rules, alphas, seed).items():
        if kind(name) in (LARGE, SMALL):
            found[name] = partial(_alone, pair, small=kind(name) == SMALL)
        elif kind(name) == DEFERRAL:
            assert isinstance(mixture, CascadeRule)
            found[name] = partial(_deferred, pair, mixture)
        else:
            mixes = None if kind(name) == SPECULATIVE else mixture
            found[name] = partial(_drafted, pair, mixes)
    return found


def _alone(pair: Pair, question: Question, *, small: bool) -> Spoken:
    model = pair.small if small else pair.target
    model.reset()
    session = Session(model, pair.tokenizer, rule=always(question.choose))
    said = _timed(session, question)
    return said._replace(counts=Counts(0)) if small else said


def _drafted(pair: Pair, mixes: Mixture | None, question: Question) -> Spoken:
    small, target = pair.small, pair.target
    target.reset()
    small.reset()
    if mixes:
        small = RowKeeper(small)
        target = Beside(target, small)
    matrix = KMatrix(((pair.drafted, 0), (0, 0)))
    session = Session(
        target,
        pair.tokenizer,
        stack([NamedModel("small", small)], MaxGram(), matrix),
        draft_max=matrix.counts(0),
        limits=pair.limits,
        rule=always(question.choose),
        mixes=mixes,
    )
    return _timed(session, question)


def _timed(session: Session, question: Question) -> Spoken:
    tokens, ended = list[int](), list[tuple[bool, int]]()

    def note(context: Context, done: Round) -> None:
        ended.append((done.rejected is not None, len(done.tokens)))

    session.on_round = note
    with session:
        for token in session.generate(question.prompt, max_tokens=question.most):
            tokens.append(token.id)
            if question.over(tokens):
                break
        session.stop()
        stats = session.stats
    rejected = sum(at for at, _ in ended)
    if ended and 1 + sum(size for _, size in ended) > len(tokens):
        rejected -= ended[-1][0]  # the answer ends before the rejected token
    counts = Counts(1 + stats.rounds, stats.accepted, rejected)
    return Spoken(tokens, counts, stats.prompt_seconds, stats.decode_seconds)


def _deferred(pair: Pair, rule: CascadeRule, question: Question) -> Spoken:
    began, times, tokens, calls = perf_counter(), list[float](), list[int](), 0
    pair.target.reset()
    pair.small.reset()
    both, (choose, prompt, most, over) = (pair.target, pair.small), question
    every = deferred(*both, rule, choose, prompt, most, pair.tokenizer.ends)
    for token, called in every:
        tokens.append(token)
        times.append(perf_counter())
        calls += called
        if over(tokens):
            break
    return Spoken(tokens, Counts(calls), times[0] - began, times[-1] - times[0])
