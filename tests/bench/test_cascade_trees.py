"""Trees of answers against every way by itself: the same tokens and counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.decoding.exactness import Limits
from edgecs.errors import Cancelled
from edgecs.sampling.chain import chooser
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import ByteTokenizer, CachingModel, TableModel
from edgecs_bench.cascades.walk import Walker
from edgecs_bench.cascades.ways import Pair, Question, mixtures, ways
from edgecs_bench.run.humaneval import is_complete, program
from edgecs_bench.suite.prompts import Exam

RULES = ["chow", "diff", "opt", "v1", "v2", "v3"]
ALPHAS = [0.0, 0.3, 0.7, 0.95]
DRAFTED = 3


class Alike(CachingModel):
    """A small model that often agrees with the target."""

    def law(self, prefix):
        return (
            2 * TableModel(self.vocab_size, 1).law(prefix) + super().law(prefix)
        ) / 3


def models(vocab: int, sequences: int = 1):
    kinds = {"sequences": sequences, "copy_cost": 1}
    return CachingModel(vocab, 1, **kinds), Alike(vocab, 2, **kinds)


def agreement(target, question: Question, answer: list[int]) -> float:
    """Share of an answer's tokens that the target chooses after the ones before."""
    context = Context(question.prompt)
    rows = score_one(target, context, Draft.chain(answer[:-1], "answer")).logits
    same = 0
    for row, token in zip(rows, answer, strict=True):
        same += question.choose(row, context.tokens) == token
        context.append((token,))
    return same / len(answer)


@given(
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
    vocab=st.sampled_from([4, 9]),
    sequences=st.sampled_from([1, 3, 8]),
    most=st.integers(1, 14),
    stop=st.integers(0, 12),
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_trees_give_the_tokens_and_counts_of_each_way(
    temperature, seed, vocab, sequences, most, stop, prompts
):
    choose = chooser(Sampling(temperature=temperature, seed=seed), vocab)

    def over(tokens) -> bool:  # a stop in the middle of a round
        return len(tokens) > stop and tokens[-1] == 0

    questions = [
        Question(choose, np.array(ids, np.int32), most, over) for ids in prompts
    ]
    tokenizer = ByteTokenizer(vocab)  # the last id ends an answer
    every = mixtures(RULES, ALPHAS, seed)
    walker = Walker(*models(vocab, sequences), every, tokenizer.ends)
    found = {walked.number: walked for walked in walker.walk(iter(questions))}
    assert sorted(found) == [*range(len(questions))]
    target, small = models(vocab)
    alone = ways(Pair(target, small, tokenizer, Limits(), DRAFTED), RULES, ALPHAS, seed)
    assert [*alone] == [*every]
    for number, question in enumerate(questions):
        walked = found[number]
        prefixes = set()
        for way, mixture in every.items():
            said, answer = alone[way](question), walked.answers[way]
            counts = answer.counts(way, mixture, DRAFTED, most, tokenizer.ends)
            assert answer.tokens == said.tokens, way
            assert counts == said.counts, way
            assert answer.agreement == agreement(target, question, said.tokens), way
            prefixes |= {tuple(said.tokens[:size]) for size in range(len(said.tokens))}
        assert walked.nodes == len(prefixes)


def test_every_prefix_is_read_once_where_sequences_suffice():
    choose = chooser(Sampling(temperature=1.0, seed=3), 9)
    fed = []

    class Counting(CachingModel):
        def score(self, requests):
            found = super().score(requests)
            fed.append(sum(rows.fed for rows in found))
            return found

    target = Counting(9, 1, sequences=40, copy_cost=1)
    small = CachingModel(9, 2, sequences=40, copy_cost=1)
    every = mixtures(RULES, ALPHAS, 3)
    question = Question(choose, np.arange(5, dtype=np.int32), 6)
    (walked,) = Walker(target, small, every, ()).walk(iter([question]))
    assert sum(fed) == question.prompt.size - 1 + walked.nodes
    assert len(fed) == question.most


def test_a_walk_can_be_cancelled():
    target, small = models(9)
    choose = chooser(Sampling(), 9)
    target.cancel.set()
    question = Question(choose, np.arange(5, dtype=np.int32), 6)
    with pytest.raises(Cancelled):
        next(Walker(target, small, mixtures([], [], 1), ()).walk(iter([question])))


CODE = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        (f"Here:\n```python\n{CODE}```", True),
        (f"Here:\n```python\n{CODE}", False),
        (f"Here:\n```python\nimport math\n```\nand\n{CODE}", False),
        (f"```\nimport math\n```\n```\n{CODE}```\n", True),
        (CODE, False),
    ],
)
def test_code_is_complete_when_its_block_is_closed(answer: str, complete: bool):
    exam = Exam("", "f")
    assert is_complete(exam, answer) is complete
    more = program("", exam, answer + "\n```python\ndef f():\n    return 2\n```")
    assert (program("", exam, answer) == more) is complete
