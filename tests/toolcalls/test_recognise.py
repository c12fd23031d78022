"""Which family a template belongs to, and what the generic one makes of messages."""

from __future__ import annotations

import json

import pytest

from edgecs.text.template_child import Sandbox
from edgecs.toolcalls.generic import Generic
from edgecs.toolcalls.mistral import MistralList
from edgecs.toolcalls.recognise import family_of
from edgecs.toolcalls.tool import Tool

TOOL = Tool("now", "The time", {"type": "object"})


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ messages }}", "generic"),
        ("{% if tools %}{{ tools }}{% endif %}", "generic"),
        ('{% if tools %}<tool_call>{"name", "arguments"}', "Hermes"),
        ("{% if tools %}<tool_call>name<arg_key>", "generic"),
        ("{% if tools %}<tool_call><function=x><parameter=y>", "Qwen3-Coder"),
        ('{% if tools %}{"name", "parameters"} ipython', "Llama 3"),
        ("{% if tools %}[TOOL_CALLS]", "Mistral"),
        ("{% if tools %}[TOOL_CALLS]name[ARGS]", "Mistral (with [ARGS])"),
        ("{% if tools %}<start_function_call>", "Gemma 3"),
        ("{% if tools %}<|tool_call>call:", "Gemma 4"),
        ("{% if tools %}<|channel|> functions", "gpt-oss (harmony)"),
    ],
)
def test_families(template: str, name: str):
    assert family_of(template).name == name


def test_a_template_without_a_system_role_gets_the_tools_from_the_user():
    family = family_of("{{ raise_exception('System role not supported') }}")
    messages, tools = family.messages([{"role": "user", "content": "hi"}], [TOOL])
    assert tools == ()
    (user,) = messages
    assert user["role"] == "user"
    assert json.dumps(TOOL.plain) in user["content"]
    assert user["content"].endswith("\n\nhi")


def test_without_tools_messages_stay_as_they_are():
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert Generic().messages(said, ()) == (said, ())


def test_thoughts_before_a_written_call_stay():
    call = {"function": {"name": "now", "arguments": {}}}
    said = {"role": "assistant", "content": "", "reasoning_content": "Hm"}
    (made,), _ = Generic().messages([{**said, "tool_calls": [call]}], ())
    assert made["reasoning_content"] == "Hm"
    assert '"name": "now"' in made["content"]


def test_ids_of_mistral_have_nine_characters():
    """The same id is the same in the call and in its result."""
    call = {"id": "call_123", "function": {"name": "now", "arguments": {}}}
    other = {**call, "id": "abcDEF123"}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call, other]},
        {"role": "tool", "content": "12:00", "tool_call_id": "call_123"},
    ]
    (made, result), tools = MistralList().messages(messages, [TOOL])
    short, kept = (one["id"] for one in made["tool_calls"])
    assert kept == "abcDEF123"
    assert len(short) == 9
    assert short.isalnum()
    assert result["tool_call_id"] == short
    assert tools == [TOOL]
    assert messages[1]["tool_call_id"] == "call_123"


def test_templates_may_mark_answers_for_training():
    sandbox = Sandbox()
    sandbox.work("a{% generation %}{{ x }}{% endgeneration %}c")
    assert sandbox.work({"x": "b"}) == "abc"
