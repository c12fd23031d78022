"""Two ways to compute one model are compared on texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.audit.fidelity import PIECE, compare, logits
from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.errors import ConfigError
from edgecs.testing.fakes import TableModel
from edgecs_bench import kernels as bench
from tests.commands import one_line
from tests.conftest import Outcome

TEXTS = st.lists(st.integers(0, 4), min_size=0, max_size=3 * PIECE).map(
    lambda ids: np.array(ids, dtype=np.int32)
)


@given(TEXTS)
def test_rows_are_those_of_one_token_after_the_other(text: np.ndarray):
    rows = [row for piece in logits(TableModel(5), text) for row in piece]
    assert len(rows) == max(0, text.size - 1)
    for i, row in enumerate(rows):
        alone = score_one(TableModel(5), Context(text[: i + 1])).logits[0]
        np.testing.assert_array_equal(row, alone)


@given(TEXTS)
def test_a_model_beside_itself(text: np.ndarray):
    text = np.concatenate([text, [1, 2]]).astype(np.int32)
    one, other = (logits(TableModel(5), text) for _ in range(2))
    found = compare([text], [one], [other])
    assert found.tokens == text.size - 1
    assert (found.agreement, found.largest, found.divergence) == (1, 0, 0)
    assert found.perplexity_ratio == 1


def test_numbers_by_hand():
    text = np.array([0, 1, 0], dtype=np.int32)
    ours = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32))
    theirs = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32))
    found = compare([text], [[ours]], [[theirs]])
    assert found.tokens == 2
    assert found.agreement == 0.0
    assert found.largest == pytest.approx(np.log(2))
    assert found.perplexity == pytest.approx((0.75 * 0.5) ** -0.5)
    assert found.other_perplexity == pytest.approx((0.5 * 0.25) ** -0.5)
    halves = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    quarters = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert found.divergence == pytest.approx((halves + quarters) / 2)


def test_nothing_to_compare():
    with pytest.raises(ConfigError, match="no text"):
        compare([np.array([1], dtype=np.int32)], [[]], [[]])


def test_a_text_that_is_too_long_is_cut():
    text = np.zeros(300, dtype=np.int32)
    model = TableModel(5, n_ctx=100)
    assert sum(len(piece) for piece in logits(model, text)) == 99


def test_kernels_beside_llama_cpps(edgecs: Callable[..., Outcome], tiny_gguf: Path):
    command = ("audit", "-m", tiny_gguf, "--compare-kernels", "-c", 1024, "--limit", 2)
    done = edgecs(*command, "--json")
    assert done.code == 0, done
    found = json.loads(done.out)
    assert found["weights"] == {"F32": 16}
    for name in ("own", "llama_not_repacked"):
        assert found[name]["agreement"] > 0.98
        assert found[name]["perplexity_ratio"] == pytest.approx(1, abs=0.01)
    assert found["own"]["largest"] < 0.1
    shown = edgecs(*command)
    assert shown.code == 0
    assert "edgecs's kernels:" in shown.out
    assert "the same best token" in shown.out


def test_llama_cpps_kernels_are_not_compared_with_themselves(
    edgecs: Callable[..., Outcome], tiny_gguf: Path
):
    command = ("audit", "-m", tiny_gguf, "--compare-kernels", "--kernels", "llama")
    one_line(edgecs(*command), 2, "compared with themselves", "give --kernels own")


def test_the_bench_of_kernels(tiny_gguf: Path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_MEMORY", 1 << 22)
    monkeypatch.setattr(bench, "_READS", 1)
    arguments = ["-m", str(tiny_gguf), "-r", "1", "-t", "2"]
    bench.main(arguments, standalone_mode=False)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["plain_over_llama"].keys() == {"64", "1500"}
    assert found["ratio"]["64"]["1"] == 1.0
    assert found["identical_widths"]["2000"] == list(bench.WIDTHS[1:])
    assert found["bandwidth"]["64"]["share"] > 0
    assert found["llama_best"]["64"] in bench.WAYS
