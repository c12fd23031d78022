"""The final hidden states of a target's KV cells, for drafters that use them as input.

A target records final states in the calls that verify drafts, and not while it reads a
prompt, where they would make every token an output row; states of inner layers in all
calls. This module uses no engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Draft

State = NDArray[np.float32]


# chosen: more than six windows of the bundled head.
_KEPT = 1024  # states of the last cells; no drafter uses earlier ones


class States:
    """States of consecutive cells of one context, up to the last computed one.

    kept: number of last cells whose states are kept.

    >>> states = States(2)
    >>> context = Context([5, 6, 7])
    >>> states.put(context, 2, np.ones((1, 2), dtype=np.float32))
    >>> states.known(context), states.of(context, 1, 3).tolist()
    ((2, 3), [[0.0, 0.0], [1.0, 1.0]])
    >>> states.cut(2)
    >>> states.known(context)
    (2, 2)
    """

    def __init__(self, width: int, kept: int = _KEPT) -> None:
        self.width, self._kept = width, kept
        self._rows = np.zeros((kept, width), dtype=np.float32)  # cell c at c % kept
        self._first = self._end = 0
        self._root: Context | None = None
        self._tree: tuple[Draft, State] | None = None  # its cells follow

    @property
    def size(self) -> int:
        """Bytes of the states that it has room for."""
        return self._rows.nbytes

    def put(self, context: Context, start: int, rows: State) -> None:
        """Record the states of cells of a context from `start` on, [n, width].

        States before a gap are dropped.
        """
        self._root, self._tree = context.root, None
        if not self._first <= start <= self._end:
            self._first = start
        self._end = start + rows.shape[0]
        self._first = max(self._first, self._end - self._kept)
        if rows.shape[0] == 1:  # most calls
            self._rows[start % self._kept] = rows[0]
        else:
            begin = max(start, self._first)
            cells = np.arange(begin, self._end) % self._kept
            self._rows[cells] = rows[begin - start :]

    def adopt(self, context: Context, length: int) -> None:
        """The first `length` cells are those of this context from now on.

        A target calls it after it has compared its cells with another context.
        """
        if context.root is not self._root:
            self.cut(length)
            self._root = context.root

    def branch(self, tree: Draft, rows: State) -> None:
        """Record the states of the nodes of a tree after the last cell, [n, width].

        When the context continues along a path, they become the states of its cells.
        """
        self._tree = tree, rows.copy()

    def select(self, path: Sequence[int]) -> None:
        """Use the states of these nodes of the tree for the next cells."""
        if self._tree is not None and self._root is not None:
            rows = self._tree[1][list(path)]
            self._tree = None
            self.put(self._root, self._end, rows)

    def cut(self, length: int) -> None:
        """Drop the cells from `length` on."""
        self._tree = None
        self._end = min(self._end, length)
        self._first = min(self._first, length)

    def known(self, context: Context) -> tuple[int, int]:
        """First cell and end of the known states of this context."""
        if context.root is not self._root:
            return len(context), len(context)
        if self._tree is not None and context.committed > self._end:
            gone_on = context.tokens[self._end : context.committed].tolist()
            self.select(self._tree[0].path_along(gone_on))
        return self._first, self._end

    def of(self, context: Context, begin: int, end: int) -> State:
        """States of cells, [end - begin, width]; 0 for unknown states."""
        found = np.zeros((end - begin, self.width), dtype=np.float32)
        first, last = self.known(context)
        first, last = max(first, begin), min(last, end)
        if first < last:
            cells = np.arange(first, last) % self._kept
            found[first - begin : last - begin] = self._rows[cells]
        return found
