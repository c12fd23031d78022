"""The command that starts the server, up to the moment when it listens."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from edgecs.server import run as running
from edgecs.server.http.incidents import incident
from edgecs.testing.fakes import write_random_gguf
from edgecs_cli.console import show_log
from tests.commands import Edgecs


@pytest.fixture
def ready_and_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends as soon as it is ready."""

    real, servers = running.serve, list[Any]()

    def serve(*given: Any, ready: Any, **more: Any) -> None:
        def ready_and_stop(engine: Any) -> None:
            ready(engine)
            servers[-1].should_exit = True

        real(*given, ready=ready_and_stop, started=servers.append, **more)

    monkeypatch.setattr(running, "serve", serve)


def started(edgecs: Edgecs, model: Path, *options: object) -> str:
    fixed = ("-m", model, "--port", 0, "--kernels", "llama", "--no-spec")
    outcome = edgecs("serve", *fixed, *options)
    assert outcome.code == 0, outcome.err
    return outcome.err


@pytest.mark.usefixtures("ready_and_gone")
def test_the_default_context_is_not_longer_than_that_of_the_training(
    edgecs: Edgecs, tmp_path: Path
):
    model = write_random_gguf(tmp_path / "short.gguf", n_ctx=2048)
    said = started(edgecs, model, "-np", 2)
    assert "2 slots of 2048 tokens" in said
    assert "the context is 2048 tokens, as the model was trained for no more" in said
    said = started(edgecs, model, "-np", 2, "-c", 4096)
    assert "2 slots of 4096 tokens" in said
    assert "trained" not in said


@pytest.mark.usefixtures("ready_and_gone")
def test_a_model_with_a_long_context_has_a_shorter_one_by_default(
    edgecs: Edgecs, tiny_gguf: Path
):
    said = started(edgecs, tiny_gguf, "-np", 2)
    assert "2 slots of 8192 tokens" in said
    assert "trained" not in said


@pytest.mark.skipif(os.name != "posix", reason="has no SIGTERM")
def test_sigterm_saves_the_conversations_in_the_slots(tiny_gguf: Path, tmp_path: Path):
    cache = tmp_path / "prefixes"
    command = [
        *(sys.executable, "-m", "edgecs", "serve", "-m", tiny_gguf, "--port", "0"),
        *("-np", "2", "-c", "512", "--prefix-cache", cache, "--offline", "--no-spec"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if "listening on" in line)
            url = said.split()[2]
            said = {"role": "user", "content": "hello " * 20}
            body = {"messages": [said], "max_tokens": 3}
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            assert not [*cache.glob("*/*")]
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert len([*cache.glob("*/*.cells")]) == 1


@pytest.mark.parametrize("verbose", [False, True])
def test_the_log_has_the_cause_of_an_incident(
    capsys: pytest.CaptureFixture[str], verbose: bool
):
    with click.Context(click.Command("serve")):
        show_log(verbose, warnings=True)
        try:
            raise ValueError("the cause")
        except ValueError as error:
            told = str(incident("an answer failed", error))
        logging.getLogger("edgecs").debug("not this")
    written = capsys.readouterr().err
    name = told.split()[2].rstrip(":")
    assert f"internal error {name}: an answer failed\nTraceback" in written
    assert "ValueError: the cause" in written
    assert "not this" not in written
    logging.getLogger("edgecs").warning("nor this")
    assert not capsys.readouterr().err
