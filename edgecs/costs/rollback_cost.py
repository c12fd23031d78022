"""The cost of a rejected draft whose cells have to be computed again.

Most models remove the cells of rejected tokens at no cost. Where a layer has one state
for all tokens, the state before the draft is restored, and the tokens from there up to
the rejected one are computed again: in the next call if that has no draft, else in a
call of their own. The time of saving the state is a part of the call that verifies the
draft, so that the call's measured time contains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgecs.costs.cost_model import CostModel

# chosen: what is usual for drafters that pay (docs/speed.md).
_USUAL = 0.7  # probability that one more token is right, where that is not known


def _never() -> float:
    """The time of a restore that never takes place."""
    return 0.0


class RollbackCost:
    """Times of rounds of a target.

    removable: last tokens of a draft that can be removed at no cost; None: any number.
    restoring: returns the seconds of restoring a state.

    >>> costs = CostModel()
    >>> costs.measured(0, {1: 1.0, 2: 1.5, 3: 2.0})
    >>> cost = RollbackCost(costs, removable=0)
    >>> cost.rejected(0, [0.5, 0.5], 3)
    [0.0, 0.25, 0.25]
    >>> cost.learn(drafted=2, accepted=0)
    >>> cost.times(0, 3)
    [1.5, 2.5, 3.0]
    """

    def __init__(
        self,
        costs: CostModel,
        removable: int | None = None,
        restoring: Callable[[], float] = _never,
    ) -> None:
        self._costs, self._removable = costs, removable
        self._restoring = restoring
        self.behind = 0  # tokens that have to be computed again before the next draft

    @property
    def applies(self) -> bool:
        """Whether a rejected draft can cost anything."""
        return self._removable is not None

    def learn(self, drafted: int, accepted: int) -> None:
        """Called once per round: how much of its draft was accepted."""
        self.behind = 1 + accepted if self.loses(drafted, accepted) else 0

    def loses(self, drafted: int, accepted: int) -> bool:
        """Whether cells of such a draft have to be computed again."""
        return self._removable is not None and drafted - accepted > self._removable

    def times(self, depth: int, size: int) -> list[float]:
        """Seconds by width of the next call or calls, [size]; inf: not known."""
        if not self.behind:
            return self._costs.times(depth, size)
        _, *wider = self._costs.times(depth, size)
        again = self._seconds(depth, self.behind) + self._restoring()
        together = self._seconds(depth, self.behind + 1) + self._restoring()
        return [together, *(again + seconds for seconds in wider)]

    def rejected(self, depth: int, path: Sequence[float], size: int) -> list[float]:
        """Expected seconds that a rejection adds to later rounds, by width, [size].

        path: probability that the draft is right up to each token.
        """
        if self._removable is None:
            return [0.0] * size
        (single,) = self._costs.times(depth, 1)
        right = [1.0, *path[: size - 1]]
        while len(right) < size:
            right.append(right[-1] * _USUAL)
        more = [
            self._seconds(depth, accepted + 2) - single + self._restoring()
            for accepted in range(size - 1)
        ]
        lost, found = 0.0, [0.0] * min(size, 1 + self._removable)
        for accepted in range(size - len(found)):  # of drafts that lose the rest
            ends_here = right[accepted] - right[accepted + 1]
            lost += ends_here * max(0.0, more[accepted])
            found.append(lost)
        return found

    def _seconds(self, depth: int, tokens: int) -> float:
        """Seconds of a call of at least so many tokens; more than known: in proportion.

        Tokens of a width that was not measured fit into the next wider call.
        """
        times = self._costs.times(depth)
        fitting = [seconds for seconds in times[tokens - 1 :] if seconds < math.inf]
        if fitting:
            return fitting[0]
        known = max(n for n, seconds in enumerate(times, 1) if seconds < math.inf)
        return times[known - 1] * tokens / known
