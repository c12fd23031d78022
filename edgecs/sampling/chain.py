"""Choosing a token from a row of logits: one deterministic choice per position.

    choose(row, tokens) = argmax over v of  log p(v) + G(seed, position, v)

p is the distribution after the sampler chain (llama.cpp's samplers in llama.cpp's
order), G is Gumbel noise from a hash, and position is the number of tokens before.
Greedy is the same rule without noise. Choices have no state, so an answer depends only
on the target, the settings and the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.core.draft import Choose, Law, Row
from edgecs.core.logits import best_ids
from edgecs.errors import ConfigError, NoNumbers
from edgecs.sampling import filters, noise, penalties
from edgecs.sampling.filters import Candidates
from edgecs.sampling.settings import Sampling

_FEW = 256  # candidates that are scored before the rest


class Mask(Protocol):
    """A constraint on an answer, as a pure function of its tokens; a grammar."""

    def allows(self, answer: Tokens, token: int) -> bool:
        """Whether `token` may follow."""

    def mask(self, row: Row, answer: Tokens) -> Row:
        """A copy of the row with -inf for tokens that may not follow."""


class Choices(NamedTuple):
    """The choices for one answer: that of the target, and that of its drafters."""

    target: Choose
    drafters: Choose


Rule = Callable[[int], Choices]
"""Number of tokens before the answer -> the choices for that answer."""


class Greedy:
    """The most probable token; of several, the one with the smallest id."""

    def __call__(self, row: Row, tokens: Tokens) -> int:
        """Largest logit; raises NoNumbers where it is not a number."""
        token = int(row.argmax())
        if not math.isfinite(row[token]):  # NaN counts as the largest
            raise NoNumbers(float(row[token]))
        return token

    def confidence(self, row: Row, tokens: Tokens, token: int) -> float:
        """Probability of a token at temperature 1."""
        return _softmax_at(row, token)

    def alternatives(self, row: Row, tokens: Tokens, k: int) -> list[tuple[int, float]]:
        """The largest logits after the largest one, with probabilities."""
        ids = best_ids(row, k + 1)
        if not math.isfinite(row[ids[0]]):
            raise NoNumbers(float(row[ids[0]]))
        weights = np.exp(row - row[ids[0]], dtype=np.float64)
        shares = weights[ids] / weights.sum()
        return [*zip(ids, shares.tolist(), strict=True)][1:]

    def margin(self, row: Row, tokens: Tokens) -> float:
        """The gap between the two largest logits."""
        return _gap(row)

    def keeps(
        self, row: Row, tokens: Tokens, token: int, q: float, lenience: float
    ) -> bool:
        """CS Drafting's lenient test (section 4.1): p(token) > q / lenience."""
        return self.confidence(row, tokens, token) > q / lenience

    def law(self, row: Row, tokens: Tokens) -> Law:
        """A point: the largest logit."""
        law = np.zeros(row.size)
        law[self(row, tokens)] = 1.0
        return law

    def belief(self, row: Row, tokens: Tokens) -> Law:
        """The distribution at temperature 1; raises NoNumbers as a choice does."""
        self(row, tokens)
        return _softmax(row)

    def redraw(self, row: Row, tokens: Tokens) -> int:
        """The same choice: there is no noise."""
        return self(row, tokens)

    noisy = False

    def word(self, tokens: Tokens) -> int:
        """0: no choice depends on it."""
        return 0

    def reseeded(self, number: int) -> Greedy:
        """Itself."""
        return self


greedy = Greedy()


def always(choose: Choose) -> Rule:
    """The rule that uses one choice for all models and all answers."""
    return lambda start: Choices(choose, choose)


def chooser(
    sampling: Sampling,
    vocab_size: int,
    *,
    breakers: penalties.Breakers | None = None,
    mask: Mask | None = None,
    start: int = 0,
) -> Choose:
    """The choice for an answer that begins after `start` tokens.

    breakers: for DRY, see `penalties.sequence_breakers`. mask: a grammar. Raises
    ConfigError for a logit bias outside the vocabulary.
    """
    for token, bias in sampling.logit_bias:
        if not 0 <= token < vocab_size or math.isnan(bias):
            raise ConfigError(
                f"logit bias {bias:g} for token {token}: ids go from 0 to "
                f"{vocab_size - 1} and a bias is a number"
            )
    if mask is None and sampling.is_greedy:
        return greedy
    return SamplerChain(sampling, breakers or {}, mask, start)


