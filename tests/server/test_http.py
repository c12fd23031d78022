"""The server over real sockets, with a tiny random model: what clients see."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError
from edgecs.runtime.model import load
from edgecs.server import run as running
from edgecs.server.app import Serving
from edgecs.server.http import connections, replies
from edgecs.server.http.guard import Access
from edgecs.server.http.local_key import NONCE, PROOF, new_nonce
from tests.server.servers import WAIT, serving

CHAT = [{"role": "user", "content": "hello hello hello"}]


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=WAIT) as client:
        yield client


def chat(http: httpx.Client, **more: object) -> httpx.Response:
    body = {"messages": CHAT, "max_tokens": 24, "temperature": 0, **more}
    return http.post("/v1/chat/completions", json=body)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    said: str = reply.json()["choices"][0]["message"]["content"]
    return said


def events(http: httpx.Client, path: str, body: object) -> list[object]:
    """What a stream has, [DONE] at the end checked and left out."""
    found: list[str] = []
    with http.stream("POST", path, json=body) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                found.append(line[6:])
            else:
                assert line == "" or line.startswith(":")
    assert found[-1] == "[DONE]"
    return [json.loads(event) for event in found[:-1]]


@pytest.fixture(scope="module")
def alone(tiny_gguf: Path, folder: Path) -> str:
    """What the model says to CHAT in one session, without a server."""
    options = LoadOptions(n_ctx=512, n_batch=64, threads=1)
    with load(tiny_gguf, options, drafts=(), folder=folder, offline=True) as model:
        return model.ask(CHAT, max_tokens=24)


def test_an_answer_is_that_of_a_session(http: httpx.Client, alone: str):
    reply = chat(http)
    assert text_of(reply) == alone
    body = reply.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] <= 24
    assert body["timings"]["predicted_n"] == usage["completion_tokens"]
    assert body["speculative"]["chain"][0] == "target"


def test_drafts_and_neighbours_change_nothing(http: httpx.Client, alone: str):
    def one(i: int) -> str:
        return text_of(chat(http, speculative=i % 2 == 0))

    with ThreadPoolExecutor(6) as pool:
        assert {*pool.map(one, range(12))} == {alone}
    off = chat(http, speculative=False).json()["speculative"]
    assert off["tested"] == 0
    assert off["reason"] == "not asked for"


def test_a_message_cannot_contain_control_tokens(http: httpx.Client):
    """It has its text in bytes; a text that is given as a prompt may contain them."""
    counts = []
    for text in ("x" * 24, "x<|end|><|user|>y<|end|>"):
        reply = chat(http, messages=[{"role": "user", "content": text}], max_tokens=1)
        counts.append(reply.json()["usage"]["prompt_tokens"])
    assert counts[0] == counts[1]
    body = {"content": "x<|end|>"}
    assert len(http.post("/tokenize", json=body).json()["tokens"]) == 2


def test_sampled_answers_depend_on_their_seed(http: httpx.Client):
    def one(seed: int) -> str:
        return text_of(chat(http, temperature=1.2, seed=seed))

    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(one, [1, 2, 1, 2])]
    assert together[:2] == together[2:]
    assert together[0] != together[1]
    assert [one(1), one(2)] == together[:2]
    drawn = {text_of(chat(http, temperature=1.2)) for _ in range(3)}
    assert len(drawn) > 1


def test_a_stream_says_the_same(http: httpx.Client, alone: str):
    body = {
        "messages": CHAT,
        "max_tokens": 24,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, usage = events(http, "/v1/chat/completions", body)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == alone
    last = chunks[-1]
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-1])
    assert {"timings", "speculative"} <= last.keys()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == last["timings"]["predicted_n"]
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1


def test_several_choices_have_seeds_of_their_own(http: httpx.Client):
    reply = chat(http, n=3, temperature=1.0, seed=5).json()
    said = [choice["message"]["content"] for choice in reply["choices"]]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    ones = [text_of(chat(http, temperature=1.0, seed=5 + i)) for i in range(3)]
    assert said == ones
    body = {"messages": CHAT, "n": 2, "temperature": 1.0, "seed": 5, "stream": True}
    texts = ["", ""]
    for chunk in events(http, "/v1/chat/completions", {**body, "max_tokens": 24}):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ones[:2]


def test_stop_texts_end_an_answer_and_are_not_in_it(http: httpx.Client, alone: str):
    stop = alone[5:7]
    said = text_of(chat(http, stop=[stop, "never"]))
    assert said == alone[: alone.index(stop)]
    assert chat(http, stop=stop).json()["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_those_of_the_row(http: httpx.Client):
    reply = chat(http, logprobs=True, top_logprobs=3).json()
    content = reply["choices"][0]["logprobs"]["content"]
    assert len(content) == reply["usage"]["completion_tokens"]
    for one in content:
        tops = [top["logprob"] for top in one["top_logprobs"]]
        assert one["logprob"] == tops[0] == max(tops) <= 0  # greedy
        assert one["id"] == one["top_logprobs"][0]["id"]
    body = {"prompt": "hello", "max_tokens": 4, "logprobs": 2, "temperature": 0}
    stated = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert len(stated["tokens"]) == len(stated["token_logprobs"]) == 4
    texts, offsets = stated["tokens"], stated["text_offset"]
    assert offsets == [len("".join(texts[:i])) for i in range(4)]


def test_answers_keep_to_a_schema(http: httpx.Client):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema |= {"required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for how in ({"response_format": form}, {"json_schema": schema}):
        said = text_of(chat(http, **how, max_tokens=200, logit_bias={"48": 5}))
        assert isinstance(json.loads(said)["n"], int)
    grammar = 'root ::= "yes" | "no"'
    assert text_of(chat(http, grammar=grammar)) in ("yes", "no")


def test_completions_feed_a_text_as_it_is(http: httpx.Client):
    body = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
    whole = http.post("/v1/completions", json=body).json()
    assert whole["object"] == "text_completion"
    ids = http.post("/tokenize", json={"content": "hello", "add_special": True}).json()
    same = http.post("/v1/completions", json={**body, "prompt": ids["tokens"]}).json()
    assert same["choices"] == whole["choices"]
    for one in (["hello"], [ids["tokens"]]):  # a list of one prompt
        same = http.post("/v1/completions", json={**body, "prompt": one}).json()
        assert same["choices"] == whole["choices"]
    named = {**body, "max_tokens": None, "n_predict": 6}
    same = http.post("/v1/completions", json=named).json()
    assert same["choices"] == whole["choices"]
    assert text_of(chat(http, max_tokens=None, n_predict=3)) == text_of(
        chat(http, max_tokens=3)
    )
    echo = http.post("/v1/completions", json={**body, "echo": True}).json()
    assert echo["choices"][0]["text"].endswith("hello" + whole["choices"][0]["text"])
    chunks = events(http, "/v1/completions", {**body, "stream": True})
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == whole["choices"][0]["text"]


def test_what_a_client_may_want_to_know(http: httpx.Client, url: str):
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert http.get("/v1/models/tiny").status_code == 200
    assert http.get("/v1/models/other").status_code == 404
    props = http.get("/props").json()
    assert props["total_slots"] == 3
    assert props["n_ctx"] == 512
    assert len(http.get("/slots").json()) == 3
    chat(http)
    counts = http.get("/metrics").text
    assert "edgecs:tokens_predicted_total" in counts
    assert "edgecs:spec_decode_num_drafts_total" in counts
    text = http.post("/apply-template", json={"messages": CHAT}).json()["prompt"]
    assert "hello hello hello" in text
    ids = http.post("/tokenize", json={"content": "abc", "with_pieces": True}).json()
    assert [one["piece"] for one in ids["tokens"]] == ["a", "b", "c"]
    back = {"tokens": [one["id"] for one in ids["tokens"]]}
    assert http.post("/detokenize", json=back).json() == {"content": "abc"}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/chat/completions", b"{", 400, "Invalid JSON"),
        ("/v1/chat/completions", b"\xff\xfe", 400, "Invalid JSON"),
        ("/v1/chat/completions", b"[" * 5000, 400, "Invalid JSON"),
        ("/v1/chat/completions", b"{}", 400, "messages: Field required"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages: List should"),
        ("/v1/chat/completions", {"temperature": "hot"}, 400, "temperature"),
        ("/v1/chat/completions", {"temperature": -1}, 400, "temperature"),
        ("/v1/chat/completions", {"n": 100}, 400, "n: Input should be less"),
        ("/v1/chat/completions", {"logit_bias": {"x": 1}}, 400, "not a token's id"),
        ("/v1/chat/completions", {"logit_bias": {"9999": 1}}, 400, "token 9999"),
        ("/v1/chat/completions", {"grammar": "root ::= ("}, 400, "grammar"),
        ("/v1/chat/completions", {"json_schema": {"type": 3}}, 400, "JSON schema"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * 600}]},
            400,
            "tokens but the context holds 512",
        ),
        ("/v1/completions", {"prompt": []}, 400, "prompt is empty"),
        ("/v1/completions", {"prompt": [1, -5]}, 400, "token -5 does not exist"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "has one prompt, this one"),
        ("/v1/completions", {"prompt": [[1], "b"]}, 400, "has one prompt, this one"),
        ("/detokenize", {"tokens": [10**9]}, 400, "token 1000000000 does not exist"),
        ("/nothing", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_what_cannot_be_done_is_said(
    http: httpx.Client, path: str, body: object, status: int, says: str
):
    if isinstance(body, dict) and "chat" in path and body.keys() != {"messages"}:
        body = {"messages": CHAT, "max_tokens": 4, **body}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = http.post(path, content=data)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["code"] == status
    assert says in error["message"]
    assert "\n" not in error["message"]


def test_a_body_has_limits(tiny_gguf: Path, folder: Path, monkeypatch):
    monkeypatch.setattr(replies, "BODY_SECONDS", 0.3)
    with (
        serving(tiny_gguf, folder, Serving(most_body=1000)) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
    ):
        reply = http.post("/v1/completions", json={"prompt": "x" * 1000})
        assert reply.status_code == 413
        slow = slow_request(
            url,
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 50\r\n\r\n{",
        )
        assert b" 408 " in slow
        assert http.get("/health").status_code == 200


def slow_request(url: str, data: bytes) -> bytes:
    """What comes back for a part of a request, until the server closes or answers."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as sock:
        sock.sendall(data)
        return sock.recv(4096)


