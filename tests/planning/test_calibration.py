"""Calibration: what odds learn, what an answer may spoil, and who is told what."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.copies import COPIED, GRAM, LONGEST, Copy, copied
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import LOOKED_AT
from edgecs.planning.acceptance import (
    DOUBT,
    MOST_AN_ANSWER,
    MOST_BUCKETS,
    STATED,
    Acceptance,
    Calibration,
    Evidence,
    stated,
)
from edgecs.planning.pending import Ledger
from edgecs.planning.sources import Sources
from edgecs_bench.prior import fit

opinions = st.tuples(st.booleans(), st.integers(1, 60), st.integers(1, 60))
copies = st.builds(
    Copy,
    st.integers(0, LONGEST),
    st.lists(st.tuples(*[st.none() | opinions] * GRAM), min_size=1, max_size=LOOKED_AT),
)
probabilities = st.floats(0.0, 1.0)


MAG = MaxGram()


def rows(copy: Copy, size: int) -> list[list[int]]:
    return [*islice(copied(copy), size)]


def blank() -> MaxGram:
    """Max-Gram about which nothing is known beforehand."""
    mag = MaxGram()
    mag.prior = [0.0] * COPIED
    return mag


def every(acceptance: Acceptance, evidence: Evidence) -> NDArray[np.float64]:
    """Of each token."""
    return np.array([acceptance.odds(buckets) for buckets in evidence])


def odds(acceptance: Acceptance, evidence: Evidence) -> float:
    """Of the first token."""
    return acceptance.odds(evidence[0])


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@given(copies, st.integers(1, 31))
def test_buckets_of_a_copy_are_distinct_columns_of_its_model(copy: Copy, size: int):
    evidence = rows(copy, size)
    assert len(evidence) == size
    for row in evidence:
        assert len(set(row)) == len(row)
        assert 0 <= min(row) <= max(row) < COPIED


@given(
    st.lists(st.tuples(probabilities, st.sampled_from([None, False, True]))),
    st.integers(0, 80),
)
def test_buckets_of_stated_tokens_are_distinct_columns_of_their_model(
    said: list[tuple[float, bool | None]], first: int
):
    evidence = stated([p for p, _ in said], [same for _, same in said], first)
    assert len(evidence) == len(said)
    for row in evidence:
        assert len(row) == len(set(row)) == 3
        assert 0 <= min(row) <= max(row) < STATED


@given(copies, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.integers(0, 99))
@settings(max_examples=25)
def test_an_answer_learns_how_often_a_kind_of_token_is_right(
    copy: Copy, p: float, seed: int
):
    acceptance, evidence = Calibration().source(MAG), rows(copy, 1)
    right = np.random.default_rng(seed).random(1500) < p
    said = []
    for was in right.tolist():
        said.append(logit(odds(acceptance, evidence)) + DOUBT)
        acceptance.learn(evidence, int(was), not was)
    late = 1 / (1 + np.exp(-np.array(said[500:])))
    assert abs(late.mean() - right[500:].mean()) < 0.02


@given(copies, st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 99))
@settings(max_examples=10)
def test_many_answers_teach_what_is_kept(copy: Copy, p: float, seed: int):
    acceptance, evidence = Calibration().source(MAG), rows(copy, 1)
    random = np.random.default_rng(seed)
    for _ in range(60):
        for was in (random.random(40) < p).tolist():
            acceptance.learn(evidence, int(was), not was)
        acceptance.begin()
    assert abs(logit(odds(acceptance, evidence)) + DOUBT - logit(p)) < 0.4


@given(copies, st.booleans())
def test_a_new_answer_forgets_the_fast_part_and_keeps_the_slow_one(
    copy: Copy, right: bool
):
    acceptance, evidence = Calibration().source(MAG), rows(copy, 1)
    before = logit(odds(acceptance, evidence))
    for _ in range(5):
        acceptance.learn(evidence, int(right), not right)
    fast = logit(odds(acceptance, evidence))
    acceptance.begin()
    kept = logit(odds(acceptance, evidence))
    if not right:
        before, fast, kept = -before, -fast, -kept
    assert before < kept < fast
    assert kept - before < 0.3 * (fast - before)


@given(copies, st.lists(copies, max_size=3), st.booleans(), st.integers(1, 2))
@settings(max_examples=30)
def test_no_answer_moves_what_is_kept_by_much(
    copy: Copy, others: list[Copy], right: bool, size: int
):
    acceptance, evidence = Calibration().source(MAG), rows(copy, size)
    before = every(acceptance, evidence)
    for i in range(200):
        poison = rows([copy, *others][i % (1 + len(others))], size)
        acceptance.learn(poison, size if right else 0, not right)
    acceptance.begin()
    after = every(acceptance, evidence)
    most = len(evidence[0]) * MOST_AN_ANSWER
    moved = np.abs(np.log(after / (1 - after)) - np.log(before / (1 - before)))
    assert (moved <= most + 1e-9).all()
    assert (np.abs(after - before) <= 0.1).all()


def test_tokens_whose_worth_did_not_show_teach_nothing():
    calibration = Calibration()
    evidence = rows(Copy(5, [((True, 2, 2),) * GRAM] * 4), 4)
    before = every(calibration.source(MAG), evidence)
    calibration.source(MAG).learn(evidence, 0, False)
    assert np.array_equal(every(calibration.source(MAG), evidence), before)


def test_tokens_after_a_wrong_one_teach_nothing():
    early, late = (rows(Copy(n, [(None,) * GRAM]), 1) for n in (1, 32))
    both = [*early, *late]
    acceptance = Acceptance(np.zeros(COPIED))
    acceptance.learn(both, 0, True)
    alone = Acceptance(np.zeros(COPIED))
    alone.learn(early, 0, True)
    assert np.array_equal(every(acceptance, both), every(alone, both))


@given(copies, st.integers(1, 31), st.booleans())
@settings(max_examples=20)
def test_odds_are_never_certain(copy: Copy, size: int, right: bool):
    acceptance, evidence = Calibration().source(MAG), rows(copy, size)
    for _ in range(2000):
        acceptance.learn(evidence, size if right else 0, not right)
    found = every(acceptance, evidence)
    assert ((found > 0) & (found < 1)).all()


def test_drafters_learn_apart():
    calibration = Calibration()
    evidence = stated([0.7], [None])
    before = odds(calibration.drafter("b"), evidence)
    for _ in range(20):
        calibration.drafter("a").learn(evidence, 0, True)
    assert odds(calibration.drafter("a"), evidence) < before
    assert odds(calibration.drafter("b"), evidence) == before
    calibration.begin()
    assert odds(calibration.drafter("a"), evidence) > 0.8 * before


def taught() -> Calibration:
    calibration = Calibration()
    for i in range(50):
        evidence = rows(Copy(i % 9, [((True, i, i + 1), None, None)]), 1)
        calibration.source(MAG).learn(evidence, i % 2, True)
        calibration.drafter("small ü").learn(stated([i / 50], [None]), i % 3 > 0, True)
    calibration.begin()
    return calibration


def test_what_is_kept_comes_back_from_json():
    calibration = taught()
    again = Calibration.from_state(json.loads(json.dumps(calibration.state())))
    assert again.state() == calibration.state()
    copy = rows(Copy(4, [((True, 3, 3), None, None)]), 3)
    mine, its = (every(c.source(MAG), copy) for c in (calibration, again))
    assert np.allclose(mine, its, atol=1e-4)
    said = stated([0.3, 0.9], [True, None])
    mine, its = (every(c.drafter("small ü"), said) for c in (calibration, again))
    assert np.allclose(mine, its, atol=1e-4)


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        [],
        {},
        "sources",
        {"sources": {}},
        {"sources": {}, "stated": [1]},
        {"sources": {}, "stated": None},
        {"sources": {}, "stated": {"a": [0.0]}},
        {"sources": [1], "stated": {}},
        {"sources": {"mag": [0.0] * (MOST_BUCKETS + 1)}, "stated": {}},
        {"sources": {"mag": [[0.0]] * COPIED}, "stated": {}},
        {"sources": {"mag": [math.nan] * COPIED}, "stated": {}},
        {"sources": {"mag": [math.inf] * COPIED}, "stated": {}},
        {"sources": {"mag": [1e300] * COPIED}, "stated": {}},
        {"sources": {"mag": [10**400] * COPIED}, "stated": {}},
        {"sources": {"mag": ["?"] * COPIED}, "stated": {}},
        {"sources": {"mag": {"0": 1.0}}, "stated": {}},
        {"sources": {}, "stated": {"a": [None] * STATED}},
    ],
)
def test_a_state_that_makes_no_sense_is_refused(nonsense: Any):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Calibration.from_state(nonsense)


class Told:
    """Keeps what a learner is told, by the number that its evidence carries."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, bool]] = []

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        self.heard.append((evidence[0][0], right, decided))


