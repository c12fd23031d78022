"""Sessions on fakes: the tokens of plain decoding, whatever drafts and stops do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.draft import NOTHING, Draft
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError, ContextFull, ModelError
from edgecs.session.answer import Token
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless, ScriptedDrafter, TableModel


def ids(stream) -> list[int]:
    return [token.id for token in stream]


@st.composite
def drafters(draw, vocab: int, script: list[int]):
    """MaG, scripts of any quality, and reviewers over them up to three levels deep."""
    kind = draw(st.sampled_from(["mag", "script", "cascade"]))
    if kind == "mag":
        return MaxGram(
            bigram_fill=draw(st.booleans()), min_match=draw(st.integers(1, 4))
        )
    if kind == "script":
        wrong = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
        return ScriptedDrafter(script, wrong=wrong, vocab_size=vocab)
    below = draw(st.lists(drafters(vocab, script), min_size=1, max_size=2))
    counts = draw(st.lists(st.integers(0, 5), min_size=len(below), max_size=len(below)))
    reviewer = CachingModel(vocab, seed=draw(st.integers(0, 1)))
    return Cascade(reviewer, StaticSchedule(below, counts), name="inner")


@given(data=st.data(), seed=st.integers(0, 1), vocab=st.integers(2, 6))
@settings(max_examples=120)
def test_output_is_that_of_the_target_alone(data, seed: int, vocab: int):
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=8))
    expected = TableModel(vocab, seed).greedy(prompt, 40)
    chain = data.draw(
        st.lists(drafters(vocab, prompt + expected), min_size=1, max_size=3)
    )
    draft_max = data.draw(st.integers(1, 9))
    model = CachingModel(vocab, seed, partial=data.draw(st.booleans()))
    with Session(model, Endless(), chain, draft_max=draft_max) as session:
        assert ids(session.generate(prompt, max_tokens=40)) == expected
        stats = session.stats
        assert stats.tokens == 1 + stats.accepted + stats.rounds == 40
        assert stats.accepted <= stats.tested <= stats.proposed
        assert sum(stats.rounds_by_width.values()) == stats.rounds
        parts = stats.by_source().values()
        assert sum(part["accepted"] for part in parts) == stats.accepted


@given(stops=st.lists(st.integers(1, 9), min_size=1, max_size=8), wrong=st.floats(0, 1))
def test_stopping_anywhere_and_going_on_equals_one_run(stops: list[int], wrong: float):
    prompt, n = [1, 2], sum(stops)
    expected = TableModel(5).greedy(prompt, n)
    drafter = ScriptedDrafter(prompt + expected, wrong=wrong, vocab_size=5)
    with Session(CachingModel(5), Endless(), [drafter], draft_max=4) as session:
        got: list[int] = []
        for count in stops:
            stream = session.generate([*prompt, *got])
            got += ids(itertools.islice(stream, count))
            stream.close()
            assert session.context.tokens.tolist() == prompt + got
    assert got == expected


def test_the_call_that_reads_the_prompt_takes_no_draft():
    drafter = ScriptedDrafter([1, *TableModel(5).greedy([1], 9)])
    with Session(TableModel(5), Endless(), [drafter], draft_max=4) as session:
        ids(session.generate([1], max_tokens=1))
        assert session.stats.rounds == session.stats.proposed == 0


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6])
def test_max_tokens_is_exact(n: int):
    prompt = [1, 2]
    script = prompt + TableModel(5).greedy(prompt, 20)
    drafter = ScriptedDrafter(script)
    with Session(TableModel(5), Endless(), [drafter], draft_max=4) as session:
        assert ids(session.generate(prompt, max_tokens=n)) == script[2 : 2 + n]
        assert session.finish_reason == "length"
        assert session.stats.tested == session.stats.accepted  # nothing past the limit


@pytest.mark.parametrize("wrong", [0.0, 0.5, 1.0])
def test_the_context_is_used_to_its_last_cell(wrong: float):
    prompt = [1, 2, 3]
    script = prompt + TableModel(5, n_ctx=16).greedy(prompt, 20)
    drafter = ScriptedDrafter(script, wrong=wrong, vocab_size=5)
    model = CachingModel(5, n_ctx=16)
    with Session(model, Endless(), [drafter], draft_max=6) as session:
        # 16 cells give rows for 14 tokens after 3; the last of them has no cell.
        assert ids(session.generate(prompt)) == script[3:17]
        assert session.finish_reason == "context"
        assert ids(session.generate(script[:16])) == script[16:17]
        with pytest.raises(ContextFull, match="has 17 tokens but the context holds 16"):
            session.generate(script[:17])


def test_an_end_token_inside_a_draft_ends_the_answer():
    model = TableModel(257)
    said = model.greedy([1], 8)
    tokenizer = Endless()
    tokenizer.ends = frozenset({said[4]})
    drafter = ScriptedDrafter([1, *said])
    with Session(model, tokenizer, [drafter], draft_max=8) as session:
        assert ids(session.generate([1])) == said[:5]
        assert session.finish_reason == "stop"
        assert session.context.tokens.tolist() == [1, *said[:5]]


class Letters(Endless):
    """Token 0 is 'a', 1 is 'b', ..."""

    def piece(self, token: int) -> bytes:
        return bytes([ord("a") + token])


def test_the_next_turn_starts_where_plain_decoding_would():
    said = TableModel(5).greedy([1, 2], 30)
    stop = "".join(chr(ord("a") + t) for t in said[5:8])
    fed, lasts = [], []
    for draft_max in (0, 7):
        drafter = ScriptedDrafter([1, 2, *said])
        with Session(
            CachingModel(5), Letters(), [drafter], draft_max=draft_max
        ) as session:
            first = list(session.generate([1, 2], stop=[stop]))
            lasts.append(first[-1].source)
            ids(session.generate([1, 2, *ids(first), 4, 4, 4], max_tokens=1))
            fed.append(session.stats.prompt_tokens - session.stats.cached_tokens)
    # The stop comes inside a draft, whose cells go further than the answer.
    assert lasts == ["target", "script"]
    assert fed == [4, 4]  # the last token of the answer and the three new ones


@pytest.mark.parametrize("draft_max", [0, 3, 9])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(draft_max: int):
    said = TableModel(5).greedy([1], 30)
    text = "".join(chr(ord("a") + t) for t in said)
    stop = text[6:9]
    end = text.index(stop) + len(stop)
    drafter = ScriptedDrafter([1, *said])
    with Session(CachingModel(5), Letters(), [drafter], draft_max=draft_max) as session:
        tokens = list(session.generate([1], stop=[stop, "zzz"]))
        assert ids(tokens) == said[:end]
        assert "".join(t.text for t in tokens) == text[: end - len(stop)]
        assert session.finish_reason == "stop"
        cut = tokens[-1].source == "script"
        stats = session.stats
        assert stats.tokens == 1 + stats.accepted + stats.rounds - cut


def test_text_that_waits_goes_out_when_the_answer_ends():
    with Session(TableModel(5), Letters(), draft_max=0) as session:
        said = TableModel(5).greedy([1], 3)
        text = "".join(chr(ord("a") + t) for t in said)
        tokens = list(session.generate([1], max_tokens=3, stop=[text + "!"]))
        assert [t.text for t in tokens] == ["", "", text]


def test_cancelling_ends_the_answer_within_a_round():
    said = TableModel(5).greedy([1], 60)
    drafter = ScriptedDrafter([1, *said])
    with Session(CachingModel(5), Letters(), [drafter], draft_max=4) as session:
        tokens: list[Token] = []
        for token in session.generate([1], stop=["nothing like this"]):
            tokens.append(token)
            if len(tokens) == 8:
                session.target.cancel.set()
        assert session.finish_reason == "cancelled"
        assert ids(tokens) == said[: len(tokens)]
        assert len(tokens) <= 8 + 5
        assert ids(session.generate(session.context.tokens)) == []
        session.target.cancel.clear()
        rest = ids(session.generate(session.context.tokens, max_tokens=5))
        assert rest == said[len(tokens) : len(tokens) + 5]


def test_tokens_say_who_wrote_them():
    said = TableModel(5).greedy([1], 9)
    drafter = ScriptedDrafter([1, *said])
    with Session(TableModel(5), Endless(), [drafter], draft_max=2) as session:
        sources = [t.source for t in session.generate([1], max_tokens=7)]
    assert sources == ["target", *["script", "script", "target"] * 2]


def test_statistics_name_sources_and_positions():
    said = TableModel(5).greedy([1], 30)
    good = ScriptedDrafter([1, *said], name="good")
    bad = ScriptedDrafter([1, *said], wrong=1.0, vocab_size=5, name="bad")
    with Session(TableModel(5), Endless(), [good, bad], draft_max=2) as session:
        ids(session.generate([1], max_tokens=13))
        block = session.stats.speculative(session.chain, None)
    assert block["chain"] == ["target", "good", "bad"]
    assert block["by_level"] == {
        "good": {"proposed": 8, "tested": 8, "accepted": 8},
        "bad": {"proposed": 6, "tested": 6, "accepted": 0},
    }
    assert block["accept_per_pos"] == [1.0, 1.0, 0.0, 0.0]
    assert block["rounds"] == 4
    assert block["mean_accept_len"] == 3.0
    assert block["rounds_by_width"] == {"3": 1, "5": 3}


def test_a_drafter_that_writes_too_much_is_clipped():
    class Verbose(ScriptedDrafter):
        def propose(self, context, k, choose=None):
            return super().propose(context, k + 3)

    said = TableModel(5).greedy([1], 12)
    with Session(
        TableModel(5), Endless(), [Verbose([1, *said])], draft_max=2
    ) as session:
        assert ids(session.generate([1], max_tokens=10)) == said[:10]
        stats = session.stats
    assert set(stats.rounds_by_width) == {3}
    assert (stats.proposed, stats.tested) == (15, 6)


def test_a_model_that_cannot_rewind_decodes_plainly_and_says_so():
    model = TableModel(5, rewindable=False)
    with Session(model, Endless(), [MaxGram()], draft_max=4) as session:
        assert session.chain == ["target"]
        assert "cannot remove" in str(session.off_reason)
        assert ids(session.generate([1], max_tokens=9)) == model.greedy([1], 9)


def test_an_answer_under_way_ends_when_the_next_begins():
    with Session(CachingModel(5), Endless(), draft_max=0) as session:
        first = session.generate([1])
        assert next(first).id == TableModel(5).greedy([1], 1)[0]
        second = session.generate([2, 3], max_tokens=4)
        assert list(first) == []
        assert ids(second) == TableModel(5).greedy([2, 3], 4)
        third = session.generate([4])
        next(third)
    assert list(third) == []


def test_a_model_has_one_holder():
    model = TableModel(5)
    with (
        Session(model, Endless()),
        pytest.raises(ModelError, match="in use"),
    ):
        Session(model, Endless())
    Session(model, Endless()).close()


@pytest.mark.parametrize("draft_max", [-1, 64])
def test_impossible_draft_lengths_are_refused(draft_max: int):
    with pytest.raises(ConfigError, match="between 0 and 63"):
        Session(TableModel(5), Endless(), [MaxGram()], draft_max=draft_max)
    Session(TableModel(5), Endless()).close()  # a refused session holds nothing


def test_an_empty_prompt_is_refused():
    with (
        Session(TableModel(5), Endless()) as session,
        pytest.raises(ConfigError, match="empty"),
    ):
        session.generate([])


def test_drafters_are_told_before_anything_is_committed():
    class Witness(ScriptedDrafter):
        def observe(self, context, draft, rows, verdict):
            lengths.append((len(context), rows.logits.shape[0], len(draft)))

    lengths: list[tuple[int, int, int]] = []
    said = TableModel(5).greedy([1], 9)
    with Session(
        TableModel(5), Endless(), [Witness([1, *said])], draft_max=2
    ) as session:
        ids(session.generate([1], max_tokens=7))
    assert lengths == [(1, 1, 0), (2, 3, 2), (5, 3, 2)]


def test_inner_reviewers_stop_at_their_own_context():
    said = TableModel(5).greedy([1], 40)
    inner = Cascade(
        CachingModel(5, n_ctx=6), StaticSchedule([MaxGram()], [3]), name="inner"
    )
    with Session(TableModel(5), Endless(), [inner], draft_max=4) as session:
        assert ids(session.generate([1], max_tokens=30)) == said[:30]
        assert session.stats.by_source()["inner"]["accepted"]


def test_drafts_join_in_order():
    both = Draft.chain([1, 2], "a").then(Draft.chain([3], "b"))
    assert both.tokens.tolist() == [1, 2, 3]
    assert both.sources == ("a", "a", "b")
    assert both.is_chain
    assert NOTHING.then(both) is both
    assert both.clip(2).sources == ("a", "a")
    roots = np.array([-1, -1], np.int32)
    tree = Draft(np.array([1, 2], np.int32), roots, ("a", "a"), np.ones(2))
    assert not tree.is_chain
    grown = tree.then(both).then(tree)
    assert grown.parents.tolist() == [-1, -1, 1, 2, 3, 4, 4]
    assert grown.sources == ("a", "a", "a", "a", "b", "a", "a")
