"""gpt-oss: the channels of the harmony format, on its control tokens.

A message is `<|channel|>NAME<|message|>TEXT`, ended by `<|end|>`, and the next begins
with `<|start|>assistant`. Thoughts are in the channel analysis, text is in final and
commentary, and a message that is addressed `to=functions.NAME` is a call, which the end
token `<|call|>` ends. OpenAI's library for it downloads its vocabulary, which a runtime
for offline use cannot do, and its parser needs ids of that vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Begun, Finished, Text, Thought
from edgecs.toolcalls.family import Markers, Message, Wanted, attempt
from edgecs.toolcalls.lark_rules import rules_for, text
from edgecs.toolcalls.source import SPACE, Malformed, Source, Steps, json_object
from edgecs.toolcalls.tool import Tool

CHANNEL, MESSAGE, START, END = "<|channel|>", "<|message|>", "<|start|>", "<|end|>"
CONSTRAIN = "<|constrain|>"
_TO = "to=functions."
_MOST = 512  # characters of a message's header


class Harmony:
    """<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}.

    There is at most one call in an answer, as its end is the end of the answer. Without
    tools, what is addressed to one is a thought or text as its channel says.
    """

    name = "gpt-oss (harmony)"
    markers: Sequence[str] = (CHANNEL, MESSAGE, START, END, CONSTRAIN)
    triggers = Triggers(
        (
            f"{CHANNEL}commentary {_TO}",
            f"{CHANNEL}analysis {_TO}",
            f"{START}assistant {_TO}",
        ),
        ((_TO,),),
    )

    def begins(self, names: Iterable[str]) -> Triggers:
        """See `Family`."""
        return self.triggers

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        channel, message = marker(CHANNEL), marker(MESSAGE)
        constrain = marker(CONSTRAIN)
        form = f'((" " {constrain}? | {constrain}) "json")? {message}'
        made = rules_for(
            wanted.tools, lambda tool, args: f"{text(tool.name)} form {args}"
        )
        thinks = "thoughts? " if wanted.forced else ""
        return (
            f"calls: {thinks}to one\n"
            f'to: ({channel} kind " " | {marker(START)} "assistant ")? {text(_TO)}\n'
            f'form: ({channel} kind)? {form}\nkind: "commentary" | "analysis"\n'
            f'thoughts: {channel} "analysis" {message} TEXT {marker(END)} '
            f'{marker(START)} "assistant"\nTEXT: /(.|\\n)+/\n{made}'
        )

    def compiles(self, tools: Iterable[Tool]) -> bool:
        """See `Family`."""
        return False

    def parse(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Family`."""
        while True:
            header = yield from _header(source)
            if header is None:
                return
            channel = re.search(rf"{re.escape(CHANNEL)}\s*(\w+)", header)
            if tools and "to=" in header:
                yield from attempt(source, self._call(source, header, tools))
            else:
                source.keep()
                hidden = channel is not None and channel[1] == "analysis"
                source.thinking = hidden
                yield from _content(source, hidden=hidden)
                source.thinking = False

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """See `Family`. Thoughts before a call are `thinking`, and without content."""
        return [_with_thinking(message) for message in messages], tools

    def _call(
        self, source: Source, header: str, tools: Mapping[str, Tool]
    ) -> Steps[None]:
        found = re.search(rf"{re.escape(_TO)}([^\s<]+)", header)
        if found is None or found[1] not in tools or MESSAGE not in header:
            raise Malformed
        name = found[1]
        yield Begun(name)
        yield from source.space()
        yield from json_object(source)
        yield Finished()
        source.keep()


def _with_thinking(message: Message) -> Message:
    """The template takes either content or thoughts before a call, not both."""
    if not (message.get("tool_calls") and message.get("reasoning_content")):
        return message
    texts = filter(None, (message["reasoning_content"], message.get("content")))
    return {**message, "content": "", "thinking": "\n\n".join(texts)}


def _header(source: Source) -> Steps[str | None]:
    """Take a message's header; "": there is none; None: the answer has ended.

    The header of a call is not returned as text before the call is complete.
    """
    source.keep()
    while True:
        rest = source.rest
        start = rest[:_MOST].lstrip(SPACE)
        if start and not any(
            begin.startswith(start[: len(begin)]) for begin in (CHANNEL, START, _TO)
        ):
            return ""
        at = rest.find(MESSAGE, 0, _MOST)
        if at >= 0 or len(rest) >= _MOST or source.closed:
            end = at + len(MESSAGE) if at >= 0 else min(len(rest), _MOST)
            source.at += end
            if source.closed and not rest:
                return None
            return rest[:end]
        yield None


_ENDS = Triggers((END, START, CHANNEL))


def _content(source: Source, *, hidden: bool) -> Steps[None]:
    """Take a message's text, and its end. hidden: it is a thought."""
    while True:
        rest = source.rest
        at = _ENDS.find(rest)
        end = len(rest) - _ENDS.held(rest, first=False) if at is None else at
        if at is None and source.closed:
            end = len(rest)
        if end:
            yield Thought(rest[:end]) if hidden else Text(rest[:end])
        source.at += end
        source.keep()
        if at is not None:
            yield from source.optional(END)
            return
        if source.closed:
            return
        yield None
