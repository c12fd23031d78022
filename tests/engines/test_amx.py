"""llama.cpp's AMX code is tried before it can end the process of a user."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgecs.engines.llama
from edgecs.engines import trial
from edgecs.engines.llama import amx, library
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load, load_drafter
from tests.commands import Edgecs, generate, one_line

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0, kernels="llama")
LLAMA = ("--kernels", "llama")
DIES = "import os, signal; os.kill(os.getpid(), signal.SIG{})"
MODULE = "edgecs.engines.llama.amx"


@pytest.fixture(autouse=True)
def _fresh():
    amx._tested.cache_clear()
    yield
    amx._tested.cache_clear()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch):
    """Sets what the child does; what comes back counts the children."""
    started, run = [], subprocess.run

    def starts(script: str) -> list[int]:
        monkeypatch.setattr(amx, "_SCRIPT", script)
        return started

    def counting(*args, **options):
        started.append(1)
        return run(*args, **options)

    monkeypatch.setattr(subprocess, "run", counting)
    monkeypatch.setattr(library, "system_info", lambda: "CPU : AMX_INT8 = 1 |")
    return starts


def test_the_real_child_ends_with_a_finding(capfd: pytest.CaptureFixture[str]):
    assert amx.finding(None) in (trial.WORKS, trial.CRASHES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("", "works"),
        (DIES.format("SEGV"), "crashes"),
        (DIES.format("ILL"), "crashes"),
        (DIES.format("BUS"), "crashes"),
        (DIES.format("KILL"), "was ended by SIGKILL"),
        ("raise SystemExit(3)", "computes nonsense"),
        ("raise SystemExit(9)", "ended with exit code 9"),
        ("import nothing_of_that_name", "ended with exit code 1"),
    ],
)
def test_how_the_child_ends_is_the_finding(child, capfd, script: str, found: str):
    started = child(script)
    assert amx.finding(None) == amx.finding(None) == found
    assert len(started) == 1
    assert capfd.readouterr() == ("", "")


def test_exit_codes_of_windows():
    assert trial.verdict(0xC0000005) == trial.verdict(0xC000001D) == trial.CRASHES


def test_a_child_that_does_not_end_is_ended(child, monkeypatch):
    child("import time; time.sleep(100)")
    monkeypatch.setattr(amx, "_LIMIT", 0.3)
    assert amx.finding(None) == "did not end within 0 s"


def test_a_child_that_cannot_start_is_no_crash(child, monkeypatch, tmp_path):
    started = child("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert amx.finding(None) == "did not start (No such file or directory)"
    amx._tested.cache_clear()
    monkeypatch.setattr(sys, "executable", "")
    assert amx.finding(None) == "needs a Python of its own"
    amx._tested.cache_clear()
    # There sys.executable is the application, which would start itself for ever.
    monkeypatch.setattr(sys, "executable", sys.orig_argv[0])
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert amx.finding(None) == "needs a Python of its own"
    assert len(started) == 1


def test_ctrl_c_is_not_for_the_child(child):
    child("import os, sys; sys.exit(os.getsid(0) != os.getpid())")
    assert amx.finding(None) == trial.WORKS


def test_the_current_folder_lends_the_child_no_modules(child, monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    child("import json")
    assert amx.finding(None) == trial.WORKS


@pytest.mark.parametrize("apart", [0.5, 5.0, np.nan])
def test_rows_must_agree(monkeypatch, tmp_path, apart: float):
    rows = {False: np.zeros(9), True: np.array([apart] + [0.0] * 8)}
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)
    monkeypatch.setattr(amx, "_row", lambda path, *, repack: rows[repack])
    if apart == 0.5:
        amx.compute(str(tmp_path))
        return
    with pytest.raises(SystemExit) as ended:
        amx.compute(str(tmp_path))
    assert trial.verdict(ended.value.code) == trial.WRONG


@pytest.mark.parametrize("script", ["", DIES.format("SEGV"), "raise SystemExit(3)"])
def test_what_is_certain_is_kept(child, tmp_path: Path, script: str):
    kept, started = tmp_path / "new" / "llama.json", child(script)
    found = amx.finding(kept)
    amx._tested.cache_clear()
    assert amx.finding(kept) == found
    assert len(started) == 1
    assert [file.name for file in kept.parent.iterdir()] == ["llama.json"]


def test_what_is_not_certain_is_not_kept(child, tmp_path: Path):
    child(DIES.format("TERM"))
    assert amx.finding(tmp_path / "llama.json") == "was ended by SIGTERM"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changed", ["version", "system_info", "folder"])
def test_another_build_is_tried_again(child, tmp_path, monkeypatch, changed: str):
    kept, started = tmp_path / "llama.json", child("")
    amx.finding(kept)
    values = {"version": "9", "system_info": "AMX_INT8 = 1 | NEW", "folder": tmp_path}
    monkeypatch.setattr(library, changed, lambda: values[changed])
    amx._tested.cache_clear()
    amx.finding(kept)
    assert len(started) == 2


@pytest.mark.parametrize("changed", ["cpu_name", "cpu_features"])
def test_another_processor_is_tried_again(child, tmp_path, monkeypatch, changed: str):
    kept, started = tmp_path / "llama.json", child("")
    amx.finding(kept)
    monkeypatch.setattr(library, changed, lambda: "another")
    amx._tested.cache_clear()
    amx.finding(kept)
    assert len(started) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"7",
        b"[" * 1000,
        b"{" * 100_000,
        b'{"build": BUILD}',
        b'{"build": BUILD, "amx": true}',
        b'{"build": BUILD, "amx": ["works"]}',
        b'{"build": BUILD, "amx": "\\u001b[31mworks"}',
        b'{"build": BUILD, "amx": "works", "more": 1}',
        b'{"build": "", "amx": "works"}',
        b'{"build": null, "amx": "works"}',
        b" " * 5000 + b'{"build": BUILD, "amx": "works"}',
    ],
)
def test_a_file_that_nobody_has_written_is_replaced(child, tmp_path, content: bytes):
    kept, started = tmp_path / "llama.json", child(DIES.format("SEGV"))
    build = json.dumps(library.stamp()).encode()
    kept.write_bytes(content.replace(b"BUILD", build))
    assert amx.finding(kept) == trial.CRASHES
    assert len(started) == 1
    assert json.loads(kept.read_text()) == {
        "build": json.loads(build),
        "amx": "crashes",
    }


def test_a_place_that_cannot_keep_anything_is_no_trouble(child, tmp_path: Path):
    started = child("")
    (tmp_path / "file").write_text("")
    for kept in (tmp_path, tmp_path / "file" / "llama.json"):
        assert amx.finding(kept) == trial.WORKS
    assert len(started) == 1


def test_a_build_that_cannot_be_told_is_not_kept(child, tmp_path, monkeypatch):
    child("")
    monkeypatch.setattr(library, "folder", lambda: tmp_path / "none")
    assert amx.finding(tmp_path / "llama.json") == trial.WORKS
    assert not list(tmp_path.iterdir())


def test_weights_are_not_repacked_where_that_crashes(child, tiny_gguf: Path):
    child(DIES.format("SEGV"))
    with (
        load(tiny_gguf, OPTIONS) as loaded,
        load_drafter(tiny_gguf, loaded, OPTIONS) as drafter,
    ):
        assert not loaded.options.repack
        assert not loaded.key().options.repack
        assert "AMX code crashes in this build" in "".join(loaded.warnings)
        assert library.build_command([]) in "".join(loaded.warnings)
        assert drafter.about.endswith("CPU threads, weights not repacked")


def test_weights_are_not_repacked_where_nobody_knows(child, tiny_gguf: Path):
    child(DIES.format("KILL"))
    with load(tiny_gguf, OPTIONS) as loaded:
        assert not loaded.options.repack
        assert "is not known: its test was ended by SIGKILL" in "".join(loaded.warnings)
        assert "pip install" not in "".join(loaded.warnings)


def test_a_drafter_is_found_out_about_in_the_targets_file(child, tiny_gguf, tmp_path):
    started = child("")
    with load(tiny_gguf, OPTIONS, findings=tmp_path / "llama.json") as loaded:
        amx._tested.cache_clear()
        with load_drafter(tiny_gguf, loaded, OPTIONS) as drafter:
            assert drafter.about.endswith("CPU threads")
        assert loaded.options.repack
        assert not loaded.warnings
    assert len(started) == 1


@pytest.mark.parametrize(
    ("info", "repack"), [("AVX512 = 1 |", True), ("AMX_INT8 = 1 |", False)]
)
def test_nothing_is_tried_where_amx_is_out_of_the_question(
    child, tiny_gguf, monkeypatch, info: str, repack: bool
):
    started = child("")
    monkeypatch.setattr(library, "system_info", lambda: info)
    monkeypatch.setitem(sys.modules, MODULE, None)  # importing it fails
    monkeypatch.delattr(edgecs.engines.llama, "amx")
    options = replace(OPTIONS, repack=repack)
    with load(tiny_gguf, options) as loaded, load_drafter(tiny_gguf, loaded, options):
        assert loaded.options.repack == repack
    assert not started


def test_a_command_says_why_and_answers(child, edgecs: Edgecs, tiny_gguf: Path):
    started, options = child(DIES.format("SEGV")), ("-n", 20, *LLAMA)
    said = generate(edgecs, tiny_gguf, *options)
    assert said.code == 0
    sentence, start, _ = said.err.splitlines()
    assert sentence.startswith("llama.cpp's AMX code crashes in this build")
    assert "-fno-dse" in sentence
    assert start.startswith("tiny · CPU")
    amx._tested.cache_clear()
    quiet = generate(edgecs, tiny_gguf, *options, "-q")
    assert quiet == (0, said.out, "")
    assert len(started) == 1
    silent = generate(edgecs, tiny_gguf, *options, "--no-repack")
    assert (silent.code, silent.out) == (0, said.out)
    assert "AMX" not in silent.err


def test_the_sentence_is_said_once(child, edgecs: Edgecs, tiny_gguf: Path):
    child(DIES.format("SEGV"))
    for more in ([], ["--draft", tiny_gguf], ["--exact", "strict"]):
        err = generate(edgecs, tiny_gguf, "-n", 2, *LLAMA, *more).err
        assert err.count("crashes in this build") == 1, err
    assert (
        "weights not repacked"
        in generate(edgecs, tiny_gguf, "-n", 2, "-v", "--draft", tiny_gguf, *LLAMA).err
    )


def test_a_model_that_is_missing_is_still_one_sentence(child, edgecs, tmp_path):
    child("")
    one_line(edgecs("generate", "-m", tmp_path / "m.gguf", "-p", "x"), 3, "no file")


@pytest.mark.parametrize(
    ("script", "found"), [("", "works"), (DIES.format("SEGV"), "crashes")]
)
def test_doctor_tells(child, edgecs: Edgecs, cache: Path, script: str, found: str):
    child(script)
    block = json.loads(edgecs("doctor", "--json").out)["llama.cpp"]
    assert block["amx"] == found
    mends = library.build_command([]) if found == "crashes" else None
    assert block["to mend amx"] == mends
    assert "-fno-dse" in block["to get offload"]  # or offload would bring it back
    assert json.loads((cache.parent / "llama.json").read_text())["amx"] == found
    assert re.search(rf"^  amx  +{found}$", edgecs("doctor").out, re.M)


def test_doctor_has_no_row_where_there_is_no_amx(edgecs: Edgecs, monkeypatch):
    monkeypatch.setattr(library, "system_info", lambda: "AVX512 = 1 |")
    block = json.loads(edgecs("doctor", "--json").out)["llama.cpp"]
    assert not {"amx", "to mend amx"} & block.keys()
    assert "fno-dse" not in block["to get offload"]


def test_a_new_build_keeps_its_gpu(monkeypatch):
    monkeypatch.setattr(library, "system_info", lambda: "AMX_INT8 = 1 |")
    monkeypatch.setattr(library, "backends", lambda: ["CUDA", "ROCm", "BLAS", "CPU"])
    monkeypatch.setattr(library, "version", lambda: "1.2.3")
    assert library.build_command(library.gpu_backends()) == (
        f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps "
        '-C "cmake.define.GGML_CUDA=on" -C "cmake.define.GGML_HIP=on" '
        '-C "cmake.define.CMAKE_CXX_FLAGS=-fno-dse -fno-tree-dse" '
        '"llama-cpp-python==1.2.3"'
    )
