"""Whose kernels compute: where edgecs's can be had, and what is said where not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines import trial
from edgecs.engines.llama import kernel_choice, kernel_trial, language_model
from edgecs.engines.llama import kernels as own_kernels
from edgecs.engines.llama import library as llama
from edgecs.engines.llama.kernel_choice import choose
from edgecs.engines.llama.kernels import include_folder, kernel_sets
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ConfigError, OutOfMemory
from edgecs.native import build
from edgecs.native.compilers import BuildError
from edgecs.runtime.loader import load
from tests.commands import one_line
from tests.conftest import Outcome
from tests.engines.test_own_nodes import ids, together
from tests.native_library import library

OPTIONS = LoadOptions(n_ctx=256, threads=1, n_gpu_layers=0)
BEST = kernel_sets(library())[0].name


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sources without a library beside them."""
    sources = tmp_path / "sources"
    shutil.copytree(
        build.SOURCES, sources, ignore=shutil.ignore_patterns("*.so", "*.lock")
    )
    monkeypatch.setattr(build, "SOURCES", sources)
    return sources


@pytest.fixture
def compiler(
    monkeypatch: pytest.MonkeyPatch, nothing_compiled: Path, tmp_path: Path
) -> Callable[[str], None]:
    """A compiler that is a shell script."""

    def script(text: str) -> None:
        file = tmp_path / "bin" / "g++"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        monkeypatch.setattr(build, "_COMPILERS", (str(file),))

    return script


