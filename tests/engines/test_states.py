"""States: what was noted of a context comes back, and nothing else does."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, score_one
from edgecs.engines.hidden_states import States
from edgecs.runtime.loader import Loaded


def row(cell: int, version: int) -> np.ndarray:
    return np.array([cell + 1, version], dtype=np.float32)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=12))
def test_states_are_those_that_were_noted_last(steps: list[tuple[int, int]]):
    """Rounds of some cells, each followed by forgetting some; the first have none."""
    states, context = States(2), Context([0] * 64)
    truth: dict[int, np.ndarray] = {}
    end = 5
    for version, (count, forgotten) in enumerate(steps):
        new = [row(cell, version) for cell in range(end, end + count)]
        states.put(context, end, np.array(new))
        truth.update(zip(range(end, end + count), new, strict=True))
        end = max(5, end + count - forgotten)
        states.cut(end)
        truth = {cell: state for cell, state in truth.items() if cell < end}
    nothing = np.zeros(2, dtype=np.float32)
    expected = [truth.get(cell, nothing) for cell in range(64)]
    assert np.array_equal(states.of(context, 0, 64), np.array(expected))


def test_cells_beyond_what_is_kept_are_forgotten():
    states, context = States(1), Context([0] * 3000)
    for cell in range(2500):
        states.put(context, cell, np.full((1, 1), cell + 1, dtype=np.float32))
    first, end = states.known(context)
    assert (end - first, end) == (1024, 2500)
    assert states.of(context, first - 1, first + 1).ravel().tolist() == [0, first + 1]


def test_another_context_has_none():
    states, context = States(1), Context([1, 2, 3])
    states.put(context, 1, np.ones((1, 1), dtype=np.float32))
    assert not states.of(Context([1, 2, 3]), 0, 3).any()
    assert states.of(context.with_tail([4]), 0, 3).any()


def test_noting_states_changes_no_bit_of_the_logits(tiny: Loaded):
    random = np.random.default_rng(0)
    ids = random.integers(0, 200, 200).astype(np.int32)
    widths = [0, 0, 3, 0, 7, 1, 0, 0, 2, 0]

    def rows() -> list[np.ndarray]:
        tiny.target.reset()
        context, found = Context(ids[:90]), []
        for width in widths:
            draft = Draft.chain(ids[100 : 100 + width], "test") if width else NOTHING
            found.append(score_one(tiny.target, context, draft).logits.copy())
            context.append(ids[len(context) : len(context) + 1])
        return found

    plainly = rows()
    states = tiny.target.note_states()
    for before, after in zip(plainly, rows(), strict=True):
        assert np.array_equal(before, after)
    assert states is tiny.target.note_states()


def test_a_target_notes_the_states_of_what_it_verifies_alone(tiny: Loaded):
    states, context = tiny.target.note_states(), Context([1, 2, 3, 4, 5])
    score_one(tiny.target, context)  # reads the prompt
    assert not states.of(context, 0, 5).any()
    context.append([6])
    score_one(tiny.target, context, Draft.chain([7, 8], "test"))
    assert states.known(context) == (5, 8)
    together = states.of(context, 5, 8)
    context.append([7])  # 8 was rejected
    score_one(tiny.target, context)
    assert states.known(context) == (5, 7)
    assert np.allclose(states.of(context, 5, 7), together[:2], atol=1e-4)
    tiny.target.reset()
    assert not states.of(context, 0, 7).any()
