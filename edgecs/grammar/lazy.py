"""Constrains an answer from the place where a tool call begins.

Before it, every token is allowed. Where the call begins is a pure function of the
answer's tokens, and so is the mask. The grammar also describes the trigger itself: it
gets the bytes from the trigger to the end of the token that completes it, then whole
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.draft import Row
from edgecs.errors import ConfigError
from edgecs.grammar.mask import Grammar
from edgecs.grammar.trie import TokenTrie
from edgecs.text.thoughts import THINK, Tags
from edgecs.text.triggers import Triggers, after_thoughts


@dataclass(frozen=True)
class LazyGrammar:
    """A grammar that applies from the first trigger on.

    grammar: begins with the trigger. piece: the bytes of a token, also of control
    tokens that are parts of triggers. thinks: whether the prompt has opened a block of
    thoughts, in which nothing begins a call; None: thoughts are ordinary text. tags:
    what encloses thoughts.
    """

    grammar: Grammar
    triggers: Triggers
    piece: Callable[[int], bytes] = field(repr=False)
    thinks: bool | None = None
    tags: Tags = THINK

    def over(self, trie: TokenTrie) -> LazyMask:
        """The mask for one answer in a vocabulary."""
        return LazyMask(self, trie)


class LazyMask:
    """Which tokens may follow an answer; see `GrammarMask`.

    A trigger whose last token has more text, with which no call of the grammar begins,
    does not count.
    """

    def __init__(self, lazy: LazyGrammar, trie: TokenTrie) -> None:
        self._lazy, self._trie = lazy, trie
        self._mask = lazy.grammar.over(trie)
        self._restart()

    def allows(self, answer: Tokens, token: int) -> bool:
        """Whether `token` may follow."""
        inside = self._inside(answer)
        return inside is None or self._mask.allows(inside, token)

    def mask(self, row: Row, answer: Tokens) -> Row:
        """A row with -inf where a token may not follow; the row itself before a call.

        See `GrammarMask.mask`.
        """
        inside = self._inside(answer)
        return row if inside is None else self._mask.mask(row, inside)

    def _restart(self) -> None:
        self._ids = np.empty(0, dtype=np.int32)  # tokens before the call
        self._text = ""  # their bytes, one character each
        self._from = 0  # of the text that is left to search
        self._prefix: Tokens | None = None  # what the grammar gets for their end

    def _inside(self, answer: Tokens) -> Tokens | None:
        """The part of the answer that the grammar describes; None: it has not begun."""
        known = self._ids.size
        if not np.array_equal(answer[:known], self._ids):
            self._restart()
            known = 0
        for at in range(known, answer.size):
            if self._prefix is not None:
                break
            self._take(answer[: at + 1])
        if self._prefix is None:
            return None
        return np.concatenate((self._prefix, answer[self._ids.size :]))

    def _take(self, answer: Tokens) -> None:
        """One more token before the call."""
        lazy, last = self._lazy, int(answer[-1])
        self._ids = answer.copy()
        self._text += lazy.piece(last).decode("latin-1")
        start = 0
        if lazy.thinks is not None:
            found = after_thoughts(self._text, open=lazy.thinks, tags=lazy.tags)
            if found is None:
                return
            start = found
        begin = max(start, self._from)
        at = lazy.triggers.find(self._text, begin, first=not self._from)
        if at is None:
            return
        prefix = self._trie.of_bytes(self._text[at:].encode("latin-1"))
        try:
            self._mask.allowed(prefix)
        except ConfigError:
            self._from = at + 1
        else:
            self._prefix = prefix
