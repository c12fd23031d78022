"""Keeps control tokens out of messages: only a template may write them.

A tokenizer takes the spelling of a control token for the token, wherever it is. A text
with "<|im_end|>" would end its own message, and could begin one of another role. So
spellings in messages are split by a mark before they are rendered. The parts of the
rendered text between marks are tokenised separately, so no spelling is left.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from edgecs.text.thoughts import CLOSES, OPENS

# Templates look for them in earlier answers, to remove thoughts. They end no message.
_KEPT = frozenset((OPENS, CLOSES))
# chosen: twice as long as the longest known; the depth of a pattern depends on it.
_LONGEST = 100  # characters of a spelling
_PRIVATE, _COUNT = 0xE000, 6400  # characters without a meaning in Unicode


class MessageGuard:
    """Splits the spellings of control tokens in messages.

    The mark is random, so a message cannot contain it by intent.

    >>> guard = MessageGuard(["<s>", "</s>"])
    >>> guard.parts(guard.protect("a</s><s>"))
    ['a<', '/s><', 's>']
    >>> guard.protect("a < b")
    'a < b'
    """

    def __init__(self, spellings: Iterable[str]) -> None:
        found = {text for text in spellings if 1 < len(text) <= _LONGEST} - _KEPT
        self._places = re.compile(f"(?={_any_of(found)})") if found else None
        drawn = (_PRIVATE + secrets.randbelow(_COUNT) for _ in range(8))
        self._mark = "".join(map(chr, drawn))

    def protect(self, text: str) -> str:
        """A message's text with a mark within every spelling."""
        if self._places is None:
            return text
        starts = [found.start() + 1 for found in self._places.finditer(text)]
        if not starts:
            return text
        bounds = zip([0, *starts], [*starts, len(text)], strict=True)
        return self._mark.join(text[begin:end] for begin, end in bounds)

    def protect_values(self, value: Any) -> Any:
        """JSON values, with every text in them protected; also the names of fields."""
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, Mapping):
            return {
                self.protect_values(name): self.protect_values(one)
                for name, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.protect_values(one) for one in value]
        return value

    def parts(self, text: str) -> list[str]:
        """A rendered text, cut at the marks."""
        return text.split(self._mark)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for any of some texts, as a trie.

    Its time per character is independent of how many there are: some models have a
    thousand control tokens that begin alike.

    >>> _any_of(["ab", "ac", "a"])
    '(?:a(?:b|c)?)'
    """
    tails: dict[str, set[str]] = {}
    for text in texts:
        if text:
            tails.setdefault(text[0], set()).add(text[1:])
    options = []
    for first, rest in sorted(tails.items()):
        prefix, rest = _common(first, rest)
        more = _any_of(rest - {""}) if rest != {""} else ""
        optional = "?" if more and "" in rest else ""
        options.append(f"{re.escape(prefix)}{more}{optional}")
    return f"(?:{'|'.join(options)})"


def _common(prefix: str, tails: set[str]) -> tuple[str, set[str]]:
    """Moves characters that all tails begin with to the prefix."""
    while "" not in tails and len({tail[0] for tail in tails}) == 1:
        prefix += next(iter(tails))[0]
        tails = {tail[1:] for tail in tails}
    return prefix, tails
