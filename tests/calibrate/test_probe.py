"""Probes find exactly the widths that keep the bits, and leave nothing behind.

`Kernels` is a model whose rows tell which kernel computed them and the cells before.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.calibrate import probe
from edgecs.calibrate.probe import (
    QUICK,
    Scratch,
    bits,
    classify,
    curve,
    points,
    settling,
)
from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request, Rows, score_one
from edgecs.costs.cost_model import SETTLED, WIDEST, CostModel
from edgecs.decoding.exactness import FIRST_BORDER, Classes, Limits, range_of
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.llama import language_model
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.scratch_kv import repeated
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, NoNumbers
from edgecs.runtime.loader import Loaded, load
from edgecs.testing.fakes import (
    CachingModel,
    ScriptedDrafter,
    TableModel,
    write_random_gguf,
)

Kernel = Callable[[int, int], int]
"""(tokens in a call, start of the range that its last cell is in) -> a kernel."""


class Kernels(CachingModel):
    """Rows show which kernel computed them and the cells before them.

    noise: largest change of a logit; rows and cells of kernel 0 have none. Prompts are
    read by kernel 0. calls: (cells before, tokens) of all other calls.
    """

    def __init__(
        self,
        vocab_size: int,
        kernel: Kernel,
        *,
        noise: float = 1.0,
        seed: int = 0,
        n_ctx: int = 640,
    ) -> None:
        super().__init__(vocab_size, seed, n_ctx=n_ctx)
        self.calls: list[tuple[int, int]] = []
        self._kernel, self._noise = kernel, noise
        self._by: list[int] = []  # the kernel of every cell

    def rows(self, request: Request) -> Rows:
        rows = super().rows(request)
        start, width = len(self.cells) - rows.fed, 1 + len(request.draft)
        kernel = 0
        if start and rows.fed == width:
            kernel = self._kernel(width, range_of(len(self.cells) - 1)[0])
            self.calls.append((start, width))
        self._by[start:] = [kernel] * rows.fed
        noisy = [
            row + self.change(len(self.cells) - len(request.draft) + i)
            for i, row in enumerate(rows.logits)
        ]
        return Rows(np.stack(noisy), rows.fed)

    def change(self, cells: int) -> np.ndarray:
        """What kernels change in the row that follows so many cells."""
        by = bytes(self._by[:cells])
        if not any(by):
            return np.zeros(self.vocab_size, np.float32)
        digest = hashlib.blake2b(by + cells.to_bytes(4), digest_size=8).digest()
        random = np.random.default_rng(int.from_bytes(digest))
        change = random.uniform(-self._noise, self._noise, self.vocab_size)
        return change.astype(np.float32)


class Table:
    """A random kernel for every width and range; `plain` of ten are kernel 0."""

    def __init__(self, seed: int, plain: int) -> None:
        random = np.random.default_rng(seed)
        self.kernels = (random.random((WIDEST + 1, 32)) >= plain / 10).astype(int)

    def __call__(self, width: int, start: int) -> int:
        return int(self.kernels[width, start.bit_length()])

    def same(self, depth: int, width: int) -> bool:
        """Whether a call after `depth` cells gives the bits of one token at a time."""
        alone = {self(1, range_of(depth + i)[0]) for i in range(width)}
        return alone == {self(width, range_of(depth + width - 1)[0])}

    def __repr__(self) -> str:
        return f"{self.kernels[:, [0, 9, 10, 11]].tolist()}"


tables = st.builds(Table, st.integers(0, 2**32), st.integers(3, 9))
some_widths = st.sets(st.integers(2, WIDEST), min_size=1, max_size=6).map(sorted)
near_borders = st.integers(1, 600) | st.sampled_from([253, 254, 255, 256, 510, 511])


class TestBits:
    @given(tables, near_borders, some_widths)
    def test_the_class_is_found(self, table: Table, depth: int, widths: list[int]):
        model = Kernels(5, table)
        found, timed = bits(model, depth, widths)
        assert found.same == {width for width in widths if table.same(depth, width)}
        assert found.other == set(widths) - found.same
        assert [(call.depth, call.width) for call in timed] == model.calls
        assert all(call.seconds > 0 for call in timed)
        assert model.cells == []

    @given(st.integers(0, WIDEST))
    def test_widths_beyond_what_a_call_can_verify_are_left_out(self, most: int):
        model = Kernels(5, Table(0, 5))
        model.max_draft = most
        found, timed = bits(model, 30, QUICK)
        assert found.same | found.other == {n for n in QUICK if n <= most + 1}
        assert all(call.width <= most + 1 for call in timed)

    def test_no_width_is_begun_when_the_time_is_up(self):
        model = Kernels(5, Table(0, 5))
        found, timed = bits(model, 30, QUICK, until=-1.0)
        assert (found.same, found.other, timed) == (frozenset(), frozenset(), [])
        assert model.cells == model.calls == []


class TestPoints:
    @given(st.integers(1, 40_000))
    def test_every_range_and_every_border_is_looked_at(self, n_ctx: int):
        found, last = points(n_ctx), n_ctx - WIDEST - 2
        assert found == sorted(found, key=lambda point: point[0])
        inside = {s for depth, s in found if depth + WIDEST < range_of(s)[1]}
        borders = {range_of(s)[1] for d, s in found if d + WIDEST >= range_of(s)[1]}
        starts = [s for s in (0, *(256 << i for i in range(8))) if max(1, s) <= last]
        assert inside == set(starts)
        assert borders == {range_of(s)[1] for s in starts if range_of(s)[1] - 1 <= last}
        for depth, start in found:
            assert 1 <= depth <= last
            assert range_of(depth)[0] == start

    @given(st.integers(1, 40_000))
    def test_across_a_border_is_across_for_every_width(self, n_ctx: int):
        for depth, start in points(n_ctx):
            end = range_of(start)[1]
            if depth + WIDEST >= end:
                assert depth < end < depth + 2

    def test_long_ranges_are_looked_at_across_a_multiple_of_256(self):
        inside = [d for d, s in points(9000) if s >= 512 and d + 1 < range_of(s)[1]]
        assert [depth % FIRST_BORDER for depth in inside] == [255] * 5


class TestClassify:
    @given(tables, st.integers(40, 1400), st.sampled_from([QUICK, (2, 5), (3, 4, 32)]))
    @settings(max_examples=60)
    def test_no_width_is_allowed_that_changes_a_bit(self, table, n_ctx, widths):
        classes, model = Classes(), Kernels(5, table, n_ctx=n_ctx)
        classify(model, classes, widths)
        assert model.cells == []
        told: list[int] = []
        classify(model, classes, widths, progress=told.append)
        assert told == []  # everything is known
        for depth in range(1, n_ctx):
            for width in np.flatnonzero(classes.strict(depth)) + 1:
                assert width == 1 or table.same(depth, int(width))

    @given(tables, st.integers(600, 1400))
    @settings(max_examples=60)
    def test_where_some_width_passes_the_class_is_exact(self, table: Table, n_ctx: int):
        table.kernels[2] = table.kernels[1] = 0
        classes = Classes()
        classify(Kernels(5, table, n_ctx=n_ctx), classes, QUICK)
        for depth in range(1, n_ctx - WIDEST - 2):
            start, end = range_of(depth)
            for width in QUICK:
                crosses = depth + width > end
                if crosses and end > n_ctx - WIDEST - 2:
                    continue  # too near the end of the context to be looked at
                allowed = bool(classes.strict(depth)[width - 1])
                inside = table.same(start or 1, width)
                assert allowed == (inside and table.same(depth, width))

    @given(tables, st.integers(0, 160))
    @settings(max_examples=60)
    def test_what_was_cut_short_is_finished_later(self, table: Table, ticks: int):
        once, twice = Classes(), Classes()
        classify(Kernels(5, table), once, QUICK)
        with pytest.MonkeyPatch.context() as patch:
            clock = SimpleNamespace(perf_counter=count().__next__)
            patch.setattr(probe, "time", clock)
            classify(Kernels(5, table), twice, QUICK, until=ticks)
        cut = {**twice.inside, **twice.crossing}
        assert all(found.same or found.other for found in cut.values())
        classify(Kernels(5, table), twice, QUICK)
        assert [self.widths(c) for c in twice.inside.values()] == [
            self.widths(c) for c in once.inside.values()
        ]
        assert twice.crossing.keys() == once.crossing.keys()

    @staticmethod
    def widths(found) -> tuple[frozenset[int], frozenset[int]]:
        return found.same, found.other

    def test_nothing_is_asked_when_the_time_is_up(self):
        model, classes, told = Kernels(5, Table(0, 5)), Classes(), []
        classify(model, classes, QUICK, until=-1.0, progress=told.append)
        assert classes == Classes()
        assert model.calls == told == []

    def test_no_depth_beyond_the_deepest_is_asked(self):
        model, told = Kernels(5, Table(0, 5), n_ctx=3000), []
        classify(model, Classes(), QUICK, deepest=700, progress=told.append)
        assert told == [depth for depth, _ in points(700)]
        assert max(start + width for start, width in model.calls) <= 700

    def test_where_no_width_passes_two_are_asked_about_deeper(self):
        classes = Classes()
        classify(Kernels(5, lambda width, start: width), classes, QUICK)
        assert classes.inside[0].other == set(QUICK)
        assert classes.inside[256].other == {2, 4}

    def test_costs_learn_from_the_calls(self):
        costs = CostModel()
        classify(Kernels(5, Table(0, 5)), Classes(), QUICK, costs)
        times = costs.seconds(0)
        assert set((np.flatnonzero(np.isfinite(times)) + 1).tolist()) == {1, *QUICK}

    def test_a_model_that_cannot_draft_is_not_asked(self):
        model, classes = Kernels(5, Table(0, 5)), Classes()
        model.max_draft = 0
        classify(model, classes, QUICK)
        assert classes == Classes()

    @given(st.integers(0, 40), tables)
    def test_a_request_to_stop_is_heard_and_leaves_the_model_empty(
        self, after: int, table: Table
    ):
        model = Kernels(5, table)
        score, calls = model.score, []

        def stopping(requests: Sequence[Request]) -> list[Rows]:
            if len(calls) == after:
                model.cancel.set()
            calls.append(1)
            return score(requests)

        model.score = stopping
        with pytest.raises(Cancelled):
            classify(model, Classes(), QUICK)
        assert model.cells == []
        assert len(calls) <= after + 2  # the next cells may have been there already


def test_a_model_is_empty_also_when_filling_it_failed():
    model = CachingModel(5)
    model.fail_next = True
    with pytest.raises(RuntimeError, match="failed"):
        curve(model, 8, [1], repeats=1)
    assert model.cells == []


def test_a_curve_has_the_widths_that_a_call_can_have():
    model = TableModel(5)
    model.max_draft = 3
    assert list(curve(model, 8, [1, 4, 5], repeats=2)) == [1, 4]


class Unsettled(CachingModel):
    """Its calls take a second; after a wider one 0.5 s and then 0.25 s longer."""

    now, singles = 0.0, 2

    def rows(self, request: Request) -> Rows:
        self.now += (
            1.0 if len(request.draft) else (1.5, 1.25, 1.0)[min(self.singles, 2)]
        )
        self.singles = 0 if len(request.draft) else self.singles + 1
        return super().rows(request)


def test_a_wider_call_is_seen_in_the_calls_after_it(monkeypatch):
    model = Unsettled(5)
    clock = SimpleNamespace(perf_counter=lambda: model.now)
    monkeypatch.setattr(probe, "time", clock)
    assert settling(model, 8, 4, repeats=3) == 0.75
    assert model.cells == []
    assert curve(model, 8, [1, 2], repeats=4) == {1: 1.0, 2: 1.0}
    model.max_draft = 2
    assert settling(model, 8, 4, repeats=3) == 0


def test_a_curve_has_single_tokens_that_have_settled():
    model, calls = CachingModel(5), list[int]()
    score = model.score

    def noting(requests: Sequence[Request]) -> list[Rows]:
        calls.append(len(requests[0].draft) + 1)
        return score(requests)

    model.score = noting
    assert list(curve(model, 8, [1, 2, 4], repeats=3)) == [1, 2, 4]
    wide = [at for at, width in enumerate(calls) if width > 1]
    assert sum(calls[at - 1] == 1 for at in wide) == 2  # of six wider calls
    for at in wide:
        if at + 1 < len(calls) and calls[at + 1] == 1:
            assert calls[at + 1 : at + 1 + SETTLED + 1] == [1] * (SETTLED + 1)


def test_scratch_calls_are_what_they_say():
    model = Kernels(5, Table(0, 5))
    with Scratch(model, 10) as cells:
        assert cells.rows(0, 4).shape == (4, 5)
        assert cells.rows(2, 1).shape == (1, 5)
        assert len(model.cells) == 13
    assert model.calls == [(10, 4), (12, 1)]
    assert model.cells == []


ids = st.lists(st.integers(0, 2), max_size=12)


@given(ids, ids, ids)
def test_replaced_cells_are_compared_anew(before, after, asked):
    """Also for a context that had been found to agree with those before."""
    cache, context = PrefixCache(lambda length: True), Context(asked)
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
        with pytest.raises(ValueError, match="goes on after its last layer"):
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
                lambda s, n: given.append(s) or repeated(s, n),
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
            lambda state, cells: b"",
            lambda state, cells: bytes(len(state)),
            lambda state, cells: repeated(state, cells)[:-1],
            lambda state, cells: repeated(state, cells) + b"x",
            lambda state, cells: repeated(state, cells - 1),
            lambda state, cells: repeated(state[:-1], cells),
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
                    tokens = tiny.target.cells()
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


def test_times_of_deep_calls_are_not_taken_for_those_of_shallow_ones():
    class Noting(CostModel):
        def observe(self, width, depth, seconds, after=SETTLED) -> None:
            depths.append(depth)

    depths: list[int] = []
    classify(TableModel(50, n_ctx=1200), Classes(), QUICK, Noting())
    assert depths
    assert max(depths) < 256


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (np.nan, slice(3, 4)),
        (np.inf, slice(3, 4)),
        (np.nan, slice(None)),
        (np.inf, slice(None)),
        (-np.inf, slice(None)),
    ],
)
def test_a_model_without_numbers_is_not_measured(value: float, columns: slice):
    model = CachingModel(5, n_ctx=640)
    law = model.law

    def spoilt(prefix):
        row = law(prefix)
        row[columns] = value
        return row

    model.law = spoilt
    for measure in (
        lambda: bits(model, 24, QUICK),
        lambda: curve(model, 24, (1, 4), 2),
        lambda: classify(model, Classes(), QUICK),
        lambda: settling(model, 24, 4, 2),
    ):
        with pytest.raises(NoNumbers, match="no token a probability"):
            measure()
        assert model.cells == []


def test_rows_in_which_only_one_token_is_possible_have_bits():
    class Sure(Kernels):
        def law(self, prefix):
            row = super().law(prefix)
            row[1:] = -np.inf
            return row

    found, _ = bits(Sure(5, lambda width, start: width > 2), 24, QUICK)
    assert found.same == {2}
    assert found.other == set(QUICK) - {2}
