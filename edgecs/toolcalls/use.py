"""The tools of one request: how its answers are constrained and parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecs.text.detokenizer import Tokenizer
from edgecs.text.thoughts import THINK, Tags
from edgecs.text.triggers import Triggers
from edgecs.toolcalls.family import Family, Markers, Parser, Wanted
from edgecs.toolcalls.tool import Tool, checked_tools

if TYPE_CHECKING:
    from edgecs.grammar.lazy import LazyGrammar
    from edgecs.grammar.mask import Grammar

_SOURCE = "grammar of the tools"


@dataclass(frozen=True)
class Spelled:
    """The markers of a family in a vocabulary.

    ids: of those that are one token. shown: the bytes of those of them that are control
    tokens, which have no text otherwise.
    """

    ids: Mapping[str, int]
    shown: Mapping[int, bytes]

    @staticmethod
    def of(texts: Sequence[str], vocabulary: Tokenizer) -> Spelled:
        """The markers that a vocabulary has as tokens."""
        ids, shown = dict[str, int](), dict[int, bytes]()
        for text in texts:
            found = vocabulary.encode(text, document=False).tolist()
            if len(found) != 1 or found[0] in vocabulary.ends:
                continue
            ids[text] = found[0]
            if not vocabulary.piece(found[0]):
                shown[found[0]] = text.encode()
        return Spelled(ids, shown)


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request that may be called.

    only: names of those that may be called; None: all. required: an answer is a call.
    parallel: it may have several.
    """

    family: Family
    tools: Sequence[Tool]
    only: str | None = None
    required: bool = False
    parallel: bool = True

    @property
    def callable(self) -> Sequence[Tool]:
        """The tools that may be called."""
        return [t for t in self.tools if self.only in (None, t.name)]

    @property
    def _begins(self) -> Triggers:
        return self.family.begins([tool.name for tool in self.callable])

    def parser(self) -> Parser:
        """A parser for one answer."""
        return Parser(self.family, self.callable)

    def grammar(
        self, vocabulary: Tokenizer, *, thinks: bool | None = None, tags: Tags = THINK
    ) -> tuple[Grammar | LazyGrammar, Mapping[int, bytes]]:
        """What constrains an answer, and the control tokens that it shows.

        thinks: see `LazyGrammar`; an answer that begins with open thoughts is free up
        to their end, even if a call is required. tags: what encloses thoughts. Raises
        ConfigError for a schema that cannot be used.
        """
        from edgecs.grammar.lazy import LazyGrammar
        from edgecs.grammar.mask import Grammar

        tools = checked_tools(self.callable)
        spelled = Spelled.of([*self.family.markers, *tags.markers], vocabulary)
        markers = Markers(spelled.ids)
        wanted = Wanted(tools, self.parallel, self.required)
        rules = self.family.rules(wanted, markers)
        after = self.required and bool(thinks)
        begin = f"{markers(tags.closes)} WS? calls" if after else "WS? calls"
        grammar = Grammar.of_lark(_SOURCE, f"start: {begin}\n{rules}\n")
        if self.required and not after:
            return grammar, spelled.shown

        def piece(token: int) -> bytes:
            return spelled.shown.get(token) or vocabulary.piece(token)

        triggers = Triggers((tags.closes,)) if after else self._begins
        thinks = None if after else thinks
        return LazyGrammar(grammar, triggers, piece, thinks, tags), spelled.shown
