"""Drafts from phrases of the target, the least local of all stores."""

from __future__ import annotations

from collections.abc import Sequence

from edgecs.drafters.recalled import Recalled

# From `edgecs_bench.memory.prior`, on the tuning scenarios: nothing is proposed beside
# it, another token, the same.
_OF_AGREEMENT = (-0.5, -2.1, 2.5)


class Phrased(Recalled):
    """Recalls phrases that the target says in any conversation.

    They are looked up in answers that have nothing to do with the conversation, so a
    proposal is right less often, and what other sources propose tells more about it.
    """

    prior: Sequence[float] = (*Recalled.prior[:-3], *_OF_AGREEMENT)