def test_a_request_that_does_not_come_is_not_waited_for(
    tiny_gguf: Path, folder: Path, monkeypatch
):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with serving(tiny_gguf, folder) as url:
        assert slow_request(url, b"GET /hea") == b""
        assert slow_request(url, b"") == b""
        with httpx.Client(base_url=url) as http:
            for _ in range(3):
                assert http.get("/health").status_code == 200


def busy_slots(http: httpx.Client) -> int:
    return sum(slot["state"] != "idle" for slot in http.get("/slots").json())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot(
    http: httpx.Client, url: str, stream: bool, alone: str
):
    body = {"messages": CHAT, "temperature": 1.0, "seed": 3, "stream": stream}
    body |= {"logit_bias": {"269": -100, "270": -100, "271": -100, "268": -100}}
    data = json.dumps({**body, "max_tokens": 480}).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until = time.monotonic() + WAIT
        while not busy_slots(http):
            assert time.monotonic() < until
    until = time.monotonic() + WAIT
    while busy_slots(http):
        assert time.monotonic() < until
    assert text_of(chat(http)) == alone


def test_too_many_get_429_and_when_to_come_back(tiny_gguf: Path, folder: Path):
    with serving(tiny_gguf, folder, waiting=1) as url:

        def one(i: int) -> httpx.Response:
            with httpx.Client(base_url=url, timeout=WAIT) as http:
                return chat(http, max_tokens=200, temperature=1.0, seed=i)

        with ThreadPoolExecutor(16) as pool:
            replies_ = [*pool.map(one, range(16))]
    states = {reply.status_code for reply in replies_}
    assert states == {200, 429}
    busy = next(reply for reply in replies_ if reply.status_code == 429)
    assert busy.headers["retry-after"] == "1"
    assert busy.json()["error"]["type"] == "rate_limit_error"


