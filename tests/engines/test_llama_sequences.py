"""Several sequences and trees in llama.cpp: each request gives what it gives alone.

With edgecs's kernels chains of several sequences are the same bit for bit, because
every sequence has a stream of cells of its own. The cells of a tree lie beside each
other, so its rows are close to those of the chains along its paths.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import llama_cpp as lib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, Request, score_one
from edgecs.decoding.verification import verify
from edgecs.engines.llama.kernels import KernelSet, kernel_sets
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ContextFull, ModelError
from edgecs.sampling.chain import greedy
from tests.core.trees import drafts, tree
from tests.engines.calls import watched
from tests.native_library import library

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0)
OWN = next(iter(kernel_sets(library())))
PROMPTS = [list(b"hello, hello"), list(range(90)), [7]]
FORKED = tree([(-1, 8), (-1, 9), (1, 10), (0, 11), (1, 12), (4, 13)])
Row = NDArray[np.float32]
CLOSE = 0.02  # of logits up to 20; another path's are several units away


@contextmanager
def opened(
    path: Path,
    *,
    kernels: KernelSet | None = None,
    drafts_for: int | None = None,
    **changes: object,
) -> Iterator[LlamaLM]:
    options, cancel = replace(OPTIONS, **changes), threading.Event()
    model = LlamaModel(path, options, cancel, kernels)
    try:
        found = LlamaLM(model, options, cancel, drafts_for=drafts_for)
        yield found
        found.close()
    finally:
        model.close()


def alone(path: Path, text: list[int], kernels: KernelSet | None = None) -> Row:
    """The row after a text, read by a model that has seen nothing else."""
    with opened(path, kernels=kernels) as target:
        return np.array(score_one(target, Context(text)).logits[0])


@pytest.mark.parametrize("more", [[[8, 9]] * 3, [[], [8, 9, 1], [8]]])
@pytest.mark.parametrize("kernels", [OWN, None], ids=["own", "llama"])
def test_every_sequence_gives_the_rows_that_it_gives_alone(
    tiny_gguf: Path, kernels: KernelSet | None, more: list[list[int]]
):
    drafts_ = [Draft.chain(tokens, "x") for tokens in more]
    expected = []
    for prompt, draft in zip(PROMPTS, drafts_, strict=True):
        with opened(tiny_gguf, kernels=kernels) as target:
            context = Context(prompt)
            score_one(target, context)
            context.append([5])
            expected.append(score_one(target, context, draft).logits.copy())
    with opened(tiny_gguf, kernels=kernels, sequences=3) as target:
        contexts = [Context(prompt) for prompt in PROMPTS]
        target.score([Request(c, NOTHING, i) for i, c in enumerate(contexts)])
        for context in contexts:
            context.append([5])
        calls = watched(target)
        size = 3 + sum(map(len, more))
        requests = [Request(contexts[i], drafts_[i], i) for i in (2, 0, 1)]
        rows = [found.logits.copy() for found in target.score(requests)]
        assert calls == [(size, size)]
        for one in target._sequences:  # what made them equally wide is gone
            last = lib.llama_memory_seq_pos_max(one._memory, one.id)
            assert last == len(one.cache) - 1
        for i, found in zip((2, 0, 1), rows, strict=True):
            if kernels:
                np.testing.assert_array_equal(found, expected[i])
            np.testing.assert_allclose(found, expected[i], atol=CLOSE)


@pytest.mark.parametrize("kernels", [OWN, None], ids=["own", "llama"])
def test_the_rows_of_a_tree_are_those_of_its_paths(
    tiny_gguf: Path, kernels: KernelSet | None
):
    with opened(tiny_gguf, kernels=kernels, leaves=4) as target:
        assert not target.uniform
        context = Context(PROMPTS[0])
        score_one(target, context)
        context.append([5])
        rows = score_one(target, context, FORKED).logits.copy()
    prefixes = [[*PROMPTS[0], 5]]
    for parent, token in zip(FORKED.parents, FORKED.tokens.tolist(), strict=True):
        prefixes.append([*prefixes[parent + 1], token])
    for prefix, row in zip(prefixes, rows, strict=True):
        np.testing.assert_allclose(row, alone(tiny_gguf, prefix, kernels), atol=CLOSE)


@pytest.mark.parametrize("accepted", [[], [8], [9, 10], [8, 11], [9, 12, 13], [9, 7]])
def test_the_accepted_path_stays_and_the_rest_is_freed(
    tiny_gguf: Path, accepted: list[int]
):
    with opened(tiny_gguf, leaves=4) as target:
        context = Context(PROMPTS[0])
        score_one(target, context, FORKED)
        context.append([*accepted, 3])
        path = FORKED.path_along(accepted)
        rows = score_one(target, context, Draft.chain([6], "x"))
        assert rows.fed == len(accepted) - len(path) + 2
        text = [*PROMPTS[0], *accepted, 3]
        for row, more in zip(rows.logits, ([], [6]), strict=True):
            expected = alone(tiny_gguf, [*text, *more])
            np.testing.assert_allclose(row, expected, atol=CLOSE)
        # Every cell that is left belongs to the first id: room for all tokens again.
        full = Context([1] * (target.n_ctx - 1))
        assert np.isfinite(score_one(target, full, Draft.chain([2], "x")).logits).all()


@given(
    st.lists(
        st.lists(st.one_of(st.none(), drafts(256)), min_size=2, max_size=2),
        min_size=1,
        max_size=5,
    ),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trees_of_several_sequences_say_what_plain_decoding_says(tiny_gguf, steps):
    with opened(tiny_gguf, sequences=2, leaves=9) as target:
        prompts = PROMPTS[:2]
        contexts = [Context(prompt) for prompt in prompts]
        for step in steps:
            requests = [
                Request(contexts[i], draft, i)
                for i, draft in enumerate(step)
                if draft is not None
            ]
            if not requests:
                continue
            for request, rows in zip(requests, target.score(requests), strict=True):
                context, draft, *_ = request
                verdict = verify(draft, rows, greedy, context)
                said = draft.tokens[list(verdict.path)].tolist()
                context.append([*said, verdict.token])
    with opened(tiny_gguf) as target:
        for context, prompt in zip(contexts, prompts, strict=True):
            plain = Context(prompt)
            while len(plain) < len(context):
                plain.append([int(score_one(target, plain).logits[0].argmax())])
            assert plain.tokens.tolist() == context.tokens.tolist()


@pytest.mark.parametrize("sequences", [1, 2])
def test_states_follow_the_accepted_path(tiny_gguf: Path, sequences: int):
    with opened(tiny_gguf, sequences=sequences, leaves=4) as target:
        last = sequences - 1
        states, context = target.note_states(last), Context(PROMPTS[0])
        target.score([Request(context, NOTHING, last)])
        context.append([5])
        (rows,) = target.score([Request(context, FORKED, last)])
        assert rows.hidden is not None
        noted = rows.hidden.copy()
        assert noted.shape == (7, target.width)
        path = FORKED.path_along([9, 12, 13])
        size = len(context)
        context.append([9, 12, 13, 3])
        # Before the next call, and after it.
        for _ in range(2):
            assert states.known(context)[1] >= size + 3
            found = states.of(context, size - 1, size + 3)
            np.testing.assert_array_equal(found, noted[[0, *(n + 1 for n in path)]])
            target.score([Request(context, NOTHING, last)])
        assert states.known(context) == (size - 1, size + 4)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize("leaves", [1, 2])
def test_a_prompt_may_come_with_a_round_of_another_sequence(
    tiny_gguf: Path, order: list[int], leaves: int
):
    with opened(tiny_gguf, sequences=2, leaves=leaves) as target:
        going, new = Context([1, 2, 3]), Context([4] * 10)
        score_one(target, going)
        going.append([5])
        requests = [Request(going, Draft.chain([6], "x"), 0), Request(new, NOTHING, 1)]
        found = target.score([requests[i] for i in order])
        for i, rows in zip(order, found, strict=True):
            text, draft = requests[i].context.tokens.tolist(), requests[i].draft
            for row, more in zip(rows.logits, ([], [6]), strict=False):
                expected = alone(tiny_gguf, [*text, *more])
                np.testing.assert_allclose(row, expected, atol=CLOSE)
            assert len(rows.logits) == 1 + len(draft)
        for one in target._sequences:
            last = lib.llama_memory_seq_pos_max(one._memory, one.id)
            assert last == len(one.cache) - 1


def test_more_than_a_call_takes_is_several_calls(tiny_gguf: Path):
    draft = Draft.chain(range(30), "x")
    with opened(tiny_gguf, sequences=3, n_batch=64) as target:
        contexts = [Context([i, 1]) for i in range(3)]
        for i, context in enumerate(contexts):
            target.score([Request(context, NOTHING, i)])
            context.append([2])
        calls = watched(target)
        rows = target.score([Request(c, draft, i) for i, c in enumerate(contexts)])
        assert calls == [(62, 62), (31, 31)]
        for i, found in enumerate(rows):
            assert found.fed == 31
            expected = alone(tiny_gguf, [i, 1, 2, *range(30)])
            np.testing.assert_allclose(found.logits[-1], expected, atol=CLOSE)


def test_padding_does_not_overfill_a_call(tiny_gguf: Path):
    sizes = 40, 1, 2
    with opened(tiny_gguf, sequences=3) as target:
        contexts = [Context([i, 1]) for i in range(3)]
        for i, context in enumerate(contexts):
            target.score([Request(context, NOTHING, i)])
            context.append([2])
        requests = [
            Request(context, Draft.chain(range(size), "x"), i)
            for i, (context, size) in enumerate(zip(contexts, sizes, strict=True))
        ]
        for i, (rows, size) in enumerate(
            zip(target.score(requests), sizes, strict=True)
        ):
            expected = alone(tiny_gguf, [i, 1, 2, *range(size)])
            np.testing.assert_allclose(rows.logits[-1], expected, atol=CLOSE)


def test_prompts_of_drafters_go_into_one_call(tiny_gguf: Path):
    with opened(tiny_gguf, sequences=3, drafts_for=300) as drafter:
        calls = watched(drafter)
        texts = [[1, 2, 3], [4, 5, 6, 7], [8]]
        requests = [Request(Context(text), NOTHING, i) for i, text in enumerate(texts)]
        rows = drafter.score(requests)
        assert calls == [(7, 2), (1, 1)]  # two prompts, and a token whose state counts
        for text, found in zip(texts, rows, strict=True):
            expected = alone(tiny_gguf, text, None)
            assert found.logits.shape == (1, 300)
            np.testing.assert_allclose(found.logits[0, :272], expected, atol=CLOSE)
            assert (found.logits[0, 272:] == -np.inf).all()


def test_one_request_may_be_cancelled_by_itself(tiny_gguf: Path):
    with opened(tiny_gguf, sequences=2) as target:
        cancel = threading.Event()
        cancel.set()
        read = Request(Context(range(200)), NOTHING, 1, cancel)
        with pytest.raises(Cancelled):
            target.score([read])
        (rows,) = target.score([read._replace(cancel=None)])
        assert rows.fed == 200 - 64  # the chunk that was done is kept
        assert score_one(target, Context([1, 2])).fed == 2


def test_sequences_have_room_and_holders_of_their_own(tiny_gguf: Path):
    with opened(tiny_gguf, sequences=2) as target:
        full = [Request(Context([i] * 256), NOTHING, i) for i in range(2)]
        for rows in target.score(full):
            assert np.isfinite(rows.logits).all()
        with pytest.raises(ContextFull):
            target.score([Request(Context([1] * 256), Draft.chain([1], "x"), 1)])
        with (
            target.hold(0),
            target.hold(1),
            pytest.raises(ModelError, match=r"sequence 1 of tiny\.gguf is in use"),
            target.hold(1),
        ):
            pass
        context = Context([1, 2])
        for wrong, message in (
            ([Request(context, NOTHING, 2)], "no sequence 2: .* with 2"),
            ([Request(context, NOTHING, 1)] * 2, "one request per sequence"),
        ):
            with pytest.raises(ModelError, match=message):
                target.score(wrong)
        with pytest.raises(ModelError, match="no sequence -1"):
            target.hold(-1)


few = st.lists(st.integers(0, 2), max_size=3)
Step = tuple[list[int], Draft, list[int]]


@given(st.lists(st.tuples(few, drafts(3, 6), few), min_size=1, max_size=6), st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_drafter_computes_trees_after_what_it_has_drafted(
    tiny_gguf: Path, steps: list[Step], data: st.DataObject
):
    """As it writes: a chain token by token, a tree below it, then another round."""
    with (
        opened(tiny_gguf, drafts_for=272, leaves=7) as drafter,
        opened(tiny_gguf, drafts_for=272) as other,
    ):
        context = Context(PROMPTS[0])
        for written, draft, said in steps:
            for size in range(len(written)):
                score_one(drafter, context.with_tail(written[:size]))
            size = data.draw(st.integers(0, len(written)))
            here = context.with_tail(written[:size])
            rows = score_one(drafter, here, draft).logits.copy()
            prefixes = [here.tokens.tolist()]
            for parent, token in zip(draft.parents, draft.tokens.tolist(), strict=True):
                prefixes.append([*prefixes[parent + 1], token])
            for prefix, row in zip(prefixes, rows, strict=True):
                other.reset()
                expected = score_one(other, Context(prefix)).logits[0]
                np.testing.assert_allclose(row, expected, atol=CLOSE)
            context.append([*written[: data.draw(st.integers(0, 3))], *said, 1])
