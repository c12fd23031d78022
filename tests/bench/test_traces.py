"""Traces come back as they were, and files that lie are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs_bench.simulation.replay_options import TRACES
from edgecs_bench.simulation.traces import (
    FORMAT,
    Proposals,
    Recording,
    Trace,
    for_tuning,
    read_traces,
    write_traces,
)

ids = st.integers(0, 200_000)
words = st.text(min_size=1, max_size=5)


@st.composite
def traces(draw: st.DrawFn, drafters: Sequence[str]) -> Trace:
    output = draw(st.lists(ids, max_size=4))
    n = len(output)
    gaps = draw(st.lists(st.integers(0, 9999), min_size=n, max_size=n))
    proposals = {}
    for name in drafters:
        tokens = [draw(st.lists(ids, max_size=3)) for _ in range(n)]
        said = [[draw(st.integers(0, 9999)) / 10000 for _ in one] for one in tokens]
        others: list[list[int]] = []
        if draw(st.booleans()):
            others = [draw(st.lists(ids, max_size=3)) for _ in range(n)]
        shares = [[draw(st.integers(0, 9999)) / 10000 for _ in one] for one in others]
        proposals[name] = Proposals(tokens, said, others, shares)
    prompt = draw(st.lists(ids, min_size=1, max_size=4))
    gap = [gap / 1000 for gap in gaps]
    ranked: list[list[int]] = []
    if draw(st.booleans()):
        ranked = [draw(st.lists(ids, min_size=1, max_size=8)) for _ in range(n)]
    return Trace(draw(words), draw(words), prompt, output, gap, proposals, ranked)


@st.composite
def recordings(draw: st.DrawFn, least: int = 0) -> Recording:
    drafters = tuple(draw(st.lists(words, max_size=2, unique=True)))
    return Recording(
        draw(words),
        drafters,
        draw(st.sampled_from([0.0, 0.7])),
        draw(st.integers(0, 2**40)),
        draw(st.integers(1, 16)),
        tuple(draw(st.lists(traces(drafters), min_size=least, max_size=3))),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("traces")


HEAD = {
    "format": FORMAT,
    "target": "t",
    "drafters": ["d"],
    "temperature": 0,
    "seed": 1,
    "draft_max": 2,
}
LINE = {
    "id": "1",
    "category": "qa",
    "prompt": [1],
    "output": [2, 3],
    "gap": [0.5, 0.5],
    "proposals": {"d": {"tokens": [[2], [4]], "confidences": [[0.5], [0.5]]}},
}
HALVES = {  # whether an answer may be tuned on, by category and name
    ("writing", "81"): True,
    ("writing", "85"): False,
    ("qa", "321"): True,
    ("qa", "325"): False,
    ("humaneval", "HumanEval/8"): True,
    ("humaneval", "HumanEval/6"): False,
}


class TestTraces:
    @given(recording=recordings(), name=st.sampled_from(["t.jsonl", "t.jsonl.gz"]))
    def test_what_is_written_is_read(self, folder: Path, recording, name: str):
        write_traces(folder / name, recording)
        assert read_traces(folder / name) == recording
        assert [path.name for path in folder.glob(f"*{name}")] == [name]

    @given(recording=recordings(1), data=st.data())
    def test_a_file_that_was_cut_is_refused(self, folder: Path, recording, data):
        path = folder / "cut.jsonl"
        write_traces(path, recording)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole) - 2))
        path.write_bytes(whole[:cut])
        line = whole[:cut].count(b"\n") + 1
        if whole[cut : cut + 1] == b"\n" or (cut and whole[cut - 1 : cut] == b"\n"):
            found = read_traces(path).traces  # between two lines nothing is missed
            assert found == recording.traces[: len(found)]
        else:
            with pytest.raises(click.UsageError, match=f"cut.jsonl, line {line}: "):
                read_traces(path)

    @given(recording=recordings(1), data=st.data())
    def test_a_compressed_file_that_was_cut_is_refused(self, folder, recording, data):
        path = folder / "cut.jsonl.gz"
        write_traces(path, recording)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(
            click.UsageError, match=r"cut.jsonl.gz, line \d+: not a trace"
        ):
            read_traces(path)

    @given(recording=recordings(1), data=st.data())
    def test_a_compressed_file_is_never_misread(self, folder, recording, data):
        path = folder / "bad.jsonl.gz"
        write_traces(path, recording)
        spoilt = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(spoilt)
        try:
            found = read_traces(path)
        except click.UsageError:
            return
        assert found == recording  # that byte said nothing

    def read(self, path: Path, *lines: object) -> Recording:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_traces(path)

    def test_the_format_is_the_documented_one(self, tmp_path: Path):
        found = self.read(tmp_path / "t.jsonl", HEAD, LINE)
        proposals = {"d": Proposals([[2], [4]], [[0.5], [0.5]])}
        trace = Trace("1", "qa", [1], [2, 3], [0.5, 0.5], proposals)
        assert found == Recording("t", ("d",), 0.0, 1, 2, (trace,))

    @pytest.mark.parametrize(
        "head", [{}, [], 3, "x", None, {**HEAD, "format": "edgecs-trace/2"}]
    )
    def test_another_format_is_refused(self, tmp_path: Path, head: object):
        with pytest.raises(click.UsageError, match="t.jsonl, line 1: not a trace"):
            self.read(tmp_path / "t.jsonl", head, LINE)

    @pytest.mark.parametrize("name", ["target", "drafters", "temperature", "seed"])
    def test_a_head_must_say_what_was_recorded(self, tmp_path: Path, name: str):
        head = {key: value for key, value in HEAD.items() if key != name}
        with pytest.raises(click.UsageError, match=f"not a trace: '{name}'"):
            self.read(tmp_path / "t.jsonl", head)

    @pytest.mark.parametrize(
        "change",
        [
            {"output": [2]},
            {"output": 2},
            {"gap": [0.5]},
            {"prompt": []},
            {"proposals": {}},
            {"proposals": []},
            {"proposals": {"d": {"tokens": [[2]], "confidences": [[0.5]]}}},
            {"proposals": {"d": {"tokens": [[2], [4, 5]], "confidences": [[1], [1]]}}},
            {"proposals": {"d": {"tokens": [[2], 4], "confidences": [[1], 1]}}},
        ],
    )
    def test_a_line_of_wrong_lengths_is_named(self, tmp_path: Path, change: dict):
        wrong = {**LINE, **change}
        with pytest.raises(click.UsageError, match="t.jsonl, line 3: not a trace"):
            self.read(tmp_path / "t.jsonl", HEAD, LINE, wrong)

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path):
        with pytest.raises(
            click.UsageError, match="none.jsonl.gz, line 1: not a trace"
        ):
            read_traces(tmp_path / "none.jsonl.gz")

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path: Path):
        path = tmp_path / "t.jsonl"
        old = self.read(path, HEAD, LINE)
        broken = replace(old.traces[0], output=[object()])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            write_traces(path, replace(old, traces=(broken, *old.traces)))
        assert read_traces(path) == old

    def test_the_halves_never_change(self):
        for (category, name), half in HALVES.items():
            assert for_tuning(Trace(name, category, [1], [], [])) == half
            assert for_tuning(Trace(name, category, [2, 3], [4], [0.5])) == half
        everything = [t for file in committed() for t in file.traces]
        assert sum(map(for_tuning, everything)) == pytest.approx(
            len(everything) / 2, rel=0.15
        )


@cache
def committed() -> list[Recording]:
    return [read_traces(file) for file in sorted(TRACES.glob("*.gz"))]


def test_committed_traces_are_there_for_all_benches():
    drafters = {name for recording in committed() for name in recording.drafters}
    assert len(drafters) >= 1
    assert sum(len(recording.traces) for recording in committed()) > 100
