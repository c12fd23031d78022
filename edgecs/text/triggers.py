"""Finds the place in an answer where a tool call begins."""

from __future__ import annotations

from dataclasses import dataclass

from edgecs.text.thoughts import THINK, Tags

_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Triggers:
    """The ways in which a call may begin.

    anywhere: texts that begin a call wherever they are. at_start: for each way, its
    parts, which follow each other at the start of the text, with any white space before
    each; they begin a call nowhere else.

    >>> triggers = Triggers(("<call>",), (("{", '"name"'),))
    >>> triggers.find("so <call>"), triggers.find(' { "name": 1'), triggers.find("{}")
    (3, 0, None)
    >>> triggers.held("so <ca", first=True), triggers.held('{"na', first=True)
    (3, 4)
    """

    anywhere: tuple[str, ...]
    at_start: tuple[tuple[str, ...], ...] = ()

    def find(
        self, text: str, start: int = 0, *, first: bool = True, known: int = 0
    ) -> int | None:
        """Where the first call begins; it becomes known with the trigger's last letter.

        start: of the text in which calls count. first: that is where the answer starts.
        known: letters at the beginning of the text in which no call begins and ends its
        trigger; they are not searched again.
        """
        if first and any(_matched(text, start, parts) for parts in self.at_start):
            return start
        begin = max(start, known - self._longest + 1)
        found = [at for one in self.anywhere if (at := text.find(one, begin)) >= 0]
        return min(found, default=None)

    def held(self, text: str, *, first: bool) -> int:
        """Length of the longest end of a text that may begin a trigger.

        first: the text is the start of the answer.
        """
        if first and any(_matched(text, 0, parts) is None for parts in self.at_start):
            return len(text)
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(one.startswith(text[-size:]) for one in self.anywhere):
                return size
        return 0

    @property
    def _longest(self) -> int:
        return max(map(len, self.anywhere), default=1)


def _matched(text: str, start: int, parts: tuple[str, ...]) -> bool | None:
    """Whether the parts follow from `start`; None: the text is too short to say."""
    at = start
    for part in parts:
        while at < len(text) and text[at] in _SPACE:
            at += 1
        begin = text[at : at + len(part)]
        if begin != part:
            return None if part.startswith(begin) else False
        at += len(part)
    return True


def after_thoughts(
    text: str, *, open: bool, tags: Tags = THINK, known: int = 0
) -> int | None:
    """Where the answer begins in a text that may begin with thoughts; None: not yet.

    open: the prompt has opened the thoughts. known: letters at the beginning of the
    text after which the answer had not begun; their end is not searched for again.
    """
    if not open:
        start, opens = text.lstrip(), tags.opens
        if not start or (
            opens.startswith(start[: len(opens)]) and len(start) < len(opens)
        ):
            return None
        if not start.startswith(opens):
            return 0
    at = text.find(tags.closes, max(0, known - len(tags.closes) + 1))
    return None if at < 0 else at + len(tags.closes)
