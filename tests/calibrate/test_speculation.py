"""What is known about a target is measured once, kept, and used without changing it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.calibrate import speculation_profile
from edgecs.calibrate.probe import QUICK, points
from edgecs.calibrate.profile import Key, Profiles
from edgecs.calibrate.speculation_profile import FIRST_WIDTHS, SpeculationProfile
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.exactness import EVERY, Classes, Finding
from edgecs.decoding.overlap import Overlap
from edgecs.decoding.tiers import Exact
from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import Cancelled
from edgecs.planning.acceptance import stated
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless, TableModel
from tests.calibrate.kernel_tables import Kernels, Table, tables
from tests.keys import KEY, other_key

EXACTS: tuple[Exact, ...] = ("auto", "strict", "numeric")


class Counted(CachingModel):
    """Remembers how many tokens its calls had."""

    def __init__(self, vocab_size: int = 5, seed: int = 0, *, n_ctx: int = 640) -> None:
        super().__init__(vocab_size, seed, n_ctx=n_ctx)
        self.widths: list[int] = []

    def rows(self, request):
        self.widths.append(1 + len(request.draft))
        return super().rows(request)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiles:
    """An empty folder, and all the time in the world to probe."""
    monkeypatch.setattr(speculation_profile, "PROBE_SECONDS", 1e9)
    return Profiles(tmp_path / "profiles")


def opened(
    profiles: Profiles, exact: Exact = "auto", key: Key = KEY, n_ctx: int = 640
) -> tuple[SpeculationProfile, Counted]:
    target = Counted(n_ctx=n_ctx)
    return SpeculationProfile(target, exact=exact, key=key, profiles=profiles), target


def prepared(
    profiles: Profiles, exact: Exact = "auto", **options: Any
) -> SpeculationProfile:
    known, _ = opened(profiles, exact, **options)
    known.prepare(1e9)
    return known


class TestKeeping:
    @pytest.mark.parametrize("exact", EXACTS)
    def test_what_was_probed_is_found_by_the_next(self, profiles, exact: Exact):
        first = prepared(profiles, exact)
        assert first.target.widths
        assert first.save()
        again, target = opened(profiles, exact)
        told: list[str] = []
        again.prepare(1.0, told.append)
        assert target.widths == []
        assert again.notes == []
        assert again.classes == first.classes
        np.testing.assert_allclose(again.costs.seconds(0), first.costs.seconds(0))
        depths = [0, 100, 255, 300, 600]
        assert again.limits.describe(depths) == first.limits.describe(depths)

    def test_nothing_is_kept_without_a_place_or_a_measurement(self, profiles):
        assert not SpeculationProfile(Counted()).save()
        homeless = SpeculationProfile(Counted(), key=KEY)
        homeless.prepare(1.0)
        assert not homeless.save()
        unmeasured, _ = opened(profiles)
        assert not unmeasured.save()
        assert profiles.all() == []

    @given(
        right=st.floats(),
        times=st.lists(st.floats(), max_size=6),
    )
    def test_whatever_the_numbers_saving_does_not_raise(
        self, tmp_path_factory: pytest.TempPathFactory, right, times
    ):
        profiles = Profiles(tmp_path_factory.mktemp("profiles"))
        known, _ = opened(profiles)
        known.costs.measured(0, {1: 1.0, 4: 2.0})
        for seconds in times:
            known.costs.observe(2, 0, seconds)
        planner = known.planner([NamedModel("d", CachingModel(5), right)])
        for neural in planner.neural:
            neural.learn(stated([0.5] * 8, [None] * 8), 8, False)
        known.classes.add(0, 4, Finding(frozenset({2}), frozenset({3})))
        assert known.save()
        again, _ = opened(profiles)
        assert again.notes == []
        np.testing.assert_allclose(again.costs.seconds(0), known.costs.seconds(0))
        assert again.classes == known.classes

    def test_what_is_not_a_number_is_not_saved(self, profiles, monkeypatch):
        known = prepared(profiles)
        monkeypatch.setattr(known.costs, "state", lambda: {"settling": [np.nan]})
        assert not known.save()
        assert profiles.all() == []

    @pytest.mark.parametrize("exact", EXACTS)
    def test_times_of_a_busy_machine_are_used_and_not_kept(
        self, profiles, exact: Exact, monkeypatch
    ):
        monkeypatch.setattr(speculation_profile, "BUSY", 0.15)
        monkeypatch.setattr(speculation_profile, "TELLING", 0.0)
        monkeypatch.setattr(speculation_profile.Others, "share", 0.1)
        with monkeypatch.context() as busy:
            busy.setattr(speculation_profile.Others, "share", 0.4)
            busy.setattr(speculation_profile, "busiest", lambda: "make")
            first = prepared(profiles, exact)
        assert first.costs.known
        assert first.notes == [
            "other programs (mostly make) took 40% of the processors while the model "
            "was measured: it will be measured again at the next start"
        ]
        assert first.save()
        again, target = opened(profiles, exact)
        assert not again.costs.known
        assert again.classes == Classes()
        again.prepare(1e9)
        assert target.widths
        assert again.notes == []
        assert again.save()
        # What is known by then stays, however busy the machine is at the next start.
        monkeypatch.setattr(speculation_profile.Others, "share", 0.4)
        third, target = opened(profiles, exact)
        third.prepare(1e9)
        assert third.notes == target.widths == []

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"build": "2"}, "another build of the engine"),
            ({"fingerprint": "1" * 32}, "the model file has changed"),
            ({"device": "GPU"}, "device GPU, was AMD EPYC"),
        ],
    )
    def test_a_stale_profile_is_named_and_probed_again(self, profiles, change, why):
        prepared(profiles).save()
        key = replace(KEY, **change)
        other, target = opened(profiles, key=key)
        assert other.notes == [f"the profile is not used: stale: {why}"]
        assert other.classes == Classes()
        assert not other.costs.known
        other.prepare(1.0)
        assert target.widths
        assert other.save()
        again, target = opened(profiles, key=key)
        again.prepare(1.0)
        assert again.notes == target.widths == []

    def test_other_options_have_a_profile_of_their_own(self, profiles):
        prepared(profiles).save()
        other, _ = opened(profiles, key=other_key(threads=4))
        assert other.notes == []
        assert not other.costs.known
        assert len(profiles.all()) == 1
        other.prepare(1.0)
        other.save()
        assert len(profiles.all()) == 2

    @pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2", b"\xff\xfe", b"null"])
    def test_a_broken_file_is_named_and_replaced(self, profiles, content: bytes):
        prepared(profiles).save()
        [(path, _)] = profiles.all()
        path.write_bytes(content)
        other, target = opened(profiles)
        [note] = other.notes
        assert note.startswith("the profile is not used: unreadable")
        other.prepare(1.0)
        assert target.widths
        assert other.save()
        assert opened(profiles)[0].notes == []

    @pytest.mark.parametrize(
        ("part", "name", "value"),
        [
            ("costs", "seconds", {"1": -1.0}),
            ("costs", "seconds", [1]),
            ("costs", "growth", {"0": [10**400] * WIDEST}),
            ("costs", "rounds", None),
            ("classes", "inside", {"0": {"same": [0], "other": [], "noise": 0}}),
            ("classes", "crossing", {"256": 7}),
            ("classes", "inside", "none"),
            ("acceptance", "sources", [0.5]),
            ("acceptance", "stated", {"small": "yes"}),
            ("acceptance", "sources", {"mag": [10**400] * 50}),
        ],
    )
    def test_numbers_that_make_no_sense_are_as_if_never_measured(
        self, profiles, part: str, name: str, value: Any
    ):
        prepared(profiles).save()
        [(path, _)] = profiles.all()
        table = json.loads(path.read_bytes())
        table[part][name] = value
        path.write_text(json.dumps(table))
        other, target = opened(profiles)
        [note] = other.notes
        assert note.startswith("the profile is invalid and not used")
        assert other.profile is None
        assert not other.costs.known
        assert other.classes == Classes()
        other.prepare(1.0)
        assert target.widths
        assert other.save()

    @pytest.mark.parametrize("chain", [{"drafters": [1]}, {"drafters": "small"}])
    def test_drafters_that_make_no_sense_are_measured(self, profiles, chain):
        prepared(profiles).save()
        [(path, _)] = profiles.all()
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"chain": chain}))
        known, _ = opened(profiles)
        small = Counted(seed=1)
        known.planner([NamedModel("small", small)])
        assert small.widths
        assert known.save()

    def test_what_rounds_teach_is_kept(self, profiles):
        known = prepared(profiles)
        rounds, before = known.costs.rounds.sum(), known.calibration.state()
        planner = known.planner()
        with Session(known.target, Endless(), schedule=planner) as session:
            list(session.generate([1, 2, 3, 1, 2], max_tokens=40))
        assert known.costs.rounds.sum() > rounds
        assert known.save()
        again, _ = opened(profiles)
        np.testing.assert_allclose(again.costs.seconds(0), known.costs.seconds(0))
        assert again.calibration.state() == known.calibration.state() != before


class TestProbing:
    @pytest.mark.parametrize("exact", EXACTS)
    def test_a_target_that_cannot_forget_is_not_probed(self, profiles, exact: Exact):
        known, target = opened(profiles, exact)
        target.rewindable = False
        known.prepare(1e9)
        assert target.widths == []
        assert not known.save()

    @pytest.mark.parametrize("exact", EXACTS)
    def test_a_probe_leaves_an_empty_target_behind(self, profiles, exact: Exact):
        assert prepared(profiles, exact).target.cells == []

    def test_where_bits_do_not_matter_calls_are_timed_only(self, profiles):
        known, told = opened(profiles, "numeric")[0], []
        known.prepare(1e9, told.append)
        assert known.classes == Classes()
        assert told == []
        times = known.costs.seconds(0)
        assert set((np.flatnonzero(np.isfinite(times)) + 1).tolist()) == {1, *QUICK}
        assert known.limits.allowed(100) is EVERY

    def test_timing_takes_a_share_of_the_loading(self, profiles):
        known, target = opened(profiles, "numeric")
        known.prepare(0.0)
        assert target.widths == []
        assert not known.costs.known

    @pytest.mark.parametrize("exact", EXACTS)
    def test_it_tells_what_depth_adds(self, profiles, monkeypatch, exact: Exact):
        def seconds(width: int, depth: int) -> float:
            return 0.010 + 0.001 * width + 1e-5 * depth * (1 + width / 2)

        class Deep(Counted):
            def rows(self, request):
                nonlocal now
                rows = super().rows(request)
                if rows.fed == 1 + len(request.draft):  # else it fills its cells
                    now += seconds(rows.fed, len(request.context) - 1)
                return rows

        now = 0.0
        monkeypatch.setattr("edgecs.calibrate.probe.time.perf_counter", lambda: now)
        known = SpeculationProfile(
            Deep(n_ctx=3000), exact=exact, key=KEY, profiles=profiles
        )
        known.prepare(1e9)
        for depth in (0, 1024, 2800):
            told = known.costs.seconds(depth)[[0, 3, 7]]
            true = [seconds(width, depth) for width in (1, 4, 8)]
            np.testing.assert_allclose(told, true, rtol=0.08)  # shallow is 24 tokens
        assert known.save()
        calls = len(known.target.widths)
        known.prepare(1e9)
        assert len(known.target.widths) == calls

    @pytest.mark.parametrize("exact", EXACTS)
    def test_a_profile_that_does_not_know_depth_is_completed(self, profiles, exact):
        known = prepared(profiles, exact)
        known.save()
        assert known.profile
        known.profile.costs["growth"] = {}
        profiles.save(known.profile)
        again = prepared(profiles, exact)
        assert again.costs.knows_depth
        assert set(again.target.widths) <= {1, 4}  # no class is probed again

    @pytest.mark.parametrize("exact", EXACTS)
    def test_a_small_context_is_no_failure(self, profiles, exact: Exact):
        for n_ctx in (60, 40, 36, 20, 2):
            assert prepared(profiles, exact, n_ctx=n_ctx).target.cells == []

    def test_strict_takes_the_time_it_needs(self, profiles, monkeypatch):
        monkeypatch.setattr(speculation_profile, "PROBE_SECONDS", -1.0)
        classes = prepared(profiles, "strict", n_ctx=1500).classes
        assert {*classes.inside} == {start for _, start in points(1500)}
        assert {*classes.crossing} == {256, 512, 1024}
        for found in (*classes.inside.values(), *classes.crossing.values()):
            assert found.same == set(QUICK)  # of a model without kernels

    @pytest.mark.parametrize("exact", ["auto", "numeric"])
    def test_others_do_not(self, profiles, monkeypatch, exact: Exact):
        monkeypatch.setattr(speculation_profile, "PROBE_SECONDS", -1.0)
        known = prepared(profiles, exact)
        assert known.target.widths == []
        assert known.classes == Classes()
        assert known.limits.tier(0) != "strict"

    @pytest.mark.parametrize("kernel", [lambda n, start: 0, lambda n, start: n == 4])
    def test_a_promise_of_the_target_is_proved_and_then_believed(self, kernel):
        """A little is probed; where that shows another width, the promise is none."""
        target = Kernels(5, kernel, n_ctx=5000)
        target.uniform = True
        known = SpeculationProfile(target, exact="auto")
        known.prepare(1.0)
        probed = max(depth for depth, width in target.calls if width == 3)
        holds = kernel(4, 0) == 0
        assert probed < 1000 or not holds
        for depth in (0, 300, 4000):
            allowed = known.classes.strict(depth)
            assert allowed.all() == holds
            assert not allowed[3] or holds

    def test_strict_finishes_what_another_run_began(self, profiles):
        known = prepared(profiles)
        known.classes.crossing.clear()
        known.classes.inside = {0: Finding(frozenset({2}), frozenset())}
        known.save()
        again = prepared(profiles, "strict")
        assert (
            again.classes == prepared(Profiles(profiles.root / "x"), "strict").classes
        )

    def test_a_request_to_stop_is_heard(self, profiles):
        known, target = opened(profiles, "strict")
        target.cancel.set()
        with pytest.raises(Cancelled):
            known.prepare(1.0)
        assert target.cells == []

    def test_what_is_being_done_is_said(self, profiles):
        told: list[str] = []
        opened(profiles)[0].prepare(1.0, told.append)
        assert told == ["measuring this model, once: which calls are bit-exact"]


class TestDrafters:
    def test_their_times_are_measured_once(self, profiles):
        known, small = prepared(profiles), Counted(seed=1)
        models = [NamedModel("small", small)]
        first = known.planner(models)
        assert set(FIRST_WIDTHS) <= set(small.widths)
        assert small.cells == []
        calls = len(small.widths)
        second = known.planner(models)
        assert len(small.widths) == calls
        assert second.neural[0].review.costs is first.neural[0].review.costs
        known.save()
        again = opened(profiles)[0].planner(models)
        assert len(small.widths) == calls
        np.testing.assert_allclose(
            again.neural[0].review.costs.seconds(0),
            first.neural[0].review.costs.seconds(0),
        )

    def test_by_what_is_in_the_file_and_not_by_its_name(self, profiles):
        known, small = prepared(profiles), Counted(seed=1)
        known.planner([NamedModel("small", small)], fingerprints={"small": "a"})
        known.save()
        calls = len(small.widths)
        again = opened(profiles)[0]
        again.planner([NamedModel("other", small)], fingerprints={"other": "a"})
        assert len(small.widths) == calls
        again.planner([NamedModel("small", small)], fingerprints={"small": "b"})
        assert len(small.widths) > calls

    def test_what_its_makers_counted_counts_until_this_machine_has_seen_more(
        self, profiles
    ):
        known, small = prepared(profiles), Counted(seed=1)
        (unknown,) = known.planner([NamedModel("small", small)]).neural
        assert not unknown.known
        (told,) = known.planner([NamedModel("small", small, 0.7)]).neural
        assert (told.known, told.long_term_rate) == (True, 0.7)
        for _ in range(100):
            told.learn([], 0, True)
        assert told.long_term_rate < 0.4
        known.save()
        again = opened(profiles)[0]
        (neural,) = again.planner([NamedModel("small", small, 0.7)]).neural
        assert neural.long_term_rate == told.long_term_rate

    def test_those_that_take_no_part_stay_known(self, profiles):
        known, small = prepared(profiles), Counted(seed=1)
        known.planner([NamedModel("small", small)])
        known.save()
        calls = len(small.widths)
        between = opened(profiles)[0]
        between.planner()
        between.save()
        opened(profiles)[0].planner([NamedModel("small", small)])
        assert len(small.widths) == calls


@st.composite
def curves(draw) -> dict[int, float]:
    widths = draw(st.sets(st.integers(2, WIDEST), max_size=8))
    return {1: 1.0, **{n: draw(st.floats(0.5, 2.0 * n)) for n in sorted(widths)}}


class TestKeeps:
    @given(curves(), st.sets(st.integers(2, WIDEST)))
    def test_a_share_of_the_speed_is_left(self, times, widths):
        known = SpeculationProfile(TableModel(5))
        known.costs.measured(0, times)
        allowed = np.zeros(WIDEST, np.bool_)
        allowed[[0, *(n - 1 for n in widths)]] = True
        # The best width of each round is not quite the best for all rounds together.
        assert 0 < known.keeps(allowed, 0) <= 1.05
        assert known.keeps(EVERY, 0) == 1

    def test_nothing_is_lost_where_no_draft_pays_and_much_where_all_do(self):
        alone = np.zeros(WIDEST, np.bool_)
        alone[0] = True
        known = SpeculationProfile(TableModel(5))
        assert known.keeps(alone, 0) == 1  # nothing is known
        known.costs.measured(0, {n: float(n) for n in range(1, WIDEST + 1)})
        assert known.keeps(alone, 0) == 1
        known.costs = CostModel()
        known.costs.measured(0, dict.fromkeys(range(1, WIDEST + 1), 1.0))
        least = known.keeps(alone, 0)
        assert least < 0.8
        alone[3] = True
        assert least < known.keeps(alone, 0) < 1


class TestFixed:
    @given(st.frozensets(st.integers(2, WIDEST)), st.integers(1, WIDEST + 5))
    def test_auto_is_strict_where_the_whole_schedule_is(self, same, width: int):
        known = SpeculationProfile(TableModel(5))
        known.classes.inside[0] = Finding(same, frozenset())
        strict = width == 1 or width in same
        assert (known.fixed(width).tier(0) == "strict") == strict
        assert known.fixed(width).tier(300) == "numeric"


@given(tables, st.integers(1, 9), st.sampled_from([0.0, 0.8]))
@settings(max_examples=60)
def test_a_strict_planner_says_what_one_by_one_decoding_does(
    table: Table, size: int, temperature: float
):
    target = Kernels(3, table, noise=6)
    rule = always(chooser(Sampling(temperature=temperature, seed=size), 3))
    prompt = [1, 2] * size
    with Session(target, Endless(), rule=rule) as session:
        plain = [token.id for token in session.generate(prompt, max_tokens=60)]
    known = SpeculationProfile(target, exact="strict")
    known.prepare(0.0)
    known.costs = CostModel()
    known.costs.measured(0, dict.fromkeys(range(1, WIDEST + 1), 1.0))
    target.reset()
    target.calls.clear()
    with Session(
        target, Endless(), schedule=known.planner(), limits=known.limits, rule=rule
    ) as session:
        said = [token.id for token in session.generate(prompt, max_tokens=60)]
    assert said == plain
    allowed = np.flatnonzero(known.classes.strict(10)) + 1
    assert {width for _, width in target.calls} <= set(allowed.tolist())


class Remembers(Bigrams):
    """A source that keeps how much it has learnt."""

    learnt = 0

    def state(self) -> dict[str, Any]:
        return {"learnt": self.learnt}

    def take(self, state: dict[str, Any]) -> None:
        self.learnt = int(state["learnt"])


def test_what_a_source_keeps_is_given_back_in_the_next_run(profiles):
    speculation, source = prepared(profiles), Remembers()
    speculation.planner(sources=[MaxGram(), source])
    source.learnt = 7
    assert speculation.save()
    again, other = opened(profiles)[0], Remembers()
    again.planner(sources=[other])
    assert other.learnt == 7
    again.planner(sources=[MaxGram()])  # one that is not asked loses nothing
    assert again.save()
    later = Remembers()
    opened(profiles)[0].planner(sources=[later])
    assert later.learnt == 7


@pytest.mark.parametrize("state", [None, 1, [], {}, {"learnt": "?"}])
def test_a_source_that_refuses_its_state_starts_empty(profiles, state: Any):
    speculation = prepared(profiles)
    speculation.planner(sources=[Remembers()])
    assert speculation.save()
    [(path, _)] = profiles.all()
    table = json.loads(path.read_bytes())
    table["chain"]["sources"] = {"bigram": state}
    path.write_text(json.dumps(table))
    again, source = opened(profiles)[0], Remembers()
    again.planner(sources=[source])
    assert again.notes == []
    assert source.learnt == 0


def test_of_several_slots_the_share_of_the_most_used_is_kept(profiles):
    """Each slot of a server has a planner; some slots are hardly ever used."""
    known = prepared(profiles)
    planners = []
    for _ in range(3):
        named = NamedModel("d", CachingModel(5, 1))
        planners.append(known.planner([named], [MaxGram()], fingerprints={"d": "f"}))
    evidence = stated([0.9] * 8, [None] * 8)
    for _ in range(9):
        planners[1].neural[0].learn(evidence, 8, False)
    planners[2].neural[0].learn(evidence, 0, True)
    assert known.save()
    again = prepared(profiles)
    assert again._kept("right")["f"] == planners[1].neural[0].long_term_rate > 0.9


@pytest.mark.parametrize(
    ("kept", "overlap", "goes_on"),
    [
        ({"f": True}, "auto", True),
        ({"f": False}, "auto", False),
        ({"other": True}, "auto", False),
        ({"f": "yes"}, "auto", False),
        ("nonsense", "auto", False),
        (None, "auto", False),
        ({"f": False}, "on", True),
        ({"f": True}, "off", False),
    ],
)
def test_a_drafter_goes_on_where_a_tuning_found_that_it_pays(
    profiles, kept: Any, overlap: Overlap, goes_on: bool
):
    known, _ = opened(profiles)
    known.prepare(1.0)
    assert known.save()
    assert known.profile is not None
    known.profile.chain = {**known.profile.chain, "overlap": kept}
    assert profiles.save(known.profile)
    known, _ = opened(profiles)
    named = [NamedModel("d", TableModel(5))]
    planner = known.planner(named, fingerprints={"d": "f"}, overlap=overlap)
    assert (planner.ahead is not None) == goes_on
    assert known.planner([], overlap=overlap).ahead is None
