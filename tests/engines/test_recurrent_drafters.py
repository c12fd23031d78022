"""Recurrent models as drafters: rejected tokens leave no trace in their states."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, Request, score_one
from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.llama.checkpoints import Rollback
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.sampling.settings import Sampling
from tests.engines.calls import watched
from tests.families import RECURRENT

CHUNK = 32
TEXT = [int(i) for i in np.random.default_rng(3).integers(0, 256, 300)]
OPTIONS = LoadOptions(n_ctx=512, n_batch=CHUNK, max_draft=12, threads=1, n_gpu_layers=0)


def spoilt(path: Path, copy: Path, noise: float = 0.3) -> Path:
    """A copy of a model with noise in its output matrix: it is often wrong."""
    shutil.copy(path, copy)
    reader = gguf.GGUFReader(copy, "r+")
    (rows,) = (t.data for t in reader.tensors if t.name == "output.weight")
    random = np.random.default_rng(7)
    rows += random.standard_normal(rows.shape, np.float32) * np.float32(noise)
    reader.data.flush()
    return copy


class Three(NamedTuple):
    """A target, a drafter that is often right, and the drafter's model once more."""

    target: Loaded
    drafter: LoadedDrafter
    fresh: LlamaLM

    @property
    def model(self) -> LlamaLM:
        assert isinstance(self.drafter.model, LlamaLM)
        return self.drafter.model


@contextmanager
def opened(name: str, folder: Path, **changes: Any) -> Iterator[Three]:
    options = replace(OPTIONS, **changes)
    path = RECURRENT[name](folder / "target.gguf")
    other = spoilt(path, folder / "drafter.gguf")
    with (
        load(path, options) as target,
        load_drafter(other, target, options) as drafter,
        load(other, OPTIONS) as alone,
    ):
        yield Three(target, drafter, alone.target)


