"""Cells copied from another sequence give the rows of a sequence that read the text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request, score_one
from edgecs.engines.llama.kernels import KernelSet, kernel_sets
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from tests.architectures import ARCHITECTURES
from tests.native_library import library

CHUNK = 16
OPTIONS = LoadOptions(
    n_ctx=128, n_batch=CHUNK, max_draft=8, threads=1, n_gpu_layers=0, sequences=3
)
OWN = next(iter(kernel_sets(library())))
BOTH = pytest.mark.parametrize("kernels", [OWN, None], ids=["own", "llama"])
TEXT = [*range(40, 120)]


@contextmanager
def opened(
    path: Path, kernels: KernelSet | None = OWN, **changes: object
) -> Iterator[LlamaLM]:
    options, cancel = replace(OPTIONS, **changes), threading.Event()
    model = LlamaModel(path, options, cancel, kernels)
    try:
        found = LlamaLM(model, options, cancel)
        yield found
        found.close()
    finally:
        model.close()


def row(
    target: LlamaLM, context: Context, sequence: int = 0, draft: Draft | None = None
) -> NDArray[np.float32]:
    request = Request(context, draft or Draft.chain((), ""), sequence)
    return target.score([request])[0].logits.copy()


def copied(target: LlamaLM, prompt: list[int], source: int, to: int) -> int:
    """Copies as much of a prompt as there is; returns how much."""
    length = target.reusable(np.array(prompt, np.int32), source, copied=True)
    assert target.copy(source, to, length)
    return length


# One step: which sequence continues which text, cut where, from which other sequence.
steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(1, 90),
        st.lists(st.integers(0, 255), min_size=1, max_size=20),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flash_attention": "off"},
        {"type_k": "f32", "type_v": "f32"},
    ],
    ids=["f16", "no flash attention", "f32"],
)
@BOTH
def test_rows_after_copies_are_those_of_reading(
    tiny_gguf: Path, kernels: KernelSet | None, changes: dict[str, object]
):
    with (
        opened(tiny_gguf, kernels, **changes) as target,
        opened(tiny_gguf, kernels, sequences=1, **changes) as alone,
    ):
        assert target.copy_cost is not None

        @given(steps)
        @settings(max_examples=30)
        def agree(steps) -> None:
            target.reset()
            for source, to, cut, more, copies, decodes in steps:
                prompt = [*TEXT[:cut], *more]
                if copies and source != to:
                    copied(target, prompt, source, to)
                context, same = Context(prompt), Context(prompt)
                if not target.uniform:  # cells of earlier answers may be reused
                    target._sequences[to].prompt_row = None
                alone.reset()
                got, want = row(target, context, to), row(alone, same)
                np.testing.assert_array_equal(got, want)
                if decodes:
                    context.append([7])
                    same.append([7])
                    draft = Draft.chain([1, 2, 3], "x")
                    got = row(target, context, to, draft)
                    np.testing.assert_array_equal(got, row(alone, same, draft=draft))

        agree()


@pytest.mark.parametrize("ends", [True, False])
@BOTH
def test_only_what_a_first_reading_computes_alike_is_copied(
    tiny_gguf: Path, kernels: KernelSet | None, ends: bool
):
    """With llama.cpp's kernels that are whole chunks of a prompt, but no answers."""
    with opened(tiny_gguf, kernels) as target:
        context = Context(TEXT[:40])
        row(target, context)
        for token in range(9):
            context.append([token])
            row(target, context)
        if ends:
            target.end_turn(context)
            context = Context(context.tokens)
        context.append(range(20))
        row(target, context)
        whole = len(context)
        prompt = np.array([*context.tokens.tolist(), 5], np.int32)
        if target.uniform:
            assert target.reusable(prompt, copied=True) == whole
        else:
            assert target.reusable(prompt, copied=True) == 40 // CHUNK * CHUNK
            assert target.reusable(prompt) > 40
        assert target.reusable(prompt[:21], copied=True) in (20, 16)
        assert target.reusable(prompt[:1], copied=True) == 0
        assert target.reusable(np.array([9, 9], np.int32), copied=True) == 0


def test_copies_of_copies_before_any_call(tiny_gguf: Path):
    with opened(tiny_gguf) as target, opened(tiny_gguf, sequences=1) as alone:
        row(target, Context(TEXT))
        prompt = [*TEXT[:50], 3]
        assert copied(target, TEXT, 0, 1) == len(TEXT) - 1
        assert copied(target, prompt, 1, 2) == 50
        row(target, Context([9] * 60))  # the first source has another text now
        for to in (2, 1):
            got = row(target, Context(prompt), to)
            np.testing.assert_array_equal(got, score_one(alone, Context(prompt)).logits)


