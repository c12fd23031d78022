"""Probes find exactly the widths that keep the bits, and leave nothing behind.

`Kernels` is a model whose rows tell which kernel computed them and the cells before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
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
from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import SETTLED, WIDEST, CostModel
from edgecs.decoding.exactness import FIRST_BORDER, Classes, range_of
from edgecs.errors import Cancelled, NoNumbers
from edgecs.testing.fakes import CachingModel, TableModel
from tests.calibrate.kernel_tables import Kernels, Table, tables

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
