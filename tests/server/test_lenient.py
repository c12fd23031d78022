"""Values that clients send where they mean nothing in particular."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edgecs.server.answers.body import Body
from edgecs.server.answers.schemas import (
    ChatRequest,
    CompletionRequest,
    TemplateRequest,
    TokenizeRequest,
    UnloadRequest,
)
from edgecs.server.apis.anthropic.schemas import MessagesRequest
from edgecs.server.apis.embeddings import EmbeddingsRequest, EmbedRequest
from edgecs.server.apis.ollama.schemas import ChatRequest as OllamaChat
from edgecs.server.apis.ollama.schemas import GenerateRequest, ShowRequest
from edgecs.server.apis.responses.schemas import ResponsesRequest
from tests.server.scripted import ScriptedEngine, client

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"messages": HELLO}
PATHS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"model": "tiny", "messages": HELLO, "max_tokens": 9},
    "/api/chat": {"model": "tiny", "messages": HELLO},
    "/api/generate": {"model": "tiny", "prompt": "hello"},
}
BODIES: list[tuple[type[BaseModel], Mapping[str, Any]]] = [
    (ChatRequest, CHAT),
    (CompletionRequest, PATHS["/v1/completions"]),
    (ResponsesRequest, PATHS["/v1/responses"]),
    (MessagesRequest, PATHS["/v1/messages"]),
    (OllamaChat, PATHS["/api/chat"]),
    (GenerateRequest, PATHS["/api/generate"]),
    (ShowRequest, {"model": "tiny"}),
    (EmbeddingsRequest, {"input": "hello"}),
    (EmbedRequest, {"input": "hello"}),
    (TemplateRequest, CHAT),
    (TokenizeRequest, {"content": "hello"}),
    (UnloadRequest, {"model": "tiny"}),
]


@pytest.mark.parametrize(("kind", "body"), BODIES)
def test_null_is_the_same_as_leaving_a_field_out(
    kind: type[BaseModel], body: Mapping[str, Any]
):
    optional = {
        field.alias or name: None
        for name, field in kind.model_fields.items()
        if not field.is_required()
    }
    assert optional.keys() - body.keys() or kind is UnloadRequest
    made = kind.model_validate({**optional, **body})
    assert made.model_dump() == kind.model_validate(body).model_dump()


def inner() -> Iterator[type[Body]]:
    waiting = [Body]
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        yield from found


def test_null_is_left_out_in_parts_of_bodies_too():
    nested = {"include_usage": None}, {"enable_thinking": None}, {"description": None}
    tool = {"type": "function", "function": {"name": "f", **nested[2], "strict": None}}
    body = {
        **CHAT,
        "stream": True,
        "stream_options": nested[0],
        "chat_template_kwargs": nested[1],
        "tools": [tool],
        "response_format": {"type": "text", "json_schema": None, "schema": None},
    }
    with client(ScriptedEngine("x")) as made:
        assert made.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize("kind", [*inner()])
def test_required_fields_are_not_null(kind: type[Body]):
    required = [
        name for name, field in kind.model_fields.items() if field.is_required()
    ]
    if required:
        with pytest.raises(ValidationError):
            kind.model_validate(dict.fromkeys(required))


@pytest.mark.parametrize("path", PATHS)
def test_bodies_with_nulls_are_answered(path: str):
    more = dict.fromkeys(("stream", "n", "stop", "max_tokens", "temperature", "tools"))
    with client(ScriptedEngine("x")) as made:
        reply = made.post(path, json={**more, **PATHS[path]})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("path", "more", "most"),
    [
        ("/v1/chat/completions", {"max_tokens": -1}, None),
        ("/v1/chat/completions", {"max_completion_tokens": -1}, None),
        ("/v1/chat/completions", {"n_predict": -1}, None),
        ("/v1/chat/completions", {"max_tokens": -1, "n_predict": 7}, None),
        ("/v1/chat/completions", {"max_tokens": 3, "n_predict": 7}, 3),
        ("/v1/chat/completions", {"max_completion_tokens": 5, "max_tokens": -1}, 5),
        ("/v1/completions", {"max_tokens": -1}, None),
        ("/v1/completions", {"max_tokens": None, "n_predict": 7}, 7),
        ("/v1/responses", {"max_output_tokens": -1}, None),
    ],
)
def test_minus_one_is_no_limit(path: str, more: Mapping[str, int], most: int | None):
    engine = ScriptedEngine("x")
    with client(engine) as made:
        reply = made.post(path, json={**PATHS[path], **more})
    assert reply.status_code == 200, reply.text
    assert engine.jobs[0].max_tokens == most


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@settings(deadline=None, suppress_health_check=[*HealthCheck], max_examples=20)
@given(stop=st.text(max_size=2) | st.lists(st.sampled_from(["", "a", "b"]), max_size=4))
def test_empty_stop_texts_do_not_count(path: str, stop: str | list[str]):
    engine = ScriptedEngine("x")
    with client(engine) as made:
        assert made.post(path, json={**PATHS[path], "stop": stop}).status_code == 200
    given_ = [stop] if isinstance(stop, str) else stop
    assert engine.jobs[0].stop == [one for one in given_ if one]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TEXT = {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template"])
@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (IMAGE, "image_url"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "file", "file": {}}, "file"),
        ({"type": "x" * 1000}, "xxx"),
    ],
)
def test_a_part_that_is_not_text_is_named(path: str, part: dict[str, Any], kind: str):
    body = {"messages": [{"role": "user", "content": [TEXT, part]}]}
    with client(ScriptedEngine("x")) as made:
        reply = made.post(path, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "messages.0.content"
    said = f"messages.0.content: a part of type {kind}"
    assert error["message"].startswith(said)
    assert "cannot be read: this model reads text" in error["message"]
    assert len(error["message"]) < 250


@pytest.mark.parametrize("content", [[{}], [{"type": None}], ["a"], [7], [[]], {}, 7])
def test_parts_that_are_none_are_refused(content: object):
    body = {"messages": [{"role": "user", "content": content}]}
    with client(ScriptedEngine("x")) as made:
        reply = made.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert "messages.0.content" in reply.json()["error"]["message"]
