"""The tokens so far: an append-only buffer of committed ids and a speculative tail.

Because it is append-only, an index or a KV cache that has read the first n committed
tokens never has to read them again. A conversation that is rewound is a new Context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Context:
    """Committed token ids; `with_tail` adds speculative ones in a view.

    >>> context = Context([1, 2])
    >>> context.append([3])
    >>> guess = context.with_tail([7, 8])
    >>> guess.tokens.tolist(), guess.committed, context.tokens.tolist()
    ([1, 2, 3, 7, 8], 3, [1, 2, 3])
    """

    __slots__ = ("_buffer", "_committed", "_readable", "_root", "_tail")

    def __init__(self, tokens: Sequence[int] | Tokens = ()) -> None:
        ids = np.asarray(tokens, dtype=np.int32)
        self._committed = self._tail = 0
        self._root = self
        self._buffer = self._readable = np.empty(0, dtype=np.int32)
        self._allocate(max(256, 2 * ids.size), 0)
        self.append(ids)

    @property
    def root(self) -> Context:
        """The context that owns the buffer; the same object for every view of it."""
        return self._root

    @property
    def committed(self) -> int:
        """How many tokens at the start are final."""
        return self._root._committed

    def __len__(self) -> int:
        return self._root._committed + self._tail

    @property
    def tokens(self) -> Tokens:
        """Committed tokens and tail, int32 [len(self)], read-only, not a copy."""
        root = self._root
        return root._readable[: root._committed + self._tail]

    @property
    def last(self) -> int:
        """The last token; raises IndexError if there is none."""
        size = len(self)
        if not size:
            raise IndexError("an empty context has no last token")
        return int(self._root._buffer[size - 1])

    def append(self, tokens: Sequence[int] | Tokens) -> None:
        """Appends committed tokens; this invalidates views with a tail."""
        if self is not self._root:
            raise ValueError("only the root of a context grows; this is a view")
        self._write(self._committed, tokens)
        self._committed += len(tokens)

    def with_tail(self, tokens: Sequence[int] | Tokens) -> Context:
        """A view that also contains `tokens`, as if they came next.

        Tails share the root's buffer: a view is valid until its root grows or another
        tail overwrites its own.
        """
        view = Context.__new__(Context)
        view._root = self._root
        view._tail = self._tail + len(tokens)
        self._root._write(len(self), tokens)
        return view

    def _allocate(self, size: int, kept: int) -> None:
        """A larger buffer with the first `kept` tokens.

        It replaces the old one when it is complete, so another thread may read the
        committed tokens meanwhile.
        """
        buffer = np.empty(size, dtype=np.int32)
        buffer[:kept] = self._buffer[:kept]
        readable = buffer.view()
        readable.flags.writeable = False
        self._buffer, self._readable = buffer, readable

    def _write(self, at: int, tokens: Sequence[int] | Tokens) -> None:
        end = at + len(tokens)
        if end > self._buffer.size:
            self._allocate(2 * end, at)
        if end == at + 1:  # most writes; a slice takes several times as long
            self._buffer[at] = tokens[0]
        else:
            self._buffer[at:end] = tokens
