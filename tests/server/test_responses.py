"""OpenAI's Responses API: exact events, and its own client on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from starlette.testclient import TestClient

from edgecs.errors import ModelError
from tests.server.scripted import ScriptedEngine, client
from tests.server.test_anthropic import events

USUAL: dict[str, Any] = {"model": "tiny", "input": "hello hello hello"}
PROMPT = len("user: hello hello hello\n")
PART = {"type": "output_text", "annotations": [], "logprobs": []}

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def post(made: TestClient, **more: object) -> httpx.Response:
    return made.post("/v1/responses", json={**USUAL, **more})


def test_a_response_has_all_that_the_client_knows():
    with client(ScriptedEngine("<think>a", "b</think>c", "d")) as made:
        body = post(made, metadata={"a": "b"}, instructions="Be brief.").json()
    response = Response.model_validate(body, strict=True)
    assert response.output_text == "cd"
    thoughts, message = body["output"]
    assert thoughts.pop("id").startswith("rs_")
    content = [{"type": "reasoning_text", "text": "ab"}]
    assert thoughts == {
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": content,
    }
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{**PART, "text": "cd"}],
    }
    assert body["status"] == "completed"
    assert body["store"] is False
    prompt = PROMPT + len("system: Be brief.\n")
    assert body["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": prompt + 3,
    }


def test_the_events_of_a_stream_are_exactly_openais():
    with client(ScriptedEngine("<think>a", "</think>c", "d")) as made:
        found = events(post(made, stream=True))
    assert [event.pop("sequence_number") for event in found] == [*range(len(found))]
    created, in_progress, *middle, completed = found
    for event in (created, in_progress):
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
        assert event["response"]["usage"] is None
    assert completed["type"] == "response.completed"
    Response.model_validate(completed["response"], strict=True)
    first, second = completed["response"]["output"]

    def at(item: dict[str, Any], index: int, kind: str, **more: Any) -> dict[str, Any]:
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return {"type": f"response.{kind}", **place, **more}

    def about(item: dict[str, Any], index: int, kind: str) -> dict[str, Any]:
        name = f"response.output_item.{kind}"
        return {"type": name, "output_index": index, "item": item}

    begun = {"status": "in_progress", "content": []}
    thought = {"type": "reasoning_text", "text": ""}
    whole = {**PART, "text": "cd"}
    assert middle == [
        about({**first, **begun}, 0, "added"),
        at(first, 0, "content_part.added", part=thought),
        at(first, 0, "reasoning_text.delta", delta="a"),
        at(first, 0, "reasoning_text.done", text="a"),
        at(first, 0, "content_part.done", part={**thought, "text": "a"}),
        about(first, 0, "done"),
        about({**second, **begun}, 1, "added"),
        at(second, 1, "content_part.added", part={**PART, "text": ""}),
        at(second, 1, "output_text.delta", delta="c", logprobs=[]),
        at(second, 1, "output_text.delta", delta="d", logprobs=[]),
        at(second, 1, "output_text.done", text="cd", logprobs=[]),
        at(second, 1, "content_part.done", part=whole),
        about(second, 1, "done"),
    ]


@pytest.mark.parametrize("reason", ["length", "context", "cancelled"])
def test_an_answer_that_is_cut_is_incomplete(reason: Any):
    with client(ScriptedEngine("a", reason=reason)) as made:
        body = post(made).json()
        *_, last = events(post(made, stream=True))
    assert last["type"] == "response.incomplete"
    for response in (body, last["response"]):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == "incomplete"


def test_an_error_in_a_stream_fails_the_response():
    engine = ScriptedEngine("a", error=ModelError("the model is gone"))
    with client(engine) as made:
        *_, last = events(post(made, stream=True))
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    error = {"code": "server_error", "message": "the model is gone"}
    assert last["response"]["error"] == error


def test_log_probabilities():
    named = {"id": 65, "token": "A", "bytes": [65], "logprob": -0.5}
    include = ["message.output_text.logprobs"]
    with client(ScriptedEngine("a")) as made:
        body = post(made, include=include, top_logprobs=1).json()
        assert post(made, top_logprobs=0).json()["output"][0]["content"] == [
            {**PART, "text": "a"}
        ]
    (part,) = body["output"][0]["content"]
    assert part["logprobs"] == [{**named, "top_logprobs": [named]}]


TOOL = {"type": "function", "name": "now", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("rounds", "stated"),
    [
        (["", "", "\N{LLAMA}", "b"], [3, 1]),  # an emoji in three tokens
        (["a", "", "b", ""], [1, 2]),
        (["<think>a", "", "b</think>", "", "c"], [2]),  # the other tokens are thoughts
        (["<thi", "s", "", "a"], [2, 2]),  # held back until it is certain
        (["a", '<tool_call>{"name": "now",', ' "arguments": {}}</tool_call>'], [1]),
        (["a", "<tool", "_box>"], [1, 2]),
    ],
)
def test_every_token_of_a_text_has_its_log_probability(
    rounds: list[str], stated: list[int]
):
    include = ["message.output_text.logprobs"]
    with client(ScriptedEngine(*rounds)) as made:
        body = post(made, include=include, tools=[TOOL]).json()
        found = events(post(made, include=include, tools=[TOOL], stream=True))
    deltas = [e for e in found if e["type"] == "response.output_text.delta"]
    assert [len(delta["logprobs"]) for delta in deltas] == stated
    (done,) = (e for e in found if e["type"] == "response.output_text.done")
    (part,) = (
        part
        for item in body["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
    assert len(done["logprobs"]) == len(part["logprobs"]) == sum(stated)


def test_items_become_messages():
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "yes"}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
        {"role": "user", "content": "so?"},
    ]
    engine = ScriptedEngine("x")
    with client(engine) as made:
        assert post(made, input=items, instructions="Be brief.").status_code == 200
    (messages, _, _) = engine.prompts[0]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "Be brief."),
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "yes"),
        ("tool", "3"),
        ("user", "so?"),
    ]


def test_settings_reach_the_samplers():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    engine = ScriptedEngine("x")
    with client(engine) as made:
        more = {"temperature": 0.5, "top_p": 0.25, "max_output_tokens": 5}
        body = post(made, **more, text={"format": form}).json()
        post(made, reasoning={"effort": "none"})
        post(made, reasoning={"effort": "high"})
    sampling, grammar = engine.jobs[0].rule
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.25)
    assert engine.jobs[0].max_tokens == 5
    assert grammar is not None
    assert body["text"] == {"format": form}
    assert [thinks for _, _, thinks in engine.prompts] == [None, False, True]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input.0"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"conversation": {"id": "x"}}, "conversation is not supported"),
        ({"store": True}, "store: true is not supported"),
        ({"background": True}, "background is not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"tools": [{"type": "web_search"}]}, "a tool of type 'web_search'"),
        ({"temperature": -1}, "temperature"),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "x"}],
                    }
                ]
            },
            "a part of type input_image cannot be read",
        ),
    ],
)
def test_what_cannot_be_done_is_said(body: dict[str, Any], says: str):
    with client(ScriptedEngine("x")) as made:
        reply = post(made, **body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert says in error["message"]


class TestItsClient:
    """The client of OpenAI, unchanged."""

    @pytest.fixture
    def made(self, url: str) -> Iterator[openai.OpenAI]:
        base = f"{url}/v1"
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as made:
            yield made

    def test_a_response_streamed_or_not(self, made: openai.OpenAI):
        form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        body: dict[str, Any] = {**USUAL, "temperature": 0, "text": form}
        whole = made.responses.create(**body)
        with made.responses.stream(**body) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(deltas) == whole.output_text == final.output_text
        assert whole.output_text
        assert final.status == whole.status
        assert whole.usage
        assert final.usage
        assert final.usage.output_tokens == whole.usage.output_tokens

    def test_a_schema(self, made: openai.OpenAI):
        form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        reply = made.responses.create(**USUAL, temperature=0, text=form)
        assert isinstance(json.loads(reply.output_text)["ok"], bool)

    def test_an_answer_that_is_cut(self, made: openai.OpenAI):
        body: dict[str, Any] = {**USUAL, "temperature": 0, "max_output_tokens": 4}
        whole = made.responses.create(**body)
        *_, last = made.responses.create(**body, stream=True)
        assert last.type == "response.incomplete"
        assert last.response.output_text == whole.output_text

    def test_errors_are_its_own(self, made: openai.OpenAI):
        with pytest.raises(openai.BadRequestError, match="context holds 512"):
            made.responses.create(model="tiny", input="x" * 600)
        with pytest.raises(openai.BadRequestError, match="stores no responses"):
            made.responses.create(**USUAL, previous_response_id="resp_1")