@pytest.fixture(scope="module", params=sorted(RECURRENT))
def three(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture(scope="module", params=[True, False], ids=["each", "first"])
def each(request: Any) -> bool:
    """Whether the state is saved before each guess: not with layers on a GPU."""
    return bool(request.param)


def check(three: Three, context: Context, draft: Draft = NOTHING) -> None:
    """The drafter's rows are those of the same model that has read nothing else."""
    rows = score_one(three.model, context, draft).logits.copy()
    three.fresh.reset()
    tokens = [*context.tokens.tolist(), *draft.tokens.tolist()]
    at = len(tokens) - 1 - len(draft)
    score_one(three.fresh, Context(tokens[: at + 1]))
    for i, row in enumerate(rows):
        context = Context(tokens[: at + 1 + i])
        expected = score_one(three.fresh, context).logits[0]
        assert np.abs(row - expected).max() < 1e-2


ids = st.integers(0, 255)
# One round: the tokens that are drafted, after how many of them another draft begins,
# how many of Max-Gram's tokens each call reviews, the share of the draft that is
# accepted, what the target says instead, whether the drafter was asked.
rounds = st.lists(
    st.tuples(
        st.lists(ids, max_size=6),
        st.integers(0, 6),
        st.lists(st.integers(0, 12), min_size=7, max_size=7),
        st.floats(0, 1),
        st.lists(ids, min_size=1, max_size=24),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)
# Where the text is cut after them, a share of it; 1: it goes on.
cuts = st.lists(st.tuples(st.sampled_from([0.2, 0.7, 0.95, 1.0]), rounds), max_size=3)


@given(start=st.integers(1, 100), parts=cuts)
@settings(max_examples=10)
def test_rows_are_those_of_a_model_that_was_never_wrong(
    three: Three, each: bool, start: int, parts: list
):
    three.model._sequences[0].rollback._each = each
    three.model.reset()
    context = Context(TEXT[:start])
    for cut, steps in parts:
        if cut < 1:
            context = Context(context.tokens[: max(1, int(cut * len(context)))])
        for drafted, again, reviewed, share, said, asked in steps:
            for tail in ([], drafted[again:], drafted) if asked else ():
                for size, width in zip(range(len(tail) + 1), reviewed, strict=False):
                    here = context.with_tail(tail[:size]) if size else context
                    check(three, here, Draft.chain(TEXT[:width], "copy"))
            right = int(share * len(drafted))
            context.append([*drafted[:right], *said])


# One turn: the share of the text that is kept, what is appended, how many tokens are
# generated, after how many the consumer stops, whether it cancels them.
turns = st.lists(
    st.tuples(
        st.sampled_from([0.3, 0.8, 1.0]),
        st.lists(ids, max_size=40),
        st.integers(1, 24),
        st.integers(1, 24),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("grid", ["3,0;0,0", "6,0;0,4", "2,3;0,0"])
@given(steps=turns)
@settings(max_examples=4)
def test_answers_are_those_of_plain_decoding(
    three: Three, each: bool, temperature: float, grid: str, steps: list
):
    """Answers that are interrupted, generated again, or follow an edited text."""
    three.model._sequences[0].rollback._each = each
    matrix = KMatrix.parse(grid)
    sampling = Sampling(temperature=temperature, seed=4)
    chain = stack([three.drafter.named], MaxGram(), matrix)
    rule = three.target.rule(sampling)
    text = TEXT[:30]
    for cut, more, most, stop, cancels in steps:
        text = [*text[: max(1, int(cut * len(text)))], *more][:400]
        with three.target.session(rule=rule) as plain:
            answer = [token.id for token in plain.generate(text, max_tokens=most)]
        with three.target.session(chain, matrix.counts(0), rule=rule) as session:
            for _ in range(2):
                said = []
                for token in session.generate(text, max_tokens=most):
                    said.append(token.id)
                    if len(said) == stop:
                        if not cancels:
                            break
                        three.target.cancel.set()
                three.target.cancel.clear()
                assert said[:stop] == answer[:stop]
                assert said == answer[: len(said)]
            assert not session.stats.faults
        text += answer


def test_drafts_are_partly_right(three: Three):
    """Else the tests above test less."""
    matrix = KMatrix.parse("4,0;0,0")
    chain = stack([three.drafter.named], MaxGram(), matrix)
    with three.target.session(chain, matrix.counts(0)) as session:
        list(session.generate(TEXT[:30], max_tokens=100))
    stats = session.stats
    assert 20 < stats.accepted < stats.tested - 20


@pytest.mark.parametrize("accepted", range(6))
def test_what_a_rejection_costs(three: Three, each: bool, accepted: int):
    model = three.model
    model._sequences[0].rollback._each = each
    model.reset()
    context = Context(TEXT[:60])
    calls = watched(model)
    said = TEXT[100:105]
    for size in range(6):  # five tokens are drafted, and read but for the last one
        score_one(model, context.with_tail(said[:size]))
    assert [tokens for tokens, _ in calls] == [CHUNK, 59 - CHUNK, 1, *[1] * 5]
    calls.clear()
    context.append([*said[:accepted], 7])
    check(three, context)
    lost = 0 if each or accepted == 5 else accepted
    assert [tokens for tokens, _ in calls] == [1 + lost]


def test_another_answer_begins_after_the_prompt(three: Three):
    model = three.model
    model.reset()
    prompt = TEXT[:60]
    for said in ([7, 8, 9], [5, 6]):
        context = Context(prompt)
        calls = watched(model)
        for token in said:
            check(three, context)
            context.append([token])
        read = sum(tokens for tokens, _ in calls)
        assert read == len(said) + 59 * (said == [7, 8, 9])


@pytest.mark.parametrize("name", ["qwen35", "lfm2"])
def test_the_snapshot_of_an_earlier_call_is_not_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened(name, tmp_path) as three:
        assert three.model.snapshots == OPTIONS.max_draft
        context = Context(TEXT[:40])
        for size in range(5):
            score_one(three.model, context.with_tail(TEXT[100 : 100 + size]))
        monkeypatch.setattr(Rollback, "_may_remove", lambda self, n, removed: True)
        context.append([TEXT[100], 42])
        with pytest.raises(AssertionError):
            check(three, context)


def test_a_cancelled_draft_leaves_no_trace(three: Three):
    model, cancel = three.model, threading.Event()
    model.reset()
    context = Context(TEXT[:100])
    score_one(model, context)
    score_one(model, context.with_tail([3]))
    context.append(TEXT[100:200])

    def stop(read: int, size: int) -> None:
        if read:
            cancel.set()

    model.on_read = stop
    with pytest.raises(Cancelled):
        model.score([Request(context, NOTHING, 0, cancel)])
    model.on_read = None
    check(three, context)


def test_a_failed_call_leaves_no_trace(three: Three, monkeypatch: pytest.MonkeyPatch):
    model = three.model
    model.reset()
    context = Context(TEXT[:40])
    score_one(model, context)
    for tail in ([3], [3, 4], [3, 4, 5]):
        with monkeypatch.context() as patch:
            patch.setattr(
                model.calls.output, "logits", None
            )  # fails after llama.cpp's call
            with pytest.raises(TypeError):
                score_one(model, context.with_tail(tail))
        check(three, context.with_tail(tail))
    context.append([3, 9])
    check(three, context)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_conversations_do_not_disturb_each_other(name: str, tmp_path: Path):
    random = np.random.default_rng(1)
    with opened(name, tmp_path, sequences=3, n_ctx=256) as three:
        model = three.model
        contexts = [Context(TEXT[i : 30 + 10 * i]) for i in range(3)]
        tails: list[list[int]] = [[], [], []]
        for _ in range(60):
            at = int(random.integers(3))
            context, tail = contexts[at], tails[at]
            if random.random() < 0.3:
                right = int(random.integers(len(tail) + 1))
                context.append([*tail[:right], int(random.integers(256))])
                tail.clear()
            else:
                tail.append(int(random.integers(256)))
            here = context.with_tail(tail) if tail else context
            row = model.score([Request(here, NOTHING, at)])[0].logits[0].copy()
            three.fresh.reset()
            alone = score_one(three.fresh, Context(here.tokens.tolist()))
            assert np.abs(row - alone.logits[0]).max() < 1e-2
