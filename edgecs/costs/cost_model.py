"""How long a call takes: measured, and corrected by every round that is run.

The time of one call over n new tokens is no smooth function of n: kernels work in
tiles, so eight tokens can be cheaper than four. Nothing is interpolated between widths
for that reason: a width that was never tried costs infinitely much, and its tokens fit
into the next wider call that was tried.

A call that is wider than the one before it also slows down the next ones, as engines
build their graph of operations anew when its shape changes: *settling*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.costs.depth_cost import Growth

# chosen: longer drafts are hardly ever right to their end.
WIDEST = 32  # widths that are considered: 1 to WIDEST tokens in a call

# chosen: the narrow ones, then steps of a third at most, ends of tiles among them.
TRYING = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)  # widths worth trying
# chosen: the fastest of three is seldom an outlier.
YOUNG = 3  # a width with fewer rounds may have been judged by an outlier
# measured: two calls take longer (docs/concepts.md, *settling*).
SETTLED = 2  # calls of one token after a wider one; those that follow are as usual
# chosen: a median of seven calls is worth about twice as many rounds.
_TUNED = 16  # rounds that a careful measurement counts for
# chosen: a hiccup, however long, counts as a fifth.
_CLIP = 0.2  # largest log-ratio that one round can say: about 20 %
# chosen: a new pace is followed within a few rounds.
_COMMON = 0.25  # weight of a round in what all widths share (the machine's pace)
# chosen: about the last 50 rounds count.
_OWN = 0.02  # least weight of a round in its own width's time
# chosen: what the flattest curve of llama.cpp's kernels has (docs/speed.md, calls).
_HOPED = 0.12  # of a single call's time: least that one token more is taken to cost
# chosen: at 0 two thirds of wider calls were tries of what had just been timed.
_LEAST_OF = (0.0, 0.6, 0.8)  # of a young width's time by its rounds: least hoped for
# chosen: about the last 20 calls count.
_SETTLING = 0.05  # least weight of a call in what settling takes
# chosen: a quarter of the cells in which llama.cpp's calls grow.
_BUCKET = 64  # depths in one bucket share what a token more costs
# chosen: four times what was seen (docs/concepts.md, *settling*).
_MOST_SETTLING = 1.0  # of a single call's time: most that one call can say of it


class Choice(NamedTuple):
    """The best width for a draft, and the tokens a second that it promises."""

    width: int
    rate: float


def best_width(
    path: Sequence[float], times: Sequence[float], margin: float = 0.0
) -> Choice:
    """The width with the most expected tokens a second.

    path: [tokens] probability that the draft is right up to each. times: [widths]
    seconds, inf where a width is not to be had. margin: share by which a width must
    promise more than width 1.

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


class CostModel:
    """Seconds of one call by width (tokens in it) and depth (tokens in the cache).

    `base` is the curve near the start of a context, `growth` what depth adds to it.
    Rounds correct the base; what a round can say is bounded, so that an outlier cannot
    spoil it. One model for a target or for a drafter, whose step is a call of width 1
    and whose review of k tokens is one of width k + 1.

    >>> costs = CostModel()
    >>> costs.measured(0, {1: 0.010, 4: 0.015})
    >>> costs.seconds(0)[:5].round(3).tolist()
    [0.01, inf, inf, 0.015, inf]
    """

    def __init__(self) -> None:
        self._base = [math.inf] * WIDEST  # [width - 1] seconds
        self._rounds = [0] * WIDEST  # [width - 1] that were timed
        self._growth = Growth(WIDEST)
        self._pace = 0.0  # log of how much slower everything is than when measured
        self._settling = [0.0] * SETTLED  # seconds of each call after a wider one
        self._settlings = [0] * SETTLED  # calls that said so
        # By bucket of depths and whether a wider call has to settle: `least_more`.
        self._least: dict[tuple[int, bool], float] = {}

    def measured(self, depth: int, seconds: Mapping[int, float]) -> None:
        """Takes over careful measurements at one depth, the smallest depth first.

        The first depth gives the curve, unless rounds have already; a later one gives
        what depth adds.
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
        """Whether it was measured what depth adds."""
        return self._growth.known

    @property
    def pace(self) -> float:
        """Time of a call over what was measured for it; above 1 the machine slowed."""
        return math.exp(self._pace)

    @property
    def rounds(self) -> NDArray[np.int64]:
        """How many rounds of each width were timed, int64 [WIDEST]."""
        return np.array(self._rounds)

    @property
    def settling(self) -> float:
        """Seconds by which a wider call slows down the calls of one token after it."""
        return max(0.0, sum(self._settling))

    def is_young(self, width: int) -> bool:
        """Whether a width had few rounds or none."""
        return self._rounds[width - 1] < YOUNG

    def distrust(self) -> None:
        """What was measured is soon corrected by rounds: the machine was busy."""
        self._rounds = [min(rounds, 1) for rounds in self._rounds]

    def times(self, depth: int, most: int = WIDEST) -> list[float]:
        """Seconds by width at a depth, [most], [n - 1] for n tokens; inf: not tried."""
        pace, few = self.pace, self._base[:most]
        return [
            (base + more) * pace
            for base, more in zip(few, self._growth.at(depth), strict=False)
        ]

    def seconds(self, depth: int) -> NDArray[np.float64]:
        """The same as an array, float64 [WIDEST]."""
        return np.array(self.times(depth))

    def hoped(self, depth: int) -> list[float]:
        """Seconds by width at a depth at best, [WIDEST], [n - 1] for n tokens.

        A width that had few rounds may be faster than these were, in part; one that had
        none is taken to cost little more than a single token, no more than on average
        up to the widest that is known, where that is even less. What depth adds is no
        hope.
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
        """What a token more costs at best, as a share of the time of a single one.

        No draft pays whose first token is right less often. Widths worth TRYING that
        had few rounds count as `hoped`. settles: `settling` is to be paid. It is
        worked out anew after a wider call, and as the context grows.
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
        """Learns from one call.

        The first YOUNG rounds of a width keep their fastest: noise only adds time.
        after: calls of one token since a wider one.
        """
        if not (1 <= width <= WIDEST and seconds > 0):
            return
        at, rounds = width - 1, self._rounds[width - 1]
        grown = self._growth.at(depth)[at]
        if rounds < YOUNG:
            least = 0.2 * seconds  # whatever the growth was thought to be
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
        """Learns what one call after a wider one took more than usual, seconds."""
        slower = max(-most, min(most, slower))
        self._settlings[after] += 1
        weight = max(_SETTLING, 1 / self._settlings[after])
        self._settling[after] += weight * (slower - self._settling[after])
        self._least.clear()

    def state(self) -> dict[str, Any]:
        """What is kept of it, for `from_state`; the pace goes into the curve."""
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
        """What `state` gave; raises ValueError, KeyError or TypeError for other data.

        Rounds count for less than when they were run: the machine may have changed.
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
            raise ValueError(f"no number for a machine: {error}") from error
        return model
