"""Several models in one server: what clients see."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgecs.runtime.served_models import ServedModel, ServedModels
from edgecs.server.app import Serving
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.residency import Limits
from tests.server.servers import WAIT, loading, named, running_server

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def http(tiny_gguf: Path, folder: Path) -> Iterator[httpx.Client]:
    """One model in memory at once, of two, and a third that is broken."""
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 64)
    both = {model.name: model for model in named(tiny_gguf, "a", "b").all()}
    models = ServedModels({**both, "broken": ServedModel("broken", "x", broken)})
    pool = ModelPool(models, loading(folder), limits=Limits(1, 300.0))
    with (
        running_server(Serving(pool), None) as url,
        httpx.Client(base_url=url, timeout=WAIT) as client,
    ):
        yield client


def states(http: httpx.Client) -> dict[str, str]:
    found = http.get("/models").json()["data"]
    return {one["id"]: one["status"]["value"] for one in found}


def ask(http: httpx.Client, model: str | None, **more: object) -> httpx.Response:
    return http.post("/v1/chat/completions", json={**CHAT, "model": model, **more})


def refused(reply: httpx.Response, status: int, says: str) -> None:
    assert reply.status_code == status, reply.text
    message = reply.json()["error"]["message"]
    assert says in message
    assert "\n" not in message


def test_a_request_loads_its_model_and_unloads_another(http: httpx.Client):
    for name, other in (("a", "b"), ("b", "a")):
        reply = ask(http, name)
        assert reply.status_code == 200
        assert reply.json()["model"] == name
        assert states(http) == {name: "loaded", other: "unloaded", "broken": "unloaded"}


def test_a_stream_keeps_its_model_until_it_ends(http: httpx.Client):
    body = {**CHAT, "model": "a", "stream": True, "max_tokens": 200}
    body |= {"logit_bias": {"269": -100}, "keep_alive": 0}
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 20
    until = time.monotonic() + WAIT
    while states(http)["a"] != "unloaded":
        assert time.monotonic() < until


@pytest.mark.parametrize(
    "name",
    ["c", "../a", "/etc/passwd", "a.gguf", "user/repo", "hf:user/repo:Q4_0", "A"],
)
def test_an_unknown_name_gets_404_with_the_names(http: httpx.Client, name: str):
    refused(ask(http, name), 404, "the models are a, b, broken")
    refused(http.post("/models/load", json={"model": name}), 404, "there is no model")
    refused(http.post("/models/unload", json={"model": name}), 404, "there is no model")
    refused(http.get(f"/props?model={name}"), 404, "there is no model")


def test_a_request_without_a_name_gets_the_names(http: httpx.Client):
    refused(ask(http, None), 400, "names no model: give `model`, one of a, b, broken")


def test_a_load_that_fails_is_told_and_the_server_lives(http: httpx.Client):
    for _ in range(2):
        refused(ask(http, "broken"), 503, "broken.gguf")
    assert states(http)["broken"] == "unloaded"
    assert ask(http, "a").status_code == 200


def test_models_are_loaded_and_unloaded_on_request(http: httpx.Client):
    for path in ("load", "unload", "unload"):
        reply = http.post(f"/models/{path}", json={"model": "b"})
        assert reply.json() == {"success": True}
        assert states(http)["b"] == f"{path}ed"


def test_what_is_read_loads_nothing(http: httpx.Client):
    http.post("/models/unload", json={"model": "a"})
    http.post("/models/unload", json={"model": "b"})
    before = states(http)
    for path in ("/props", "/slots", "/metrics", "/v1/models", "/v1/models/a"):
        assert http.get(path).status_code == 200
    assert http.get("/props").json()["role"] == "router"
    assert http.get("/slots").json() == []
    assert states(http) == before
    assert {*before.values()} == {"unloaded"}


def test_the_state_of_a_loaded_model(http: httpx.Client):
    ask(http, "a", keep_alive="1h")
    (entry,) = (one for one in http.get("/models").json()["data"] if one["id"] == "a")
    assert entry["slots"] == 3
    assert entry["slots_busy"] == 0
    assert entry["meta"]["n_ctx"] == 512
    assert entry["size"] > 0
    assert time.time() + 3500 < entry["expires_at"] <= time.time() + 3600
    props = http.get("/props?model=a").json()
    assert (props["model"], props["n_ctx"]) == ("a", 512)
    assert {slot["model"] for slot in http.get("/slots").json()} == {"a"}
    assert 'edgecs:slots{model="a"} 3.0' in http.get("/metrics").text


@pytest.mark.parametrize("keep", ["soon", "", "5 minutes", [1], {"a": 1}, True])
def test_a_duration_that_is_none_is_refused(http: httpx.Client, keep: object):
    refused(ask(http, "a", keep_alive=keep), 400, "is not a duration")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model": 5}', b"[" * 5000])
def test_malformed_bodies_are_refused(http: httpx.Client, body: bytes):
    for path in ("/models/load", "/models/unload", "/v1/chat/completions"):
        assert http.post(path, content=body).status_code == 400


def test_a_client_that_leaves_while_it_waits_loads_nothing(
    http: httpx.Client, tiny_gguf: Path
):
    http.post("/models/unload", json={"model": "b"})
    body = {**CHAT, "model": "a", "stream": True, "max_tokens": 400}
    body |= {"logit_bias": {"269": -100}}
    host, port = http.base_url.host, http.base_url.port
    assert port is not None
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        with socket.create_connection((host, port)) as sock:
            data = b'{"model": "b", "messages": [{"role": "user", "content": "x"}]}'
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            until = time.monotonic() + WAIT
            while states(http)["b"] == "unloaded":
                assert time.monotonic() < until
    until = time.monotonic() + WAIT
    while {*states(http).values()} != {"unloaded"}:  # `a` had made room for `b`
        assert time.monotonic() < until
