"""Drafts inside tool calls: an agent's conversations on edgecs serve, as JSON.

    python -m edgecs_bench.serving.tool_calls -m MODEL.gguf

In each conversation the model must call one of four tools for every request of the
user, and gets its result; earlier calls stay in the prompt. The same conversations run
with and without drafts. `accepted` of the `tested` draft tokens inside calls were
right; `ratio` is the speed of whole answers with drafts over that without.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx

from edgecs.engines.host import cpu_name
from edgecs_bench.serving.servers import Edgecs

_CONTEXT = 4096
_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "integer"}


def _tool(name: str, about: str, **fields: dict[str, Any]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": fields,
        "required": [*fields],
        "additionalProperties": False,
    }
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    _tool("read_file", "Read lines of a file.", path=_TEXT, start=_NUMBER, end=_NUMBER),
    _tool("write_file", "Replace a file's text.", path=_TEXT, text=_TEXT),
    _tool("search", "Find a text in all files below a folder.", text=_TEXT, path=_TEXT),
    _tool(
        "run_tests", "Run the tests in a file.", path=_TEXT, verbose={"type": "boolean"}
    ),
]
_CODE = "def area(width, height):\n    return width + height\n"
CONVERSATIONS: Sequence[Sequence[tuple[str, str]]] = [
    [
        ("Read lines 1 to 40 of src/shapes/rectangle.py.", _CODE),
        ("Search for the text 'area(' below src/shapes.", "src/shapes/rectangle.py:1"),
        (f"Write this to src/shapes/rectangle.py, but multiply:\n{_CODE}", "written"),
        ("Run the tests in tests/shapes/test_rectangle.py verbosely.", "1 passed"),
        ("Read lines 1 to 40 of src/shapes/rectangle.py again.", _CODE),
    ],
    [
        ("Search for 'TODO' below docs.", "docs/install.md:12: TODO say which Python"),
        (
            "Read lines 1 to 30 of docs/install.md.",
            "# Install\n\nTODO say which Python",
        ),
        ("Write '# Install\\n\\nPython 3.11 or newer.' to docs/install.md.", "written"),
        ("Search for 'TODO' below docs once more.", "nothing found"),
        ("Run the tests in tests/test_docs.py.", "12 passed"),
    ],
]


class Turn(NamedTuple):
    """One answer: the message, counts inside its calls, tokens and seconds."""

    message: dict[str, Any]
    inside: dict[str, int]
    tokens: int
    seconds: float


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-t", "--threads", default=2, show_default=True)
def main(model: Path, threads: int) -> None:
    """Count accepted drafts inside tool calls, and time the answers."""
    with Edgecs(model, 1, _CONTEXT, threads).running() as server:
        base = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=base, timeout=600) as http:
            [*_turns(http, CONVERSATIONS[0][:1], speculative=True)]  # fills caches
            found = {
                drafts: [
                    turn
                    for conversation in CONVERSATIONS
                    for turn in _turns(http, conversation, speculative=drafts)
                ]
                for drafts in (False, True)
            }
    plain, drafted = (
        sum(turn.tokens for turn in turns) / sum(turn.seconds for turn in turns)
        for turns in found.values()
    )
    said = [[turn.message for turn in turns] for turns in found.values()]
    counts = {
        name: sum(turn.inside.get(name, 0) for turn in found[True])
        for name in ("tokens", "rounds", "tested", "accepted")
    }
    result = {
        "model": model.stem,
        "cpu": cpu_name(),
        "threads": threads,
        "answers": len(found[True]),
        "identical": _calls(said[0]) == _calls(said[1]),
        **counts,
        "plain_tok_s": round(plain, 2),
        "drafted_tok_s": round(drafted, 2),
        "ratio": round(drafted / plain, 3),
    }
    print(json.dumps(result))


def _turns(
    http: httpx.Client, conversation: Sequence[tuple[str, str]], *, speculative: bool
) -> Iterator[Turn]:
    messages: list[dict[str, Any]] = []
    for request, result in conversation:
        messages.append({"role": "user", "content": request})
        turn = _asked(http, messages, speculative)
        yield turn
        messages.append(turn.message)
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call in turn.message.get("tool_calls") or ()
        ]


def _asked(http: httpx.Client, messages: Sequence[Any], speculative: bool) -> Turn:
    body = {
        "messages": messages,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 200,
        "speculative": speculative,
    }
    reply = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    times, drafts = reply["timings"], reply.get("speculative") or {}
    return Turn(
        reply["choices"][0]["message"],
        drafts.get("in_tool_calls") or {},
        times["predicted_n"],
        times["predicted_ms"] / 1e3,
    )


def _calls(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """The calls without their random ids, and the texts."""
    return [
        [m["content"], [call["function"] for call in m.get("tool_calls") or ()]]
        for m in messages
    ]


if __name__ == "__main__":
    main()
