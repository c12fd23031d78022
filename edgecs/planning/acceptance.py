"""How likely a drafted token is right, learnt from every round.

An `Acceptance` is a logistic model over a few buckets: what speaks for a token adds up
in log-odds. It gives the probability of a token given that the tokens before it in the
draft are right. It learns from what proposals would have earned, verified or not: the
true continuation is known a few tokens later.

For every answer there is a copy that learns fast and is thrown away, so that one odd
prompt does not spoil the next; what is kept learns slowly.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.drafters.maxgram import GRAM, LONGEST, Copy, Opinion

Evidence = Sequence[Sequence[int]]
"""Which buckets a token falls into, [tokens][buckets of one token].

Lists of numbers, here and wherever a round needs few of them: the caches are cold when
the target has been called, and then a call into numpy takes longer than a short loop.
"""

LOOKED_AT = 8  # tokens of a draft with opinions of their own; later ones go with these
DOUBT = 0.4  # log-odds: answers differ, and errors that promise are acted on
SLOW, FAST = 0.004, 0.04  # learning rates: of what is kept, of what an answer has
MOST_AN_ANSWER = 0.05  # log-odds that one answer may move what is kept of a bucket
_HUGE = 50.0  # log-odds that nobody learns, and whose sums have an exponential

_LENGTHS = (2, 3, 4, 5, 6, 7, 9, 12, 17, 25)  # tokens of the match
_DEPTHS = (1, 2, 3, 4, 8)  # tokens before it in the draft
_RUNS = (2, 3, 5)
_TIMES = (2, 4, 8, 20)
_STATED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def _buckets(edges: Sequence[float]) -> int:
    return len(edges) + 1


_LENGTH = [bisect_right(_LENGTHS, n) for n in range(2 * LONGEST + 64)]
_DEPTH = [bisect_right(_DEPTHS, n) for n in range(64)]
_SAID = 2 + _buckets(_RUNS)  # no opinion, another opinion, the same opinion by run
_OPINION = _SAID + _buckets(_TIMES)  # columns of one gram length
_OPINIONS_FROM = _buckets(_LENGTHS) + _buckets(_DEPTHS)
COPIED = _OPINIONS_FROM + GRAM * _OPINION
"""Buckets of a token that Max-Gram copied."""

_AGREEING = _buckets(_STATED) + _buckets(_DEPTHS)
STATED = _AGREEING + 3
"""Buckets of a token whose drafter states a probability."""


# Columns of an opinion by gram length: [n - 1][0: another token, else run], [times].
_MOST = 31  # runs and times are not told apart beyond this
_AGREES = [
    [
        _OPINIONS_FROM + n * _OPINION + (2 + bisect_right(_RUNS, run) if run else 1)
        for run in range(_MOST + 1)
    ]
    for n in range(GRAM)
]
_OFTEN = [
    [
        _OPINIONS_FROM + n * _OPINION + _SAID + bisect_right(_TIMES, times)
        for times in range(_MOST + 1)
    ]
    for n in range(GRAM)
]
_SILENT = [
    [_OPINIONS_FROM + n * _OPINION, _OPINIONS_FROM + n * _OPINION + _SAID]
    for n in range(GRAM)
]


def copied(evidence: Copy, size: int) -> Iterator[list[int]]:
    """Buckets of `size` tokens of a copy: match length, depth, shorter grams."""
    opinions, matched, said = iter(evidence.opinions), evidence.length, [0] * (2 * GRAM)
    for depth in range(size):
        if (known := next(opinions, None)) is not None:
            said = _opinions(known)
        length = _LENGTH[min(matched + depth, LONGEST)] if matched else 0
        yield [length, _buckets(_LENGTHS) + _DEPTH[depth], *said]


def _opinions(opinions: Sequence[Opinion | None]) -> list[int]:
    columns: list[int] = []
    for n, opinion in enumerate(opinions):
        if opinion is None:
            columns += _SILENT[n]
            continue
        agrees, run, times = opinion
        run = (run if run < _MOST else _MOST) if agrees else 0
        columns.append(_AGREES[n][run])
        columns.append(_OFTEN[n][times if times < _MOST else _MOST])
    return columns


def stated(
    confidences: Sequence[float], agreeing: Sequence[bool | None], first: int = 0
) -> Evidence:
    """Buckets of tokens whose drafter states a probability.

    agreeing: whether Max-Gram says the same, None: it says nothing. first: tokens
    before these in the draft.
    """
    return [
        [
            bisect_right(_STATED, p),
            _buckets(_STATED) + _DEPTH[min(first + i, 63)],
            _AGREEING + (0 if same is None else 1 + same),
        ]
        for i, (p, same) in enumerate(zip(confidences, agreeing, strict=True))
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


class Acceptance:
    """Probability that tokens of one source are right, from their buckets.

    weights: log-odds of every bucket, float64 [buckets]; a prior that learning starts
    from.
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._kept: list[float] = weights.tolist()
        self._now = self._kept.copy()  # of the answer under way
        self._before = weights.copy()  # what was kept when it began

    @property
    def kept(self) -> NDArray[np.float64]:
        """The log-odds over all answers."""
        return np.array(self._kept)

    def begin(self) -> None:
        """A new answer: what the last one taught fast is forgotten.

        What it taught slowly is kept as far as one answer may.
        """
        least, most = self._before - MOST_AN_ANSWER, self._before + MOST_AN_ANSWER
        self._before = np.clip(self.kept, least, most)
        self._kept = self._before.tolist()
        self._now = self._kept.copy()

    def odds(self, buckets: Sequence[int]) -> float:
        """Probability of a token given that those before it are right."""
        now = self._now
        return _sigmoid(sum([now[bucket] for bucket in buckets]) - DOUBT)

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        """Takes what came of a draft: its first `right` tokens were right.

        decided: the token after these was wrong; else what followed is not known.
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
    """The acceptances of one target: by copies of Max-Gram, and by drafter name.

    >>> calibration = Calibration()
    >>> alike = Copy(8, [((True, 3, 3),) * 3])
    >>> alone = Copy(1, [((True, 1, 1), None, None)])
    >>> odds = [calibration.copies.odds(*copied(c, 1)) for c in (alike, alone)]
    >>> odds[0] > 0.6 > 0.4 > odds[1]
    True
    """

    def __init__(self) -> None:
        prior = _prior()
        self.copies = Acceptance(prior["copied"])
        self._stated = prior["stated"]
        self._drafters: dict[str, Acceptance] = {}

    def drafter(self, name: str) -> Acceptance:
        """The acceptance of a drafter that states probabilities."""
        if name not in self._drafters:
            self._drafters[name] = Acceptance(self._stated)
        return self._drafters[name]

    def begin(self) -> None:
        """A new answer."""
        for acceptance in (self.copies, *self._drafters.values()):
            acceptance.begin()

    def state(self) -> dict[str, Any]:
        """What is kept, for `from_state`."""
        return {
            "copied": self.copies.kept.round(4).tolist(),
            "stated": {n: a.kept.round(4).tolist() for n, a in self._drafters.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """What `state` gave; ValueError, KeyError or TypeError for other data."""
        calibration = cls()
        calibration.copies = Acceptance(_weights(state["copied"], COPIED))
        for name, weights in dict(state["stated"]).items():
            calibration._drafters[name] = Acceptance(_weights(weights, STATED))
        return calibration


def _weights(values: Any, size: int) -> NDArray[np.float64]:
    try:
        weights = np.array(values, dtype=np.float64)
    except OverflowError as error:  # JSON has integers of any size
        raise ValueError(f"no number for a machine: {error}") from error
    # Written so that NaN is refused too.
    if weights.shape != (size,) or not (np.abs(weights) <= _HUGE).all():
        raise ValueError(f"{size} log-odds are needed")
    return weights


def _prior() -> dict[str, NDArray[np.float64]]:
    """The log-odds that every target starts from.

    Made by `python -m edgecs_bench.prior` from traces of other models.
    """
    text = (
        resources.files("edgecs.planning")
        .joinpath("prior.json")
        .read_text(encoding="utf-8")
    )
    fields = json.loads(text)
    return {
        "copied": _weights(fields["copied"], COPIED),
        "stated": _weights(fields["stated"], STATED),
    }
