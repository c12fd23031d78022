"""A tuning from its first curve to the profile."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from edgecs.calibrate import speculation_profile
from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.cascade import Cascade, NamedModel
from edgecs.errors import ConfigError, EdgecsError
from edgecs.runtime.loader import LoadedDrafter
from edgecs.testing.fakes import CachingModel, Endless, TableModel
from edgecs.tuning.comparison import MAG
from edgecs.tuning.tuner import Effort, Tuned, keep, tune
from tests.keys import KEY
from tests.tuning.tuning_fakes import (
    PROMPT,
    TILED,
    Slowness,
    TimedModel,
    Watch,
    tuned_table,
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
) -> tuple[SpeculationProfile, Tuned]:
    """A tuning of a target and a drafter that is always right."""
    model = TimedModel(target, slowness, n_ctx=200, clock=watch)
    drafter = TimedModel(twin, slowness, clock=watch)
    loaded = LoadedDrafter("twin", drafter, "", None, lambda: None, "f-twin")
    known = SpeculationProfile(model)
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
    assert "could not pay" in tuned.drafters[0].status


def test_numbers_of_a_busy_machine_count_for_little(virtual: Watch):
    target, twin = line(0.01, 0.0002), line(0.001, 0.0)
    known, tuned = simulated(virtual, target, twin, hotter)
    assert known.costs.rounds[-1] > 1
    assert not tuned.unsteady
    paces = itertools.cycle([1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5])
    known, tuned = simulated(virtual, target, twin, lambda now: next(paces))
    assert known.costs.rounds[-1] == 1
    assert tuned.unsteady


def opened(profiles: Profiles) -> SpeculationProfile:
    return SpeculationProfile(CachingModel(50, n_ctx=300), key=KEY, profiles=profiles)


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
    assert planner.neural[0].costs.state() == chain["drafters"]["f-twin"]


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
            tuned_table(
                SpeculationProfile(TableModel(50, n_ctx=300)), progress=said.append
            )
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
    tuned_table(SpeculationProfile(TableModel(50, n_ctx=300)))
    assert told.times == 1  # at the end


def test_a_context_without_room_is_refused_before_anything_is_measured():
    target = TimedModel(TILED, n_ctx=40)
    with pytest.raises(ConfigError, match="needs a context of 42 tokens.*has 40"):
        tuned_table(SpeculationProfile(target))
    assert target.widths == []
