"""Files that end llama.cpp's process do so in another one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
from pathlib import Path

import pytest

from edgecs.engines import child
from edgecs.engines.llama import model_trial as trial
from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ConfigError, ModelError
from edgecs.runtime.loader import load
from edgecs.testing.fakes import write_random_gguf
from tests.commands import Edgecs, one_line

TOKENS = "tokenizer.ggml.tokens"
FATAL = {
    "no layers": {"llama.block_count": 0},
    "more layers than memory": {"llama.block_count": 2**31 - 1},
    "a layer count that wraps": {"llama.block_count": 2**32 - 1},
    "an epsilon below 0": {"llama.attention.layer_norm_rms_epsilon": -1.0},
    "an epsilon that is no number": {
        "llama.attention.layer_norm_rms_epsilon": math.nan
    },
    "a token twice": {TOKENS: ["a"] * 272},
    "another kind of tokenizer": {"tokenizer.ggml.model": "llama"},
}
OPTIONS = LoadOptions(n_ctx=64, n_batch=32, max_draft=3, threads=1, n_gpu_layers=0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The children that were started; nothing is known of any file before."""
    commands, popen = [], subprocess.Popen

    def counting(command, **options):
        commands.append(command)
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", counting)
    monkeypatch.setattr(trial, "_known", set())
    return commands


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_random_gguf(tmp_path / "good.gguf")


def does(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(trial, "_SCRIPT", script)


@pytest.mark.parametrize("what", FATAL)
def test_a_file_that_ends_llama_cpp_is_refused(edgecs: Edgecs, tmp_path, what: str):
    path = write_random_gguf(tmp_path / "evil.gguf", changes=FATAL[what])
    outcome = edgecs("generate", "-m", path, "-p", "x", "-c", 64)
    one_line(outcome, 3, "evil.gguf crashes llama.cpp (SIGABRT: ", "fetch")


def test_every_way_to_a_tokenizer_is_tried(tmp_path: Path):
    twice = FATAL["a token twice"]
    # With the latter llama.cpp refuses the model before it comes to the tokenizer.
    for other in ({}, {"llama.rope.dimension_count": 256}):
        path = write_random_gguf(tmp_path / "evil.gguf", changes={**twice, **other})
        trial._known.clear()
        with pytest.raises(ModelError, match="crashes llama.cpp"):
            read_pieces(path)


def test_what_was_survived_once_is_not_tried_again(started, good: Path, tmp_path):
    findings = tmp_path / "new" / "llama.json"
    for _ in range(2):  # as if in two processes
        trial._known.clear()
        with load(good, OPTIONS, findings=findings):
            pass
        with load(good, OPTIONS, findings=findings):
            pass
    assert len(started) == 1
    kept = findings.with_name(trial.NAME)
    assert len(json.loads(kept.read_text())["files"]) == 1
    assert kept.stat().st_mode & 0o077 == 0o044
    os.utime(good, (1, 1))  # it may have another content now
    with load(good, OPTIONS, findings=findings):
        pass
    assert len(started) == 2


def test_what_was_not_survived_is_not_kept(started, tmp_path: Path, monkeypatch, good):
    kept = tmp_path / "llama.json"
    does(monkeypatch, "import os; os.abort()")
    with pytest.raises(ModelError, match="SIGABRT"):
        trial.refuse_fatal(good, kept)
    does(monkeypatch, "")
    trial.refuse_fatal(good, kept)
    assert len(started) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"build": BUILD, "files": 3}',
        b'{"build": BUILD}',
        b'{"build": "other", "files": [MARK]}',
        b" " * (1 << 17) + b'{"build": BUILD, "files": [MARK]}',
    ],
)
def test_a_file_of_findings_that_no_trial_wrote(
    started, monkeypatch, good: Path, tmp_path: Path, content: bytes
):
    does(monkeypatch, "")
    build = json.dumps(trial.library.stamp()).encode()
    mark = json.dumps(trial._mark(good)).encode()
    tried = tmp_path / trial.NAME
    tried.write_bytes(content.replace(b"BUILD", build).replace(b"MARK", mark))
    trial.refuse_fatal(good, tmp_path / "llama.json")
    assert len(started) == 1
    assert json.loads(tried.read_text())["files"] == [trial._mark(good)]


def test_no_more_files_are_remembered_than_needed(started, monkeypatch, tmp_path: Path):
    does(monkeypatch, "")
    monkeypatch.setattr(trial, "_KEPT", 2)
    files = [tmp_path / f"{i}.gguf" for i in range(4)]
    for file in files:
        file.write_text("x")
        trial.refuse_fatal(file, tmp_path / "llama.json")
    kept = json.loads((tmp_path / trial.NAME).read_text())["files"]
    assert kept == [trial._mark(file) for file in files[-2:]]


def test_a_child_that_does_not_end_is_ended(started, monkeypatch, good: Path):
    does(monkeypatch, "import time; time.sleep(100)")
    monkeypatch.setattr(trial, "_SECONDS", 0.2)
    with pytest.raises(ModelError, match="does not open .* within 0 s"):
        trial.refuse_fatal(good)


def test_a_trial_can_be_stopped(started, monkeypatch, good: Path):
    does(monkeypatch, "import time; time.sleep(100)")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled, match="stopped while testing good.gguf"):
        trial.refuse_fatal(good, None, cancel)


def test_where_no_process_can_start_nothing_is_tried(started, monkeypatch, good: Path):
    monkeypatch.setattr(child, "can_start", lambda: False)
    trial.refuse_fatal(good)
    assert not started


def test_a_file_that_is_missing_is_told_by_others(started, tmp_path: Path):
    trial.refuse_fatal(tmp_path / "none.gguf")
    assert not started


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 513},
        {"threads": -1},
        {"threads": 1 << 40},
        {"n_ctx": 1 << 31},
        {"n_batch": 0},
        {"n_batch": 1 << 20},
    ],
)
def test_numbers_that_end_ggml_are_refused(options: dict[str, int]):
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name} must be between"):
        LoadOptions(**{"max_draft": 0, **options})


@pytest.mark.parametrize("threads", [513, 4097, 1_000_000, 1 << 40])
def test_threads_are_bounded(edgecs: Edgecs, tiny_gguf: Path, threads: int):
    for flag in ("-t", "-td"):
        outcome = edgecs("generate", "-m", tiny_gguf, "-p", "x", flag, threads)
        one_line(outcome, 2, f"a whole number from 0 to 512, got '{threads}'")
