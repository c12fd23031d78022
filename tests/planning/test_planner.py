"""The planner says what plain decoding says, and plans by what it has learnt.

Nothing here looks at the machine's clock: fakes move a `Watch` on by what a call costs
on a curve, and the planner goes by that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request, Rows, Verdict
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.decoding.static_schedule import Outcome
from edgecs.drafters.maxgram import MaxGram
from edgecs.planning.acceptance import Evidence, stated
from edgecs.planning.planner import Planner
from edgecs.sampling.chain import always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs_bench.hardware.curves import curve
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import FLAT, STEEP, Near, Timed, opened, planned

# One token takes as long as four; from there on each takes as long as the first.
MEMORY = {1: 1.0, 4: 1.0, 8: 2.0, 16: 4.0, 32: 8.0}


def ids(stream) -> list[int]:
    return [token.id for token in stream]


def up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((i + 1 for i, t in enumerate(tokens) if t in ends), len(tokens))
    return tokens[:stop]


relatives = st.sampled_from(
    [FLAT, STEEP, {1: 1, 2: 2.2, 3: 2.8, 4: 1.5, 8: 1.6, 16: 4}, {1: 1, 32: 3}]
)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.9]),
    repeat_penalty=st.sampled_from([1.0, 1.2]),
    seed=st.integers(0, 2**64 - 1),
)


@given(data=st.data(), sampling=samplings, relative=relatives)
@settings(max_examples=100)
def test_answers_are_those_of_the_target_alone(
    data: st.DataObject, sampling: Sampling, relative: dict[int, float]
):
    draw = data.draw
    vocab, memory = draw(st.integers(3, 6)), draw(st.sampled_from([1, 2, 3, 4096]))
    target = Timed(Watch(), vocab, draw(st.integers(0, 9)), memory=memory)
    target.times = curve("", 10.0, relative, 0.0).times / 1e3
    noises = draw(st.lists(st.sampled_from([0.0, 0.3, 2.0]), max_size=2))
    models = [
        Near(target, noise, i, single=draw(st.sampled_from([0.5, 3.0])), n_ctx=n_ctx)
        for i, noise in enumerate(noises)
        for n_ctx in [draw(st.sampled_from([24, 4096]))]
    ]
    ends = draw(st.sampled_from([(), (0,), (0, 1)]))
    longest = draw(st.sampled_from([1, 3, 31]))
    planner = planned(
        target,
        models,
        ends=ends,
        timed=draw(st.booleans()),
        known=draw(st.booleans()),
        longest=longest,
        lenience=draw(st.sampled_from([1.0, 3.0])),
    )
    choose = chooser(sampling, vocab)
    tier = draw(st.sampled_from(["numeric", "strict"]))
    same = frozenset(draw(st.sets(st.integers(2, 12))))
    limits = Limits(Classes({0: Finding(same, frozenset())}), tier)
    with opened(target, planner, ends=ends, limits=limits, rule=always(choose)) as s:

        def looked_at(context: Context, done) -> None:
            drafted = done.draft.tokens.tolist()
            room = target.n_ctx - len(context)
            assert len(drafted) <= min(longest, left - 1, room)
            assert up_to_end(drafted, ends) == drafted
            assert up_to_end(list(done.tokens), ends) == done.tokens
            if drafted and tier == "strict":
                assert len(drafted) + 1 in same

        s.on_round = looked_at
        for _ in range(draw(st.integers(1, 3))):  # turns
            more = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=6))
            prompt = [*s.context.tokens.tolist(), *more]
            expected = up_to_end(target.alone(prompt, 40, choose), ends)
            said = []
            left = 40 - 1
            for token in s.generate(prompt, max_tokens=40):
                said.append(token.id)
                left = 40 - len(said)
            assert said == expected


@pytest.mark.parametrize("memory", [2, 4096])
def test_everybody_writes_in_such_answers(memory: int):
    seen: Counter[str] = Counter()
    for seed in range(8):
        target = Timed(Watch(), 4, seed, memory=memory)
        models = [
            Near(target, 0.3, single=0.5),
            Near(target, 0.6, 7, single=0.05),
        ]
        with opened(target, planned(target, models)) as session:
            assert ids(session.generate([1, 2], max_tokens=60)) == target.greedy(
                [1, 2], 60
            )
            assert session.stats.mean_acceptance_length > 1.5
            for source, counts in session.stats.by_source().items():
                seen[source] += counts["accepted"]
    assert seen["d0"] > 0
    assert seen["mag"] > 0 or memory > 2


def test_a_drafter_whose_context_is_full_falls_silent():
    target = Timed(Watch(), 4, 1)
    planner = planned(target, [Near(target, 0.0, single=0.5, n_ctx=24)])
    with opened(target, planner) as session:
        assert ids(session.generate([1], max_tokens=60)) == target.greedy([1], 60)
        proposed = session.stats.by_source()["d0"]["proposed"]
    assert 10 < proposed < 30
    assert planner.neural[0].status.startswith("parked: ")


def test_a_full_context_ends_the_answer_as_in_plain_decoding():
    target = Timed(Watch(), 4, 1, n_ctx=40)
    with opened(target, planned(target, [Near(target, 0.0, single=0.5)])) as session:
        said = ids(session.generate([1, 2], max_tokens=90))
        assert session.finish_reason == "context"
        assert said == target.greedy([1, 2], 39)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_nobody_goes_on_after_an_end_token(at: int):
    target = Timed(Watch(), 300, 5, memory=1)
    said = target.greedy([1], 12)
    text = [1, *said[: at + 1], 2, 2, 2, 1]  # Max-Gram knows what came after it
    good, poor = Near(target, 0.0, single=1.0), Near(target, 0.0, single=0.9)

    def drafted(ends: Sequence[int]) -> Draft:
        planner = planned(target, [good, poor], ends=ends)
        for _ in range(20):  # it comes second
            planner.neural[1].learn(stated([0.9], [None]), 0, True)
        planner.begin()
        return planner.draft(Context(text), greedy, 31).draft

    assert len(drafted([])) > 2
    draft = drafted([said[at]])
    assert draft.tokens.tolist() == said[: at + 1]
    assert draft.sources[-1] == "d0"


def test_max_gram_does_not_copy_what_followed_an_end():
    target = Timed(Watch(), 9)
    planner = planned(target, ends=[7])
    text = [1, 2, 3, 4, 5, 7, 8, 8]
    planner.begin()
    draft = planner.draft(Context(text * 5 + text[:3]), greedy, 31).draft
    assert draft.tokens.tolist() == [4, 5, 7]


def test_times_are_learnt_from_rounds():
    target = Timed(Watch(), 4, memory=2)
    planner = planned(target, timed=False)
    with opened(target, planner) as session:
        list(session.generate([1, 2], max_tokens=60))
        widths = set(session.stats.rounds_by_width)
    known = planner.costs.seconds(0)
    assert {n + 1 for n in range(WIDEST) if np.isfinite(known[n])} == widths
    assert known[0] == pytest.approx(0.010)


def test_a_copy_that_cannot_pay_is_not_followed():
    def followed(
        relative: dict[int, float], *, timed: bool = True, neural: bool
    ) -> int:
        target = Timed(Watch(), 9, relative=relative)
        models = [Near(target, 0.0)] if neural else []
        planner = planned(target, models, timed=timed, known=False)
        if not timed:
            planner.costs.measured(0, {1: 0.01, 2: 0.02})
        planner.begin()
        text = Context(words)
        return len(planner.draft(text, greedy, 31).proposed)

    words = [5, 6, 7, 5, 6, 8, 5]  # a single token was there before
    assert followed(STEEP, neural=False) == 1
    words = [5, 6, 7, 8, 9, 5]  # only once
    assert followed(STEEP, neural=False) == 0
    assert followed(FLAT, neural=False) > 2
    # A width that nobody tried may be cheap, and a copy confirms a drafter.
    assert followed(STEEP, timed=False, neural=False) > 2
    assert followed(STEEP, neural=True) > 2


class Settling(Timed):
    """Its calls of one token take twice as long after a wider one, for a while."""

    after = 2

    def rows(self, request: Request) -> Rows:
        rows = super().rows(request)
        if rows.fed == 1 and self.after < 2:
            self.watch.pass_by(float(self.times[0]))
        self.after = 0 if len(request.draft) else self.after + 1
        return rows


def test_what_a_wider_call_leaves_behind_is_charged_to_it(monkeypatch):
    def over_plain(kind: type[Timed]) -> tuple[float, Planner]:
        said, wide = 0, {1: 1.0, 2: 1.1, 4: 1.9, 8: 3.5}
        target = kind(Watch(), 6, 3, relative=wide, memory=3)
        planner = planned(target)
        with opened(target, planner) as session:
            for start in range(40):
                prompt = [start % 6, start % 5, 1]
                list(session.generate(prompt, max_tokens=30))
                if start == 10:  # it has learnt
                    began, said = target.watch.now(), 0
                said += session.stats.rounds + session.stats.accepted
        return said * 0.01 / (target.watch.now() - began), planner

    usual, planner = over_plain(Timed)
    assert planner.costs.settling == pytest.approx(0)
    charged, planner = over_plain(Settling)
    assert planner.costs.settling == pytest.approx(0.02, rel=0.05)
    assert planner.costs.times(0, 1) == pytest.approx([0.01], rel=0.05)
    monkeypatch.setattr(CostModel, "settling", 0.0)
    blind, _ = over_plain(Settling)
    assert usual > charged > 0.97 > blind


def test_a_drafter_that_nobody_knows_is_not_relied_on():
    target = Timed(Watch(), 4)
    drafter = Near(target, 0.0, single=0.1)
    with opened(target, planned(target, [drafter], known=False)) as session:
        list(session.generate([1], max_tokens=40))
        tested = session.stats.by_source().get("d0", {"tested": 0})["tested"]
    assert tested < 8  # whatever it hoped for
    with opened(target, planned(target, [drafter])) as session:
        list(session.generate([1], max_tokens=40))
        assert session.stats.by_source()["d0"]["tested"] > 20


def test_what_drafts_lose_makes_for_caution():
    target = Timed(Watch(), 9, relative={1: 1.0, 2: 1.7, 4: 3.0, 8: 5.0, 32: 20.0})
    planner = planned(target)
    context = Context([1, 2, 3, 4, 5, 6] * 5)
    planner.begin()
    lost = 0
    while len(draft := planner.draft(context, greedy, 31).draft):
        lost += 1
        assert lost < 100
        calling = float(target.times[len(draft)])
        rows = Rows(np.empty((0, 0), np.float32), fed=1 + len(draft))
        outcome = Outcome(draft, rows, Verdict((), 0), 0.0, calling)
        planner.learn(context, outcome)  # nothing of it was right
    assert lost > 1
    planner.begin()
    assert planner.draft(context, greedy, 31).draft


@pytest.mark.parametrize("longest", [0, 1, 4])
@pytest.mark.parametrize("most", [0, 1, 3, 31])
def test_drafts_keep_to_what_is_asked_for(longest: int, most: int):
    target = Timed(Watch(), 300, 3)
    models = [Near(target, 0.0, single=0.05)]
    planner = planned(target, models, longest=longest)
    planner.begin()
    gathered = planner.draft(Context([1, 2, 3] * 20), greedy, most)
    assert len(gathered.draft) == min(longest, most)
    assert len(gathered.proposed) <= min(longest, most)


def test_what_a_user_says_is_nobodys_lesson(monkeypatch: pytest.MonkeyPatch):
    target = Timed(Watch(), 9)
    planner = planned(target)
    told: list[tuple[int, bool]] = []
    acceptance = planner.calibration.source(MaxGram())
    learn = acceptance.learn

    def listen(evidence: Evidence, right: int, decided: bool) -> None:
        told.append((right, decided))
        learn(evidence, right, decided)

    monkeypatch.setattr(acceptance, "learn", listen)
    context = Context([1, 2, 3, 4] * 6)
    planner.begin()
    assert planner.draft(context, greedy, 31).draft
    context.append([8, 8, 8, 8])  # the answer ended, this is the next prompt
    planner.begin()
    planner.draft(context, greedy, 0)
    assert told == [(0, False)]


def test_a_plan_tells_the_speed_of_plain_decoding():
    target = Timed(Watch(), 300, 3, single=10.0)
    planner = planned(target, [Near(target, 0.0, single=0.5)])
    planner.begin()
    gathered = planner.draft(Context([1, 2]), greedy, 31)
    assert gathered.plan is not None
    assert set(gathered.draft.sources) == {"d0"}
    assert gathered.plan.plain == pytest.approx(100.0)
    assert gathered.plan.expected > gathered.plan.plain


def test_max_gram_hears_the_target_alone():
    target = Timed(Watch(), 300, 3)
    other = Near(target, 9.0, single=0.05)  # says something else
    mag, heard = MaxGram(bigram_fill=True), []
    planner = planned(target, [other], last=mag)

    def observe(context: Context, draft: Draft, rows: Rows, verdict: object) -> None:
        heard.append(np.array_equal(rows.logits[0], target.law(context.tokens)))

    mag.observe = observe  # type: ignore[method-assign]
    with opened(target, planner) as session:
        list(session.generate([1], max_tokens=30))
        assert len(heard) == 1 + session.stats.rounds
    assert all(heard)
    assert other.calls > 0


@given(
    st.sets(st.integers(2, WIDEST), max_size=6) | st.just({4}),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_only_allowed_widths_are_used(allowed: set[int], neural: bool, seed: int):
    mask = np.zeros(WIDEST, dtype=np.bool_)
    mask[[0, *(n - 1 for n in allowed)]] = True
    target = Timed(Watch(), 4, seed, memory=2)
    models = [Near(target, 0.2, single=0.1)] if neural else []
    planner = planned(target, models)
    context = Context(np.random.default_rng(seed).integers(0, 4, 40))
    planner.begin()
    for _ in range(12):
        draft = planner.draft(context, greedy, 31, mask).draft
        assert len(draft) + 1 in {1, *allowed}
        context.append(target.greedy(context.tokens, 2))


def test_the_only_width_that_is_allowed_is_used():
    mask = np.zeros(WIDEST, dtype=np.bool_)
    mask[[0, 3]] = True
    target = Timed(Watch(), 9)
    planner = planned(target)
    planner.begin()
    assert len(planner.draft(Context([1, 2, 3] * 9), greedy, 31, mask).draft) == 3
    assert len(planner.draft(Context([1, 2, 3] * 9), greedy, 2, mask).draft) == 0


@pytest.mark.parametrize(
    ("relative", "together", "asks"),
    [(FLAT, 1, True), (FLAT, 4, True), (STEEP, 1, False), (MEMORY, 4, False)],
)
def test_a_joint_call_is_shared_and_drafting_is_not(
    relative: dict[int, float], together: int, asks: bool
):
    """Drafters draft one after the other, while all answers wait for the call."""
    target = Timed(Watch(), 5)
    target.times = curve("", 10.0, relative, 0.0).times / 1e3
    drafter = Near(target, 0.0, single=0.5)
    planner = planned(target, [drafter])
    context = Context([0, 1, 2, 3, 4])
    planner.begin()
    gathered = planner.draft(context, greedy, 7, together=together)
    assert bool(drafter.calls) == asks
    assert bool(len(gathered.draft)) == asks


def test_a_try_in_a_joint_call_counts_as_lost():
    target = Timed(Watch(), 5)
    drafter = Near(target, 9.0, single=1.0)
    planner = planned(target, [drafter], known=False)
    planner._busy, planner._start = 1e3, 1
    context, before = Context([1] * 500), planner.to_lose
    for _ in range(40):
        gathered = planner.draft(context, greedy, 7, together=2)
        rows = target.score([Request(context, gathered.draft)])[0]
        planner.learn(
            context, Outcome(gathered.draft, rows, Verdict((), 1), 0.0, 0.01, 2)
        )
        context.append([1])
    assert drafter.calls
    assert planner.to_lose < before + 40 * 0.01
