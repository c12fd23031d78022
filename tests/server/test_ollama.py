"""Ollama's API: exact lines, and its own client on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from starlette.testclient import TestClient

from edgecs.errors import ModelError
from edgecs.runtime.served_models import ServedModel, ServedModels
from edgecs.server.app import Serving, create_app
from edgecs.server.http.guard import Access
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.served import Served
from tests.server.scripted import ScriptedEngine, client
from tests.server.servers import WAIT

MESSAGES = [{"role": "user", "content": "hello hello hello"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "hello hello hello"}


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.text.splitlines()]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what depends on the clock, which is checked."""
    made = datetime.fromisoformat(line.pop("created_at"))
    assert made.tzinfo is not None
    if line["done"]:
        assert line.pop("total_duration") > 0
    return line


END = {
    "model": "tiny",
    "done": True,
    "done_reason": "stop",
    "load_duration": 0,
    "prompt_eval_count": len("user: hello hello hello\n"),
    "prompt_eval_duration": 250_000_000,
    "eval_count": 3,
    "eval_duration": 500_000_000,
}


def test_a_chat_and_its_lines_are_exactly_ollamas():
    with client(ScriptedEngine("<think>a", "b</think>c", "d")) as made:
        whole = made.post("/api/chat", json={**CHAT, "stream": False}).json()
        *parts, last = map(timeless, lines(made.post("/api/chat", json=CHAT)))

    def said(content: str, **more: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": content, **more}}

    assert timeless(whole) == {**END, **said("cd", thinking="ab")}
    head = {"model": "tiny", "done": False}
    assert parts == [
        {**head, **said("", thinking="a")},
        {**head, **said("c", thinking="b")},
        {**head, **said("d")},
    ]
    assert last == {**END, **said("")}


def test_a_generation_returns_the_conversation_for_the_next_one():
    engine = ScriptedEngine("a", "b", "c")
    with client(engine) as made:
        whole = made.post("/api/generate", json={**PROMPT, "stream": False}).json()
        *parts, last = map(timeless, lines(made.post("/api/generate", json=PROMPT)))
        asked = {"model": "tiny", "prompt": "more", "context": whole["context"]}
        assert made.post("/api/generate", json=asked).status_code == 200
    context = [*b"user: hello hello hello\n", 65, 65, 65]
    assert timeless(whole) == {**END, "response": "abc", "context": context}
    assert [part["response"] for part in parts] == ["a", "b", "c"]
    assert last == {**END, "response": "", "context": context}
    assert engine.jobs[-1].prompt.tolist() == [*context, *b"user: more\n"]


def test_raw_prompts_are_fed_as_they_are():
    engine = ScriptedEngine("<think>a")
    with client(engine) as made:
        body = {**PROMPT, "raw": True, "stream": False}
        whole = made.post("/api/generate", json=body).json()
    assert engine.jobs[0].prompt.tolist() == [*b"hello hello hello"]
    assert whole["response"] == "<think>a"
    assert "context" not in whole


def test_a_system_message_comes_first():
    engine = ScriptedEngine("x")
    with client(engine) as made:
        made.post("/api/generate", json={**PROMPT, "system": "Be brief."})
    (messages, _, _) = engine.prompts[0]
    assert [message["role"] for message in messages] == ["system", "user"]


def test_an_answer_that_has_begun_is_continued():
    engine = ScriptedEngine("x")
    begun = {"role": "assistant", "content": "It is"}
    with client(engine) as made:
        made.post("/api/chat", json={**CHAT, "messages": [*MESSAGES, begun]})
    (messages, beginning, _) = engine.prompts[0]
    assert (len(messages), beginning) == (1, "It is")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_nothing_to_answer_only_loads_the_model(path: str):
    with client(ScriptedEngine("x")) as made:
        loaded = made.post(path, json={"model": "tiny"}).json()
        gone = made.post(path, json={"model": "tiny", "keep_alive": 0}).json()
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    assert gone["done_reason"] == "unload"
    assert loaded.keys() & {"message", "response"}


class TestUnloading:
    """A prompt that is empty with a `keep_alive` of 0."""

    @pytest.fixture
    def loads(self) -> list[str]:
        """The names of the models that were loaded."""
        return []

    @pytest.fixture
    def freed(self) -> threading.Event:
        """Set when a model is freed."""
        return threading.Event()

    @pytest.fixture
    def made(
        self, loads: list[str], freed: threading.Event, tmp_path: Path
    ) -> Iterator[TestClient]:
        @contextmanager
        def load(model: ServedModel, cancel: threading.Event) -> Iterator[Served]:
            loads.append(model.name)
            yield ScriptedEngine("x")
            freed.set()

        both = {name: ServedModel(name, name, tmp_path) for name in ("tiny", "other")}
        pool = ModelPool(ServedModels(both), load)
        app = create_app(Serving(pool))
        with TestClient(app, "http://localhost") as made:
            yield made

    @pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
    @pytest.mark.parametrize("keep_alive", [0, "0", "0s"])
    def test_loads_nothing(
        self, made: TestClient, loads: list[str], path: str, keep_alive: object
    ):
        body = {"model": "tiny", "keep_alive": keep_alive}
        gone = made.post(path, json=body).json()
        assert (gone["done"], gone["done_reason"]) == (True, "unload")
        assert gone.keys() & {"message", "response"}
        assert loads == []

    def test_unloads_the_model_that_is_there(
        self, made: TestClient, loads: list[str], freed: threading.Event
    ):
        assert made.post("/api/chat", json=CHAT).status_code == 200
        for name in ("other", "tiny"):
            assert not freed.is_set()
            body = {"model": name, "keep_alive": 0}
            gone = made.post("/api/generate", json=body).json()
            assert gone["done_reason"] == "unload"
        assert freed.wait(WAIT)
        assert loads == ["tiny"]

    def test_needs_a_model_that_there_is(self, made: TestClient):
        body = {"model": "none", "keep_alive": 0}
        reply = made.post("/api/generate", json=body)
        assert reply.status_code == 404
        assert "none" in reply.json()["error"]

    def test_is_not_asked_for_by_a_prompt(self, made: TestClient, loads: list[str]):
        for path, body in (("/api/chat", CHAT), ("/api/generate", PROMPT)):
            reply = made.post(path, json={**body, "keep_alive": 0, "stream": False})
            assert reply.json()["done_reason"] == "stop"
        assert {*loads} == {"tiny"}

    def test_a_body_that_is_wrong_is_refused(self, made: TestClient, loads: list[str]):
        body = {"model": "tiny", "keep_alive": 0, "messages": 7}
        assert made.post("/api/chat", json=body).status_code == 400
        assert loads == []


def test_options_reach_the_samplers():
    engine = ScriptedEngine("x")
    same = {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "repeat_penalty": 1.5}
    same |= {"repeat_last_n": 3, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    options = {**same, "top_k": 7, "seed": 9, "num_predict": 5, "stop": ["a", ""]}
    with client(engine) as made:
        for more in (options, {"num_ctx": 9, "numa": True, "num_predict": -1}):
            body = {**CHAT, "options": more, "format": "json"}
            assert made.post("/api/chat", json=body).status_code == 200
    first, second = engine.jobs
    sampling, grammar = first.rule
    assert {name: getattr(sampling, name) for name in same} == same
    assert (sampling.top_k, sampling.seed) == (7, 9)
    assert grammar is not None
    assert (first.max_tokens, first.stop) == (5, ["a"])
    assert second.max_tokens is None


def test_thinking_is_for_models_that_can():
    with client(ScriptedEngine("x")) as made:
        reply = made.post("/api/chat", json={**CHAT, "think": True})
        assert reply.status_code == 400
        assert reply.json() == {"error": "'tiny' does not support thinking"}
        assert made.post("/api/chat", json={**CHAT, "think": False}).status_code == 200
    engine = ScriptedEngine("a</think>b", thinks=True)
    with client(engine) as made:
        for think in (True, False, "high", None):
            body = {**CHAT, "think": think, "stream": False}
            message = made.post("/api/chat", json=body).json()["message"]
            assert (message["thinking"], message["content"]) == ("a", "b")
    assert [think for _, _, think in engine.prompts] == [True, False, True, None]


def test_log_probabilities():
    with client(ScriptedEngine("x")) as made:
        body = {**CHAT, "logprobs": True, "top_logprobs": 1, "stream": False}
        (one,) = made.post("/api/chat", json=body).json()["logprobs"]
        body = {**PROMPT, "logprobs": True}
        first, last = lines(made.post("/api/generate", json=body))
    named = {"token": "A", "logprob": -0.5, "bytes": [65]}
    assert one == {**named, "top_logprobs": [named]}
    assert first["logprobs"] == [{**named, "top_logprobs": []}]
    assert "logprobs" not in last


class TestErrors:
    """Every error is `{"error": "..."}`."""

    def said(self, reply: httpx.Response) -> tuple[int, str]:
        body = reply.json()
        assert body.keys() == {"error"}
        assert isinstance(body["error"], str)
        return reply.status_code, body["error"]

    @pytest.mark.parametrize(
        ("path", "body", "says"),
        [
            ("/api/chat", {"model": ""}, "model"),
            ("/api/chat", {"options": {"temperature": "hot"}}, "options.temperature"),
            ("/api/chat", {"format": "xml"}, "format"),
            ("/api/chat", {"messages": [{"role": "x"}]}, "messages.0.role"),
            (
                "/api/chat",
                {"messages": [{"role": "user", "content": "", "images": ["aa"]}]},
                "images cannot be read",
            ),
            ("/api/generate", {"suffix": "x"}, "suffix is not supported"),
            ("/api/generate", {"template": "x"}, "template is not supported"),
            ("/api/generate", {"context": [999]}, "token 999 does not exist"),
            ("/api/generate", {"prompt": "x" * 600}, "the context holds 512"),
            ("/api/show", {"model": ""}, "model is required"),
            ("/api/pull", {"model": ""}, "model is required"),
        ],
    )
    def test_of_requests(self, path: str, body: dict[str, Any], says: str):
        usual = CHAT if path == "/api/chat" else PROMPT
        with client(ScriptedEngine("x")) as made:
            status, text = self.said(made.post(path, json={**usual, **body}))
        assert status == 400
        assert says in text

    def test_of_the_server(self):
        with client(ScriptedEngine("x")) as made:
            for path in ("/api/show", "/api/pull"):
                status, text = self.said(made.post(path, json={"model": "other"}))
                assert (status, "not found" in text) == (404, True)
            assert self.said(made.post("/api/nothing"))[0] == 404
            assert self.said(made.get("/api/chat"))[0] == 405
        with client(ScriptedEngine("x"), Serving(access=Access("secret"))) as made:
            assert self.said(made.get("/api/tags"))[0] == 401
        with client(None) as made:
            assert self.said(made.post("/api/chat", json=CHAT)) == (
                503,
                "Loading model",
            )

    def test_in_a_stream(self):
        engine = ScriptedEngine("a", error=ModelError("the model is gone"))
        with client(engine) as made:
            first, last = lines(made.post("/api/chat", json=CHAT))
        assert first["message"]["content"] == "a"
        assert last == {"error": "the model is gone"}


class TestItsClient:
    """The client of Ollama, unchanged."""

    @pytest.fixture
    def made(self, url: str) -> Iterator[ollama.Client]:
        with ollama.Client(url) as made:
            yield made

    def test_a_chat_streamed_or_not(self, made: ollama.Client):
        options = {"temperature": 0, "num_predict": 12}
        whole = made.chat("tiny", MESSAGES, options=options)
        parts = [*made.chat("tiny", MESSAGES, options=options, stream=True)]
        assert "".join(part.message.content or "" for part in parts)
        assert whole.message.content == "".join(
            part.message.content or "" for part in parts
        )
        assert whole.eval_count == parts[-1].eval_count
        assert whole.done_reason == parts[-1].done_reason

    def test_a_generation_continues_with_its_context(self, made: ollama.Client):
        options = {"temperature": 0, "num_predict": 4}
        first = made.generate("tiny", "hello", options=options)
        more = made.generate("tiny", "more", options=options, context=first.context)
        assert first.context
        assert more.context
        assert more.context[: len(first.context)] == first.context
        ids = set(more.context[len(first.context) : -4])
        assert first.context[0] not in ids  # a text begins once

    def test_a_schema(self, made: ollama.Client):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
        schema |= {"required": ["ok"], "additionalProperties": False}
        options = {"temperature": 0, "num_predict": 100}
        reply = made.chat("tiny", MESSAGES, format=schema, options=options)
        assert isinstance(json.loads(reply.message.content or "")["ok"], bool)

    def test_the_models(self, made: ollama.Client, url: str):
        (model,) = made.list().models
        assert model.model == "tiny"
        assert model.details
        assert model.details.family == "llama"
        assert len(model.digest or "") == 64
        assert model.modified_at
        (running,) = made.ps().models
        assert running.context_length == 512
        assert running.digest == model.digest
        shown = made.show("tiny:latest")
        assert shown.capabilities == ["completion", "tools"]
        assert shown.modelinfo
        assert shown.modelinfo["llama.context_length"] == 65536
        assert [p.status for p in made.pull("tiny", stream=True)][-1] == "success"
        assert made.pull("tiny").status == "success"
        assert httpx.head(url).status_code == 200
        assert httpx.get(f"{url}/api/version").json()["version"]

    def test_errors_are_its_own(self, made: ollama.Client):
        with pytest.raises(ollama.ResponseError, match="context holds 512"):
            made.chat("tiny", [{"role": "user", "content": "x" * 600}])
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            made.show("other")
        assert caught.value.status_code == 404
