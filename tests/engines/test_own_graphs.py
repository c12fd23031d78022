"""Graphs that no model which is easily made gives: what the kernels make of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgecs.engines.llama.kernels import include_folder
from edgecs.native import build

SOURCE = Path(__file__).parents[1] / "native" / "graphs.cpp"
TESTS = (
    "experts_out_of_range",
    "a_graph_that_is_not_computed",
    "a_node_that_is_not_to_be_computed",
    "a_matrix_of_one_long_row",
    "no_memory_for_activations",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    compiler = shutil.which("g++")
    assert compiler
    sets = {"portable": build.SETS[build.machine()]["portable"]}
    objects = build.compile_objects(folder, include_folder(), compiler, (), sets)
    headers, libraries = include_folder(), include_folder().parent / "lib"
    command = [compiler, "-std=c++17", "-pthread", f"-I{headers}", f"-I{build.SOURCES}"]
    command += [str(SOURCE), *map(str, objects), f"-L{libraries}"]
    command += [f"-Wl,-rpath,{libraries}", "-lggml-base", "-lggml-cpu"]
    build.run([*command, "-o", str(folder / "graphs")])
    return folder / "graphs"


def test_all_are_run(program: Path):
    listed = subprocess.run([program], capture_output=True, text=True, check=True)
    assert tuple(listed.stdout.split()) == TESTS


@pytest.mark.parametrize("name", TESTS)
def test_graph(program: Path, name: str):
    done = subprocess.run([program, name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
