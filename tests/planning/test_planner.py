"""The planner says what plain decoding says, is hardly ever slower, and often faster.

Nothing here looks at the machine's clock: fakes move a `Watch` on by what a call costs
on a curve, and the planner goes by that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request, Rows, Verdict
from edgecs.costs.cost_model import WIDEST, YOUNG, CostModel
from edgecs.decoding.cascade import Cascade, NamedModel
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.decoding.static_schedule import Outcome
from edgecs.drafters.maxgram import MaxGram
from edgecs.planning.acceptance import Calibration, Evidence, stated
from edgecs.planning.neural_source import Writer
from edgecs.planning.planner import BUDGET, Planner
from edgecs.sampling.chain import always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless
from edgecs_bench.hardware.curves import Curve, curve
from edgecs_bench.simulation.replay import Player, know, oracle
from edgecs_bench.simulation.replay_drafter import UNSAID, Watch
from edgecs_bench.simulation.traces import Proposals, Trace

FLAT = {1: 1.0, 2: 1.02, 4: 1.05, 8: 1.1, 16: 1.2, 32: 1.4}
STEEP = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0, 32: 32.0}


# Models whose calls take virtual time.


class Timed(CachingModel):
    """Its calls move a watch on; its law looks at the last few tokens only.

    relative: times by tokens fed, of the milliseconds of a single one. memory: tokens
    that the law depends on; few make greedy texts repeat themselves.
    """

    def __init__(
        self,
        watch: Watch,
        vocab: int,
        seed: int = 0,
        *,
        single: float = 10.0,
        relative: dict[int, float] = FLAT,
        memory: int = 4096,
        n_ctx: int = 4096,
    ) -> None:
        super().__init__(vocab, seed, n_ctx=n_ctx)
        self.watch, self.memory, self.calls = watch, memory, 0
        self.times = curve("", single, relative, 0.0).times / 1e3

    def law(self, prefix):
        return super().law(prefix[-self.memory :])

    def rows(self, request: Request) -> Rows:
        rows = super().rows(request)
        self.calls += 1
        self.watch.pass_by(float(self.times[min(rows.fed, WIDEST) - 1]))
        return rows

    def measured(self, costs: CostModel) -> None:
        """Tells a cost model all about it."""
        costs.measured(0, {n + 1: s for n, s in enumerate(self.times.tolist())})


class Near(Timed):
    """The target's logits with `noise` times those of another law."""

    def __init__(self, target: Timed, noise: float, seed: int = 99, **kwargs: Any):
        super().__init__(target.watch, target.vocab_size, seed, **kwargs)
        self.target, self.noise = target, noise

    def law(self, prefix):
        return self.target.law(prefix) + np.float32(self.noise) * super().law(prefix)


class Ending(Endless):
    """A tokenizer with end tokens of one's choice."""

    def __init__(self, ends: Sequence[int] = ()) -> None:
        super().__init__()
        self.ends = frozenset(ends)


def trusted(writer: Writer) -> None:
    """Lets a writer believe that it was right for long."""
    evidence = stated([0.9] * 8, [None] * 8)
    for _ in range(20):
        writer.learn(evidence, 8, False)


def planned(
    target: Timed,
    models: Sequence[Timed] = (),
    *,
    last: MaxGram | None = None,
    timed: bool = True,
    known: bool = True,
    **options: Any,
) -> Planner:
    """A planner of one's choice; timed: it knows all times, known: and its drafters."""
    named = [NamedModel(f"d{i}", model) for i, model in enumerate(models)]
    clock = target.watch.now
    planner = Planner(
        CostModel(), Calibration(), [last or MaxGram()], named, clock=clock, **options
    )
    if timed:
        target.measured(planner.costs)
    for writer, model in zip(planner.writers, models, strict=True):
        if timed:
            model.measured(writer.costs)
        if known:
            trusted(writer)
    return planner


