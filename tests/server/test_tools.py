"""Tool calls in every API: what clients send and receive, on answers written down."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from starlette.testclient import TestClient

from edgecs.grammar.lazy import LazyGrammar
from edgecs.grammar.mask import Grammar
from edgecs.server.answers.choice import Choice, drafts_in_calls
from edgecs.session.answer import Token
from edgecs.session.stats import Record, Stats
from tests.server.scripted import ScriptedEngine, client
from tests.server.test_anthropic import events

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
FUNCTION = {"name": "weather", "description": "The weather", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
TWO = [*TOOLS, {"type": "function", "function": {"name": "now"}}]
ASKED = [{"role": "user", "content": "hello"}]
CITY = {"city": "Łódź"}
CALL = json.dumps({"name": "weather", "arguments": CITY}, ensure_ascii=False)
ROUNDS = (
    "I look",
    ". <tool",
    "_call>\n",
    CALL[:20],
    CALL[20:],
    "\n</tool_call>",
    "",
)
GENERIC = "{{ messages }}"


def chat(made: TestClient, **more: Any) -> httpx.Response:
    body = {"messages": ASKED, "tools": TOOLS, **more}
    return made.post("/v1/chat/completions", json=body)


def chunks(reply: httpx.Response) -> list[dict[str, Any]]:
    blocks = reply.text.removesuffix("\n\n").split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def streamed(found: list[dict[str, Any]]) -> tuple[str, dict[int, list[str]]]:
    """The text, and for each call its id, name and arguments."""
    text, calls = "", dict[int, list[str]]()
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk)
        delta = chunk["choices"][0]["delta"]
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["type"] == "function"
                named = [call["id"], call["function"]["name"], ""]
                calls[call["index"]] = named
            calls[call["index"]][2] += call["function"]["arguments"]
    return text, calls


class TestOpenAI:
    def test_a_call(self):
        engine = ScriptedEngine(*ROUNDS)
        with client(engine) as made:
            body = chat(made).json()
        ChatCompletion.model_validate(body)
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"].pop("tool_calls")
        assert call.pop("id").startswith("call_")
        assert json.loads(call["function"].pop("arguments")) == CITY
        assert call == {"type": "function", "function": {"name": "weather"}}
        message = {"role": "assistant", "content": "I look.", "refusal": None}
        assert choice["message"] == message
        assert "incomplete_tool_calls" not in choice
        assert [*engine.tools] == TOOLS

    def test_a_call_alone_has_no_content(self):
        with client(ScriptedEngine(f"<tool_call>{CALL}</tool_call>")) as made:
            (choice,) = chat(made).json()["choices"]
        assert choice["message"]["content"] is None

    def test_its_stream(self):
        with client(ScriptedEngine(*ROUNDS)) as made:
            found = chunks(chat(made, stream=True))
        text, calls = streamed(found)
        assert text == "I look."
        assert [*calls] == [0]
        number, name, arguments = calls[0]
        assert number.startswith("call_")
        assert (name, json.loads(arguments)) == ("weather", CITY)
        assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
        deltas = [chunk["choices"][0]["delta"] for chunk in found]
        assert "<" not in "".join(delta.get("content") or "" for delta in deltas)
        named = [delta for delta in deltas if "tool_calls" in delta]
        assert len(named) > 1  # the arguments arrive in parts

    def test_several_calls_and_their_rounds(self):
        both = f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "now", '
        engine = ScriptedEngine(both, '"arguments": {}}</tool_call>')
        with client(engine) as made:
            whole = chat(made, tools=TWO).json()["choices"][0]["message"]
            _, calls = streamed(chunks(chat(made, tools=TWO, stream=True)))
        said = [call["function"]["name"] for call in whole["tool_calls"]]
        assert said == [name for _, name, _ in calls.values()] == ["weather", "now"]
        assert len({number for number, _, _ in calls.values()}) == 2

    @pytest.mark.parametrize("reason", ["length", "stop", "cancelled", "context"])
    def test_a_call_that_is_cut_off_is_text_and_says_so(self, reason: Any):
        with client(ScriptedEngine(*ROUNDS[:4], reason=reason)) as made:
            (choice,) = chat(made).json()["choices"]
            found = chunks(chat(made, stream=True))
        text = "".join(ROUNDS[:4])
        assert choice["message"]["content"] == text
        assert "tool_calls" not in choice["message"]
        assert choice["incomplete_tool_calls"] == 1
        expected = "stop" if reason == "stop" else "length"
        assert choice["finish_reason"] == expected
        assert streamed(found)[0] == text
        last = found[-1]["choices"][0]
        assert last["finish_reason"] == expected
        assert last["incomplete_tool_calls"] == 1

    def test_calls_before_one_that_is_cut_off_count(self):
        text = f"<tool_call>{CALL}</tool_call><tool_call>{CALL[:9]}"
        with client(ScriptedEngine(text, reason="length")) as made:
            (choice,) = chat(made).json()["choices"]
        assert len(choice["message"]["tool_calls"]) == 1
        assert choice["message"]["content"] == f"<tool_call>{CALL[:9]}"
        assert choice["finish_reason"] == "length"

    def test_thoughts_come_first(self):
        engine = ScriptedEngine("I think <tool_call>", "</think>\n\n", *ROUNDS[1:])
        engine.thinks = True
        with client(engine) as made:
            (choice,) = chat(made).json()["choices"]
        assert choice["message"]["reasoning_content"] == "I think <tool_call>"
        assert choice["message"]["content"] == "."
        assert choice["finish_reason"] == "tool_calls"

    def test_a_choice_of_none_parses_nothing(self):
        engine = ScriptedEngine(*ROUNDS)
        with client(engine) as made:
            (choice,) = chat(made, tool_choice="none").json()["choices"]
        assert choice["message"]["content"] == "".join(ROUNDS)
        assert choice["finish_reason"] == "stop"
        assert [*engine.tools] == []
        assert engine.jobs[0].rule[1] is None

    def test_a_choice_decides_when_the_grammar_begins(self):
        engine = ScriptedEngine(*ROUNDS)
        named = {"type": "function", "function": {"name": "now"}}
        with client(engine) as made:
            for choice in ("auto", "required", named):
                assert chat(made, tools=TWO, tool_choice=choice).status_code == 200
            chat(made, tools=TWO, parallel_tool_calls=False)
        auto, required, only, single = (job.rule[1] for job in engine.jobs)
        assert isinstance(auto, LazyGrammar)
        assert isinstance(required, Grammar)
        assert "weather" in required.lark
        assert "weather" not in only.lark
        assert "call: " in single.grammar.lark
        assert "call)*" in auto.grammar.lark
        assert "call)*" not in single.grammar.lark

    def test_the_template_gets_calls_and_results(self):
        engine = ScriptedEngine("It rains.")
        function = {"name": "weather", "arguments": json.dumps(CITY)}
        call = {"id": "c1", "type": "function", "function": function}
        messages = [
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        with client(engine) as made:
            assert chat(made, messages=messages).status_code == 200
        (turns, _, _) = engine.prompts[0]
        plain = {**call, "function": {"name": "weather", "arguments": CITY}}
        assert turns == [
            *ASKED,
            {"role": "assistant", "content": "", "tool_calls": [plain]},
            {
                "role": "tool",
                "content": "rain",
                "tool_call_id": "c1",
                "name": "weather",
            },
        ]

    def test_a_model_without_tools_in_its_template_gets_a_system_message(self):
        engine = ScriptedEngine(*ROUNDS, template=GENERIC)
        engine.n_ctx = 4096
        function = {"name": "weather", "arguments": json.dumps(CITY)}
        messages = [
            {"role": "system", "content": "Be brief."},
            *ASKED,
            {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]},
            {"role": "tool", "tool_call_id": "a", "content": "rain"},
            {"role": "user", "content": "So?"},
        ]
        with client(engine) as made:
            body = chat(made, messages=messages).json()
        assert body["choices"][0]["finish_reason"] == "tool_calls", body
        ((system, user, said, result), _, _) = engine.prompts[0]
        assert system["content"].startswith("Be brief.\n\n# Tools")
        assert json.dumps(TOOLS[0]) in system["content"]
        assert user == ASKED[0]
        arguments = json.dumps(CITY, ensure_ascii=False)
        assert f'"arguments": {arguments}' in said["content"]
        assert result["role"] == "user"
        assert result["content"] == "<tool_response>\nrain\n</tool_response>\n\nSo?"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"tools": [{"type": "web"}]}, "tools.0"),
            ({"tools": [*TOOLS, *TOOLS]}, "two tools are called weather"),
            ({"tool_choice": "sometimes"}, "tool_choice"),
            ({"tools": [], "tool_choice": "required"}, "there are no tools"),
            (
                {"tool_choice": {"type": "function", "function": {"name": "x"}}},
                "tool_choice names 'x', which is not one of the tools: weather",
            ),
            ({"response_format": {"type": "json_object"}}, "cannot be combined"),
            (
                {"tools": [{"function": {"name": "a", "parameters": {"type": 1}}}]},
                "must be a schema of type object",
            ),
            (
                {
                    "tools": [
                        {
                            "function": {
                                "name": "a",
                                "parameters": {"properties": {"x": {"type": "odd"}}},
                            }
                        }
                    ]
                },
                "the tool a: ",
            ),
            (
                {
                    "tools": [
                        {"function": {"name": "a", "parameters": {"x": "y" * 2**18}}}
                    ]
                },
                "the tool a: the JSON schema has",
            ),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, more: Any, message: str):
        with client(ScriptedEngine("a")) as made:
            reply = chat(made, **more)
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert message in error["message"]
        assert error["type"] == "invalid_request_error"


@settings(deadline=None)
@given(st.lists(st.integers(0, 80), max_size=6))
def test_a_stream_never_shows_half_a_marker(places: list[int]):
    text = f"Yes. <tool_call>{CALL}</tool_call>"
    bounds = sorted({0, len(text), *(place % len(text) for place in places)})
    choice = Choice(0, None, _parser())
    said = ""
    for begin, end in pairwise(bounds):
        said += choice.add([Token(0, text[begin:end], "target")]).text
        assert "Yes.".startswith(said)
    assert said == "Yes."
    assert [json.loads(call.arguments) for call in choice.calls] == [CITY]


def _parser() -> Any:
    from edgecs.toolcalls.family import Parser
    from edgecs.toolcalls.hermes import Hermes
    from edgecs.toolcalls.tool import Tool

    return Parser(Hermes(), [Tool("weather", None, PARAMETERS)])


def test_drafts_inside_calls_are_counted():
    choice = Choice(0, None, _parser())
    texts = ["Yes. ", "<tool_call>", *CALL, "</tool_call>", ""]
    for text in texts:
        choice.add([Token(0, text, "target")])
    inside = [index for index, one in enumerate(choice.in_calls) if one]
    assert inside == [*range(1, 2 + len(CALL))]
    rounds = [
        Record(("a",) * 2, ("a",) * 2, (0,)),  # tokens 1 and 2
        Record(("a",) * 9, ("a",) * 9, tuple(range(len(CALL)))),
        Record(("a",) * 3, ("a",) * 3, ()),
    ]
    stats = Stats(tokens=len(texts), records=rounds)
    assert drafts_in_calls(choice, stats) == {
        "tokens": len(CALL) + 1,
        "rounds": 2,
        "tested": 11,
        "accepted": 1 + len(CALL),
    }
    assert drafts_in_calls(Choice(0), stats) == {}


ANTHROPICS = {"name": "weather", "description": "x", "input_schema": PARAMETERS}


class TestAnthropic:
    def post(self, made: TestClient, **more: Any) -> httpx.Response:
        usual = {"model": "tiny", "messages": ASKED, "max_tokens": 99}
        body = {**usual, "tools": [ANTHROPICS], **more}
        return made.post("/v1/messages", json=body)

    def test_a_call(self):
        engine = ScriptedEngine(*ROUNDS)
        with client(engine) as made:
            body = self.post(made).json()
        text, call = body["content"]
        assert text == {"type": "text", "text": "I look."}
        assert call.pop("id").startswith("toolu_")
        assert call == {"type": "tool_use", "name": "weather", "input": CITY}
        assert body["stop_reason"] == "tool_use"
        assert [tool["function"]["name"] for tool in engine.tools] == ["weather"]

    def test_its_events_are_exactly_anthropics(self):
        with client(ScriptedEngine(*ROUNDS)) as made:
            found = events(self.post(made, stream=True))
        blocks = [one for one in found if one["type"] == "content_block_start"]
        assert [one["index"] for one in blocks] == [0, 1]
        call = blocks[1]["content_block"]
        assert call.pop("id").startswith("toolu_")
        assert call == {"type": "tool_use", "name": "weather", "input": {}}
        deltas = [
            one["delta"]
            for one in found
            if one["type"] == "content_block_delta" and one["index"] == 1
        ]
        assert {one["type"] for one in deltas} == {"input_json_delta"}
        assert json.loads("".join(one["partial_json"] for one in deltas)) == CITY
        kinds = [one["type"] for one in found if one["type"] != "content_block_delta"]
        assert kinds == [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_stop",
            "content_block_start",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert found[-2]["delta"]["stop_reason"] == "tool_use"

    def test_a_call_that_is_cut_off_is_text(self):
        with client(ScriptedEngine(*ROUNDS[:4], reason="length")) as made:
            body = self.post(made).json()
            found = events(self.post(made, stream=True))
        assert body["content"] == [{"type": "text", "text": "".join(ROUNDS[:4])}]
        assert body["stop_reason"] == "max_tokens"
        assert body["incomplete_tool_calls"] == 1
        assert found[-2]["delta"]["incomplete_tool_calls"] == 1
        shown = [one["delta"].get("text", "") for one in found if "delta" in one]
        assert "".join(shown) == "".join(ROUNDS[:4])

    def test_a_choice(self):
        engine = ScriptedEngine("a")
        with client(engine) as made:
            for choice in (
                {"type": "auto"},
                {"type": "any"},
                {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
                {"type": "none"},
            ):
                reply = self.post(made, tool_choice=choice)
                assert reply.status_code == 200, reply.text
            bad = self.post(made, tool_choice={"type": "tool", "name": "x"})
        kinds = [type(job.rule[1]) for job in engine.jobs]
        assert kinds == [LazyGrammar, Grammar, Grammar, type(None)]
        assert bad.status_code == 400
        assert bad.json()["error"]["type"] == "invalid_request_error"


class TestOllama:
    def post(self, made: TestClient, **more: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": ASKED, "tools": TOOLS, **more}
        return made.post("/api/chat", json=body)

    def test_a_call_is_whole_in_a_stream_too(self):
        engine = ScriptedEngine(*ROUNDS)
        with client(engine) as made:
            whole = self.post(made, stream=False).json()
            lines = [json.loads(line) for line in self.post(made).text.splitlines()]
        messages = [line["message"] for line in lines]
        assert "".join(message["content"] for message in messages) == "I look."
        (call,) = [call for one in messages for call in one.get("tool_calls", ())]
        (same,) = whole["message"]["tool_calls"]
        for one in (call, same):
            function = {"index": 0, "name": "weather", "arguments": CITY}
            assert one["function"] == function
        assert whole["message"]["content"] == "I look."
        assert lines[-1]["done_reason"] == whole["done_reason"] == "stop"

    def test_results_have_the_name_of_their_tool(self):
        engine = ScriptedEngine("a")
        call = {"function": {"name": "weather", "arguments": CITY}}
        messages = [
            *ASKED,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_name": "weather", "content": "rain"},
        ]
        with client(engine) as made:
            assert self.post(made, messages=messages).status_code == 200
        (turns, _, _) = engine.prompts[0]
        assert turns[1]["tool_calls"][0]["function"]["arguments"] == CITY
        assert turns[2]["name"] == "weather"

    def test_a_call_that_is_cut_off_is_text(self):
        with client(ScriptedEngine(*ROUNDS[:4], reason="length")) as made:
            whole = self.post(made, stream=False).json()
        assert whole["message"]["content"] == "".join(ROUNDS[:4])
        assert whole["incomplete_tool_calls"] == 1


class TestResponses:
    def post(self, made: TestClient, **more: Any) -> httpx.Response:
        tools = [{"type": "function", **FUNCTION}]
        body = {"model": "tiny", "input": "hello", "tools": tools, **more}
        return made.post("/v1/responses", json=body)

    def test_a_call_is_an_item(self):
        with client(ScriptedEngine(*ROUNDS)) as made:
            body = self.post(made).json()
        Response.model_validate(body)
        message, call = body["output"]
        assert message["content"][0]["text"] == "I look."
        assert call.pop("id").startswith("fc_")
        assert call.pop("call_id").startswith("call_")
        assert json.loads(call.pop("arguments")) == CITY
        kind = {"type": "function_call", "status": "completed", "name": "weather"}
        assert call == kind
        assert body["status"] == "completed"

    def test_its_events_are_exactly_openais(self):
        with client(ScriptedEngine(*ROUNDS)) as made:
            found = events(self.post(made, stream=True))
        call = found[-1]["response"]["output"][1]
        place = {"item_id": call["id"], "output_index": 1}
        of_call = [one for one in found if one.get("output_index") == 1]
        for one in of_call:
            del one["sequence_number"]
        added, *deltas, done, ended = of_call
        begun = {**call, "arguments": "", "status": "in_progress"}
        about = {"type": "response.output_item.added", "output_index": 1}
        assert added == {**about, "item": begun}
        kind = "response.function_call_arguments"
        text = "".join(one.pop("delta") for one in deltas)
        assert json.loads(text) == CITY
        assert all(one == {**place, "type": f"{kind}.delta"} for one in deltas)
        whole = {"arguments": text, "name": "weather"}
        assert done == {**place, "type": f"{kind}.done", **whole}
        about["type"] = "response.output_item.done"
        assert ended == {**about, "item": call}

    def test_calls_and_results_are_messages(self):
        engine = ScriptedEngine("a")
        call = {"type": "function_call", "call_id": "c", "name": "weather"}
        items = [
            *ASKED,
            {**call, "arguments": json.dumps(CITY)},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ]
        with client(engine) as made:
            reply = self.post(made, input=items, tool_choice="required")
        assert reply.status_code == 200, reply.text
        (turns, _, _) = engine.prompts[0]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
        assert turns[1]["tool_calls"][0]["function"]["arguments"] == CITY
        assert turns[2]["name"] == "weather"
        assert isinstance(engine.jobs[0].rule[1], Grammar)

    def test_a_call_that_is_cut_off_is_text(self):
        with client(ScriptedEngine(*ROUNDS[:4], reason="length")) as made:
            body = self.post(made).json()
            found = events(self.post(made, stream=True))
        assert {item["type"] for item in body["output"]} == {"message"}
        text = "".join(item["content"][0]["text"] for item in body["output"])
        assert text == "".join(ROUNDS[:4])
        assert body["incomplete_tool_calls"] == 1
        last = found[-1]["response"]
        assert last["status"] == "incomplete"
        items = [(one["type"], one["status"]) for one in last["output"]]
        assert ("function_call", "incomplete") in items


def test_apply_template_takes_tools():
    engine = ScriptedEngine("a", template=GENERIC)
    with client(engine) as made:
        body = {"messages": ASKED, "tools": TOOLS, "with_tokens": True}
        reply = made.post("/apply-template", json=body).json()
    assert json.dumps(TOOLS[0]) in reply["prompt"]
    assert bytes(reply["tokens"]).decode() == reply["prompt"]
