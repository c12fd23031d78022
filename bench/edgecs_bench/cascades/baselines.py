"""Baselines of speculative cascades (arXiv 2405.19261, section 5)."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import LanguageModel, Laws, Row, score_one
from edgecs.sampling import noise
from edgecs.sampling.cascade_rules import CascadeRule


@dataclass(frozen=True)
class Lenient:
    """Lenient speculative sampling: accepts more drafted tokens than its target would.

    The small model's token x is accepted with probability p(x) / ((1 - alpha) q(x)),
    else the token comes from (p - q)+, normalised. The law is neither p nor q, and has
    no other closed form. alpha: 0 (the target's law) to below 1. seed: of the sampling.
    """

    alpha: float
    seed: int

    def choose(self, choose: Laws, row: Row, small: Row, tokens: Tokens) -> int:
        """See `CascadeRule.choose`."""
        drafted = choose(small, tokens)
        p, q = choose.law(row, tokens), choose.law(small, tokens)
        key = noise.key(self.seed, tokens.size)
        limit = p[drafted] / ((1 - self.alpha) * q[drafted])
        if noise.coin(noise.stream(key, 2)) < limit:
            return drafted
        rest = np.maximum(p - q, 0)
        ids = np.flatnonzero(rest)
        if not ids.size:  # p = q, up to rounding
            return choose.redraw(row, tokens)
        scores = np.log(rest[ids]) + noise.gumbel(noise.stream(key, 3), ids)
        return int(ids[scores.argmax()])


def certainty(choose: Laws, small: Row, tokens: Tokens) -> float:
    """The small model's largest probability, by which a plain cascade defers."""
    return float(choose.belief(small, tokens).max())


def deferred(
    target: LanguageModel,
    small: LanguageModel,
    rule: CascadeRule,
    choose: Laws,
    prompt: Tokens,
    most: int,
    ends: Container[int] = (),
) -> Iterator[tuple[int, bool]]:
    """A plain cascade: the target is called only for what the small model defers.

    Yields every token, and whether the target was called for it.

    No draft is verified: a token of the small model is final if it is certain enough,
    and the target reads the tokens since its last call when it is called again. rule:
    chow, the only rule that needs the small model alone. The tokens are those of the
    same rule with drafts.
    """
    context = Context(prompt)
    for _ in range(most):
        row = score_one(small, context).logits[0]
        tokens = context.tokens
        defers = certainty(choose, row, tokens) < 1 - rule.alpha
        if defers:
            row = score_one(target, context).logits[0]
        token = choose(row, tokens)
        yield token, defers
        if token in ends:
            break
        context.append((token,))
