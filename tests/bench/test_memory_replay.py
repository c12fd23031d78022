"""Replays of scenarios: what the stores know when, and what is made of it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.drafters.copies import LONGEST
from edgecs.memory.model_files import Identity, listed_files
from edgecs.memory.phrases import write_phrases
from edgecs_bench.hardware.curves import CURVES
from edgecs_bench.memory.phrases import frequent, read_phrases
from edgecs_bench.memory.prior import examples
from edgecs_bench.memory.replay import (
    LEVELS,
    Life,
    Played,
    Recorded,
    over_plain,
    prepared,
    reported,
)
from edgecs_bench.memory.scenarios import FOLDER, Place, read_scenarios
from edgecs_bench.memory.stores import look_up
from edgecs_bench.memory.summary import summary
from edgecs_bench.memory.traces import FORMAT, Answer, read_answers, write_answers

FLAT = next(curve for curve in CURVES if curve.name == "flat")
ids = st.integers(0, 200_000)


def answer(
    output: list[int],
    prompt: list[int],
    place: Place,
    category: str = "again",
    tuning: bool = False,
) -> Answer:
    ranked = [[token] for token in output]
    return Answer(category, "x", tuning, place, prompt, output, ranked)


def sessions(count: int, *, same: bool) -> list[Answer]:
    """Sessions with the same answer to a different prompt, or with different ones."""
    found = []
    for s in range(count):
        start = 10_000 if same else 10_000 + 100 * s
        output = list(range(start, start + 40))
        found.append(answer(output, [s, s + 1], Place(s, 0, 0)))
    return found


def rounds(recorded: Recorded, level: str) -> list[int]:
    return [one.rounds for one in Life(recorded, level, FLAT, 1).play()]


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    output = draw(st.lists(ids, max_size=4))
    ranked = [draw(st.lists(ids, min_size=1, max_size=8)) for _ in output]
    place = Place(*(draw(st.integers(0, 20)) for _ in Place._fields))
    prompt = draw(st.lists(ids, min_size=1, max_size=4))
    words = st.text(max_size=5)
    return Answer(
        draw(words), draw(words), draw(st.booleans()), place, prompt, output, ranked
    )


class TestTraces:
    @given(said=st.lists(answers(), max_size=3), target=st.text(max_size=5))
    @settings(max_examples=30)
    def test_they_come_back_as_they_were(
        self, tmp_path_factory: pytest.TempPathFactory, said: list[Answer], target: str
    ):
        path = tmp_path_factory.mktemp("traces") / "some.jsonl.gz"
        write_answers(path, target, said)
        assert read_answers(path) == (target, said)

    @pytest.mark.parametrize(
        "change",
        [
            {"prompt": []},
            {"output": [1, -1]},
            {"output": [1]},
            {"ranked": [[1], []]},
            {"ranked": [[1], ["2"]]},
            {"turn": "x"},
        ],
    )
    def test_a_line_that_lies_is_named(self, tmp_path: Path, change: dict[str, object]):
        good = answer([1, 2], [3], Place(0, 0, 0))
        fields = good._asdict() | good.place._asdict() | change
        del fields["place"]
        path = tmp_path / "bad.jsonl.gz"
        write_answers(path, "t", [])

        with gzip.open(path, "at", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
        with pytest.raises(click.UsageError, match="line 2"):
            read_answers(path)

    def test_another_format_is_refused(self, tmp_path: Path):
        path = tmp_path / "cut.jsonl.gz"
        write_answers(path, "t", [answer([1, 2], [3], Place(0, 0, 0))])
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(click.UsageError):
            read_answers(path)
        assert FORMAT.endswith("/1")


class TestScenarios:
    def test_both_halves_have_every_category_and_texts_are_filled_in(self):
        scenarios = read_scenarios()
        halves = Counter((s.category, s.tuning) for s in scenarios)
        assert len(set(halves.values())) == 1
        assert len(halves) == 2 * len({s.category for s in scenarios})
        assert len({(s.category, s.name) for s in scenarios}) == len(scenarios)
        for scenario in scenarios:
            for _, _, questions in scenario.conversations():
                assert not any("<<" in question for question in questions)
            if scenario.category == "again":
                assert len(scenario.sessions) == 11

    @pytest.mark.parametrize("file", sorted(FOLDER.glob("*.jsonl.gz")), ids=str)
    def test_committed_answers_are_those_of_the_scenarios(self, file: Path):
        known = {(s.category, s.name): s for s in read_scenarios()}
        _, said = read_answers(file)
        places = [(a.scenario, a.place) for a in said]
        assert len(set(places)) == len(places)
        for one in said:
            scenario = known[one.scenario]
            assert one.tuning == scenario.tuning
            assert len(one.output) <= scenario.most
            session, conversation, turn = one.place
            assert turn < len(scenario.sessions[session][conversation])


texts = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5)


def grams(text: list[int], size: int) -> set[tuple[int, ...]]:
    return {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}


@given(texts=texts, least=st.integers(1, 4), times=st.integers(1, 3))
def test_phrases_are_runs_that_several_texts_share(
    texts: list[list[int]], least: int, times: int
):
    found = frequent(texts, least, times)
    shared = Counter(gram for text in texts for gram in grams(text, least))
    kept = set[tuple[int, ...]]()
    for phrase in found:
        assert len(phrase) >= least
        kept |= grams(phrase, least)
    assert kept == {gram for gram, count in shared.items() if count >= times}
    rarest = [min(shared[g] for g in grams(phrase, least)) for phrase in found]
    assert rarest == sorted(rarest, reverse=True)


class TestLevels:
    def test_the_users_store_knows_earlier_sessions_and_a_session_does_not(self):
        recorded = prepared("t", sessions(11, same=True), ())
        alone, session, user = (rounds(recorded, level) for level in LEVELS[:3])
        assert session == alone
        assert user[0] == alone[0]
        assert user[-1] < alone[-1] / 2

    def test_a_session_knows_its_earlier_conversations(self):
        output = list(range(500, 540))
        said = [answer(output, [c, c + 1], Place(0, c, 0)) for c in range(6)]
        recorded = prepared("t", said, ())
        alone, session = (rounds(recorded, level) for level in LEVELS[:2])
        assert session[0] == alone[0]
        assert session[-1] < alone[-1] / 2

    def test_phrases_are_known_from_the_start(self):
        said = sessions(4, same=False)
        phrases = [one.output for one in said]
        recorded = prepared("t", said, phrases)
        assert all(not found for found in recorded.user)
        assert all(recorded.phrases)
        assert rounds(recorded, "phrases")[-1] < rounds(recorded, "recycling")[-1]

    def test_nothing_is_found_in_an_answer_itself_or_in_later_ones(self):
        said = sessions(3, same=True)
        first, *later = look_up(said)
        assert not first
        for found, one in zip(later, said[1:], strict=True):
            text = [*one.prompt, *one.output]
            for end, match in found.items():
                assert match.length <= min(LONGEST, len(end))
                at = text.index(match.tokens[0])
                assert text[at : at + len(match.tokens)] == match.tokens

    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("leaves", [1, 4])
    def test_every_level_gives_all_tokens(self, level: str, leaves: int):
        said = [
            one._replace(tuning=i < 2) for i, one in enumerate(sessions(5, same=True))
        ]
        recorded = prepared("t", said, ())
        played = Life(recorded, level, FLAT, leaves).play()
        assert [one.answer for one in played] == said
        assert all(1 <= one.rounds <= one.tokens for one in played)
        assert all(one.answer.tuning is False for one in reported(played))
        plain = FLAT.round(1) * 39
        assert all(one.plain == pytest.approx(plain) for one in played)

    def test_tuning_comes_first_whatever_the_order_of_the_file(self):
        said = [
            one._replace(tuning=i % 2 == 1)
            for i, one in enumerate(sessions(4, same=False))
        ]
        order = [one.place.session for one in prepared("t", said, ()).answers]
        assert order == [1, 3, 0, 2]

    def test_a_lookup_takes_time_on_the_clock(self):
        said = sessions(3, same=False)  # nothing is ever found
        recorded = prepared("t", said, ())
        alone = Life(recorded, "max_gram", FLAT, 1).play()
        user = Life(recorded, "user", FLAT, 1).play()
        assert sum(one.ms for one in user) > sum(one.ms for one in alone)
        assert over_plain(user) == pytest.approx(over_plain(alone), rel=0.01)


def test_examples_are_those_of_the_tuning_half():
    said = [one._replace(tuning=i < 3) for i, one in enumerate(sessions(5, same=True))]
    phrases = [said[0].output]
    found = [*examples(prepared("t", said, phrases))]
    for store, rest in (("user", 2), ("phrases", 3)):
        right = [is_right for name, (_, is_right) in found if name == store]
        assert len(right) > 20 * rest
        assert all(right)
    untuned = [one._replace(tuning=False) for one in said]
    assert not [*examples(prepared("t", untuned, phrases))]


def test_phrases_of_a_build_are_read(tmp_path: Path):
    model = Identity("m", "ab" * 16, "cd" * 32, 99)
    write_phrases(tmp_path, model, [[1, 2, 3], [4, 5]])
    (file,) = listed_files(tmp_path)
    assert read_phrases(file.path) == [[1, 2, 3], [4, 5]]
    file.path.write_bytes(b"x")
    with pytest.raises(click.UsageError, match="memory build"):
        read_phrases(file.path)


def test_ratios_of_a_summary_are_those_of_the_times():
    def played(ms: float, place: Place, category: str) -> Played:
        one = answer([1] * 11, [1], place, category)
        return Played(one, ms, 5, 100.0)

    def all_of(speed: float) -> list[Played]:
        return [
            played(100 / speed, Place(0, 0, 0), "document"),
            played(50 / speed, Place(0, 0, 1), "document"),
            played(25 / speed, Place(0, 1, 0), "document"),
            *(played(100 / speed, Place(s, 0, 0), "again") for s in range(10)),
            played(100 / speed**2, Place(10, 0, 0), "again"),
        ]

    found = summary({level: all_of(1 + i) for i, level in enumerate(LEVELS)})
    last = LEVELS[-1]
    assert found["second_turn_over_first"][last] == {"document": 2.0, "both": 2.0}
    assert found["cleared_over_first"][last]["document"] == 4.0
    assert found["eleventh_session_over_maxgram"][last] == 25.0
    assert found["by_session_over_maxgram"] == [5.0] * 10 + [25.0]
    assert found["turns_over_maxgram"] == {"first": 5.0, "second": 5.0, "cleared": 5.0}
    assert found["levels"]["max_gram"]["tokens_per_round"] == 2.0
    assert set(found["categories_over_maxgram"]) == {"document", "again"}
    assert found["recycling"] == pytest.approx(4 / 3, rel=0.02)
