"""Drafters that read an excerpt of a long context: what it has, and that it drafts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, LanguageModel, Request, score_one
from edgecs.decoding.beside import RowKeeper
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.excerpt_reader import ExcerptReader
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.retrieval import excerpt
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ContextFull
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless, TableModel

WORDS = 5000  # tokens of random texts


def array(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, dtype=np.int32)


def within(part: Tokens, whole: Tokens) -> bool:
    """Whether some tokens are in a text in this order, with others between them."""
    rest = iter(whole.tolist())
    return all(token in rest for token in part.tolist())


def contains(text: Tokens, part: Tokens) -> bool:
    """Whether some tokens are in a text one after the other."""
    return part.tobytes() in {
        text[at : at + part.size].tobytes() for at in range(text.size)
    }


class TestExcerpt:
    @given(
        tokens=st.lists(st.integers(0, 20), min_size=1, max_size=500).map(array),
        size=st.integers(1, 600),
        asked=st.none() | st.integers(-5, 600),
    )
    @settings(max_examples=300)
    def test_it_is_a_part_that_ends_as_the_text_does(
        self, tokens: Tokens, size: int, asked: int | None
    ):
        found = excerpt(tokens, size, asked)
        assert found.dtype == np.int32
        assert found.size == min(size, tokens.size)
        assert within(found, tokens)
        last = min(max(1, size // 2), tokens.size)
        assert found[-last:].tolist() == tokens[-last:].tolist()
        first = min(64, size // 8)
        assert found[:first].tolist() == tokens[:first].tolist()
        assert found.tolist() == excerpt(tokens.copy(), size, asked).tolist()

    @given(seed=st.integers(0, 9999), place=st.floats(0, 1), size=st.just(512))
    @settings(max_examples=40)
    def test_it_has_the_sentence_that_the_question_is_about(
        self, seed: int, place: float, size: int
    ):
        """Few words are frequent, as in a language; the sentence has two rare ones."""
        random = np.random.default_rng(seed)
        text = (random.zipf(1.3, 8000) % WORDS).astype(np.int32)
        told = array([3, WORDS + 1, 7, WORDS + 2, 2, WORDS + 3])
        asked = array([9, 3, WORDS + 1, 5, WORDS + 2, 1])
        at = int(place * text.size)
        whole = np.concatenate([text[:at], told, text[at:], asked])
        assert contains(excerpt(whole, size), told)

    def test_the_question_is_searched_for_after_a_long_answer(self):
        random = np.random.default_rng(0)
        text, answer = random.integers(0, WORDS, (2, 4000), dtype=np.int32)
        told = array([WORDS + 1, WORDS + 2, WORDS + 3])
        asked = array([WORDS + 1, WORDS + 2])
        prompt = np.concatenate([text[:2000], told, text[2000:], asked])
        whole = np.concatenate([prompt, answer])
        found = excerpt(whole, 512, prompt.size)
        assert contains(found, told)
        assert contains(found, asked)
        assert not contains(excerpt(whole, 512), told)

    def test_without_anything_relevant_it_is_the_start_and_the_end(self):
        tokens = np.arange(1000, dtype=np.int32)
        found = excerpt(tokens, 80).tolist()
        assert found == [*range(10), *range(930, 1000)]


class Few(CachingModel):
    """Its law depends on the last tokens only."""

    def law(self, prefix):
        return super().law(prefix[-3:])


class Recorder(CachingModel):
    """Keeps what it was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: list[Tokens] = []

    def rows(self, request: Request):
        self.seen.append(request.context.tokens.copy())
        return super().rows(request)


def ids(stream) -> list[int]:
    return [token.id for token in stream]


@given(
    data=st.data(),
    spans=st.lists(st.integers(1, 80), min_size=1, max_size=2),
    temperature=st.sampled_from([0.0, 1.0]),
    lenience=st.sampled_from([1.0, 3.0]),
    keeps=st.booleans(),
)
@settings(max_examples=30)
def test_answers_are_those_of_the_target_alone(
    data, spans: list[int], temperature: float, lenience: float, keeps: bool
):
    """With any span, in several turns, for drafters that review each other."""
    vocab = 6
    target = CachingModel(vocab, 1)
    choose = chooser(Sampling(temperature, seed=5), vocab)
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=150))
    models = list[NamedModel]()
    for i, span in enumerate(spans):
        small = Few(vocab, i, n_ctx=span)
        reader: LanguageModel = ExcerptReader(small)
        models.append(NamedModel(f"d{i}", RowKeeper(reader) if keeps else reader))
    counts = st.integers(0, 5)
    size = len(models) + 1
    matrix = KMatrix(
        tuple(
            tuple(data.draw(counts) if c >= r else 0 for c in range(size))
            for r in range(size)
        )
    )
    row = matrix.counts(0)
    assume(any(row))
    drafters = stack(models, MaxGram(), matrix, lenience=lenience)
    with Session(
        target, Endless(), drafters, draft_max=row, rule=always(choose)
    ) as session:
        for _ in range(2):
            said = ids(session.generate(prompt, max_tokens=24))
            assert said == target.alone(prompt, 24, choose)
            more = data.draw(st.lists(st.integers(0, vocab - 1), max_size=60))
            prompt = [*prompt, *said, *more]


