"""Templates as shipped: what they make of calls and results, and that it is parsed.

`python -m tests.toolcalls.test_templates` writes the golden texts anew; read the diff.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgecs.text.template_child import Sandbox
from edgecs.toolcalls.family import Message, Parser
from edgecs.toolcalls.form import AnswerForm
from edgecs.toolcalls.harmony import Harmony
from edgecs.toolcalls.llama3 import Llama3
from edgecs.toolcalls.tool import Tool
from tests.toolcalls.rendering import Call
from tests.toolcalls.test_parsers import calls_of, parsed

FOLDER = Path(__file__).with_name("templates")
FAMILIES = {
    "Mistral-Small-3.2-24B-Instruct-2506": "Mistral (with [ARGS])",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "Qwen3-Coder",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "Hermes",
    "Qwen-Qwen2.5-7B-Instruct": "Hermes",
    "Qwen-Qwen3-0.6B": "Hermes",
    "Qwen3-Coder": "Qwen3-Coder",
    "Qwen3.5-4B": "Qwen3-Coder",
    "google-gemma-4-31B-it": "Gemma 4",
    "google-gemma-4-31B-it-interleaved": "Gemma 4",
    "ibm-granite-granite-4.0": "Hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "Llama 3",
    "mistralai-Mistral-Nemo-Instruct-2407": "Mistral",
    "openai-gpt-oss-120b": "gpt-oss (harmony)",
}
KEEPS_THOUGHTS = {
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "Qwen-Qwen3-0.6B",
    "Qwen3.5-4B",
    "google-gemma-4-31B-it",
    "google-gemma-4-31B-it-interleaved",
    "openai-gpt-oss-120b",
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Its name"},
        "days": {"type": "integer"},
        "near": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "box": {"type": "object", "properties": {"x": {"type": "number"}}},
    },
    "required": ["city"],
}
WEATHER = Tool("weather", "The weather", PARAMETERS)
ARGUMENTS = {
    "city": "Łódź",
    "days": 2,
    "near": True,
    "tags": ["a", "b"],
    "box": {"x": 1.5},
}
USER = {"role": "user", "content": "How is the weather?"}


def called(*calls: Call, thought: str = "", text: str = "") -> Message:
    made = [
        {"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": a}}
        for i, (n, a) in enumerate(calls)
    ]
    said = {"role": "assistant", "content": text, "tool_calls": made}
    return {**said, "reasoning_content": thought} if thought else said


def result(text: str, index: int = 0) -> Message:
    number = f"call_{index}"
    return {"role": "tool", "content": text, "tool_call_id": number, "name": "weather"}


HISTORY: Sequence[Message] = (
    USER,
    called(("weather", ARGUMENTS), thought="I look it up."),
    result("rain"),
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "And there?"},
    called(("weather", {"city": "Ulm"}), thought="Another one."),
    result("sun"),
    called(("weather", {"city": "Bonn"}), thought="One more."),
    result("fog"),
)


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text()


def rendered(name: str, messages: Sequence[Message], **more: Any) -> str:
    sandbox = Sandbox()
    sandbox.work(source(name))
    changed, tools = AnswerForm.of(source(name)).family.messages(messages, [WEATHER])
    values = {
        "messages": [dict(one) for one in changed],
        "tools": [tool.plain for tool in tools] or None,
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    text = sandbox.work({**values, **more})
    day = r"(Current date: |The current date is )\d{4}-\d\d-\d\d"
    return re.sub(day, r"\g<1>2026-01-01", text)


def test_every_template_is_tested():
    assert {path.stem for path in FOLDER.glob("*.jinja")} == {*FAMILIES}
    assert {*FAMILIES} > KEEPS_THOUGHTS


@pytest.mark.parametrize("name", FAMILIES)
def test_its_family(name: str):
    assert AnswerForm.of(source(name)).family.name == FAMILIES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_history_of_calls_and_results(name: str):
    assert rendered(name, HISTORY) == (FOLDER / "golden" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_of_a_history_is_missing(name: str):
    text = rendered(name, HISTORY)
    begin = text.rindex("How is the weather?")
    said = ["How is the weather?", "Łódź", "rain", "It rains.", "And there?", "Ulm"]
    said += ["sun", "Bonn", "fog"]
    places = [text.find(one, begin) for one in said]
    assert min(places) >= 0
    assert places == sorted(places)
    kept = name in KEEPS_THOUGHTS
    assert all((one in text) == kept for one in ("Another one.", "One more."))
    if kept:
        order = ("Another one.", "Ulm", "sun", "One more.", "Bonn", "fog")
        assert [*map(text.rindex, order)] == sorted(map(text.rindex, order))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "calls",
    [
        [("weather", ARGUMENTS)],
        [("weather", {"city": 'a "b"\nc', "near": False})],
        [("weather", {"city": "a"}), ("weather", {"city": "b", "days": -1})],
    ],
)
def test_a_call_that_is_rendered_is_parsed(name: str, calls: list[Call]):
    form = AnswerForm.of(source(name))
    if len(calls) > 1 and isinstance(form.family, Harmony | Llama3):
        return
    said, more = [USER, called(*calls)], {"enable_thinking": True}
    before = rendered(name, [USER], **more)
    whole = rendered(name, said, add_generation_prompt=False, **more)
    begin = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
        len(before),
    )
    assert calls_of(parsed(Parser(form.family, [WEATHER]), [whole[begin:]])) == calls


@pytest.mark.parametrize("name", sorted(KEEPS_THOUGHTS))
def test_thoughts_that_are_rendered_are_thoughts(name: str):
    """A text before the call stays, and stays before it."""
    messages = [USER, called(("weather", {"city": "a"}), thought="Hm.", text="Wait.")]
    text = rendered(name, [*messages, result("rain")])
    begin = text.rindex("How is the weather?")
    order = ("Hm.", "Wait.", "weather", "rain")
    places = [text.index(one, begin + len("How is the weather?")) for one in order]
    assert places == sorted(places)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_after_a_result_is_one_in_which_the_model_goes_on(name: str):
    """It ends as that without results, or within the turn of the model."""
    messages = [USER, called(("weather", {"city": "a"}), text="Wait."), result("rain")]
    text = rendered(name, messages)
    if "gemma" in name:
        assert text.removesuffix("<|channel>thought\n<channel|>").endswith(
            '<|tool_response>response:weather{value:<|"|>rain<|"|>}<tool_response|>'
        )
    elif "istral" in name:
        assert text.endswith("[/TOOL_RESULTS]")
    else:
        before = rendered(name, [USER])
        assert text.endswith(before[before.rindex("assistant") :])


def _write() -> None:
    for name in FAMILIES:
        path = FOLDER / "golden" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(rendered(name, HISTORY))


if __name__ == "__main__":
    _write()
