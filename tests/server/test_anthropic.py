"""Anthropic's API: exact events, and its own client on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from starlette.testclient import TestClient

from edgecs.errors import ModelError
from edgecs.server.app import Serving
from edgecs.server.batching.job import Busy
from edgecs.server.http import replies
from edgecs.server.http.guard import Access
from tests.server.scripted import ScriptedEngine, client

MESSAGES = [{"role": "user", "content": "hello hello hello"}]
USUAL: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16}


def post(made: TestClient, **more: object) -> httpx.Response:
    return made.post("/v1/messages", json={**USUAL, **more})


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names are checked."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def test_a_message_and_its_events_are_exactly_anthropics():
    engine = ScriptedEngine("<think>a", "b</think>c", "d")
    with client(engine) as made:
        whole = post(made).json()
        stream = events(post(made, stream=True))
    assert whole.pop("id").startswith("msg_")
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 3}
    prompt = len("user: hello hello hello\n")
    last = {
        **usage,
        "input_tokens": prompt - 3,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 2},
    }
    head = {"type": "message", "role": "assistant", "model": "tiny"}
    assert whole == {
        **head,
        "content": [
            {"type": "thinking", "thinking": "ab", "signature": ""},
            {"type": "text", "text": "cd"},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": last,
    }
    start = stream[0]["message"]
    assert start.pop("id").startswith("msg_")
    first = {**last, "input_tokens": prompt, "cache_read_input_tokens": 0}
    first |= {"output_tokens": 0, "output_tokens_details": {"thinking_tokens": 0}}
    nothing = {"stop_reason": None, "stop_sequence": None}
    assert start == {**head, "content": [], **nothing, "usage": first}

    def delta(index: int, kind: str, **text: str) -> dict[str, Any]:
        new = {"type": f"{kind}_delta", **text}
        return {"type": "content_block_delta", "index": index, "delta": new}

    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    assert stream[1:] == [
        {"type": "content_block_start", "index": 0, "content_block": thinking},
        {"type": "ping"},
        delta(0, "thinking", thinking="a"),
        delta(0, "thinking", thinking="b"),
        delta(0, "signature", signature=""),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "text", "text": ""},
        },
        delta(1, "text", text="c"),
        delta(1, "text", text="d"),
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": ending, "usage": last},
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"reason": "length"}, "max_tokens"),
        ({"reason": "cancelled"}, "max_tokens"),
        ({"reason": "context"}, "model_context_window_exceeded"),
        ({"reason": "stop", "stop": "END"}, "stop_sequence"),
    ],
)
def test_why_an_answer_ended(script: dict[str, Any], reason: str):
    with client(ScriptedEngine("x", **script)) as made:
        whole = post(made, stop_sequences=["END"]).json()
        *_, delta, _ = events(post(made, stream=True))
    for ending in (whole, delta["delta"]):
        assert ending["stop_reason"] == reason
        assert ending["stop_sequence"] == script.get("stop")


def test_an_answer_without_text_has_no_blocks():
    with client(ScriptedEngine("")) as made:
        assert post(made).json()["content"] == []
        kinds = [event["type"] for event in events(post(made, stream=True))]
    assert kinds == ["message_start", "message_delta", "message_stop"]


def test_thoughts_may_be_left_out():
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
    engine = ScriptedEngine("a</think>", "b", thinks=True)
    with client(engine) as made:
        blocks = post(made, thinking=thinking).json()["content"]
        stream = events(post(made, thinking=thinking, stream=True))
        post(made, thinking={"type": "disabled"})
        post(made)
    assert [block.get("thinking") for block in blocks] == ["", None]
    deltas = [e["delta"]["type"] for e in stream if e["type"] == "content_block_delta"]
    assert deltas == ["signature_delta", "text_delta"]
    assert [thinks for _, _, thinks in engine.prompts] == [True, True, False, None]


class TestConversations:
    """What the model gets of the blocks of a client."""

    def prompt(self, **body: Any) -> tuple[list[tuple[str, str]], str]:
        engine = ScriptedEngine("x")
        with client(engine) as made:
            reply = post(made, **body)
            assert reply.status_code == 200, reply.text
            count = made.post("/v1/messages/count_tokens", json={**USUAL, **body})
        (messages, beginning, _), again = engine.prompts
        assert again[:2] == (messages, beginning)
        assert count.json() == {"input_tokens": engine.jobs[0].prompt.size}
        return [(m["role"], m["content"]) for m in messages], beginning

    def test_systems_are_texts_or_blocks(self):
        blocks = [{"type": "text", "text": t} for t in ("Be brief.", "Be kind.")]
        turns, _ = self.prompt(system=blocks)
        assert turns[0] == ("system", "Be brief.\n\nBe kind.")
        assert self.prompt(system="Be brief.")[0][0] == ("system", "Be brief.")
        assert self.prompt(system="")[0][0][0] == "user"

    def test_consecutive_messages_of_a_role_are_one_turn(self):
        said = [("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
        messages = [{"role": role, "content": text} for role, text in said]
        turns, _ = self.prompt(messages=messages)
        assert turns == [("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]

    def test_an_answer_that_has_begun_is_continued(self):
        begun = {"role": "assistant", "content": "The answer is ( "}
        turns, beginning = self.prompt(messages=[*MESSAGES, begun])
        assert turns == [("user", MESSAGES[0]["content"])]
        assert beginning == "The answer is ("

    def test_results_of_tools_come_before_the_text_of_their_message(self):
        call = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}
        result = {"type": "tool_result", "tool_use_id": "t1"}
        result["content"] = [{"type": "text", "text": "3"}]
        thought = {"type": "thinking", "thinking": "hm", "signature": ""}
        messages = [
            *MESSAGES,
            {"role": "assistant", "content": [thought, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
        ]
        turns, _ = self.prompt(messages=messages)
        assert [role for role, _ in turns] == ["user", "assistant", "tool", "user"]
        assert [text for _, text in turns[2:]] == ["3", "so?"]


def test_settings_reach_the_samplers():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    engine = ScriptedEngine("x")
    with client(engine) as made:
        settings = {"temperature": 0.5, "top_p": 0.25, "top_k": 7}
        form = {"format": {"type": "json_schema", "schema": schema}}
        more = {"metadata": {"user_id": "x"}, "output_config": form, "unknown": 1}
        assert post(made, stop_sequences=["a"], **settings, **more).status_code == 200
    (job,) = engine.jobs
    sampling, grammar = job.rule
    assert {name: getattr(sampling, name) for name in settings} == settings
    assert grammar is not None
    assert (job.max_tokens, job.stop) == (16, ["a"])


class TestErrors:
    """Every error has Anthropic's form."""

    def said(self, reply: httpx.Response) -> tuple[int, str, str]:
        body = reply.json()
        assert body.keys() == {"type", "error"}
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
        return reply.status_code, body["error"]["type"], body["error"]["message"]

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ({"max_tokens": "x"}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"temperature": -1}, "temperature"),
            ({"stop_sequences": ["x"] * 100}, "stop_sequences"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
                "a block of type image cannot be read",
            ),
            (
                {"messages": [{"role": "user", "content": "x" * 600}]},
                "the context holds 512",
            ),
        ],
    )
    def test_of_requests(self, body: dict[str, Any], says: str):
        for stream in (False, True):
            with client(ScriptedEngine("x")) as made:
                status, kind, text = self.said(post(made, stream=stream, **body))
            assert (status, kind) == (400, "invalid_request_error")
            assert says in text

    def test_of_the_server(self):
        with client(ScriptedEngine(error=Busy("retry later"))) as made:
            reply = post(made)
            assert self.said(reply)[:2] == (429, "rate_limit_error")
            assert reply.headers["retry-after"] == "1"
            assert self.said(made.get("/v1/messages"))[0] == 405
            path = "/v1/messages/batches"
            assert self.said(made.get(path))[:2] == (404, "not_found_error")
            evil = {"host": "evil.example"}
            reply = made.post("/v1/messages", headers=evil)
            assert self.said(reply)[:2] == (403, "permission_error")
        with client(None) as made:
            assert self.said(post(made))[:2] == (503, "overloaded_error")
        serving = Serving(access=Access("secret"), most_body=10)
        with client(ScriptedEngine("x"), serving) as made:
            assert self.said(post(made))[:2] == (401, "authentication_error")
            headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
            reply = made.post("/v1/messages", json=USUAL, headers=headers)
            assert self.said(reply)[:2] == (413, "request_too_large")

    def test_in_a_stream(self):
        engine = ScriptedEngine("a", error=ModelError("the model is gone"))
        with client(engine) as made:
            *_, last = events(post(made, stream=True))
        error = {"type": "overloaded_error", "message": "the model is gone"}
        assert last == {"type": "error", "error": error}


