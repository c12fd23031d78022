"""Speculative sampling by ratios: the target's law, but not the tokens of no drafts.

Every drafted token has a law: that of the model that drew it, or a point for a token
that was looked up. Source of the rule by tokens: Speculative Decoding (arXiv
2211.17192); of that by blocks: Block Verification (arXiv 2403.10444). Both give the
target's law; blocks accept at least as many tokens on average.

A round has noise of its own. Under the rule by blocks, whether a token is accepted
depends on the tokens drafted after it, so noise that later rounds use again would make
these depend on rejected drafts. For the same reason a drawn token is never taken out of
a draft because of what it is, which a planner would do.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, Law, Laws, Rows, Verdict
from edgecs.decoding.beside import RowKeeper
from edgecs.errors import ConfigError
from edgecs.sampling import noise
from edgecs.sampling.chain import Choices

_COIN, _REST = 2, 3  # streams of the noise at a position


class Position(NamedTuple):
    """A drafted token, and the laws at its position."""

    token: int
    p: Law  # of the target
    q: Law  # that the token was drawn from; a point: it was looked up
    key: int  # of the noise

    @property
    def ratio(self) -> float:
        """p over q of the token."""
        return float(self.p[self.token] / self.q[self.token])

    @property
    def coin(self) -> float:
        """A uniform draw, independent of the drafted token."""
        return noise.coin(noise.stream(self.key, _COIN))

    def rest(self, weight: float = 1.0) -> int:
        """A draw from (weight p - q)+, normalised."""
        law = np.maximum(weight * self.p - self.q, 0)
        ids = np.flatnonzero(law)
        if not ids.size:  # by rounding: the laws are equal
            law, ids = self.p, np.flatnonzero(self.p)
        gumbel = noise.gumbel(noise.stream(self.key, _REST), ids)
        return int(ids[(np.log(law[ids]) + gumbel).argmax()])


class RatioRule:
    """Verifies chains by ratios.

    keepers: the models that draw drafted tokens, by the name in `Draft.writers`.
    blocks: the rule by blocks.
    """

    def __init__(self, keepers: Mapping[str, RowKeeper], *, blocks: bool) -> None:
        self._keepers, self._blocks = keepers, blocks

    def choices(self, choices: Choices, context: Context) -> Choices:
        """The choices of the round that begins after a context."""
        return Choices(*(_laws(one).reseeded(len(context)) for one in choices))

    def verify(
        self,
        draft: Draft,
        rows: Rows,
        choices: Choices,
        context: Context,
        ends: Container[int] = (),
    ) -> Verdict:
        """The accepted tokens of a chain, and the next one, up to an end token."""
        target, size = _laws(choices.target), len(context)
        view = context.with_tail(draft.tokens)
        at = self._positions(draft, rows, choices, view.tokens, size)
        taken = accepted_block(at) if self._blocks else accepted_tokens(at)
        if taken < len(at):
            weight = weights(at)[taken] if self._blocks else 1.0
            token = at[taken].rest(weight)
        else:
            token = target.redraw(rows.logits[taken], view.tokens[: size + taken])
        for keeper in self._keepers.values():
            keeper.forget_rows()
        for i, drafted in enumerate(draft.tokens[:taken].tolist()):
            if drafted in ends:
                return Verdict(tuple(range(i)), drafted)
        return Verdict(tuple(range(taken)), token)

    def _positions(
        self, draft: Draft, rows: Rows, choices: Choices, tokens: Tokens, size: int
    ) -> list[Position]:
        target, drafters = _laws(choices.target), _laws(choices.drafters)
        writers = draft.writers or ("",) * len(draft)
        found = []
        for i, token in enumerate(draft.tokens.tolist()):
            before = tokens[: size + i]
            p = target.law(rows.logits[i], before)
            if keeper := self._keepers.get(writers[i]):
                q = drafters.law(keeper.row(before), before)
            else:
                q = np.zeros(p.size)
                q[token] = 1.0
            found.append(Position(token, p, q, target.word(before)))
        return found


def accepted_tokens(at: Sequence[Position]) -> int:
    """Number of accepted tokens; each is accepted with probability min(1, p / q)."""
    for i, position in enumerate(at):
        if position.coin >= position.ratio:
            return i
    return len(at)


def accepted_block(at: Sequence[Position]) -> int:
    """Number of accepted tokens by blocks: the longest part that is accepted."""
    taken = 0
    for i, chance in enumerate(chances(at), 1):
        if at[i - 1].coin < chance:
            taken = i
    return taken


def weights(at: Sequence[Position]) -> list[float]:
    """min(1, product of ratios, clipped at every step) of each part, [0..n]."""
    found = [1.0]
    for position in at:
        found.append(min(found[-1] * position.ratio, 1.0))
    return found


def chances(at: Sequence[Position]) -> list[float]:
    """The chance of each part of a block, [1..n], if no longer one is accepted."""
    found = []
    for i, weight in enumerate(weights(at)[1:], 1):
        if i == len(at):
            found.append(weight)
            continue
        rest = float(np.maximum(weight * at[i].p - at[i].q, 0).sum())
        missing = 1 - weight
        # Without either, the next law is the target's and a longer part is accepted.
        found.append(rest / (rest + missing) if rest + missing > 0 else 1.0)
    return found


def _laws(choose: object) -> Laws:
    if not isinstance(choose, Laws):
        raise ConfigError(
            "accepting by ratios needs a choice that states its law "
            "(sampling.chain.chooser)"
        )
    return choose
