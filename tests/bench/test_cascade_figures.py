"""Which rule is above which, and the documents' tables and picture of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs_bench.cascades.dominance import compare
from edgecs_bench.docs import cascade_tables
from edgecs_bench.docs.cascade_picture import cascades

WAYS = ["large", "small", "speculative", "chow:0.5", "opt:0.5", "v3:0.5"]


def row(way: str, calls: float, agreement: float, temperature: float = 0.0, **more):
    usual = {
        "temperature": temperature,
        "way": way,
        "answers": 3,
        "tokens": 30,
        "calls": calls,
        "agreement": agreement,
        "rejection": None,
        "passed": None,
        "problems": 0,
        "timed": 0,
        "tokens_per_second": None,
        "speed": None,
    }
    return {**usual, **more}


LINE = [
    row("speculative", 0.5, 1.0),
    row("v3:0.1", 0.4, 0.9),
    row("v3:0.9", 0.3, 0.8),
]


@pytest.mark.parametrize(
    ("calls", "agreement", "above", "below"),
    [
        (0.35, 0.84, 1, 0),  # below the line, which is 0.85 there
        (0.35, 0.86, 0, 1),
        (0.45, 0.94, 1, 0),  # between speculative decoding and the first alpha
        (0.4, 0.9, 0, 0),
    ],
)
def test_a_point_is_compared_with_the_line_at_its_calls(
    calls: float, agreement: float, above: int, below: int
):
    found = compare([*LINE, row("opt:0.5", calls, agreement)], "v3", "opt", "agreement")
    assert found is not None
    assert (found.points, found.above, found.below) == (1, above, below)
    assert found.dominates is (above > 0 and below == 0)


def test_points_beyond_the_line_are_not_compared():
    rows = [*LINE, row("opt:0.1", 0.2, 0.1), row("opt:0.2", 0.6, 0.1)]
    assert compare(rows, "v3", "opt", "agreement") is None
    assert compare([], "v3", "opt", "agreement") is None


@given(
    st.lists(st.tuples(st.floats(0.2, 0.9), st.floats(0, 1)), min_size=1, max_size=5),
    st.floats(0.01, 0.3),
)
def test_a_line_dominates_itself_only_when_lowered(spots, gap: float):
    spots = {round(calls, 3): good for calls, good in spots}.items()
    ours = [row("v3:0.1", calls, good) for calls, good in spots]
    same = [row("opt:0.1", calls, good) for calls, good in spots]
    lower = [row("opt:0.1", calls, good - gap) for calls, good in spots]
    equal = compare([*ours, *same], "v3", "opt", "agreement")
    over = compare([*ours, *lower], "v3", "opt", "agreement")
    assert equal is not None
    assert over is not None
    assert (equal.above, equal.below, equal.dominates) == (0, 0, False)
    assert (over.above, over.dominates) == (len(ours), True)
    assert over.mean == pytest.approx(gap)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, tested in (("HumanEval", True), ("Spec-Bench", False)):
        rows = [
            row(
                way,
                calls=1.0 - at / 10,
                agreement=1.0 - at / 20,
                temperature=temperature,
                passed=at if tested else None,
                problems=9 if tested else 0,
            )
            for temperature in (0.0, 1.0)
            for at, way in enumerate(WAYS)
        ]
        found[name] = tmp_path / f"{name}.json"
        found[name].write_text(json.dumps({"ways": WAYS, "prompts": 9, "rows": rows}))
    return found


def test_the_documents_say_on_what_a_table_rests(files):
    assert cascade_tables.basis(files["HumanEval"]) == (
        "3 of 9 prompts at temperature 0 and 3 of 9 prompts at temperature 1; speeds "
        "were not measured"
    )
    lines = cascade_tables.every_way(files["HumanEval"]).splitlines()
    assert len(lines) == 2 + len(WAYS)
    assert "pass@1, T 1" in lines[0]
    assert "4/9" in next(line for line in lines if "`opt:0.5`" in line)
    assert "pass@1" not in cascade_tables.every_way(files["Spec-Bench"])


def test_a_result_without_answers_says_so(tmp_path: Path):
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"ways": WAYS, "prompts": 9, "rows": []}))
    assert cascade_tables.every_way(path) == "No prompt is finished.\n"
    assert cascade_tables.basis(path).startswith("no prompts")
    assert cascade_tables.dominance({"none": path}).strip().count("\n") == 1
    ElementTree.fromstring(cascades({"none": path}))


def test_the_documents_say_which_rule_dominates(files):
    text = cascade_tables.dominance(files)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # v3 has fewer calls than the others here, and its line reaches over theirs.
    assert any("v3 over chow" in line for line in rows)
    assert "dominates `chow` in" in text
    assert "fewer than 30 prompts: 3 (HumanEval, T 0), 3 (HumanEval, T 1)" in text
    for file in files.values():
        result = json.loads(file.read_text())
        rows = [{**row, "answers": 30} for row in result["rows"]]
        file.write_text(json.dumps({**result, "rows": rows}))
    assert "fewer than" not in cascade_tables.dominance(files)


def test_the_picture_has_a_panel_for_each_result_and_temperature(files):
    svg = cascades(files)
    ElementTree.fromstring(svg)
    for name, shown in (("HumanEval", "pass@1"), ("Spec-Bench", "agreement")):
        for temperature in (0, 1):
            assert f"{name}, T {temperature}, 3 prompts: {shown}" in svg
    assert cascades(files) == svg