def agreed(tokens: Sequence[int], true: Sequence[int]) -> int:
    pairs = enumerate(zip(tokens, true, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(true)))


@st.composite
def proposals(draw: st.DrawFn, text: list[int], at: int) -> list[int]:
    """Mostly what comes next, sometimes wrong, sometimes longer than the text."""
    tokens = draw(st.lists(st.integers(0, 2), min_size=1, max_size=10))
    right = draw(st.integers(0, 10))
    return [*text[at : at + min(right, len(tokens))], *tokens[right:]][:10] or [0]


@given(data=st.data(), ending=st.sampled_from(["goes on", "is over", "is replaced"]))
@settings(max_examples=200)
def test_every_proposal_is_settled_once_with_what_was_right(
    data: st.DataObject, ending: str
):
    text = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=60))
    context, ledger, told = Context(text[:1]), Ledger(), Told()
    noted: list[tuple[int, list[int]]] = []
    while context.committed < len(text):
        ledger.settle(context)
        for _ in range(data.draw(st.integers(0, 2))):
            tokens = data.draw(proposals(text, context.committed))
            mark = [[len(noted)]] * len(tokens)
            ledger.note(context, tokens, mark, told)
            noted.append((context.committed, tokens[:LOOKED_AT]))
        chunk = data.draw(st.integers(1, 9))
        context.append(text[context.committed : context.committed + chunk])
    ledger.settle(context)
    shown = [(tokens, text[at:]) for at, tokens in noted]
    still = {
        i for i, (t, true) in enumerate(shown) if agreed(t, true) == len(true) < len(t)
    }
    assert {mark for mark, _, _ in told.heard}.isdisjoint(still)
    if ending == "is over":
        ledger.close()
    elif ending == "is replaced":
        other = Context([2])
        ledger.settle(other)
        other.append([0, 1, 2])
        ledger.settle(other)
    left = still if ending == "goes on" else set()
    expected = {
        i: (i, agreed(t, true), agreed(t, true) < min(len(t), len(true)))
        for i, (t, true) in enumerate(shown)
        if i not in left
    }
    assert sorted(told.heard) == sorted(expected.values())


