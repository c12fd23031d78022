"""Random drafts with branches."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edgecs.core.draft import Draft

NAMES = ("a", "b")


def tree(nodes: list[tuple[int, int]], by: str = "tree") -> Draft:
    """A draft of nodes, each the index of its parent (-1: the context) and a token."""
    parents = np.array([parent for parent, _ in nodes], np.int32)
    tokens = np.array([token for _, token in nodes], np.int32)
    return Draft(tokens, parents, (by,) * len(nodes), np.ones(len(nodes)))


@st.composite
def drafts(draw: st.DrawFn, vocab: int = 3, most: int = 9) -> Draft:
    """Trees of at most so many tokens; among them chains, and siblings that agree."""
    size = draw(st.integers(0, most))
    tokens = draw(st.lists(st.integers(0, vocab - 1), min_size=size, max_size=size))
    parents = [draw(st.integers(-1, i - 1)) for i in range(size)]
    sources = tuple(draw(st.sampled_from(NAMES)) for _ in range(size))
    stated = np.linspace(1, 0.1, size) if size else np.ones(0)
    return Draft(
        np.array(tokens, np.int32), np.array(parents, np.int32), sources, stated
    )
