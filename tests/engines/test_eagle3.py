"""EAGLE-3 in llama.cpp: what it computes in pieces is what numpy does at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request, score_one
from edgecs.engines.hidden_states import States
from edgecs.engines.llama.heads.eagle3 import Eagle3
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ModelError
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from tests import drafter_files as files
from tests import families

TOKENS = np.random.default_rng(1).integers(0, 250, 600).astype(np.int32)
OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0)
LAYERS = (1, 2, 3)
Rows = NDArray[np.float32]


class Made(NamedTuple):
    target: Loaded
    drafter: LoadedDrafter
    weights: dict[str, Rows]

    @property
    def head(self) -> Eagle3:
        head = self.drafter.model
        assert isinstance(head, Eagle3)
        return head

    @property
    def states(self) -> States:
        return self.head._states


def weights(*paths: Path) -> dict[str, Rows]:
    """Those of all files; of two with a name, that of the last one."""
    return {
        tensor.name: np.array(tensor.data)
        for path in paths
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.fixture(scope="module", params=["auto", "llama"])
def made(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Made]:
    """A random target and head, with edgecs' kernels and with llama.cpp's."""
    folder = tmp_path_factory.mktemp("eagle3")
    target = files.target(folder / "target.gguf")
    head = files.eagle3(folder / "head.gguf", layers=LAYERS)
    options = LoadOptions(**{**vars(OPTIONS), "kernels": request.param})
    with load(target, options) as loaded, load_drafter(head, loaded, options) as d:
        yield Made(loaded, d, weights(target, head))


def normed(x: Rows, weight: Rows) -> Rows:
    rows: Rows = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    return rows


def rotated(x: Rows, positions: NDArray[np.int64]) -> Rows:
    """Rotations of adjacent pairs, [n, heads, width]."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = np.empty_like(x)
    turned[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    turned[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
    return turned


def at_once(w: dict[str, Rows], tokens: list[int], features: Rows) -> Rows:
    """Logits after the last of some tokens, whose first ones follow known states.

    features: [known, 3 * width]. The others follow states of the head.
    """
    state = features @ w["fc.weight"].T
    n = len(tokens)
    embedded = w["token_embd.weight"][tokens]
    # Later states need the outputs of earlier tokens, so it is not quite at once.
    for known in range(len(state), n + 1):
        states, used = state[:known], embedded[:known]
        both = np.hstack(
            (
                normed(used, w["blk.0.attn_norm.weight"]),
                normed(states, w["blk.0.attn_norm_2.weight"]),
            )
        )
        q, k, v = (both @ w[f"blk.0.attn_{x}.weight"].T for x in "qkv")
        at = np.arange(1, known + 1)
        q = rotated(q.reshape(known, files.HEADS, files.HEAD), at)
        k = rotated(k.reshape(known, files.KV_HEADS, files.HEAD), at)
        v = v.reshape(known, files.KV_HEADS, files.HEAD)
        each = files.HEADS // files.KV_HEADS
        k, v = np.repeat(k, each, 1), np.repeat(v, each, 1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(files.HEAD)
        scores += np.triu(np.full((known, known), -np.inf), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", scores, v).reshape(known, -1)
        inner = states + mixed @ w["blk.0.attn_output.weight"].T
        x = normed(inner, w["blk.0.ffn_norm.weight"])
        gate = x @ w["blk.0.ffn_gate.weight"].T
        up = x @ w["blk.0.ffn_up.weight"].T
        down = (gate / (1 + np.exp(-gate)) * up) @ w["blk.0.ffn_down.weight"].T
        outputs = inner + down
        state = np.vstack((state[:known], outputs[-1:]))
    logits: Rows = normed(outputs[-1], w["output_norm.weight"]) @ w["output.weight"].T
    return logits


def checked(made: Made, context: Context, tail: list[int]) -> None:
    here = context.with_tail(tail) if tail else context
    committed = context.committed
    features = made.states.of(context, 0, committed - 1)
    got = score_one(made.head, here).logits[0]
    expected = at_once(made.weights, here.tokens[1:].tolist(), features)
    # Cells have 16 bits.
    assert np.abs(got - expected).max() < 0.02 * expected.std(), (committed, tail)


rounds = st.lists(
    st.tuples(
        st.lists(st.integers(0, 250), max_size=4),  # what is drafted
        st.lists(st.integers(0, 250), max_size=3),  # and then instead
        st.lists(st.integers(0, 250), max_size=3),  # what the target verifies
        st.integers(0, 3),  # tokens of it that are accepted
        st.booleans(),  # whether the head is asked in this round
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(st.integers(2, 100), rounds)
def test_drafts_in_any_order_are_those_of_one_pass(made: Made, prompt: int, steps):
    """Drafts that grow, are given up, begin again; rounds without a draft."""
    made.target.target.reset()
    context = Context(TOKENS[:prompt])
    score_one(made.target.target, context)  # reads the prompt
    for drafted, instead, verified, accepted, asked in steps:
        # A token that the target has not computed yet.
        context.append([TOKENS[len(context)]])
        if asked:
            for tail in [drafted[:i] for i in range(len(drafted) + 1)] + [instead]:
                checked(made, context, tail)
        score_one(made.target.target, context, Draft.chain(verified, "test"))
        context.append(verified[:accepted])


def test_its_states_are_the_inputs_of_the_layers(made: Made):
    made.target.target.reset()
    context = Context(TOKENS[:70])
    score_one(made.target.target, context)
    assert made.states.known(context) == (0, 70)
    states = made.states.of(context, 0, 70).reshape(70, 3, files.WIDTH)
    # A later call of single tokens gives the same as the prompt's chunks.
    made.target.target.reset()
    again = Context(TOKENS[:1])
    for token in TOKENS[1:70]:
        score_one(made.target.target, again)
        again.append([token])
    score_one(made.target.target, again)
    same = made.states.of(again, 0, 70).reshape(70, 3, files.WIDTH)
    assert np.abs(states - same).max() < 0.01 * states.std()
    assert np.abs(states[:, 0] - states[:, 1]).max() > 0.1


@pytest.mark.parametrize("widths", [(0, 3), (5, 0), (2, 2)])
def test_states_of_a_call_with_another_conversation(
    tmp_path: Path, widths: tuple[int, int]
):
    """Tokens of both, and padding, are in one batch."""
    target = files.target(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", layers=LAYERS)
    options = replace(OPTIONS, n_ctx=256, sequences=2)
    with load(target, options) as loaded, load_drafter(head, loaded, options) as d:
        assert isinstance(d.model, Eagle3)
        first, second = Context(TOKENS[:50]), Context(TOKENS[200:230])
        drafts = [Draft.chain(TOKENS[300 : 300 + w], "test") for w in widths]
        loaded.target.score([Request(second, sequence=1), Request(first)])
        for context in (first, second):
            context.append([9])
        loaded.target.score(
            [Request(second, drafts[1], 1), Request(first, drafts[0], 0)]
        )
        together = d.model._states.of(first, 0, 51 + widths[0])
        assert d.model._states.known(first) == (0, 51 + widths[0])
        loaded.target.reset()
        alone = Context(TOKENS[:50])
        score_one(loaded.target, alone)
        alone.append([9])
        score_one(loaded.target, alone, drafts[0])
        expected = d.model._states.of(alone, 0, 51 + widths[0])
    assert np.abs(together - expected).max() < 0.01 * expected.std()


def test_the_end_of_one_head_leaves_the_states_of_others(tmp_path: Path):
    """Both read the same rows of llama.cpp, each those of its own sequence."""
    target = files.target(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", layers=LAYERS)
    options = replace(OPTIONS, n_ctx=256, sequences=2)
    with load(target, options) as loaded, load_drafter(head, loaded, options) as d:
        assert d.beside is not None
        other = d.beside(1)
        assert isinstance(other, Eagle3)
        assert isinstance(d.model, Eagle3)
        assert other.model is d.model.model
        other.close()
        context = Context(TOKENS[:50])
        score_one(loaded.target, context)
        assert d.model._states.known(context) == (0, 50)
        context.append([9])
        score_one(d.model, context)  # the weights are still there


def test_recording_changes_no_bit_of_the_logits(tmp_path: Path):
    target = files.target(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", layers=LAYERS)

    def rows(loaded: Loaded) -> list[Rows]:
        loaded.target.reset()
        context, found = Context(TOKENS[:90]), []
        for width in (0, 0, 3, 0, 7, 1, 0, 2):
            draft = Draft.chain(TOKENS[200 : 200 + width], "test")
            found.append(score_one(loaded.target, context, draft).logits.copy())
            context.append([TOKENS[len(context)]])
        return found

    with load(target, OPTIONS) as loaded:
        plainly = rows(loaded)
        with load_drafter(head, loaded, OPTIONS):
            recording = rows(loaded)
        after = rows(loaded)
    for before, during, then in zip(plainly, recording, after, strict=True):
        assert np.array_equal(before, during)
        assert np.array_equal(before, then)


def test_another_text_and_the_same_text_again(made: Made):
    """A regenerated answer has the cells of its prompt, in target and head."""
    target = made.target.target
    for tokens in (TOKENS[:80], TOKENS[100:150], TOKENS[100:150], TOKENS[100:140]):
        context = Context(tokens)
        assert not made.head.ready(context)
        for _ in range(3):
            score_one(target, context)
            context.append([TOKENS[300 + len(context)]])
            assert made.head.ready(context)
            checked(made, context, [1, 2])
        target.end_turn(context)


def test_a_long_text_moves_the_window(tmp_path: Path):
    """The target's context is longer than that of the head."""
    target = files.target(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", n_ctx=96)
    with load(target, OPTIONS) as loaded, load_drafter(head, loaded, OPTIONS) as d:
        assert isinstance(d.model, Eagle3)
        context, begins = Context(TOKENS[:3]), set()
        while len(context) < 400:
            score_one(loaded.target, context)
            context.append([TOKENS[len(context)]])
            score_one(d.model, context)
            score_one(d.model, context.with_tail([5]))
            begins.add(d.model._cache.first)
            assert len(d.model._cache) <= 96
    assert len(begins) > 4


def test_states_that_are_not_kept_begin_a_new_window(made: Made, monkeypatch):
    target, states = made.target.target, made.states
    target.reset()
    context = Context(TOKENS[:20])
    score_one(target, context)
    context.append([3])
    checked(made, context, [])
    context.append(TOKENS[:300])
    score_one(target, context)
    context.append([4])
    monkeypatch.setattr(states, "_first", 200)  # as if fewer were kept
    score_one(made.head, context)
    assert made.head._cache.first == 201
    score_one(made.head, context.with_tail([7]))
    made.head.reset()


def test_reading_a_long_text_can_be_stopped(made: Made):
    made.target.target.reset()
    context = Context(TOKENS[:400])
    score_one(made.target.target, context)
    context.append([1])
    made.head.cancel.set()
    with pytest.raises(Cancelled):
        score_one(made.head, context)
    made.head.cancel.clear()
    checked(made, context, [2])


def test_its_own_smaller_vocabulary(tmp_path: Path):
    ids = np.sort(np.random.default_rng(3).permutation(250)[:100]).astype(np.int64)

    def fixed(name: str, shape: tuple[int, ...]) -> files.Array | None:
        return ids if name == "d2t" else None

    target = files.target(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", reduced=100, own=True, fixed=fixed)
    with load(target, OPTIONS) as loaded, load_drafter(head, loaded, OPTIONS) as d:
        context = Context(TOKENS[:30])
        score_one(loaded.target, context)
        context.append([7])
        row = score_one(d.model, context).logits[0].copy()
        features = d.model._states.of(context, 0, 30)
    w = weights(target, head)
    expected = at_once(w, [*TOKENS[1:30].tolist(), 7], features)
    lacking = np.setdiff1d(np.arange(files.VOCABULARY), ids)
    assert np.isneginf(row[lacking]).all()
    assert np.abs(row[ids] - expected).max() < 0.02 * expected.std()


def test_it_takes_no_draft_to_review(made: Made):
    with pytest.raises(ModelError, match="cannot review a draft"):
        score_one(made.head, Context([1]), Draft.chain([2], "test"))
    with pytest.raises(ModelError, match="give a prompt"):
        score_one(made.head, Context())


def test_a_closed_one_says_so_and_its_target_records_nothing(tmp_path: Path):
    target = files.target(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf")
    with load(target, OPTIONS) as loaded:
        with load_drafter(head, loaded, OPTIONS) as drafter:
            assert loaded.target._sequences[0].recorded
        drafter.close()
        assert not loaded.target._sequences[0].recorded
        with pytest.raises(ModelError, match="was closed"):
            score_one(drafter.model, Context([1]))
        drafter.model.reset()


def test_two_sessions_cannot_use_it(made: Made):
    with made.head.hold(), pytest.raises(ModelError, match="another session"):
        made.head.hold().__enter__()


@pytest.mark.parametrize("family", ["gemma4", "qwen35"])
def test_the_state_after_the_last_layer(family: str, tmp_path: Path):
    """A number of a layer that equals their count, in any place."""
    make = {"gemma4": files.gemma4, "qwen35": families.qwen35}[family]
    path = make(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", layers=(1, 4, 2))
    with load(path, OPTIONS) as plain:
        context = Context(TOKENS[:90])
        expected = score_one(plain.target, context).logits.copy()
    with load(path, OPTIONS) as loaded, load_drafter(head, loaded, OPTIONS) as drafter:
        assert isinstance(drafter.model, Eagle3)
        assert np.array_equal(score_one(loaded.target, context).logits, expected)
        noted = loaded.target.note_states()
        context.append(TOKENS[90:91])
        score_one(loaded.target, context, Draft.chain(TOKENS[91:94], "test"))
        context.append(TOKENS[91:94])
        states = drafter.model.states.of(context, 0, 94)
        first, last, second = np.split(states, 3, axis=1)
        assert all(np.abs(part).max(1).all() for part in (first, last, second))
        assert np.array_equal(last[90:], noted.of(context, 90, 94))
        # They end with its recording, and another one begins with it.
        assert np.abs(score_one(drafter.model, context).logits).max() > 0
        drafter.close()
        with load_drafter(head, loaded, OPTIONS) as again:
            context.append([7])
            score_one(loaded.target, context)
            assert isinstance(again.model, Eagle3)
            row = again.model.states.of(context, 94, 95)
            assert np.abs(row).reshape(3, -1).max(1).all()


def test_states_of_another_width_after_the_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = files.gemma4(tmp_path / "target.gguf")
    head = files.eagle3(tmp_path / "head.gguf", layers=(1, 2, 4))
    monkeypatch.setattr(LlamaLM, "width", 4 * files.WIDTH)
    with load(path, OPTIONS) as loaded, pytest.raises(ModelError, match="width 256"):
        load_drafter(head, loaded, OPTIONS)
