"""The planner is hardly ever slower than plain decoding, and often faster."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import YOUNG
from edgecs.drafters.maxgram import MaxGram
from edgecs.planning.acceptance import stated
from edgecs_bench.hardware.curves import Curve, curve
from edgecs_bench.simulation.replay import Player, know, oracle
from tests.planning.recorded_answers import (
    HOSTILE,
    Hostile,
    answer,
    asked,
    keeps_its_budget,
    noise,
    relative_pace,
    repeating,
    widths,
)
from tests.planning.timed_models import FLAT, STEEP, curves


@given(
    curve=curves(),
    kinds=st.lists(st.sampled_from(sorted(HOSTILE)), min_size=1, max_size=2),
    step=st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.5]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=20)
def test_hostile_drafters_cost_two_percent_and_a_few_calls(
    curve: Curve, kinds: list[str], step: float, seed: int
):
    random = np.random.default_rng(seed)
    who = {f"{i} {kind}": HOSTILE[kind] for i, kind in enumerate(kinds)}
    player = Player(curve, list(who), pace=relative_pace(curve, step))
    calls = asked(player)
    keeps_its_budget(player)
    spent = plain = 0.0
    for _ in range(12):
        spent += player.play(answer(noise(150, random), who, random=random))
        plain += 149 * curve.round(1)
    assert spent <= 1.02 * plain + 12 * curve.round(1)
    assert all(calls[name] for name in who)


@given(curve=curves(), share=st.floats(0.1, 0.6), seed=st.integers(0, 9999))
@settings(max_examples=10)
def test_a_drafter_that_tosses_a_coin_costs_five_percent_at_most(
    curve: Curve, share: float, seed: int
):
    random = np.random.default_rng(seed)
    coin = Hostile(lambda at: bool(random.random() < share), None)
    player = Player(curve, ["coin"], pace=relative_pace(curve, 0.1))
    calls = asked(player)
    keeps_its_budget(player)
    spent = plain = 0.0
    for _ in range(12):
        spent += player.play(answer(noise(150, random), {"coin": coin}, random=random))
        plain += 149 * curve.round(1)
    assert spent <= 1.05 * plain
    assert calls["coin"]


def tempting(random: np.random.Generator, size: int) -> list[int]:
    """A text that repeats a phrase up to where it goes on differently."""
    phrase, text = noise(12, random), []
    while len(text) < size:
        text += [*phrase[: random.integers(3, 12)], *noise(1, random)]
    return text[:size]


def few_words(random: np.random.Generator, size: int) -> list[int]:
    """A text without sense in which every short piece was there before."""
    text: list[int] = random.integers(0, 4, size).tolist()
    return text


@given(
    curve=curves(),
    text=st.sampled_from([tempting, few_words]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=15)
def test_texts_that_mislead_max_gram_cost_six_percent_at_most(
    curve: Curve, text: Callable[..., list[int]], seed: int
):
    random = np.random.default_rng(seed)
    player = Player(curve, [], sources=[MaxGram()])
    seen = widths(player)
    keeps_its_budget(player)
    spent = plain = 0.0
    for _ in range(12):
        prompt = text(random, int(random.integers(1, 60)))
        spent += player.play(answer(text(random, 150), prompt=prompt))
        plain += 149 * curve.round(1)
    assert spent <= 1.06 * plain
    assert max(seen) > 1  # something was drafted


def test_a_repeating_text_on_a_flat_curve_is_near_the_oracle():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    player = Player(flat, [], sources=[MaxGram()])
    spent = least = plain = 0.0
    for i in range(9):
        trace = answer(repeating(random, 300))
        took = player.play(trace)
        if i >= 3:  # it is warm
            spent += took
            least += oracle(know(trace), flat)
            plain += 299 * flat.round(1)
    assert least / spent > 0.8
    assert plain / spent > 1.8


@pytest.mark.parametrize("relative", [FLAT, {1: 1, 2: 1.4, 4: 1.7, 8: 2.2, 16: 2.9}])
def test_widths_that_nobody_measured_are_found(relative: dict[int, float]):
    wide = curve("wide", 20.0, relative, 0.2)
    player = Player(wide, [], sources=[MaxGram()])
    keeps_its_budget(player)
    round_and_round = list(range(10, 25)) * 20
    for _ in range(3):
        player.play(answer(round_and_round))
    seen = widths(player)
    took = player.play(answer(round_and_round))
    assert oracle(know(answer(round_and_round)), wide) / took > 0.8
    assert max(seen) > 16


GOOD = Hostile(lambda at: True, 0.9)


def test_a_good_cheap_drafter_is_taken_into_use():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    player = Player(flat, ["good"], pace=relative_pace(flat, 0.1))
    took = [player.play(answer(noise(150, random), {"good": GOOD})) for _ in range(8)]
    assert 149 * flat.round(1) / took[-1] > 3
    assert player.planner.neural[0].status == ("in use, 100% of its tokens are right")


def test_a_drafter_that_turned_good_is_found_again():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    player = Player(flat, ["late"], pace=relative_pace(flat, 0.1))
    wrong = {"late": HOSTILE["always wrong"]}
    for _ in range(12):
        player.play(answer(noise(150, random), wrong))
    assert player.planner.neural[0].status.startswith("parked: ")
    took = [player.play(answer(noise(150, random), {"late": GOOD})) for _ in range(12)]
    assert 149 * flat.round(1) / took[-1] > 3


def test_a_better_drafter_is_tried_while_another_one_is_in_use():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    who = {"better": GOOD, "cheaper": Hostile(lambda at: at % 3 > 0, 0.6)}
    player = Player(flat, list(who), pace=relative_pace(flat, 0.02))
    player.models[0]._pace *= 6
    better, cheaper = player.planner.neural
    better.costs.measured(0, {1: 0.12 * 20e-3, 2: 0.2 * 20e-3, 4: 0.36 * 20e-3})
    for _ in range(12):
        cheaper.learn(stated([0.6], [None]), 1, False)  # it has been known for long
    took = [player.play(answer(noise(150, random), who)) for _ in range(20)]
    assert better.status.startswith("in use")
    assert 149 * flat.round(1) / took[-1] > 3.2


def test_a_drafter_is_not_tried_beyond_its_context():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    player = Player(flat, ["small"], pace=relative_pace(flat, 0.02))
    (model,) = player.models
    model.n_ctx = 64
    calls, score = Counter[int](), model.score

    def look(requests: Sequence[Request]) -> list[Rows]:
        calls[sum(map(len, requests[0][:2]))] += 1
        return score(requests)

    model.score = look  # type: ignore[method-assign]
    for _ in range(12):
        player.play(answer(noise(150, random), {"small": HOSTILE["always wrong"]}))
    assert 30 < max(calls) <= 64


def test_a_parked_drafter_is_told_in_numbers():
    steep, random = curve("steep", 20.0, STEEP, 0.2), np.random.default_rng(0)
    player = Player(steep, ["slow"], pace=relative_pace(steep, 0.5))
    (neural,) = player.planner.neural
    trace = answer(noise(150, random), {"slow": GOOD})
    player.play(trace)
    assert neural.status == (
        "parked: 10.0 ms a token, no acceptance would be enough, "
        "it was hardly tried yet"
    )
    depth, times, rate = neural.parked
    assert "beside" not in neural.status
    neural.parked = depth, times, 1.01 * rate
    assert "no acceptance would be enough to beat another drafter, " in (neural.status)
    flat = curve("flat", 20.0, FLAT, 0.2)
    player = Player(flat, ["wrong"], pace=relative_pace(flat, 0.5))
    (neural,) = player.planner.neural
    for _ in range(16):
        text = noise(150, random)
        player.play(answer(text, {"wrong": HOSTILE["always wrong"]}))
    (needs, has) = re.fullmatch(
        r"parked: 10\.0 ms a token, it would need (\d+) % of its tokens right, "
        r"it has (\d+)%",
        neural.status,
    ).groups()
    assert int(has) < int(needs) - 20
    # That is where drafts of it begin to pay.
    n = np.arange(1, 9)
    times = (flat.times[1:9] + flat.overhead + 10.0 * n) / flat.round(1)
    pays = [((1 + np.cumsum((a / 100) ** n)) / times).max() > 1 for a in range(101)]
    assert abs(pays.index(True) - int(needs)) <= 1


TILED = {1: 1.0, 2: 1.5, 3: 2.0, 4: 1.6, 5: 2.4, 6: 2.6, 8: 2.8, 12: 4.0, 16: 4.2}


@pytest.mark.parametrize("seed", range(3))
def test_a_tile_is_filled(seed: int):
    tiled, random = curve("tiled", 20.0, TILED, 0.2), np.random.default_rng(seed)
    player = Player(tiled, [], sources=[MaxGram()])
    draft, seen = player.planner.draft, Counter[int]()

    def look(context, choose, most):
        gathered = draft(context, choose, most)
        if most >= 3:  # near its end an answer has no room for a fourth token
            seen[1 + len(gathered.draft)] += 1
        return gathered

    player.planner.draft = look  # type: ignore[method-assign]
    for _ in range(6):
        player.play(answer(repeating(random, 200)))
    assert seen[4] > 20
    assert seen[3] <= YOUNG  # when it is measured
