"""Ctrl-C, readers that go away, and outputs that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp as lib
import pytest

from edgecs.testing.fakes import write_random_gguf
from tests.commands import Edgecs, generate, one_line
from tests.conftest import interrupt_at


def test_ctrl_c_while_loading(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    real = lib.llama_model_load_from_file

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(lib, "llama_model_load_from_file", interrupted)
    one_line(generate(edgecs, tiny_gguf), 130, "stopped while loading tiny.gguf")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_prefill(edgecs, tiny_gguf, monkeypatch):
    interrupt_at(monkeypatch, 1)
    text = "x" * 2000
    command = ("generate", "-m", tiny_gguf, "-p", text, "--json", "-q", "--no-spec")
    outcome = edgecs(*command)
    assert outcome.code == 130
    report = json.loads(outcome.out)
    assert (report["tokens"], report["finish_reason"]) == ([], "cancelled")


def test_ctrl_c_while_a_new_model_is_probed(edgecs, tiny_gguf, monkeypatch):
    interrupt_at(monkeypatch, 3)
    outcome = edgecs("generate", "-m", tiny_gguf, "-p", "hello")
    assert (outcome.code, outcome.out) == (130, "")
    assert "stopped while measuring the model" in outcome.err


def test_ctrl_c_in_an_answer_keeps_what_was_said(edgecs, tiny_gguf, monkeypatch):
    whole = generate(edgecs, tiny_gguf, "-n", 200, "-q", "--no-spec").out
    interrupt_at(monkeypatch, 30)
    outcome = generate(edgecs, tiny_gguf, "-n", 200, "--no-spec")
    assert outcome.code == 130
    assert 0 < len(outcome.out) < len(whole)
    assert whole.startswith(outcome.out.rstrip("\n"))
    assert "30 tokens" in outcome.err
    assert " · stopped" in outcome.err


@pytest.fixture(scope="module")
def slow_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Talks for long: a large vocabulary makes every token take its time.

    Asked with a fixed seed: another one might draw the end token at once.
    """
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    return write_random_gguf(path, vocab_size=100_000, n_ctx=65536)


def process(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgecs", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_real_ctrl_c_ends_a_real_process(slow_gguf: Path, json_too: list[str]):
    with process("generate", "-m", slow_gguf, "-p", "a", "-s", 1, *json_too) as running:
        assert running.stderr is not None
        assert any(
            b"speculation" in line for line in iter(running.stderr.readline, b"")
        )
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert " · stopped".encode() in err
    assert b"Traceback" not in err
    if json_too:
        assert json.loads(out)["finish_reason"] == "cancelled"


def test_an_ignored_ctrl_c_stays_ignored(edgecs, tiny_gguf, monkeypatch):
    interrupt_at(monkeypatch, 5)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert generate(edgecs, tiny_gguf, "-n", 20).code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_goes_away_ends_the_process_quietly(slow_gguf: Path):
    with process("generate", "-m", slow_gguf, "-p", "a", "-s", 1, "-q") as running:
        assert running.stdout is not None
        assert running.stdout.read(1)
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""
        assert running.wait(timeout=60) == 141


def test_an_output_that_cannot_be_written_is_one_sentence(tiny_gguf: Path):
    command = [sys.executable, "-m", "edgecs", "generate", "-m", str(tiny_gguf), "-q"]
    command += ["-p", "a", "-n", "50", "-c", "256"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "edgecs generate: cannot continue: [Errno 28] No space left on device"
    ]


def test_closed_streams_are_no_trouble(tiny_gguf: Path):
    command = f"{sys.executable} -m edgecs generate -m {tiny_gguf} -c 256 -n 5"
    for streams, code in (("-p a >&-", 0), ("-p a 2>&-", 0), ("-p a <&-", 0)):
        done = subprocess.run(
            f"{command} {streams}", shell=True, capture_output=True, text=True
        )
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr
    done = subprocess.run(f"{command} <&-", shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the prompt is empty" in done.stderr


def test_two_processes_share_a_model_file(tiny_gguf: Path):
    options = ("-p", "a", "-n", 50, "-c", 256, "--json", "-s", 1)
    both = [process("generate", "-m", tiny_gguf, *options) for _ in range(2)]
    reports = [json.loads(p.communicate(timeout=60)[0]) for p in both]
    assert reports[0]["tokens"] == reports[1]["tokens"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("command", "code"), [("--help", 1), ("--version", 1), ("x", 2), ("doctor", 1)]
)
def test_where_nothing_can_be_written_the_exit_code_is_told(command: str, code: int):
    program = [sys.executable, "-m", "edgecs_cli", command]
    with open("/dev/full", "w") as full:
        out = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
        assert out.returncode == code
        assert "Traceback" not in out.stderr
        assert "Exception ignored" not in out.stderr
        none = subprocess.run(program, stdout=full, stderr=full)
        assert none.returncode == code


def test_who_stops_while_modules_are_imported_sees_no_traceback(tmp_path: Path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    stopped = subprocess.run(
        [sys.executable, "-c", "import edgecs_cli; edgecs_cli.main()"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (stopped.returncode, stopped.stderr) == (130, "")


def test_an_input_that_ends_is_no_ctrl_c(
    edgecs: Edgecs, monkeypatch: pytest.MonkeyPatch
):
    def ended(*arguments: object, **more: object) -> None:
        raise EOFError

    monkeypatch.setattr("edgecs_cli.commands.doctor.doctor.callback", ended)
    outcome = edgecs("doctor")
    assert outcome.code == 1
    assert outcome.err.strip() == "edgecs: the input ended unexpectedly"
