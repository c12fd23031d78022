"""Clients that send nothing, send slowly or do not read: others are answered."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from edgecs.server.app import Serving
from edgecs.server.http import connections, replies
from edgecs.server.http.intake import Intake
from edgecs.session.answer import Token
from tests.server.scripted import ScriptedEngine, Ticket, serving_of
from tests.server.servers import WAIT, running_server, serving

MANY = 1200  # more than the server takes
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
HALVES = (
    b"",
    b"GET /hea",
    HEAD + b"X-Slow: " + b"x" * 2000,
    HEAD + b'Content-Length: 100\r\n\r\n{"messages": ',
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of all connections are files of this process."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MANY + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def half_open(url: str, number: int) -> Iterator[list[socket.socket]]:
    """Connections with the beginnings of requests."""
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as closing:
        made = list[socket.socket]()
        for i in range(number):
            one = socket.create_connection((host, int(port)), timeout=WAIT)
            closing.callback(one.close)
            with suppress(OSError):  # it may be closed already
                one.sendall(HALVES[i % len(HALVES)])
            made.append(one)
        yield made


def is_over(sock: socket.socket) -> bool:
    """Whether the server closes a connection, after an answer or without one."""
    with suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def test_half_open_requests_are_bounded_and_others_are_answered(
    tiny_gguf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, many_files: None
):
    """Before any time has passed, the oldest ones make room; later all are closed."""
    for module, name in (
        (connections, "HEADER_SECONDS"),
        (replies, "BODY_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 3.0)
    with serving(tiny_gguf, folder) as url:
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        before = memory()
        with half_open(url, MANY) as made:
            host, port = url.removeprefix("http://").split(":")
            reply = httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=WAIT)
            assert reply.status_code == 200
            here = (host, int(port))
            served = [
                one
                for one in psutil.Process().net_connections("tcp")
                if one.laddr == here and one.status == psutil.CONN_ESTABLISHED
            ]
            assert len(served) <= connections.most_connections() + 1
            assert memory() - before < 200 << 20
            assert all(map(is_over, made))
        reply = httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=WAIT)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    ("limits", "after", "most"),
    [
        ((1024, 4096), (1792, 4096), 1024),
        ((1024, 1024), (1024, 1024), 256),
        ((64, 64), (64, 64), 32),
        ((20_000, 20_000), (20_000, 20_000), 1024),
        ((-1, -1), (-1, -1), 1024),
        ((1024, -1), (1792, -1), 1024),
    ],
)
def test_connections_leave_files_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, limits: Any, after: Any, most: int
):
    resource = pytest.importorskip("resource")
    now = [limits]
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: now.append(new))
    connections.allow_connections()
    assert now[-1] == after
    assert connections.most_connections() == most


def test_a_connection_is_refused_if_all_others_are_answered(
    monkeypatch: pytest.MonkeyPatch,
):
    """Nobody waits for their clients, so none of them makes room."""
    monkeypatch.setattr("edgecs.server.run.most_connections", lambda: 2)
    engine = ScriptedEngine("hello")
    monkeypatch.setattr(engine, "ask", lambda job: Unending(job, []))
    with running_server(serving_of(engine), None) as url, ExitStack() as closing:
        host, port = url.removeprefix("http://").split(":")
        data = json.dumps({**CHAT, "stream": True}).encode()
        request = HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() + data

        def connect(sent: bytes) -> socket.socket:
            one = socket.create_connection((host, int(port)), timeout=WAIT)
            closing.callback(one.close)
            one.sendall(sent)
            return one

        answered = [connect(request) for _ in range(2)]
        for one in answered:
            assert one.recv(20).startswith(b"HTTP/1.1 200")
        refused = connect(b"")
        said = b""
        while part := refused.recv(4096):
            said += part
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert json.loads(body)["error"]["code"] == 503


class Unending:
    """An answer whose text never ends and comes as fast as it is taken."""

    def __init__(self, job: Any, events: Any) -> None:
        self.job, self.ticket = job, Ticket()

    async def events(self) -> Any:
        while True:
            yield [Token(65, "x" * 4096, "target", None)]


@pytest.mark.skipif(sys.platform == "win32", reason="its sockets buffer differently")
def test_a_client_that_does_not_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)
    engine = ScriptedEngine("hello")
    asked = list[Unending]()

    def ask(job: Any) -> Unending:
        asked.append(Unending(job, []))
        return asked[-1]

    monkeypatch.setattr(engine, "ask", ask)
    servers: list[Any] = []
    with running_server(serving_of(engine), None, servers) as url:
        host, port = url.removeprefix("http://").split(":")
        data = json.dumps({**CHAT, "stream": True}).encode()
        with socket.create_connection((host, int(port)), timeout=WAIT) as sock:
            head = HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode()
            sock.sendall(head + data)
            while not (asked and asked[0].ticket.cancelled):
                time.sleep(0.001)
            assert is_over(sock)
        assert not servers[0].server_state.connections


class TestIntake:
    """Bodies have room together."""

    def test_bodies_of_others_count_and_are_given_back(self):
        intake, one, two = Intake(100), dict[str, Any](), dict[str, Any]()
        assert intake.take(one, 60)
        assert not intake.take(two, 50)
        assert intake.take(two, 40)
        assert not intake.take(one, 1)
        intake.give_back(two)
        assert intake.take(one, 1000)  # alone it has room
        intake.give_back(one)
        intake.give_back(one)
        assert intake.held == 0

    def test_a_body_that_has_no_room_is_refused(self):
        state = Serving(intake=Intake(1000))
        with running_server(serving_of(ScriptedEngine("hello"), state), None) as url:
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=WAIT) as sock:
                sock.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + b" " * 900)
                while state.intake.held < 900:
                    time.sleep(0.001)
                body = {"content": "x" * 200}
                reply = httpx.post(f"{url}/tokenize", json=body, timeout=WAIT)
                assert reply.status_code == 503
                assert reply.headers["retry-after"] == "1"
                small = httpx.post(f"{url}/tokenize", json={"content": "x"})
                assert small.status_code == 200
            while state.intake.held:
                time.sleep(0.001)
            reply = httpx.post(f"{url}/tokenize", json=body, timeout=WAIT)
            assert reply.status_code == 200
