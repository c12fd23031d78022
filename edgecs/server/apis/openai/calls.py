"""Tool calls in the form of OpenAI's chat completions."""

from __future__ import annotations

from typing import Any

from edgecs.server.answers.choice import Called, Choice, Part
from edgecs.toolcalls.events import Arguments, Begun, Withdrawn


def message_of(choice: Choice) -> dict[str, Any]:
    """A whole answer as a message."""
    text = None if choice.calls and not choice.text else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if choice.thought:
        message["reasoning_content"] = choice.thought
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{call.id}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.calls
        ]
    return message


def calls_in(part: Part) -> list[dict[str, Any]]:
    """The news of calls, one entry for each of them."""
    found = dict[int, dict[str, Any]]()
    for piece in part.pieces:
        if not isinstance(piece, Called):
            continue
        call, event = piece
        if isinstance(event, Begun):
            found[call.index] = {
                "index": call.index,
                "id": f"call_{call.id}",
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
        elif isinstance(event, Arguments):
            new = {"index": call.index, "function": {"arguments": ""}}
            entry = found.setdefault(call.index, new)
            entry["function"]["arguments"] += event.text
        elif isinstance(event, Withdrawn):
            found.pop(call.index, None)
    return [*found.values()]
