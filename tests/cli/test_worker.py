"""The command `edgecs worker`, and commands whose model is on workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Edgecs
from tests.fake_worker import fake_worker, program
from tests.workers import needs_rpc, started


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--host", "nowhere.invalid"), "not an IPv4 address"),
        (("--host", "::1"), "not an IPv4 address"),
        (("--host", "192.0.2.1"), "give an address of this machine"),
        (("--port", "65536"), "65535"),
        (("--memory", "-1"), "--memory"),
    ],
)
def test_an_address_that_cannot_be_used(
    edgecs: Edgecs, options: tuple[str, ...], why: str
):
    outcome = edgecs("worker", *options)
    assert outcome.code == 2
    assert why in outcome.err


def test_a_port_in_use(edgecs: Edgecs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = edgecs("worker", "--port", port)
    assert outcome.code == 2
    assert f"port {port} is in use" in outcome.err
    assert outcome.err.count("\n") == 1


@needs_rpc
@pytest.mark.skipif(os.name != "posix", reason="has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker(number: int):
    with started() as worker:
        assert "warning" not in worker.said
        worker.process.send_signal(number)
        _, rest = worker.process.communicate()
        assert worker.process.returncode == 128 + number
        assert rest == "stopped\n"


@needs_rpc
def test_a_worker_that_others_can_reach_warns():
    with started("--host", "0.0.0.0") as worker:
        assert "no authentication" in worker.said
        assert "ssh -L" in worker.said


GENERATE = ("generate", "--server", "off", "-c", 256, "--raw", "-n", 4)


@pytest.mark.parametrize("rpc", ["10.0.0.2", "a:b", "a:1,a:1", "http://a:80"])
def test_an_invalid_address(edgecs: Edgecs, tiny_gguf: Path, rpc: str):
    outcome = edgecs(*GENERATE, "-m", tiny_gguf, "-p", "x", "--rpc", rpc)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1


@needs_rpc
def test_what_listens_is_no_worker(edgecs: Edgecs, tiny_gguf: Path):
    def failing(address: object) -> str:
        outcome = edgecs(*GENERATE, "-m", tiny_gguf, "-p", "x", "--rpc", address)
        assert (outcome.code, outcome.out) == (8, "")
        assert outcome.err.count("\n") == 1
        return outcome.err

    with program(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        assert "is not a worker" in failing(address)
    assert "no worker answers" in failing(address)  # it is closed
    with fake_worker(version=(6, 0)) as worker:
        assert "speaks version 6.0.0" in failing(worker.address)
    with fake_worker(lives=0) as worker:
        assert "was lost" in failing(worker.address)


@needs_rpc
def test_a_chat_whose_worker_is_lost_is_saved(tiny_gguf: Path, tmp_path: Path):
    """The conversation goes on with another worker."""
    command = [
        *(sys.executable, "-m", "edgecs", "chat", "--server", "off", "-c", "4096"),
        *("-m", str(tiny_gguf), "--temp", "0", "-n", "400", "--no-spec"),
    ]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    with (
        started() as first,
        subprocess.Popen(
            [*command, "--rpc", first.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=0,
            env=env,
        ) as chat,
    ):
        assert chat.stdin
        assert chat.stdout
        chat.stdin.write("hello\n")
        chat.stdout.read(1)  # the answer has begun
        first.kill()
        chat.stdin.close()
        chat.stdin = None
        _, err = chat.communicate()
    assert chat.returncode == 8, err
    assert "was lost" in err
    assert "edgecs chat --resume" in err
    assert "Traceback" not in err
    with started() as second:
        done = subprocess.run(
            [*command, "--rpc", second.address, "--resume", "-n", "4"],
            input="more\n",
            capture_output=True,
            text=True,
            env=env,
        )
    assert done.returncode == 0, done.stderr
    assert "2 messages from the last chat" in done.stderr
