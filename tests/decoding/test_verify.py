"""verify: the walk gives what one-by-one decoding gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Rows, score_one
from edgecs.decoding.verification import verify
from edgecs.sampling.chain import greedy
from edgecs.testing.fakes import TableModel

trees = st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 2)), max_size=10)


@given(
    seed=st.integers(0, 99), nodes=trees, ends=st.sets(st.integers(0, 2), max_size=1)
)
def test_emits_a_prefix_of_what_the_target_says(seed: int, nodes, ends: set[int]):
    model, context = TableModel(3, seed), Context([1])
    parents = [min(parent, i - 1) for i, (parent, _) in enumerate(nodes)]
    draft = Draft(
        np.array([token for _, token in nodes], np.int32),
        np.array(parents, np.int32),
        ("x",) * len(nodes),
        np.ones(len(nodes)),
    )
    verdict = verify(draft, score_one(model, context, draft), greedy, context, ends)
    emitted = [*draft.tokens[list(verdict.path)].tolist(), verdict.token]
    said = model.greedy([1], len(emitted))
    assert emitted == said
    # It stops where it must: at an end, or where no child continues the path.
    assert not set(emitted[:-1]) & ends
    last = verdict.path[-1] if verdict.path else -1
    children = [nodes[i][1] for i, p in enumerate(parents) if p == last]
    assert verdict.token in ends or verdict.token not in children


def test_choices_see_the_path_walked():
    seen = []

    def choose(row, tokens):
        seen.append(tokens.tolist())
        return greedy(row, tokens)

    rows = Rows(np.eye(5, dtype=np.float32)[[3, 1, 4]], fed=3)
    verdict = verify(Draft.chain([3, 1], "x"), rows, choose, Context([0]))
    assert (verdict.path, verdict.token) == ((0, 1), 4)
    assert seen == [[0], [0, 3], [0, 3, 1]]


def test_nothing_follows_an_end_token_in_a_draft():
    rows = Rows(np.eye(5, dtype=np.float32)[[3, 1, 4]], fed=3)
    verdict = verify(Draft.chain([3, 1], "x"), rows, greedy, Context([0]), {3})
    assert (verdict.path, verdict.token) == ((), 3)
