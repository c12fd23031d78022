"""The files by which commands find servers: whatever they say, no prompt gets out."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.server.http.local_key import NONCE, PROOF, LocalKey, new_nonce
from edgecs_cli.client import state_file
from edgecs_cli.client.connection import Connection, ServerLost, own_servers
from edgecs_cli.client.state_file import published, running_servers, servers_folder

KEY = "ab" * 32
URL = "http://127.0.0.1:8080"
GOOD = {
    "format": "edgecs-server",
    "url": URL,
    "key": KEY,
    "pid": os.getpid(),
    "version": "1",
    "models": ["a"],
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(tmp_path))
    folder = servers_folder()
    folder.mkdir(mode=0o700)
    return folder


def write(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "1.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_server_is_found_while_it_runs(state: Path):
    key = LocalKey.new(URL)
    with published(key, "1.2", ["a", "b"]):
        (server,) = running_servers()
        assert server.local_key == key
        assert (server.version, server.models) == ("1.2", ("a", "b"))
        (path,) = state.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
    assert running_servers() == []
    assert list(state.iterdir()) == []


def test_a_home_that_cannot_be_written_ends_no_server(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **more: object) -> None:
        raise PermissionError

    monkeypatch.setattr(state_file, "_write", refuse)
    with published(LocalKey.new(URL), "1", []):
        assert running_servers() == []


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606])
def test_files_that_others_can_read_or_write_do_not_count(state: Path, mode: int):
    path = write(state, json.dumps(GOOD))
    assert len(running_servers()) == 1
    path.chmod(mode)
    assert running_servers() == []


def test_a_folder_that_others_can_write_does_not_count(state: Path):
    write(state, json.dumps(GOOD))
    state.chmod(0o777)
    assert running_servers() == []


def test_files_of_other_users_do_not_count(
    state: Path, monkeypatch: pytest.MonkeyPatch
):
    write(state, json.dumps(GOOD))
    uid = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: uid)
    assert running_servers() == []


def test_links_and_pipes_are_not_followed(state: Path, tmp_path: Path):
    target = tmp_path / "elsewhere.json"
    target.write_text(json.dumps(GOOD))
    target.chmod(0o600)
    (state / "2.json").symlink_to(target)
    os.mkfifo(state / "3.json", 0o600)
    (state / "4.json").mkdir()
    assert running_servers() == []


def test_the_file_of_a_dead_server_is_removed(
    state: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(state, json.dumps(GOOD))

    def dead(pid: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", dead)
    assert running_servers() == []
    assert not path.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.one_of(
        st.binary(),
        JSON.map(json.dumps).map(str.encode),
        st.tuples(st.sampled_from(sorted(GOOD)), JSON).map(
            lambda pair: json.dumps({**GOOD, pair[0]: pair[1]}).encode()
        ),
        st.just(b"[" * 60_000),
        st.just(json.dumps(GOOD).encode() + b" " * (1 << 16)),
    )
)
def test_no_file_is_believed_or_raises(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
):
    folder = servers_folder()
    write(folder, data)
    for server in running_servers():
        assert server.url.startswith("http://127.0.0.1:") or "[::1]" in server.url
        assert len(server.key) == 64
        assert 0 < server.pid < 1 << 31


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.1:80",
        "http://example.com:80",
        "https://127.0.0.1:80",
        "http://127.0.0.1",
        "http://user@127.0.0.1:80",
        "http://127.0.0.1:80/path",
        "http://127.0.0.1:99999",
        "http://localhost:80",
        "file:///etc/passwd",
        "",
    ],
)
def test_only_addresses_of_this_machine_count(state: Path, url: str):
    write(state, json.dumps({**GOOD, "url": url}))
    assert running_servers() == []


@contextmanager
def program(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[list[str]]:
    """A program on a port; the URL first, then what it was asked."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers}")
            answer(self)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    seen.append(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, proof: str | None) -> None:
    handler.send_response(200)
    if proof is not None:
        handler.send_header(PROOF, proof)
    handler.send_header("Content-Length", "2")
    handler.end_headers()
    handler.wfile.write(b"{}")


@pytest.mark.parametrize("proof", [None, "", "0" * 64, "of another port", "old"])
def test_a_program_that_cannot_prove_itself_gets_neither_key_nor_prompt(
    state: Path, proof: str | None
):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonce = handler.headers[NONCE]
        elsewhere = LocalKey(KEY, "http://127.0.0.1:1")
        made = {"of another port": elsewhere.proof(nonce)}
        made["old"] = LocalKey(KEY, seen[0]).proof(new_nonce())
        reply(handler, made.get(proof or "", proof))

    with program(answer) as seen:
        write(state, json.dumps({**GOOD, "url": seen[0]}))
        assert len(running_servers()) == 1
        assert list(own_servers()) == []
    assert len(seen) == 2
    assert seen[1].startswith("/health ")
    assert KEY not in seen[1]


def test_the_key_is_sent_after_the_proof_and_on_the_same_connection(state: Path):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonce = handler.headers.get(NONCE)
        reply(handler, LocalKey(KEY, seen[0]).proof(nonce) if nonce else None)

    with program(answer) as seen:
        write(state, json.dumps({**GOOD, "url": seen[0]}))
        (connection,) = own_servers()
        assert connection.call("GET", "/props") == {}
        assert KEY not in seen[1]
        assert f"Bearer {KEY}" in seen[2]
        connection.close()
        with pytest.raises(ServerLost):  # it is not opened again
            connection.call("GET", "/props")
        assert len(seen) == 3


def test_a_port_where_nothing_listens_is_passed_over(state: Path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        write(state, json.dumps({**GOOD, "url": url}))
        assert list(own_servers()) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 60_000])
def test_answers_that_are_not_json_are_one_sentence(body: bytes):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with program(answer) as seen:
        connection = Connection(seen[0])
        with pytest.raises(ServerLost, match="does not answer as edgecs does"):
            connection.call("GET", "/props")
        connection.close()


def test_a_nonce_has_one_form():
    key = LocalKey.new(URL)
    nonce = new_nonce()
    proof = key.proof(nonce)
    assert proof is not None
    assert key.proves(nonce, proof)
    assert not key.proves(new_nonce(), proof)
    for wrong in ("", "0" * 63, "0" * 65, "g" * 64, nonce.upper() + "\n"):
        assert key.proof(wrong) is None
        assert not key.proves(wrong, proof)
