"""Cost curves that a machine's drift cannot bend."""

from __future__ import annotations

import itertools

import pytest

from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import WIDEST
from edgecs.errors import Cancelled
from edgecs.testing.fakes import TableModel
from edgecs.tuning.cost_sweep import RETRIES, places, sweep, tiles
from tests.tuning.tuning_fakes import TILED, TimedModel


def measured(model: TimedModel, repeats: int = 7) -> dict[int, float]:
    return sweep(model, 10, list(TILED), repeats, clock=model.clock).seconds


def test_a_quiet_machine_gives_the_curve_itself():
    model = TimedModel(TILED)
    assert measured(model, 1) == pytest.approx(TILED)
    assert sorted(set(model.widths)) == sorted(TILED)


def test_widths_are_taken_in_turn_there_and_back():
    model = TimedModel(TILED)
    measured(model, 2)
    wide = [width for width in model.widths if width > 1]
    there = list(TILED)[1:]
    assert wide == [*there, *reversed(there)]


class Stumbling(TimedModel):
    """A single token right after a wider call takes longer."""

    def rows(self, request: Request) -> Rows:
        before = self.widths[-1] if self.widths else 1
        self.clock.now += 0.005 if before > 1 and not len(request.draft) else 0.0
        return super().rows(request)


def test_one_slow_call_does_not_make_an_anchor():
    model = Stumbling(TILED)
    curve = sweep(model, 10, list(TILED), 2, clock=model.clock)
    assert curve.discarded == 0
    assert curve.seconds == pytest.approx(TILED)


@pytest.mark.parametrize("slower", [0.5, 2.0])
def test_steady_drift_and_outliers_do_not_bend_a_curve(slower: float):
    # From the first call to the last the machine's pace changes by a factor of two.
    end = 7 * (sum(TILED.values()) + 15 * TILED[1])
    model = TimedModel(
        TILED, lambda now: 1 + (slower - 1) * min(1.0, now / end), outliers=0.07
    )
    found = measured(model)
    relative = {n: s / found[1] for n, s in found.items()}
    assert relative == pytest.approx({n: s / TILED[1] for n, s in TILED.items()}, 0.04)
    assert tiles(found) == tiles(TILED) == {3: 4, 5: 8, 6: 8, 7: 8}


def test_a_frame_in_which_the_machine_changed_is_timed_again():
    # A burst much shorter than a frame, within the second frame of the first round.
    burst = TimedModel(TILED, lambda now: 1.6 if 0.35 < now < 0.52 else 1.0)
    curve = sweep(burst, 10, list(TILED), 1, clock=burst.clock)
    assert 0 < curve.discarded < RETRIES
    assert curve.unsure == 0
    assert curve.seconds == pytest.approx(TILED, 0.02)


def test_a_machine_that_never_rests_is_measured_nevertheless():
    paces = itertools.cycle([1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5])
    restless = TimedModel(TILED, lambda now: next(paces))
    curve = sweep(restless, 10, list(TILED), 2, clock=restless.clock)
    assert (curve.discarded, curve.repeats) == (RETRIES, 2)
    assert 0.25 < curve.unsure <= 1
    assert set(curve.seconds) == set(TILED)


def test_only_clear_differences_make_a_tile():
    assert tiles({1: 1.0, 2: 1.5, 3: 1.47, 4: 2.0, 5: 1.9}) == {4: 5}


def test_all_calls_fit_the_context():
    for n_ctx in (WIDEST + 1, 80, 128, 544, 543):
        for depth, widths in places(n_ctx):
            assert depth + max(widths) <= n_ctx
    assert [depth for depth, _ in places(544)] == [64, 512]
    small = TableModel(50, n_ctx=20)
    small.max_draft = 5
    assert set(sweep(small, 12, range(1, 33), 1).seconds) == set(range(1, 7))


def test_a_sweep_stops_on_request():
    model = TableModel(50)
    model.cancel.set()
    with pytest.raises(Cancelled):
        sweep(model, 10, [1, 2], 1)
