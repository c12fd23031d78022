"""The ways to answer that a cascade sweep compares.

    large        the target alone
    small        the drafter alone
    speculative  the target with drafts: the same tokens as large
    RULE:A       a speculative cascade, see `edgecs.sampling.cascade_rules`
    lenient:A    lenient speculative sampling
    deferral:A   a plain cascade without drafts, with the rule chow

All drafts are of the same length, so that the rules are compared and not a planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, LanguageModel, Laws, Request
from edgecs.decoding.beside import Beside, RowKeeper
from edgecs.decoding.cascade import NamedModel, stack
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
_PIECE = 32  # tokens of an answer in one call


class Spoken(NamedTuple):
    """An answer; times are in seconds.

    accepted, rejected: drafted tokens that were, and rounds that ended at one that was
    not.
    """

    tokens: list[int]
    ttft: float
    decode: float
    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Pair:
    """A target, a small model, and how they are used. drafted: tokens of a draft."""

    target: LanguageModel
    small: LanguageModel
    tokenizer: Tokenizer
    limits: Limits
    drafted: int


Way = Callable[[Laws, Tokens, int], Spoken]
"""The choice, the prompt and the most tokens -> an answer from empty caches."""


def ways(
    pair: Pair, rules: Sequence[RuleName], alphas: Sequence[float], seed: int
) -> dict[str, Way]:
    """Every way by its name. Alphas outside the range of a rule are left out."""
    found: dict[str, Way] = {
        LARGE: partial(_alone, pair, pair.target),
        SMALL: partial(_alone, pair, pair.small),
        SPECULATIVE: partial(_drafted, pair, None),
    }
    for name in rules:
        low, high = CascadeRule.limits(name)
        for alpha in alphas:
            if low <= alpha <= high:
                rule = CascadeRule(name, alpha)
                found[f"{name}:{alpha:g}"] = partial(_drafted, pair, rule)
    for alpha in alphas:
        if 0 <= alpha < 1:
            lenient = Lenient(alpha, seed)
            found[f"{LENIENT}:{alpha:g}"] = partial(_drafted, pair, lenient)
            rule = CascadeRule("chow", alpha)
            found[f"{DEFERRAL}:{alpha:g}"] = partial(_deferred, pair, rule)
    return found


def _alone(
    pair: Pair, model: LanguageModel, choose: Laws, prompt: Tokens, most: int
) -> Spoken:
    model.reset()
    return _timed(Session(model, pair.tokenizer, rule=always(choose)), prompt, most)


def _drafted(
    pair: Pair, mixes: Mixture | None, choose: Laws, prompt: Tokens, most: int
) -> Spoken:
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
        rule=always(choose),
        mixes=mixes,
    )
    return _timed(session, prompt, most)


def _timed(session: Session, prompt: Tokens, most: int) -> Spoken:
    with session:
        tokens = [token.id for token in session.generate(prompt, max_tokens=most)]
        stats = session.stats
    rejected = sum(len(r.accepted) < len(r.tested) for r in stats.records)
    return Spoken(
        tokens, stats.prompt_seconds, stats.decode_seconds, stats.accepted, rejected
    )


def _deferred(
    pair: Pair, rule: CascadeRule, choose: Laws, prompt: Tokens, most: int
) -> Spoken:
    began, times, tokens = perf_counter(), list[float](), list[int]()
    pair.target.reset()
    pair.small.reset()
    both = pair.target, pair.small
    for token in deferred(*both, rule, choose, prompt, most, pair.tokenizer.ends):
        tokens.append(token)
        times.append(perf_counter())
    return Spoken(tokens, times[0] - began, times[-1] - times[0])


def agreement(
    target: LanguageModel, choose: Laws, prompt: Tokens, answer: Sequence[int]
) -> float:
    """Share of the tokens that the target chooses itself after the same tokens."""
    target.reset()
    context, same = Context(prompt), 0
    piece = min(_PIECE, target.max_draft)
    for start in range(0, len(answer), piece):
        part = np.array(answer[start : start + piece], dtype=np.int32)
        (rows,) = target.score([Request(context, Draft.chain(part[:-1], "answer"))])
        for row, token in zip(rows.logits, part, strict=True):
            same += choose(row, context.tokens) == token
            context.append((token,))
    return same / len(answer)