def test_what_a_user_says_next_teaches_nothing():
    context, ledger, told = Context([1, 2]), Ledger(), Told()
    ledger.settle(context)
    ledger.note(context, [3, 4, 5], [[0]] * 3, told)
    context.append([3])
    ledger.settle(context)
    ledger.close()
    context.append([9, 9])  # the next prompt
    ledger.settle(context)
    assert told.heard == [(0, 1, False)]


def test_sources_note_what_they_propose_and_learn_from_it():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 12
    sources, ledger = Sources([blank()], Calibration()), Ledger()
    context = Context(text[:9])
    first = []
    while context.committed < len(text) - 9:
        ledger.settle(context)
        found = sources.propose(context, 9, ledger)
        assert len(found.tokens) == len(found.path) == len(found.sources)
        assert (np.diff(found.path) <= 0).all()
        first.append(found.path[0] if found.path else 0.0)
        context.append(text[context.committed : context.committed + 3])
    assert first[-1] > 0.7 > 0.5 > first[2]


def test_without_a_ledger_nothing_is_noted_and_without_sources_nothing_proposed():
    context, ledger, calibration, mag = (
        Context([1, 1]),
        Ledger(),
        Calibration(),
        blank(),
    )
    ledger.settle(context)
    assert len(Sources([mag], calibration).propose(context, 3).tokens) == 3
    assert not Sources([], calibration).propose(context, 3, ledger).tokens
    context.append([1, 1, 1])
    ledger.settle(context)
    assert not calibration.source(mag).kept.any()


