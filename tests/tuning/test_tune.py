"""Tuning: curves that drift cannot bend, chains that win on their merits, a profile."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgecs.calibrate import speculation_profile
from edgecs.calibrate.profile import Key, Profile, Profiles, fingerprint
from edgecs.calibrate.speculation_profile import Speculation
from edgecs.core.context import Tokens
from edgecs.core.draft import LanguageModel, Request, Rows
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.cascade import Cascade, NamedModel
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import FlashAttention, KVType, LoadOptions
from edgecs.errors import Cancelled, ConfigError, EdgecsError, OutOfMemory
from edgecs.planning.acceptance import stated
from edgecs.runtime.loader import LoadedDrafter
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless, TableModel, write_random_gguf
from edgecs.text.detokenizer import Tokenizer
from edgecs.tuning.comparison import (
    MAG,
    PLAIN,
    Chain,
    Played,
    Trial,
    chains,
    choose,
    compare,
    verdict,
)
from edgecs.tuning.cost_sweep import RETRIES, places, sweep, tiles
from edgecs.tuning.estimate import best_draft, expected, needed
from edgecs.tuning.plan import Pace, Step, planned_steps
from edgecs.tuning.quantisations import (
    Quantisation,
    promised_quantisations,
    quantisation,
)
from edgecs.tuning.report import Report
from edgecs.tuning.runner import Entrant, Stage, agreeing
from edgecs.tuning.settings import Otherwise, Pair, otherwise, settings_to_try
from edgecs.tuning.tuner import Effort, Tuned, keep, tune
from edgecs_cli.options.shared import pace_bar
from tests.conftest import Outcome, Screen, before_calls, interrupt_at

Edgecs = Callable[..., Outcome]
Slowness = Callable[[float], float]

# Seconds by width, with tiles that end at 4 and at 8.
TILED = {1: 0.0100, 2: 0.0156, 3: 0.0208, 4: 0.0168, 5: 0.0320, 6: 0.0330, 7: 0.0345}
TILED |= {8: 0.0289, 12: 0.0397, 16: 0.0417, 32: 0.0800}


class Watch:
    """Shows the time that models say has gone by."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedModel(TableModel):
    """Its calls take as long as a curve says, on a clock of its own.

    slowness: of the machine at a time. outliers: share of calls that take three times
    as long.
    """

    def __init__(
        self,
        curve: dict[int, float],
        slowness: Slowness = lambda now: 1.0,
        *,
        outliers: float = 0.0,
        n_ctx: int = 512,
        seed: int = 0,
        clock: Watch | None = None,
    ) -> None:
        super().__init__(50, seed, n_ctx=n_ctx)
        self.clock = clock or Watch()
        self.widths: list[int] = []
        self._curve, self._slowness, self._outliers = curve, slowness, outliers
        self._random = np.random.default_rng(1)

    def rows(self, request: Request) -> Rows:
        width = 1 + len(request.draft)
        self.widths.append(width)
        unlucky = 3.0 if self._random.random() < self._outliers else 1.0
        seconds = self._curve[width] * self._slowness(self.clock.now) * unlucky
        self.clock.now += seconds
        return super().rows(request)


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


def times(**seconds: float) -> np.ndarray:
    """By width, as in times(w1=1.0, w2=1.2)."""
    every = np.full(WIDEST, np.inf)
    for name, value in seconds.items():
        every[int(name[1:]) - 1] = value
    return every


def test_what_a_drafter_needs_is_what_makes_a_round_pay():
    two = times(w1=1.0, w2=1.2)
    # One token of it: (1 + a) / (1.2 + 0.3) beats 1.02 from a = 0.53 on.
    assert needed(two, 0.3) == 0.54
    assert best_draft(two, 0.3, 0.54) == pytest.approx((1.54, 1.5))
    assert best_draft(two, 0.3, 0.5) == (1.0, 1.0)
    assert needed(two, 0.79) is None
    # A call of four has room for two drafted tokens, or for three.
    four = times(w1=1.0, w4=1.1)
    assert best_draft(four, 0.2, 0.5) == pytest.approx((1.75, 1.5))
    assert best_draft(four, 0.1, 0.9) == pytest.approx((3.439, 1.4))


def test_expected_speeds_follow_from_curves():
    dear, free = times(w1=1.0, w2=3.0), times(**{f"w{n}": 1.0 for n in range(1, 33)})
    assert expected(free, False) == expected(dear, True) == 1.0
    assert expected(free, True) > 1.2
    assert expected(free, False, [(0.1, 0.0)]) == 1.0
    # Eight tokens, all right, for eight steps.
    assert expected(free, False, [(0.1, 1.0)]) == pytest.approx(9 / 1.8)
    assert expected(free, True, [(0.1, 1.0), (0.5, 0.1)]) >= 9 / 1.8


class Machine:
    """Answers at the speeds it is told, at a pace that it is told.

    speeds: of chains, relative to plain decoding, by kind. pace: by number of answer.
    """

    def __init__(
        self,
        speeds: dict[Chain, dict[str, float]],
        pace: Callable[[int], float] = lambda i: 1.0,
    ) -> None:
        self.played: list[Chain] = []
        self._speeds, self._pace = speeds, pace
        self.kinds = list(next(iter(speeds.values())))

    @property
    def prompts(self) -> dict[str, Tokens]:
        return {k: np.array([i], dtype=np.int32) for i, k in enumerate(self.kinds)}

    def play(self, chain: Chain, prompt: Tokens) -> Played:
        self.played.append(chain)
        speed = self._speeds.get(chain, {}).get(self.kinds[int(prompt[0])], 1.0)
        return Played(25.0 * speed * self._pace(len(self.played)), [1] * 20)


