"""The bench that counts forwards: its tables stand in for models."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.session.session import Session
from edgecs.testing.fakes import Endless, TableModel
from edgecs_bench.simulation.forwards import (
    Count,
    Numbers,
    Remembered,
    Schedule,
    Trace,
    play,
    play_all,
    schedules,
)
from edgecs_bench.suite.prompts import Prompt, read_prompts
from edgecs_bench.swi import compare, improvement, keep, kept

PROMPT = Prompt("1", "qa", "?")


class Near(TableModel):
    """Agrees with the target most of the time."""

    def law(self, prefix):
        return TableModel(5, 0).law(prefix) + 0.5 * super().law(prefix)


@pytest.mark.parametrize("text", ["3,0;0,0", "2,2;0,3"])
def test_a_played_schedule_counts_what_a_session_counts(text: str):
    ids = [1, 2, 1, 2]
    said = TableModel(5, 0).greedy(ids, 60)
    matrix = KMatrix.parse(text)
    writers = stack([NamedModel("near", Near(5, 7))], MaxGram(), matrix)
    target = TableModel(5, 0)
    counts = matrix.counts(0)
    with Session(target, Endless(), writers, draft_max=counts) as session:
        assert [t.id for t in session.generate(ids, max_tokens=60)] == said
        stats = session.stats
    numbers = Numbers()
    trace = Trace(PROMPT, [numbers(t) for t in ids], [numbers(t) for t in said])
    model = Remembered(Near(5, 7), numbers)
    for _ in range(2):  # the second time everything is remembered
        count = play(trace, model, MaxGram(), Schedule(matrix, False))
        assert count == Count(59, stats.rounds, stats.forwards["near"])


def test_the_comparison_takes_the_best_of_both_kinds():
    traces = []
    for i, category in enumerate(["qa", "qa", "code"]):
        ids = [i, 1, 2]
        said = TableModel(5, 0).greedy(ids, 30)
        traces.append(Trace(Prompt(str(i), category, "?"), ids, said))
    played = play_all(Near(5, 7), traces)
    rows = list(compare(played, traces, {"parameters": 0.3, "measured": 0.05}))
    assert [row["category"] for row in rows[:3]] == ["all", "qa", "code"]
    assert len(rows) == 2 * 2 * 3
    alone = [s for s in played if s.is_speculative_decoding]
    best = max(improvement(played[s], 0.3) for s in alone)
    assert rows[0]["sd"] == round(best, 3)
    assert rows[0]["cs_over_sd"] == pytest.approx(rows[0]["cs"] / best, abs=2e-3)
    # A cheaper drafter may write more.
    assert rows[6]["sd"] > rows[0]["sd"]


def test_traces_are_kept(tmp_path: Path):
    path = tmp_path / "traces.jsonl"
    assert kept(None) is None
    assert kept(path) is None
    traces = [Trace(PROMPT, [1, 2], [3]), Trace(Prompt("x", "ü", "…"), [4], [5, 6])]
    keep(path, traces, 0.25)
    assert kept(path) == (traces, 0.25)


def test_every_schedule_drafts_something_and_none_comes_twice():
    every = list(schedules())
    assert all(any(schedule.matrix.counts(0)) for schedule in every)
    assert len(set(every)) == len(every) > 100


def test_improvement_is_tokens_over_weighted_forwards():
    assert improvement([Count(10, 4, 8), Count(5, 2, 2)], 0.1) == pytest.approx(15 / 7)


def test_prompts_of_every_format(tmp_path: Path):
    spec = tmp_path / "spec.jsonl"
    spec.write_text(
        '{"question_id": 7, "category": "qa", "turns": ["one", "two"]}\n'
        '{"question_id": 8, "category": "qa", "turns": ["three"]}\n'
        '{"question_id": 9, "category": "math", "turns": ["four"]}\n'
    )
    code = tmp_path / "humaneval.jsonl"
    code.write_text('{"task_id": "H/0", "prompt": "def f"}\n{"text": "hello"}\n')
    found = read_prompts([spec, code], (), 1)
    assert found == [
        Prompt("7", "qa", "one"),
        Prompt("9", "math", "four"),
        Prompt("H/0", "humaneval", "def f"),
    ]
    assert [p.id for p in read_prompts([spec, code], ("humaneval",), 5)] == ["H/0", "2"]
    with pytest.raises(click.UsageError, match="no prompts of category poetry"):
        read_prompts([spec], ("poetry",), 1)
    spec.write_text("{}\n")
    with pytest.raises(click.UsageError, match="line 1 of .* is not a prompt"):
        read_prompts([spec], (), 1)
    with pytest.raises(click.UsageError, match="cannot be read"):
        read_prompts([tmp_path / "none"], (), 1)
