"""What a bench says of answers: ratios within blocks, means over prompts, intervals."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs_bench.run.answers import Answer
from edgecs_bench.run.statistics import (
    geometric_mean,
    interval,
    mean,
    overall,
    pairs,
    rows,
    spread,
)


def answer(mode: str, seconds: float, block: int, **other: object) -> Answer:
    """An answer of 101 tokens."""
    fields: dict = {
        "category": "qa",
        "id": "a",
        "prompt_tokens": 10,
        "temperature": 0.0,
        "repeat": 0,
        "ttft_ms": 1000.0,
        "tokens": 101,
        "looping": 0,
        "rounds": 60,
        "tested": 80,
        "accepted": 40,
        "compared": 101,
        **other,
    }
    return Answer(mode=mode, decode_ms=1e3 * seconds, block=block, **fields)


def block(number: int, plain: float, fast: float, **other: object) -> list[Answer]:
    """One prompt answered plainly and with a planner."""
    return [
        answer("plain", plain, number, **{**other, "tested": 0, "accepted": 0}),
        answer("planner", fast, number, **other),
    ]


def row(answers: list[Answer], mode: str = "planner") -> dict:
    (found,) = (row for row in rows(answers) if row["mode"] == mode)
    return found


def test_a_row_says_what_its_answers_say():
    forked = {"tokens": 51, "compared": 21, "fork": {"token": 20}, "looping": 30}
    one = block(0, 2.0, 1.0, tiers={"strict": 75, "numeric": 25})
    two = [answer("plain", 4.0, 1, id="b"), answer("planner", 1.0, 1, id="b", **forked)]
    found = row([*one, *two])
    # By the token: the second answer took 0.04 s a token, then 0.02.
    assert found["speedup"] == 2.0
    assert found["spread"] == found["interval"] + [2.0] * 3 == [2.0] * 5
    assert found["speed"] == round(150 / 2, 4)
    assert (found["accepted"], found["tested"], found["tokens"]) == (80, 160, 152)
    assert found["mean_accept_len"] == round(150 / 70, 4)
    assert found["tiers"] == {"numeric": 0.25, "strict": 0.75}
    assert (found["forks"], found["identical"]) == (1, 1)
    assert found["forks_per_1000"] == round(1000 / 122, 4)
    assert found["looping"] == round(30 / 152, 4)
    assert (found["prompts_without_loops"], found["speedup_without_loops"]) == (1, 2.0)
    assert found["joules_per_token"] is None
    whole = [(3 / 101) / (2 / 101), (5 / 101) / (2 / 51)]
    assert found["end_to_end"] == pytest.approx(geometric_mean(whole), abs=1e-4)


def test_plain_decoding_is_exactly_as_fast_as_itself():
    found = row([*block(0, 2.0, 1.0), *block(1, 7.0, 1.0, repeat=1)], "plain")
    assert found["speedup"] == found["end_to_end"] == 1.0
    assert found["interval"] == [1.0, 1.0]


def test_a_prompt_counts_with_the_median_of_its_repeats():
    speeds = [(2.0, 1.0), (2.0, 1.0), (9.0, 0.5)]
    answers = [a for i, (p, s) in enumerate(speeds) for a in block(i, p, s, repeat=i)]
    assert row(answers)["speedup"] == 2.0


def test_a_slow_hour_does_not_count_where_there_is_another():
    steady, drifted = block(0, 2.0, 1.0), block(1, 2.0, 0.5, drifted=True)
    assert row([*steady, *drifted])["speedup"] == 2.0
    assert row(drifted)["speedup"] == 4.0  # better than nothing


def test_one_token_has_no_speed():
    short = block(0, 0.0, 0.0, tokens=1, compared=1, rounds=0)
    found = row([*short, *block(1, 3.0, 1.0, id="b")])
    assert (found["prompts"], found["speedup"]) == (1, 3.0)
    found = row(short)
    for name in ("speedup", "interval", "spread", "speed", "speedup_without_loops"):
        assert found[name] is None, name
    (mode,) = (o for o in overall(short) if o["mode"] == "planner")
    assert mode["geomean"] is mode["worst"] is mode["interval"] is None


def test_a_runtime_that_does_not_count_says_so():
    answers = block(0, 2.0, 1.0)
    answers[1] = replace(answers[1], tested=None)
    found = row(answers)
    assert found["tested"] is found["accepted"] is found["mean_accept_len"] is None


def test_over_all_categories_and_the_worst_of_them():
    answers = [
        *block(0, 4.0, 1.0, planner_us=10.0),
        *block(1, 0.9, 1.0, category="rag", planner_us=30.0),
        *block(2, 1.0, 1.0, category="rag", temperature=0.8, planner_us=99.0),
    ]
    found = {(o["mode"], o["temperature"]): o for o in overall(answers)}
    assert set(found) == {(m, t) for m in ("plain", "planner") for t in (0.0, 0.8)}
    greedy = found["planner", 0.0]
    assert greedy["geomean"] == round(3.6**0.5, 4)
    assert greedy["worst"] == {"category": "rag", "speedup": 0.9}
    assert greedy["planner_us"] == 20.0
    assert found["planner", 0.8]["geomean"] == 1.0


def test_ratios_never_leave_their_block():
    # Two hours, the second at half the speed: the mode is as fast as plain decoding.
    answers = [*block(0, 1.0, 1.0), *block(1, 2.0, 2.0, id="b")]
    assert row(answers)["spread"] == [1.0] * 5
    lonely = [answer("planner", 1.0, 5)]
    assert pairs(lonely) == {}  # its plain answer is not there


RATIOS = st.lists(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=5), min_size=1, max_size=9
)


@given(RATIOS)
def test_the_interval_is_the_same_every_time_and_inside_the_spread(ratios):
    low, high = interval([ratios])
    assert [low, high] == interval([ratios])
    flat = [x for several in ratios for x in several]
    assert min(flat) - 1e-3 <= low <= high <= max(flat) + 1e-3


@given(RATIOS, st.floats(0.5, 2))
def test_everything_scales_with_the_speed(ratios, scale):
    scaled = [[scale * x for x in several] for several in ratios]
    assert mean(scaled) == pytest.approx(scale * mean(ratios))
    for one, other in zip(interval([scaled]), interval([ratios]), strict=True):
        assert one == pytest.approx(scale * other, abs=1e-3)


def test_the_interval_surrounds_the_mean_and_shrinks():
    few = [[1.0], [1.5], [2.0]]
    low, high = interval([few])
    assert low < mean(few) < high
    narrow = interval([few * 20])
    assert narrow[1] - narrow[0] < high - low
    assert interval([]) is spread([]) is mean([]) is None


def test_the_interval_holds_one_for_a_mode_against_itself():
    random, inside = np.random.default_rng(0), 0
    for _ in range(40):
        noise = np.exp(random.normal(0, 0.03, (4, 6, 5)))
        low, high = interval([prompts.tolist() for prompts in noise])
        inside += low <= 1 <= high
        assert high - low < 0.06
    assert inside >= 30  # nine of ten on average


@given(RATIOS)
def test_a_single_category_is_its_own_mean(ratios):
    logs = np.log([median(several) for several in ratios])
    assert mean(ratios) == pytest.approx(float(np.exp(logs.mean())))
