"""Token Recycling: the best tokens of the last row after one token, and after two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, Rows, Verdict
from edgecs.drafters import recycling_table as module
from edgecs.drafters.recycling import Recycling
from edgecs.drafters.recycling_table import RANKS, Best, BestRows, RecyclingTable
from tests.core.trees import tree

VOCAB = 12
rows_of = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.permutations(range(4))),
    max_size=20,
)


def expected(
    learned: list[tuple[int, int, list[int]]], before: int, last: int
) -> list[int]:
    """The slow way: the last row after both tokens, then the last after one."""
    pair = [ids for a, b, ids in learned if (a, b) == (before, last)][-1:]
    one = [ids for _, b, ids in learned if b == last][-1:]
    return list(dict.fromkeys(i for ids in (*pair, *one) for i in ids))


@given(rows_of, st.integers(0, 3), st.integers(0, 3), st.integers(0, 40))
def test_candidates_are_those_of_the_last_rows(learned, before: int, last: int, depth):
    source = Recycling()
    for a, b, ids in learned:
        source.learn([a, b], ids)
    found = source.successors([9, before, last], depth)
    assert list(dict.fromkeys(t for t, _ in found)) == expected(learned, before, last)
    for _, buckets in found:
        assert len(set(buckets)) == len(buckets) == 3
        assert 0 <= min(buckets) <= max(buckets) < source.buckets
    assert len(source.prior) == source.buckets
    chain = source.continuation(Context([9, before, last]), 9)
    evidence = [*source.evidence(chain)]
    assert len(evidence) == len(chain)
    if chain:
        assert (chain[0], evidence[0]) == source.successors([9, before, last], 0)[0]
    end = before, last
    for token in chain:
        assert token == expected(learned, *end)[0]
        end = end[1], token


def test_every_row_of_a_tree_is_learned_and_the_accepted_one_counts():
    random = np.random.default_rng(1)
    logits = random.standard_normal((5, 600)).astype(np.float32)
    draft = tree([(-1, 7), (-1, 8), (1, 7), (0, 9)])  # 7 twice: after 6, and after 8
    source = Recycling()
    source.observe(Context([5, 6]), draft, Rows(logits, 5), Verdict((1, 2), 3))
    best = (-logits).argsort(axis=1)[:, :RANKS].tolist()

    def known(*end: int) -> list[int]:
        return [token for token, _ in source.successors(end, 0)][:RANKS]

    assert known(5, 6) == best[0]
    assert known(6, 7) == best[1]
    assert known(6, 8) == best[2]
    assert known(8, 7) == best[3]
    assert known(7, 9) == best[4]
    assert known(7) == best[3]  # node 2 is on the accepted path, node 0 is not


def test_runs_of_the_same_best_token_are_told_apart():
    source, seen = Recycling(), []
    for ids in ([2, 3], [2, 4], [2, 3], [3, 2]):
        source.learn([1], ids)
        seen.append(source.successors([1], 0)[0])
    assert [token for token, _ in seen] == [2, 2, 2, 3]
    runs = [buckets[2] for _, buckets in seen]
    assert runs[0] < runs[1] < runs[2]
    assert runs[3] == runs[0]


def test_the_tables_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST", 3)
    source = Recycling()
    for token in (1, 2, 3, 1, 4):
        source.learn([token], [9])
    assert [t for t in range(1, 5) if source.successors([t], 0)] == [1, 3, 4]


def test_an_empty_context_teaches_and_proposes_nothing():
    source, rows = Recycling(), Rows(np.zeros((1, VOCAB), np.float32), 1)
    source.observe(Context([]), Draft.chain([], ""), rows, Verdict((), 1))
    assert source.propose(Context([]), 4) is NOTHING
    source.observe(Context([3]), NOTHING, rows, Verdict((), 1))
    assert len(source.propose(Context([3]), 4)) == 1


def test_without_memory_the_table_is_neither_used_nor_changed():
    table = RecyclingTable()
    table.learn([3], [7])
    source, rows = Recycling(table), Rows(np.eye(1, VOCAB, 5, np.float32), 1)
    source.allow(False)
    assert source.propose(Context([3]), 4) is NOTHING
    source.observe(Context([3]), NOTHING, rows, Verdict((), 1))
    assert source.continuation(Context([3]), 1) == [5]  # of this answer only
    source.allow(False)
    assert source.propose(Context([3]), 4) is NOTHING
    assert {key: best.ids for key, best in table.after_one.items()} == {3: [7]}
    source.allow(True)
    assert source.continuation(Context([3]), 1) == [7]
    source.observe(Context([3]), NOTHING, rows, Verdict((), 1))
    assert table.after_one[3].ids[0] == 5


def test_rows_are_loaded_when_they_are_first_needed():
    loaded = list[int]()

    def load() -> BestRows:
        loaded.append(1)
        return BestRows({3: Best([7], 1)}, {})

    source = Recycling(RecyclingTable(load))
    assert loaded == []
    assert source.continuation(Context([3]), 1) == [7]
    source.learn([3], [8])
    assert source.continuation(Context([3]), 1) == [8]
    assert loaded == [1]
