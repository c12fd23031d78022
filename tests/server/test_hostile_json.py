"""Bodies that no client should send: every path answers, and in its API's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.server.app import create_app
from tests.embedding_models import bert
from tests.server.scripted import serving_of
from tests.server.servers import WAIT, serving

DEEP, DIGITS = 100_000, b"1" * 5000
BROKEN = {
    "nothing": b"",
    "cut": b"{",
    "no JSON": b"hello",
    "more after it": b'{"model": "tiny"} {}',
    "no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "encoded surrogate": b'{"model": "\xed\xa0\x80"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "NaN": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "infinite exponent": b'{"model": {"a": [1e999]}}',
    "5,000 digits": b'{"model": ' + DIGITS + b"}",
    "5,000 digits and a fraction": b'{"model": ' + DIGITS + b".5}",
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"model":' * DEEP,
    "deep and closed": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a list": b"[]",
    "a text": b'"model"',
    "null": b"null",
    "null byte": b"\0",
}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**CHAT, "max_tokens": 1},
    "/chat/completions": {**CHAT, "max_tokens": 1},
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/completions": {"prompt": "hi", "max_tokens": 1},
    "/completion": {"prompt": "hi", "n_predict": 1},
    "/v1/messages": {**CHAT, "model": "tiny", "max_tokens": 1},
    "/v1/messages/count_tokens": {**CHAT, "model": "tiny"},
    "/v1/responses": {"input": "hi", "max_output_tokens": 1},
    "/api/chat": {**CHAT, "model": "tiny", "options": {"num_predict": 1}},
    "/api/generate": {"model": "tiny", "prompt": "hi", "options": {"num_predict": 1}},
    "/api/show": {"model": "tiny"},
    "/api/pull": {"model": "tiny"},
    "/models/load": {"model": "tiny"},
    "/models/unload": {"model": "tiny"},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [65]},
    "/apply-template": CHAT,
}
EMBEDDING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "hi"},
    "/embeddings": {"input": ["hi", "you"]},
    "/api/embed": {"model": "tiny", "input": "hi"},
    "/api/embeddings": {"model": "tiny", "prompt": "hi"},
}
VALID |= EMBEDDING
NESTED: Any = 1
for _ in range(150):
    NESTED = {"properties": {"a": NESTED}}
NASTY: dict[str, Any] = {
    "a nested schema": NESTED,
    "a nested list": json.loads("[" * 190 + "]" * 190),
    "an integer of 4,000 digits": 10**4000,
    "a negative integer of 4,000 digits": -(10**4000),
    "a large number": 1e308,
    "a tiny number": 5e-324,
    "a null byte": "\0",
    "a character beyond the plane": "\U0010ffff",
    "an object of null": {"": None},
    "true": True,
}
FIELDS = {
    "/v1/chat/completions": (
        "json_schema",
        "seed",
        "max_tokens",
        "n_predict",
        "top_k",
        "temperature",
        "logit_bias",
        "stop",
        "repeat_last_n",
        "repeat_penalty",
        "frequency_penalty",
        "model",
        "messages",
    ),
    "/v1/completions": ("prompt", "grammar", "top_p"),
    "/v1/messages": ("max_tokens", "metadata", "top_k", "system", "tools"),
    "/v1/responses": (
        "tools",
        "metadata",
        "conversation",
        "prompt",
        "tool_choice",
        "max_output_tokens",
    ),
    "/api/chat": ("format", "options", "tools", "keep_alive"),
    "/api/generate": ("context", "format", "prompt"),
    "/v1/embeddings": ("input", "dimensions", "encoding_format", "truncate"),
    "/api/embed": ("input", "dimensions", "truncate"),
    "/tokenize": ("content",),
    "/detokenize": ("tokens",),
}


@pytest.fixture(scope="module")
def embedding_url(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> Iterator[str]:
    with serving(bert(tmp_path_factory.mktemp("bert") / "bert.gguf"), folder) as made:
        yield made


@pytest.fixture
def http(
    url: str, embedding_url: str, request: pytest.FixtureRequest
) -> Iterator[httpx.Client]:
    """A client of a server whose model is for the path of a test."""
    embeds = request.node.callspec.params["path"] in EMBEDDING
    base = embedding_url if embeds else url
    with httpx.Client(base_url=base, timeout=WAIT) as client:
        yield client


def check_error(path: str, reply: httpx.Response) -> None:
    """The reply is an error of the client's fault, in the form of the API."""
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:200])
    body = json.loads(reply.content, parse_constant=pytest.fail)
    if path.startswith("/api/"):
        assert body.keys() == {"error"}
        message = body["error"]
    elif path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
        message = body["error"]["message"]
    else:
        assert body["error"].keys() == {"message", "type", "param", "code"}
        message = body["error"]["message"]
    assert 0 < len(message) < 1000
    assert "\n" not in message


def check(path: str, reply: httpx.Response) -> None:
    """The reply is an answer or an error of the client's fault."""
    if reply.status_code != 200:
        check_error(path, reply)


def test_no_path_is_missing_here():
    posts = {
        getattr(route, "path", "")
        for route in create_app(serving_of(None)).routes
        if "POST" in getattr(route, "methods", ())
    }
    assert posts == {*VALID, "/infill"}


def test_broken_bodies_for_filling_in_are_errors(url: str):
    """Good ones need a model with tokens for it, see `test_llama_api`."""
    with httpx.Client(base_url=url, timeout=WAIT) as client:
        for body in BROKEN.values():
            check_error("/infill", client.post("/infill", content=body))


@pytest.mark.parametrize("path", VALID)
def test_the_bodies_that_are_spoilt_here_are_good_ones(path: str, http: httpx.Client):
    assert http.post(path, json=VALID[path]).status_code == 200


@pytest.mark.parametrize("path", VALID)
def test_broken_bodies_are_errors(path: str, http: httpx.Client):
    for body in BROKEN.values():
        check_error(path, http.post(path, content=body))


@pytest.mark.parametrize(
    ("path", "field"), [(path, one) for path, some in FIELDS.items() for one in some]
)
def test_extreme_values_are_answered(path: str, field: str, http: httpx.Client):
    for value in NASTY.values():
        for given_ in (value, [value], {"a": value}):
            check(path, http.post(path, json={**VALID[path], field: given_}))


@pytest.mark.parametrize("path", VALID)
def test_of_equal_keys_the_last_one_counts(path: str, http: httpx.Client):
    body = json.dumps(VALID[path]).removeprefix("{")
    key = next(iter(VALID[path]))
    first = f'{{"{key}": 5, '
    assert http.post(path, content=first + body).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("path", VALID)
def test_any_json_and_any_bytes_are_answered(path: str, http: httpx.Client):
    fields = [*VALID[path]]

    @settings(max_examples=10)
    @given(st.binary() | JSON, st.sampled_from(fields), st.data())
    def run(body: Any, field: str, data: st.DataObject) -> None:
        if not isinstance(body, bytes):
            spoilt = {**VALID[path], field: data.draw(JSON)}
            check(path, http.post(path, content=json.dumps(spoilt).encode()))
            body = json.dumps(body).encode()
        check(path, http.post(path, content=body))

    run()
