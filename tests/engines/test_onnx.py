"""ONNX drafters: the weights of a tiny GGUF, in a graph, answer as llama.cpp does."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.static_schedule import Quotas
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.hidden_states import States
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.onnx import decoder
from edgecs.engines.onnx import providers as onnx_providers
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.engines.onnx.graph import read_graph
from edgecs.engines.onnx.head import OnnxHead
from edgecs.engines.onnx.kv_cache import Call
from edgecs.engines.onnx.thread import Aside
from edgecs.errors import Cancelled, ModelError
from edgecs.hub.drafter_manifest import DrafterManifest, read_drafter, write_drafter
from edgecs.runtime.loader import Loaded, load
from tests.onnx_llama import HALF, write_onnx

SIZE = 272
CPU = ["CPUExecutionProvider"]
TRIMMED = [*range(40), 271, *range(100, 140)]  # unsorted on purpose
# Every kind of graph: what write_onnx is asked for, and the tolerance for its rows.
KINDS: dict[str, dict[str, Any]] = {
    "growing": {"cache": "growing"},
    "without positions": {"cache": "growing", "positions": False},
    "deaf to the mask": {"cache": "growing", "masked": False},
    "half": {"cache": "growing", "dtype": HALF},
    "shared": {"cache": "shared"},
}
MANIFEST = DrafterManifest(
    name="tiny",
    description="random",
    license="none",
    file="model.onnx",
    cache="growing",
    window=64,
    vocabulary="0" * 64,
)

tokens = st.lists(st.integers(0, SIZE - 1), max_size=4)
# One step: cut the conversation (in a new context) or keep it, append, guess, fail.
steps = st.lists(
    st.tuples(st.integers(0, 60), tokens, tokens, st.booleans()),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def honest(tiny_gguf: Path) -> Any:
    """The same weights in llama.cpp, where nothing is rounded to 16 bits."""
    options = LoadOptions(
        n_ctx=512, threads=1, type_k="f32", type_v="f32", flash_attention="off"
    )
    with load(tiny_gguf, options) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def folders(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a drafter's folder of a kind, once."""
    made: dict[str, Path] = {}

    def folder(kind: str = "growing", **more: Any) -> Path:
        name = f"{kind}{more}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp("drafter")
            write_onnx(made[name] / "model.onnx", tiny_gguf, **{**KINDS[kind], **more})
            cache = KINDS[kind]["cache"]
            write_drafter(replace(MANIFEST, cache=cache, folder=made[name]))
        return made[name]

    return folder


@pytest.fixture
def drafter(folders: Callable[..., Path]) -> Any:
    """Opens a drafter; keywords that a manifest has go there."""
    opened = []

    def make(
        kind: str = "growing", size: int = SIZE, graph: Any = None, **manifest: Any
    ) -> OnnxModel:
        read = read_drafter(folders(kind, **(graph or {})))
        model = OnnxModel(
            replace(read, **manifest), size, threading.Event(), providers=CPU
        )
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.close()


def rows_of(honest: Loaded, seen: list[int], draft: list[int]) -> Any:
    """llama.cpp's rows when all it is given are these tokens."""
    honest.target.reset()
    return score_one(honest.target, Context(seen), Draft.chain(draft, "x")).logits


def check(model: OnnxModel, honest: Loaded, context: Context, draft: list[int]) -> None:
    """The model's rows are those of a fresh model that is fed the same window."""
    got = score_one(model, context, Draft.chain(draft, "x")).logits
    first = model._cache.first
    expected = rows_of(honest, context.tokens[first:].tolist(), draft)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    halved = model._cells._call._logits.dtype == np.float16
    tolerance = 0.05 if halved else 2e-4
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


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

    inner = Cascade(drafter(window=512), Quotas([MaxGram()], [2]), name="onnx")
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
        ([1, 300], [], "a token beyond the vocabulary of 272"),
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


# Each breaks a sound folder in one way; the sentence has to name that way.