def opened(
    target: Timed,
    planner: Planner,
    *,
    ends: Sequence[int] = (),
    limits: Limits | None = None,
    **options: Any,
) -> Session:
    """A session on virtual time."""
    tokenizer = Ending(ends)
    session = Session(target, tokenizer, schedule=planner, limits=limits, **options)
    session.cascade = Cascade(
        target, planner, limits=limits, ends=tokenizer.ends, clock=target.watch.now
    )
    return session


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
    assert planner.writers[0].standing.startswith("parked: ")


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
            planner.writers[1].learn(stated([0.9], [None]), 0, True)
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


# Played on recorded texts and drafters, see `edgecs_bench.simulation.replay`.


Right = Callable[[int], bool]
"""Whether a drafter is right at an output position."""


class Hostile(NamedTuple):
    """How a drafter means no good."""

    right: Right
    sure: float | None  # probability that it states; None: any


HOSTILE = {
    "always wrong": Hostile(lambda at: False, 0.6),
    "confident and wrong": Hostile(lambda at: False, 0.995),
    "random confidences": Hostile(lambda at: False, None),
    "right, then wrong": Hostile(lambda at: at < 50, 0.95),
    "now right, now wrong": Hostile(lambda at: (at // 20) % 2 == 0, None),
}


def drafts(
    output: list[int], how: Hostile, random: np.random.Generator, size: int = 8
) -> Proposals:
    """What a drafter says at every position."""
    tokens, said = [], []
    for at in range(len(output)):
        piece = output[at : at + size]
        tokens.append([t if how.right(at + i) else UNSAID for i, t in enumerate(piece)])
        sure = random.random(len(piece)) if how.sure is None else [how.sure] * 8
        said.append([float(p) for p in sure[: len(piece)]])
    return Proposals(tokens, said)


def answer(
    output: list[int],
    drafters: dict[str, Hostile] | None = None,
    *,
    prompt: Sequence[int] = (1, 2, 3),
    random: np.random.Generator | None = None,
) -> Trace:
    random = random or np.random.default_rng(0)
    proposals = {
        name: drafts(output, how, random) for name, how in (drafters or {}).items()
    }
    return Trace("", "", [*prompt], output, [0.0] * len(output), proposals)


def asked(player: Player) -> Counter[str]:
    """How often every drafter is called from now on."""
    calls: Counter[str] = Counter()
    for model in player.models:

        def score(requests, model=model, real=model.score):
            calls[model.named.name] += 1
            return real(requests)

        model.score = score  # type: ignore[method-assign]
    return calls


def widths(player: Player) -> Counter[int]:
    """How many rounds of every width there are from now on."""
    seen: Counter[int] = Counter()
    learn = player.planner.learn

    def look(context, outcome):
        seen[1 + len(outcome.draft)] += 1
        learn(context, outcome)

    player.planner.learn = look  # type: ignore[method-assign]
    return seen


def noise(size: int, random: np.random.Generator) -> list[int]:
    """A text without repetition."""
    found: list[int] = random.integers(10, 10**6, size).tolist()
    return found


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Anything from flat to steep, smooth or in tiles or bumpy."""
    single, width = draw(st.floats(2, 80)), np.arange(1, WIDEST + 1)
    kind = draw(st.sampled_from(["line", "power", "tiles", "bumps"]))
    slope = draw(st.floats(0, 1))
    if kind == "line":
        relative = 1 + slope * (width - 1)
    elif kind == "power":
        relative = width**slope
    elif kind == "tiles":
        tile = draw(st.sampled_from([2, 4, 8]))
        ragged = draw(st.floats(0, 0.5)) * ((width % tile != 0) & (width > 1))
        relative = 1 + 0.6 * slope * np.ceil((width - 1) / tile) + ragged
    else:
        random = np.random.default_rng(draw(st.integers(0, 999)))
        bumps = random.uniform(-0.2, 1, WIDEST)
        bumps[0] = 0
        relative = np.maximum(1, 1 + np.cumsum(bumps))
    overhead = draw(st.floats(0, 0.02)) * single
    return Curve(kind, single * relative, overhead)


def relative_pace(curve: Curve, step: float) -> float:
    """The pace at which a recorded drafter takes `step` of a target's single call."""
    return step * float(curve.times[0]) / 21.4


def keeps_its_budget(player: Player) -> None:
    """Lets no try begin when more than the budget is lost already."""
    planner, learn = player.planner, player.planner.learn

    def look(context, outcome):
        before = planner._lost
        learn(context, outcome)
        if planner._lost > before:
            assert before <= BUDGET * planner._busy

    planner.learn = look  # type: ignore[method-assign]


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


def repeating(random: np.random.Generator, size: int) -> list[int]:
    """A text of which two thirds were there before, in pieces."""
    text = noise(40, random)
    while len(text) < size:
        start = int(random.integers(0, len(text) - 20))
        text += text[start : start + 20] + noise(10, random)
    return text[:size]


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
    assert player.planner.writers[0].standing == (
        "in use, 100% of its tokens are right"
    )


def test_a_drafter_that_turned_good_is_found_again():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    player = Player(flat, ["late"], pace=relative_pace(flat, 0.1))
    wrong = {"late": HOSTILE["always wrong"]}
    for _ in range(12):
        player.play(answer(noise(150, random), wrong))
    assert player.planner.writers[0].standing.startswith("parked: ")
    took = [player.play(answer(noise(150, random), {"late": GOOD})) for _ in range(12)]
    assert 149 * flat.round(1) / took[-1] > 3


def test_a_better_drafter_is_tried_while_another_one_is_in_use():
    flat, random = curve("flat", 20.0, FLAT, 0.2), np.random.default_rng(0)
    who = {"better": GOOD, "cheaper": Hostile(lambda at: at % 3 > 0, 0.6)}
    player = Player(flat, list(who), pace=relative_pace(flat, 0.02))
    player.models[0]._pace *= 6
    better, cheaper = player.planner.writers
    better.costs.measured(0, {1: 0.12 * 20e-3, 2: 0.2 * 20e-3, 4: 0.36 * 20e-3})
    for _ in range(12):
        cheaper.learn(stated([0.6], [None]), 1, False)  # it has been known for long
    took = [player.play(answer(noise(150, random), who)) for _ in range(20)]
    assert better.standing.startswith("in use")
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
    (writer,) = player.planner.writers
    trace = answer(noise(150, random), {"slow": GOOD})
    player.play(trace)
    assert writer.standing == (
        "parked: 10.0 ms a token, no acceptance would be enough, "
        "it was hardly tried yet"
    )
    depth, times, rate = writer.parked
    assert "beside" not in writer.standing
    writer.parked = depth, times, 1.01 * rate
    assert "no acceptance would be enough beside the draft of another, " in (
        writer.standing
    )
    flat = curve("flat", 20.0, FLAT, 0.2)
    player = Player(flat, ["wrong"], pace=relative_pace(flat, 0.5))
    (writer,) = player.planner.writers
    for _ in range(16):
        text = noise(150, random)
        player.play(answer(text, {"wrong": HOSTILE["always wrong"]}))
    (needs, has) = re.fullmatch(
        r"parked: 10\.0 ms a token, it would need (\d+) % of its tokens right, "
        r"it has (\d+)%",
        writer.standing,
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


# Vertical cascade.


def reviewed(relative: dict[int, float]) -> tuple[int, int]:
    """Calls of a drafter that knows a repeating text, and the tokens it wrote."""
    target = Timed(Watch(), 12, 5, memory=1, single=20.0)
    model = Near(target, 0.0, single=8.0, relative=relative)
    planner = planned(target, [model])
    # Max-Gram proposes what the drafter reviews, and the target is not told of it.
    written = 0
    context = Context([0, *target.greedy([0], 60)])
    planner.begin()
    (writer,) = planner.writers
    while len(context) < 200:
        planner.ledger.settle(context)
        draft = writer.cascade.propose(context, 6, greedy)
        assert draft.tokens.tolist() == target.greedy(context.tokens, 6)
        planner.sources.propose(context, 6, planner.ledger)
        written += len(draft)
        context.append(draft.tokens[:4])
    return model.calls, written


def test_a_drafter_with_a_flat_curve_reviews_what_max_gram_copies():
    calls, written = reviewed(FLAT)
    assert calls < written / 2


def test_a_drafter_with_a_steep_curve_writes_token_by_token():
    calls, written = reviewed(STEEP)
    assert calls == written
