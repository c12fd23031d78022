"""The structure that keeps edgecs simple: arrows point one way, engines stay hidden."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgecs

ROOT = Path(__file__).parent.parent
# What each package may import of ours. Inside edgecs a layer knows no later one.
PACKAGES = {
    "edgecs": {"edgecs"},
    "edgecs_cli": {"edgecs", "edgecs_cli", "edgecs_bench", "edgecs_convert"},
    "edgecs_bench": {"edgecs", "edgecs_bench"},
    "edgecs_convert": {"edgecs", "edgecs_convert"},
    "edgecs_models": set(),
}
LAYERS = [
    {"errors", "faults", "context", "machine", "random_gguf", "growth", "cells"},
    {"holding", "states", "reading", "native"},
    {"draft", "prefix", "options", "manifest", "noise", "sampling", "kmatrix", "costs"},
    {"vocabulary", "theory", "gbnf", "exactness"},
    {"penalties", "truncation", "lexing", "text", "fetch", "hub", "maxgram", "offload"},
    {"template_process"},
    {"choice", "onnx_manifest", "grammar", "schedule", "calibration", "probe"},
    {"ledger", "profile"},
    {"verify"},
    {"cascade", "store", "chat_template"},
    {"writers", "shipped", "conversation"},
    {"overflow", "saved", "logprobs"},
    {"planner"},
    {"stats"},
    {"session"},
    {"chat"},
    {"beside"},
    {"trace"},
    {"backends"},
    {"load", "speculation"},
    {"tuning"},
    {"api"},
    {"testing", "__init__"},
    {"forks", "fidelity"},
    {"audit"},
]
ENGINES = {"llama_cpp", "onnxruntime", "torch", "transformers", "optimum"}
HEAVY = ENGINES | {"llguidance"}  # loaded only when they are needed


def sources(package: str) -> list[Path]:
    folders = {"edgecs": ROOT / "edgecs"}
    part = package.removeprefix("edgecs_")
    return sorted(folders.get(package, ROOT / part / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module named in an import; those under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str):
    assert sources(package)
    for path in sources(package):
        ours = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
        allowed = PACKAGES[package] | (
            {"edgecs_cli"} if path.stem == "__main__" else set()
        )
        assert ours <= allowed, path


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def test_modules_of_the_library_import_in_one_direction():
    lazy = {"load"}  # imports its backends inside the function that opens one
    for path in sources("edgecs"):
        parts = path.relative_to(ROOT / "edgecs").parts
        name = parts[0].removesuffix(".py")
        if name == "__main__":
            continue
        for imported in imports(path):
            target = imported.split(".")
            if target[0] == "edgecs" and len(target) > 1:
                known = any(target[1] in names for names in LAYERS)
                if known and target[1] != name:
                    assert layer(target[1]) <= layer(name), (path, imported)
                    assert name in lazy or target[1] != "backends" or parts[1:]


def test_engines_are_imported_only_by_backends():
    for package in PACKAGES:
        for path in sources(package):
            # The bench's yardstick is llama.cpp without edgecs; its peers have adapters
            # in a folder of that name too, which run in environments of their own.
            free = "backends" in path.parts or path.stem == "plain_llama"
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
    child = ROOT / "edgecs" / "template_child.py"
    found = {name.split(".")[0] for name in imports(child)}
    assert found <= sys.stdlib_module_names | {"jinja2"}
    for package in PACKAGES:
        for path in sources(package):
            assert "edgecs.template_child" not in imports(path), path


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