BIG, BOTH = Chain(("big",), False), Chain(("big",), True)
SPEEDS = {
    MAG: {"code": 1.3, "question": 1.0},
    BIG: {"code": 1.1, "question": 1.1},
    BOTH: {"code": 1.6, "question": 1.12},
}


@pytest.mark.parametrize(
    "pace",
    [
        lambda i: 1.0,
        lambda i: 1 - 0.02 * i,  # hot at the end
        lambda i: 0.6 if i > 6 else 1.0,  # a neighbour that comes and stays
    ],
)
def test_ratios_do_not_depend_on_the_pace_of_the_machine(pace: Callable[[int], float]):
    machine = Machine(SPEEDS, pace)
    found = compare(list(SPEEDS), machine.prompts, machine.play)
    for trial in found.trials:
        assert trial.ratios == pytest.approx(SPEEDS[trial.chain], 0.01)
    assert choose(found.trials).chain == BOTH
    for (before, chain), (_, after) in itertools.pairwise(
        itertools.pairwise(machine.played)
    ):
        assert chain == PLAIN or (before, after) == (PLAIN, PLAIN)


def test_a_ratio_over_a_change_of_pace_is_thrown_away():
    steady = Machine(SPEEDS)
    assert compare(list(SPEEDS), steady.prompts, steady.play).discarded == 0
    machine = Machine(SPEEDS, lambda i: 1.0 if i < 4 else 0.5)
    found = compare(list(SPEEDS), machine.prompts, machine.play)
    assert (found.discarded, found.unsure) == (1, 0)
    restless = Machine(SPEEDS, lambda i: 1.0 if i % 4 < 2 else 0.5)
    assert compare([MAG], restless.prompts, restless.play).unsure == 2


def test_one_unlucky_answer_is_asked_for_again():
    unlucky = Machine(SPEEDS, lambda i: 0.7 if i == 2 else 1.0)
    found = compare([MAG], unlucky.prompts, unlucky.play)
    assert unlucky.played.count(MAG) == 3
    assert found.trials[0].ratios["code"] == pytest.approx((1.3 * 0.7 + 1.3) / 2)
    slow = Machine({MAG: {"code": 0.9}})
    assert compare([MAG], slow.prompts, slow.play).trials[0].ratios == {"code": 0.9}
    assert slow.played.count(MAG) == 3