def assert_ended(started: Path) -> None:
    """Of the processes in a file of numbers, none runs."""
    for number in map(int, started.read_text().split()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(number)
            with suppress(psutil.TimeoutExpired):
                process.wait(5)  # a killed process needs a moment
            assert process.status() == psutil.STATUS_ZOMBIE


def copies(made: str) -> str:
    """A script that gives every file it is to make the contents of another one."""
    return f'while [ "$1" != -o ]; do shift; done; cp {made} "$2"'


class TestBuild:
    def test_it_has_a_name_of_its_own_for_each_version(self, nothing_compiled: Path):
        before = build.name(include_folder())
        assert before == library().name
        with (nothing_compiled / "store.cpp").open("a") as file:
            file.write("// changed\n")
        assert build.name(include_folder()) != before

    def test_other_headers_are_another_version(self, tmp_path: Path):
        include = tmp_path / "include"
        shutil.copytree(include_folder(), include)
        assert build.name(include) == library().name
        (include / "ggml.h").write_text("struct ggml_tensor;")
        assert build.name(include) != library().name

    def test_it_is_compiled_once(self, compiler, tmp_path: Path):
        compiler(f"echo x >> {tmp_path}/calls\n{copies(str(library()))}")
        folder, said = tmp_path / "new" / "kernels", list[str]()
        made = build.compile_library(include_folder(), folder, said.append)
        assert made.read_bytes() == library().read_bytes()
        calls = (tmp_path / "calls").read_text()
        assert build.compile_library(include_folder(), folder, said.append) == made
        assert build.find(include_folder(), folder) == made
        assert (tmp_path / "calls").read_text() == calls
        began, ended = said
        assert "compiling kernels" in began
        assert "compiled the kernels in" in ended
        assert {f.name for f in folder.iterdir()} <= {made.name, "build.lock"}

    @pytest.mark.parametrize("options", [(), ("-q",)])
    def test_it_is_told_also_where_stderr_is_no_terminal(
        self,
        compiler,
        edgecs: Callable[..., Outcome],
        tiny_gguf: Path,
        options: tuple[str, ...],
    ):
        compiler(copies(str(library())))
        fixed = ("-t", 1, "-c", 256, "-p", "a", "-n", 1, "--no-spec")
        outcome = edgecs("generate", "-m", tiny_gguf, *fixed, *options)
        told = [line for line in outcome.err.splitlines() if "kernels" in line]
        assert outcome.code == 0
        assert len(told) == (0 if options else 2), outcome.err

    def test_many_at_once_compile_once(self, compiler, tmp_path: Path):
        compiler(f"echo x >> {tmp_path}/calls\n{copies(str(library()))}")
        said = list[str]()
        threads = [
            threading.Thread(
                target=build.compile_library,
                args=(include_folder(), tmp_path / "k", said.append),
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(said) == 2

    def test_a_processor_compiles_one_file_at_a_time(
        self, compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        lock, overlaps = tmp_path / "lock", tmp_path / "overlaps"
        compiler(
            f"mkdir {lock} || echo x >> {overlaps}; sleep 0.05\n"
            f"rmdir {lock}; {copies(str(library()))}"
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
        build.compile_library(include_folder(), tmp_path / "kernels")
        assert not overlaps.exists()

    def test_systems_without_affinities_compile_too(
        self, compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        """macOS and Windows have none."""
        compiler(copies(str(library())))
        monkeypatch.delattr(os, "sched_getaffinity")
        build.compile_library(include_folder(), tmp_path)
        assert list(tmp_path.glob("edgecs-*.so"))

    def test_older_ones_are_removed(self, compiler, tmp_path: Path):
        compiler(copies(str(library())))
        (tmp_path / "edgecs-0123.so").write_text("old")
        build.compile_library(include_folder(), tmp_path)
        assert not (tmp_path / "edgecs-0123.so").exists()

    def test_what_the_compiler_says_is_told(self, compiler, tmp_path: Path):
        compiler("echo 'x.cpp:1: error: no such thing' >&2; exit 1")
        with pytest.raises(BuildError, match="fails: x.cpp:1: error: no such thing"):
            build.compile_library(include_folder(), tmp_path / "kernels")
        assert not list((tmp_path / "kernels").glob("*.so"))

    def test_compilers_that_take_too_long_are_ended(
        self, compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        """And the processes that they have started."""
        compiler(f"sleep 600 & echo $! >> {tmp_path}/started; wait")
        monkeypatch.setattr(build, "_PATIENCE", 0.5)
        with pytest.raises(BuildError, match=r"takes more than 0\.5 s"):
            build.compile_library(include_folder(), tmp_path / "kernels")
        assert_ended(tmp_path / "started")

    def test_one_that_fails_ends_the_others(
        self, compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        started = tmp_path / "started"
        compiler(
            f"mkdir {tmp_path}/lock && {{ until [ -e {started} ]; do sleep 0.01; done; "
            f"exit 1; }}\nsleep 600 & echo $! >> {started}; wait"
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        with pytest.raises(BuildError, match="fails"):
            build.compile_library(include_folder(), tmp_path / "kernels")
        assert_ended(started)

    def test_it_can_be_stopped(self, compiler, tmp_path: Path):
        started, cancel = tmp_path / "started", threading.Event()
        compiler(f"sleep 600 & echo $! >> {started}; wait")

        def stop():
            while not started.exists():
                time.sleep(0.01)
            cancel.set()

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(Cancelled, match="stopped while compiling"):
            kernel_choice.choose("auto", tmp_path / "llama.json", cancel=cancel)
        thread.join()
        assert_ended(started)

    def test_no_compiler(self, nothing_compiled, monkeypatch, tmp_path: Path):
        monkeypatch.setattr(build, "_COMPILERS", ("no-such-compiler",))
        with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
            build.compile_library(include_folder(), tmp_path)

    def test_no_headers(self, tmp_path: Path):
        with pytest.raises(BuildError, match=r"ggml\.h cannot be read"):
            build.name(tmp_path)

    def test_a_folder_that_cannot_be_written(self, nothing_compiled, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(BuildError, match="cannot be written"):
            build.compile_library(include_folder(), tmp_path / "file" / "kernels")

    def test_processors_without_kernels(self, monkeypatch, tmp_path: Path):
        monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
        with pytest.raises(BuildError, match="riscv64"):
            build.compile_library(include_folder(), tmp_path)


class TestTrial:
    def test_every_set_works_here(self):
        for kernels in kernel_sets(library()):
            assert kernel_trial.finding(library(), kernels.name, None) == trial.WORKS

    def test_what_is_certain_is_kept(self, monkeypatch, tmp_path: Path):
        kernel_trial._tested.cache_clear()
        started = list[object]()
        monkeypatch.setattr(
            trial, "tried", lambda *a: started.append(a) or trial.CRASHES
        )
        for _ in range(3):
            found = kernel_trial.finding(library(), BEST, tmp_path / "llama.json")
            assert found == trial.CRASHES
            kernel_trial._tested.cache_clear()
        assert len(started) == 1
        monkeypatch.setattr(llama, "version", lambda: "another")
        kernel_trial.finding(library(), BEST, tmp_path / "llama.json")
        assert len(started) == 2
        kernel_trial._tested.cache_clear()

    @pytest.mark.parametrize("what", ["errors", "_rows"])
    def test_wrong_numbers_are_found(self, monkeypatch, tmp_path: Path, what: str):
        right = getattr(kernel_trial, what)

        def wrong(*args: object) -> object:
            first, second = right(*args)
            return (first + 0.1, second) if what == "errors" else (first, second + 1e-6)

        monkeypatch.setattr(kernel_trial.child, "prepare", lambda *limits: None)
        kernel_trial.compute(str(tmp_path), str(library()), BEST)
        monkeypatch.setattr(kernel_trial, what, wrong)
        with pytest.raises(SystemExit) as ended:
            kernel_trial.compute(str(tmp_path), str(library()), BEST)
        assert trial.verdict(ended.value.code) == trial.WRONG


class TestChoice:
    def test_the_best_ones(self):
        for wanted in ("auto", "own"):
            kernels, why = choose(wanted)
            assert kernels
            assert (kernels.name, why) == (BEST, None)
        assert choose("llama") == (None, None)

    def test_those_of_an_instruction_set(self):
        for one in kernel_sets(library()):
            kernels, _ = choose(one.name)
            assert kernels
            assert kernels.name == one.name

    def test_an_instruction_set_that_is_not_here(self):
        with pytest.raises(ConfigError, match=f"this processor supports {BEST}"):
            choose("dotprod")

    def test_without_a_library(self, nothing_compiled: Path):
        assert choose("auto") == (None, "they are not compiled")
        with pytest.raises(ConfigError, match="--kernels own is not available"):
            choose("own")

    def test_they_are_compiled_beside_what_was_found_out(
        self, compiler, tmp_path: Path
    ):
        compiler(copies(str(library())))
        kernels, why = choose("auto", tmp_path / "llama.json")
        assert kernels, why
        assert (tmp_path / kernel_choice.FOLDER / library().name).is_file()

    @pytest.mark.parametrize("contents", [b"", b"\x7fELF but not really", None])
    def test_a_library_that_is_none(self, compiler, tmp_path: Path, contents):
        """None: a library, but another one."""
        made = tmp_path / "made"
        if contents is None:
            done = subprocess.run(
                ["g++", "-shared", "-x", "c++", "/dev/null", "-o", made]
            )
            assert not done.returncode
        else:
            made.write_bytes(contents)
        compiler(copies(str(made)))
        kernels, why = choose("auto", tmp_path / "llama.json")
        assert kernels is None
        assert "cannot be loaded" in str(why)

    @pytest.mark.parametrize("found", [trial.CRASHES, trial.WRONG, "did not end"])
    def test_a_test_that_failed(self, monkeypatch, found: str):
        monkeypatch.setattr(kernel_trial, "finding", lambda *args: found)
        kernels, why = choose("auto")
        assert (kernels, why) == (None, f"their test here {found}")

    def test_portable_ones_only_by_name(self, monkeypatch):
        portable = [k for k in kernel_sets(library()) if k.name == "portable"]
        monkeypatch.setattr(kernel_choice, "kernel_sets", lambda file: portable)
        kernels, why = choose("auto")
        assert kernels is None
        assert "instruction sets" in str(why)
        kernels, _ = choose("own")
        assert kernels


class TestLoad:
    def test_llama_cpps_on_request(self, tiny_gguf: Path):
        options = LoadOptions(n_ctx=256, kernels="llama", n_gpu_layers=0)
        with load(tiny_gguf, options) as loaded:
            assert loaded.key().kernels == "llama"
            assert loaded.model.packed is None
            assert loaded.no_kernels is None

    def test_ours_unasked(self, tiny_gguf: Path):
        with load(tiny_gguf, OPTIONS) as loaded:
            assert loaded.options.kernels == BEST
            assert loaded.no_kernels is None
            assert loaded.key().kernels == kernel_sets(library())[0].key

    def test_an_interrupted_prefill_leaves_nothing_behind(self, tiny_gguf: Path):
        prompt, more = ids(1200), ids(4, seed=1)
        options = LoadOptions(n_ctx=2048, threads=2, n_gpu_layers=0)
        with load(tiny_gguf, options) as loaded:
            target = loaded.target
            expected = together(target, prompt, more)
            target.reset()
            target.on_read = lambda done, of: loaded.cancel.set()
            with pytest.raises(Cancelled, match="stopped while reading"):
                score_one(target, Context(prompt))
            target.on_read = None
            loaded.cancel.clear()
            assert together(target, prompt, more).tobytes() == expected.tobytes()

    def test_why_not_is_told(self, tiny_gguf: Path, nothing_compiled: Path):
        with load(tiny_gguf, OPTIONS) as loaded:
            assert loaded.options.kernels == "llama"
            assert loaded.no_kernels == "they are not compiled"

    def test_layers_on_a_gpu(self, tiny_gguf: Path, monkeypatch):
        monkeypatch.setattr(llama, "supports_offload", lambda: True)
        options = LoadOptions(n_ctx=256, threads=1, n_gpu_layers=1)
        with load(tiny_gguf, options) as loaded:
            assert loaded.no_kernels == "layers are on the GPU"
        own = LoadOptions(n_ctx=256, threads=1, n_gpu_layers=1, kernels="own")
        with pytest.raises(ConfigError, match="layers are on the GPU: give -ngl 0"):
            load(tiny_gguf, own)

    def test_beside_blas(self, tiny_gguf: Path, monkeypatch):
        monkeypatch.setattr(llama, "accelerators", lambda: ["BLAS"])
        with load(tiny_gguf, OPTIONS) as loaded:
            assert loaded.no_kernels == "BLAS computes parts of the graph"
        own = replace(OPTIONS, kernels="own")
        with pytest.raises(ConfigError, match="BLAS computes parts of the graph: use"):
            load(tiny_gguf, own)

    def test_no_room_for_packed_weights(self, tiny_gguf: Path, monkeypatch):
        class Memory:
            available = 1 << 10

        def full(self: object, n_ctx: int, options: LoadOptions) -> bool:
            monkeypatch.setattr(psutil, "virtual_memory", Memory)
            return True

        monkeypatch.setattr(language_model.LlamaModel, "kv_fits", full)
        with load(tiny_gguf, OPTIONS) as loaded:
            assert loaded.options.kernels == "llama"
            assert "do not fit into memory" in str(loaded.no_kernels)
        monkeypatch.undo()

    def test_no_room_for_packed_weights_on_request(self, tiny_gguf: Path, monkeypatch):
        monkeypatch.setattr(own_kernels.PackedWeights, "failed", True)
        options = LoadOptions(n_ctx=256, threads=1, n_gpu_layers=0, kernels="own")
        with pytest.raises(OutOfMemory, match="--kernels llama"):
            load(tiny_gguf, options)

    def test_ctrl_c_while_weights_are_packed(self, tiny_gguf: Path, monkeypatch):
        cancel, seen = threading.Event(), list[int]()

        def stops(self: object, packed: int) -> bool:
            seen.append(packed)
            cancel.set()
            return False

        monkeypatch.setattr(language_model.LlamaModel, "_goes_on", stops)
        with pytest.raises(Cancelled, match="stopped while loading"):
            load(tiny_gguf, OPTIONS, cancel=cancel)
        assert len(seen) == 1  # nothing more was packed


def test_an_instruction_set_in_the_cli(edgecs: Callable[..., Outcome], tiny_gguf: Path):
    command = ("generate", "-m", tiny_gguf, "-p", "a", "-n", 4, "-c", 256, "--temp", 0)
    done = edgecs(*command, "--kernels", "portable", "--json")
    assert done.code == 0
    done = edgecs(*command, "--kernels", "dotprod")
    one_line(done, 2, "--kernels dotprod is not available: this processor")
    done = edgecs(*command, "--kernels", "mmx")
    assert done.code == 2


def test_compiling_by_hand(tmp_path: Path):
    command = [sys.executable, "-m", "edgecs.engines.llama.kernels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == str(library())