@given(span=st.integers(16, 120), size=st.integers(1, 400))
@settings(max_examples=30)
def test_every_draft_is_right_where_the_last_tokens_say_enough(span: int, size: int):
    target, small = Few(5, 0), Few(5, 0, n_ctx=span)
    prompt = np.random.default_rng(size).integers(0, 5, size).tolist()
    drafters = stack(
        [NamedModel("small", ExcerptReader(small))], MaxGram(), KMatrix.parse("4,0;0,0")
    )
    with Session(target, Endless(), drafters, draft_max=(4, 0)) as session:
        list(session.generate(prompt, max_tokens=100))
        assert session.stats.accepted == session.stats.tested > 70


class TestReader:
    @given(
        span=st.integers(2, 60),
        steps=st.lists(
            st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 12)),
            min_size=1,
            max_size=12,
        ),
        size=st.integers(1, 150),
    )
    @settings(max_examples=60)
    def test_what_it_reads_is_bounded_and_known_before(
        self, span: int, steps: list[tuple[bool, int, int]], size: int
    ):
        """New answers, committed tokens and speculative ones, in any order."""
        random = np.random.default_rng(size)
        model = Recorder(50, n_ctx=span)
        reader = ExcerptReader(model)
        context = Context(random.integers(0, 50, size))
        for begins, grown, tail in steps:
            context.append(random.integers(0, 50, grown))
            if begins:
                reader.begin(len(context))
            unread = reader.unread(context)
            (rows,) = reader.score([Request(context)])
            assert rows.fed == unread
            here = context.with_tail(random.integers(0, 50, tail))
            (rows,) = reader.score([Request(here)])
            for seen, whole in zip(model.seen, (context, here), strict=True):
                assert 1 <= seen.size <= span
                assert within(seen, whole.tokens)
                last = min(seen.size, max(1, span // 4))
                assert seen[-last:].tolist() == whole.tokens[-last:].tolist()
            assert (reader.reads(here) or len(here)) >= model.seen[-1].size
            assert np.array_equal(rows.logits[0], model.law(model.seen[-1]))
            # Cells of the tail are those of tokens that were not committed.
            reader.reset()
            model.seen.clear()

    def test_a_context_that_fits_is_read_as_it_is(self):
        model = Recorder(50, n_ctx=20)
        reader = ExcerptReader(model)
        context = Context(range(20))
        score_one(reader, context)
        assert model.seen.pop().tolist() == [*range(20)]
        assert reader.reads(context) is None
        context.append([20])
        score_one(reader, context)
        assert model.seen.pop().tolist() == [0, *range(12, 21)]
        assert reader.reads(context) == 10

    def test_tokens_follow_the_excerpt_until_it_is_full(self):
        model = Recorder(200, n_ctx=20)
        reader = ExcerptReader(model)
        context = Context(range(50))
        score_one(reader, context)
        for token in range(50, 60):
            context.append([token])
            assert reader.unread(context) == (9 if token == 55 else 1)
            score_one(reader, context)

    def test_another_answer_has_another_excerpt(self):
        random = np.random.default_rng(0)
        text = random.integers(0, WORDS, 4000, dtype=np.int32)
        facts = [array([WORDS + n, WORDS + n + 1, WORDS + n + 2]) for n in (10, 20)]
        text = np.concatenate([text[:1000], facts[0], text[1000:2000], facts[1], text])
        model = Recorder(WORDS + 40, n_ctx=1024)
        reader = ExcerptReader(model)
        context = Context(text)
        for fact, other in (facts, facts[::-1]):
            context.append(fact[:2])
            reader.begin(len(context))
            score_one(reader, context)
            seen = model.seen.pop()
            assert contains(seen, fact)
            assert not contains(seen, other)

    def test_sequences_have_texts_of_their_own(self):
        model = Recorder(200, n_ctx=20, sequences=2)
        reader = ExcerptReader(model)
        first, second = Context(range(50)), Context(range(100, 150))
        for _ in range(3):
            reader.score([Request(first), Request(second, sequence=1)])
        assert [seen[0] for seen in model.seen] == [0, 100] * 3
        third = Context(range(60))
        reader.unread(third)
        assert reader.reads(third) is None  # it was chosen, but not read
        reader.score([Request(first)])
        reader.forget(1)
        assert reader.reads(first) == 10
        assert reader.reads(second, 1) is None

    def test_a_draft_needs_room_too(self):
        model = Recorder(50, n_ctx=20)
        reader = ExcerptReader(model)
        assert reader.max_draft == 5
        context = Context(range(30))
        score_one(reader, context, Draft.chain([1] * 19, "x"))
        assert model.seen.pop().size == 1
        with pytest.raises(ContextFull, match="20 tokens leaves nothing of the 20"):
            score_one(reader, context, Draft.chain([1] * 20, "x"))

    def test_it_passes_on_what_its_model_can_do(self):
        reader = ExcerptReader(TableModel(9, n_ctx=20))
        assert not reader.pretend(Context(range(8)))
        reader.rewind(Context(range(8)))
        reader.end_turn(Context(range(30)))
        reader.close()
        with reader.hold():
            pass