class Terse(Endless):
    """Ends every answer with its second token."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = frozenset(range(50))


def test_answers_of_a_few_tokens_do_not_count():
    tuned = tuned_table(Speculation(TableModel(50, n_ctx=300)), tokenizer=Terse())
    (trial,) = tuned.compared.trials
    assert (trial.ratios, trial.speedup, trial.mean) == ({}, None, 0.0)
    assert tuned.chosen is trial
    assert "not measured" in tuned.verdict(trial)
    assert tuned.table()[0]["measured"] is None


def test_a_chain_that_does_harm_is_not_chosen():
    mag = Trial(MAG, {"code": 1.1, "question": 1.0})
    harmful = Trial(BOTH, {"code": 2.0, "question": 0.96})
    assert choose([mag, harmful]) is mag
    assert verdict(mag, mag) == "chosen"
    assert verdict(harmful, mag) == "0.96 of plain decoding on a question task"
    noisy = Trial(BOTH, {"code": 2.0, "question": 0.97})
    assert choose([mag, noisy]) is noisy


def test_max_gram_stays_where_nothing_is_faster():
    mag = Trial(MAG, {"code": 0.9, "question": 1.0})
    level = Trial(BIG, {"code": 0.98, "question": 0.99})
    assert choose([mag, level]) is mag
    assert verdict(mag, mag).startswith("stays")
    assert "no faster than plain decoding" in verdict(level, mag)


def test_a_drafter_must_bring_more_than_noise():
    mag, both = Trial(MAG, {"code": 1.30}), Trial(BOTH, {"code": 1.31})
    assert choose([mag, both]) is mag
    assert verdict(both, mag) == "1.31 on average, mag has 1.30 and is simpler"
    assert verdict(mag, both) == "1.30 on average, big <- mag has 1.31"
    assert choose([mag, Trial(BOTH, {"code": 1.34})]).chain == BOTH


@pytest.mark.parametrize(
    ("step", "right", "best"),
    [(0.05, 0.9, "small <- mag"), (0.9, 0.9, "mag"), (0.05, 0.1, "mag")],
)
def test_the_search_finds_the_chain_that_the_curves_make_best(step, right, best):
    curve = times(**{f"w{n}": 1 + 0.1 * (n - 1) for n in range(1, 33)})
    tried = chains(["small"])
    rates = {
        c: expected(curve, c.mag, [(step, right)][: len(c.drafters)]) for c in tried
    }
    speeds = {c: {"code": rate, "question": rate} for c, rate in rates.items()}
    machine = Machine(speeds, lambda i: 1 - 0.01 * i)
    found = compare(tried, machine.prompts, machine.play)
    assert choose(found.trials).chain.name == best


def test_chains_go_from_simple_to_nested():
    names = [chain.name for chain in chains(["big", "small"])]
    assert names[:3] == ["mag", "big", "big <- mag"]
    assert names[-1] == "big <- small <- mag"
    assert len(names) == len(set(names)) == 6
    assert [c.parts for c in chains([])] == [["mag"]]
    assert PLAIN.name == "plain"


PROMPT = np.arange(30, dtype=np.int32) % 7


@pytest.fixture
def stage() -> Stage:
    """Fakes whose times are known, the drafter being cheap."""
    known = Speculation(TableModel(50))
    known.costs.measured(0, TILED)
    costs = CostModel()
    costs.measured(0, {1: 0.001, 32: 0.002})
    agreed = [True, True, True, False] * 20
    small = Entrant("small", TableModel(50, seed=1), costs, agreed)
    return Stage(known, Endless(), [small], tokens=40)


SMALL = Chain(("small",), False)


def test_every_chain_gives_the_answer_of_plain_decoding(stage: Stage):
    answer = TableModel(50).greedy(PROMPT, 40)
    for chain in [PLAIN, *chains(["small"])]:
        assert stage.play(chain, PROMPT).tokens == answer


def test_a_chain_is_drafted_by_its_parts_alone(stage: Stage, monkeypatch):
    seen: list[list[str]] = []

    class Watched(Session):
        def close(self) -> None:
            seen.append(self.chain[1:])
            super().close()

    monkeypatch.setattr("edgecs.tuning.runner.Session", Watched)
    every = [PLAIN, *chains(["small"])]
    for chain in every:
        stage.play(chain, PROMPT)
    assert seen == [chain.parts for chain in every]


def test_chains_learn_for_themselves(stage: Stage):
    before = stage.known.calibration.state()
    assert before["stated"] == {}
    stage.play(SMALL, PROMPT)
    small = stage.learnt().state()
    assert list(small["stated"]) == ["small"]
    assert small["sources"] == before["sources"]
    stage.play(MAG, PROMPT)
    both = stage.learnt().state()
    assert both["sources"] != before["sources"]
    assert both["stated"] == small["stated"]
    assert stage.known.calibration.state() == before


def test_what_was_learnt_of_other_drafters_before_stays():
    known = Speculation(TableModel(50))
    known.costs.measured(0, TILED)
    known.calibration.drafter("absent").learn(stated([0.5], [None]), 1, False)
    before = known.calibration.state()["stated"]
    assert Stage(known, Endless()).learnt().state()["stated"] == before
    stage = Stage(known, Endless(), tokens=8)
    stage.play(MAG, PROMPT)
    assert stage.learnt().state()["stated"] == before


def test_a_chain_says_nothing_about_who_is_not_in_it():
    known = Speculation(TableModel(50))
    known.costs.measured(0, TILED)
    known.calibration.drafter("first").learn(stated([0.5], [None]), 1, False)
    before = known.calibration.state()["stated"]["first"]
    costs = CostModel()
    costs.measured(0, {1: 0.001, 32: 0.002})
    models = {"first": TableModel(50), "second": TableModel(50, seed=1)}
    entrants = [Entrant(n, m, costs, [True] * 50) for n, m in models.items()]
    stage = Stage(known, Endless(), entrants, tokens=40)
    for name in models:
        stage.play(Chain((name,), False), PROMPT)
    assert stage.learnt().state()["stated"]["first"] != before


def test_trying_chains_stops_on_request(stage: Stage):
    stage.known.target.cancel.set()
    with pytest.raises(Cancelled):
        stage.play(MAG, PROMPT)


@pytest.mark.parametrize(("agreed", "writes"), [(True, True), (False, False)])
def test_a_drafter_writes_from_the_start_if_it_is_known_to_be_right(agreed, writes):
    known = Speculation(TableModel(50))
    known.costs.measured(0, TILED)
    costs = CostModel()
    costs.measured(0, {1: 0.001, 32: 0.002})
    twin = TimedModel(dict.fromkeys(range(1, 65), 0.001))
    stage = Stage(
        known, Endless(), [Entrant("small", twin, costs, [agreed] * 50)], tokens=8
    )
    stage.play(SMALL, PROMPT)
    assert bool(twin.widths) == writes


def test_agreement_is_what_a_drafter_would_have_said():
    target, other = TableModel(50), TableModel(50, seed=1, sharpness=0.1)
    answer = target.greedy(PROMPT, 100)
    assert agreeing(target, target, PROMPT, answer) == [True] * 100
    texts = [[*PROMPT.tolist(), *answer[:i]] for i in range(100)]
    alone = [int(other.law(text).argmax()) for text in texts]
    same = [a == b for a, b in zip(alone, answer, strict=True)]
    assert agreeing(other, target, PROMPT, answer) == same
    short = TableModel(50, n_ctx=100)  # one call of 64 fits behind the prompt
    assert agreeing(short, target, PROMPT, answer) == [True] * 64


KEY = Key(
    model="model-Q4_K_M",
    fingerprint="0" * 32,
    build="0.3.36",
    device="AMD EPYC",
    layers=0,
    threads=2,
    flash_attention="auto",
    type_k="f16",
    type_v="f16",
    repack=True,
    kernels="llama",
    mmap=True,
    huge_pages=True,
    n_batch=512,
)


SHORT = Effort(repeats=1, tokens=12, widths=(2, 4))


def tuned_table(
    known: Speculation,
    *names: str,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """A short tuning of fakes; the first drafter is the target's twin."""
    drafters = [
        LoadedDrafter(name, TableModel(50, seed), name, None, lambda: None, f"f-{name}")
        for seed, name in enumerate(names)
    ]
    prompts = {"code": PROMPT, "question": PROMPT[:20]}
    return tune(
        known, tokenizer or Endless(), drafters, prompts, SHORT, progress=progress
    )


