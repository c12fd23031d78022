"""Several sequences, each a tree or a chain: every one says what it says alone."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.decoding.verification import verify
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ModelError
from edgecs.sampling.chain import Choices, always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs.testing.fakes import CachingModel, Endless, ScriptedDrafter, TableModel
from tests.core.trees import drafts, tree

VOCAB = 3
some = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)
# A step: for each sequence a draft, or nothing: it does not take part.
steps = st.lists(
    st.lists(st.one_of(st.none(), drafts(VOCAB)), min_size=3, max_size=3),
    min_size=1,
    max_size=10,
)


@given(st.lists(some, min_size=3, max_size=3), steps)
@settings(max_examples=200)
def test_every_sequence_says_what_it_says_alone(prompts, steps):
    model = CachingModel(VOCAB, sequences=3, trees=True)
    contexts = [Context(prompt) for prompt in prompts]
    for step in steps:
        requests = [
            Request(contexts[i], draft, i)
            for i, draft in enumerate(step)
            if draft is not None
        ]
        requests.reverse()  # the order is the caller's affair
        rows = model.score(requests)
        for (context, draft, *_), found in zip(requests, rows, strict=True):
            verdict = verify(draft, found, greedy, context)
            said = draft.tokens[list(verdict.path)].tolist()
            context.append([*said, verdict.token])
    for context, prompt in zip(contexts, prompts, strict=True):
        size = len(context) - len(prompt)
        alone = TableModel(VOCAB).greedy(prompt, size)
        assert context.tokens[len(prompt) :].tolist() == alone


@given(some, drafts(VOCAB), drafts(VOCAB), st.booleans())
def test_only_the_accepted_path_stays_in_the_cells(prompt, first, second, fails):
    model, context = CachingModel(VOCAB, trees=True), Context(prompt)
    verdict = verify(first, model.score([Request(context, first)])[0], greedy, context)
    path = first.tokens[list(verdict.path)].tolist()
    context.append([*path, verdict.token])
    if fails:
        model.fail_next = True
        with pytest.raises(RuntimeError):
            model.score([Request(context, second)])
    (rows,) = model.score([Request(context, second)])
    if not fails:  # all but the token that was not drafted was there
        assert rows.fed == 1 + len(second)
    model.end_turn(context)
    assert model.cells == context.tokens[:-1].tolist()


class Branching:
    """Proposes trees that were drawn, one a round."""

    name = "tree"

    def __init__(self, drawn: list[Draft]) -> None:
        self._drawn = list(drawn)

    def propose(self, context, k, choose):
        found = self._drawn.pop() if self._drawn else Draft.chain([], "")
        return Draft(
            found.tokens, found.parents, ("tree",) * len(found), found.confidences
        ).clip(k)

    def observe(self, context, draft, rows, verdict):
        pass


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@given(some, st.lists(drafts(VOCAB), max_size=8))
def test_a_session_with_trees_says_what_plain_decoding_says(temperature, prompt, drawn):
    rule = always(chooser(Sampling(temperature, seed=7), VOCAB))

    def said(drafters, draft_max) -> tuple[list[int], Session]:
        target = CachingModel(VOCAB, trees=True)
        with Session(
            target, Endless(), drafters, draft_max=draft_max, rule=rule
        ) as session:
            return [t.id for t in session.generate(prompt, max_tokens=12)], session

    plain, _ = said([], 0)
    drafted, session = said([Branching(drawn)], 9)
    assert drafted == plain
    stats = session.stats
    assert not stats.faults
    assert stats.tokens == 1 + stats.accepted + stats.rounds
    shares = stats.acceptance_by_position()
    assert all(0 <= share <= 1 for share in shares)
    assert len(shares) <= max((r.positions for r in stats.records), default=0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@given(some, st.lists(drafts(VOCAB), max_size=20), st.integers(1, 6))
def test_a_drafter_reviews_the_trees_of_a_cheaper_one(temperature, prompt, drawn, k):
    choose = chooser(Sampling(temperature, seed=7), VOCAB)

    def reviewing() -> Cascade:
        near = CachingModel(VOCAB, 1, trees=True)
        return Cascade(near, StaticSchedule([Branching(drawn)], [5]), name="near")

    draft = reviewing().propose(Context(prompt), k, choose)
    assert draft.tokens.tolist() == TableModel(VOCAB, 1).alone(prompt, k, choose)
    target, rule = CachingModel(VOCAB), always(choose)
    with Session(target, Endless(), [reviewing()], draft_max=k, rule=rule) as session:
        said = [token.id for token in session.generate(prompt, max_tokens=12)]
        assert not session.stats.faults
    assert said == TableModel(VOCAB).alone(prompt, 12, choose)


def test_acceptance_counts_positions_and_not_nodes():
    said = TableModel(VOCAB).greedy([1], 3)
    wrong = (said[0] + 1) % VOCAB
    first = Branching([tree([(-1, wrong), (-1, said[0]), (1, said[1])])])
    target, stats = CachingModel(VOCAB, trees=True), Stats()
    with Session(target, Endless(), [first], draft_max=3) as session:
        done = session.cascade.step(Context([1]), Choices(greedy, greedy), 3)
        stats.observe(done, 3)
    assert stats.tested == 3
    assert stats.accepted == 2
    assert stats.acceptance_by_position() == [1.0, 1.0]


@pytest.mark.faults
def test_a_tree_of_too_many_leaves_is_a_fault():
    target = CachingModel(VOCAB, trees=True)
    target.max_leaves = 2
    three = tree([(-1, 0), (-1, 1), (-1, 2)])
    with Session(target, Endless(), [Branching([three])], draft_max=5) as session:
        said = [t.id for t in session.generate([1], max_tokens=6)]
    assert said == target.greedy([1], 6)
    assert session.stats.faults == {
        "tree": "it proposed a tree, but target takes 2 leaves"
    }


def test_a_tree_becomes_a_chain_where_rows_must_be_exact():
    classes = Classes()
    classes.add(0, 3, Finding(frozenset(range(2, 9)), frozenset()))
    both = tree([(-1, 0), (-1, 1), (0, 2)])
    cascade = Cascade(
        CachingModel(VOCAB, trees=True),
        StaticSchedule([Branching([both])], [3]),
        limits=Limits(classes, "strict"),
    )
    done = cascade.step(Context([1]), Choices(greedy, greedy), 3)
    assert done.draft.is_chain
    assert done.draft.tokens.tolist() == [0, 2]
    assert done.proposed == ("tree",) * 3


@given(st.lists(some, min_size=2, max_size=3), st.data())
def test_sessions_that_take_turns_on_one_target_do_not_meet(prompts, data):
    target, size = CachingModel(VOCAB, sequences=len(prompts)), 9
    with ExitStack() as closing:
        streams = []
        for number, prompt in enumerate(prompts):
            script = [*prompt, *TableModel(VOCAB).greedy(prompt, size)]
            drafter = ScriptedDrafter(script, wrong=0.4, vocab_size=VOCAB, seed=number)
            session = Session(
                target,
                Endless(),
                [drafter, MaxGram()],
                draft_max=3,
                sequence=number,
            )
            closing.enter_context(session)
            streams.append(session.generate(prompt, max_tokens=size))
        said: list[list[int]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))
        while waiting:
            at = data.draw(st.sampled_from(waiting))
            token = next(streams[at], None)
            if token is None:
                waiting.remove(at)
            else:
                said[at].append(token.id)
    for prompt, tokens in zip(prompts, said, strict=True):
        assert tokens == TableModel(VOCAB).greedy(prompt, size)


def test_an_interrupted_answer_is_no_other_ones_end():
    target = CachingModel(VOCAB, sequences=2)
    with (
        Session(target, Endless()) as one,
        Session(target, Endless(), sequence=1) as two,
    ):
        first = one.generate([1], max_tokens=8)
        second = two.generate([2], max_tokens=8)
        said = [next(first).id, next(second).id]
        one.interrupt()
        assert len(list(first)) < 7
        assert one.finish_reason == "cancelled"
        said += [token.id for token in second]
    assert two.finish_reason == "length"
    assert said[1:] == target.greedy([2], 8)


def test_a_sequence_has_one_holder():
    target = CachingModel(VOCAB, sequences=2)
    with Session(target, Endless(), sequence=1):
        with pytest.raises(ModelError, match="is in use by another session"):
            Session(target, Endless(), sequence=1)
        Session(target, Endless()).close()


@pytest.mark.parametrize("sequence", [-1, 2])
def test_a_sequence_that_is_not_there_is_named(sequence: int):
    target = CachingModel(VOCAB, sequences=2)
    with pytest.raises(ModelError, match=f"no sequence {sequence}: .* with 2"):
        Session(target, Endless(), sequence=sequence)


def test_rows_are_those_of_the_nodes():
    both = tree([(-1, 0), (-1, 1), (1, 2)])
    (rows,) = CachingModel(VOCAB, trees=True).score([Request(Context([1]), both)])
    law = TableModel(VOCAB).law
    texts = [1], [1, 0], [1, 1], [1, 1, 2]
    np.testing.assert_array_equal(rows.logits, np.stack([law(text) for text in texts]))
