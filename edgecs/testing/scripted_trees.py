"""A drafter of trees around a given text, for tests and audits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import NOTHING, Choose, Draft
from edgecs.testing.fakes import ScriptedDrafter


class ScriptedTree(ScriptedDrafter):
    """Proposes the continuation in a script among siblings that differ from it.

    Each token of the script has a sibling, before or after it in the draft, while
    `leaves` allow; every second sibling has a child. wrong: probability that a token of
    the script is missing, so that the draft ends before it.

    >>> tree = ScriptedTree([1, 2, 3, 4], vocab_size=5, leaves=2)
    >>> draft = tree.propose(Context([1]), 3)
    >>> len(draft.leaves), draft.path_along([2, 3]) != []
    (2, True)
    """

    def __init__(
        self,
        script: Sequence[int] | Tokens,
        *,
        leaves: int,
        vocab_size: int,
        wrong: float = 0.0,
        seed: int = 0,
        name: str = "trees",
    ) -> None:
        super().__init__(script, name=name)
        self._leaves, self._vocab_size, self._wrong = leaves, vocab_size, wrong
        self._random = np.random.default_rng(seed)

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """A tree of at most k nodes around the script's next tokens."""
        nodes = list[tuple[int, int]]()  # parent and token
        parent, free = -1, self._leaves - 1
        for token in self.script[len(context) : len(context) + k].tolist():
            missing = self._random.random() < self._wrong
            family = [] if missing else [token]
            if free and len(nodes) + len(family) < k:
                free -= not missing
                first = self._random.random() < 0.5
                family.insert(0 if first else 1, self._other(token))
            place = {one: len(nodes) + i for i, one in enumerate(family)}
            nodes += [(parent, one) for one in family]
            sibling = next((one for one in family if one != token), None)
            if sibling is not None and len(nodes) < k and self._random.random() < 0.5:
                nodes.append((place[sibling], self._other(token)))
            if missing or len(nodes) >= k:
                break
            parent = place[token]
        if not nodes:
            return NOTHING
        parents, tokens = np.array(nodes, dtype=np.int32).T
        names, stated = (self.name,) * len(parents), np.ones(len(parents))
        return Draft(tokens.copy(), parents.copy(), names, stated)

    def _other(self, token: int) -> int:
        """Another token than this one."""
        return int(
            (token + self._random.integers(1, self._vocab_size)) % self._vocab_size
        )