def line(first: float, more: float) -> dict[int, float]:
    """Seconds by width, to as wide as a call can be."""
    return {n: first + more * (n - 1) for n in range(1, 65)}


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The clock of everything that is timed."""
    watch = Watch()
    monkeypatch.setitem(Cascade.__init__.__kwdefaults__, "clock", watch)
    return watch


def simulated(
    watch: Watch, target: dict[int, float], twin: dict[int, float], slowness: Slowness
) -> tuple[Speculation, Tuned]:
    """A tuning of a target and a drafter that is always right."""
    model = TimedModel(target, slowness, n_ctx=200, clock=watch)
    drafter = TimedModel(twin, slowness, clock=watch)
    loaded = LoadedDrafter("twin", drafter, "", None, lambda: None, "f-twin")
    known = Speculation(model)
    prompts = {"code": PROMPT, "question": PROMPT[:20]}
    effort = Effort(repeats=3, tokens=40, widths=(2, 4))
    return known, tune(known, Endless(), [loaded], prompts, effort, clock=watch)


def hotter(now: float) -> float:
    return 1 + 0.01 * now


def test_tuning_finds_a_drafter_that_pays(virtual: Watch):
    _, tuned = simulated(virtual, line(0.01, 0.0002), line(0.001, 0.0), hotter)
    by_name = {trial.chain.name: trial for trial in tuned.compared.trials}
    assert tuned.chosen is by_name["twin"]
    assert tuned.chosen.mean > 3
    (twin,) = tuned.drafters
    assert (twin.right, tuned.unsteady) == (1.0, False)
    assert twin.curve.seconds[1] / tuned.curves[0].seconds[1] == pytest.approx(0.1, 0.1)
    assert twin.needs is not None
    assert 0 < twin.needs < 0.5


@pytest.mark.parametrize(
    ("target", "twin"),
    [
        (line(0.01, 0.0002), line(0.012, 0.0)),  # as slow as the target
        (line(0.01, 0.01), line(0.001, 0.0)),  # a call of two takes two calls
    ],
)
def test_tuning_finds_that_a_drafter_cannot_pay(virtual: Watch, target, twin):
    _, tuned = simulated(virtual, target, twin, hotter)
    assert tuned.chosen.chain == MAG
    assert tuned.chosen.harmless
    assert tuned.drafters[0].needs is None
    assert "could not pay" in tuned.drafters[0].standing


def test_numbers_of_a_busy_machine_count_for_little(virtual: Watch):
    target, twin = line(0.01, 0.0002), line(0.001, 0.0)
    known, tuned = simulated(virtual, target, twin, hotter)
    assert known.costs.rounds[-1] > 1
    assert not tuned.unsteady
    paces = itertools.cycle([1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5])
    known, tuned = simulated(virtual, target, twin, lambda now: next(paces))
    assert known.costs.rounds[-1] == 1
    assert tuned.unsteady


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "profiles")


def opened(profiles: Profiles) -> Speculation:
    return Speculation(CachingModel(50, n_ctx=300), key=KEY, profiles=profiles)


def test_what_was_tuned_is_there_the_next_time(profiles: Profiles):
    known = opened(profiles)
    tuned = tuned_table(known, "twin", "other")
    assert list(known.calibration.state()["stated"]) == ["twin", "other"]
    assert known.limits.classes is known.classes
    twin, other = tuned.drafters
    assert (twin.right, other.right < 0.3) == (1.0, True)
    assert keep(known, KEY, tuned)
    again = opened(profiles)
    assert again.profile is not None
    assert again.profile.tuned is not None
    kept = CostModel.from_state(known.costs.state())  # rounds count for less
    assert again.costs.state() == kept.state()
    assert again.classes == known.classes
    assert again.classes.inside[0].same == {2, 4}
    assert again.calibration.state() == known.calibration.state()
    chain = again.profile.chain
    assert set(chain["drafters"]) == {"f-twin", "f-other"}
    assert chain["right"] == {"f-twin": 1.0, "f-other": round(other.right, 4)}
    assert chain["chosen"] == tuned.chosen.chain.parts
    assert [row["chain"] for row in chain["table"]][-1] == ["twin", "other", "mag"]
    planner = again.planner(
        [NamedModel("x", TableModel(50))], fingerprints={"x": "f-twin"}
    )
    assert planner.writers[0].costs.state() == chain["drafters"]["f-twin"]


def test_tuning_again_keeps_the_curves_of_other_drafters(profiles: Profiles):
    for name in ("first", "second"):
        known = opened(profiles)
        assert keep(known, KEY, tuned_table(known, name))
    profile, _ = profiles.load(KEY)
    assert profile is not None
    assert set(profile.chain["drafters"]) == {"f-first", "f-second"}
    assert len(profile.chain["table"]) == 3


class Shares:
    """Says in turn how much others took."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)

    @property
    def share(self) -> float:
        return self._shares.pop(0) if len(self._shares) > 1 else self._shares[0]


class Told:
    """Says that all is quiet."""

    times = 0

    def __call__(self, others: object) -> None:
        self.times += 1


@pytest.fixture
def share(monkeypatch) -> Callable[..., list[str]]:
    """Tunes while others take these shares, one a look; what was said."""
    monkeypatch.setattr(speculation_profile, "BUSY", 0.15)
    monkeypatch.setattr("edgecs.tuning.tuner._SOON", 0.0)
    said: list[str] = []

    def tuned(*shares: float) -> list[str]:
        monkeypatch.setattr("edgecs.tuning.tuner.Others", lambda: Shares(*shares))
        try:
            tuned_table(Speculation(TableModel(50, n_ctx=300)), progress=said.append)
        except EdgecsError as error:
            said.append(str(error))
        return said

    return tuned


def test_a_busy_machine_ends_a_tuning_after_the_first_calls(share):
    timed, why = share(0.2)
    assert timed.startswith("timing 32 widths")
    assert "took 20% of the processors" in why