def test_pings_keep_a_connection_alive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replies, "PING_SECONDS", 0.0)
    with client(ScriptedEngine("a", "b")) as made:
        found = [e["type"] for e in events(post(made, stream=True))]
    assert found.count("ping") > 1


class TestItsClient:
    """The client of Anthropic, unchanged."""

    @pytest.fixture
    def claude(self, url: str) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
            yield made

    def test_a_message_streamed_or_not(self, claude: anthropic.Anthropic):
        greedy = {"extra_body": {"temperature": 0}}
        whole = claude.messages.create(**USUAL, **greedy)
        with claude.messages.stream(**USUAL, **greedy) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == whole.content[0].text == final.content[0].text
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens
        read = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
        counted = claude.messages.count_tokens(model="tiny", messages=MESSAGES)
        assert counted.input_tokens == read

    def test_a_stop_sequence(self, claude: anthropic.Anthropic):
        greedy = {"extra_body": {"temperature": 0}}
        text = claude.messages.create(**USUAL, **greedy).content[0].text
        stop = text[5:7]
        cut = claude.messages.create(**USUAL, **greedy, stop_sequences=["~~~", stop])
        assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
        assert "".join(b.text for b in cut.content) == text[: text.index(stop)]

    def test_errors_are_its_own(self, claude: anthropic.Anthropic):
        long = [{"role": "user", "content": "x" * 600}]
        with pytest.raises(anthropic.BadRequestError, match="context holds 512"):
            claude.messages.create(**{**USUAL, "messages": long})
        with pytest.raises(anthropic.NotFoundError):
            claude.messages.batches.list()
