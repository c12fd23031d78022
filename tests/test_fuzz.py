"""A fixed part of what `make fuzz` draws: no case ends in another way than promised."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.__main__ import Worker
from tests.fuzz.kinds import KINDS

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the fuzzer limits its processes as Unix does"
)
CASES = 3  # of each kind


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker("fixed", seconds=120)
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_a_sentence_and_an_exit_code(kind: str, worker: Worker):
    for number in range(CASES):
        found = worker.run(kind, number)
        assert not found["problem"], found


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_the_same_when_it_is_drawn_again(kind: str, tmp_path: Path):
    folder, drawn = tmp_path / "case", []
    for _ in range(2):
        folder.mkdir()
        case = KINDS[kind][0](Random(f"1:{kind}"), folder)
        files = {path: path.is_file() and path.read_bytes() for path in _below(folder)}
        drawn.append((case, files))
        shutil.rmtree(folder)
    assert drawn[0] == drawn[1]


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))