def test_a_machine_that_gets_busy_ends_a_tuning_too(share):
    said = share(0.1, 0.1, 0.1, 0.1, 0.2)
    assert "question: mag" in said
    assert "took 20% of the processors" in said[-1]


def test_a_little_that_others_compute_is_no_harm(share):
    assert share(0.15)[-1] == "question: mag"


def test_what_is_over_in_a_moment_ends_no_tuning(monkeypatch):
    monkeypatch.setattr(speculation_profile, "BUSY", 0.15)
    monkeypatch.setattr("edgecs.tuning.tuner.Others", lambda: Shares(0.1))
    monkeypatch.setattr("edgecs.tuning.tuner.busy", told := Told())
    tuned_table(Speculation(TableModel(50, n_ctx=300)))
    assert told.times == 1  # at the end


@pytest.mark.parametrize("names", [[], ["twin"], ["twin", "other"]])
@pytest.mark.parametrize("n_ctx", [128, 600, 2048])
def test_the_plan_has_every_step_in_its_order(names: list[str], n_ctx: int):
    said: list[str] = []
    tuned_table(Speculation(TableModel(50, n_ctx=n_ctx)), *names, progress=said.append)
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


def test_a_context_without_room_is_refused_before_anything_is_measured():
    target = TimedModel(TILED, n_ctx=40)
    with pytest.raises(ConfigError, match="takes a context of 42 tokens.*holds 40"):
        tuned_table(Speculation(target))
    assert target.widths == []


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", ("smollm2-135m-instruct", "Q4_1")),
        (
            "qwen2.5-coder-1.5b-instruct-q4_k_m",
            ("qwen2.5-coder-1.5b-instruct", "Q4_K_M"),
        ),
        ("Llama-3-8B-UD-IQ2_XXS", ("llama-3-8b", "IQ2_XXS")),
        ("m-bf16-00001-of-00003", ("m", "BF16")),
        ("m-bf16-00002-of-00003", ("m-bf16-00002-of-00003", "")),
        ("qwen-q4you", ("qwen", "Q4YOU")),
        ("quiet", ("quiet", "")),
    ],
)
def test_names_of_files_tell_model_and_quantisation(stem, parts):
    assert quantisation(stem) == parts


def test_other_quantisations_promise_what_their_profiles_say(
    tmp_path: Path, profiles: Profiles
):
    names = ["model-Q4_K_M", "model-Q4_0", "model-Q8_0", "model-Q2_K", "other-Q4_0"]
    paths = [tmp_path / f"{name}.gguf" for name in names]
    for path in paths:
        path.write_text(path.name)
    costs = CostModel()
    costs.measured(0, {1: 0.01, 4: 0.011})
    for path, change in zip(paths[1:4], ({}, {"device": "M4"}, {}), strict=True):
        key = replace(KEY, model=path.stem, fingerprint=fingerprint(path), **change)
        tuned = None if "Q2" in path.name else "2025-01-31"
        assert profiles.save(Profile(key, costs.state(), tuned=tuned))
    key = replace(KEY, fingerprint=fingerprint(paths[0]))
    found = promised_quantisations(
        paths[0], [*paths, tmp_path / "gone-Q4_0.gguf"], key, profiles
    )
    assert [other.name for other in found] == ["Q2_K", "Q4_0", "Q8_0"]
    untuned, known, elsewhere = (other.promise for other in found)
    assert untuned is elsewhere is None
    assert known is not None
    assert known[0] == pytest.approx(100)
    assert known[1] > 110


class TestSettings:
    slow: ClassVar = {1: 0.01, 4: 0.02, 16: 0.04}
    usual = LoadOptions(n_ctx=512)

    def measured(
        self, other: dict[int, float], slowness: Slowness = lambda now: 1.0
    ) -> Otherwise:
        now = TimedModel(self.slow, slowness)

        @contextmanager
        def open_with(options: LoadOptions) -> Iterator[LanguageModel]:
            assert options.n_ctx == 512
            yield TimedModel(other, slowness, clock=now.clock)

        ways = [next(settings_to_try(self.usual, 2, 2))]
        (found,) = otherwise(now, ways, open_with, 3, clock=now.clock)
        return found

    def test_calls_take_turns_so_that_drift_decides_nothing(self):
        faster = {n: seconds / 2 for n, seconds in self.slow.items()}
        found = self.measured(faster, lambda now: 1 + 2 * now)
        assert list(found.seconds) == [64, 479]
        for pairs in found.seconds.values():
            assert list(pairs) == [1, 4, 16]
            for pair in pairs.values():
                assert pair.ratio == pytest.approx(0.5, rel=0.2)
        assert found.tells
        assert found.advice().startswith("--flash-attn off: a token takes 0.")
        assert "an answer may differ" in found.advice()

    @given(st.floats(0.5, 2), st.floats(0.5, 2))
    def test_what_is_no_faster_is_not_advised(self, start: float, deep: float):
        way = next(settings_to_try(self.usual, 2, 2))
        seconds = {64: {1: Pair(1, start)}, 1024: {1: Pair(1, deep)}}
        found = Otherwise(way, seconds)
        assert found.tells == (min(start, deep) <= 0.95)
        if start > 1.06 and deep < 0.94:
            assert f"behind 1024 tokens, but {start:.2f} behind 64" in found.advice()

    @given(
        st.sampled_from(get_args(FlashAttention)),
        st.sampled_from(get_args(KVType)),
        st.sampled_from(get_args(KVType)),
        st.booleans(),
        st.integers(1, 16),
        st.integers(1, 32),
    )
    def test_all_ways_are_possible_and_change_one_thing(
        self, flash, type_k, type_v, repack: bool, threads: int, logical: int
    ):
        assume(flash != "off" or type_v in ("f32", "f16", "bf16"))
        usual = LoadOptions(
            flash_attention=flash, type_k=type_k, type_v=type_v, repack=repack
        )
        ways = list(settings_to_try(usual, threads, logical))
        assert len({way.flags for way in ways}) == len(ways)
        for way in ways:
            assert way.options != usual
            assert way.options.threads >= 0
            assert way.options.threads != threads or "-t" not in way.flags
        # What was asked to stay as it is cannot be laid out anew: it may crash.
        assert not any(way.options.repack and not repack for way in ways)

    def test_what_cannot_be_loaded_is_left_out_and_said(self):
        said: list[str] = []

        def open_with(options: LoadOptions):
            raise OutOfMemory("no room")

        ways = list(settings_to_try(self.usual, 2, 4))
        now = TimedModel(self.slow)
        assert otherwise(now, ways, open_with, 1, said.append) == []
        assert said[1::2] == [f"{w.flags} was not measured: no room" for w in ways]
        assert now.widths == []


