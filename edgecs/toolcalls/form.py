"""How a model writes thoughts and calls, which its chat template tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecs.text.detokenizer import Tokenizer
from edgecs.text.think_tags import ThinkTags, without_thoughts
from edgecs.text.thoughts import GEMMA, THINK, Parts, Separator, Tags, Thoughts
from edgecs.toolcalls.events import Event, Text, Thought
from edgecs.toolcalls.family import Family, Parser
from edgecs.toolcalls.harmony import CHANNEL, MESSAGE, Harmony
from edgecs.toolcalls.recognise import family_of
from edgecs.toolcalls.use import Spelled, ToolUse

_LEAST, _MOST = ("none", "minimal"), ("xhigh", "max")
_ENDING = 8  # tokens of a prompt in which an opening tag and its line are


class Channels:
    """Separates thoughts from the answer in the channels of gpt-oss.

    >>> channels = Channels()
    >>> tuple(channels.feed("<|channel|>analysis<|message|>Hm<|end|><|start|>"))
    ('Hm', '')
    >>> tuple(channels.feed("assistant<|channel|>final<|message|>Hi"))
    ('', 'Hi')
    """

    def __init__(self) -> None:
        self._parser = Parser(Harmony(), ())

    @property
    def open(self) -> bool:
        """Whether the text so far ends within thoughts."""
        return self._parser.thinking

    def feed(self, text: str) -> Parts:
        """The parts that are certain after more text."""
        return _parts(self._parser.feed(text))

    def flush(self) -> Parts:
        """The rest, at the end of the text."""
        return _parts(self._parser.flush())


def _parts(events: Iterable[Event]) -> Parts:
    found = [*events]
    return Parts(
        "".join(one.text for one in found if isinstance(one, Thought)),
        "".join(one.text for one in found if isinstance(one, Text)),
    )


@dataclass(frozen=True)
class AnswerForm:
    """How a model writes its answers.

    family: the syntax of its calls. tags: what encloses its thoughts; None: they are in
    a channel, as those of gpt-oss. thinks: whether the template knows of thoughts.
    """

    family: Family
    tags: Tags | None
    thinks: bool

    @staticmethod
    def of(template: str) -> AnswerForm:
        """The form that a template writes.

        >>> AnswerForm.of("{{ '<|channel|>analysis<|message|>' }}").tags is None
        True
        """
        family = family_of(template)
        if all(one in template for one in (CHANNEL, MESSAGE, "analysis")):
            return AnswerForm(family, None, thinks=True)
        tags = GEMMA if GEMMA.opens in template else THINK
        thinks = tags.opens in template or "enable_thinking" in template
        return AnswerForm(family, tags, thinks)

    def opened(self, prompt: str) -> bool:
        """Whether the end of a prompt has opened thoughts."""
        return self.tags is not None and self.tags.opened(prompt)

    def opened_by(self, prompt: NDArray[np.int32], vocabulary: Tokenizer) -> bool:
        """The same of a prompt as tokens."""
        ending = prompt[-_ENDING:].tolist()
        return self.opened("".join(map(vocabulary.spelling, ending)))

    def separator(self, tools: ToolUse | None, *, open: bool) -> Separator | None:
        """What separates thoughts from an answer; None: the parser of calls does."""
        parsed = tools and self.tags is None and isinstance(self.family, Harmony)
        return None if parsed else self.thoughts(open=open)

    def thoughts(self, *, open: bool) -> Separator:
        """What separates thoughts from an answer without calls."""
        return Channels() if self.tags is None else Thoughts(self.tags, open=open)

    def answer(self, text: str) -> str:
        """A whole text of the model without its thoughts."""
        if self.tags is not None:
            return without_thoughts(text, self.tags)
        channels = Channels()
        return channels.feed(text).answer + channels.flush().answer

    def think_tags(self, *, open: bool) -> ThinkTags:
        """What writes the thoughts of an answer between <think> tags.

        open: the prompt has opened thoughts.
        """
        own = self.tags is THINK
        return ThinkTags(None if own else self.thoughts(open=open))

    @property
    def markers(self) -> Sequence[str]:
        """What marks thoughts and may be control tokens."""
        return Harmony.markers if self.tags is None else self.tags.markers

    def shown(self, vocabulary: Tokenizer) -> Mapping[int, bytes]:
        """The tokens that mark thoughts, as part of the text."""
        found = Spelled.of(self.markers, vocabulary).ids
        return {token: text.encode() for text, token in found.items()}

    def effort(self, asked: str | None) -> str | None:
        """The value of the template's `reasoning_effort`; gpt-oss knows three."""
        if asked is None or self.tags is not None:
            return asked
        return "low" if asked in _LEAST else "high" if asked in _MOST else asked
