"""Prompts from files and suites: which are taken, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import click
import pytest

from edgecs_bench.suite.prompts import MT_BENCH, choose, read_prompts
from edgecs_bench.suite.suites import SUITES, suite


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    kinds = [*(kind for kind in MT_BENCH for _ in range(3)), "qa", "qa", "rag"]
    rows = [
        {"question_id": i, "category": kind, "turns": [f"{kind} {i}"]}
        for i, kind in enumerate(kinds)
    ]
    return lines(tmp_path / "spec.jsonl", *rows)


def test_mt_bench_is_one_category_with_all_eight_in_turn(spec: Path, tmp_path: Path):
    code = lines(tmp_path / "humaneval.jsonl", {"task_id": "H/0", "prompt": "def f"})
    found = choose([spec, code], (), 8, True)
    assert [p.text.split()[0] for p in found[:8]] == list(MT_BENCH)
    assert [p.category for p in found] == [
        *["mt_bench"] * 8,
        *["qa"] * 2,
        "rag",
        "humaneval",
    ]
    few = choose([spec], ("rag", "mt_bench"), 10, True)
    assert [p.id for p in few] == ["26", *map(str, range(0, 24, 3)), "1", "4"]
    assert len(choose([spec], ("mt_bench",), 100, True)) == 24


def test_without_groups_every_category_is_its_own(spec: Path):
    found = choose([spec], (), 2, False)
    assert len({p.category for p in found}) == 10
    assert [p.id for p in found[:3]] == ["0", "1", "3"]
    with pytest.raises(click.UsageError, match="no prompts of category mt_bench"):
        choose([spec], ("qa", "mt_bench"), 2, False)


def test_one_category_may_have_another_count(spec: Path):
    found = choose([spec], (), 1, True, {"qa": 2})
    assert [p.category for p in found] == ["mt_bench", "qa", "qa", "rag"]
    with pytest.raises(click.UsageError, match="no prompts of category code"):
        choose([spec], (), 1, True, {"code": 2})


def test_shipped_suites_have_what_they_promise():
    quick = suite(["quick"])
    assert len(quick.prompts) == len({p.category for p in quick.prompts}) == 7
    spec = suite(["spec-bench"], per_category=2)
    assert {p.category for p in spec.prompts} == {
        *("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
    }
    code = suite(["humaneval"], per_category=1000)
    assert len(code.prompts) == 82
    for prompt in code.prompts:
        assert prompt.exam is not None
        assert f"def {prompt.exam.entry_point}" in prompt.text
    assert suite(["quick"]).sha256 == quick.sha256 != spec.sha256


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_can_be_read(name: str):
    prompts = suite([name], per_category=10_000, grouped=False).prompts
    assert len({(p.category, p.id) for p in prompts}) == len(prompts)
    assert all(p.text.strip() for p in prompts)


def test_a_suite_may_be_a_file_compressed_or_not(tmp_path: Path):
    row = {"id": "x", "text": "a\u2028b"}
    plain = lines(tmp_path / "mine.jsonl", row)
    plain.write_text(json.dumps(row, ensure_ascii=False) + "\n\n")
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (one,), (other,) = (suite([str(f)]).prompts for f in (plain, packed))
    assert one == other
    assert (one.id, one.category, one.text) == ("x", "mine", "a\u2028b")


def test_an_unknown_suite_is_named_with_those_there_are():
    with pytest.raises(click.UsageError, match="named 'spec': give one of quick"):
        suite(["spec"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(range(256)),
        b"[1]\n",
        b"[" * 100_000,
        b'{"prompt": ""}\n',
        b'{"turns": [], "other": 1}\n',
        b"null\n",
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, content: bytes):
    for name in ("a.jsonl", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(click.UsageError):
            read_prompts([tmp_path / name], (), 5)
