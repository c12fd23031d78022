"""Cascades of fakes say what the target says, whoever drafts and however it chooses.

`Near` is a model whose law is near the target's, so that drafts are right now and then.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft
from edgecs.decoding.cascade import Cascade, NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError, ModelError
from edgecs.sampling.chain import Choices, always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless, ScriptedDrafter, TableModel


class Near(CachingModel):
    """The target's logits with `noise` times those of another law."""

    def __init__(self, target: TableModel, noise: float, seed: int = 99, **kwargs):
        super().__init__(target.vocab_size, seed, **kwargs)
        self.near, self.noise = target, noise

    def law(self, prefix):
        return self.near.law(prefix) + np.float32(self.noise) * super().law(prefix)


def ids(stream) -> list[int]:
    return [token.id for token in stream]


@st.composite
def matrices(draw, size: int, most: int = 5) -> KMatrix:
    counts = st.integers(0, most)
    return KMatrix(
        tuple(
            tuple(draw(counts) if c >= r else 0 for c in range(size))
            for r in range(size)
        )
    )


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.5]),
    top_k=st.sampled_from([0, 0, 1, 3]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 0.7]),
    top_n_sigma=st.sampled_from([-1.0, 1.0]),
    xtc_probability=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.05, 0.3]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    repeat_last_n=st.sampled_from([-1, 3, 64]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    dry_allowed_length=st.integers(1, 3),
    dry_last_n=st.sampled_from([-1, 5]),
    logit_bias=st.sampled_from([(), ((0, 1.5), (1, -np.inf))]),
    seed=st.integers(0, 2**64 - 1),
)


@given(data=st.data(), sampling=samplings, depth=st.integers(1, 4))
@settings(max_examples=200)
def test_output_is_that_of_the_target_alone(data, sampling: Sampling, depth: int):
    vocab = data.draw(st.integers(3, 8))
    target = CachingModel(vocab, data.draw(st.integers(0, 3)))
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=6))
    choose = chooser(sampling, vocab, breakers={0: [()], 2: [(1,)]})
    expected = target.alone(prompt, 30, choose)
    noises = data.draw(
        st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=depth, max_size=depth)
    )
    models = [
        NamedModel(f"d{i}", Near(target, noise, i)) for i, noise in enumerate(noises)
    ][1:]
    matrix = data.draw(matrices(depth))
    assume(any(matrix.counts(0)))
    lenience = data.draw(st.sampled_from([1.0, 2.0, 5.0]))
    drafters = stack(models, MaxGram(), matrix, lenience=lenience)
    counts = matrix.counts(0)
    rule = always(choose)
    with Session(target, Endless(), drafters, draft_max=counts, rule=rule) as session:
        assert ids(session.generate(prompt, max_tokens=30)) == expected
        stats = session.stats
    assert stats.tokens == 1 + stats.accepted + stats.rounds == 30
    assert set(stats.forwards) == {named.name for named in models}


def play(matrix: str, *, lenience: float = 1.0, noise: float = 0.3, **settings):
    """One answer of 120 tokens by a target, one drafter, Max-Gram; its statistics."""
    target = CachingModel(4, 1)
    choose = chooser(Sampling(**settings), 4)
    k = KMatrix.parse(matrix)
    drafter = NamedModel("drafter", Near(target, noise))
    drafters = stack([drafter], MaxGram(), k, lenience=lenience)
    rule = always(choose)
    with Session(target, Endless(), drafters, draft_max=k.counts(0), rule=rule) as s:
        assert ids(s.generate([1], max_tokens=120)) == target.alone([1], 120, choose)
        return s.stats


def test_a_drafter_that_is_the_target_is_never_wrong_at_any_temperature():
    for temperature in (0.0, 0.8, 2.0):
        stats = play("4,0;0,0", noise=0.0, temperature=temperature, seed=5)
        assert stats.accepted == stats.tested > 0
        assert stats.mean_acceptance_length > 4.5


def test_the_vertical_cascade_saves_forwards_of_the_drafter():
    alone, reviewing = play("4,0;0,0"), play("4,0;0,4")
    assert alone.forwards["drafter"] == alone.proposed
    assert reviewing.forwards["drafter"] < alone.forwards["drafter"]
    assert reviewing.by_source()["mag"]["accepted"] > 0


def test_the_horizontal_cascade_goes_on_where_the_drafter_stops():
    assert set(play("4,0;0,0").by_source()) == {"drafter"}
    stats = play("2,3;0,0")
    assert 6 in stats.rounds_by_width
    assert stats.by_source()["mag"]["accepted"] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lenience_changes_drafts_and_nothing_else(temperature: float):
    strict = play("4,0;0,4", temperature=temperature)
    lenient = play("4,0;0,4", temperature=temperature, lenience=50.0)
    # More of Max-Gram's tokens pass the drafter, so it is asked less often per token.
    assert (
        lenient.forwards["drafter"] / lenient.proposed
        < strict.forwards["drafter"] / strict.proposed
    )
    assert lenient.by_source()["mag"]["proposed"] > 0


def test_a_lenient_reviewer_applies_the_papers_test():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    keeps = greedy.keeps
    assert keeps(logits, np.array([0]), 1, 1.0, 3.5)  # 0.3 > 1 / 3.5
    assert not keeps(logits, np.array([0]), 1, 1.0, 3.2)
    assert keeps(logits, np.array([0]), 1, 0.5, 2.0)  # 0.3 > 0.5 / 2
    assert not keeps(logits, np.array([0]), 1, 0.7, 2.0)


