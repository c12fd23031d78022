"""The steps of a tuning, and how long the rest of it will take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.testing.fakes import TableModel
from edgecs.tuning.comparison import chains
from edgecs.tuning.plan import Pace, Step, planned_steps
from tests.tuning.tuning_fakes import SHORT, Watch, tuned_table


@pytest.mark.parametrize("names", [[], ["twin"], ["twin", "other"]])
@pytest.mark.parametrize("n_ctx", [128, 600, 2048])
def test_the_plan_has_every_step_in_its_order(names: list[str], n_ctx: int):
    said: list[str] = []
    tuned_table(
        SpeculationProfile(TableModel(50, n_ctx=n_ctx)), *names, progress=said.append
    )
    steps = list(
        planned_steps(n_ctx, SHORT, names, chains(names), ["code", "question"])
    )
    assert said == [step.text for step in steps]
    assert all(step.work > 0 for step in steps)


works = st.lists(st.floats(1, 1000), min_size=1, max_size=20)


@given(works, st.floats(1e-3, 10), st.data())
def test_an_estimate_is_right_where_the_guesses_are(work, single: float, data):
    watch = Watch()
    steps = [Step(str(i), n) for i, n in enumerate(work)]
    pace = Pace(steps, single, clock=watch)
    for i, step in enumerate(steps):
        pace.begin(step.text)
        inside = data.draw(st.floats(0, 0.9))
        watch.now += inside * step.work * single
        done = sum(work[:i]) + inside * step.work
        assert pace.left == pytest.approx((sum(work) - done) * single, abs=1e-6)
        assert pace.share == pytest.approx(done / sum(work))
        watch.now += (1 - inside) * step.work * single


@given(works, st.lists(st.floats(0.01, 100), min_size=20, max_size=20), st.data())
def test_an_estimate_does_not_jump_however_wrong_the_guesses(work, slowness, data):
    """It may grow while a step takes too long; steps may be left out."""
    watch = Watch()
    steps = [Step(str(i), n) for i, n in enumerate(work)]
    pace = Pace(steps, 1.0, clock=watch)
    share, left = pace.share, pace.left
    for step, slower in zip(steps, slowness, strict=False):
        if not data.draw(st.booleans()):
            continue
        pace.begin(step.text)
        assert share - 1e-9 <= pace.share <= 1
        assert 0 <= pace.left <= left + 1e-6
        began = pace.share
        watch.now += slower * step.work
        pace.begin("what is no step")
        share, left = pace.share, pace.left
        assert share >= began
