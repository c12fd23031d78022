"""Many answers at once: each is what the target says when it is asked alone."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import Cancelled
from edgecs.runtime.loader import Loaded
from edgecs.testing.fakes import CachingModel, TableModel
from edgecs_convert.distill.parallel_decode import (
    Task,
    answers,
    judged,
    many_sequences,
)
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.target import TargetFile
from tests.reference import plain_greedy

VOCAB = 7


def tasks(tiny: Loaded, texts: list[str], temperature: float = 0.0) -> list[Task]:
    encode = tiny.model.vocabulary.encode
    return [Task(i, encode(text), temperature) for i, text in enumerate(texts)]


def said(tiny: Loaded, asked: list[Task], most: int) -> dict[int, Sample]:
    cancel = threading.Event()
    with many_sequences(tiny.model, cancel, sequences=3, room=128, threads=1) as target:
        ends, width = tiny.model.vocabulary.ends, target.width
        found = answers(target, iter(asked), most, ends=ends, width=width)
        return {sample.number: sample for sample in found}


@given(
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5), max_size=9),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_every_task_is_answered_as_if_it_were_alone(prompts, sequences, most):
    asked = [
        Task(i, np.array(prompt, np.int32), 0.0) for i, prompt in enumerate(prompts)
    ]
    target = CachingModel(VOCAB, sequences=sequences)
    found = [*answers(target, iter(asked), most, ends={3}, width=0)]
    assert sorted(sample.number for sample in found) == [*range(len(prompts))]
    for sample in found:
        prompt = prompts[sample.number]
        alone = TableModel(VOCAB).greedy(prompt, most)
        if 3 in alone:
            alone = alone[: alone.index(3) + 1]
        assert sample.tokens.tolist() == [*prompt, *alone]
        assert sample.start == len(prompt)
        assert sample.top_ids[:, 0].tolist() == alone


def test_a_request_to_stop_is_heard():
    target = CachingModel(VOCAB, sequences=2)
    one = Task(0, np.array([1], np.int32), 0.0)
    found = answers(target, iter([one, one, one]), 4, ends=(), width=0)
    next(found)
    target.cancel.set()
    with pytest.raises(Cancelled):
        list(found)


def test_many_answers_at_once_are_those_one_by_one(tiny: Loaded, tiny_gguf: Path):
    texts = ["hello", "a", "what is that?", "123", "the end of it", "x y z", "q"]
    asked = tasks(tiny, texts)
    found = said(tiny, asked, 30)
    prompts = [task.prompt.tolist() for task in asked]
    kernels = tiny.model.kernels
    alone = plain_greedy(tiny_gguf, prompts, 30, n_ctx=512, kernels=kernels)
    assert sorted(found) == list(range(len(texts)))
    for number, answer in enumerate(alone):
        s = found[number]
        mine = s.tokens[s.start :].tolist()
        # In a batch numbers are added in another order: a near-tie may turn.
        assert mine[:5] == answer[:5]
        assert s.top_ids[:, 0].tolist() == mine
        assert s.states.shape == (s.size - 1, 64)
        assert (np.diff(s.top_logits.astype(np.float32), axis=1) <= 0).all()


def test_a_state_is_what_the_next_token_was_chosen_from(tiny: Loaded, tiny_gguf: Path):
    (s,) = said(tiny, tasks(tiny, ["hello"]), 12).values()
    table = TargetFile(tiny_gguf).table(np.arange(tiny.target.vocab_size))
    logits = s.states.astype(np.float32) @ table.T
    best_logits = np.take_along_axis(logits, s.top_ids[1:], axis=1)
    assert np.allclose(best_logits, s.top_logits[1:].astype(np.float32), atol=0.3)


def test_a_judged_answer_has_what_the_target_would_have_said(tiny: Loaded):
    (own,) = said(tiny, tasks(tiny, ["hello"]), 12).values()
    cancel = threading.Event()
    with many_sequences(tiny.model, cancel, sequences=1, room=128, threads=1) as target:
        for _ in range(2):  # the second one finds its cells
            other = judged(target, 5, own.tokens, own.start)
            assert (other.number, other.start) == (5, own.start)
            assert other.top_ids[:, 0].tolist() == own.top_ids[:, 0].tolist()
            assert other.states.shape == own.states.shape
            assert np.allclose(other.states, own.states, atol=0.05)


def test_a_sampled_answer_depends_on_its_number_and_not_on_its_neighbours(
    tiny: Loaded,
):
    asked = tasks(tiny, ["hello"] * 5, temperature=0.8)
    both = [said(tiny, few, 20)[2].tokens.tolist()[:8] for few in (asked, asked[2:3])]
    assert both[0] == both[1]
