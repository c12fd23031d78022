"""Heads in use: what ONNX Runtime computes in pieces is what PyTorch does at once."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.hidden_states import States
from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.engines.onnx.head import OnnxHead
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import read_drafter, write_drafter
from edgecs.runtime.loader import Loaded
from edgecs.sampling.chain import greedy
from edgecs.tuning.runner import agreeing
from edgecs_bench.record import _asked
from edgecs_bench.simulation.traces import Trace
from tests.conftest import Outcome

if importlib.util.find_spec("torch") is None:
    pytest.skip("the extra 'distill' is not installed", allow_module_level=True)

import torch

from edgecs_convert.distill.export import About, export_head
from edgecs_convert.distill.head import Head
from edgecs_convert.distill.shape import HeadShape
from edgecs_convert.distill.texts import Vocabulary

VOCAB, KNOWN, WIDTH = 272, 200, 64  # those of the tiny random Llama
SHAPE = HeadShape(width=WIDTH, rows=KNOWN, heads=4, kv_heads=2, inner=96)
TOKENS = np.random.default_rng(1).integers(0, VOCAB, 400).astype(np.int32)
STATES = np.random.default_rng(2).standard_normal((400, WIDTH), dtype=np.float32)


class Made(NamedTuple):
    folder: Path
    head: Head
    vocabulary: Vocabulary


def make(folder: Path, *, int8: bool, window: int, pieces: list[bytes]) -> Made:
    head = Head(SHAPE, seed=3)
    ids = np.random.default_rng(0).permutation(VOCAB)[:KNOWN]
    vocabulary = Vocabulary(np.sort(ids).astype(np.int32), VOCAB)
    about = About(
        name="tiny head",
        source="tiny.gguf",
        license="MIT",
        pieces=pieces,
        window=window,
        int8=int8,
        made={"rate": 0.1, "agreement": [0.5, 0.25], "prompts": 'a "file"'},
    )
    export_head(folder, head, vocabulary.ids, about)
    return Made(folder, head, vocabulary)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Made:
    """A head with random weights in floats, for the tiny random Llama."""
    folder = tmp_path_factory.mktemp("head") / "float"
    return make(folder, int8=False, window=160, pieces=read_pieces(tiny_gguf))


def opened(made: Made, states: States) -> OnnxHead:
    return OnnxHead(made.folder, states, VOCAB, threading.Event())


def at_once(made: Made, begin: int, known: int, size: int, tail: list[int]):
    """Logits behind `size` tokens and a tail, from token `begin` on.

    known: the first cell whose state is known.
    """
    ids = np.concatenate([TOKENS[begin:size], np.array(tail, dtype=np.int32)])
    states = np.zeros((1, ids.size, WIDTH), dtype=np.float32)
    for token in range(max(begin, known + 1), size):
        states[0, token - begin] = STATES[token - 1]
    rows = torch.from_numpy(made.vocabulary.rows_of(ids))[None]
    with torch.no_grad():
        steps = made.head(rows, torch.from_numpy(states), 1 + len(tail))
        return made.head.logits(steps[-1][0, -1]).numpy()


rounds = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), max_size=4),  # what is drafted
        st.lists(st.integers(0, VOCAB - 1), max_size=3),  # and then instead
        st.integers(1, 4),  # tokens that the target says
    ),
    min_size=1,
    max_size=6,
)


@given(rounds)
def test_drafts_in_any_order_are_those_of_one_pass(
    made: Made, steps: list[tuple[list[int], list[int], int]]
):
    """Drafts that grow, are given up, begin again; tokens that are committed."""
    prompt = 10
    states = States(WIDTH)
    head = opened(made, states)
    context, size = Context(TOKENS[: prompt + 1]), prompt + 1
    try:
        for drafted, instead, said in steps:
            for tail in [drafted[:i] for i in range(len(drafted) + 1)] + [instead]:
                here = context.with_tail(tail) if tail else context
                got = score_one(head, here).logits[0]
                expected = at_once(made, 0, prompt, size, tail)
                assert np.allclose(got[made.vocabulary.ids], expected, atol=1e-4)
            states.put(context, size - 1, STATES[size - 1 : size - 1 + said])
            context.append(TOKENS[size : size + said])
            size += said
    finally:
        head.close()


def test_tokens_that_it_lacks_are_nobodys_choice(made: Made):
    head = opened(made, States(WIDTH))
    row = score_one(head, Context(TOKENS[:5])).logits[0]
    head.close()
    lacking = np.setdiff1d(np.arange(VOCAB), made.vocabulary.ids)
    assert np.isneginf(row[lacking]).all()
    assert np.isfinite(row[made.vocabulary.ids]).all()


def test_a_window_begins_anew_when_it_is_full(tmp_path: Path, tiny_gguf: Path):
    small = make(
        tmp_path / "head", int8=False, window=24, pieces=read_pieces(tiny_gguf)
    )
    states = States(WIDTH)
    head = opened(small, states)
    context = Context(TOKENS[:3])
    begins = set()
    for size in range(3, 90):
        got = score_one(head, context).logits[0][small.vocabulary.ids]
        begin = head._cache.first
        begins.add(begin)
        assert size - begin <= 24
        assert np.allclose(got, at_once(small, begin, 2, size, []), atol=1e-4)
        states.put(context, size - 1, STATES[size - 1 : size])
        context.append(TOKENS[size : size + 1])
    head.close()
    assert len(begins) > 5


def test_int8_says_nearly_the_same(tmp_path: Path, made: Made, tiny_gguf: Path):
    small = make(
        tmp_path / "head", int8=True, window=160, pieces=read_pieces(tiny_gguf)
    )
    rows = []
    for one in (made, small):
        head = opened(one, States(WIDTH))
        logits = score_one(head, Context(TOKENS[:60])).logits[0]
        rows.append(logits[made.vocabulary.ids])
        head.close()
    apart = np.abs(rows[0] - rows[1]).max()
    assert 0 < apart < 0.2 * rows[0].std()
    sizes = [(one.folder / "head.onnx").stat().st_size for one in (made, small)]
    assert sizes[1] < 0.4 * sizes[0]


@pytest.mark.parametrize("options", [(), ("--temp", 0), ("--k-matrix", "3,2;0,0")])
def test_an_answer_is_the_same_with_a_head(
    edgecs: Callable[..., Outcome], made: Made, tiny_gguf: Path, options: tuple
):
    fixed = ("-m", tiny_gguf, "-c", 512, "-p", "hello", "-n", 60, "-s", 3, "-q")
    sampled = [option for option in options if option in ("--temp", 0)]
    plain = edgecs("generate", *fixed, *sampled, "--no-spec")
    drafted = edgecs("generate", *fixed, *options, "--draft", made.folder)
    assert drafted.code == 0, drafted.err
    assert drafted.out == plain.out


def test_tuning_asks_it_along_with_its_target(made: Made, tiny: Loaded):
    states = tiny.target.note_states()
    head = opened(made, states)
    prompt = tiny.model.vocabulary.encode("hello")
    context, answer, says = Context(prompt), list[int](), list[int]()
    for _ in range(20):  # as in use: after every token of the target
        row = score_one(tiny.target, context).logits[0]
        answer.append(int(row.argmax()))
        context.append(answer[-1:])
        says.append(int(score_one(head, context).logits[0].argmax()))
    tiny.target.reset()
    same = [one == other for one, other in zip(says[:-1], answer[1:], strict=True)]
    # What a head says of the first token, nobody uses.
    assert agreeing(head, tiny.target, prompt, answer)[1:] == same
    head.close()


def test_recorded_drafts_are_those_in_use(made: Made, tiny: Loaded):
    states = tiny.target.note_states()
    head = opened(made, states)
    prompt = tiny.model.vocabulary.encode("hello")
    context, answer, drafts = Context(prompt), list[int](), list[list[int]]()
    for _ in range(40):
        row = score_one(tiny.target, context).logits[0]
        answer.append(int(row.argmax()))
        context.append(answer[-1:])
        draft: list[int] = []
        for _ in range(3):
            here = context.with_tail(draft) if draft else context
            draft.append(int(score_one(head, here).logits[0].argmax()))
        drafts.append(draft)
    trace = Trace("1", "test", prompt.tolist(), answer, [1.0] * 40)
    asked = _asked(head, tiny.target, greedy, trace).proposals(3)
    head.close()
    # The drafts before the first token are nobody's.
    assert asked.tokens[1:] == drafts[:-1]
    assert all(0 < p <= 1 for ps in asked.confidences for p in ps)


def test_it_takes_no_draft_to_review(made: Made):
    head = opened(made, States(WIDTH))
    with pytest.raises(ModelError, match="cannot review a draft"):
        score_one(head, Context([1]), Draft.chain([2], "test"))
    with pytest.raises(ModelError, match="give a prompt"):
        score_one(head, Context())
    head.close()
    with pytest.raises(ModelError, match="was closed"):
        score_one(head, Context([1]))


def test_the_states_of_another_target_are_refused(made: Made):
    with pytest.raises(ModelError, match=r"width 64, but .* width 128.*\(tiny\.gguf"):
        opened(made, States(128))


def test_another_graph_is_refused(made: Made, tmp_path: Path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    same = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [same])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(model, tmp_path / "head.onnx")
    manifest = read_drafter(made.folder)
    write_drafter(replace(manifest, folder=tmp_path, size=None, sha256=None))
    with pytest.raises(ModelError, match="is not a head: make it with"):
        OnnxHead(tmp_path, States(WIDTH), VOCAB, threading.Event())


def test_the_manifest_keeps_how_it_was_made(made: Made):
    manifest = read_drafter(made.folder)
    assert manifest.kind == "head"
    assert manifest.made == {
        "rate": 0.1,
        "agreement": [0.5, 0.25],
        "prompts": 'a "file"',
    }


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12),
    st.permutations(range(3)),
)
def test_heads_of_several_conversations_share_a_graph(
    made: Made, steps: list[tuple[int, int]], closing: list[int]
):
    """Each has its own cells and reads the states of its own sequence."""
    cancel = threading.Event()
    states = [States(WIDTH) for _ in range(3)]
    first = OnnxHead(made.folder, states[0], VOCAB, cancel)
    heads = [first]
    for own in states[1:]:
        heads.append(OnnxHead(made.folder, own, VOCAB, cancel, beside=first))
    assert all(head._engine is first._engine for head in heads)
    begins = [3, 7, 11]  # tokens before the first known state
    contexts = [Context(TOKENS[: begin + 1]) for begin in begins]

    def check(at: int, drafted: int) -> None:
        size = len(contexts[at])
        tail = TOKENS[200 : 200 + drafted].tolist()
        for count in range(drafted + 1):
            here = contexts[at].with_tail(tail[:count]) if count else contexts[at]
            got = score_one(heads[at], here).logits[0][made.vocabulary.ids]
            expected = at_once(made, 0, begins[at], size, tail[:count])
            assert np.allclose(got, expected, atol=1e-4)

    for at, drafted in steps:
        check(at, drafted)
        size = len(contexts[at])
        states[at].put(contexts[at], size - 1, STATES[size - 1 : size + 1])
        contexts[at].append(TOKENS[size : size + 2])
    for i, at in enumerate(closing):
        heads[at].close()
        heads[at].close()
        with pytest.raises(ModelError, match="was closed"):
            score_one(heads[at], contexts[at])
        for other in closing[i + 1 :]:
            check(other, 2)
    assert first._engine.watch._closed.is_set()
