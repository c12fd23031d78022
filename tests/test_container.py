"""What the image of `Containerfile` is built from: the files of the wheel only."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
BUILD_NEEDS = ("pyproject.toml", "README.md", "LICENSE", "edgecs/native/wheel.py")


def pattern_of(text: str) -> re.Pattern[str]:
    """A pattern of .dockerignore: it also matches everything below what it names."""
    parts = re.split(r"(\*\*/|\*)", text.strip("/"))
    signs = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(signs.get(p, re.escape(p)) for p in parts) + "(?:/.*)?")


def let_through(lines: Iterable[str], path: str) -> bool:
    """Whether a builder sees a file: the last pattern that matches counts."""
    kept = True
    for line in lines:
        pattern = line.removeprefix("!")
        if pattern and line[0] != "#" and pattern_of(pattern).fullmatch(path):
            kept = line[0] == "!"
    return kept


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return (ROOT / ".dockerignore").read_text().splitlines()


def files_of_the_wheel(root: Path) -> dict[str, str]:
    """From the path in the wheel to that in the sources."""
    builder = WheelBuilder(str(root))
    builder.config.set_build_data(builder.get_default_build_data())
    return {
        file.distribution_path: str(Path(file.path).relative_to(root))
        for file in builder.recurse_included_files()
    }


def test_the_builder_sees_what_the_wheel_needs(lines: list[str], tmp_path: Path):
    wanted = files_of_the_wheel(ROOT)
    assert "edgecs/server/page/static/app.js" in wanted
    needed = [*wanted.values(), *BUILD_NEEDS, ".gitignore"]
    assert [path for path in needed if not let_through(lines, path)] == []
    for path in needed:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    # What Git ignores may be there too; it is in neither wheel.
    for ignored in ("edgecs/model.gguf", "edgecs/server/page/node_modules/a.js"):
        (tmp_path / ignored).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ignored).touch()
    assert files_of_the_wheel(tmp_path).keys() == wanted.keys()


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "key.txt",
        "tests/conftest.py",
        "bench/results/a.json",
        "edgecs/native/edgecs-0123456789abcdef.so",
        "edgecs/core/__pycache__/draft.cpython-311.pyc",
        "edgecs/server/page/node_modules/a/index.js",
    ],
)
def test_the_builder_does_not_see_the_rest(lines: list[str], path: str):
    assert not let_through(lines, path)
