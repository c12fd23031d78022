"""Llama 3.1, 3.2 and 3.3: an answer that is JSON with a name and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Finished
from edgecs.toolcalls.family import Marked, Markers, Wanted
from edgecs.toolcalls.hermes import named_object
from edgecs.toolcalls.lark_rules import json_call, rules_for
from edgecs.toolcalls.source import Source, Steps
from edgecs.toolcalls.tool import Tool

TAG = "<|python_tag|>"


class Llama3(Marked):
    """{"name": ..., "parameters": {...}}, at the start of an answer or after TAG.

    There is at most one call in an answer: the templates refuse more.
    """

    name = "Llama 3"
    markers: Sequence[str] = (TAG,)
    triggers = Triggers((TAG,), (("{", '"name"', ":"),))

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        made = rules_for(
            wanted.tools, lambda tool, args: json_call(tool, args, "parameters") + '"}"'
        )
        return f"calls: ({marker(TAG)} WS?)? one\n{made}"

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Marked`."""
        yield from source.space()
        yield from source.optional(TAG)
        yield from source.space()
        yield from named_object(source, tools, "parameters")
        yield Finished()
        source.keep()
