"""How long a call takes: measured, and updated by every round that is run.

The time of one call over n new tokens is not a smooth function of n: kernels work in
tiles, so eight tokens can be cheaper than four. Times are therefore not interpolated
between widths: a width is treated as infinitely expensive until measured, and its
tokens fit into the next wider call that was measured.

A call that is wider than the one before it also slows down the next ones, because
engines rebuild their compute graph when its shape changes: *settling*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.costs.depth_cost import Growth

# chosen: longer drafts are hardly ever accepted completely.
WIDEST = 32  # widths that are considered: 1 to WIDEST tokens in a call

# chosen: the narrow ones, then steps of at most a third that include tile sizes.
TRYING = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)  # widths worth trying
# chosen: the fastest of three is seldom an outlier.
YOUNG = 3  # the time of a width with fewer rounds may be an outlier
# measured: two calls take longer (docs/concepts.md, *settling*).
SETTLED = 2  # calls of one token that a wider call slows down
# chosen: a median of seven calls is worth about twice as many rounds.
_TUNED = 16  # weight of a careful measurement, in rounds
# chosen: a hiccup, however long, counts as a fifth.
_CLIP = 0.2  # largest log-ratio that one round contributes: about 20 %
# chosen: a new pace is followed within a few rounds.
_COMMON = 0.25  # weight of a round in the pace of the machine, common to all widths
# chosen: about the last 50 rounds count.
_OWN = 0.02  # least weight of a round in its own width's time
# chosen: the slope of the flattest curve of llama.cpp's kernels (docs/speed.md, calls).
_HOPED = 0.12  # optimistic cost of one more token, as a share of a single call
# chosen: with 0, two thirds of wider calls repeated widths that had just been timed.
_LEAST_OF = (0.0, 0.6, 0.8)  # [rounds] optimistic share of a young width's time
# chosen: about the last 20 calls count.
_SETTLING = 0.05  # least weight of a call in the settling time
# chosen: a quarter of the step in which llama.cpp's calls grow, in cells.
_BUCKET = 64  # depths in one bucket share a `least_more`
# chosen: four times what was measured (docs/concepts.md, *settling*).
_MOST_SETTLING = 1.0  # limit of one settling observation, in single calls


class Choice(NamedTuple):
    """The best width for a draft, and its expected tokens per second."""

    width: int
    rate: float


def best_width(
    path: Sequence[float], times: Sequence[float], margin: float = 0.0
) -> Choice:
    """The width with the most expected tokens per second.

    path: [tokens] probability that the draft is right up to each token. times: [widths]
    seconds, inf for an unavailable width. margin: relative gain over width 1 that a
    wider call must be expected to have.

    >>> times = [1.0, 1.8, 2.4, 1.9]  # a tile of four
    >>> best_width([0.7, 0.6, 0.5], times).width
    4
    """
    plain = 1 / times[0]
    best, width, emitted = plain * (1 + margin), 1, 1.0
    for n, (more, seconds) in enumerate(zip(path, times[1:], strict=False), 2):
        emitted += more
        if emitted > best * seconds:
            best, width = emitted / seconds, n
    return Choice(width, best if width > 1 else plain)


def shared_times(times: Sequence[float], together: int) -> list[float]:
    """Seconds of a joint call for each of its requests, by the width of a request.

    times: seconds of a call by number of tokens, [n - 1], inf if unknown; an unknown
    number is computed as the next larger one that is known. All requests are equally
    wide, and each is charged the same share. inf: no known call is that wide.

    >>> shared_times([1.0, 1.2, math.inf, 1.6], 2)
    [0.6, 0.8, inf, inf]
    """
    fitting, least = [math.inf] * len(times), math.inf
    for i in reversed(range(len(times))):
        least = fitting[i] = min(least, times[i])
    count = len(times) // together
    found = [fitting[together * n - 1] / together for n in range(1, count + 1)]
    return [*found, *[math.inf] * (len(times) - count)]


class CostModel:
    """Seconds of one call by width (tokens in it) and depth (tokens in the cache).

    `base` is the curve near the start of a context, `growth` is the time that depth
    adds to it. Rounds update the base; the effect of one round is bounded because of
    outliers. Targets and drafters use the same model: a drafter's step is a call of
    width 1, its review of k tokens a call of width k + 1.

    >>> costs = CostModel()
    >>> costs.measured(0, {1: 0.010, 4: 0.015})
    >>> costs.seconds(0)[:5].round(3).tolist()
    [0.01, inf, inf, 0.015, inf]
    """

    def __init__(self) -> None:
        self._base = [math.inf] * WIDEST  # [width - 1] seconds
        self._rounds = [0] * WIDEST  # [width - 1] rounds that were timed
        self._growth = Growth(WIDEST)
        self._pace = 0.0  # log of the current slowdown over the measured times
        self._settling = [0.0] * SETTLED  # extra seconds of each call after a wider one
        self._settlings = [0] * SETTLED  # calls observed for each
        # `least_more` by bucket of depths and `settles`.
        self._least: dict[tuple[int, bool], float] = {}

    def measured(self, depth: int, seconds: Mapping[int, float]) -> None:
        """Record careful measurements at one depth, the smallest depth first.

        The first depth defines the base curve, unless rounds already have; later ones
        define the time that depth adds.
        """
        widths = [n for n in sorted(seconds) if n <= WIDEST]
        if not self.known:
            for n in widths:
                self._base[n - 1] = seconds[n]
                self._rounds[n - 1] = _TUNED
            self._growth.measured(depth, dict.fromkeys(widths, 0.0))
        else:
            pace, known = self.pace, [n for n in widths if self._base[n - 1] < math.inf]
            more = {n: seconds[n] / pace - self._base[n - 1] for n in known}
            self._growth.measured(depth, more)
        self._least.clear()

    @property
    def known(self) -> bool:
        """Whether the time of a single token is known."""
        return math.isfinite(self._base[0])

    @property
    def knows_depth(self) -> bool:
        """Whether the time that depth adds was measured."""
        return self._growth.known

    @property
    def pace(self) -> float:
        """Current over measured time of a call; above 1 the machine became slower."""
        return math.exp(self._pace)

    @property
    def rounds(self) -> NDArray[np.int64]:
        """Number of timed rounds of each width, int64 [WIDEST]."""
        return np.array(self._rounds)

    @property
    def settling(self) -> float:
        """Extra seconds of the calls of one token after a wider call, in total."""
        return max(0.0, sum(self._settling))

    def is_young(self, width: int) -> bool:
        """Whether a width had fewer than YOUNG rounds."""
        return self._rounds[width - 1] < YOUNG

    def distrust(self) -> None:
        """Give the measurements little weight, as the machine was busy."""
        self._rounds = [min(rounds, 1) for rounds in self._rounds]

    def times(self, depth: int, most: int = WIDEST) -> list[float]:
        """Seconds by width at a depth, [most], [n - 1] for n tokens; inf: not known."""
        pace, few = self.pace, self._base[:most]
        return [
            (base + more) * pace
            for base, more in zip(few, self._growth.at(depth), strict=False)
        ]

    def single(self, depth: int) -> float:
        """Seconds of a call of one token at a depth, `times(depth, 1)[0]`."""
        return (self._base[0] + self._growth.at(depth)[0]) * self.pace

    def seconds(self, depth: int) -> NDArray[np.float64]:
        """The same as `times`, as an array, float64 [WIDEST]."""
        return np.array(self.times(depth))

    def hoped(self, depth: int) -> list[float]:
        """Optimistic seconds by width at a depth, [WIDEST], [n - 1] for n tokens.

        A width with few rounds may be somewhat faster than measured. For an untried
        width, each token more is assumed to cost a small share of a single call, or the
        average slope up to the widest known width, if that is less. The time that depth
        adds is not reduced.
        """
        single, grown, pace = self._base[0], self._growth.at(depth), self.pace
        widest = max(n for n, base in enumerate(self._base, 1) if base < math.inf)
        more = _HOPED * single
        if widest > 1:
            slope = (self._base[widest - 1] - single) / (widest - 1)
            more = min(more, max(0.0, slope))
        hoped = []
        for at, (base, rounds) in enumerate(zip(self._base, self._rounds, strict=True)):
            if not rounds and at:
                base = min(base, single + more * at)
            elif rounds < YOUNG and at:
                base = min(base, max(_LEAST_OF[rounds] * base, single + more * at))
            hoped.append((base + grown[at]) * pace)
        return hoped

    def least_more(self, depth: int, *, settles: bool = False) -> float:
        """Least cost of one more token, as a share of the time of a single call.

        A draft whose first token is less likely cannot pay. While a width of TRYING is
        young, the times are those of `hoped`. settles: include `settling`. The
        value is recomputed after a wider call, and as the context grows.
        """
        key = depth // _BUCKET, settles
        least = self._least.get(key)
        if least is None:
            young = any(map(self.is_young, TRYING))
            single, *wider = self.hoped(depth) if young else self.times(depth)
            once = self.settling if settles else 0.0
            more = (((s + once) / single - 1) / n for n, s in enumerate(wider, 1))
            least = self._least[key] = min(more)
        return least

    def observe(
        self, width: int, depth: int, seconds: float, after: int = SETTLED
    ) -> None:
        """Update the times from one call.

        The fastest of the first YOUNG rounds of a width counts: noise only adds time.
        after: calls of one token since a wider one.
        """
        if not (1 <= width <= WIDEST and seconds > 0):
            return
        at, rounds = width - 1, self._rounds[width - 1]
        grown = self._growth.at(depth)[at]
        if rounds < YOUNG:
            least = 0.2 * seconds  # the growth may be overestimated
            alone = max(seconds / self.pace - grown, least)
            self._base[at] = min(self._base[at], alone)
        else:
            expected = (self._base[at] + grown) * self.pace
            if width == 1 and after < SETTLED:
                self._settle(after, seconds - expected, _MOST_SETTLING * expected)
                return
            said = math.log(seconds / expected)
            said = max(-_CLIP, min(_CLIP, said))
            self._pace += _COMMON * said
            self._base[at] *= math.exp(max(_OWN, 1 / (rounds + 2)) * said)
        self._rounds[at] += 1
        if width > 1:
            self._least.clear()

    def _settle(self, after: int, slower: float, most: float) -> None:
        """Update settling from the extra seconds of a call after a wider one."""
        slower = max(-most, min(most, slower))
        self._settlings[after] += 1
        weight = max(_SETTLING, 1 / self._settlings[after])
        self._settling[after] += weight * (slower - self._settling[after])
        self._least.clear()

    def state(self) -> dict[str, Any]:
        """The state for `from_state`; the pace is multiplied into the curve."""
        pace = math.exp(self._pace)
        tried = [i for i, seconds in enumerate(self._base) if math.isfinite(seconds)]
        return {
            "seconds": {str(i + 1): self._base[i] * pace for i in tried},
            "rounds": {str(i + 1): self._rounds[i] for i in tried},
            "growth": self._growth.state(pace),
            "settling": self._settling.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CostModel:
        """Restore `state`; raises ValueError, KeyError or TypeError for other data.

        The weight of rounds is limited, as the machine may have changed.
        """
        model = cls()
        try:
            for name, seconds in dict(state["seconds"]).items():
                width, rounds = int(name), int(state["rounds"][name])
                if not (1 <= width <= WIDEST and 0 < float(seconds) < math.inf):
                    raise ValueError(f"width {name} takes {seconds} seconds")
                if rounds < 0:
                    raise ValueError(f"width {name} had {rounds} rounds")
                model._base[width - 1] = float(seconds)
                model._rounds[width - 1] = min(rounds, _TUNED)
            model._growth = Growth.from_state(state["growth"], WIDEST)
            model._settling = [float(seconds) for seconds in state["settling"]]
            if not (
                len(model._settling) == SETTLED
                and all(map(math.isfinite, model._settling))
            ):
                raise ValueError(f"settling takes {model._settling} seconds")
            model._settlings = [_TUNED] * SETTLED
        except OverflowError as error:  # JSON has integers of any size
            raise ValueError(f"a number is too large: {error}") from error
        return model
