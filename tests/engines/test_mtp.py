"""MTP heads: what is computed in pieces is what is computed at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llama_cpp as lib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.llama import library
from edgecs.engines.llama.heads.experimental import symbols
from edgecs.engines.llama.heads.features import view
from edgecs.engines.llama.heads.mtp import MtpHead, own_heads
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError
from edgecs.runtime.loader import OWN_HEAD, Loaded, load, load_drafter
from tests import drafter_files as files
from tests import families

TOKENS = np.random.default_rng(1).integers(0, 250, 600).astype(np.int32)
OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0)

MADE = {
    "one": files.with_heads,
    "three": lambda path: files.with_heads(path, heads=3),
    "recurrent": lambda path: families.qwen35(path, head=True),
}


@pytest.fixture(scope="module", params=MADE)
def made(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Loaded, MtpHead]]:
    path = MADE[request.param](tmp_path_factory.mktemp("mtp") / "target.gguf")
    with load(path, OPTIONS) as target, load_drafter(OWN_HEAD, target) as drafter:
        assert isinstance(drafter.model, MtpHead)
        yield target, drafter.model


rounds = st.lists(
    st.tuples(
        st.lists(st.integers(0, 250), max_size=5),  # what is drafted
        st.lists(st.integers(0, 250), max_size=3),  # and then instead
        st.lists(st.integers(0, 250), max_size=3),  # what the target verifies
        st.integers(0, 3),  # tokens of it that are accepted
        st.booleans(),  # whether the head is asked in this round
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(prompt=st.integers(2, 150), steps=rounds)
def test_drafts_in_any_order_are_those_of_a_new_head(
    made: tuple[Loaded, MtpHead], prompt: int, steps: list
):
    """Drafts that grow, are given up, begin again; rounds without a draft."""
    target, head = made[0].target, made[1]
    target.reset()
    head.reset()
    context = Context(TOKENS[:prompt])
    score_one(target, context)
    found = []
    for drafted, instead, verified, accepted, asked in steps:
        context.append([TOKENS[len(context)]])
        for tail in [drafted[:i] for i in range(len(drafted) + 1)] + [instead]:
            if asked:
                here = context.with_tail(tail) if tail else context
                row = score_one(head, here).logits[0].copy()
                found.append((context.tokens.tolist(), tail, row))
        score_one(target, context, Draft.chain(verified, "test"))
        context.append(verified[:accepted])
    states = head._states.of(context, 0, len(context))
    assert np.abs(states[: len(context) - 1]).max(1).all()  # none is missing
    for tokens, tail, row in found:
        head.reset()
        committed = Context(tokens)
        # The same states, under another text's name.
        head._states.adopt(committed, len(tokens) - 1)
        here = committed.with_tail(tail) if tail else committed
        again = score_one(head, here).logits[0]
        # Cells have 16 bits, and calls of other widths another rounding.
        assert np.abs(row - again).max() < 0.02 * again.std(), (len(tokens), tail)
        # `adopt` forgets what is after the text.
        head._states.put(committed, 0, states)


def test_recording_changes_no_bit_of_the_logits(tmp_path: Path):
    path = files.with_heads(tmp_path / "target.gguf")

    def rows(loaded: Loaded) -> list[np.ndarray]:
        loaded.target.reset()
        context, found = Context(TOKENS[:90]), []
        for width in (0, 0, 3, 0, 7, 1, 0, 2):
            draft = Draft.chain(TOKENS[200 : 200 + width], "test")
            found.append(score_one(loaded.target, context, draft).logits.copy())
            context.append([TOKENS[len(context)]])
        return found

    with load(path, OPTIONS) as loaded:
        plainly = rows(loaded)
        with load_drafter(OWN_HEAD, loaded):
            recording = rows(loaded)
    with load(path, LoadOptions(**{**vars(OPTIONS), "heads": False})) as loaded:
        assert not loaded.model.has_heads
        without = rows(loaded)
    for before, during, never in zip(plainly, recording, without, strict=True):
        assert np.array_equal(before, during)
        assert np.array_equal(before, never)


def test_states_of_output_rows_are_those_of_the_first_tokens(tmp_path: Path):
    """Why `HeadCells` makes all tokens of a call output rows.

    The graphs of some MTP heads give the states of all tokens, and llama.cpp takes as
    many of them as there are output rows, from the first one on. Its server does not
    see that (`test_head_peers`).
    """
    path = files.with_heads(tmp_path / "target.gguf", heads=3)
    with load(path, OPTIONS) as target, load_drafter(OWN_HEAD, target) as drafter:
        assert isinstance(drafter.model, MtpHead)
        cells = drafter.model._cells
        ids = TOKENS[:3]
        given = np.random.default_rng(2).standard_normal((3, cells.width), np.float32)
        cells.decode(ids, given, 0, output=True)
        every = view(symbols().next(cells._context), 3, cells.width).copy()
        logits = view(library.logits_address(cells._context, 2), 1, files.VOCABULARY)
        expected = logits.copy()
        cells.drop(0)
        batch = cells._batch(ids, given, 0, output=True)
        cells._flags[:2] = 0  # only the last token has an output row
        cells._call(lib.llama_decode, batch)
        logits = view(library.logits_address(cells._context, 2), 1, files.VOCABULARY)
        state = view(symbols().next(cells._context), 1, cells.width)
        assert np.array_equal(logits, expected)
        assert np.array_equal(state, every[:1])
        assert not np.allclose(state, every[2:], atol=0.1)


def test_a_file_whose_heads_llama_cpp_cannot_run(tmp_path: Path):
    """It loads them, but has no graph for them: the process would abort."""
    path = files.with_heads(tmp_path / "target.gguf")
    with load(path, OPTIONS) as loaded:
        assert own_heads(loaded.model) == 1
    path = files.target(tmp_path / "none.gguf")
    with load(path, OPTIONS) as loaded:
        assert own_heads(loaded.model) == 0
        with pytest.raises(ModelError, match="has no MTP head"):
            load_drafter(OWN_HEAD, loaded)