@given(st.integers(0, 2**31 - 1), st.floats(1.0, 30.0), st.integers(0, 4))
def test_lenience_compares_perturbed_scores(seed: int, lenience: float, token: int):
    row = TableModel(5, 3).law([seed])
    tokens = np.zeros(7, np.int32)
    choose = chooser(Sampling(temperature=1.0, seed=seed), 5)
    kept = choose.keeps(row, tokens, token, 1.0, lenience)
    # Raising the token's logit by log(lenience) makes it win exactly when it is kept.
    raised = row.copy()
    raised[token] += np.float32(np.log(lenience))
    assert kept == (choose(raised, tokens) == token)


def test_inner_reviewers_state_their_confidence_to_a_lenient_one():
    target = TableModel(5)
    matrix = KMatrix.parse("6,0,0;0,4,0;0,0,3")
    models = [NamedModel("a", Near(target, 0.2)), NamedModel("b", Near(target, 0.4, 7))]
    outer, inner, _ = stack(models, MaxGram(), matrix, lenience=3.0)
    assert isinstance(inner, Cascade)
    context = Context([1, 2, 3])
    draft = inner.propose(context, 5, greedy)
    said = np.concatenate([context.tokens, draft.tokens])
    for i, (token, stated) in enumerate(
        zip(draft.tokens, draft.confidences, strict=True)
    ):
        row = models[1].model.law(said[: 3 + i])
        law = np.exp(row - row.max())
        assert stated == pytest.approx(law[token] / law.sum(), rel=1e-5)
    assert not np.all(draft.confidences == 1)
    # Nobody above the outer reviewer is lenient, so it need not work anything out.
    assert np.all(outer.propose(context, 4, greedy).confidences == 1)


def test_a_draft_ends_with_an_end_token():
    target = TableModel(5)
    said = target.greedy([1], 6)
    good = ScriptedDrafter([1, *said], name="good")
    more = ScriptedDrafter([1, *said], name="more")
    cascade = Cascade(target, StaticSchedule([good, more], [2, 3], ends={said[1]}))
    done = cascade.step(Context([1]), Choices(greedy, greedy), 9)
    assert done.draft.tokens.tolist() == said[:2]


def test_a_drafter_fills_what_the_one_before_left_of_its_quota():
    said = TableModel(5).greedy([1], 9)
    brief = ScriptedDrafter([1, *said[:1]], name="brief")
    rest = ScriptedDrafter([1, *said], name="rest")
    cascade = Cascade(TableModel(5), StaticSchedule([brief, rest], [3, 2]))
    done = cascade.step(Context([1]), Choices(greedy, greedy), 9)
    assert done.draft.sources == ("brief", *["rest"] * 4)


def test_a_session_holds_every_model_of_its_cascade():
    target, near = TableModel(5), TableModel(5, 1)
    matrix = KMatrix.parse("2,0;0,2")
    drafters = stack([NamedModel("near", near)], MaxGram(), matrix)
    with (
        Session(target, Endless(), drafters, draft_max=(2, 0)),
        pytest.raises(ModelError, match="in use"),
    ):
        Session(near, Endless())
    with Session(near, Endless()), pytest.raises(ModelError, match="in use"):
        Session(target, Endless(), drafters, draft_max=(2, 0))
    Session(target, Endless()).close()  # the failure above released the target


def test_a_drafter_with_a_small_context_falls_silent_and_max_gram_goes_on():
    target = TableModel(4, 1)
    drafter = NamedModel("small", Near(target, 0.0, n_ctx=16))
    matrix = KMatrix.parse("2,2;0,0")
    drafters = stack([drafter], MaxGram(), matrix)
    with Session(target, Endless(), drafters, draft_max=(2, 2)) as session:
        assert ids(session.generate([1], max_tokens=60)) == target.greedy([1], 60)
        by_source = session.stats.by_source()
    assert 5 < by_source["small"]["proposed"] < 20
    assert by_source["mag"]["accepted"] > 0


class TestKMatrix:
    def test_reads_as_the_official_code_does(self):
        matrix = KMatrix.parse("5, 14,10;0,1,10; 0,0,10")
        assert matrix.counts(0) == (5, 14, 10)
        assert matrix.counts(1) == (1, 10)
        assert matrix.counts(2) == (10,)
        assert matrix.counts(3) == ()
        assert KMatrix.parse(str(matrix)) == matrix

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not a K matrix"),
            ("5,x;0,1", "not a K matrix"),
            ("5;1;2", "row 0 has 1 counts and there are 3 rows"),
            ("5,1;3,1", "has 3 in row 1, column 0"),
            ("5,-1;0,1", "a count below 0"),
        ],
    )
    def test_refuses_what_is_none(self, text: str, message: str):
        with pytest.raises(ConfigError, match=message):
            KMatrix.parse(text)

    def test_must_fit_the_drafters(self):
        with pytest.raises(ConfigError, match=r"2 rows but there are 1 drafters \(mag"):
            stack([], MaxGram(), KMatrix.parse("1,1;0,1"))

    def test_a_row_wider_than_a_call_is_refused(self):
        with pytest.raises(ConfigError, match="draft of 64 tokens is not possible"):
            Session(TableModel(5), Endless(), [MaxGram()], draft_max=(64,))

    def test_the_plain_schedule(self):
        assert str(KMatrix.first_writes(2, 3)) == "3,0;0,3"


@pytest.mark.parametrize("lenience", [0.0, 0.99, float("nan")])
def test_lenience_below_one_is_refused(lenience: float):
    with pytest.raises(ConfigError, match="lenience must be 1"):
        Cascade(TableModel(5), StaticSchedule(), lenience=lenience)


def test_drafts_keep_what_their_writers_stated():
    first = Draft.chain([1, 2], "a", [0.5, 0.25])
    whole = first.then(Draft.chain([3], "b"))
    assert whole.confidences.tolist() == [0.5, 0.25, 1.0]
    assert whole.clip(1).confidences.tolist() == [0.5]
