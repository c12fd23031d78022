"""Drafts from the conversations of this process that are over, or were cut."""

from __future__ import annotations

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Rows, Verdict
from edgecs.drafters.copies import LONGEST
from edgecs.drafters.corpus import GrowingCorpus
from edgecs.drafters.recalled import Recalled


class Remembered(Recalled):
    """Recalls recent texts, and adds what leaves the conversation to them.

    The conversation itself is left to Max-Gram. When another one begins, as after
    `/clear` or with another request of a server, or when an answer is taken back, the
    tokens that the new context does not begin with are added, after those LONGEST
    before them. So every text is stored once, however often it was a prompt. Several
    sessions may share the texts if they take turns within one thread. A conversation
    in which it was not allowed is not added.
    """

    def __init__(self, texts: GrowingCorpus, name: str = "recent") -> None:
        super().__init__(texts, name)
        self._texts = texts
        self._context: Context | None = None
        self._kept = True  # whether its tokens are added later

    def continuation(self, context: Context, k: int) -> list[int]:
        """The tokens of `propose`."""
        self._follow(context.root)
        return super().continuation(context, k)

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Notice a new conversation, even if this source is not asked."""
        self._follow(context.root)

    def _follow(self, root: Context) -> None:
        if root is self._context:
            self._kept = self._kept and self.allowed
            return
        old, self._context = self._context, root
        if old is not None and self._kept:
            self._add(old, root)
        self._kept = self.allowed

    def _add(self, old: Context, new: Context) -> None:
        """Add the tokens of a context that another one does not begin with."""
        had, has = old.tokens, new.tokens
        size = min(had.size, has.size)
        differ = np.flatnonzero(had[:size] != has[:size])
        shared = int(differ[0]) if differ.size else size
        if had.size - shared > 1:
            self._texts.add(had[max(0, shared - LONGEST) :])