@cache
def tuned_pair() -> tuple[Speculation, Tuned]:
    known = Speculation(TableModel(50, n_ctx=300))
    return known, tuned_table(known, "twin", "other")


rates = st.none() | st.tuples(st.floats(1, 100), st.floats(1, 100))


@given(
    st.lists(rates, max_size=4),
    st.lists(st.floats(0.5, 1.5), max_size=4),
    st.lists(st.floats(0.5, 3), min_size=2, max_size=2) | st.just([]),
    st.booleans(),
    st.booleans(),
)
def test_a_verdict_is_five_lines_and_says_what_to_do(
    promises, ratios, speeds, chosen_drafts: bool, kept: bool
):
    known, tuned = tuned_pair()
    ways = itertools.cycle(settings_to_try(LoadOptions(), 2, 2))
    others = [Otherwise(next(ways), {64: {1: Pair(1, ratio)}}) for ratio in ratios]
    files = [Quantisation(f"Q{i}", Path("x"), p) for i, p in enumerate(promises)]
    chain = Chain(("twin",), True) if chosen_drafts else MAG
    trial = Trial(chain, dict(zip(("code", "question"), speeds, strict=False)))
    report = Report(
        "my model.gguf",
        ["my twin.gguf", "other.gguf"],
        KEY,
        known,
        replace(tuned, chosen=trial),
        files,
        others,
        kept,
    )
    lines = list(report.verdict())
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith(f"Chosen: target <- {chain.name}")
    assert ("x as fast as plain decoding" in lines[0]) == bool(speeds)
    assert ("no other is faster" in lines[0]) == bool(speeds and not trial_pays(trial))
    assert "bits of plain decoding" in lines[1]
    text = "\n".join(lines)
    for other in others:
        assert not other.tells or other.setting.flags in text
    if kept and chosen_drafts and not tuned.unsteady:
        assert lines[-1] == (
            "Next: edgecs generate -m 'my model.gguf' --draft 'my twin.gguf'"
        )
    assert all(len(line) < 400 for line in lines)


def trial_pays(trial: Trial) -> bool:
    return trial.harmless and trial.mean >= 1


def tune_cli(edgecs: Edgecs, model: Path, *options: object) -> Outcome:
    few = ("-c", 1024, "-t", 1, "--quick", "--repeats", 1, "-n", 8)
    return edgecs("tune", "-m", model, *few, *options)


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    assert (outcome.code, outcome.out) == (code, ""), outcome
    (line,) = outcome.err.splitlines()
    for part in parts:
        assert part in line


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    return write_random_gguf(tmp_path / "small.gguf", seed=1)


def saved(cache: Path) -> list[Path]:
    return sorted((cache.parent / "profiles").glob("*.json"))


def test_json_has_curves_chains_and_the_choice(
    edgecs: Edgecs, tiny_gguf: Path, small_gguf: Path, cache: Path
):
    drafts = ("--draft", small_gguf, "--draft", small_gguf)
    outcome = tune_cli(edgecs, tiny_gguf, "--json", "-q", *drafts)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    report = json.loads(outcome.out)
    assert report["model"]["model"] == "tiny"
    assert [curve["depth"] for curve in report["curves"]] == [64, 512]
    assert list(report["curves"][0]["ms"]) == [str(n) for n in range(1, 33)]
    assert set(report["exact"]["inside"]) == {"0", "256", "512"}
    assert [d["name"] for d in report["drafters"]] == ["small", "small-2"]
    assert set(report["drafters"][0]["curve"]["ms"]) >= {"1", "2", "8", "16"}
    assert [row["chain"] for row in report["chains"]] == [
        ["mag"],
        ["small"],
        ["small", "mag"],
        ["small-2"],
        ["small-2", "mag"],
        ["small", "small-2", "mag"],
    ]
    for row in report["chains"]:
        assert set(row["by_kind"]) == set(report["plain"]["measured"])
        assert row["verdict"]
        assert row["expected"] > 0
    flags = [way["flags"] for way in report["settings"]]
    assert flags[0] == "--flash-attn off"
    assert "-ctk q8_0 -ctv q8_0" not in flags  # its heads are too small for that
    for way in report["settings"]:
        assert [at["depth"] for at in way["depths"]] == [64, 991]
        assert list(way["depths"][0]["ms"]) == ["1", "4", "16"]
    assert report["chosen"] in [row["chain"] for row in report["chains"]]
    assert report["kept"] is True
    assert len(saved(cache)) == 1


