"""The expected speed of a drafter that goes on while its reviewer computes.

While the reviewer verifies a draft, the drafter assumes that all of it is right,
guesses the token that the reviewer adds, and writes a draft after that. If the
assumption holds, the next round has this draft without waiting for it (PEARL's
post-verify; with an empty draft its pre-verify). A round then takes the longer of the
two times instead of their sum.

A round either has a draft that was made ahead, or it has none and the drafter may write
some tokens first. These two states are a Markov chain, whose stationary distribution
gives the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# chosen: if 60 % of a drafter's tokens are right, 1 % of its ninth tokens are.
FAR = 8  # tokens of a draft that are considered
# Finite, because zero times infinity is not a number.
_UNAVAILABLE = 1e12  # seconds of a call whose width is not available


class Overlapped(NamedTuple):
    """The best steps of a drafter that works ahead, and what they are expected to give.

    rate: tokens per second. steps: of the drafter during a call; the first token is the
    guess of the reviewer's own. first: tokens that are drafted before a call without a
    draft made ahead. worth: tokens that a draft made ahead is worth, beyond none.
    """

    rate: float
    steps: int
    first: int
    worth: float


NEVER = Overlapped(0.0, 0, 0, 0.0)
"""It is not expected to give anything."""


def overlapped(
    right: float, times: Sequence[float], step: float, most: int = FAR
) -> Overlapped:
    """The rate of a drafter that works ahead, with the best numbers of its tokens.

    right: probability that a token of the drafter is right if those before it are.
    times: seconds of the reviewer's calls by width, [at least most + 1], inf where a
    width is not available. step: seconds of a token of the drafter. most: tokens of a
    draft.

    >>> flat = [1.0] * 9
    >>> [round(overlapped(right, flat, 0.5).rate, 2) for right in (0.0, 0.8, 1.0)]
    [1.0, 1.55, 2.0]
    """
    most = min(most, FAR, len(times) - 1)
    if most < 1 or not step > 0:
        return NEVER
    drafted = np.arange(most + 1)
    chance = right ** np.arange(most + 2)  # [n]: that n tokens are right
    told = np.cumsum(chance)[:-1]  # [most + 1]: expected tokens of a draft of n
    known = np.minimum(times[: most + 1], _UNAVAILABLE)
    call = np.minimum.accumulate(known[::-1])[::-1]
    steps = drafted[None, 1:] + 1  # [1, ahead]: a guess and a draft of 1 to most tokens
    busy = steps * step
    # With a draft of `ahead` tokens that was made ahead; it is followed by another one.
    stays = chance[2:][None, :]
    spent = np.maximum(call[None, 1:], busy)
    # Without one: `first` tokens are written before the call.
    begins = chance[1:][:, None]
    began = drafted[:, None] * step + np.maximum(call[:, None], busy)
    share = begins / (1 - stays + begins + 1e-12)  # of rounds with a draft made ahead
    gained = share * told[None, 1:] + (1 - share) * told[:, None]
    rates = gained / (share * spent + (1 - share) * began)
    first, ahead = np.unravel_index(int(rates.argmax()), rates.shape)
    rate = float(rates[first, ahead])
    if not rate > 0:
        return NEVER
    with_one = told[ahead + 1] - rate * spent[0, ahead]
    without = told[first] - rate * began[first, ahead]
    stay, begin = stays[0, ahead], begins[first, 0]
    worth = float((with_one - without) / max(1e-9, 1 - stay + begin))
    return Overlapped(rate, int(ahead) + 2, int(first), max(0.0, worth))


def break_even(times: Sequence[float], step: float, most: int = FAR) -> float | None:
    """The least share of right tokens with which working ahead beats plain decoding.

    Between 0 and 1, in hundredths; None: no share is enough.

    >>> break_even([1.0] * 9, 0.6), break_even([1.0] * 9, 2.0)
    (0.51, None)
    """
    plain = 1 / times[0]
    shares = (share / 100 for share in range(101))
    found = (s for s in shares if overlapped(s, times, step, most).rate > plain)
    return next(found, None)
