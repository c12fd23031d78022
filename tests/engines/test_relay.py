"""The relay: it passes everything on, and answers for a worker that is lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.engines.workers import protocol, relay
from edgecs.engines.workers.addresses import Address
from edgecs.engines.workers.protocol import (
    HEAD,
    HELLO,
    MAJOR,
    SIZE,
    connect,
    reply_size,
    substitute,
)
from edgecs.engines.workers.relay import Relay
from edgecs.errors import WorkerError
from tests.fake_worker import exactly, fake_worker, made_up, program

COMMANDS = [command for command in range(20) if command != HELLO]
GET_TENSOR = 8
BLOCKS = [1 << 20, 40, 33]  # bytes; the data of a request need several small ones


@contextmanager
def relayed(address: Address) -> Iterator[tuple[Relay, socket.socket]]:
    """A relay, and a connection to it as llama.cpp makes it."""
    made = Relay(address)
    try:
        host, port = made.endpoint.split(":")
        with socket.create_connection((host, int(port)), 10) as client:
            yield made, client
    finally:
        made.close()


def ask(client: socket.socket, command: int, data: bytes = b"") -> bytes | None:
    """The data of the reply to a request; None: there is none."""
    client.sendall(HEAD.pack(command, len(data)) + data)
    wanted = reply_size(command, data)
    if wanted is None:
        return None
    assert exactly(client, SIZE.size) == SIZE.pack(wanted)
    return exactly(client, wanted)


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, bytes]:
    command = draw(st.sampled_from(COMMANDS))
    data = draw(st.binary(max_size=40))
    if command == GET_TENSOR:
        data += SIZE.pack(draw(st.integers(0, 100)))
    return command, data


@settings(max_examples=40)
@given(st.lists(requests(), max_size=12), st.sampled_from(BLOCKS))
def test_requests_and_replies_pass_unchanged(sent: list[tuple[int, bytes]], block: int):
    with pytest.MonkeyPatch.context() as patch, fake_worker() as worker:
        patch.setattr(relay, "_BLOCK", block)
        with relayed(worker.address) as (made, client):
            for command, data in sent:
                wanted = reply_size(command, data)
                reply = ask(client, command, data)
                assert reply == (None if wanted is None else made_up(command, wanted))
            ask(client, 15)  # the worker has read all that came before
            assert worker.requests[:-1] == sent
            made.check()


@settings(max_examples=40)
@given(st.lists(requests(), max_size=12), st.integers(0, 300), st.sampled_from(BLOCKS))
def test_every_request_has_a_whole_reply_wherever_the_worker_dies(
    sent: list[tuple[int, bytes]], lives: int, block: int
):
    with (
        pytest.MonkeyPatch.context() as patch,
        fake_worker(lives) as worker,
        relayed(worker.address) as (made, client),
    ):
        patch.setattr(relay, "_BLOCK", block)
        came = 0
        for command, data in sent:
            reply = ask(client, command, data)
            wanted = reply_size(command, data)
            if reply is None or wanted is None:
                continue
            came += SIZE.size + wanted
            if came <= lives:
                assert reply == made_up(command, wanted)
            else:  # of a reply that was cut off, the blocks that came whole
                real = made_up(command, wanted)
                instead = substitute(command).ljust(wanted, b"\0")
                cut = next((i for i in range(wanted) if reply[i] != real[i]), wanted)
                assert reply[cut:] == instead[cut:]
        if came > lives:
            with pytest.raises(WorkerError, match="was lost"):
                made.check()


def test_llama_cpp_gets_a_greeting_from_the_relay_itself():
    with fake_worker() as worker, relayed(worker.address) as (_, client):
        reply = ask(client, HELLO, bytes(range(24)))
        assert reply == bytes([MAJOR, 0, 0, 0]) + bytes(24)  # no capabilities


def test_a_reply_of_another_size_is_the_end_of_the_worker():
    with fake_worker() as worker, relayed(worker.address) as (made, client):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(protocol._REPLIES, 15, 4)
            patch.setattr(relay, "reply_size", lambda command, tail: 5)
            client.sendall(HEAD.pack(15, 0))
            assert exactly(client, SIZE.size + 5) == SIZE.pack(5) + bytes(5)
        with pytest.raises(WorkerError, match="wrong size"):
            made.check()


def test_a_worker_that_is_gone_before_the_first_request():
    with fake_worker() as worker:
        address = worker.address
    with relayed(address) as (made, client):
        assert ask(client, 15) == bytes(4)  # it has no devices
        with pytest.raises(WorkerError, match="no worker answers"):
            made.check()


def test_other_programs_cannot_use_the_worker():
    with fake_worker() as worker:
        made = Relay(worker.address)
        try:
            host, port = made.endpoint.split(":")
            script = (
                "import socket, sys\n"
                "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)\n"
                "sock.sendall(bytes([15]) + bytes(8))\n"
                "try: sys.exit(len(sock.recv(1)))\n"
                "except ConnectionError: pass\n"
            )
            done = subprocess.run([sys.executable, "-c", script, host, port])
        finally:
            made.close()
        assert done.returncode == 0  # it was closed without an answer
        assert worker.requests == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1"),
        (b"", "begins with b''"),
        (SIZE.pack(28) + bytes(3), "is not a worker"),
        (SIZE.pack(1 << 60), "is not a worker"),
        (b"\x1b[2J\xff", "is not a worker"),
    ],
)
def test_another_program_is_recognised(answer: bytes, why: str):
    with program(answer) as address, pytest.raises(WorkerError) as caught:
        connect(address)
    text = str(caught.value)
    assert why in text
    assert text.isprintable()


@pytest.mark.parametrize("version", [(MAJOR - 1, 0), (MAJOR + 1, 0), (MAJOR, 1)])
def test_another_version_is_refused(version: tuple[int, int]):
    with (
        fake_worker(version=version) as worker,
        pytest.raises(WorkerError, match=rf"version {version[0]}\.{version[1]}"),
    ):
        connect(worker.address)


def test_a_worker_that_serves_another_program_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(protocol, "PATIENCE", 0.2)
    with (
        fake_worker() as worker,
        connect(worker.address),
        pytest.raises(WorkerError, match="one program at a time"),
    ):
        connect(worker.address)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 64])
def test_a_host_that_does_not_exist(host: str):
    with pytest.raises(WorkerError, match="no worker answers"):
        connect(Address(host, 50052))
