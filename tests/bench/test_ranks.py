"""Ranked tokens of recorded answers, and the replay of trees from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from edgecs.testing.fakes import TableModel, write_random_gguf
from edgecs_bench import ranks
from edgecs_bench.ranks import OTHERS, ranked, with_others
from edgecs_bench.simulation import tree_gain
from edgecs_bench.simulation.traces import (
    Proposals,
    Recording,
    Trace,
    read_traces,
    write_traces,
)

VOCAB = 30


def answer(model: TableModel, size: int = 70) -> Trace:
    output = model.greedy([1, 2], size)
    return Trace("a", "b", [1, 2], output, [0.0] * size)


def test_the_ranked_tokens_are_those_of_each_row():
    model = TableModel(VOCAB)
    trace = answer(model)
    best = ranked(model, trace)
    assert [row[0] for row in best] == trace.output
    for at, row in enumerate(best):
        law = model.law([*trace.prompt, *trace.output[:at]])
        assert row == np.argsort(-law)[: len(row)].tolist()


def test_others_are_what_a_drafter_ranks_after_its_choice():
    target, drafter = TableModel(VOCAB), TableModel(VOCAB, 5)
    trace = answer(target)
    first = [row[:1] for row in ranked(drafter, trace)]
    said = Proposals(first, [[0.5]] * len(first))
    found = with_others(drafter, trace, said)
    assert (found.tokens, found.confidences) == (said.tokens, said.confidences)
    for choice, others, shares in zip(first, found.others, found.shares, strict=True):
        assert len(others) == len(shares) == OTHERS
        assert choice[0] not in others
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) < 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = TableModel(8)
    traces = []
    for i in range(4):
        output = model.greedy([i, 2], 40)
        traces.append(Trace(str(i), "c", [i, 2], output, [0.0] * 40))
    path = tmp_path / "traces.jsonl"
    write_traces(path, Recording("table", (), 0.0, 1, 8, tuple(traces)))
    return path


def test_a_file_gets_its_ranks_and_trees_are_replayed(tmp_path: Path, file: Path):
    before = read_traces(file)
    done = CliRunner().invoke(tree_gain.main, ["--traces", str(file)])
    assert done.exit_code == 2
    assert "no trace has ranked tokens" in done.output
    gguf = write_random_gguf(tmp_path / "tiny.gguf", n_ctx=512)
    args = ["-m", str(gguf), "-c", "256", str(file)]
    done = CliRunner().invoke(ranks.main, args)
    assert done.exit_code == 0, done.output
    after = read_traces(file)
    for old, new in zip(before.traces, after.traces, strict=True):
        assert (new.prompt, new.output) == (old.prompt, old.output)
        assert len(new.ranked) == len(new.output)
    with load(gguf, LoadOptions(n_ctx=256, n_gpu_layers=0)) as loaded:
        assert ranked(loaded.target, after.traces[0]) == after.traces[0].ranked
    args = ["--traces", str(file), "--curve", "flat", "--leaves", "4"]
    done = CliRunner().invoke(tree_gain.main, args)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["leaves"] == 4
    assert found["curves"]["flat"]["trees"]["over_plain"] > 0


def test_ranks_of_other_recordings_are_refused(tmp_path: Path, file: Path):
    gguf = write_random_gguf(tmp_path / "tiny.gguf", n_ctx=512)
    path = tmp_path / "sampled.jsonl"
    write_traces(path, Recording("t", (), 0.7, 1, 8, read_traces(file).traces))
    done = CliRunner().invoke(ranks.main, ["-m", str(gguf), str(path)])
    assert done.exit_code == 2
    assert "at temperature 0.7" in done.output
    args = ["-m", str(gguf), "--draft", str(gguf), "-c", "256", str(file)]
    done = CliRunner().invoke(ranks.main, args)
    assert done.exit_code == 2
    assert "has the drafters none" in done.output
