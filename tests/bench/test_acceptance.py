"""Acceptance of shared noise, ratios and blocks: formulas against draws and bounds."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.sampling.chain import chooser
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import TableModel
from edgecs_bench.simulation.acceptance import (
    main,
    measured,
    ratio_rate,
    shared_rate,
    simulated,
    summed_up,
)

laws = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=4, max_size=4).filter(
    any
)


@given(p=laws, q=laws)
@settings(deadline=None)
def test_shared_noise_is_between_its_bounds_and_its_formula(p, q):
    p, q = (np.array(law) / sum(law) for law in (p, q))
    best, rate = ratio_rate(p, q), shared_rate(p, q)
    both = np.flatnonzero((p > 0) & (q > 0))
    slow = sum(1 / np.maximum(p / p[v], q / q[v]).sum() for v in both)
    assert rate == pytest.approx(slow)
    assert best / (2 - best) - 1e-9 <= rate <= best + 1e-9  # (1 - TV) / (1 + TV)


def test_draws_with_shared_noise_agree_as_often_as_the_formula_says():
    row, small = TableModel(6, 1).law([0]), TableModel(6, 2).law([0])
    tokens, same, draws = np.zeros(1, np.int32), 0, 4000
    for seed in range(draws):
        choose = chooser(Sampling(temperature=1.0, seed=seed), 6)
        same += choose(row, tokens) == choose(small, tokens)
    rate = shared_rate(choose.law(row, tokens), choose.law(small, tokens))
    assert abs(same / draws - rate) < 4 * (rate * (1 - rate) / draws) ** 0.5


def test_equal_models_accept_everything():
    model = TableModel(8, 1)
    choose = chooser(Sampling(temperature=1.0, seed=3), 8)
    found = summed_up([measured(model, model, choose, [1, 2], 8, 4)], 4)
    assert (found.positions, found.drafts) == (8, 2)
    assert found[1:3] + found[5:] == pytest.approx((1, 1, 4, 4))


def test_random_laws_order_the_rules():
    found = summed_up([simulated(50, 4)], 4)
    assert 0.5 < found.shared < found.ratio < 0.9
    assert found.tokens < found.blocks < 4


def test_the_command_needs_models_or_random_laws():
    done = CliRunner().invoke(main, ["--random", "20", "--json"])
    assert done.exit_code == 0
    assert '"blocks"' in done.output
    done = CliRunner().invoke(main, ["-m", "x"])
    assert done.exit_code == 2
    assert "give -m, --draft and --prompts, or --random" in done.output
