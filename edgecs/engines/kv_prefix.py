"""Which tokens an engine's KV cells hold, and how many of them a call can keep.

Every engine with a KV cache uses this class, so a rejected draft, an edited prompt and
an aborted call are the same case: keep the longest common prefix, drop the rest. The
class works on token ids; the engine provides callbacks that drop cells and keep one
path of a tree. An engine with several sequences has one instance for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft


class PrefixCache:
    """Bookkeeping of KV cells 0, 1, 2, ... by the token that each was computed for.

    `drop(n)` removes cells n and later from the engine, including those of a tree. It
    returns how many are left: n, or fewer if the engine can only return to an earlier
    length, in the worst case 0. `reach(n)` tells what it would return. Cells that were
    dropped only for that reason are `lost`, and have to be computed again.

    The cells of a tree draft follow these, until the next call's context shows which
    path was accepted: `select(nodes)` keeps the cells of a path, in order, as the next
    ones, and frees those of all other nodes. Only engines that accept trees need it.

    An engine with a window has only computed the context from some index on: cell 0
    then belongs to context index `first`, and cells are counted from there.

    marks: another context can reuse cells up to a mark only. This is for engines whose
    cells depend, in the last bits, on the other tokens of the same call: up to a mark
    they equal the cells that the other context would have computed itself. The first
    marks are those of a text that was read from its beginning: up to there the cells
    also equal those of another sequence, which has read nothing else.
    """

    def __init__(
        self,
        drop: Callable[[int], int],
        *,
        reach: Callable[[int], int] = lambda length: length,
        select: Callable[[Sequence[int]], None] | None = None,
        marks: bool = False,
    ) -> None:
        self.first = 0  # context index of cell 0
        self.lost = 0  # cells that the last `keep` or `trim` should have kept
        self._drop, self._reach, self._select = drop, reach, select
        self._tree: Draft | None = None  # its cells follow
        self._marks: list[int] | None = [0] if marks else None  # ascending
        self._read = 1  # number of first marks of a text read from its beginning
        self._ids: list[int] = []  # [cells]
        self._whole = 0  # first cells that can only be used together
        self._unsure = False  # more cells may exist: a call did not complete
        self._source: Context | None = None  # root of the last compared context
        self._agreed = 0  # cells known to match it

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the cells, a copy."""
        return list(self._ids)

    def keep(self, context: Context, most: int, also: int = 0) -> int:
        """Drop cells that do not belong to `context`; returns how many cells are left.

        These are the longest common prefix of the cells and of the context from
        `first` on, at most `most`. A prefix that matched before is not compared again,
        so the cost is proportional to the number of new tokens. also: a position that
        counts as a mark for this call.
        """
        if self._tree is not None:
            self._settle(context, most)
        root, cells = context.root, len(self._ids)
        committed = max(0, context.committed - self.first)
        known = root is self._source
        same = self._agreed if known else 0
        if known and same == cells == most <= committed and not self._unsure:
            self.lost = 0
            return most  # plain decoding: there are no new tokens to compare
        limit = max(0, min(cells, len(context) - self.first, most))
        common = start = min(same, limit)
        if start < limit:
            here = context.tokens[self.first + start : self.first + limit].tolist()
            while common < limit and self._ids[common] == here[common - start]:
                common += 1
        if self._marks is not None and not known and common != also:
            common = max(mark for mark in self._marks if mark <= common)
        self._source, self._agreed = root, min(common, committed)
        self.trim(common)
        self._agreed = min(self._agreed, len(self._ids))
        return len(self._ids)

    def trim(self, length: int) -> None:
        """Drop the cells from `length` on, and more if the engine cannot do that."""
        self.lost = 0
        if length >= len(self._ids) and not self._unsure and self._tree is None:
            return
        self._tree = None
        wanted = min(length, len(self._ids))
        length = self._drop(wanted if wanted >= self._whole else 0)
        if not length:
            self._whole = 0
        self.lost = wanted - length
        del self._ids[length:]
        while self._marks and self._marks[-1] > length:
            self._marks.pop()
        self._read = min(self._read, len(self._marks or ()))
        self._unsure = False
        self._agreed = min(self._agreed, length)

    def _settle(self, context: Context, most: int) -> None:
        """Keep the path of the tree along which the context continues."""
        tree, cells, path = self._tree, len(self._ids), list[int]()
        assert tree is not None
        assert self._select is not None
        end = min(len(context), self.first + most)
        known = context.root is self._source and self._agreed == cells
        begin = self.first + cells
        if known or self._ids == context.tokens[self.first : begin].tolist():
            path = tree.path_along(context.tokens[begin:end].tolist())
        self._tree = None
        self._select(path)
        self._ids += tree.tokens[path].tolist()

    def mark(self, chunk: int = 0) -> None:
        """Allow another context to continue from the current cells.

        chunk: number of last cells, if they are those of a whole prefill chunk.
        """
        if self._marks is None or self._marks[-1] >= len(self._ids):
            return
        follows = self._marks[-1] == len(self._ids) - chunk
        if chunk and follows and self._read == len(self._marks):
            self._read += 1
        self._marks.append(len(self._ids))

    def reusable(self, tokens: Tokens, *, copied: bool = False) -> int:
        """How many first tokens of a new prompt have usable cells; not the last one.

        copied: in another sequence, after `share`.
        """
        if self.first:
            return 0  # these are not the first tokens
        size = min(len(self._ids), tokens.size - 1)
        mine = np.array(self._ids[:size], dtype=np.int32)
        other = np.flatnonzero(mine != tokens[:size])
        common = int(other[0]) if other.size else size
        if common < self._whole:
            return 0
        if self._marks is not None:
            marks = self._marks[: self._read] if copied else self._marks
            common = max(mark for mark in marks if mark <= common)
        return common if common == len(self._ids) else self._reach(common)

    def share(self, other: PrefixCache, length: int) -> None:
        """Must be called when the first cells of `other` have replaced all cells."""
        self._ids, self._source, self._agreed, self.first = [], None, 0, 0
        self._whole = 0
        self.extend(other._ids[:length])
        if other._marks is not None:
            self._marks = [m for m in other._marks[: other._read] if m <= length]
            self._read = len(self._marks)

    def expect(self) -> None:
        """Must be called before the engine computes cells.

        If the engine fails, partial cells are dropped before the next call.
        """
        self._unsure = True

    def extend(self, tokens: list[int], context: Context | None = None) -> None:
        """Must be called when the engine has computed the cells of `tokens`.

        context: the context they belong to, if it is the last compared one.
        """
        self._tree = None
        start = len(self._ids)
        self._ids += tokens
        self._unsure = False
        if context is None or context.root is not self._source:
            return
        if self._agreed == start:
            final = min(len(self._ids), context.committed - self.first)
            self._agreed = max(start, final)

    def branch(self, tree: Draft) -> None:
        """Must be called when the engine has also computed the cells of a tree."""
        self._unsure, self._tree = False, tree

    def reset_to(self, tokens: list[int], *, whole: bool = False) -> None:
        """Must be called when all cells have been replaced by those of `tokens`.

        whole: the engine has not all that a part of them needs, as after loading a
        sliding window: they are continued, or dropped.
        """
        self._ids, self._source, self._agreed, self.first = [], None, 0, 0
        if self._marks is not None:
            self._marks, self._read = [0], 1
        self._whole = len(tokens) if whole else 0
        self.extend(tokens)
        self.mark()

    def reset(self, first: int = 0) -> None:
        """Drop all cells; the next ones begin at context index `first`."""
        self._unsure = True
        self.trim(0)
        self._source, self.first = None, first
