"""Calls as models write them, apart from edgecs' own code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from edgecs.toolcalls.family import Family
from edgecs.toolcalls.gemma import GEMMA_3, GEMMA_4
from edgecs.toolcalls.generic import Generic
from edgecs.toolcalls.harmony import Harmony
from edgecs.toolcalls.hermes import Hermes
from edgecs.toolcalls.llama3 import Llama3
from edgecs.toolcalls.mistral import MistralArgs, MistralList
from edgecs.toolcalls.qwen_coder import QwenCoder

Call = tuple[str, dict[str, Any]]
Render = Callable[[Sequence[Call]], str]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def hermes(calls: Sequence[Call]) -> str:
    said = [_json({"name": name, "arguments": args}) for name, args in calls]
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in said)


def bare(calls: Sequence[Call]) -> str:
    ((name, args),) = calls
    return _json({"name": name, "arguments": args})


def fenced(calls: Sequence[Call]) -> str:
    return f"```json\n{bare(calls)}\n```"


def llama3(calls: Sequence[Call]) -> str:
    ((name, args),) = calls
    return _json({"name": name, "parameters": args})


def tagged(calls: Sequence[Call]) -> str:
    return "<|python_tag|>" + llama3(calls)


def mistral(calls: Sequence[Call]) -> str:
    said = [{"name": name, "arguments": args} for name, args in calls]
    return f"[TOOL_CALLS] {_json(said)}"


def mistral_ids(calls: Sequence[Call]) -> str:
    said = [{"name": n, "arguments": args, "id": "abcdef012"} for n, args in calls]
    return f"[TOOL_CALLS]{_json(said)}"


def mistral_args(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(args)}" for name, args in calls)


def qwen_coder(calls: Sequence[Call]) -> str:
    parts = []
    for name, args in calls:
        values = [(k, v if isinstance(v, str) else _json(v)) for k, v in args.items()]
        said = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values)
        parts.append(f"<tool_call>\n<function={name}>\n{said}</function>\n</tool_call>")
    return "\n".join(parts)


def _gemma(opens: str, closes: str, quote: str) -> Render:
    def value(one: object) -> str:
        if isinstance(one, str):
            return f"{quote}{one}{quote}"
        if isinstance(one, dict):
            return f"{{{','.join(f'{k}:{value(v)}' for k, v in sorted(one.items()))}}}"
        if isinstance(one, list):
            return f"[{','.join(map(value, one))}]"
        return _json(one)

    return lambda calls: "".join(
        f"{opens}call:{name}{value(args)}{closes}" for name, args in calls
    )


def harmony(calls: Sequence[Call]) -> str:
    ((name, args),) = calls
    return (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{_json(args)}"
    )


def harmony_before(calls: Sequence[Call]) -> str:
    ((name, args),) = calls
    head = f" to=functions.{name}<|channel|>commentary json<|message|>"
    return head + _json(args)


FAMILIES: dict[str, tuple[Family, Render, bool]] = {
    "hermes": (Hermes(), hermes, True),
    "hermes without tags": (Hermes(), bare, False),
    "hermes in a fence": (Hermes(), fenced, False),
    "generic": (Generic(), hermes, True),
    "llama3": (Llama3(), llama3, False),
    "llama3 with a tag": (Llama3(), tagged, False),
    "mistral": (MistralList(), mistral, True),
    "mistral with ids": (MistralList(), mistral_ids, True),
    "mistral with args": (MistralArgs(), mistral_args, True),
    "qwen coder": (QwenCoder(), qwen_coder, True),
    "gemma 3": (
        GEMMA_3,
        _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        True,
    ),
    "gemma 4": (GEMMA_4, _gemma("<|tool_call>", "<tool_call|>", '<|"|>'), True),
    "harmony": (Harmony(), harmony, False),
    "harmony, channel last": (Harmony(), harmony_before, False),
}
"""A family, how its calls are written, and whether an answer may have several."""

WITHOUT_TAGS = {"hermes without tags", "hermes in a fence"}
NO_TEXT_BEFORE = {"llama3", "harmony", "harmony, channel last", *WITHOUT_TAGS}
