"""A server that lies costs a command one sentence, and never hangs or crashes it."""

from __future__ import annotations

import io
import itertools
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.recipe import Recipe
from edgecs.sampling.settings import Sampling
from edgecs.server.apis.state_routes import settings
from edgecs_cli.client import connection
from edgecs_cli.client.answered import answered_of, pieces_of
from edgecs_cli.client.connection import ServerLost
from edgecs_cli.origins import origins_legend
from edgecs_cli.short_lines import answer_details, answer_line
from tests.commands import Edgecs
from tests.conftest import Outcome

Body = Callable[[], Iterator[bytes]]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
WEIGHTS = {"model": "t", "fingerprint": "f", "loading": "l", "tokens": 300}
TIMINGS = {"predicted_n": 2, "prompt_n": 3, "cache_n": 0, "predicted_ms": 5.0}


def token(number: int = 65, **more: object) -> dict[str, object]:
    text = chr(number)
    usual = {"id": number, "text": text, "bytes": [number], "source": "target"}
    return {**usual, "ends": None, **more}


def event(*tokens: object, **more: object) -> bytes:
    choice = {"index": 0, "text": "", "token_details": [*tokens], **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def last(**more: object) -> bytes:
    choice = {"text": "", "token_details": [], "finish_reason": "stop"}
    found = {"choices": [choice], "timings": TIMINGS, "speculative": {}, **more}
    return b"data: " + json.dumps(found).encode() + b"\n\n"


GOOD = [event(token(72), token(105, ends="stop")), last(), b"data: [DONE]\n\n"]


class Liar:
    """A server of raw bytes. replies: by path; a path that is not in it gets `good`."""

    def __init__(self, model: Path) -> None:
        self.replies: dict[str, Body] = {}
        self.asked = list[bytes]()  # bodies of requests
        entry = {"id": "tiny", "reference": str(model.resolve())}
        recipe = Recipe(str(model), LoadOptions(threads=1), sampling=Sampling())
        self.props: dict[str, Any] = {
            "n_ctx": 64,
            "settings": settings(recipe),
            "chain": ["target", "mag"],
            "tiers": "all",
            "off_reason": None,
            "kernels": "none",
            "exact": {},
            "weights": WEIGHTS,
        }
        self.prompt: dict[str, Any] = {"prompt": "x", "tokens": [1, 2], "again": 0}
        self._good: dict[str, Callable[[], object]] = {
            "/v1/models": lambda: {"data": [entry]},
            "/models/load": dict,
            "/props": lambda: self.props,
            "/apply-template": lambda: self.prompt,
        }
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._sock.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, suppress(OSError), peer.makefile("rb") as lines:
            while first := lines.readline():
                size = 0
                while (line := lines.readline()).strip():
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                self.asked.append(lines.read(size))
                path = first.split()[1].decode().partition("?")[0]
                if self._reply(peer, path):
                    return

    def _reply(self, peer: socket.socket, path: str) -> bool:
        """Answers one request; whether the connection ends with it."""
        if reply := self.replies.get(path):
            for part in reply():
                peer.sendall(part)
            return True
        if path == "/v1/completions":
            for part in (SSE, *GOOD):
                peer.sendall(part)
            return True
        body = json.dumps(self._good[path]()).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        peer.sendall(head + body)
        return False


@pytest.fixture
def liar(tiny_gguf: Path) -> Iterator[Liar]:
    made = Liar(tiny_gguf)
    yield made
    made.close()


@pytest.fixture
def chat(
    liar: Liar, edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Two questions through the liar."""

    def call(*options: object) -> Outcome:
        stdin = io.TextIOWrapper(io.BytesIO(b"one\ntwo\n"))
        monkeypatch.setattr(sys, "stdin", stdin)
        fixed = ("-t", 1, "--no-history", "--server", liar.url)
        return edgecs("chat", "-m", tiny_gguf, *fixed, *options)

    return call


def stream(*parts: bytes) -> Body:
    return lambda: iter((SSE, *parts))


def endless(part: bytes, head: bytes = SSE) -> Body:
    return lambda: itertools.chain([head], itertools.repeat(part))


def body(text: bytes, status: str = "200 OK") -> Body:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    return lambda: iter((head, text))


HUGE = b'{"choices": ' + b"[" * 20_000
LIES: dict[str, Body] = {
    "no http": lambda: iter((b"\x00\xff binary\n" * 9,)),
    "endless head": endless(b"X-Y: z\r\n", b"HTTP/1.1 200 OK\r\n"),
    "endless first line": endless(b"x" * 999, b"HTTP/1.1 200 "),
    "ends at once": lambda: iter(()),
    "no events": stream(),
    "ends early": stream(event(token())),
    "not json": stream(b"data: {oops\n\n"),
    "not utf-8": stream(b'data: {"choices": "\xff\xfe"}\n\n'),
    "a list": stream(b"data: []\n\n"),
    "no choices": stream(b"data: {}\n\n"),
    "choices are a text": stream(b'data: {"choices": "abc"}\n\n'),
    "a choice is a text": stream(b'data: {"choices": ["abc"]}\n\n'),
    "no tokens": stream(b'data: {"choices": [{"text": "a"}]}\n\n'),
    "tokens are numbers": stream(event(1, 2)),
    "an id is negative": stream(event(token(id=-1))),
    "an id is a float": stream(event(token(id=1.5))),
    "an id is huge": stream(event(token(id=10**30))),
    "a number has no end": stream(b'data: {"choices": ' + b"9" * 5000 + b"}\n\n"),
    "a text is a number": stream(event(token(text=5))),
    "bytes are not": stream(event(token(bytes=[256]))),
    "bytes are a number": stream(event(token(bytes=2_000_000_000))),
    "bytes are a huge number": stream(event(token(bytes=10**30))),
    "bytes have no end": stream(event(token(bytes=[1] * 5000))),
    "bytes are a text": stream(event(token(bytes="abc"))),
    "an end is none": stream(event(token(ends="why not"))),
    "goes on after its end": stream(event(token(ends="stop")), event(token())),
    "nothing after its end": stream(event(token(ends="stop"))),
    "deep": stream(b"data: " + HUGE + b"\n\n"),
    "an endless line": endless(b"data: " + b"x" * 65536),
    "endless pings": endless(b": ping\n\n"),
    "endless zeros": endless(bytes(4096)),
    "endless lines": endless(b"\n" * 4096),
    "endless tokens": endless(event(token())),
    "endless empty events": endless(event()),
    "a bad chunk": lambda: iter(
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",)
    ),
    "an error": stream(b'data: {"error": {"message": "no\\u001b[31m luck"}}\n\n'),
    "an error that is a text": stream(b'data: {"error": "no"}\n\n'),
    "a status": body(b'{"error": {"message": "no"}}', "503 Busy"),
    "a binary status": body(b"\xff\x00\x1b[31m", "500 Oh"),
    "a short body": lambda: iter((b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\n{",)),
}  # fmt: skip


def told(outcome: Outcome, sentences: int) -> None:
    """The promise: one sentence for each question that failed."""
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("edgecs chat: ")]
    assert len(errors) == sentences, outcome.err
    assert "Traceback" not in outcome.err
    assert "Error(" not in outcome.err
    assert not {*outcome.err} & {"\x00", "\x1b", "\x07"}
    assert max(map(len, lines)) < 400


def test_a_server_that_does_not_lie_is_believed(chat: Callable[..., Outcome]):
    done = chat()
    assert (done.code, done.out) == (0, "Hi\nHi\n"), done.err
    told(done, 0)


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_an_answer(liar: Liar, chat: Callable[..., Outcome], lie: str):
    liar.replies["/v1/completions"] = LIES[lie]
    done = chat()
    assert done.code == 1
    told(done, 2)
    assert len(done.out) < 400


def test_the_next_question_tries_again(liar: Liar, chat: Callable[..., Outcome]):
    def once() -> Iterator[bytes]:
        del liar.replies["/v1/completions"]
        return iter((SSE, event(token(72))))

    liar.replies["/v1/completions"] = once
    done = chat()
    assert (done.code, done.out) == (1, "H\nHi\n")
    told(done, 1)
    assert "what has arrived is kept" in done.err
    turns = [
        json.loads(asked)["messages"] for asked in liar.asked if b'"messages"' in asked
    ]
    assert turns[-1] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "H", "ids": [72]},
        {"role": "user", "content": "two"},
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        '{"predicted_n": 1e999, "prompt_ms": -5}',
        '{"predicted_n": NaN, "predicted_ms": Infinity, "draft_n": -Infinity}',
        '{"predicted_n": "many", "prompt_n": [], "cache_n": {}, "draft_n": true}',
        '{"predicted_n": %s}' % ("9" * 400),
        '{"predicted_n": 1e300, "predicted_ms": 1e-300}',
        "[]",
        "null",
    ],
)
def test_counts_that_are_none_are_shown_as_zero(
    liar: Liar, chat: Callable[..., Outcome], numbers: str
):
    end = f'data: {{"choices": [{{"finish_reason": "stop"}}], "timings": {numbers}, '
    end += f'"speculative": {numbers}}}\n\n'
    liar.replies["/v1/completions"] = stream(GOOD[0], end.replace(
        '"finish_reason"', '"token_details": [], "text": "", "finish_reason"'
    ).encode(), GOOD[2])  # fmt: skip
    done = chat("-v")
    assert (done.code, done.out) == (0, "Hi\nHi\n"), done.err
    told(done, 0)


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"prompt": 5, "tokens": [1], "again": 0},
        {"prompt": "", "tokens": "abc", "again": 0},
        {"prompt": "", "tokens": [1.5], "again": 0},
        {"prompt": "", "tokens": [-1], "again": 0},
        {"prompt": "", "tokens": [300], "again": 0},
        {"prompt": "", "tokens": [1 << 40], "again": 0},
        {"prompt": "", "tokens": [1], "again": "none"},
    ],
)
def test_lies_about_the_prompt(
    liar: Liar, chat: Callable[..., Outcome], prompt: dict[str, Any]
):
    liar.prompt = prompt
    done = chat()
    assert done.code
    told(done, 1)  # the chat does not begin
    assert done.out == ""


@pytest.mark.parametrize("path", ["/v1/models", "/models/load", "/props"])
@pytest.mark.parametrize(
    "reply",
    [
        LIES["no http"],
        LIES["ends at once"],
        LIES["a short body"],
        LIES["a binary status"],
        LIES["endless head"],
        body(b"[]"),
        body(b"{" * 30_000),
        body(b'{"data": 5}', "404 Not Found"),
        endless(b" " * 65536, b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
)
def test_lies_before_the_chat(
    liar: Liar,
    chat: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    reply: Body,
):
    monkeypatch.setattr(connection, "_LARGEST", 1 << 20)
    liar.replies[path] = reply
    done = chat()
    assert done.code in (1, 2)
    told(done, 1)
    assert done.out == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", None),
        ("n_ctx", 0),
        ("n_ctx", 1 << 62),
        ("n_ctx", "64"),
        ("exact", []),
        ("weights", None),
        ("weights", {}),
        ("weights", {**WEIGHTS, "tokens": True}),
        (
            "weights",
            {"model": "x" * 9999, "fingerprint": "", "loading": "", "tokens": 1},
        ),
        ("settings", 5),
        ("settings", {}),
    ],
)
def test_lies_about_the_model(
    liar: Liar, chat: Callable[..., Outcome], name: str, value: object
):
    liar.props = {**liar.props, name: value}
    done = chat()
    assert done.code == 2
    told(done, 1)


def test_names_without_end_are_cut(liar: Liar, chat: Callable[..., Outcome]):
    liar.props |= {"chain": ["x" * 999] * 999, "tiers": "y" * 9999, "kernels": {}}
    done = chat("-v")
    assert done.code == 0
    assert len(done.err) < 100_000


def test_an_answer_of_generate_is_checked_as_well(
    liar: Liar, edgecs: Edgecs, tiny_gguf: Path
):
    fixed = ("generate", "-m", tiny_gguf, "-t", 1, "-p", "a", "--server", liar.url)
    for more in (("--json",), ("--explain",), ()):
        for lie in ("ends early", "not json", "endless tokens", "endless pings"):
            liar.replies["/v1/completions"] = LIES[lie]
            done = edgecs(*fixed, *more)
            assert done.code in (1, 2), (lie, more, done)
            assert "Traceback" not in done.err
            assert len(done.err.splitlines()) <= 3


# Whatever JSON it is.

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)
numbered = st.dictionaries(
    st.sampled_from(
        [
            *(
                "predicted_n",
                "predicted_ms",
                "prompt_n",
                "prompt_ms",
                "cache_n",
                "draft_n",
            ),
            *("draft_n_accepted", "rounds", "chain", "faults", "by_level", "reason"),
            "rounds_by_width",
        ]
    ),
    values,
)


@given(numbered | values, numbered | values)
def test_any_counts_can_be_shown(timings: object, speculative: object):
    about = answered_of({"timings": timings, "speculative": speculative})
    assert answer_line(about, "stop")
    assert answer_details(about)
    assert origins_legend(about.origins(""), colours=False)
    assert about.tokens >= 0


@given(
    st.dictionaries(st.sampled_from(["text", "token_details"]), values)
    | st.fixed_dictionaries(
        {
            "token_details": st.lists(
                st.fixed_dictionaries(
                    dict.fromkeys(("id", "text", "bytes", "source", "ends"), values)
                ),
                max_size=3,
            )
        }
    ),
    st.booleans(),
)
def test_any_event_is_tokens_or_an_error(choice: dict[str, Any], detailed: bool):
    found = list[Any]()
    with suppress(ServerLost):
        found = pieces_of(choice, detailed=detailed, url="http://x")
    assert all(isinstance(one.text, str) for one in found)