def _truncate(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def _graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        onnx.save(model, folder / "model.onnx")

    return apply


def _external(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.data"
    )
    (folder / "model.data").unlink()


def _keys(**keys: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_drafter(replace(read_drafter(folder), **keys))

    return apply


def _text(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "drafter.toml"
        path.write_text(path.read_text().replace(old, new))

    return apply


def _map(ids: Any, dtype: Any = np.int32) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        np.save(folder / "map.npy", np.array(ids, dtype=dtype))
        _keys(id_map="map.npy", unknown=0)(folder)

    return apply


def _claim(body: bytes = b"", **header: Any) -> Callable[[Path], None]:
    """A map whose header claims what it likes."""

    def apply(folder: Path) -> None:
        claims = {"descr": "<i4", "fortran_order": False, "shape": (SIZE,), **header}
        with (folder / "map.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, claims)
            file.write(body)
        _keys(id_map="map.npy", unknown=0)(folder)

    return apply


def _raw_map(header: bytes, magic: bytes = b"\x93NUMPY\x01\x00") -> Any:
    def apply(folder: Path) -> None:
        size = len(header).to_bytes(2, "little")
        (folder / "map.npy").write_bytes(magic + size + header)
        _keys(id_map="map.npy", unknown=0)(folder)

    return apply


def _pickled_map(folder: Path) -> None:
    np.save(folder / "map.npy", np.array([{}] * SIZE, dtype=object))
    _keys(id_map="map.npy", unknown=0)(folder)


def _zipped_map(folder: Path) -> None:
    with (folder / "map.npy").open("wb") as file:
        np.savez(file, np.arange(SIZE, dtype=np.int32))
    _keys(id_map="map.npy", unknown=0)(folder)


def _pipe(name: str) -> Callable[[Path], None]:
    """A pipe in place of a file: opening it would wait for ever."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def _map_pipe(folder: Path) -> None:
    _keys(id_map="map.npy", unknown=0)(folder)
    _pipe("map.npy")(folder)


def _logits_of_rank(rank: int, *, told: bool = True) -> Callable[[Path], None]:
    """Logits that are flattened, which the file tells or not."""

    def change(model: onnx.ModelProto) -> None:
        graph, helper = model.graph, onnx.helper
        (node,) = (node for node in graph.node if "logits" in node.output)
        node.output[list(node.output).index("logits")] = "before"
        sizes = helper.make_tensor("sizes", onnx.TensorProto.INT64, [rank], [-1] * rank)
        if rank > 1:
            sizes.int64_data[:] = [1] * (rank - 1) + [-1]
        graph.initializer.append(sizes)
        graph.node.append(helper.make_node("Reshape", ["before", "sizes"], ["logits"]))
        shape = graph.output[0].type.tensor_type
        shape.ClearField("shape")
        if told:
            for i in range(rank):
                shape.shape.dim.add().dim_param = f"d{i}"

    return _graph(change)


def _dimension(index: int, value: int) -> Callable[[Path], None]:
    """A size in the shape of past_key_values.0.key."""

    def change(model: onnx.ModelProto) -> None:
        shape = model.graph.input[3].type.tensor_type.shape
        shape.dim[index].dim_value = value

    return _graph(change)


def _int_input(model: onnx.ModelProto) -> None:
    kind = onnx.TensorProto.INT64
    model.graph.input.append(onnx.helper.make_tensor_value_info("beam", kind, [1]))


def _open_heads(model: onnx.ModelProto) -> None:
    model.graph.input[3].type.tensor_type.shape.dim[1].dim_param = "heads"


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "model.onnx does not run in ONNX Runtime"),
    "empty": (lambda f: (f / "model.onnx").write_bytes(b""), "model.onnx is empty"),
    "text": (
        lambda f: (f / "model.onnx").write_text("<html>no</html>"),
        "model.onnx does not run in ONNX Runtime",
    ),
    "no graph": (
        lambda f: (f / "model.onnx").unlink(),
        "there is no file .*model.onnx",
    ),
    "no weights": (_external, "model.data"),
    "no manifest": (lambda f: (f / "drafter.toml").unlink(), "it has no drafter.toml"),
    "no toml": (_text("name", "name name"), "cannot be read as a manifest"),
    "unknown key": (_text("window", "windwo"), "'windwo'; did you mean 'window'"),
    "missing key": (_text("license", "# license"), "the key 'license' is missing"),
    "wrong type": (_text("window = 64", 'window = "64"'), "'window' must be a number"),
    "cache": (_keys(cache="round"), "'cache' must be one of growing, shared, got 'rou"),
    "window": (_keys(window=0), "'window' must be 8 tokens or more, got 0"),
    "hash": (_keys(vocabulary="abc"), "'vocabulary' must be 64 digits .* got 'abc'"),
    "path": (_text("model.onnx", "../m.onnx"), "'file' must be a plain name"),
    "folder": (_text("window", 'folder = "a"\nwindow'), "'folder' cannot be set"),
    "no unknown": (_keys(id_map="map.npy"), "'id_map' needs 'unknown'"),
    "unknown range": (_keys(unknown=272), "'unknown' is 272 but .* ids 0 to 271"),
    "size": (_keys(size=7), "bytes, its manifest has 7"),
    "sha256": (_keys(sha256="0" * 64), "has the sha256 [^0].* its manifest has 000"),
    "no map": (_keys(id_map="map.npy", unknown=0), "map.npy cannot be read as an id"),
    "map length": (_map(range(271)), "has 271 ids for 272 rows"),
    "map range": (_map([*range(271), 272]), "has the id 272 for a target of 272 tok"),
    "map negative": (_map([*range(271), -1]), "has the id -1 for a target of 272"),
    "map twice": (_map([*range(271), 5]), "has the id 5 twice"),
    "map type": (_map(range(272), np.int64), "must be one row of int32"),
    "shared, but grows": (_keys(cache="shared"), "does not run in ONNX Runtime .CPUEx"),
    "no mask": (
        _graph(lambda m: m.graph.input.pop(1)),
        "does not run in ONNX Runtime",
    ),
    "no logits": (
        _graph(lambda m: m.graph.output.pop(0)),
        "the graph has no output logits: export it as text-generation-with-past",
    ),
    "no present": (
        _graph(lambda m: m.graph.output.pop(1)),
        "has no output present.0.key for its input past_key_values.0.key",
    ),
    "other input": (_graph(_int_input), "wants the input beam, which edgecs cannot"),
    "heads": (_graph(_open_heads), "past_key_values.0.key of shape"),
    "negative size": (_dimension(3, -16), "past_key_values.0.key of shape"),
    "flat logits": (_logits_of_rank(1), "has logits of shape .*, not .batch, n, rows"),
    "rows alone": (_logits_of_rank(2), "has logits of shape .*, not .batch, n, rows"),
    "four": (_logits_of_rank(4), "has logits of shape .*, not .batch, n, rows"),
    "flat and silent": (_logits_of_rank(1, told=False), "has logits of shape .[0-9n]*"),
    "endless window": (
        _keys(window=2_000_000_000),
        "'window' must be 131072 tokens at",
    ),
    "true window": (_text("window = 64", "window = true"), "'window' must be a number"),
    "parameters": (_keys(parameters=-1), "'parameters' must be 0 or more, got -1"),
    "unknown negative": (_keys(unknown=-1), "'unknown' must be 0 or more, got -1"),
    "no size": (_keys(size=0), "'size' must be 1 or more, got 0"),
    "long name": (_text('"tiny"', f'"{"t" * 201}"'), "'name' must have 200 char"),
    "control": (_text('"random"', '"a\\u001bb"'), "'description' must be text without"),
    "two lines": (_text('"none"', '"a\\nb"'), "'license' must be one line"),
    "manifest pipe": (_pipe("drafter.toml"), "it is a named pipe"),
    "graph pipe": (_pipe("model.onnx"), "it is a named pipe"),
    "map pipe": (_map_pipe, "cannot be read as an id map .it is a named pipe"),
    "map of 3.6 TiB": (_claim(shape=(10**12,)), "has 1000000000000 ids for 272 rows"),
    "map overflows": (_claim(shape=(1 << 70,)), "has 11805916[0-9]* ids for 272 rows"),
    "map below 0": (_claim(shape=(-1,)), "has -1 ids for 272 rows"),
    "map of nothing": (_claim(shape=()), "must be one row of int32"),
    "map of rows": (_claim(shape=(SIZE, 1)), "must be one row of int32"),
    "map in Fortran": (_claim(bytes(4 * SIZE), fortran_order=True), "must be one row"),
    "map cut": (_claim(bytes(100)), "has 100 bytes for 272 ids"),
    "map and more": (_claim(bytes(4 * SIZE + 1)), "has 1089 bytes for 272 ids"),
    "map pickled": (_pickled_map, "must be one row of int32"),
    "map zipped": (_zipped_map, "cannot be read as an id map"),
    "map nested": (_raw_map(b"(" * 9000), "cannot be read as an id map"),
    "map keys": (_raw_map(b"{[]: 1}"), "cannot be read as an id map"),
    "map long": (_raw_map(b" " * 60_000), "cannot be read as an id map"),
    "map version": (_raw_map(b"", b"\x93NUMPY\x09\x00"), "cannot be read as an id map"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str, tiny_gguf: Path, tmp_path: Path):
    breaks, sentence = BROKEN[name]
    write_onnx(tmp_path / "model.onnx", tiny_gguf)
    write_drafter(replace(MANIFEST, folder=tmp_path))
    OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU).close()
    breaks(tmp_path)
    with pytest.raises(ModelError, match=sentence) as caught:
        OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU)
    assert "\n" not in str(caught.value)


def test_a_graph_that_says_nothing_of_its_logits_is_measured(
    tiny_gguf: Path, tmp_path: Path, honest: Loaded
):
    write_onnx(tmp_path / "model.onnx", tiny_gguf)
    write_drafter(replace(MANIFEST, folder=tmp_path))
    _graph(lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"))(tmp_path)
    model = OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU)
    check(model, honest, Context([1, 2, 3]), [4])
    model.close()


class Node(NamedTuple):
    """An input or output as a session describes it."""

    name: str
    shape: list[Any]
    type: str = "tensor(float)"


class Described(NamedTuple):
    """A session of which only the description is looked at."""

    past: list[Any]
    logits: list[Any]

    def get_inputs(self) -> list[Node]:
        ids = [Node(name, [1, "n"], "tensor(int64)") for name in ("input_ids", MASK)]
        return [*ids, Node("past_key_values.0.key", self.past)]

    def get_outputs(self) -> list[Node]:
        return [Node("logits", self.logits), Node("present.0.key", self.past)]


MASK = "attention_mask"
PAST: list[Any] = [1, 2, "n", 16]


def test_what_a_graph_takes_and_gives_is_read():
    for logits, width in (([1, "n", 272], 272), ([1, "n", "rows"], None), ([], None)):
        graph = read_graph(Described(PAST, logits))
        assert graph.width == width
        assert [(cell.heads, cell.size) for cell in graph.cells] == [(2, 16)]


@pytest.mark.parametrize(
    "past",
    [
        [1, 0, "n", 16],
        [1, 2, "n", -1],
        [1, 2, "n", 1 << 40],
        [1, None, "n", 16],
        [1, 2, "n", "size"],
        [2, "n", 16],
        [],
    ],
)
def test_cells_of_other_shapes_are_refused(past: list[Any]):
    with pytest.raises(
        ModelError, match="has the input past_key_values.0.key of shape"
    ):
        read_graph(Described(past, [1, "n", 272]))


@pytest.mark.parametrize(
    "logits", [[272], ["n", 272], [1, "n", 0], [1, "n", -1], [1, "n", 1 << 40], [1] * 4]
)
def test_logits_of_other_shapes_are_refused(logits: list[Any]):
    with pytest.raises(ModelError, match="has logits of shape .*, not .batch, n, rows"):
        read_graph(Described(PAST, logits))


HEAD = replace(MANIFEST, kind="head", cache="rows", file="head.onnx")
SHAPES: dict[str, list[int | str]] = {
    "state": ["n", 8],
    "past_key": ["m", 8],
    "past_value": ["m", 8],
    "mask": ["n", "total"],
    "token": ["n"],
    "position": ["n"],
}


def write_head(folder: Path, logits: list[Any], **shapes: list[Any]) -> None:
    """A head that computes nothing, with matrices of these shapes.

    "k" rows of logits are three for every token.
    """
    helper, kind = onnx.helper, onnx.TensorProto
    sizes = {**SHAPES, **shapes}

    def info(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        number = kind.INT64 if name in ("token", "position") else kind.FLOAT
        return helper.make_tensor_value_info(name, number, shape)

    copies = ("next_state", "key", "value")
    nodes = [helper.make_node("Identity", ["state"], [name]) for name in copies]
    tokens = ["token"] * (3 if "k" in logits else 1)
    nodes.append(helper.make_node("Concat", tokens, ["tokens"], axis=0))
    nodes.append(helper.make_node("Cast", ["tokens"], ["numbers"], to=kind.FLOAT))
    nodes.append(helper.make_node("Reshape", ["numbers", "sizes"], ["logits"]))
    numbers = [size if isinstance(size, int) else -1 for size in logits]
    graph = helper.make_graph(
        nodes,
        "head",
        [info(name, shape) for name, shape in sizes.items()],
        [info("logits", logits), *(info(name, sizes["state"]) for name in copies)],
        [helper.make_tensor("sizes", kind.INT64, [len(logits)], numbers)],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(model, folder / "head.onnx")
    write_drafter(replace(HEAD, folder=folder))


def test_a_head_with_matrices_that_fit_is_opened(tmp_path: Path):
    write_head(tmp_path, ["n", 1])
    OnnxHead(tmp_path, States(8), SIZE, threading.Event(), providers=CPU).close()


@pytest.mark.parametrize(
    ("logits", "shapes", "sentence"),
    [
        (["n"], {}, "has logits of shape .*, not .n, width"),
        (["n", 1, 1], {}, "has logits of shape .*, not .n, width"),
        ([1, "rows"], {}, "has logits of shape .*, not .n, width"),
        (["k", 1], {}, "gives logits of shape .3, 1., not .1, 1."),
        (["n", 1], {"state": ["n"]}, "has state of shape .*, not .n, width"),
        (["n", 1], {"state": ["n", "w"]}, "has state of shape .*, not .n, width"),
        (["n", 1], {"past_key": ["m", 1 << 40]}, "has past_key of shape"),
        (["n", 1], {"past_key": ["m", 8, 1]}, "has past_key of shape"),
        (["n", 1], {"past_key": ["m", 4]}, "does not run in ONNX Runtime"),
    ],
)
def test_a_head_with_matrices_of_other_shapes_is_named(
    tmp_path: Path, logits: list[Any], shapes: dict[str, list[Any]], sentence: str
):
    write_head(tmp_path, logits, **shapes)
    with pytest.raises(ModelError, match=sentence) as caught:
        OnnxHead(tmp_path, States(8), SIZE, threading.Event(), providers=CPU)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no folder .*none"):
        OnnxModel(tmp_path / "none", SIZE, threading.Event())


def test_a_whole_file_passes_its_checks(folders: Any, drafter: Any):
    data = (folders() / "model.onnx").read_bytes()
    drafter(size=SIZE, sha256=hashlib.sha256(data).hexdigest())


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path):
    written = replace(
        MANIFEST,
        description='a "quoted"\ntext, Ä€\U0001f600',
        parameters=12,
        quantization="int8",
        source="somewhere",
        size=5,
        folder=tmp_path,
    )
    write_drafter(written)
    assert read_drafter(tmp_path) == written


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
    monkeypatch.setattr(decoder, "has_amx", lambda: amx)
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
