"""Saved states of a sequence whose last cells cannot simply be removed.

A recurrent layer has one state for all tokens, and a sliding window only the last
cells. To return to an earlier length, the state at that length has to have been saved:
as a *checkpoint*, a copy in host memory, or, for some architectures, as one of the
*snapshots* that llama.cpp writes for the last tokens of a call (`n_rs_seq`).

llama.cpp accepts removals that restore a wrong state and reports success, so the rules
of `Rollback` decide what is removed:

- A call writes a snapshot after each of its last tokens, but none before its first one.
  `llama_memory_seq_rm` nevertheless removes all tokens of a call, and then restores the
  snapshot of an earlier call. A second removal without a call between them fails.
- In a windowed layer, cells that are outside of the window are overwritten. Removing
  cells moves the window back, and `llama_memory_seq_rm` does not tell that cells of
  the earlier window are missing.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import NamedTuple

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

_PARTIAL = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
# chosen: one for each of the last turns, and a few along a long prompt.
MOST = 16  # checkpoints of a sequence
# chosen: the end of the prompt and that of the last turn.
LEAST = 2  # checkpoints that are kept, however large they are
# chosen: about the last ten count.
_LATELY = 0.1  # weight of a restore in the time of one


class Keeps(NamedTuple):
    """What a context keeps of earlier tokens.

    recurrent: whether some layers have one state for all tokens. snapshots: how many
    states llama.cpp keeps of them for removing tokens. window: tokens that windowed
    layers attend to, if older cells are overwritten; 0: there are no such layers.
    """

    recurrent: bool = False
    snapshots: int = 0
    window: int = 0

    @property
    def all(self) -> bool:
        """Whether any number of last tokens can be removed."""
        return not (self.recurrent or self.window)


class _Checkpoint(NamedTuple):
    length: int  # tokens of the sequence
    data: NDArray[np.uint8]

    @property
    def pointer(self) -> ctypes.Array[ctypes.c_uint8]:
        """Its bytes, as llama.cpp takes them."""
        array = ctypes.c_uint8 * self.data.size
        return array.from_address(self.data.ctypes.data)


class Checkpoints:
    """States of a sequence at some lengths, the shortest first.

    room: bytes that they may have together; at least LEAST are kept.
    """

    def __init__(
        self, context: lib.llama_context_p, sequence: int, room: int = 1 << 62
    ) -> None:
        self._ctx, self._sequence = context, sequence
        self._room = room
        self._saved: list[_Checkpoint] = []
        # Of dropped ones, because new pages of memory take longer than a copy.
        self._spare: list[NDArray[np.uint8]] = []

    @property
    def lengths(self) -> list[int]:
        """The lengths at which there is one."""
        return [saved.length for saved in self._saved]

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(saved.data.size for saved in self._saved)

    def newest(self, most: int) -> int:
        """The greatest length up to `most`; 0 if there is none."""
        return max((n for n in self.lengths if n <= most), default=0)

    def save(self, length: int) -> None:
        """Save the current state, which is that of `length` tokens."""
        self.cut(length)
        if self._saved and self._saved[-1].length == length:
            return
        size = lib.llama_state_seq_get_size_ext(self._ctx, self._sequence, _PARTIAL)
        made = _Checkpoint(length, self._memory(size))
        got = lib.llama_state_seq_get_data_ext(
            self._ctx, made.pointer, size, self._sequence, _PARTIAL
        )
        if got == size:
            self._saved.append(made)
        while len(self._saved) > LEAST and (
            len(self._saved) > MOST or self.size > self._room
        ):
            self._spare.append(self._saved.pop(self._least_useful()).data)

    def restore(self, length: int) -> bool:
        """Return to a checkpoint; cells of other layers have to be removed after it."""
        saved = next(one for one in self._saved if one.length == length)
        size = saved.data.size
        taken = lib.llama_state_seq_set_data_ext(
            self._ctx, saved.pointer, size, self._sequence, _PARTIAL
        )
        return bool(taken == size)

    def cut(self, length: int) -> None:
        """Drop those of more than `length` tokens: the text has changed there."""
        while self._saved and self._saved[-1].length > length:
            self._spare.append(self._saved.pop().data)

    def _memory(self, size: int) -> NDArray[np.uint8]:
        if self._spare and self._spare[-1].size == size:
            return self._spare.pop()
        self._spare.clear()
        return np.empty(size, dtype=np.uint8)

    def _least_useful(self) -> int:
        """Index of the one without which least has to be read again.

        Edits are more likely near the end, so a gap counts relative to its distance
        from there. The last one is kept.
        """
        lengths = [0, *self.lengths]
        end = lengths[-1]
        gaps = [
            (lengths[i + 1] - lengths[i - 1]) / (end - lengths[i - 1])
            for i in range(1, len(lengths) - 1)
        ]
        return gaps.index(min(gaps))


class Rollback:
    """Removes the last cells of a sequence, as far as a saved state allows.

    room: bytes for checkpoints along the text; those for drafts come on top: one of a
    target. writes: for a drafter, whose tokens may be rejected many calls later. each:
    whether it saves the state before each of them, so that none is computed again, or
    only before the first one of a draft.
    """

    def __init__(
        self,
        context: lib.llama_context_p,
        sequence: int,
        keeps: Keeps,
        room: int,
        *,
        writes: bool = False,
        each: bool = True,
    ) -> None:
        self.keeps = keeps
        self.points = Checkpoints(context, sequence, room)
        self._draft = Checkpoints(context, sequence)
        self._writes, self._each = writes, each
        self.restoring = 0.0  # seconds that a restore takes; 0: there was none
        self._memory, self._sequence = lib.llama_get_memory(context), sequence
        self._called: int | None = 0  # tokens of the last call that can be removed one
        #                               by one; None: it did not complete

    def begin(self, cells: int, tokens: int, final: int) -> None:
        """Called before a call that adds tokens to these cells.

        final: how many tokens of the text are not taken back. Saves the state if the
        others could not be removed otherwise.
        """
        guesses, first = cells + tokens - final, cells <= final
        if self._writes:
            needed = guesses > 0 and (first or self._each)
        else:
            needed = guesses > self.keeps.snapshots
        if needed and self.keeps.recurrent and cells not in self.points.lengths:
            if first and cells not in self._draft.lengths:
                self._draft.cut(0)  # of an earlier draft
            self._draft.save(cells)
        self._called = None

    def done(self, tokens: int) -> None:
        """Called when a call has added this many cells."""
        self._called = tokens

    def cut(self, length: int) -> int:
        """Remove the cells from `length` on; returns how many are left.

        If they cannot be removed, the newest checkpoint before them is restored. 0: all
        cells have to be removed, and are not yet.
        """
        if self.keeps.all:
            return length if self._remove(length) else 0
        removed = self._removed(length)
        self.points.cut(length)
        self._draft.cut(length)
        if removed is None or not self._may_remove(length, removed):
            return self._restore(length)
        if removed and not self._remove(length):
            return self._restore(length)
        if removed and self.keeps.recurrent:
            self._called = 0
        return length

    def reach(self, length: int) -> int:
        """How many cells would be left by `cut`, without removing any."""
        if self.keeps.all:
            return length
        removed = self._removed(length)
        if removed is not None and self._may_remove(length, removed):
            return length
        return max(self.points.newest(length), self._draft.newest(length))

    def save(self, length: int) -> None:
        """Make a checkpoint of the cells, of which there are `length`."""
        if length and not self.keeps.all:
            self.points.save(length)

    def forget(self) -> None:
        """Called when all cells have been removed or replaced."""
        self.points.cut(0)
        self._draft.cut(0)
        self._called = 0

    def _removed(self, length: int) -> int | None:
        """How many cells lie beyond a length; None: a call did not complete."""
        if self._called is None and self.keeps.recurrent:
            return None
        last = lib.llama_memory_seq_pos_max(self._memory, self._sequence)
        return int(last) + 1 - length

    def _may_remove(self, length: int, removed: int) -> bool:
        """Whether removing this many cells restores what was there before them."""
        if removed < 0:
            return False
        if self.keeps.recurrent:
            assert self._called is not None
            return removed <= max(0, min(self.keeps.snapshots, self._called - 1))
        if not self.keeps.window:
            return True
        first = lib.llama_memory_seq_pos_min(self._memory, self._sequence)
        return bool(0 <= first <= max(0, length - self.keeps.window + 1))

    def _remove(self, length: int) -> bool:
        return bool(lib.llama_memory_seq_rm(self._memory, self._sequence, length, -1))

    def _restore(self, length: int) -> int:
        """Return to the newest checkpoint up to a length; 0: there is none."""
        for points in sorted(
            (self.points, self._draft), key=lambda one: -one.newest(length)
        ):
            found = points.newest(length)
            if found and self._timed(points, found) and self._remove(found):
                self.points.cut(found)
                self._draft.cut(found)
                self._called = 0
                return found
        self.forget()
        return 0

    def _timed(self, points: Checkpoints, length: int) -> bool:
        began = perf_counter()
        restored = points.restore(length)
        took = perf_counter() - began
        known = self.restoring or took
        self.restoring = known + _LATELY * (took - known)
        return restored
