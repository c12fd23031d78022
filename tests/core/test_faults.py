"""A drafter that fails is parked for the session, and costs no answer a token.

Drafters here fail at random moments in every way that we could think of; whatever they
do, the answer is that of the target alone, and only the one that failed is parked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.audit.runner import Prompt, Subject, audit
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.draft import NOTHING, Draft, Rows
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.cascade import Cascade, NamedModel, stack
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.static_schedule import Gathered, StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import Cancelled, ContextFull, ModelError
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.session.trace import follow
from edgecs.testing.fakes import (
    CachingModel,
    Endless,
    FaultyDrafter,
    ScriptedDrafter,
    TableModel,
)
from edgecs.tuning.comparison import Chain
from edgecs.tuning.runner import ChainDrafter, Stage
from edgecs_bench.simulation.replay_drafter import Watch
from edgecs_cli.loading.explain import legend
from tests.planning.timed_models import Near, Timed, opened, planned

pytestmark = pytest.mark.faults

VOCAB = 5
ERRORS = (
    RuntimeError("the engine failed\nand said more"),
    ModelError("the graph is broken"),
    ContextFull("too long"),
    MemoryError(),
    AssertionError(),
    StopIteration(),
    RecursionError("too deep"),
)


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fails(right: Any) -> Any:
        raise type(error)(*error.args)

    return fails


def altered(**parts: Any) -> Callable[[Draft], Draft]:
    """A draft of one token with other parts than a sound one has."""
    sound = {
        "tokens": np.array([1], np.int32),
        "parents": np.array([-1], np.int32),
        "sources": ("faulty",),
        "confidences": np.ones(1),
    }
    return lambda right: Draft(**{**sound, **parts})


BAD_DRAFTS: dict[str, Callable[[Draft], Any]] = {
    **{type(error).__name__: raising(error) for error in ERRORS},
    "none": lambda right: None,
    "list": lambda right: [1, 2],
    "token too large": lambda right: Draft.chain([VOCAB], "faulty"),
    "token far too large": lambda right: Draft.chain([2**31 - 1, 1], "faulty"),
    "token below 0": lambda right: Draft.chain([-1, 0], "faulty"),
    "a stranger's token": lambda right: Draft.chain([VOCAB], "stranger"),
    "list of tokens": altered(tokens=[1]),
    "floats": altered(tokens=np.array([1.5])),
    "objects": altered(tokens=np.array([None], object)),
    "bools": altered(tokens=np.array([True])),
    "a table": altered(tokens=np.zeros((1, 1), np.int32)),
    "a large integer": altered(tokens=np.array([2**40])),
    "too many tokens for its parents": altered(tokens=np.array([1, 2], np.int32)),
    "too few sources": altered(sources=()),
    "no sources": altered(sources=None),
    "nameless": altered(sources=([],)),
    "too many confidences": altered(confidences=np.ones(3)),
    "confidences in words": altered(confidences=np.array(["a"])),
    "its own parent": altered(parents=np.array([0], np.int32)),
    "no such parent": altered(parents=np.array([7], np.int32)),
}


def with_rows(change: Callable[[np.ndarray], Any]) -> Callable[[Rows], Rows]:
    return lambda right: Rows(change(right.logits.copy()), right.fed)


def spoilt(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(logits: np.ndarray) -> np.ndarray:
        logits[:, 3] = value
        return logits

    return change


BAD_ROWS: dict[str, Callable[[Rows], Any]] = {
    **{type(error).__name__: raising(error) for error in ERRORS},
    "none": lambda right: None,
    "all nan": with_rows(lambda logits: logits * np.nan),
    "a nan": with_rows(spoilt(np.nan)),
    "inf": with_rows(spoilt(np.inf)),
    "nothing is possible": with_rows(lambda logits: logits - np.inf),
    "no rows": with_rows(lambda logits: logits[:0]),
    "a row too few": with_rows(lambda logits: logits[:-1]),
    "too wide": with_rows(lambda logits: np.pad(logits, ((0, 0), (3, 0)))),
    "not logits": with_rows(lambda logits: "logits"),
}


def sicken(model: TableModel, fails: Callable[[Rows], Any], after: int) -> None:
    """From some call on a model gives other rows, or none."""
    score, calls = model.score, count()

    def sick(requests):
        (rows,) = score(requests)
        return [rows if next(calls) < after else fails(rows)]

    model.score = sick


def sick_mag(method: str, fails: Callable[[Any], Any], after: int) -> MaxGram:
    """Max-Gram of which one method fails from some call on."""
    mag = MaxGram(bigram_fill=True)
    whole, calls = getattr(mag, method), count()

    def sick(*args):
        right = whole(*args)
        return right if next(calls) < after else fails(right)

    setattr(mag, method, sick)
    return mag


BAD_COPIES: list[tuple[str, Callable[[Any], Any]]] = [
    *((m, raising(ERRORS[0])) for m in ("continuation", "evidence", "observe")),
    ("continuation", lambda right: [VOCAB] * 3),
    ("continuation", lambda right: [-1]),
    ("continuation", lambda right: [2**40]),
    ("continuation", lambda right: [None]),
    ("continuation", lambda right: ["a"]),
    ("continuation", lambda right: 7),
    ("continuation", lambda right: [*right, *[1] * 99]),
    ("evidence", lambda right: None),
]


def ids(stream) -> list[int]:
    return [token.id for token in stream]


def answers_as_alone(session: Session, target: TableModel, choose) -> set[str]:
    """Every answer is that of plain decoding; who drafted for them.

    The session stays usable after the first one.
    """
    written: set[str] = set()
    for turn in range(2):
        prompt = [*session.context.tokens.tolist(), 1, turn]
        expected = target.alone(prompt, 25, choose)
        assert ids(session.generate(prompt, max_tokens=25)) == expected
        stats = session.stats
        assert stats.tokens == 1 + stats.accepted + stats.rounds == 25
        written |= set(stats.by_source())
    assert session.stats.faults == session.cascade.faults
    return written


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.8]),
    top_k=st.sampled_from([0, 3]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 99),
)
seeds = st.integers(0, 9)
moments = st.integers(0, 12)
lenience = st.sampled_from([1.0, 3.0])


@given(
    how=st.sampled_from(sorted(BAD_DRAFTS)),
    after=moments,
    seed=seeds,
    sampling=samplings,
    inside=st.booleans(),
    counts=st.tuples(st.integers(2, 4), st.integers(0, 3)),
)
@settings(max_examples=100)
def test_a_drafter_that_fails_costs_no_token(
    how, after, seed, sampling, inside, counts
):
    target, choose = CachingModel(VOCAB, seed), chooser(sampling, VOCAB)
    script = [1, 0, *TableModel(VOCAB, seed).alone([1, 0], 25, choose)]
    faulty = FaultyDrafter(script, BAD_DRAFTS[how], after=after)
    sound = ScriptedDrafter(script, wrong=0.3, vocab_size=VOCAB, name="sound")
    chain = [faulty, sound]
    if inside:
        reviewer = CachingModel(VOCAB, 77)
        chain = [
            Cascade(reviewer, StaticSchedule(chain, counts), name="inner"),
            MaxGram(),
        ]
    most = (5, 2) if inside else counts
    with Session(
        target, Endless(), chain, draft_max=most, rule=always(choose)
    ) as session:
        written = answers_as_alone(session, target, choose)
        asked = faulty.asked > after
        strangers = how == "a stranger's token"
        assert set(session.cascade.faults) == (
            {"stranger" if strangers else "faulty"} if asked else set()
        )
        assert faulty.asked <= after + 1
        assert "sound" in written or inside or strangers or not counts[1]


@given(
    how=st.sampled_from(sorted(BAD_ROWS)),
    after=moments,
    seed=seeds,
    sampling=samplings,
    at=st.integers(0, 1),
    lenience=lenience,
)
@settings(max_examples=100)
def test_a_reviewer_that_fails_costs_no_token(how, after, seed, sampling, at, lenience):
    target, choose = CachingModel(VOCAB, seed), chooser(sampling, VOCAB)
    models = [NamedModel(f"d{i}", CachingModel(VOCAB, seed)) for i in range(2)]
    sicken(models[at].model, BAD_ROWS[how], after)
    matrix = KMatrix.parse("2,2,2;0,2,2;0,0,2")
    chain = stack(models, MaxGram(), matrix, lenience=lenience)
    with Session(
        target, Endless(), chain, draft_max=matrix.counts(0), rule=always(choose)
    ) as session:
        assert f"d{1 - at}" in answers_as_alone(session, target, choose)
        assert set(session.cascade.faults) <= {f"d{at}"}


@given(
    broken=st.sampled_from(BAD_COPIES),
    after=moments,
    seed=seeds,
    sampling=samplings,
    levels=st.integers(0, 2),
    planning=st.booleans(),
)
@settings(max_examples=100)
def test_a_max_gram_that_fails_costs_no_token(
    broken, after, seed, sampling, levels, planning
):
    target = Timed(Watch(), VOCAB, seed, memory=2)
    choose, mag = chooser(sampling, VOCAB), sick_mag(*broken, after)
    models = [Near(target, 0.3, i, single=0.5) for i in range(levels)]
    if planning:
        session = opened(target, planned(target, models, last=mag), rule=always(choose))
    else:
        named = [NamedModel(f"d{i}", model) for i, model in enumerate(models)]
        matrix = KMatrix.parse(("3", "2,2;0,3", "2,2,2;0,2,2;0,0,2")[levels])
        chain = stack(named, mag, matrix)
        session = Session(
            target,
            Endless(),
            chain,
            draft_max=matrix.counts(0),
            rule=always(choose),
        )
    with session:
        answers_as_alone(session, target, choose)
        assert set(session.cascade.faults) <= {"mag"}


@given(
    how=st.sampled_from(sorted(BAD_ROWS)),
    after=moments,
    seed=seeds,
    sampling=samplings,
    levels=st.integers(1, 2),
    at=st.integers(0, 1),
    lenience=lenience,
    memory=st.sampled_from([2, 4096]),
)
@settings(max_examples=100)
def test_a_planners_drafter_that_fails_costs_no_token(
    how, after, seed, sampling, levels, at, lenience, memory
):
    target = Timed(Watch(), VOCAB, seed, memory=memory)
    choose = chooser(sampling, VOCAB)
    singles = (0.5, 0.05)
    models = [Near(target, 0.3, i, single=singles[i]) for i in range(levels)]
    sicken(models[at % levels], BAD_ROWS[how], after)
    planner = planned(target, models, lenience=lenience)
    with opened(target, planner, rule=always(choose)) as session:
        answers_as_alone(session, target, choose)
        assert set(session.cascade.faults) <= {f"d{at % levels}"}


@pytest.mark.parametrize("how", sorted(BAD_ROWS))
@pytest.mark.parametrize("planning", [False, True])
def test_every_fault_of_a_model_is_found(how: str, planning: bool):
    target = Timed(Watch(), VOCAB, 1)
    model = Near(target, 0.0, single=0.05)
    sicken(model, BAD_ROWS[how], 6)
    if planning:
        session = opened(target, planned(target, [model]))
    else:
        chain = stack([NamedModel("d0", model)], MaxGram(), KMatrix.parse("3,1;0,2"))
        session = Session(target, Endless(), chain, draft_max=(3, 1))
    with session:
        said = ids(session.generate([1], max_tokens=60))
        assert said == target.greedy([1], 60)
        assert list(session.stats.faults) == ["d0"]
        assert "mag" in session.stats.by_source()


@pytest.mark.parametrize("planning", [False, True])
def test_a_reviewer_goes_on_without_the_drafter_that_failed(planning: bool):
    """And is not blamed for what that one proposed."""
    target = Timed(Watch(), VOCAB, 1, memory=2)
    near = Near(target, 0.0, single=0.3)
    bad = raising(ERRORS[0]) if planning else lambda right: [VOCAB]
    mag = sick_mag("continuation", bad, 5)
    if planning:
        session = opened(target, planned(target, [near], last=mag))
    else:
        chain = stack([NamedModel("d0", near)], mag, KMatrix.parse("3,0;0,2"))
        session = Session(target, Endless(), chain, draft_max=(3, 0))
    with session:
        assert ids(session.generate([1], max_tokens=90)) == target.greedy([1], 90)
        assert list(session.stats.faults) == ["mag"]
        before = session.stats.by_source()["d0"]["accepted"]
        assert before > 0
        prompt = session.context.tokens.tolist()
        assert ids(session.generate(prompt, max_tokens=40)) == target.greedy(prompt, 40)
        assert set(session.stats.by_source()) == {"d0"}


class Deaf(ScriptedDrafter):
    """It cannot be told what came of its drafts."""

    def observe(self, context, draft, rows, verdict):
        super().observe(context, draft, rows, verdict)
        if len(self.seen) > 3:
            raise OSError("no memory for that")


def test_a_drafter_that_cannot_be_told_is_parked():
    said = TableModel(VOCAB).greedy([1], 40)
    deaf = Deaf([1, *said], name="deaf")
    with Session(TableModel(VOCAB), Endless(), [deaf], draft_max=2) as session:
        assert ids(session.generate([1], max_tokens=30)) == said[:30]
        assert session.stats.faults == {"deaf": "OSError: no memory for that"}
    assert len(deaf.seen) == 4
    assert session.stats.by_source()["deaf"]["tested"] == 6


class Broken:
    """A schedule that fails in one of its methods."""

    def __init__(self, where: str, error: Exception | None) -> None:
        self.where, self.error = where, error
        self.drafters, self.calls = (MaxGram(),), 0

    def _fail(self, where: str) -> None:
        self.calls += 1
        if where == self.where and self.error:
            raise self.error

    def begin(self):
        self._fail("begin")

    def draft(self, context, choose, most, allowed, together):
        self._fail("draft")
        if self.where == "draft":
            return None
        tokens = [1] * (most + 1 if self.where == "length" else min(most, 1))
        return Gathered(Draft.chain(tokens, "mag"), ("mag",) * len(tokens))

    def learn(self, context, outcome):
        self._fail("learn")

    def describe(self):
        return "broken"


@pytest.mark.parametrize("where", ["begin", "draft", "learn", "length"])
@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), None])
def test_a_schedule_that_fails_is_not_asked_again(where: str, error: Exception | None):
    said = TableModel(VOCAB).greedy([1], 20)
    broken = Broken(where, error)
    with Session(TableModel(VOCAB), Endless(), schedule=broken) as session:
        assert ids(session.generate([1], max_tokens=20)) == said
        fails = error is not None or where in ("draft", "length")
        assert len(session.stats.faults) == fails
        calls = broken.calls
        assert ids(session.generate([1], max_tokens=20)) == said
        assert (broken.calls == calls) == fails


def test_a_schedule_that_failed_stays_alone():
    """Whatever its drafters then do."""
    said = TableModel(VOCAB).greedy([1], 40)
    broken, deaf = Broken("learn", ZeroDivisionError()), Deaf([1, *said])
    deaf.seen = [None] * 9
    broken.drafters = (deaf,)
    with Session(TableModel(VOCAB), Endless(), schedule=broken) as session:
        for _ in range(3):
            assert ids(session.generate([1], max_tokens=9)) == said[:9]
        assert set(session.stats.faults) == {"schedule", "script"}
    assert broken.calls == 3  # begin, draft, learn
    assert len(deaf.seen) == 10


def test_requests_to_stop_are_no_faults():
    for error in (KeyboardInterrupt(), SystemExit(), GeneratorExit()):
        drafter = FaultyDrafter([1], raising(error))
        with Session(TableModel(VOCAB), Endless(), [drafter], draft_max=2) as session:
            with pytest.raises(type(error)):
                ids(session.generate([1], max_tokens=20))
            assert not session.cascade.faults
    drafter = FaultyDrafter([1], raising(Cancelled("stopped")))
    with Session(TableModel(VOCAB), Endless(), [drafter], draft_max=2) as session:
        assert len(ids(session.generate([1], max_tokens=20))) == 1
        assert session.finish_reason == "cancelled"
        assert not session.cascade.faults


@pytest.mark.parametrize("error", ERRORS[:4])
def test_what_fails_in_the_target_ends_the_answer(error: Exception):
    target = CachingModel(VOCAB)
    sicken(target, raising(error), 4)
    drafter = ScriptedDrafter([1] * 50, name="sound")
    with Session(target, Endless(), [drafter], draft_max=2) as session:
        with pytest.raises(type(error)):
            ids(session.generate([1], max_tokens=20))
        assert not session.cascade.faults


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_target_without_numbers_is_named_as_such(temperature: float, value: float):
    choose = chooser(Sampling(temperature=temperature), VOCAB)
    target = CachingModel(VOCAB)
    sicken(target, with_rows(lambda logits: logits * 0 + value), 4)
    with Session(target, Endless(), [MaxGram()], draft_max=2) as session:
        with pytest.raises(ModelError, match="no token a probability.*fetch it again"):
            ids(session.generate([1], max_tokens=20, rule=always(choose)))
        assert not session.cascade.faults


def test_another_session_asks_again():
    said = TableModel(VOCAB).greedy([1], 20)
    model = CachingModel(VOCAB)
    fails = [raising(ERRORS[0])]
    sicken(model, lambda right: fails[0](right), 2)
    for faults in ({"d0"}, set()):
        chain = stack([NamedModel("d0", model)], MaxGram(), KMatrix.parse("3,0;0,0"))
        with Session(TableModel(VOCAB), Endless(), chain, draft_max=(3, 0)) as session:
            assert ids(session.generate([1], max_tokens=20)) == said
            assert set(session.stats.faults) == faults
            if faults:
                assert not model.cells  # what they held is not known
        fails[0] = lambda right: right


def test_a_fault_is_logged_and_shown(caplog: pytest.LogCaptureFixture):
    said = TableModel(VOCAB).greedy([1], 40)
    faulty = FaultyDrafter([1, *said], raising(ERRORS[0]), after=2)
    sound = ScriptedDrafter([1, *said], name="sound")
    records: list[dict[str, Any]] = []
    with Session(
        TableModel(VOCAB), Endless(), [faulty, sound], draft_max=(2, 1)
    ) as session:
        follow(session, records.append)
        with caplog.at_level(logging.WARNING, "edgecs"):
            assert ids(session.generate([1], max_tokens=20)) == said[:20]
        lines = legend(session, "numeric", colours=False)
        block = session.stats.speculative(session.chain, session.off_reason)
    reason = "RuntimeError: the engine failed"
    (warning,) = caplog.records
    assert warning.getMessage() == (
        f"faulty failed: {reason}; the drafter is disabled for the rest of this session"
    )
    assert f"faulty: disabled for this session because it failed: {reason}" in lines
    assert block["faults"] == {"faulty": reason}
    assert block["chain"] == ["target", "faulty", "sound"]
    told = [record["faults"] for record in records]
    assert told == [{}, {}, {"faulty": reason}, *[{}] * (len(records) - 3)]
    assert records[2]["proposed"] == []
    assert records[3]["written"] == {"sound": 3}


def test_a_planners_legend_says_it_once():
    target = Timed(Watch(), VOCAB, 1)
    model = Near(target, 0.0, single=0.05)
    sicken(model, raising(ERRORS[1]), 6)
    with opened(target, planned(target, [model])) as session:
        ids(session.generate([1], max_tokens=60))
        lines = legend(session, "numeric", colours=False)
    ours = [line for line in lines if line.startswith("d0: ")]
    assert ours == [
        "d0: disabled for this session because it failed: the graph is broken"
    ]


def test_a_fault_in_the_call_that_reads_the_prompt_is_told_with_the_first_round():
    class Mute(ScriptedDrafter):
        def observe(self, context, draft, rows, verdict):
            raise OSError("mute")

    records: list[dict[str, Any]] = []
    with Session(
        TableModel(VOCAB), Endless(), [Mute([1], name="mute")], draft_max=2
    ) as session:
        follow(session, records.append)
        ids(session.generate([1], max_tokens=4))
    assert [bool(record["faults"]) for record in records] == [True, False, False]


def test_a_reason_is_one_line_of_text():
    error = RuntimeError("\x1b[31mred\a" + "x" * 999)
    drafter = FaultyDrafter([1], raising(error))
    with Session(TableModel(VOCAB), Endless(), [drafter], draft_max=2) as session:
        ids(session.generate([1], max_tokens=4))
        (reason,) = session.stats.faults.values()
    assert reason.isprintable()
    assert len(reason) < 300
    assert reason.startswith("RuntimeError: ?[31mred?x")


def test_a_drafter_whose_times_cannot_be_measured_is_parked_later():
    target, model = CachingModel(VOCAB), CachingModel(VOCAB)
    sicken(model, raising(ERRORS[1]), 0)
    known = SpeculationProfile(target)
    known.costs.measured(0, {1: 1.0, 2: 1.01, 4: 1.02})
    planner = known.planner([NamedModel("d0", model)])
    assert not planner.neural[0].costs.known
    with Session(target, Endless(), schedule=planner) as session:
        said = ids(session.generate([1], max_tokens=60))
        assert said == TableModel(VOCAB).greedy([1], 60)
        assert set(session.stats.faults) <= {"d0"}


def test_a_sound_tree_is_taken_where_trees_are():
    said = TableModel(VOCAB).greedy([1], 12)
    wrong = [(token + 1) % VOCAB for token in said]

    class Branches(ScriptedDrafter):
        def propose(self, context, k, choose=None):
            at = len(context) - 1
            if k < 2:
                return NOTHING
            tokens = np.array([wrong[at], said[at]], np.int32)
            parents = np.array([-1, -1], np.int32)
            return Draft(tokens, parents, ("tree", "tree"), np.ones(2))

    with Session(
        TableModel(VOCAB), Endless(), [Branches([1], name="tree")], draft_max=2
    ) as session:
        assert ids(session.generate([1], max_tokens=10)) == said[:10]
        assert not session.stats.faults
        assert session.stats.accepted > 3
    with Session(
        CachingModel(VOCAB), Endless(), [Branches([1], name="tree")], draft_max=2
    ) as session:
        assert ids(session.generate([1], max_tokens=10)) == said[:10]
        assert "chain" in session.stats.faults["tree"]


def test_a_planner_without_sound_drafters_decodes_plainly():
    target = Timed(Watch(), VOCAB, 1)
    mag = sick_mag("continuation", raising(ERRORS[0]), 0)
    with opened(target, planned(target, last=mag)) as session:
        assert ids(session.generate([1], max_tokens=20)) == target.greedy([1], 20)
        assert session.stats.rounds_by_width == {1: 19}
        assert list(session.stats.faults) == ["mag"]


def test_what_is_measured_with_a_drafter_is_not_measured_without_it():
    """A parked drafter would make plain decoding look like its speed, or its proof."""
    alone = "faulty failed .RuntimeError: the engine failed.*leave it out"

    def schedule() -> StaticSchedule:
        return StaticSchedule(
            [FaultyDrafter([1] * 99, raising(ERRORS[0]), after=3)], [2]
        )

    limits = Limits(Classes({0: Finding(frozenset({2, 3}), frozenset())}))
    subject = Subject(CachingModel(VOCAB), Endless(), limits, max_tokens=30)
    with pytest.raises(ModelError, match=alone):
        audit(subject, [Prompt("p", np.array([1, 2], np.int32))], schedule)
    known, sick = SpeculationProfile(CachingModel(VOCAB)), CachingModel(VOCAB)
    known.costs.measured(0, {1: 1.0, 2: 1.01, 4: 1.02})
    sicken(sick, raising(ERRORS[0]), 0)
    costs = CostModel()
    costs.measured(0, {1: 0.001, 4: 0.002})
    drafter = ChainDrafter("faulty", sick, costs, [True] * 50)
    stage = Stage(known, Endless(), [drafter], tokens=20)
    with pytest.raises(ModelError, match=alone):
        stage.play(Chain(("faulty",), False), np.array([1, 2], np.int32))
