"""Cells that are repeated for measuring are as good as real ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.calibrate.probe import QUICK, Scratch, bits, classify
from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.decoding.exactness import Classes, Limits
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.llama import language_model
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.scratch_kv import repeated
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load
from edgecs.testing.fakes import ScriptedDrafter, write_random_gguf

ids = st.lists(st.integers(0, 2), max_size=12)


@given(ids, ids, ids)
def test_replaced_cells_are_compared_anew(before, after, asked):
    """Also for a context that had been found to agree with those before."""
    cache, context = PrefixCache(lambda length: length), Context(asked)
    cache.extend(before)
    cache.keep(context, len(asked))
    cache.reset_to(after)
    assert len(cache) == len(after)
    pairs = enumerate(zip(after, asked, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), min(len(after), len(asked)))
    assert cache.keep(context, len(asked)) == common


def state(
    cells: int, layers: list[tuple[bytes, bytes]], transposed: bool = False
) -> bytes:
    """A saved state whose cells repeat; layers: (K, V) of the first few cells.

    A row is one byte. V: one byte a cell too, or columns of two-byte elements.
    """

    def over(data: bytes, size: int) -> bytes:
        return (data * (size // len(data) + 1))[:size]

    parts = [b"headings", struct.pack("<II", 1, cells)]
    parts += [struct.pack("<iIi", i, 1, 0) for i in range(cells)]
    parts.append(struct.pack("<II", transposed, len(layers)))
    parts += [struct.pack("<iQ", 1, 1) + over(k, cells) for k, _ in layers]
    for _, v in layers:
        if transposed:
            columns = over(v[:2], 2 * cells) + over(v[2:4], 2 * cells)
            parts.append(struct.pack("<iII", 1, 2, 2) + columns)
        else:
            parts.append(struct.pack("<iQ", 8, 1) + over(v, cells))
    return b"".join(parts)


one_cell = st.tuples(st.binary(min_size=1, max_size=1), st.binary(min_size=4))
some_layers = st.lists(one_cell, min_size=1, max_size=3)


class TestRepeated:
    @given(some_layers, st.integers(1, 40), st.integers(1, 40), st.booleans())
    def test_cells_are_repeated_wherever_they_stand(
        self, layers, given: int, wanted: int, transposed: bool
    ):
        alike = [(k, v[:1] if not transposed else v) for k, v in layers]
        before, after = (state(n, alike, transposed) for n in (given, wanted))
        assert repeated(before, wanted) == after

    def test_more_cells_than_there_are_begin_anew(self):
        rows = [(bytes([1, 2, 3]), bytes([4, 5, 6]))]
        assert repeated(state(3, rows), 8) == state(8, rows)
        assert repeated(state(3, rows), 2) == state(2, rows)

    @given(some_layers, st.integers(1, 4), st.booleans(), st.data())
    def test_every_truncation_is_refused(self, layers, cells, transposed, data):
        whole = state(cells, layers, transposed)
        assert repeated(whole, cells) == whole
        for end in range(len(whole)):
            with pytest.raises(ValueError, match="state"):
                repeated(whole[:end], 8)

    @given(some_layers, st.integers(1, 4), st.booleans(), st.binary(min_size=1))
    def test_what_goes_on_is_refused(self, layers, cells, transposed, more):
        with pytest.raises(ValueError, match="has data after its last layer"):
            repeated(state(cells, layers, transposed) + more, 8)

    @given(
        some_layers,
        st.integers(1, 4),
        st.booleans(),
        st.integers(0),
        st.integers(1, 255),
    )
    def test_a_changed_number_is_refused(self, layers, cells, transposed, at, change):
        whole = bytearray(state(cells, layers, transposed))
        size = 16 + 12 * cells + 8  # up to the layers: streams, cells, places, counts
        at = 8 + at % (size - 8)
        whole[at] ^= change
        if at // 4 == size // 4 - 2 and transposed:
            return  # any number but 0 says that V is transposed
        with pytest.raises(ValueError, match="state"):
            repeated(bytes(whole), 8)

    def test_a_state_without_cells_has_nothing_to_repeat(self):
        with pytest.raises(ValueError, match="no cells"):
            repeated(state(0, [(b"k", b"abcd")]), 8)

    @pytest.mark.parametrize("size", [(0, 1 << 31), (1 << 31, 0), (0, 0)])
    def test_elements_without_size_are_refused(self, size: tuple[int, int]):
        whole = state(1, [(b"k", b"abcd")], transposed=True)
        head = struct.pack("<iII", 1, 2, 2)
        at = whole.rindex(head)
        changed = whole[:at] + struct.pack("<iII", 1, *size)
        with pytest.raises(ValueError, match="state"):
            repeated(changed, 8)


TOKENS = list(range(3, 200))


def next_rows(target: LlamaLM, context: Context) -> np.ndarray:
    """Rows of a call of four tokens after all but the last of a context."""
    rows = score_one(target, context, Draft.chain([9, 8, 7], "test"))
    assert rows.fed == 4
    return rows.logits.copy()


def really(target: LlamaLM, tokens: list[int]) -> np.ndarray:
    """The same on cells that were computed in one go."""
    target.reset()
    context = Context(tokens[:-1])
    score_one(target, context)
    return next_rows(target, context.with_tail(tokens[-1:]))


class TestPretended:
    @pytest.mark.parametrize("size", [1, 2, 31, 32])
    def test_short_contexts_are_really_computed(self, tiny: Loaded, size: int):
        tokens = TOKENS[: size + 1]
        expected = really(tiny.target, tokens)
        assert tiny.target.pretend(Context(tokens[:-1]))
        found = next_rows(tiny.target, Context(tokens))
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize(
        "layout",
        [{}, {"flash_attention": "off"}, {"type_k": "q8_0", "type_v": "q8_0"}],
        ids=["plain", "transposed", "quantised"],
    )
    def test_the_first_cells_of_long_ones_are_real(self, tmp_path: Path, layout):
        path = write_random_gguf(tmp_path / "wide.gguf", heads=2, kv_heads=1)
        options = LoadOptions(n_ctx=512, n_batch=64, threads=1, **layout)
        with load(path, options) as loaded:
            target = loaded.target
            assert target.pretend(Context(TOKENS))
            assert next_rows(target, Context([*TOKENS, 5])).shape == (4, 272)
            cache = target._sequences[0].cache
            cache.trim(32)
            cache.mark()
            found = next_rows(target, Context(TOKENS[:33]))
            np.testing.assert_array_equal(found, really(target, TOKENS[:33]))

    def test_a_copy_of_as_many_cells_is_the_same_state(self, tiny: Loaded):
        target = tiny.target
        given: list[bytes] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                language_model,
                "repeated",
                lambda s, n, layout: given.append(s) or repeated(s, n, layout),
            )
            assert target.pretend(Context(TOKENS))
        assert repeated(given[0], 32) == given[0]
        assert len(repeated(given[0], len(TOKENS))) > len(given[0])
        cut = np.random.default_rng(0).integers(0, len(given[0]), 300)
        for end in (0, 7, 8, 23, len(given[0]) - 1, *cut.tolist()):
            with pytest.raises(ValueError, match="state"):
                repeated(given[0][:end], 64)

    @pytest.mark.parametrize(
        "nonsense",
        [
            lambda state, cells, layout: b"",
            lambda state, cells, layout: bytes(len(state)),
            lambda state, cells, layout: repeated(state, cells)[:-1],
            lambda state, cells, layout: repeated(state, cells) + b"x",
            lambda state, cells, layout: repeated(state, cells - 1),
            lambda state, cells, layout: repeated(state[:-1], cells),
        ],
    )
    def test_what_llama_does_not_take_is_not_there(
        self, tiny: Loaded, monkeypatch: pytest.MonkeyPatch, nonsense
    ):
        expected = really(tiny.target, TOKENS)
        monkeypatch.setattr(language_model, "repeated", nonsense)
        assert not tiny.target.pretend(Context(TOKENS[:-1]))
        again = Context(TOKENS[:-1])
        assert score_one(tiny.target, again).fed == len(TOKENS) - 1
        found = next_rows(tiny.target, again.with_tail(TOKENS[-1:]))
        np.testing.assert_array_equal(found, expected)

    def test_too_many_cells_are_not_there(self, tiny: Loaded, monkeypatch):
        assert not tiny.target.pretend(Context(range(3, 600)))  # more than the context
        monkeypatch.setattr(language_model, "_LARGEST_STATE", 1 << 10)
        assert not tiny.target.pretend(Context(TOKENS))
        assert score_one(tiny.target, Context(TOKENS)).fed == len(TOKENS)

    def test_a_probe_leaves_nothing_behind(self, tiny: Loaded):
        expected = really(tiny.target, TOKENS)
        classes = Classes()
        classify(tiny.target, classes, QUICK)
        assert set(classes.inside) == {0, 256}
        assert set(classes.crossing) == {256}
        again = Context(TOKENS[:-1])
        assert score_one(tiny.target, again).fed == len(TOKENS) - 1
        found = next_rows(tiny.target, again.with_tail(TOKENS[-1:]))
        np.testing.assert_array_equal(found, expected)

    def test_calls_compute_the_tokens_that_they_are_timed_for(self, tiny: Loaded):
        """Otherwise a wide call is compared with another wide one, and is the same."""
        for depth in (1, 24, 100, 255):
            with Scratch(tiny.target, depth) as cells:
                for after, width in ((0, 1), (1, 1), (0, 2), (2, 3), (0, 8), (5, 1)):
                    cells.rows(after, width)
                    tokens = tiny.target.snapshot()
                    assert tokens is not None
                    assert len(tokens.tokens) == depth + after + width
                assert not cells.others


@pytest.mark.model
def test_strict_holds_across_a_border_of_the_default_model(
    smollm: Loaded, capsys: pytest.CaptureFixture[str]
):
    """At 256 cells many builds go over to another kernel."""
    target, classes = smollm.target, Classes()
    classify(target, classes, QUICK, deepest=330)
    for depth in (252, 253, 254, 255):
        found, _ = bits(target, depth, QUICK[:3])
        allowed = set((np.flatnonzero(classes.strict(depth)) + 1).tolist())
        assert allowed & set(QUICK[:3]) <= found.same
    text = "The llama is a domesticated South American camelid. " * 30
    prompt = smollm.model.vocabulary.encode(text)[:236].tolist()
    with smollm.session() as session:
        plain = [token.id for token in session.generate(prompt, max_tokens=40)]
    limits = Limits(classes, "strict")
    for draft_max in (1, 2, 5):
        target.reset()
        script = [*prompt, *plain]
        drafter = ScriptedDrafter(script, wrong=0.2, vocab_size=49_000, seed=draft_max)
        with smollm.session([drafter], draft_max, limits=limits) as session:
            said = [token.id for token in session.generate(prompt, max_tokens=40)]
            widths = session.stats.rounds_by_width
        with capsys.disabled():
            print(f"\n{limits.describe((0, 256))}; up to {1 + draft_max}: {widths}")
        assert said == plain
