"""The cascade sweep on tables: its baselines, its rows, and that it resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.decoding.exactness import Limits
from edgecs.sampling.cascade_rules import CascadeRule
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import CachingModel, Endless, TableModel
from edgecs_bench.cascades import plot
from edgecs_bench.cascades.baselines import Lenient, deferred
from edgecs_bench.cascades.rows import table
from edgecs_bench.cascades.sweep import Sweep, run
from edgecs_bench.cascades.ways import Pair, Question, ways
from edgecs_bench.run import humaneval
from edgecs_bench.suite.prompts import Exam, Prompt
from edgecs_bench.suite.suites import Suite

VOCAB = 5


def pair(target=None, small=None) -> Pair:
    target = target or CachingModel(VOCAB, 1)
    small = small or CachingModel(VOCAB, 2)
    return Pair(target, small, Endless(), Limits(), 3)


@given(
    alpha=st.floats(0, 1),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_a_plain_cascade_says_what_chow_says_with_drafts(alpha, temperature, seed):
    choose = chooser(Sampling(temperature=temperature, seed=seed), VOCAB)
    models, prompt = pair(), np.array([1, 2], np.int32)
    rule = CascadeRule("chow", alpha)
    plain = [*deferred(models.target, models.small, rule, choose, prompt, 20)]
    name = f"chow:{alpha:g}"
    question = Question(choose, prompt, 20)
    said = ways(models, ["chow"], [alpha], seed)[name](question)
    assert said.tokens == [token for token, _ in plain]


def test_every_way_that_promises_the_targets_tokens_gives_them():
    choose = chooser(Sampling(temperature=1.0, seed=3), VOCAB)
    every = ways(pair(), [], [0.0], 3)
    question = Question(choose, np.array([1, 2], np.int32), 20)
    said = {name: way(question).tokens for name, way in every.items()}
    assert said["large"] == said["speculative"] != said["small"]
    prompt = question.prompt
    assert said["large"] == CachingModel(VOCAB, 1).alone(prompt, 20, choose)
    assert said["small"] == CachingModel(VOCAB, 2).alone(prompt, 20, choose)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_lenient_sampling_has_its_law(alpha: float):
    row, small = np.log(np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32))
    p, q = np.exp(row), np.exp(small)
    kept = np.minimum(q, p / (1 - alpha))
    rest = np.maximum(p - q, 0)
    law = kept + (1 - kept.sum()) * rest / rest.sum()
    counts, draws, tokens = Counter(), 4000, np.zeros(3, np.int32)
    for seed in range(draws):
        choose = chooser(Sampling(temperature=1.0, seed=seed), 3)
        counts[Lenient(alpha, seed).choose(choose, row, small, tokens)] += 1
    seen = np.array([counts[token] for token in range(3)])

    def apart(wanted) -> float:
        return float(((seen - draws * wanted) ** 2 / (draws * wanted)).sum())

    assert apart(law) < 20  # 2 degrees of freedom: 1 in 20,000
    assert apart(q) > 100
    assert (apart(p) < 20) == (alpha == 0)


class Counted(CachingModel):
    calls = 0

    def score(self, requests):
        Counted.calls += 1
        return super().score(requests)


def sweep_of(path: Path | None, **changed) -> Sweep:
    exam = Exam("def check(f):\n    assert f() == 1\n", "f")
    prompts = [
        Prompt("1", "math", "ab"),
        Prompt("HumanEval/0", "humaneval", "def f():\n", exam),
        Prompt("long", "math", "x" * 5000),
    ]
    usual = Sweep(
        suite=Suite(["test"], prompts),
        rules=["v3"],
        alphas=[0.5],
        temperatures=[0.0, 1.0],
        seed=1,
        most=12,
        code=False,
        quality=True,
        speed=True,
        timed=1,
        timed_most=8,
        seconds=None,
        journal=path,
        models={"target": "t"},
        machine={"device": "d"},
    )
    return replace(usual, **changed)


def swept(sweep: Sweep, models: Pair | None = None, say=lambda text: None):
    return run(
        sweep,
        models or pair(Counted(257, 1), Counted(257, 2)),
        lambda sampling: always(chooser(sampling, 257)),
        lambda text: list(text.encode()),
        say,
    )


def test_a_sweep_has_a_row_for_every_way_and_resumes(tmp_path: Path, monkeypatch):
    ran, said = [], []
    monkeypatch.setattr(
        "edgecs_bench.run.humaneval.run", lambda code: ran.append(code) or None
    )
    sweep = sweep_of(tmp_path / "sweep.jsonl", code=True)
    first = swept(sweep, say=said.append)
    names = ["large", "small", "speculative", "v3:0.5", "lenient:0.5", "deferral:0.5"]
    assert [row["way"] for row in first["rows"]] == 2 * names
    assert {row["answers"] for row in first["rows"]} == {2}
    assert {row["timed"] for row in first["rows"]} == {1}
    assert all(row["speed"] for row in first["rows"])
    by_way = {(row["temperature"], row["way"]): row for row in first["rows"]}
    for temperature in (0.0, 1.0):
        for name in ("large", "speculative"):
            assert by_way[temperature, name]["agreement"] == 1.0
        assert by_way[temperature, "large"]["calls"] == 1.0
        assert by_way[temperature, "small"]["calls"] == 0.0
        assert by_way[temperature, "small"]["agreement"] < 0.9
        assert by_way[temperature, "v3:0.5"]["problems"] == 1
    assert any("skipped" in line for line in said)
    assert len(ran) == len(set(ran)) > 1
    assert table(first).count("\n") == 2 + 12
    calls, programs = Counted.calls, len(ran)
    assert swept(sweep) == first
    assert (Counted.calls, len(ran)) == (calls, programs)
    moved = swept(replace(sweep, machine={"device": "other"}, speed=False))
    assert moved["answers"] == first["answers"]
    more = swept(replace(sweep, timed=2))
    assert {row["timed"] for row in more["rows"]} == {2}
    assert len(ran) == programs
    with pytest.raises(click.UsageError, match=r"other options \(code\)"):
        swept(replace(sweep, code=False))


def test_the_parts_of_a_sweep_can_be_measured_one_after_the_other(tmp_path: Path):
    sweep = sweep_of(tmp_path / "sweep.jsonl")
    quality = swept(replace(sweep, speed=False))
    assert {row["timed"] for row in quality["rows"]} == {0}
    assert "tok/s" not in table(quality)
    for changed in ({"seconds": 0.0}, {"speed": False, "quality": False}):
        assert swept(replace(sweep, **changed))["rows"] == quality["rows"]
    both = swept(replace(sweep, quality=False))
    assert both["answers"] == quality["answers"]
    assert {row["timed"] for row in both["rows"]} == {1}


def test_no_prompt_is_begun_when_the_time_is_over():
    said = []
    result = swept(sweep_of(None, seconds=0.0), say=said.append)
    assert result["rows"] == []
    assert sum("the time is over" in line for line in said) == 2


def test_a_sweep_can_be_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    for speed, label in ((True, "relative to large"), (False, "calls of the large")):
        sweep = sweep_of(None, speed=speed)
        result = swept(sweep, pair(TableModel(257, 1), TableModel(257, 2)))
        plot.draw(tmp_path / "sweep.svg", result)
        text = (tmp_path / "sweep.svg").read_text()
        for part in ("agreement with large", "lenient", label):
            assert part in text


@pytest.mark.parametrize(
    ("reasons", "passed", "tries"),
    [
        ([None], True, 1),
        (["AssertionError"], False, 1),
        (["not finished after 10 s", None], True, 2),
        (["not finished after 10 s", "AssertionError"], False, 2),
        (["not finished after 10 s"] * 9, False, 4),
    ],
)
def test_a_program_that_was_late_is_given_more_time(
    monkeypatch, reasons: list, passed: bool, tries: int
):
    given = []

    def ran(code: str, seconds: int = humaneval.SECONDS) -> str | None:
        given.append(seconds)
        return reasons[len(given) - 1]

    monkeypatch.setattr(humaneval, "run", ran)
    sweep = sweep_of(None, code=True, alphas=[], rules=[], temperatures=[0.0])
    first = Suite(["test"], sweep.suite.prompts[1:2])
    models = pair(TableModel(257, 1), TableModel(257, 1))  # one answer
    result = swept(replace(sweep, suite=first, speed=False), models)
    assert {row["passed"] for row in result["rows"]} == {int(passed)}
    assert len(given) == tries
    assert given == sorted(set(given))