class TestAccess:
    """Who may ask."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"host": "localhost"}, 200),
            ({"host": "[::1]:80"}, 200),
            ({"host": "evil.example"}, 403),
            ({"host": "127.0.0.1.evil.example"}, 403),
            ({"host": ""}, 403),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"origin": "http://["}, 403),
            ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
            ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ],
    )
    def test_pages_of_others_do_not_reach_a_server_on_loopback(
        self, http: httpx.Client, headers: dict[str, str], status: int
    ):
        reply = http.get("/v1/models", headers=headers)
        assert reply.status_code == status
        if status == 403:
            assert "access-control-allow-origin" not in reply.headers

    def test_a_request_with_two_lengths_is_the_last_of_its_connection(self, url: str):
        address = url.removeprefix("http://")
        host, port = address.split(":")
        body = b'{"content": "a"}'
        head = (
            f"POST /tokenize HTTP/1.1\r\nhost: {address}\r\ncontent-length: "
            f"{len(body)}\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        chunks = f"{len(body):x}\r\n{body.decode()}\r\n0\r\n\r\n"
        again = f"GET /health HTTP/1.1\r\nhost: {address}\r\n\r\n"
        with socket.create_connection((host, int(port)), WAIT) as client:
            client.sendall((head + chunks + again).encode())
            reply = b""
            while part := client.recv(4096):
                reply += part
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert reply.count(b"HTTP/1.1") == 1

    def test_an_allowed_origin_gets_cors(self, tiny_gguf: Path, folder: Path):
        page = "http://page.example"
        access = Access(origins=[page], hosts=["box"])
        with (
            serving(tiny_gguf, folder, Serving(access=access)) as url,
            httpx.Client(base_url=url, timeout=WAIT) as http,
        ):
            reply = http.get("/v1/models", headers={"origin": page, "host": "box"})
            assert reply.headers["access-control-allow-origin"] == page
            flight = http.options("/v1/chat/completions", headers={"origin": page})
            assert flight.status_code == 204
            assert "authorization" in flight.headers["access-control-allow-headers"]
            other = http.options("/x", headers={"origin": "http://other.example"})
            assert other.status_code == 403

    def test_a_key_is_asked_for_everywhere_but_for_health(
        self, tiny_gguf: Path, folder: Path
    ):
        with (
            serving(tiny_gguf, folder, Serving(access=Access("secret"))) as url,
            httpx.Client(base_url=url, timeout=WAIT) as http,
        ):
            assert http.get("/health").status_code == 200
            for path in ("/v1/models", "/metrics", "/slots", "/props", "/nothing"):
                assert http.get(path).status_code == 401
            for wrong in ("Bearer", "Bearer Secret", "Basic secret", "Bearer secrets"):
                headers = {"authorization": wrong}
                assert http.get("/v1/models", headers=headers).status_code == 401
            for right in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
                right |= {"host": "any.example"}
                assert http.get("/v1/models", headers=right).status_code == 200

    def test_the_local_key_counts_and_is_proven_before_it_is_sent(
        self, tiny_gguf: Path, folder: Path
    ):
        state = Serving(access=Access("secret"))
        with (
            serving(tiny_gguf, folder, state) as url,
            httpx.Client(base_url=url, timeout=WAIT) as http,
        ):
            local, nonce = state.access.local, new_nonce()
            assert local is not None
            key = {"authorization": f"Bearer {local.key}"}
            assert http.get("/props", headers=key).status_code == 200
            for path in ("/health", "/props"):  # the latter is refused without a key
                reply = http.get(path, headers={NONCE: nonce})
                assert local.proves(nonce, reply.headers[PROOF])
            for headers in ({}, {NONCE: "x"}, {NONCE: nonce, "origin": url}):
                assert PROOF not in http.get("/health", headers=headers).headers

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "box"])
    def test_off_loopback_a_key_is_needed(self, host: str):
        with pytest.raises(ConfigError, match="give an --api-key"):
            running.check_access(host, None)
        running.check_access(host, "key")
        for own in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
            running.check_access(own, None)


def test_parts_of_a_response_do_not_wait_for_acknowledgements():
    with running.listening("127.0.0.1", 0) as sock:  # asyncio looks at the protocol
        assert sock.proto == socket.IPPROTO_TCP


def test_a_port_that_is_in_use_is_named():
    with running.listening("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            running.listening("127.0.0.1", port)
    with pytest.raises(ConfigError, match="give another --host or --port"):
        running.listening("no.such.host.invalid", 0)


def test_a_conversation_goes_on_after_a_restart(
    tiny_gguf: Path, folder: Path, tmp_path: Path
):
    """Its cells come from the disk, and the answer is the same."""
    talk = [{"role": "system", "content": "be kind " * 12}, *CHAT]
    said, cached = [], []
    for _ in range(2):
        with (
            serving(tiny_gguf, folder, prefix_cache=tmp_path) as url,
            httpx.Client(base_url=url, timeout=WAIT) as http,
        ):
            reply = chat(http, messages=talk)
            said.append(text_of(reply))
            usage = reply.json()["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert said[0] == said[1]
    assert cached[0] == 0
    assert cached[1] >= usage["prompt_tokens"] - 1
    assert [*tmp_path.glob("*/*.cells")]


@pytest.mark.parametrize(
    "matrix", [None, KMatrix.parse("4,2;0,2")], ids=["planned", "fixed"]
)
def test_a_drafter_that_is_a_model_drafts_in_all_slots(
    tiny_gguf: Path, folder: Path, alone: str, matrix: KMatrix | None
):
    drafts = (str(tiny_gguf),)
    with (
        serving(tiny_gguf, folder, drafts=drafts, matrix=matrix) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
        ThreadPoolExecutor(6) as pool,
    ):
        # Without a cache a request takes the least recently used slot, also if it comes
        # after the answer before.
        ask = partial(chat, http, cache_prompt=False)
        replies_ = [*pool.map(lambda i: ask(), range(9))]
    assert {*map(text_of, replies_)} == {alone}
    chains = [reply.json()["speculative"]["chain"] for reply in replies_]
    assert all(tiny_gguf.stem in chain for chain in chains)


def metrics(http: httpx.Client) -> dict[str, float]:
    """The counts of the model by name, without those that have more labels."""
    lines = http.get("/metrics").text.replace('{model="tiny"}', "").splitlines()
    pairs = (line.split() for line in lines if line and line[0] != "#")
    return {name: float(value) for name, value in pairs if "{" not in name}


@pytest.mark.faults
def test_a_drafter_that_fails_in_an_answer_is_counted_once(
    tiny_gguf: Path, folder: Path, alone: str, monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []

    def failing(self: MaxGram, context: object, k: int) -> list[int]:
        calls.append(k)
        if len(calls) > 3:
            raise RuntimeError("a defect")
        return [0] * min(k, 2)

    monkeypatch.setattr(MaxGram, "continuation", failing)
    with (
        serving(tiny_gguf, folder, slots=1) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
    ):
        for answers in (1, 2):
            reply = chat(http)
            assert text_of(reply) == alone
            assert metrics(http)["edgecs:answers_total"] == answers
            assert metrics(http)["edgecs:drafter_faults_total"] == 1
    assert len(calls) == 4


def test_tokens_of_a_client_that_left_are_counted(http: httpx.Client):
    before = metrics(http)
    body = {"messages": CHAT, "max_tokens": 400, "temperature": 0, "stream": True}
    body["logit_bias"] = {"269": -100}  # the end of an answer
    read = 0
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            read += line.startswith("data: ")
            if read > 3:
                break
    until = time.monotonic() + WAIT
    while busy_slots(http):
        assert time.monotonic() < until
    after = metrics(http)
    new = {name: after[name] - before[name] for name in after}
    assert new["edgecs:cancelled_total"] == new["edgecs:answers_total"] == 1
    assert 2 <= new["edgecs:tokens_predicted_total"] < 400
    assert new["edgecs:prompt_tokens_total"] > 0


def test_without_cache_prompt_nothing_is_reused_or_kept(http: httpx.Client, alone: str):
    def cached(content: str, **more: object) -> int:
        said = [{"role": "user", "content": content}]
        reply = chat(http, messages=said, max_tokens=2, **more).json()
        count: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        return count

    text = "a text that only this test has"
    assert cached(text, cache_prompt=False) < 5  # the template's beginning
    assert cached(text) < 5
    assert cached(text) > 20
    assert cached(text, cache_prompt=False) == 0
    assert text_of(chat(http, cache_prompt=False)) == alone


def test_token_details_say_how_each_token_came_about(http: httpx.Client):
    whole = chat(http, token_details=True).json()
    (choice,) = whole["choices"]
    details = choice["token_details"]
    assert len(details) == whole["usage"]["completion_tokens"]
    assert "".join(one["text"] for one in details) == choice["message"]["content"]
    drafted = [one for one in details if one["source"] != "target"]
    assert len(drafted) == whole["speculative"]["accepted"]
    assert details[0]["round"] == 0
    assert details[-1]["round"] == whole["speculative"]["rounds"]
    for one in details:
        assert 0 < one["p"] <= 1
        assert one["width"] >= 1
        if rejected := one["rejected"]:
            assert one["source"] == "target"
            assert rejected["id"] != one["id"]
            assert rejected["source"] in whole["speculative"]["chain"]
    assert [one["ends"] for one in details[:-1]] == [None] * (len(details) - 1)
    assert details[-1]["ends"] == choice["finish_reason"]
    joined = b"".join(bytes(one["bytes"]) for one in details)
    assert joined.decode("utf-8", "replace") == choice["message"]["content"]
    assert "token_details" not in chat(http).json()["choices"][0]


def test_the_ids_of_earlier_answers_are_taken_as_they_are(http: httpx.Client):
    def prompt(*turns: dict[str, object], **more: object) -> dict[str, Any]:
        body = {"messages": [*CHAT, *turns], "with_tokens": True, **more}
        reply = http.post("/apply-template", json=body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    first = prompt()
    said = chat(http, token_details=True, max_tokens=12, temperature=1.5, seed=4)
    details = said.json()["choices"][0]["token_details"]
    ids = [one["id"] for one in details]
    assert first["again"] == 0
    assert prompt(partial=ids)["tokens"] == [*first["tokens"], *ids]
    turn = {"role": "assistant", "content": "another text", "ids": ids}
    more = {"role": "user", "content": "and?"}
    second = prompt(turn, more)
    assert second["again"] == 0
    assert second["tokens"][: len(first["tokens"]) + len(ids)] == [
        *first["tokens"],
        *ids,
    ]
    for wrong in ([-1], [1 << 40], ["a"], [0.5], "ab"):
        for field in ({"partial": wrong}, {"messages": [{**turn, "ids": wrong}]}):
            body = {"messages": [*CHAT], "with_tokens": True, **field}
            assert http.post("/apply-template", json=body).status_code == 400


def test_the_properties_name_the_weights(http: httpx.Client):
    props = http.get("/props").json()
    assert props["weights"].keys() == {"model", "fingerprint", "loading", "tokens"}
    assert props["exact"].keys() == {"asked", "tiers", "classes"}


def test_streamed_token_details_are_those_of_the_whole_answer(http: httpx.Client):
    def without_rounds(details: list[dict[str, object]]) -> list[dict[str, object]]:
        """What does not depend on how much was drafted."""
        return [{name: one[name] for name in ("id", "text")} for one in details]

    for path, prompt in (
        ("/v1/chat/completions", {"messages": CHAT}),
        ("/v1/completions", {"prompt": "hello hello"}),
    ):
        body = {**prompt, "max_tokens": 24, "temperature": 0, "token_details": True}
        (whole,) = http.post(path, json=body).json()["choices"]
        found: list[dict[str, object]] = []
        for event in events(http, path, {**body, "stream": True}):
            for choice in event["choices"]:  # type: ignore[index]
                found += choice.get("token_details", [])
        assert without_rounds(found) == without_rounds(whole["token_details"])


def test_the_tokens_of_a_template_are_those_of_its_text_with_calls_too(
    http: httpx.Client,
):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "res"},
    ]
    body = {"messages": messages, "with_tokens": True}
    reply = http.post("/apply-template", json=body).json()
    asked = {"tokens": reply["tokens"]}
    text = http.post("/detokenize", json=asked).json()["content"]
    assert "tool_call" in reply["prompt"]
    assert text == re.sub(r"<\|\w+\|>", "", reply["prompt"])


def test_half_a_surrogate_pair_in_a_call_is_refused(http: httpx.Client):
    function = {"name": "f", "arguments": '{"a": "\\ud800"}'}
    call = {"id": "1", "type": "function", "function": function}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    reply = http.post("/apply-template", json={"messages": messages})
    assert reply.status_code == 400
    assert "surrogate" in reply.json()["error"]["message"]
