"""The cascade sweep on tables: its baselines, its rows, and that it resumes."""

from __future__ import annotations

from collections import Counter
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
from edgecs_bench.cascades.sweep import Sweep, run, table
from edgecs_bench.cascades.ways import Pair, ways
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
    said = ways(models, ["chow"], [alpha], seed)[name](choose, prompt, 20)
    assert said.tokens == plain


def test_every_way_that_promises_the_targets_tokens_gives_them():
    choose = chooser(Sampling(temperature=1.0, seed=3), VOCAB)
    every = ways(pair(), [], [0.0], 3)
    prompt = np.array([1, 2], np.int32)
    said = {name: way(choose, prompt, 20).tokens for name, way in every.items()}
    assert said["large"] == said["speculative"] != said["small"]
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


def sweep_of(path: Path | None, *, code: bool = False) -> Sweep:
    exam = Exam("def check(f):\n    assert f() == 1\n", "f")
    prompts = [
        Prompt("1", "math", "ab"),
        Prompt("HumanEval/0", "humaneval", "def f():\n", exam),
        Prompt("long", "math", "x" * 5000),
    ]
    suite = Suite(["test"], prompts)
    return Sweep(suite, ["v3"], [0.5], [0.0, 1.0], 1, 12, code, path, {"target": "t"})


def test_a_sweep_has_a_row_for_every_way_and_resumes(tmp_path: Path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "edgecs_bench.run.humaneval.run", lambda code: ran.append(code) or None
    )
    journal, said = tmp_path / "sweep.jsonl", []

    def swept():
        models = pair(Counted(257, 1), Counted(257, 2))
        return run(
            sweep_of(journal, code=True),
            models,
            lambda sampling: always(chooser(sampling, 257)),
            lambda text: list(text.encode()),
            said.append,
        )

    first = swept()
    names = ["large", "small", "speculative", "v3:0.5", "lenient:0.5", "deferral:0.5"]
    assert [row["way"] for row in first["rows"]] == 2 * names
    assert {row["answers"] for row in first["rows"]} == {2}
    by_way = {(row["temperature"], row["way"]): row for row in first["rows"]}
    for temperature in (0.0, 1.0):
        for name in ("large", "speculative"):
            assert by_way[temperature, name]["agreement"] == 1.0
        assert by_way[temperature, "small"]["agreement"] < 0.9
        assert by_way[temperature, "v3:0.5"]["problems"] == 1
    assert any("skipped" in line for line in said)
    assert len(ran) == 12
    assert table(first).count("\n") == 2 + 12
    calls = Counted.calls
    assert swept() == first
    assert Counted.calls == calls
    assert len(ran) == 12
    other = sweep_of(journal, code=False)
    with pytest.raises(click.UsageError, match=r"other options \(code\)"):
        run(other, pair(), lambda sampling: always(None), lambda text: [])


def test_a_sweep_can_be_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    result = run(
        sweep_of(None),
        pair(TableModel(257, 1), TableModel(257, 2)),
        lambda sampling: always(chooser(sampling, 257)),
        lambda text: list(text.encode()),
    )
    plot.draw(tmp_path / "sweep.svg", result)
    text = (tmp_path / "sweep.svg").read_text()
    assert "agreement with large" in text
    assert "lenient" in text
