"""When a planner looks away, because looking costs more than it finds.

A decision takes some 0.1 ms, nothing beside a call of 40 ms but 2 % of one of 4. So
where a target is that fast and nothing was worth a draft for LOOKS rounds, rounds are
plain for a while, and for a longer while each time that nothing is found again.
"""

from __future__ import annotations

LOOKS = 16  # rounds without a draft before it looks away
FIRST, LONGEST = 16, 64  # rounds that it then looks away
WORTH = 0.01  # of a single call's time: thoughts that take less are free


class Rest:
    """Counts rounds; begins awake."""

    def __init__(self) -> None:
        self.wake()

    def wake(self) -> None:
        """A new answer, which may be another kind of text."""
        self._looked = self._left = 0
        self._length = FIRST

    def sleeps(self) -> bool:
        """Whether this round is one of those without a thought."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def looked(self, found: bool, thought: float, single: float) -> None:
        """What came of a round's thought.

        found: whether something was worth a draft. thought, single: seconds that it
        took, and those of a call with one token.
        """
        if found:
            self._looked, self._length = 0, FIRST
            return
        self._looked += 1
        if self._looked >= LOOKS and thought > WORTH * single:
            self._looked, self._left = 0, self._length
            self._length = min(2 * self._length, LONGEST)