@BOTH
def test_snapshots_see_copies_that_llama_has_put_off(
    tiny_gguf: Path, kernels: KernelSet | None
):
    prompt, other = [*TEXT[:48], 3], [9] * 60
    with (
        opened(tiny_gguf, kernels) as target,
        opened(tiny_gguf, kernels, sequences=1) as alone,
    ):
        expected = row(alone, Context(prompt))
        row(target, Context(other), 2)
        theirs = target.snapshot(2)
        row(target, Context(TEXT))
        assert copied(target, prompt, 0, 1) == 48
        cells = target.snapshot(1)
        assert cells is not None
        assert cells.tokens == TEXT[:48]
        assert target.restore(cells, 2)
        np.testing.assert_array_equal(row(target, Context(prompt), 2), expected)
        target.reset()
        row(target, Context(TEXT))
        assert copied(target, prompt, 0, 1) == 48
        assert theirs is not None
        assert target.restore(theirs, 0)  # in the place of the copy's source
        np.testing.assert_array_equal(row(target, Context(prompt), 1), expected)
        if target.uniform:
            alone.reset()
            expected = row(alone, Context([*other, 1]))
            np.testing.assert_array_equal(row(target, Context([*other, 1])), expected)


def test_a_snapshot_that_is_rejected_leaves_the_other_sequences(tiny_gguf: Path):
    with opened(tiny_gguf) as target, opened(tiny_gguf, sequences=1) as alone:
        row(target, Context(TEXT))
        cells = target.snapshot()
        assert cells is not None
        row(target, Context([1, 2, 3]), 1)
        for data in (b"", cells.data[:-5], cells.data + b"x", bytes(len(cells.data))):
            assert not target.restore(cells._replace(data=data), 1)
            assert target.snapshot(1) is None
        fed = target.score([Request(Context([*TEXT, 1]))])[0].fed
        assert fed == 1
        expected = row(alone, Context([1, 2, 3]))
        np.testing.assert_array_equal(row(target, Context([1, 2, 3]), 1), expected)
        with opened(tiny_gguf, sequences=2) as other:  # another number of streams
            assert not other.restore(cells, 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@BOTH
def test_other_architectures(tmp_path: Path, kernels: KernelSet | None, name: str):
    """Copies are as reading, except of a sliding window, which are refused."""
    path = ARCHITECTURES[name](tmp_path / "model.gguf")
    prompt = [*TEXT[:48], 3]
    with (
        opened(path, kernels) as target,
        opened(path, kernels, sequences=1) as alone,
    ):
        slides = name in ("sinks", "capped")
        assert (target.copy_cost is None) is slides
        assert target.keeps_prefixes is not slides
        row(target, Context(TEXT))
        if slides:
            assert target.reusable(np.array(prompt, np.int32), copied=True) == 0
            assert not target.copy(0, 1, 48)
        else:
            assert copied(target, prompt, 0, 1) == 48
        expected = row(alone, Context(prompt))
        np.testing.assert_array_equal(row(target, Context(prompt), 1), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
@BOTH
@pytest.mark.parametrize("kept", [10, 48, 79, 80])
def test_any_prefix_of_a_snapshot(
    tmp_path: Path, kernels: KernelSet | None, name: str, kept: int
):
    """A saved sliding window lacks cells that a shorter context would need."""
    path = ARCHITECTURES[name](tmp_path / "model.gguf")
    one = {"sequences": 1}
    with opened(path, kernels, **one) as target, opened(path, kernels, **one) as alone:
        row(target, Context(TEXT))
        cells = target.snapshot()
        assert cells is not None
        assert target.restore(cells)
        for prompt in ([*TEXT[:kept], 3], [*TEXT[:kept], 4, 5]):
            context = Context(prompt)
            alone.reset()
            if kept == len(TEXT):  # the same calls as for the conversation
                row(alone, Context(TEXT))
                target._sequences[0].cache.mark()
                alone._sequences[0].cache.mark()
            np.testing.assert_array_equal(row(target, context), row(alone, context))


def test_models_that_cannot_copy_say_so(tiny_gguf: Path):
    for changes in ({"sequences": 1}, {"leaves": 2}):
        with opened(tiny_gguf, **changes) as target:
            assert target.copy_cost is None
            row(target, Context(TEXT))
            assert target.reusable(np.array(TEXT, np.int32), copied=True) == 0
            assert not target.copy(0, target.sequences - 1, 5)


def test_a_closed_model_copies_nothing(tiny_gguf: Path):
    with opened(tiny_gguf) as target:
        row(target, Context(TEXT))
    assert target.reusable(np.array(TEXT, np.int32), copied=True) == 0
    assert not target.copy(0, 1, 5)


@pytest.mark.model
@BOTH
def test_the_default_model_says_the_same_after_a_copy(
    kernels: KernelSet | None, model_path: Path
):
    size = {"n_ctx": 512, "n_batch": 64, "threads": 2}
    text = np.random.default_rng(0).integers(100, 40000, 180).tolist()
    prompt = [*text[:150], *text[:20]]
    with opened(model_path, kernels, sequences=1, **size) as alone:
        expected = row(alone, Context(prompt))
    with opened(model_path, kernels, **size) as target:
        row(target, Context(text))
        length = copied(target, prompt, 0, 2)
        assert length == (150 if target.uniform else 128)
        np.testing.assert_array_equal(row(target, Context(prompt), 2), expected)
        if target.uniform:
            cells = target.snapshot(2)
            assert cells is not None
            target.reset()
            assert target.restore(cells, 1)
            context = Context(prompt[:-9])
            found = target.score([Request(context, sequence=1)])[0]
            assert found.fed == 1
            alone_again = found.logits.copy()
            target.reset()
            np.testing.assert_array_equal(row(target, context), alone_again)
