"""Requests to a server: bodies, heads, and connections that end anywhere."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from tests.fuzz import mutate

_WAIT = 20.0  # seconds for an answer of three tokens, on a busy machine
_QUIET = 2.0  # seconds without data after which nothing more is sent
_SAY = [{"role": "user", "content": "hello"}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
_TOOL = {"name": "look", "description": "Looks.", "parameters": _SCHEMA}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "system", "content": "x"}, *_SAY],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["a", "b"],
        "n": 2,
        "seed": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "logit_bias": {"3": 1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": _FORMAT,
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": "auto",
        "speculative": True,
    },
    "/v1/completions": {
        "prompt": "hello",
        "max_tokens": 3,
        "echo": True,
        "logprobs": 1,
        "grammar": 'root ::= "a"',
    },
    "/v1/responses": {"input": "hello", "max_output_tokens": 3, "stream": True},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 3,
        "system": "x",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "stop_sequences": ["a"],
        "stream": True,
    },
    "/v1/messages/count_tokens": {"model": "tiny", "messages": _SAY},
    "/v1/embeddings": {"input": ["hello"]},
    "/api/chat": {"model": "tiny", "messages": _SAY, "options": {"num_predict": 3}},
    "/api/generate": {
        "model": "tiny",
        "prompt": "hello",
        "options": {"num_predict": 3, "seed": 1},
        "format": "json",
        "keep_alive": "5m",
    },
    "/api/show": {"model": "tiny"},
    "/api/pull": {"model": "tiny"},
    "/api/embed": {"model": "tiny", "input": "hello"},
    "/tokenize": {"content": "hello", "with_pieces": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/apply-template": {"messages": _SAY},
}
_PATHS = ("/", "/health", "/v1/models", "/v1/models/tiny", "/props", "/slots")
_PATHS += ("/metrics", "/api/tags", "/api/ps", "/api/version", "/openapi.json")
_HEADS = ("Host", "Origin", "Authorization", "Content-Type", "Content-Length")
_HEADS += ("Transfer-Encoding", "Expect", "Connection", "Range", "x-api-key", "Cookie")


def drawn(random: Random) -> list[bytes]:
    """A few requests as they are sent."""
    return [_request(random) for _ in range(random.randrange(1, 8))]


def _request(random: Random) -> bytes:
    if random.random() < 0.2:
        method, path, body = "GET", random.choice(_PATHS), b""
    else:
        method, path = "POST", random.choice(list(BODIES))
        # Unless it is changed, an answer has at most three tokens.
        body = mutate.json_text(mutate.changed(BODIES[path], random), random)
    if random.random() < 0.05:
        method = random.choice(("PUT", "OPTIONS", "HEAD", "PRI", "", "A" * 9000))
    if random.random() < 0.1:
        path += random.choice(("/", "//", "/..", "?a=%00", "%2e%2e", "#", "\x80", " x"))
    heads = {"Host": "127.0.0.1", "Content-Length": str(len(body))}
    heads["Connection"] = "close"
    while random.random() < 0.2:
        heads[random.choice(_HEADS)] = _text(random)
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in heads.items())]
    data = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body
    return mutate.flipped(data, random) if random.random() < 0.1 else data


def written(method: str, path: str, body: bytes) -> bytes:
    """A request that is in order but for its body."""
    heads = f"Host: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{method} {path} HTTP/1.1\r\n{heads}\r\n\r\n".encode() + body


def _text(random: Random) -> str:
    known = ("localhost", "evil.example", "chunked", "null", "http://evil.example")
    odd = (str(random.choice(mutate.NUMBERS)), random.choice(mutate.TEXTS))
    return random.choice((*known, *odd))


@cache
def _server(model: Path, n_ctx: int) -> int:
    """The port of a server of this process with a model."""
    from tests.server.servers import OPTIONS, serving

    kept = ExitStack()  # until the process is ended
    folder = model.parent / f"serving-{model.stem}"
    folder.mkdir()
    options = replace(OPTIONS, n_ctx=n_ctx)
    url = kept.enter_context(serving(model, folder, options=options))
    _KEPT.append(kept)
    return int(urlsplit(url).port or 0)


_KEPT: list[ExitStack] = []


def sent(
    requests: list[bytes], model: Path, n_ctx: int, random: Random
) -> tuple[str, str]:
    """What went wrong, and what was said; the first is empty if nothing did."""
    port = _server(model, n_ctx)
    for request in requests:
        leaves = random.random() < 0.2
        answer = _answered(port, request, leaves=leaves)
        if answer is None:
            return "hangs", f"no end of an answer within {_WAIT:.0f} s: {request!r}"
        if not leaves and (wrong := _wrong(answer)):
            return wrong, f"{answer[:400]!r} to {request[:600]!r}"
    health = _answered(port, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
    if health is None or b'{"status":"ok"}' not in health:
        return "aborts", f"the server is not healthy afterwards: {health!r}"
    return "", ""


def _answered(port: int, request: bytes, *, leaves: bool = False) -> bytes | None:
    """All that the server sends; None if it does not end the connection.

    leaves: close the connection at once instead of reading.
    """
    end, parts = time.monotonic() + _WAIT, list[bytes]()
    with socket.create_connection(("127.0.0.1", port), timeout=_QUIET) as connection:
        try:
            connection.sendall(request)
            while not leaves and time.monotonic() < end:
                try:
                    data = connection.recv(1 << 16)
                except TimeoutError:
                    # It waits for the rest of the request, or for another one.
                    connection.shutdown(socket.SHUT_WR)
                    continue
                if not data:
                    return b"".join(parts)
                parts.append(data)
        except ConnectionError:
            return b"".join(parts)  # it closed the connection while more was sent
    return b"" if leaves else None


def _wrong(answer: bytes) -> str:
    """The problem of an answer. None at all is allowed: a head may be no HTTP."""
    if not answer:
        return ""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[1].isdigit():
        return "exit codes"
    if int(words[1]) >= 500 or b"Traceback" in body:
        return "tracebacks"
    return ""
