"""Stores of texts under the planner: the same answers, and only lookups that pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.corpus import Corpus, Match
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.recalled import Recalled
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.registry import branches_of, usual_sources
from edgecs.drafters.source import Source
from edgecs.planning.acceptance import Calibration
from edgecs.planning.lookups import Lookups
from edgecs.planning.planner import Planner
from edgecs.planning.trees import Trees
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs_bench.hardware.curves import curve
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import FLAT, STEEP, Near, Timed, opened, planned

VOCAB, PROMPT = 24, [1, 2, 3, 4]
rule = always(chooser(Sampling(1.0, seed=4), VOCAB))  # texts that do not repeat


class Asked:
    """A corpus that counts and takes time. tokens: what it says, None: it fails."""

    def __init__(
        self,
        watch: Watch,
        tokens: Sequence[int] | None = None,
        *,
        text: Sequence[int] = (),
        seconds: float = 5e-5,
    ) -> None:
        self.asked, self._watch, self._seconds = 0, watch, seconds
        self._tokens, self._text = tokens, RecentTexts(1 << 10)
        self._text.add(text)
        self._recites = bool(text)

    def match(self, end: Sequence[int], k: int) -> Match | None:
        self.asked += 1
        self._watch.pass_by(self._seconds)
        if self._recites:
            return self._text.match(end, k)
        if self._tokens is None:
            raise OSError("the disk has failed")
        return Match(9, 3, 3, [*self._tokens[:k]])


def alone(target: Timed, size: int, prompt: Sequence[int] = PROMPT) -> list[int]:
    return target.alone([*prompt], size, chooser(Sampling(1.0, seed=4), VOCAB))


def stored(target: Timed, corpus: Corpus, **options: Any) -> Planner:
    sources: list[Source] = [MaxGram(), Recalled(corpus, "user"), Bigrams()]
    return planned(target, sources=sources, **options)


def steep(**options: Any) -> Timed:
    return Timed(Watch(), VOCAB, 3, single=4.0, **options)


def test_a_store_that_knows_the_text_is_used():
    target = steep()
    expected = alone(target, 200)
    corpus = Asked(target.watch, text=[*PROMPT, *expected])
    with opened(target, stored(target, corpus), rule=rule) as session:
        said = [t.id for t in session.generate(PROMPT, max_tokens=200)]
        stats = session.stats
        assert said == expected
        assert stats.by_source()["user"]["accepted"] > 120
        assert stats.rounds < 80
        assert corpus.asked > stats.rounds / 2


@pytest.mark.parametrize("says", [[5] * 8, [23, 22, 21]])
def test_a_store_that_is_wrong_is_seldom_asked(says: list[int]):
    target = steep()
    expected = alone(target, 900)
    corpus = Asked(target.watch, says)
    planner = stored(target, corpus)
    source = planner.sources.all[1]
    before = planner.calibration.source(source).kept.sum()
    with opened(target, planner, rule=rule) as session:
        said, asked = [], 0
        for token in session.generate(PROMPT, max_tokens=900):
            said.append(token.id)
            if len(said) == 600:
                asked = corpus.asked
        assert said == expected
        late = corpus.asked - asked
    assert late < 300 / 10
    assert planner.calibration.source(source).kept.sum() < before


def test_a_store_that_takes_too_long_is_hardly_asked():
    target = steep()
    expected = alone(target, 300)
    corpus = Asked(target.watch, text=[*PROMPT, *expected], seconds=0.5)
    with opened(target, stored(target, corpus), rule=rule) as session:
        assert [t.id for t in session.generate(PROMPT, max_tokens=300)] == expected
    assert corpus.asked < 20


def test_nothing_is_looked_up_where_nothing_can_pay():
    target = steep(relative=STEEP)
    corpus = Asked(target.watch, [5] * 8)
    with opened(target, stored(target, corpus), rule=rule) as session:
        for _ in session.generate(PROMPT, max_tokens=400):
            pass
    assert corpus.asked * 5e-5 < 0.005 * target.watch.now()


@pytest.mark.faults
def test_a_store_that_fails_is_parked():
    target = steep()
    corpus = Asked(target.watch)
    with opened(target, stored(target, corpus), rule=rule) as session:
        said = [t.id for t in session.generate(PROMPT, max_tokens=60)]
        assert said == alone(target, 60)
        assert list(session.stats.faults) == ["user"]
    assert corpus.asked == 1


def test_the_same_question_again_is_answered_from_recent_texts():
    target, texts = steep(), RecentTexts(1 << 12)
    expected = alone(target, 120)
    rounds = []
    for _ in range(2):  # two sessions that share the texts
        planner = planned(target, sources=usual_sources(recent=texts))
        with opened(target, planner, rule=rule) as session:
            for _ in range(2):
                said = [t.id for t in session.generate(PROMPT, max_tokens=120)]
                assert said == expected
                rounds.append(session.stats.rounds)
                session.generate([9, 8, 7], max_tokens=3).close()
                for _ in session.generate([7, 8, 9], max_tokens=3):
                    pass
    assert all(again < rounds[0] / 2 for again in rounds[1:])


def test_an_answer_without_memory_neither_reads_nor_writes_it():
    target, texts = steep(), RecentTexts(1 << 12)
    corpus = Asked(target.watch, [5] * 8)
    sources = usual_sources(recent=texts, memory=corpus)
    with opened(target, planned(target, sources=sources), rule=rule) as session:
        for _ in session.generate(PROMPT, max_tokens=40, memory=False):
            pass
        assert corpus.asked == 0
        for _ in session.generate([9, 8, 7], max_tokens=3):
            pass
        assert corpus.asked > 0
        known = [*PROMPT, *alone(target, 40)]
        assert not any(texts.match(known[:i], 1) for i in range(3, len(known)))


def test_agreement_raises_a_proposal_and_dissent_lowers_it():
    target = steep()
    source = Recalled(Asked(target.watch, [5, 6]), "user")
    acceptance = Calibration().source(source)
    odds = []
    for beside in ([5], [], [7]):
        source.continuation(opened_context(), 2)
        source.compare(beside)
        odds.append(acceptance.odds(next(source.evidence([5]))))
    assert odds[0] > odds[1] + 0.1 > odds[2] + 0.2


def opened_context():
    from edgecs.core.context import Context

    return Context(PROMPT)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 1))))
def test_no_store_is_left_for_ever(seen: list[tuple[float, float, float]]):
    lookups = Lookups()
    for promised, added, seconds in seen:
        lookups.learn(promised, added, seconds)
    for promised in (0.0, 0.3, 1.0, 5.0):
        asked = [lookups.due(promised, 0.0) for _ in range(300)]
        assert 4 <= sum(asked) < 20
        assert all(lookups.due(promised, 1e99) for _ in range(9))


def said_by(draw: Any, watch: Watch, vocab: int, known: list[int]) -> Corpus:
    """A corpus of any kind: wrong, right in part, hostile, or failing."""
    ids = st.integers(-3, vocab + 3)
    kind = draw(st.sampled_from(["noise", "text", "fails"]))
    if kind == "fails":
        return Asked(watch)
    if kind == "noise":
        return Asked(watch, draw(st.lists(ids, min_size=1, max_size=20)))
    return Asked(watch, text=[t for t in known if draw(st.integers(0, 9))])


@pytest.mark.faults
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@given(data=st.data())
@settings(max_examples=60)
def test_answers_are_those_of_the_target_alone(data: st.DataObject, temperature: float):
    draw = data.draw
    vocab, memory = draw(st.integers(3, 6)), draw(st.sampled_from([2, 3, 4096]))
    target = Timed(Watch(), vocab, draw(st.integers(0, 9)), memory=memory)
    relative = draw(st.sampled_from([FLAT, STEEP, {1: 1, 2: 2.2, 4: 1.5, 8: 1.6}]))
    target.times = curve("", 10.0, relative, 0.0).times / 1e3
    noises = draw(st.lists(st.sampled_from([0.0, 0.3, 2.0]), max_size=1))
    models = [Near(target, noise, single=0.5) for noise in noises]
    leaves = target.max_leaves = draw(st.sampled_from([1, 4]))
    choose = chooser(Sampling(temperature, seed=draw(st.integers(0, 99))), vocab)
    texts = RecentTexts(draw(st.sampled_from([32, 1 << 10])))
    first = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=4))
    corpus = said_by(draw, target.watch, vocab, target.alone(first, 40, choose))
    for _ in range(2):  # sessions
        sources = usual_sources(
            trees=leaves > 1, recent=texts, memory=corpus, vocab_size=vocab
        )

        def trees(calibration: Calibration, sources: Any = sources) -> Trees:
            return Trees(branches_of(sources), calibration, leaves)

        planner = planned(
            target, models, sources=sources, trees=trees if leaves > 1 else None
        )
        with opened(target, planner, rule=always(choose)) as session:
            prompt = first
            for _ in range(draw(st.integers(1, 3))):  # turns and other conversations
                with_memory = draw(st.booleans())
                answer = session.generate(prompt, max_tokens=30, memory=with_memory)
                said = [token.id for token in answer]
                assert said == target.alone(prompt, 30, choose)
                kept = session.context.tokens.tolist()
                cut = draw(st.integers(0, len(kept)))
                more = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=4)
                prompt = [*kept[: draw(st.sampled_from([0, cut, len(kept)]))]]
                prompt = [*prompt, *draw(more)]
            assert set(session.stats.faults) <= {"user"}