def test_a_proposal_ends_with_an_end_token():
    context = Context([1, 2, 3, 7, 4, 1, 2, 3])
    found = Sources([MaxGram()], Calibration(), ends={7}).propose(context, 4)
    assert found.tokens == [7]
    assert len(found.path) == 1


def test_where_one_source_has_little_to_say_another_may_have_more():
    bigrams, calibration = Bigrams(), Calibration()
    bigrams.learn([3, 8])
    for _ in range(300):
        calibration.source(bigrams).learn([[0, 7]], 1, False)
    sources = Sources([MaxGram(), bigrams], calibration)
    alone, copied = Context([5, 3]), Context([*range(10), 3, *range(10), 3])
    assert sources.propose(alone, 3).sources == ("bigram",)
    assert sources.propose(copied, 3).source == "mag"
    sources.park("bigram")
    assert not sources.propose(alone, 3).tokens


@given(st.lists(st.integers(0, 3), min_size=12, max_size=80), st.floats(0, 1))
@settings(max_examples=60)
def test_a_copy_is_not_followed_where_its_first_token_cannot_pay(
    text: list[int], least: float
):
    context, ledger, mag, known = Context(text), Ledger(), MaxGram(), Calibration()
    sources, told = Sources([mag], known), known.source(mag)
    _, tokens, path = sources.propose(context, 9)
    ledger.settle(context)
    _, few, same = sources.propose(context, 9, ledger, least)
    assert few == tokens[: len(few)]
    assert same == path[: len(few)]
    if tokens and not few:  # not even its probability is worked out
        assert mag.is_vague
        assert path[0] < 0.25 < least
    else:
        assert len(few) == 1 or (path and path[0] >= least) or not tokens
    if len(few) == 1 < len(tokens):
        assert path[0] < least
    # What is not looked at teaches nothing; what is looked at does.
    heard: list[int] = []
    told.learn = lambda evidence, right, decided: heard.append(len(evidence))  # type: ignore[method-assign]
    ledger.close()
    assert heard == ([min(len(few), LOOKED_AT)] if few else [])


def recovered(truth: NDArray[np.float64], groups: list[range], seed: int) -> float:
    """The largest error of fitted log-odds of two buckets, one of each group."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(6000):
        buckets = np.array([random.choice(list(group)) for group in groups])
        right = random.random() < 1 / (1 + np.exp(-truth[buckets].sum()))
        found.append((buckets, bool(right)))
    weights, loss = fit(found, truth.size)
    assert 0 < loss < math.log(2)
    pairs = [np.array([a, b]) for a in groups[0] for b in groups[1]]
    return max(abs(float((weights - truth)[pair].sum())) for pair in pairs)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_recovers_known_log_odds(seed: int):
    truth = np.array([-1.5, 0.0, 1.0, -0.5, 0.8])
    assert recovered(truth, [range(3), range(3, 5)], seed) < 0.3


def test_the_prior_says_more_for_longer_matches_that_agree():
    copies = Calibration().source(MAG)
    silent = [odds(copies, rows(Copy(n, [(None,) * GRAM]), 1)) for n in (1, 8, 24)]
    agreeing = [
        odds(copies, rows(Copy(n, [((True, run, run),) * GRAM]), 1))
        for n, run in ((1, 1), (8, 3), (24, 6))
    ]
    against = odds(copies, rows(Copy(8, [((False, 3, 3),) * GRAM]), 1))
    assert silent[0] < silent[1] < silent[2]
    assert agreeing[0] < agreeing[1] < agreeing[2]
    assert agreeing[1] > 0.7 > 0.5 > silent[0]
    assert against < agreeing[1]


def test_the_prior_says_more_for_surer_drafters():
    drafter = Calibration().drafter("any")
    said = [0.05, 0.45, 0.85, 0.999]
    found = [odds(drafter, stated([p], [None])) for p in said]
    assert found == sorted(found)
    agrees, differs = (odds(drafter, stated([0.6], [same])) for same in (True, False))
    assert agrees > differs
