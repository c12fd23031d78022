"""Requests with tools, calls and results of calls, in all chat APIs and families."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from edgecs.testing.fakes import write_random_gguf
from tests.fuzz import http, mutate
from tests.fuzz.calls import PARAMETERS

_TEMPLATES = Path(__file__).parents[1] / "toolcalls" / "templates"
MODELS = ("", "Qwen3-Coder", "Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct")
MODELS += ("mistralai-Mistral-Nemo-Instruct-2407", "google-gemma-4-31B-it")
MODELS += ("openai-gpt-oss-120b",)
_SCHEMAS: tuple[Any, ...] = (
    PARAMETERS,
    {"type": "object"},
    {},
    {"properties": {"x": {"$ref": "#/properties/x"}}},
    {"properties": {"x": {"type": "string", "pattern": "^(a|b){1,40}$"}}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"anyOf": [{"type": "object"}, {"type": "null"}]},
)
_ASK = {"role": "user", "content": "hello"}
_LOOK = {"name": "look", "description": "x", "parameters": {}}
_OPENAI = {
    "messages": [
        _ASK,
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"city": "x"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        _ASK,
    ],
    "max_tokens": 24,
    "tools": [
        {
            "type": "function",
            "function": {"name": "look", "description": "x", "parameters": {}},
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "stream": True,
}
_RESPONSES = {
    "input": [
        {"type": "message", **_ASK},
        {"type": "reasoning", "id": "r", "summary": [], "content": []},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "look",
            "arguments": '{"city": "x"}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "message", **_ASK},
    ],
    "max_output_tokens": 24,
    "tools": [
        {
            "type": "function",
            "name": "look",
            "description": "x",
            "parameters": {},
            "strict": True,
        }
    ],
    "tool_choice": {"type": "function", "name": "look"},
    "stream": True,
}
_ANTHROPIC = {
    "max_tokens": 24,
    "messages": [
        _ASK,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {
                    "type": "tool_use",
                    "id": "call_1",
                    "name": "look",
                    "input": {"city": "x"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "content": [{"type": "text", "text": "rain"}],
                    "is_error": False,
                }
            ],
        },
    ],
    "tools": [{"name": "look", "description": "x", "input_schema": {}}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "stream": True,
}
_OLLAMA = {
    "messages": [
        _ASK,
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm",
            "tool_calls": [{"function": {"name": "look", "arguments": {"city": "x"}}}],
        },
        {"role": "tool", "tool_name": "look", "content": "rain"},
        _ASK,
    ],
    "options": {"num_predict": 24},
    "tools": [
        {
            "type": "function",
            "function": {"name": "look", "description": "x", "parameters": {}},
        }
    ],
    "stream": True,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _OPENAI,
    "/v1/responses": _RESPONSES,
    "/v1/messages": _ANTHROPIC,
    "/api/chat": _OLLAMA,
}
_CHOICES: tuple[Any, ...] = ("auto", "required", "none", "any", None)
_CHOICES += ({"type": "any"}, {"type": "auto"}, {"type": "tool", "name": "look"})
_CHOICES += ({"type": "function", "function": {"name": "look"}},)
_CHOICES += ({"type": "function", "name": "none"},)


def drawn(random: Random) -> list[bytes]:
    """A few requests, of which most have a schema and a part that are odd."""
    return [_request(random) for _ in range(random.randrange(1, 4))]


def _request(random: Random) -> bytes:
    path = random.choice([*BODIES])
    body = {"model": "tiny", **deepcopy(BODIES[path])}
    schema = random.choice(_SCHEMAS)
    for _ in range(random.choice((0, 0, 1, 2))):
        schema = mutate.changed(schema, random)
    for tool in body["tools"]:
        within = tool.get("function", tool)
        within["input_schema" if "input_schema" in within else "parameters"] = schema
    if random.random() < 0.3:
        more = deepcopy(body["tools"] * random.choice((1, 39)))
        for i, tool in enumerate(more[: random.choice((-1, 40))]):
            tool.get("function", tool)["name"] = f"tool_{i}"
        body["tools"] += more
    if random.random() < 0.3:
        body["tool_choice"] = random.choice(_CHOICES)
    for _ in range(random.choice((0, 0, 1, 3))):
        key = random.choice(("tools", "messages", "input", *body))
        if key in body:
            body[key] = mutate.changed(body[key], random)
    # An answer is short, whatever was changed.
    for key in ("max_tokens", "max_output_tokens", "options"):
        if key in BODIES[path]:
            body[key] = BODIES[path][key]
    if random.random() < 0.1:
        return http.written("POST", path, mutate.json_text(body, random))
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    return http.written("POST", path, text)


@cache
def model(name: str, folder: Path) -> Path:
    """A random Llama with a template; "": with its own, which knows no tools."""
    changes = {}
    if name:
        text = (_TEMPLATES / f"{name}.jinja").read_text()
        changes["tokenizer.chat_template"] = text
    path = folder / f"{name or 'own'}.gguf"
    return write_random_gguf(path, n_ctx=4096, changes=changes)
