"""The kernels for other processors, under an emulator, and all of them with sanitizers.

What an emulator runs is compared with double precision, like what runs here. Where no
cross-compiler or emulator is installed, those tests are skipped and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgecs.engines.llama.kernel_types import floats_of, random_weights
from edgecs.engines.llama.kernels import include_folder
from edgecs.native import build
from tests.engines.test_own_kernels import (
    CACHES,
    KINDS,
    SETS,
    Node,
    activations,
    bound,
    library,
    number,
)

ROOT = Path(__file__).parents[2]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
compiles = pytest.mark.timeout(900)  # seconds, in `emulated` or `sanitized`
WIDTH, ROWS, COLUMNS = 512, 9, {"i8mm": 8, "dotprod": 8, "portable": 1}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that computes cases on another processor."""
    for tool in (CROSS, EMULATOR):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("aarch64")
    sets = build.SETS["aarch64"]
    objects = build.compile_objects(folder, include_folder(), CROSS, (), sets)
    sources = [ROOT / "tests" / "native" / "cases.cpp", *objects]
    includes = [f"-I{include_folder()}", f"-I{build.SOURCES}"]
    program = folder / "cases"
    build.run([CROSS, "-std=c++17", "-static", *includes, *sources, "-o", program])
    return [EMULATOR, str(program)]


def results(command: list[str], cases: Path, name: str) -> np.ndarray:
    done = subprocess.run([*command, cases, name], capture_output=True)
    assert done.returncode == 0, done
    return np.frombuffer(done.stdout, dtype=np.float32)


def header(*numbers: int) -> bytes:
    return np.array([*numbers, *[0] * (10 - len(numbers))], dtype=np.int64).tobytes()


@compiles
@pytest.mark.parametrize("name", COLUMNS)
def test_products_on_arm(emulated: list[str], tmp_path: Path, name: str):
    random, cases, expected = np.random.default_rng(1), tmp_path / "cases", []
    with cases.open("wb") as file:
        for kind in KINDS:
            matrix = random_weights(kind, ROWS, WIDTH, random)
            x = activations(random, COLUMNS[name], WIDTH)
            for n in range(1, len(x) + 1):
                sizes = number(kind), matrix.shape[1], ROWS, WIDTH, n
                file.write(header(0, *sizes))
                file.write(matrix.tobytes() + x[:n].tobytes())
                expected.append((kind, floats_of(kind, matrix), x[:n]))
    y = results(emulated, cases, name)
    alone = {}
    for kind, weights, x in expected:
        got, y = y[: len(x) * ROWS].reshape(len(x), ROWS), y[len(x) * ROWS :]
        off = np.abs(got - x.astype(np.float64) @ weights.T)
        assert (off <= bound(name, kind, weights, x)).all(), kind
        first = alone.setdefault(kind, got[0])
        assert got[0].tobytes() == first.tobytes(), (kind, len(x))
    assert not y.size


@compiles
def test_matrix_instructions_give_the_bits_of_dot_products(
    emulated: list[str], tmp_path: Path
):
    """Sums of integers are exact in any order, all else is the same."""
    random, cases = np.random.default_rng(2), tmp_path / "cases"
    with cases.open("wb") as file:
        for kind in KINDS:
            matrix = random_weights(kind, ROWS, WIDTH, random)
            for n in range(1, COLUMNS["i8mm"] + 1):
                sizes = number(kind), matrix.shape[1], ROWS, WIDTH, n
                x = activations(random, n, WIDTH)
                file.write(header(0, *sizes) + matrix.tobytes() + x.tobytes())
    found = [results(emulated, cases, name) for name in ("i8mm", "dotprod")]
    assert found[0].size
    assert found[0].tobytes() == found[1].tobytes()


@compiles
@pytest.mark.parametrize("name", COLUMNS)
def test_attention_on_arm(emulated: list[str], tmp_path: Path, name: str):
    cases, nodes = tmp_path / "cases", []
    with cases.open("wb") as file:
        for seed, kind in enumerate(CACHES * 2):
            node = Node(seed, kind, key=64, value=64, cap=0.0, bias=0.0, cells=300)
            node.scale = 0.25
            for together in (1, min(4, node.rows)):
                sizes = 64, node.rows, node.heads, node.kv_heads, node.cells, together
                sinks = b"" if node.sinks is None else node.sinks.tobytes()
                cell = node.k.shape[-1]
                file.write(header(1, number(kind), cell, *sizes, bool(sinks)))
                for part in (node.k, node.v, node.q, node.mask):
                    file.write(np.ascontiguousarray(part).tobytes())
                file.write(sinks)
            nodes.append(node)
    y = results(emulated, cases, name)
    for node in nodes:
        expected = node.expected()
        one, other, y = np.split(y, [expected.size, 2 * expected.size])
        assert one.tobytes() == other.tobytes()
        got = one.reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    assert not y.size


@compiles
@pytest.mark.parametrize("tests", ["test_own_kernels.py", "test_own_nodes.py"])
def test_nothing_undefined_and_no_memory_out_of_bounds(
    sanitized: dict[str, str], tests: str
):
    """The other tests of the kernels with AddressSanitizer and UBSan."""
    script = (
        "import sys, pytest; from edgecs.engines.llama import kernels; "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    arguments = ["-q", "-x", "-s", "-p", "no:cacheprovider", f"tests/engines/{tests}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **sanitized},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the kernels are those with sanitizers."""
    compiler = shutil.which("g++")
    assert compiler
    folder = tmp_path_factory.mktemp("sanitized")
    flags = ["-g", "-O1", "-fno-omit-frame-pointer"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags.append("-DEDGECS_COLUMNS=2")  # more of them, or of sets, take minutes
    best = SETS[0].name
    sets = {best: build.SETS[build.machine()][best]}
    made = build.compile_into(folder, include_folder(), compiler, flags, sets)
    made = made.rename(folder / library().name)
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True
    )
    return {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "EDGECS_TESTED_LIBRARY": str(made),
    }
