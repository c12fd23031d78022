"""Tools for models whose template has none, or none that is known here.

The system message describes the tools as Hermes' and Qwen 2.5's templates do, calls
are written as there, and results are messages of the user. Before a call the answer is
free text, as with the other families.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgecs.toolcalls.family import Message
from edgecs.toolcalls.hermes import CLOSES, OPENS, Hermes
from edgecs.toolcalls.tool import Tool

_ABOUT = f"""# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
%s
</tools>

For each function call, return a json object with function name and arguments within \
{OPENS}{CLOSES} XML tags:
{OPENS}
{{"name": <function-name>, "arguments": <args-json-object>}}
{CLOSES}"""


class Generic(Hermes):
    """Hermes' syntax, described by a system message.

    system: whether the template takes one; if not, the user's message describes it.
    """

    name = "generic"

    def __init__(self, *, system: bool = True) -> None:
        self._role = "system" if system else "user"

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """See `Family`. The template gets no tools."""
        made = list[dict[str, str]]()
        if tools:
            made.append({"role": self._role, "content": _ABOUT % _listed(tools)})
        for message in messages:
            role, text = str(message["role"]), str(message["content"])
            if role == "tool":
                role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
            elif role == "assistant" and message.get("tool_calls"):
                text = "\n".join([text] * bool(text) + [_written(message)])
            if made and made[-1]["role"] == role == "system":
                made[-1]["content"] = f"{text}\n\n{made[-1]['content']}"
            elif made and made[-1]["role"] == role == "user":
                made[-1]["content"] += f"\n\n{text}"
            else:
                made.append({"role": role, "content": text})
                if message.get("reasoning_content"):
                    made[-1]["reasoning_content"] = message["reasoning_content"]
        return made, ()


def _listed(tools: Sequence[Tool]) -> str:
    return "\n".join(json.dumps(tool.plain, ensure_ascii=False) for tool in tools)


def _written(message: Message) -> str:
    calls = list[str]()
    for call in message["tool_calls"]:
        said = json.dumps(call["function"], ensure_ascii=False)
        calls.append(f"{OPENS}\n{said}\n{CLOSES}")
    return "\n".join(calls)