def test_the_report_is_for_people(edgecs: Edgecs, tiny_gguf: Path, small_gguf: Path):
    options = ("--draft", small_gguf, "--repeats", 4)
    brief = tune_cli(edgecs, tiny_gguf, *options)
    assert brief.code == 0
    assert brief.err == ""  # a pipe; a terminal has a bar
    assert len(brief.out.splitlines()) <= 5
    assert brief.out.startswith("Chosen: target <- ")
    outcome = tune_cli(edgecs, tiny_gguf, *options, "-v")
    assert outcome.code == 0
    assert outcome.out.startswith("Chosen: target <- ")
    assert "64 tokens deep, medians of 4" in outcome.out
    assert "512 tokens deep, medians of 2" in outcome.out
    assert "timing 32 widths after 64 tokens" in outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["tokens", "ms", "relative", "must", "be", "right"] in lines
    assert sum(line[:1] == ["32"] for line in lines) == 1
    way = "--flash-attn off  991 tokens "
    assert sum(line.strip().startswith(way) for line in outcome.out.splitlines()) == 1
    for text in ("small <- mag  ", "plain  ", "small: ", "Chosen: target <- "):
        assert text in outcome.out
    assert "ms a token" in outcome.out


def test_a_terminal_has_a_bar(edgecs: Edgecs, tiny_gguf: Path, monkeypatch):
    shown: list[str] = []
    states: list[tuple[float, float]] = []

    @contextmanager
    def bar(state):
        yield lambda text: (shown.append(text), states.append(state()))
        states.append(state())

    monkeypatch.setattr("edgecs_cli.commands.tune.pace_bar", bar)
    monkeypatch.setattr("edgecs_cli.commands.tune.moves", lambda stream: True)
    for option in ("-q", "-v"):
        assert tune_cli(edgecs, tiny_gguf, option).code == 0
    assert not shown
    outcome = tune_cli(edgecs, tiny_gguf)
    assert (outcome.code, outcome.err) == (0, "")
    assert shown[0] == "timing 32 widths after 64 tokens"
    assert any(text.startswith("trying --flash-attn") for text in shown)
    shares, lefts = zip(*states, strict=True)
    assert shares[0] < 0.01
    assert 0.9 < shares[-1] <= 1
    assert list(shares) == sorted(shares)
    assert all(left > 0 for left in lefts)


