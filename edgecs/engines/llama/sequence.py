"""One sequence of a llama.cpp context: its KV cells and related state."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edgecs.core.draft import Draft
from edgecs.engines.hidden_states import States
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.lease import ExclusiveUse
from edgecs.engines.llama.checkpoints import Rollback
from edgecs.engines.llama.heads.features import Features


class LlamaSequence:
    """The KV cells of one conversation.

    ids: llama.cpp's sequence ids. The first one has the cells; every further leaf of a
    tree draft uses another one for a round, which has the cells of the context and of
    its own path (SpecInfer, arXiv 2305.09781). sole: whether there is no other
    sequence. rollback: removes cells of the first id.
    """

    def __init__(
        self,
        context: lib.llama_context_p,
        ids: Sequence[int],
        *,
        sole: bool,
        marks: bool,
        name: str,
        rollback: Rollback,
    ) -> None:
        self.id, self._further = ids[0], list(ids[1:])
        self.rollback = rollback
        self.cache = PrefixCache(
            self._drop, reach=self.rollback.reach, select=self._select, marks=marks
        )
        self.prompt_row: tuple[int, NDArray[np.float32]] | None = None
        self.states: States | None = None
        self.recorded: list[tuple[Features, States]] = []
        self.holder = ExclusiveUse(name)
        self._ctx, self._memory = context, lib.llama_get_memory(context)
        self._sole = sole
        self._leaf: list[int] = []  # id of a leaf below each node of the tree
        self._used: list[int] = []  # ids of its further leaves

    def grow(self, tree: Draft, before: int) -> tuple[list[int], list[list[int]]]:
        """Positions of a tree's nodes, and the sequence ids of each.

        before: number of context tokens. Copies the cells of the context to the leaves;
        context tokens that the same call computes must belong to `sharing`.
        """
        leaves = [self.id, *self._further][: len(tree.leaves)]
        ids: list[list[int]] = [[] for _ in range(len(tree))]
        parents = tree.parents.tolist()
        for leaf, own in zip(tree.leaves, leaves, strict=True):
            node = leaf
            while node >= 0:
                ids[node].append(own)
                node = parents[node]
        self._leaf, self._used = [own[0] for own in ids], leaves[1:]
        for own in self._used:
            lib.llama_memory_seq_cp(self._memory, self.id, own, -1, -1)
        return [before + depth for depth in tree.depths], ids

    @property
    def sharing(self) -> list[int]:
        """Sequence ids of a context token in the call of a tree."""
        return [self.id, *self._used]

    def receive(self, other: LlamaSequence, length: int) -> bool:
        """Replace its cells by the first ones of `other`, which is in another stream.

        llama.cpp copies the stream at the next call. Returns False, with no cells, if
        the tail cannot be removed.
        """
        self.reset(True)
        self.cache.expect()
        lib.llama_memory_seq_cp(self._memory, other.id, self.id, -1, -1)
        lib.llama_memory_seq_rm(self._memory, self.id, length, -1)
        if lib.llama_memory_seq_pos_max(self._memory, self.id) != length - 1:
            self.reset(True)
            return False
        self.cache.share(other.cache, length)
        return True

    def reset(self, there: bool) -> None:
        """Drop all cells; there: whether the llama.cpp context still exists."""
        if there:
            self.cache.reset()
        self.prompt_row = None

    def drop_padding(self) -> None:
        """Remove the padding cells after the known ones."""
        lib.llama_memory_seq_rm(self._memory, self.id, len(self.cache), -1)

    @property
    def state_size(self) -> int:
        """Bytes of `state`."""
        return int(lib.llama_state_seq_get_size(self._ctx, self.id))

    def state(self) -> bytes:
        """All its cells in llama.cpp's format."""
        data = (ctypes.c_uint8 * self.state_size)()
        lib.llama_state_seq_get_data(self._ctx, data, len(data), self.id)
        return bytes(data)

    def put(self, state: bytes, cells: int) -> bool:
        """Replace its cells by a state of `cells` cells; False if llama.cpp fails."""
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        self.rollback.forget()
        taken = lib.llama_state_seq_set_data(self._ctx, data, len(state), self.id)
        last = lib.llama_memory_seq_pos_max(self._memory, self.id)
        return bool(taken == len(state) and last == cells - 1)

    def _select(self, path: Sequence[int]) -> None:
        """Move the path's cells to the first id, see `PrefixCache`."""
        start, end = len(self.cache), len(self.cache) + len(path)
        for states in self._noted():
            states.select(path)
        leaf = self._leaf[path[-1]] if path else self.id
        if leaf != self.id:
            lib.llama_memory_seq_rm(self._memory, self.id, start, -1)
            lib.llama_memory_seq_cp(self._memory, leaf, self.id, start, end)
        lib.llama_memory_seq_rm(self._memory, self.id, end, -1)
        self._free_leaves()

    def _drop(self, length: int) -> int:
        self._free_leaves()
        left = self.rollback.cut(length) if length else 0
        if not left:
            self._clear()
        for states in self._noted():
            states.cut(left)
        return left

    def _clear(self) -> None:
        self.rollback.forget()
        if self._sole:
            lib.llama_memory_clear(self._memory, False)
        else:
            lib.llama_memory_seq_rm(self._memory, self.id, -1, -1)

    def _noted(self) -> Iterator[States]:
        """All states that are kept of its cells."""
        if self.states is not None:
            yield self.states
        for _, states in self.recorded:
            yield states

    def _free_leaves(self) -> None:
        for own in self._used:
            lib.llama_memory_seq_rm(self._memory, own, -1, -1)
        self._used = []
