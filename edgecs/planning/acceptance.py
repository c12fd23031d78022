"""Acceptance probabilities of drafted tokens, learned online from every round.

An `Acceptance` is a logistic model: the log-odds of a token's buckets add up. It
gives the probability of a token given that the tokens before it in the draft are right.
It learns from every proposal, verified or not, because the true continuation is known a
few tokens later.

Each answer works on a copy that learns fast and is discarded afterwards, so that one
unusual prompt does not affect the next. The persistent weights learn slowly.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.drafters.copies import DEPTH, DEPTHS, bucket_count
from edgecs.drafters.priors import packaged
from edgecs.drafters.source import LOOKED_AT, Weighed

Evidence = Sequence[Sequence[int]]
"""The buckets that each token falls into, [tokens][buckets of one token].

Plain lists are used here and wherever a round needs few numbers: after a call of the
target the CPU caches are cold, and a numpy call takes longer than a short loop.
"""

# chosen: eighty times as many as Max-Gram has.
MOST_BUCKETS = 4096  # buckets of a source; a profile with more is rejected
# chosen: it turns a probability of 60 % into 50 %.
DOUBT = 0.4  # log-odds subtracted: answers vary, and overestimates are acted on
# chosen: the weights of an answer learn ten times as fast as the persistent ones.
SLOW, FAST = 0.004, 0.04  # learning rates: persistent weights, weights of an answer
# chosen: about 1 % of probability at a probability of 50 %.
MOST_AN_ANSWER = 0.05  # log-odds by which one answer may move a persistent weight
# chosen: sums of them stay far below 709, where exp overflows.
_HUGE = 50.0  # largest log-odds that are accepted; learned ones are far smaller

# chosen: finer towards 1, which decides about long drafts.
_STATED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


_AGREEING = bucket_count(_STATED) + bucket_count(DEPTHS)
STATED = _AGREEING + 3
"""Buckets of a token whose drafter states a probability."""


def stated(
    confidences: Sequence[float], agreeing: Sequence[bool | None], first: int = 0
) -> Evidence:
    """Buckets of tokens whose drafter states a probability.

    agreeing: whether Max-Gram proposes the same token, None: it proposes none. first:
    number of tokens before these in the draft.
    """
    return [
        [
            bisect_right(_STATED, p),
            bucket_count(_STATED) + DEPTH[min(first + i, 63)],
            _AGREEING + (0 if same is None else 1 + same),
        ]
        for i, (p, same) in enumerate(zip(confidences, agreeing, strict=True))
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


class Acceptance:
    """Probability that tokens of one source are right, from their buckets.

    weights: initial log-odds of every bucket (the prior), float64 [buckets].
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._kept: list[float] = weights.tolist()
        self._now = self._kept.copy()  # weights of the current answer
        self._before = weights.copy()  # persistent weights when it began

    @property
    def kept(self) -> NDArray[np.float64]:
        """The persistent log-odds, learned over all answers."""
        return np.array(self._kept)

    def begin(self) -> None:
        """Start a new answer: drop the fast weights of the last one.

        Its change to the persistent weights is limited to MOST_AN_ANSWER.
        """
        least, most = self._before - MOST_AN_ANSWER, self._before + MOST_AN_ANSWER
        self._before = np.clip(self.kept, least, most)
        self._kept = self._before.tolist()
        self._now = self._kept.copy()

    def odds(self, buckets: Sequence[int], doubt: float = DOUBT) -> float:
        """Probability of a token given that those before it are right."""
        now = self._now
        return _sigmoid(sum([now[bucket] for bucket in buckets]) - doubt)

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        """Learn from a draft whose first `right` tokens were right.

        decided: the token after these was wrong; if False, it is not known.
        """
        for row in range(min(right + decided, LOOKED_AT, len(evidence))):
            self._step(evidence[row], row < right)

    def _step(self, buckets: Sequence[int], right: bool) -> None:
        for weights, rate in ((self._kept, SLOW), (self._now, FAST)):
            sure = _sigmoid(sum([weights[bucket] for bucket in buckets]))
            step = rate * (right - sure)
            for bucket in buckets:
                weights[bucket] += step


class Calibration:
    """The acceptance models of one target, for sources and neural drafters by name.

    >>> from edgecs.drafters.copies import Copy, copied
    >>> from edgecs.drafters.maxgram import MaxGram
    >>> copies = Calibration().source(MaxGram())
    >>> alike = Copy(8, [((True, 3, 3),) * 3])
    >>> alone = Copy(1, [((True, 1, 1), None, None)])
    >>> odds = [copies.odds(next(copied(copy))) for copy in (alike, alone)]
    >>> odds[0] > 0.6 > 0.4 > odds[1]
    True
    """

    def __init__(self) -> None:
        self._stated = _weights(packaged()["stated"], STATED)
        self._sources: dict[str, Acceptance] = {}
        self._drafters: dict[str, Acceptance] = {}

    def source(self, source: Weighed) -> Acceptance:
        """The acceptance of a source; a new source starts from its prior."""
        known = self._sources.get(source.name)
        if known is None or known.kept.size != source.buckets:
            weights = _weights(source.prior, source.buckets)
            known = self._sources[source.name] = Acceptance(weights)
        return known

    def drafter(self, name: str) -> Acceptance:
        """The acceptance of a drafter that states probabilities."""
        if name not in self._drafters:
            self._drafters[name] = Acceptance(self._stated)
        return self._drafters[name]

    def begin(self) -> None:
        """Start a new answer."""
        for acceptance in (*self._sources.values(), *self._drafters.values()):
            acceptance.begin()

    def state(self) -> dict[str, Any]:
        """The persistent weights, for `from_state`."""
        return {
            "sources": {n: a.kept.round(4).tolist() for n, a in self._sources.items()},
            "stated": {n: a.kept.round(4).tolist() for n, a in self._drafters.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """Restore `state`; raises ValueError, KeyError or TypeError for other data."""
        calibration = cls()
        for name, weights in dict(state["sources"]).items():
            if len(weights) > MOST_BUCKETS:
                raise ValueError(f"at most {MOST_BUCKETS} log-odds are expected")
            acceptance = Acceptance(_weights(weights, len(weights)))
            calibration._sources[name] = acceptance
        for name, weights in dict(state["stated"]).items():
            calibration._drafters[name] = Acceptance(_weights(weights, STATED))
        return calibration


def _weights(values: Any, size: int) -> NDArray[np.float64]:
    try:
        weights = np.array(values, dtype=np.float64)
    except OverflowError as error:  # JSON has integers of any size
        raise ValueError(f"a log-odds value is too large: {error}") from error
    # Written so that NaN is rejected too.
    if weights.shape != (size,) or not (np.abs(weights) <= _HUGE).all():
        raise ValueError(f"expected {size} log-odds of at most {_HUGE}")
    return weights
