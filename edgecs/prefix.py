"""Which tokens an engine's KV cells hold, and how many of them a call can keep.

Every engine with a cache uses this one class, so rewinding after a rejected draft, an
edited prompt and an aborted call are one case: keep the longest common prefix, drop the
rest. It knows token ids only; the engine lends it the act of dropping cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgecs.context import Context, Tokens


class PrefixCache:
    """Bookkeeping of KV cells 0, 1, 2, ... by the token that each was computed for.

    `drop(n)` removes cells n and later from the engine; it returns False if the engine
    cannot remove a part. `drop(0)` must always work.

    An engine with a window has computed only what follows some point of the context:
    cell 0 then belongs to context index `first`, and cells are counted from there.
    """

    def __init__(self, drop: Callable[[int], bool]) -> None:
        self.first = 0  # context index of cell 0
        self._drop = drop
        self._ids = np.empty(1024, dtype=np.int32)  # [cells], the first _length valid
        self._length = 0
        self._unsure = False  # cells past _length may exist: a call was cut short
        self._source: Context | None = None  # compared last, and how far it agreed
        self._agreed = 0

    def __len__(self) -> int:
        return self._length

    def keep(self, context: Context, most: int) -> int:
        """Drops what does not belong to `context`; returns how many cells are left.

        These are the longest common prefix of the cells and of the context from
        `first` on, at most `most`. What this context was found to share before is not
        compared again, so the cost follows the number of new tokens.
        """
        here = context.tokens[self.first :]
        limit = max(0, min(self._length, here.size, most))
        known = self._agreed if context.root is self._source else 0
        start = min(known, limit)
        common = limit
        if start == limit - 1:  # most calls add one token
            common -= int(self._ids[start]) != int(here[start])
        elif start < limit:
            differs = self._ids[start:limit] != here[start:limit]
            at = int(differs.argmax())
            common = start + at if differs[at] else limit
        final = max(0, context.committed - self.first)
        self._source, self._agreed = context.root, min(common, final)
        self.trim(common)
        self._agreed = min(self._agreed, self._length)
        return self._length

    def trim(self, length: int) -> None:
        """Drops the cells from `length` on, or all if the engine cannot do less."""
        if length >= self._length and not self._unsure:
            return
        length = min(length, self._length)
        if not self._drop(length):
            self._drop(0)
            length = 0
        self._length, self._unsure = length, False
        self._agreed = min(self._agreed, length)

    def expect(self) -> None:
        """To be called before the engine computes cells.

        If it fails, whatever it left behind is dropped before the next call.
        """
        self._unsure = True

    def extend(self, tokens: Tokens) -> None:
        """To be called when the engine has computed the cells of `tokens`."""
        end = self._length + tokens.size
        if end > self._ids.size:
            self._ids = np.concatenate([self._ids, np.empty(end, np.int32)])
        self._ids[self._length : end] = tokens
        self._length, self._unsure = end, False

    def reset_to(self, tokens: Tokens) -> None:
        """To be called when the engine has replaced all cells by those of `tokens`."""
        self._length, self._source, self.first = 0, None, 0
        self._agreed = 0
        self.extend(tokens)

    def reset(self, first: int = 0) -> None:
        """Drops everything; what comes next begins at context index `first`."""
        self._unsure = True
        self.trim(0)
        self._source, self.first = None, first
