"""Expected speed-up of a cascade: expected tokens per round, EWIF and SWI.

EWIF, the expected walltime improvement factor, is expected tokens per round over the
cost of the round; plain decoding has 1. Source: the analysis section of CS Drafting
(arXiv 2312.11462), after Speculative Decoding (Leviathan et al., arXiv 2211.17192).

    rate    acceptance rate: the chance, 0..1, that the reviewer accepts a draft token
            if it accepted all before it
    cost    cost coefficient: time of one forward, in forwards of the target; finite
            and >= 0, for MaG 0
    length  tokens that a drafter writes, or reviews that it makes; whole and >= 0

Other values raise ConfigError. Both papers assume that tokens are accepted
independently and that a forward costs the same at every width. Real acceptances are
correlated and wide calls cost more, so use these numbers to compare, not to predict.
Powers are summed, not divided by 1 - rate, so a rate of 1 is not a special case.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

from edgecs.errors import ConfigError


class Best(NamedTuple):
    """The lengths with the highest EWIF; of equals, the first in the grid."""

    lengths: tuple[int, ...]
    ewif: float


def chain_tokens(rates: Sequence[float]) -> float:
    """Tokens per round if draft position i is accepted at rates[i]; [draft length].

    1 + a1 + a1 a2 + ...: CS Drafting (arXiv 2312.11462), analysis section, horizontal
    cascade. ConfigError: bad rate.

    >>> chain_tokens([0.5, 0.5])
    1.75
    """
    for rate in rates:
        _check_rate(rate)
    return 1.0 + math.fsum(itertools.accumulate(rates, operator.mul))


def speculative_tokens(rate: float, k: int) -> float:
    """Tokens per round of speculative decoding: (1 - a^(k+1)) / (1 - a).

    Speculative Decoding (arXiv 2211.17192), equation 1. ConfigError: bad rate, length.
    """
    return horizontal_tokens([rate], [k])


def speculative_ewif(rate: float, k: int, cost: float) -> float:
    """EWIF of speculative decoding: tokens / (1 + c k).

    Speculative Decoding (arXiv 2211.17192), theorem 3.8. ConfigError: bad rate, length,
    cost. FLAN-T5-base (248M parameters) drafts for XXL (11.3B) on CNN/DM:

    >>> round(speculative_ewif(0.73, 8, 248 / 11300), 3)
    2.965
    """
    return horizontal_ewif([rate], [k], [cost])


def horizontal_tokens(rates: Sequence[float], lengths: Sequence[int]) -> float:
    """Tokens per round if drafters, best first, write one draft in turn; [drafters].

    CS Drafting (arXiv 2312.11462), analysis section, horizontal cascade; every rate is
    under the target. ConfigError: bad rate, length; sizes that differ.
    """
    _check_sizes(rates, lengths)
    for rate, length in zip(rates, lengths, strict=True):
        _check_rate(rate)  # also of a drafter with length 0
        _check_length(length)
    return chain_tokens(
        [r for r, k in zip(rates, lengths, strict=True) for _ in range(k)]
    )


def horizontal_ewif(
    rates: Sequence[float], lengths: Sequence[int], costs: Sequence[float]
) -> float:
    """EWIF of a horizontal cascade: tokens / (1 + k1 c1 + k2 c2 + ...); [drafters].

    CS Drafting (arXiv 2312.11462), analysis section, table 1. ConfigError: bad rate,
    length, cost; sizes that differ.

    >>> round(horizontal_ewif([0.73, 0.65], [5, 3], [248 / 11300, 77 / 11300]), 3)
    3.028
    """
    _check_sizes(rates, lengths, costs)
    tokens = horizontal_tokens(rates, lengths)
    return tokens / (1 + math.fsum(map(_spent, lengths, costs)))


def phi(x: float, inner_rate: float, k: int) -> float:
    """E[x^N] of the N = 1..k+1 tokens that one review of k inner tokens gives; x 0..1.

    1 + (x-1) (1 - (a2 x)^(k+1)) / (1 - a2 x): CS Drafting (arXiv 2312.11462), analysis
    section, vertical cascade. ConfigError: bad x, rate, length.
    """
    for rate in (x, inner_rate):
        _check_rate(rate)
    _check_length(k)
    return 1 - (1 - x) * _powers(inner_rate * x, k + 1)


def vertical_tokens(
    rate: float,
    inner_rate: float,
    n: int,
    k: int,
    *,
    tail_rate: float = 0.0,
    tail: int = 0,
) -> float:
    """Tokens per round if the drafter makes n reviews of k tokens of an inner drafter.

    (1 - a phi^n) / (1 - a) [+ phi^n am (1 - am^tail) / (1 - am)]: CS Drafting (arXiv
    2312.11462), analysis section, vertical cascade [both cascades: `tail` tokens of MaG
    follow]. rate: drafter under target; inner_rate: inner drafter under drafter;
    tail_rate: MaG under target. ConfigError: bad rate, length.
    """
    inner = phi(rate, inner_rate, k)
    _check_rate(tail_rate)
    for length in (n, tail):
        _check_length(length)
    # (1 - a phi^n) / (1 - a), with 1 - phi = (1 - a) * _powers(a2 a, k + 1)
    head = 1 + rate * _powers(inner, n) * _powers(inner_rate * rate, k + 1)
    return head + inner**n * tail_rate * _powers(tail_rate, tail)


def vertical_ewif(
    rate: float,
    inner_rate: float,
    n: int,
    k: int,
    *,
    cost: float,
    inner_cost: float,
    tail_rate: float = 0.0,
    tail: int = 0,
) -> float:
    """EWIF of a vertical cascade: tokens / (1 + n c1 + n k c2); the MaG tail is free.

    CS Drafting (arXiv 2312.11462), analysis section, vertical cascade. ConfigError: bad
    rate, length, cost.
    """
    tokens = vertical_tokens(rate, inner_rate, n, k, tail_rate=tail_rate, tail=tail)
    return tokens / (1 + _spent(n, cost) + _spent(n * k, inner_cost))


def best_speculative(rate: float, cost: float, *, limit: int = 32) -> Best:
    """Lengths (k,), k in 0..limit, for speculative decoding.

    Speculative Decoding (arXiv 2211.17192), section 3.5. ConfigError: bad rate, cost,
    limit.
    """
    return _best(lambda k: speculative_ewif(rate, k, cost), 1, limit)


def best_horizontal(
    rates: Sequence[float], costs: Sequence[float], *, limit: int = 16
) -> Best:
    """Lengths (k1, k2, ...), each in 0..limit; rates, costs: [drafters].

    CS Drafting (arXiv 2312.11462), analysis section, table 1. Tries (limit + 1) ^
    drafters plans. ConfigError: bad rate, cost, limit; sizes that differ.
    """
    return _best(lambda *k: horizontal_ewif(rates, k, costs), len(rates), limit)


def best_vertical(
    rate: float, inner_rate: float, *, cost: float, inner_cost: float, limit: int = 16
) -> Best:
    """Lengths (n, k), each in 0..limit, without a tail; costs as in `vertical_ewif`.

    CS Drafting (arXiv 2312.11462), analysis section, vertical cascade. A free inner
    drafter drives k to the limit. ConfigError: bad rate, cost, limit.
    """

    def ewif(n: int, k: int) -> float:
        return vertical_ewif(rate, inner_rate, n, k, cost=cost, inner_cost=inner_cost)

    return _best(ewif, 2, limit)


def draft_speedup(
    shares: Sequence[float], step: float, times: Mapping[int, float]
) -> float:
    """Speed-up over plain decoding with drafts of the best length, or without drafts.

    shares: of drafts whose first, first two, ... tokens are right. step: seconds per
    drafted token. times: seconds of a target's call by width, including 1.
    Independence is not assumed: the shares were counted.

    >>> draft_speedup([0.5, 0.25], 0.0, {1: 1.0, 2: 1.0})
    1.5
    >>> draft_speedup([0.5], 2.0, {1: 1.0, 2: 1.0})
    1.0
    """
    best = 1.0
    for k in range(1, len(shares) + 1):
        wide = [seconds for width, seconds in times.items() if width > k]
        if wide:
            rate = (1 + sum(shares[:k])) / (min(wide) + k * step)
            best = max(best, rate * times[1])
    return best


def walltime_improvement(
    tokens: int,
    forwards: Mapping[str, int],
    costs: Mapping[str, float],
    target: str = "target",
) -> float:
    """SWI, the standardised walltime improvement of a counted run over plain decoding.

    tokens * cost of the target / sum of forwards * cost: CS Drafting (arXiv
    2312.11462), experiments section, table 2. forwards: calls of each model; costs: of
    one call, in any one unit (millions of parameters, seconds of a one-token forward).
    "mag" costs 0 unless stated. ConfigError: no cost for a model; bad count, cost; a
    target that was never called or is free.

    >>> walltime_improvement(90, {"target": 30, "mag": 80}, {"target": 11300})
    3.0
    """
    known = {"mag": 0.0, **costs}
    missing = [name for name in (target, *forwards) if name not in known]
    if missing:
        raise ConfigError(f"{missing[0]!r} has no cost: add it to costs")
    _check_length(tokens)
    spent = math.fsum(_spent(calls, known[name]) for name, calls in forwards.items())
    if not (forwards.get(target) and known[target]):
        raise ConfigError(
            f"{target!r} must have forwards and a cost above 0, got "
            f"{forwards.get(target, 0)} forwards at {known[target]}"
        )
    return tokens * known[target] / spent


def _best(ewif: Callable[..., float], count: int, limit: int) -> Best:
    _check_length(limit)
    grid = itertools.product(range(limit + 1), repeat=count)
    plans = (Best(lengths, ewif(*lengths)) for lengths in grid)
    return max(plans, key=operator.attrgetter("ewif"))


def _powers(rate: float, terms: int) -> float:
    """1 + rate + rate^2 + ..., with `terms` terms."""
    return math.fsum(rate**i for i in range(terms))


def _spent(calls: int, cost: float) -> float:
    _check_length(calls)
    if not (isinstance(cost, Real) and 0 <= cost < math.inf):
        raise ConfigError(f"a cost must be a finite number >= 0, got {cost!r}")
    return calls * float(cost)


def _check_rate(rate: float) -> None:
    if not (isinstance(rate, Real) and 0 <= rate <= 1):
        raise ConfigError(f"a rate must be a number between 0 and 1, got {rate!r}")


def _check_length(length: int) -> None:
    if not (isinstance(length, Integral) and length >= 0):
        raise ConfigError(f"a length or count must be whole and >= 0, got {length!r}")


def _check_sizes(*lists: Sequence[object]) -> None:
    sizes = [len(values) for values in lists]
    if len(set(sizes)) > 1:
        raise ConfigError(f"lists must have one entry per drafter, got sizes {sizes}")
