"""Constrains an answer from the place where a tool call begins.

Before it, every token is allowed. Where the call begins is a pure function of the
answer's tokens, and so is the mask. The grammar also describes the trigger itself: it
gets the bytes from the trigger to the end of the token that completes it, then whole
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.draft import Row
from edgecs.errors import ConfigError
from edgecs.grammar.mask import Grammar, common_length
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


class _Known(NamedTuple):
    """What is known after a token.

    letters: of the text. start: where the answer begins after its thoughts; None: not
    yet. begin: no call begins before it.
    """

    letters: int
    start: int | None
    begin: int


class LazyMask:
    """Which tokens may follow an answer; see `GrammarMask`.

    A trigger whose last token has more text, with which no call of the grammar begins,
    does not count.
    """

    def __init__(self, lazy: LazyGrammar, trie: TokenTrie) -> None:
        self._lazy, self._trie = lazy, trie
        self._mask = lazy.grammar.over(trie)
        self._first = _Known(0, 0 if lazy.thinks is None else None, 0)
        self._ids = np.empty(0, dtype=np.int32)  # tokens up to the trigger of the call
        self._known = list[_Known]()  # of each of them
        self._text = ""  # their bytes, one character each
        self._prefix: Tokens | None = None  # what the grammar gets for their end

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

    def _inside(self, answer: Tokens) -> Tokens | None:
        """The part of the answer that the grammar describes; None: it has not begun."""
        same = common_length(self._ids, answer)
        if same < self._ids.size or len(self._known) > self._ids.size:
            self._go_back(same)
        for token in answer[same:].tolist():
            if self._prefix is not None:
                break
            self._take(token)
        taken = len(self._known)
        if taken > self._ids.size:
            self._ids = answer[:taken].copy()
        if self._prefix is None:
            return None
        return np.concatenate((self._prefix, answer[taken:]))

    def _go_back(self, count: int) -> None:
        """To the first `count` tokens, which a call does not end."""
        self._ids, self._prefix = self._ids[:count], None
        del self._known[count:]
        self._text = self._text[: self._known[-1].letters if self._known else 0]

    def _take(self, token: int) -> None:
        """One more token before the call."""
        last = self._known[-1] if self._known else self._first
        text = self._text + self._lazy.piece(token).decode("latin-1")
        start, begin = last.start, last.begin
        if start is None:
            is_open = bool(self._lazy.thinks)
            start = after_thoughts(
                text, open=is_open, tags=self._lazy.tags, known=last.letters
            )
        if start is not None:
            known = 0 if last.start is None else last.letters
            begin = self._searched(text, start, begin, known)
        self._text = text
        self._known.append(_Known(len(text), start, begin))

    def _searched(self, text: str, start: int, begin: int, known: int) -> int:
        """Search for a call; returns where one may begin that was not found.

        known: letters that were searched before.
        """
        find = self._lazy.triggers.find
        while True:
            at = find(text, max(start, begin), first=not begin, known=known)
            if at is None:
                return begin
            prefix = self._trie.of_bytes(text[at:].encode("latin-1"))
            try:
                self._mask.allowed(prefix)
            except ConfigError:
                begin = at + 1
            else:
                self._prefix = prefix
                return begin
