"""ONNX drafters: the weights of a tiny GGUF, in a graph, answer as llama.cpp does."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.onnx import decoder, engine
from edgecs.engines.onnx import providers as onnx_providers
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.engines.onnx.kv_cache import Call
from edgecs.engines.onnx.thread import Aside
from edgecs.errors import Cancelled, ModelError
from edgecs.runtime.loader import Loaded
from tests.engines.onnx_drafters import CPU, KINDS, SIZE, TRIMMED, check, rows_of
from tests.onnx_llama import HALF

tokens = st.lists(st.integers(0, SIZE - 1), max_size=4)
# One step: cut the conversation (in a new context) or keep it, append, guess, fail.
steps = st.lists(
    st.tuples(st.integers(0, 60), tokens, tokens, st.booleans()),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_llama(kind: str, drafter: Any, honest: Loaded):
    context, model = Context(list(b"hello, ")), drafter(kind)
    check(model, honest, context, [])
    context.append([5])
    check(model, honest, context, [6, 7, 8])
    context.append([6, 7, 9])  # two accepted, one rejected
    check(model, honest, context, [10])
    check(model, honest, context.with_tail([11, 12]), [13])
    check(model, honest, Context(list(b"hell no")), [1, 2])


@pytest.fixture(params=KINDS)
def narrow(request: pytest.FixtureRequest, drafter: Any) -> OnnxModel:
    return drafter(request.param, window=18)


# One model for all examples: what one leaves behind must not harm the next.
@given(steps=steps)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_no_cell_is_stale(narrow: OnnxModel, honest: Loaded, steps: Any):
    model = narrow
    context, run = Context([0]), model._cells.run
    for cut, appended, drafted, fails in steps:
        if cut < len(context):
            context = Context([*context.tokens[: max(1, cut)]])
        context.append(appended)
        if fails:

            def broken(ids: Any) -> Any:
                run(ids)
                raise RuntimeError("the engine failed after it had written its cells")

            model._cells.run = broken
            with pytest.raises(ModelError, match="the engine failed"):
                score_one(model, context, Draft.chain(drafted, "x"))
            model._cells.run = run
        check(model, honest, context, drafted)
        tail = context.with_tail(drafted)
        check(model, honest, tail, [])
        check(model, honest, tail, [])
        if cut % 3 == 0:
            model.end_turn(context)
            assert len(model._cache) <= len(context) - 1
        assert len(context) - model._cache.first <= model.manifest.window


def test_which_graphs_can_forget_behind_a_mask(drafter: Any):
    kinds = ("growing", "half", "without positions", "deaf to the mask")
    assert [drafter(kind)._cells._masks for kind in kinds] == [True, True, False, False]
    assert not drafter("deaf to the mask", window=18)._cells._masks
    assert not drafter("deaf to the mask", window=8)._cells._masks


def test_a_fused_graph_without_a_shared_buffer_works_too(
    folders: Any, drafter: Any, honest: Loaded
):
    model, context = drafter("shared", cache="growing", window=24), Context([1, 2, 3])
    assert not model._cells._masks  # it counts the mask, wherever its zeros are
    for token in range(30):
        check(model, honest, context, [4, 5])
        context.append([4, token])


def test_a_mask_that_is_not_heard_would_be_noticed(
    drafter: Any, honest: Loaded, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoder, "forgets", lambda *_: True)
    model, context = drafter("deaf to the mask"), Context([1, 2, 3])
    check(model, honest, context, [4, 5])
    context.append([6])
    with pytest.raises(AssertionError, match="Not equal"):
        check(model, honest, context, [])


def test_rejected_tokens_are_masked_not_moved(drafter: Any):
    model, context = drafter(), Context([1, 2, 3])
    score_one(model, context, Draft.chain([4, 5], "x"))
    context.append([6])
    score_one(model, context)
    cells = model._cells
    assert (cells._live, cells._used) == (4, 6)
    assert cells._call.mask[:6].tolist() == [1, 1, 1, 0, 0, 1]
    for token in range(100):  # they are cut out when the window is full
        score_one(model, context, Draft.chain([4, 5], "x"))
        context.append([token])
    assert cells._used <= 64


@pytest.mark.parametrize("kind", KINDS)
def test_only_new_tokens_are_fed(kind: str, drafter: Any):
    model, context = drafter(kind), Context(range(7))
    assert score_one(model, context, Draft.chain([1, 2], "x")).fed == 9
    context.append([1, 5])  # one accepted, one corrected
    assert score_one(model, context).fed == 1
    assert score_one(model, context).fed == 1
    assert score_one(model, context.with_tail([8]), Draft.chain([9], "x")).fed == 2
    model.end_turn(context)
    assert score_one(model, context).fed == 1
    model.reset()
    assert score_one(model, context).fed == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_costs_half_a_window(kind: str, drafter: Any, honest: Loaded):
    model = drafter(kind, window=256)
    context = Context(np.arange(5000) % 256)
    check(model, honest, context, [1, 2, 3])  # more rows than the last chunk needs
    model.reset()
    assert score_one(model, context, Draft.chain([1], "x")).fed == 129
    for _ in range(128):  # the window fills up, one at a time
        context.append([7])
        fed = score_one(model, context).fed
        assert fed == 1
    context.append([8])
    assert score_one(model, context).fed == 128
    check(model, honest, context, [1, 2, 3])


def test_a_new_window_begins_when_much_must_be_computed_anyway(drafter: Any):
    model, context = drafter(window=64), Context(range(20))
    score_one(model, context)
    context.append(range(32))
    assert score_one(model, context).fed == 32  # in the window, 33 would not pay
    context = Context([*range(20), *range(40)])
    model.reset()
    score_one(model, Context(range(20)))
    assert score_one(model, context).fed == 32
    assert model._cache.first == 28


def test_a_context_that_was_cut_back_is_seen_again(drafter: Any):
    model, long = drafter(window=64), list(range(200))
    score_one(model, Context(long))
    assert model._cache.first == 168
    assert score_one(model, Context(long[:190])).fed == 1
    assert score_one(model, Context(long[:175])).fed == 32
    assert score_one(model, Context(long[:10])).fed == 10


def test_a_trimmed_drafter_answers_in_the_ids_of_the_target(
    folders: Any, drafter: Any, honest: Loaded
):
    graph = {"rows": TRIMMED}
    np.save(folders(**graph) / "map.npy", np.array(TRIMMED, dtype=np.int32))
    model = drafter(graph=graph, id_map="map.npy", unknown=40)
    others = np.setdiff1d(np.arange(SIZE), TRIMMED)
    for known in ([1, 100, 39, 271], [50, 100, 60, 3]):
        # What the drafter lacks is fed as its token 40, which is the target's 271.
        fed = [token if token in TRIMMED else 271 for token in known]
        for draft in ([105], [105, 70, 2]):
            rows = score_one(model, Context(known), Draft.chain(draft, "x")).logits
            fed_draft = [token if token in TRIMMED else 271 for token in draft]
            expected = rows_of(honest, fed, fed_draft)
            assert rows.shape == expected.shape
            np.testing.assert_allclose(
                rows[:, TRIMMED], expected[:, TRIMMED], rtol=2e-4, atol=2e-4
            )
            assert np.isneginf(rows[:, others]).all()


@pytest.mark.parametrize("dtype", [1, HALF])
@pytest.mark.parametrize(("padding", "size"), [(0, 272), (8, 272), (0, 280), (8, 276)])
def test_padded_vocabularies_fit(
    padding: int, size: int, dtype: int, drafter: Any, honest: Loaded
):
    model = drafter(size=size, graph={"padding": padding, "dtype": dtype})
    rows = score_one(model, Context([1, 2]), Draft.chain([3], "x")).logits
    assert rows.shape == (2, size)
    tolerance = 0.05 if dtype == HALF else 2e-4
    np.testing.assert_allclose(
        rows[:, :SIZE], rows_of(honest, [1, 2], [3]), rtol=tolerance, atol=tolerance
    )
    assert np.isneginf(rows[:, SIZE + padding :]).all()


def test_a_drafter_with_the_weights_of_the_target_is_always_right(
    drafter: Any, honest: Loaded
):
    def choose(row: Any, before: Any) -> int:
        return int(row.argmax())

    inner = Cascade(drafter(window=512), StaticSchedule([MaxGram()], [2]), name="onnx")
    context = Context(list(b"hello, hello, he"))
    for _ in range(20):
        drafted = inner.propose(context, 4, choose)
        for token in drafted.tokens:
            honest.target.reset()
            row = score_one(honest.target, context).logits[0]
            assert token == row.argmax()
            context.append([token])


def test_one_holder_at_a_time(drafter: Any):
    model = drafter()
    with (
        model.hold(),
        pytest.raises(ModelError, match="tiny is in use"),
        model.hold(),
    ):
        pass
    with model.hold():
        pass


def test_a_closed_drafter_says_so(drafter: Any):
    model = drafter()
    model.close()
    model.close()
    model.reset()
    model.end_turn(Context([1]))
    with pytest.raises(ModelError, match="was closed: load it again"):
        score_one(model, Context([1]))


def test_reading_can_be_cancelled_between_calls(drafter: Any, honest: Loaded):
    model, context = drafter(window=512), Context(np.arange(200))
    model.cancel.set()
    with pytest.raises(Cancelled):
        score_one(model, context)
    model.cancel.clear()
    assert score_one(model, context).fed == 200 - 64
    check(model, honest, context, [1, 2])


@pytest.mark.parametrize(
    ("context", "draft", "match"),
    [
        ([], [], "an empty context has no next token"),
        ([1], [1] * 17, "a draft of 17 tokens exceeds the 16"),
        ([1, 300], [], "a token is outside of the vocabulary of 272"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    context: list[int], draft: list[int], match: str, drafter: Any
):
    with pytest.raises(ModelError, match=match):
        score_one(drafter(), Context(context), Draft.chain(draft, "x"))


def test_a_tree_is_refused(drafter: Any):
    tree = Draft(
        np.array([1, 2], np.int32), np.array([-1, -1], np.int32), ("x", "x"), None
    )
    with pytest.raises(ModelError, match="this draft is a tree"):
        score_one(drafter(), Context([1]), tree)


def test_the_provider_and_the_reasons_against_others_are_reported(folders: Any):
    providers = ["CoreMLExecutionProvider", "SuchExecutionProvider", *CPU]
    model = OnnxModel(folders(), SIZE, threading.Event(), providers=providers)
    assert model.provider == "CPUExecutionProvider"
    assert set(model.provider_notes) == set(providers[:2])
    assert "not in this build" in model.provider_notes["SuchExecutionProvider"]


def test_a_provider_on_which_the_model_fails_is_not_chosen(
    folders: Any, monkeypatch: pytest.MonkeyPatch
):
    """The first name opens, as a driver that lacks one operator would, but fails."""
    monkeypatch.setattr(
        onnx_providers.ort, "get_available_providers", lambda: ["Odd", *CPU]
    )
    opened, prepare = onnx_providers._open, OnnxModel._prepare
    monkeypatch.setattr(
        onnx_providers, "_open", lambda path, name, n: opened(path, CPU[0], n)
    )

    def prepared(self: OnnxModel, session: Any, provider: str) -> Any:
        if provider == "Odd":
            raise onnx_providers.state.Fail("[ONNXRuntimeError] : 1 : FAIL : no kernel")
        return prepare(self, session, provider)

    monkeypatch.setattr(OnnxModel, "_prepare", prepared)
    model = OnnxModel(folders(), SIZE, threading.Event(), providers=["Odd", *CPU])
    assert (model.provider, model.provider_notes) == (CPU[0], {"Odd": "no kernel"})


def test_a_session_that_fell_back_to_another_provider_is_not_taken(
    folders: Any, monkeypatch: pytest.MonkeyPatch
):
    ort = onnx_providers.ort
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["Odd", *CPU])
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda *args, **_: real(*args, providers=CPU)
    )
    model = OnnxModel(folders(), SIZE, threading.Event(), providers=["Odd", *CPU])
    assert model.provider == CPU[0]
    assert "does not load" in model.provider_notes["Odd"]


@pytest.mark.parametrize("apart", [True, False])
def test_everything_runs_in_one_thread(apart: bool):
    aside = Aside(apart)
    here = threading.get_ident()
    threads = {aside(threading.get_ident) for _ in range(5)}
    assert len(threads) == 1
    assert (here in threads) is not apart
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)
    assert aside(divmod, 7, 2) == (3, 1)
    aside.close()
    aside.close()


@pytest.mark.parametrize("amx", [True, False])
def test_where_llama_cpp_uses_amx_a_drafter_computes_aside(
    drafter: Any, honest: Loaded, monkeypatch: pytest.MonkeyPatch, amx: bool
):
    monkeypatch.setattr(engine, "has_amx", lambda: amx)
    used = set()
    run = Call.run

    def watched(self: Call, *arguments: Any) -> Any:
        used.add(threading.get_ident())
        return run(self, *arguments)

    monkeypatch.setattr(Call, "run", watched)
    check(drafter(), honest, Context(list(b"hello, ")), [6, 7, 8])
    assert len(used) == 1
    assert (threading.get_ident() in used) is not amx


@pytest.mark.model
def test_a_drafter_does_not_disturb_the_target(smollm: Loaded, drafter: Any):
    """With AMX both would set up the tiles of one thread, each for itself."""
    prompt = smollm.model.vocabulary.encode("The capital of France is")

    def answer() -> list[int]:
        smollm.target.reset()
        with smollm.session() as session:
            return [token.id for token in session.generate(prompt, max_tokens=20)]

    before = answer()
    score_one(drafter(), Context(list(b"hello, ")))
    assert answer() == before


# What is asked of which of three conversations: a token is committed, or drafted.
asked = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, SIZE - 1), st.booleans()), max_size=20
)


@given(steps=asked, closing=st.permutations(range(3)))
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
def test_drafters_of_several_conversations_share_a_graph(
    folders: Any, honest: Loaded, steps: Any, closing: list[int]
):
    def opened(beside: OnnxModel | None = None) -> OnnxModel:
        folder, cancel = folders("growing"), threading.Event()
        return OnnxModel(folder, SIZE, cancel, providers=CPU, beside=beside)

    first = opened()
    models = [first, opened(first), opened(first)]
    assert all(model._engine is first._engine for model in models)
    assert len({id(model._cells) for model in models}) == 3
    contexts = [Context(list(b"hello, ")), Context([7]), Context(list(b"hell no"))]
    for at, token, commits in steps:
        if commits:
            contexts[at].append([token])
        check(models[at], honest, contexts[at], [token])
    for i, at in enumerate(closing):
        models[at].close()
        models[at].close()
        with pytest.raises(ModelError, match="was closed"):
            score_one(models[at], contexts[at])
        for other in closing[i + 1 :]:
            check(models[other], honest, contexts[other], [1, 2])
    assert first._engine.watch._closed.is_set()