class SamplerChain:
    """The sampler chain as a choice, made by `chooser`."""

    def __init__(
        self,
        sampling: Sampling,
        breakers: penalties.Breakers,
        mask: Mask | None,
        start: int,
    ) -> None:
        self.sampling = sampling
        self._breakers = breakers
        self._mask = mask
        self._start = start
        bias = dict(sampling.logit_bias)
        self._biased = np.array(list(bias), dtype=np.intp)
        self._bias = np.array(list(bias.values()), dtype=np.float32)
        self._edits = bool(bias) or sampling.penalises or sampling.dries
        self._counters = noise.counters(np.arange(0))

    def __call__(self, row: Row, tokens: Tokens) -> int:
        """The choice, see the module."""
        return self._drawn(row, tokens, self.word(tokens))

    def redraw(self, row: Row, tokens: Tokens) -> int:
        """A choice with independent noise."""
        return self._drawn(row, tokens, noise.stream(self.word(tokens), 1))

    @property
    def noisy(self) -> bool:
        """Whether choices depend on the seed."""
        return self.sampling.temperature > 0 or self.sampling.xtc_probability > 0

    def word(self, tokens: Tokens) -> int:
        """The word of the noise at the position after these tokens."""
        return noise.key(self.sampling.seed, tokens.size)

    def reseeded(self, number: int) -> SamplerChain:
        """The same chain with another seed for each number; the mask is shared."""
        again = copy(self)
        seed = noise.key(self.sampling.seed, number)
        again.sampling = replace(self.sampling, seed=seed)
        return again

    def _drawn(self, row: Row, tokens: Tokens, key: int) -> int:
        """The choice with the noise of a key."""
        s = self.sampling
        if s.takes_largest:
            return self._largest(row, tokens)
        row = self._edited(row, tokens)
        left = self._truncated(row, key)
        if not s.temperature:
            return int(row.argmax() if left is None else left.ids[0])
        if left is None:
            return self._draw_from_all(row, key)
        scores = _wide(left.logits) / s.temperature + noise.gumbel(key, left.ids)
        return int(left.ids[_first_best(scores, left.ids)])

    def _largest(self, row: Row, tokens: Tokens) -> int:
        """The largest logit; the mask is computed only if it forbids that one."""
        row = self._penalised(row, tokens)
        token = int(row.argmax())
        self._check(row[token])
        if self._mask is None or self._mask.allows(tokens[self._start :], token):
            return token
        row = self._mask.mask(row, tokens[self._start :])
        token = int(row.argmax())
        self._check(row[token])
        return token

    def _check(self, best: np.float32) -> None:
        """Raises NoNumbers if the best logit is not finite and no setting is why."""
        if math.isfinite(best) or (best == math.inf and self._biased.size):
            return
        if best == -math.inf and (self._mask is not None or self._biased.size):
            raise ConfigError(
                "no token is left: the grammar and the logit bias forbid all tokens "
                "here; change one of them"
            )
        raise NoNumbers(float(best))

    def belief(self, row: Row, tokens: Tokens) -> Law:
        """Probabilities after bias, grammar and penalties; all 0: no token is left."""
        row = self._edited(row, tokens)
        if row.max() == -math.inf:
            return np.zeros(row.size)
        self._check(row.max())
        return _softmax(row)

    def law(self, row: Row, tokens: Tokens) -> Law:
        """The distribution after the chain, float64 [vocabulary]; greedy: a point."""
        row, s = self._edited(row, tokens), self.sampling
        left = self._truncated(row, noise.key(s.seed, tokens.size))
        law = np.zeros(row.size)
        if left is None:
            if s.temperature:
                return _softmax(row, s.temperature)
            law[row.argmax()] = 1.0
        elif s.temperature:
            weights = np.exp((_wide(left.logits) - left.logits[0]) / s.temperature)
            law[left.ids] = weights / weights.sum()
        else:
            law[left.ids[0]] = 1.0
        return law

    def confidence(self, row: Row, tokens: Tokens, token: int) -> float:
        """Probability after the chain; at temperature 0 without truncation."""
        if not self.sampling.temperature:
            return _softmax_at(self._edited(row, tokens), token)
        return float(self.law(row, tokens)[token])

    def alternatives(self, row: Row, tokens: Tokens, k: int) -> list[tuple[int, float]]:
        """The best perturbed scores after the best one, with probabilities.

        Without truncation only the largest logits are compared.
        """
        s, row = self.sampling, self._penalised(row, tokens)
        if not s.temperature:
            return greedy.alternatives(row, tokens, k)
        key = noise.key(s.seed, tokens.size)
        left = self._truncated(row, key) or filters.top(row, _FEW)
        scores = _wide(left.logits) / s.temperature
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        order = (-scores - noise.gumbel(key, left.ids)).argsort(kind="stable")
        best = order[1 : k + 1]
        return [*zip(left.ids[best].tolist(), weights[best].tolist(), strict=True)]

    def margin(self, row: Row, tokens: Tokens) -> float:
        """The smallest change of logits that gives another choice on this row.

        Another survivor of truncation overtakes the chosen token, or the chosen token
        is truncated, or a truncated token comes in and wins. Exact for temperature,
        top-k, min-p and penalties; other truncations are assumed to end at their last
        survivor.
        """
        row, s = self._edited(row, tokens), self.sampling
        # A repetition penalty amplifies a change.
        steepest = max(s.repeat_penalty, 1 / s.repeat_penalty) if s.penalises else 1.0
        if s.takes_largest:
            return _gap(row) / steepest
        key = noise.key(s.seed, tokens.size)
        left = self._truncated(row, key) or filters.top(row, row.size)
        # typical_p may keep tokens below any number of others.
        few = left.ids.size + _FEW if s.typical_p == 1 else row.size
        near = filters.top(row, min(row.size, few))
        inside, logits = np.isin(near.ids, left.ids), _wide(near.logits)
        scores = logits + s.temperature * noise.gumbel(key, near.ids)
        best = int(np.flatnonzero(inside)[scores[inside].argmax()])
        come_in, go_out = self._borders(logits, inside, best)
        behind = scores[best] - scores
        away = np.where(inside, behind, np.maximum(behind, come_in - logits))
        away[best] = logits[best] - go_out
        least = float(away.min())
        if near.ids.size == few:  # there may be more outside
            least = min(least, come_in - float(logits[-1]))
        return max(0.0, least) / steepest

    def _borders(
        self, logits: NDArray[np.float64], inside: NDArray[np.bool_], best: int
    ) -> tuple[float, float]:
        """The logit above which a token comes in, and below which the best goes out.

        logits: of the survivors and of others near them, descending.
        """
        s, rivals = self.sampling, np.delete(logits, best)
        reach = math.log(s.min_p) if s.min_p else -math.inf
        come_in = float(logits[0]) + reach
        go_out = float(rivals.max(initial=-math.inf)) + reach
        if 0 < s.top_k < logits.size:
            go_out = max(go_out, float(logits[s.top_k]))
        outside, kept = logits[~inside], logits[inside]
        if outside.size and outside[0] >= come_in:  # min-p does not keep it out
            come_in = float(kept[-1])
            go_out = go_out if kept.size == s.top_k else max(go_out, come_in)
        return come_in, go_out

    def keeps(
        self, row: Row, tokens: Tokens, token: int, q: float, lenience: float
    ) -> bool:
        """Whether a lenient reviewer accepts a drafted token.

        Its perturbed score must be within log(lenience) of the best; at temperature 0
        the paper's test, see `Greedy.keeps`.
        """
        s = self.sampling
        if not s.temperature:
            return self.confidence(row, tokens, token) > q / lenience
        law = self.law(row, tokens)
        ids = np.flatnonzero(law)
        if not law[token]:
            return False
        scores = np.log(law[ids]) + noise.gumbel(noise.key(s.seed, tokens.size), ids)
        mine = scores[np.searchsorted(ids, token)]
        return bool(mine >= scores.max() - math.log(lenience))

    def _edited(self, row: Row, tokens: Tokens) -> Row:
        """The row after bias, grammar, penalties and DRY.

        None of them depends on other tokens' logits, so the mask may come last.
        """
        row = self._penalised(row, tokens)
        if self._mask is None:
            return row
        return self._mask.mask(row, tokens[self._start :])

    def _penalised(self, row: Row, tokens: Tokens) -> Row:
        """The row after bias, penalties and DRY."""
        if not self._edits:
            return row
        row, s = row.copy(), self.sampling
        row[self._biased] += self._bias
        if s.penalises:
            seen = penalties.window(tokens, s.repeat_last_n)
            penalties.repetition(
                row, seen, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
            )
        if s.dries:
            penalties.dry(
                row,
                penalties.window(tokens, s.dry_last_n),
                self._breakers,
                multiplier=s.dry_multiplier,
                base=s.dry_base,
                allowed=s.dry_allowed_length,
            )
        return row

    def _truncated(self, row: Row, key: int) -> Candidates | None:
        """The survivors of truncation; None: every token that the row allows."""
        s, left = self.sampling, None
        self._check(row.max())  # NaN counts as the largest
        if s.top_n_sigma > 0:
            row = filters.top_n_sigma(row, s.top_n_sigma)
            left = filters.top(row, row.size)
        if s.top_k:
            left = filters.top(row, s.top_k)
        if s.typical_p < 1:
            left = filters.typical(left or filters.top(row, row.size), s.typical_p)
        if s.top_p < 1:
            left = (
                filters.top_p(left, s.top_p)
                if left
                else filters.top_p_of_row(row, s.top_p)
            )
        if s.min_p > 0:
            left = (
                filters.min_p(left, s.min_p)
                if left
                else filters.min_p_of_row(row, s.min_p)
            )
        if s.xtc_probability and noise.coin(key) < s.xtc_probability:
            left = filters.xtc(left or filters.top(row, row.size), s.xtc_threshold)
        return left

    def _draw_from_all(self, row: Row, key: int) -> int:
        """The draw without truncation; logarithms only of possible winners.

        With t the largest logit outside the top few, a token outside needs noise above
        the best score minus t; comparing its hash needs no logarithm.
        """
        t = self.sampling.temperature
        few = filters.top(row, _FEW)
        if self._counters.size != row.size:
            self._counters = noise.counters(np.arange(row.size))
        words = noise.words(key, self._counters)
        best = (_wide(few.logits) / t + noise.of_words(words[few.ids])).max()
        least = noise.least_word(best - few.logits[-1] / t)
        ids = np.flatnonzero(words >= np.uint64(least))
        ids = np.concatenate([few.ids, ids])
        scores = _wide(row[ids]) / t + noise.of_words(words[ids])
        return int(ids[_first_best(scores, ids)])


def _first_best(scores: NDArray[np.float64], ids: filters.Ids) -> int:
    """Index of the best score; of equal ones the smallest id."""
    best = np.flatnonzero(scores == scores.max())
    return int(best[ids[best].argmin()])


def _gap(row: Row) -> float:
    """The difference of the two largest logits."""
    if row.size < 2:
        return math.inf
    second, first = np.partition(row, -2)[-2:]
    return float(first) - float(second)


def _wide(logits: Row) -> NDArray[np.float64]:
    return logits.astype(np.float64)


def _softmax(row: Row, temperature: float = 1.0) -> Law:
    law: Law = np.exp((_wide(row) - float(row.max())) / temperature)
    law /= law.sum()
    return law


def _softmax_at(row: Row, token: int) -> float:
    weights = np.exp(row - row.max(), dtype=np.float64)
    return float(weights[token] / weights.sum())
