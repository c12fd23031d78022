"""The structure that keeps edgecs simple: rooms import one way, engines stay hidden."""

from __future__ import annotations

import ast
import os
import pkgutil
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import edgecs
from tests.rooms import FOLDERS, ROOT, floors, imports, rooms, sources

# What each package may import of ours. Inside edgecs a layer knows no later one.
PACKAGES = {
    "edgecs": {"edgecs"},
    "edgecs_cli": {"edgecs", "edgecs_cli", "edgecs_bench", "edgecs_convert"},
    "edgecs_bench": {"edgecs", "edgecs_bench"},
    "edgecs_convert": {"edgecs", "edgecs_convert"},
    "edgecs_models": set(),
}
# What each room may import, besides `errors`.
ROOMS = {
    "errors costs": "",
    "core native theory": "",
    "drafters hub sampling text": "core",
    "memory": "core drafters",
    "decoding": "core costs sampling",
    "grammar": "core text",
    "toolcalls": "grammar text",
    "planning": "core costs sampling drafters decoding",
    "engines": "core hub grammar native",
    "session": "core sampling text decoding theory",
    "chat": "core sampling text toolcalls engines session",
    "testing": "core engines",
    "calibrate": "core costs hub theory drafters decoding planning engines",
    "audit": "core sampling text drafters decoding session testing",
    "runtime": "core hub sampling text grammar toolcalls drafters memory decoding "
    "engines session chat calibrate",
    "server": "core costs text grammar toolcalls sampling engines session chat runtime",
    "fleet": "hub engines runtime",
    "tuning": "core costs text drafters decoding planning engines session calibrate "
    "runtime",
}
ENGINES = {"llama_cpp", "onnxruntime", "torch", "transformers", "optimum"}
HEAVY = ENGINES | {"llguidance"}  # loaded only when they are needed


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str):
    assert sources(package)
    for path in sources(package):
        ours = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
        allowed = PACKAGES[package] | (
            {"edgecs_cli"} if path.stem == "__main__" else set()
        )
        assert ours <= allowed, path


def test_rooms_import_what_their_table_says():
    table = {
        name: {"errors", *allowed.split()}
        for names, allowed in ROOMS.items()
        for name in names.split()
    }
    found = rooms("edgecs")
    assert found.keys() == table.keys()
    assert {
        name: to - table[name] for name, to in found.items() if to - table[name]
    } == {}
    unused = {name: table[name] - to - {"errors"} for name, to in found.items()}
    assert {name: more for name, more in unused.items() if more} == {}


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="Windows has no SIGPIPE")
def test_a_reader_of_rooms_that_goes_away_ends_them_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        command = [sys.executable, "-m", "tests.rooms"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, cwd=ROOT)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("package", FOLDERS)
def test_no_rooms_are_in_a_circle(package: str):
    assert len(list(floors(package))) >= (package != "edgecs_models")


def test_a_room_says_what_it_is_for():
    for package in FOLDERS:
        for path in sources(package):
            if path.name == "__init__.py":
                assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_function_has_the_name_of_its_module():
    """So `import edgecs.x` gives a module, and a name says which of them is meant."""
    for path in sources("edgecs"):
        body = ast.parse(path.read_text()).body
        assert path.stem not in {getattr(node, "name", None) for node in body}, path


BUILD_HOOK = "edgecs.native.wheel"  # needs hatchling, which only a build has


def public_modules() -> list[str]:
    """Every module of edgecs that can be imported, without those that run."""
    found = [info.name for info in pkgutil.walk_packages(edgecs.__path__, "edgecs.")]
    return [
        name
        for name in found
        if not name.endswith(".__main__")
        and name != BUILD_HOOK
        and name.rpartition(".")[2].isidentifier()  # not a compiled library of kernels
    ]


def test_no_exported_function_shares_its_modules_name():
    for name in public_modules():
        module = import_module(name)
        package, _, last = name.rpartition(".")
        assert getattr(sys.modules[package], last) is module, name


def test_importing_a_module_under_another_name_gives_the_module():
    names = public_modules()
    assert len(names) > 100
    script = "".join(f"import {name} as m; assert type(m) is M\n" for name in names)
    script = f"from types import ModuleType as M\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_engines_are_imported_only_in_their_rooms():
    for package in PACKAGES:
        for path in sources(package):
            # The bench's yardstick is llama.cpp without edgecs; its peers have adapters
            # in a folder of that name too, which run in environments of their own.
            inside = {"engines", "backends"} & {*path.parts}
            free = inside or path.stem == "plain_llama"
            if not free and package != "edgecs_convert":
                found = {name.split(".")[0] for name in imports(path)} & ENGINES
                assert not found, path


def modules_after(code: str) -> set[str]:
    script = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_edgecs_loads_no_engine():
    assert not modules_after("import edgecs") & HEAVY


def test_templates_are_rendered_with_little_that_they_could_reach():
    child = ROOT / "edgecs" / "text" / "template_child.py"
    found = {name.split(".")[0] for name in imports(child)}
    assert found <= sys.stdlib_module_names | {"jinja2"}
    for package in PACKAGES:
        for path in sources(package):
            assert "edgecs.text.template_child" not in imports(path), path


def test_help_loads_no_engine_and_no_numpy():
    loaded = modules_after("from edgecs_cli.running import run; run(['--help'])")
    assert not loaded & (HEAVY | {"numpy", "edgecs", "rich", "huggingface_hub"})


def test_answering_from_a_model_that_is_here_draws_no_bars(tiny_gguf: Path):
    command = [
        "generate",
        "-m",
        str(tiny_gguf),
        "-p",
        "a",
        "-n",
        "2",
        "-c",
        "256",
        "-q",
    ]
    assert "rich" not in modules_after(
        f"from edgecs_cli.running import run; run({command})"
    )


def test_public_names_are_sorted_and_there():
    assert sorted(edgecs.__all__) == edgecs.__all__
    for name in edgecs.__all__:
        assert hasattr(edgecs, name), name


def test_one_version():
    assert f'version = "{edgecs.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_no_extra_replaces_the_onnxruntime_of_the_base():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, extra in project["optional-dependencies"].items():
        assert not [line for line in extra if line.startswith("onnxruntime")], name
    base = [line for line in project["dependencies"] if line.startswith("onnxruntime")]
    assert len(base) == 2
    assert all("platform_machine" in line for line in base)