def test_a_bar_is_gone_at_the_end(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with pace_bar(lambda: (0.5, 42.0)) as show:
        show("timing \x1b[2Jx")
    text = screen.getvalue()
    assert "timing ␛[2Jx" in text
    assert "about 40 s left" in text
    assert "\x1b[2Jx" not in text
    assert text.endswith("\x1b[1A\x1b[2K")  # a line up, and that line wiped


def test_what_a_busy_machine_says_is_not_kept(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch
):
    monkeypatch.setattr(speculation_profile, "BUSY", -1.0)
    for options in ((), ("--json",), ("-q",)):
        outcome = tune_cli(edgecs, tiny_gguf, *options)
        one_line(outcome, 1, "other programs took", "nothing was kept", "end what")
    assert saved(cache) == []
    monkeypatch.setattr(speculation_profile, "BUSY", 1.0)
    assert tune_cli(edgecs, tiny_gguf).code == 0
    (path,) = saved(cache)
    before = path.read_bytes()
    monkeypatch.setattr(speculation_profile, "BUSY", -1.0)
    assert tune_cli(edgecs, tiny_gguf).code == 1
    assert path.read_bytes() == before


@pytest.fixture
def shipped(small_gguf: Path, monkeypatch) -> Path:
    """A drafter that comes with every model."""
    for module in ("edgecs_cli.commands.tune", "edgecs.runtime.builder"):
        monkeypatch.setattr(f"{module}.shipped_for", lambda _: small_gguf)
    return small_gguf


@pytest.mark.parametrize("parts", [["mag"], ["small", "mag"]])
def test_generate_does_what_tune_chose(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, shipped: Path, monkeypatch, parts
):
    def choosing(trials: list[Trial]) -> Trial:
        return next(trial for trial in trials if trial.chain.parts == parts)

    monkeypatch.setattr("edgecs.tuning.tuner.choose", choosing)
    outcome = tune_cli(edgecs, tiny_gguf, "--json")
    report = json.loads(outcome.out)
    assert [row["chain"] for row in report["chains"]] == [["mag"], ["small", "mag"]]
    assert report["chosen"] == parts
    ask = ("generate", "-m", tiny_gguf, "-p", "a", "-n", 4, "-c", 1024, "-t", 1, "-v")
    err = edgecs(*ask).err
    assert f"drafts: target <- {' <- '.join(parts)} <- bigram, planned" in err
    date = json.loads(saved(cache)[0].read_text())["tuned"][:10]
    left = f"drafter small.gguf: left out, tuned on {date}: " in err
    assert left == ("small" not in parts)
    assert "drafts: target <- mag <- bigram," in edgecs(*ask, "--draft", "none").err
    given = edgecs(*ask, "--draft", shipped).err
    assert "drafts: target <- small <- mag <- bigram," in given
    assert "left out" not in given


def test_what_is_given_is_tried_and_nothing_else(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, shipped: Path, tmp_path: Path
):
    other = write_random_gguf(tmp_path / "other.gguf", seed=2)
    for drafts, names in ((("--draft", "none"), []), (("--draft", other), ["other"])):
        report = json.loads(tune_cli(edgecs, tiny_gguf, "--json", *drafts).out)
        assert [drafter["name"] for drafter in report["drafters"]] == names


def test_generate_finds_what_tune_measured(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch
):
    probed: list[object] = []
    monkeypatch.setattr(
        "edgecs.calibrate.speculation_profile.classify",
        lambda *a, **k: probed.append(a),
    )
    ask = ("generate", "-m", tiny_gguf, "-p", "a", "-n", 4, "-c", 512, "-t", 1)
    assert edgecs(*ask).code == 0
    assert probed
    probed.clear()
    assert tune_cli(edgecs, tiny_gguf).code == 0
    (path,) = saved(cache)
    before = json.loads(path.read_text())
    assert before["tuned"]
    assert set(before["costs"]["seconds"]) == {str(n) for n in range(1, 33)}
    assert edgecs(*ask).code == 0
    assert not probed
    after = json.loads(path.read_text())
    assert (after["tuned"], after["chain"]) == (before["tuned"], before["chain"])


@pytest.mark.parametrize("name", ["costs.png", "costs.SVG"])
def test_a_plot_is_drawn(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    starts = {"costs.png": b"\x89PNG", "costs.SVG": b"<?xml"}
    path.write_bytes(starts[name] + b" the one before")
    assert tune_cli(edgecs, tiny_gguf, "--plot", path).code == 0
    assert path.read_bytes().startswith(starts[name])
    assert b"the one before" not in path.read_bytes()


@pytest.fixture
def no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured."""

    def refuse(number: int) -> None:
        raise AssertionError("the model was called")

    before_calls(monkeypatch, refuse)


def test_a_plot_without_matplotlib_is_refused_first(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, no_calls, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = tune_cli(edgecs, tiny_gguf, "--plot", tmp_path / "a.png")
    one_line(outcome, 2, 'pip install "edgecs[plot]"')


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("none/a.png", ["none/a.png cannot be written: No such file"]),
        ("a.png", ["a.png cannot be written: it is a folder"]),
        ("a.gif", [".png or .svg", "a.gif"]),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_first(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, no_calls, name, parts
):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.png").mkdir()
    one_line(tune_cli(edgecs, tiny_gguf, "--plot", tmp_path / name), 2, *parts)
    assert [p.name for p in tmp_path.glob("*.png")] == ["a.png"]


def test_a_model_that_is_missing_leaves_no_plot(
    edgecs: Edgecs, tmp_path: Path, no_calls
):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "a.png"
    missing = tune_cli(edgecs, tmp_path / "m.gguf", "--plot", plot)
    one_line(missing, 3, "there is no file")
    assert not plot.exists()


@pytest.mark.parametrize("number", [1, 30, 100, 180])
def test_ctrl_c_keeps_the_old_profile(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch, number: int
):
    assert tune_cli(edgecs, tiny_gguf).code == 0
    (path,) = saved(cache)
    before = path.read_bytes()
    calls = interrupt_at(monkeypatch, number)
    outcome = tune_cli(edgecs, tiny_gguf, "-q")
    assert len(calls) >= number
    one_line(outcome, 130, "stopped")
    assert path.read_bytes() == before
    assert saved(cache) == [path]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_very_end_keeps_nothing(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch
):
    def interrupted(*args, **kwargs):
        found = otherwise(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr("edgecs_cli.commands.tune.otherwise", interrupted)
    one_line(tune_cli(edgecs, tiny_gguf, "-q"), 130, "nothing was kept")
    assert saved(cache) == []


def test_a_model_that_cannot_rewind_decodes_plainly(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, no_calls, monkeypatch
):
    monkeypatch.setattr(LlamaModel, "rewindable", False)
    outcome = tune_cli(edgecs, tiny_gguf)
    assert outcome.code == 0
    assert (
        "tiny decodes without drafts: it cannot remove rejected tokens" in outcome.out
    )
    report = json.loads(tune_cli(edgecs, tiny_gguf, "--json").out)
    assert report["chosen"] == []
    assert "cannot remove" in report["reason"]
    assert saved(cache) == []


def test_another_quantisation_is_named(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path):
    for name in ("tiny-Q8_0", "tiny-Q4_0"):
        write_random_gguf(tmp_path / f"{name}.gguf", seed=len(name), n_ctx=2048)
    write_random_gguf(tmp_path / "tiny-Q4_0.gguf", seed=7)
    here, other = tmp_path / "tiny-Q8_0.gguf", tmp_path / "tiny-Q4_0.gguf"
    outcome = tune_cli(edgecs, here)
    assert f"Q4_0 is present, not measured: edgecs tune -m {other}" in outcome.out
    outcome = tune_cli(edgecs, other)
    assert "Q8_0 of this model would decode" in outcome.out


def test_what_cannot_be_tuned_is_one_sentence(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, no_calls
):
    missing = tune_cli(edgecs, tmp_path / "m.gguf")
    one_line(missing, 3, "there is no file")
    one_line(tune_cli(edgecs, tiny_gguf, "--draft", "nobody"), 3, "no model 'nobody'")
    other = write_random_gguf(tmp_path / "other.gguf", vocab_size=300)
    one_line(
        tune_cli(edgecs, tiny_gguf, "--draft", other), 3, "other.gguf cannot draft"
    )
    one_line(tune_cli(edgecs, tiny_gguf, "-c", 256), 2, "holds 256", "-c")
    one_line(tune_cli(edgecs, tiny_gguf, "--repeats", 0), 2, "--repeats")
    one_line(tune_cli(edgecs, tiny_gguf, "-n", 7), 2, "7 is not in the range")


def test_numbers_are_shown_where_they_cannot_be_kept(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path
):
    cache.parent.mkdir(exist_ok=True)
    (cache.parent / "profiles").write_text("a file where the folder would be")
    outcome = tune_cli(edgecs, tiny_gguf, "-q")
    assert outcome.code == 1
    assert "Chosen: target <- mag" in outcome.out
    assert "the profile was not saved" in outcome.err
