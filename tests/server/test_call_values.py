"""Values of Qwen3-Coder's calls are matched with schemas beside the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgecs.grammar.mask import GrammarMask
from edgecs.toolcalls import qwen_values
from tests.server.scripted import ScriptedEngine, client

TEMPLATE = "tools <tool_call> <function= <parameter="
PARAMETERS = {
    "type": "object",
    "properties": {"days": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
}
FUNCTION = {"name": "weather", "parameters": PARAMETERS}
ROUNDS = (
    "<tool_call>\n<function=weather>\n<parameter=days>\n",
    "12\n</parameter>\n</function>\n</tool_call>",
)


@pytest.fixture
def on_loop(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every matcher that is compiled, whether the event loop waits for it."""
    found, restart = list[bool](), GrammarMask._restart

    def told(self: GrammarMask) -> None:
        found.append(asyncio._get_running_loop() is not None)
        restart(self)

    monkeypatch.setattr(GrammarMask, "_restart", told)
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"tools": [{"type": "function", "function": FUNCTION}]},
        ),
        (
            "/v1/responses",
            {
                "input": "x",
                "tools": [
                    {"type": "function", "name": "weather", "parameters": PARAMETERS}
                ],
            },
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 99,
                "tools": [{"name": "weather", "input_schema": PARAMETERS}],
            },
        ),
        ("/api/chat", {"tools": [{"type": "function", "function": FUNCTION}]}),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_no_schema_is_compiled_on_the_event_loop(
    path: str, body: dict[str, Any], streams: bool, on_loop: list[bool]
):
    qwen_values._grammar.cache_clear()
    asked = {"messages": [{"role": "user", "content": "x"}], "model": "tiny", **body}
    if path == "/v1/responses":
        del asked["messages"]
    engine = ScriptedEngine(*ROUNDS, template=TEMPLATE)
    with client(engine) as made:
        reply = made.post(path, json={**asked, "stream": streams})
    assert reply.status_code == 200
    assert "days" in reply.text
    assert "incomplete" not in reply.text or path == "/v1/responses"
    assert on_loop
    assert not any(on_loop)


def test_a_long_value_is_matched_in_parts(monkeypatch: pytest.MonkeyPatch):
    """llguidance lets no other thread go on while it takes a text."""
    longest, go = [0], GrammarMask._go

    def told(self: GrammarMask, answer: Any) -> bool:
        longest[0] = max(longest[0], answer.size - self._at.size)
        return go(self, answer)

    monkeypatch.setattr(GrammarMask, "_go", told)
    text = b'"' + b"a" * 50_000 + b'"'
    assert qwen_values._matches('{"type": "string"}', text)
    assert not qwen_values._matches('{"type": "string"}', text[:-1])
    assert not qwen_values._matches('{"type": "integer"}', text)
    assert 0 < longest[0] <= 4096
