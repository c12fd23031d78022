"""The llama.cpp backend on a tiny random Llama: real engine, no weights to fetch."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.llama import language_model, library
from edgecs.engines.llama.layers import _footprint, automatic_layers
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import Device
from edgecs.errors import (
    Cancelled,
    ConfigError,
    ContextFull,
    ModelError,
    OutOfMemory,
)
from edgecs.hub.download import split_parts
from edgecs.runtime.loader import Loaded, load
from edgecs.testing.fakes import ScriptedDrafter, write_random_gguf
from tests.engines.calls import watched
from tests.reference import plain_greedy

PROMPTS = [list(b"hello, hello, hello"), list(range(200)), [5]]


@pytest.mark.parametrize("draft_max", [0, 1, 3, 8])
def test_tokens_are_those_of_plain_decoding(
    tiny: Loaded, tiny_gguf: Path, draft_max: int
):
    kernels = tiny.model.kernels
    expected = plain_greedy(
        tiny_gguf, PROMPTS, 60, n_ctx=512, chunk=64, kernels=kernels
    )
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        wrong = ScriptedDrafter([*prompt, *answer], wrong=0.5, vocab_size=256)
        with tiny.session([MaxGram(), wrong], draft_max) as session:
            said = [t.id for t in session.generate(prompt, max_tokens=60)]
            assert said == answer
            stats = session.stats
            assert (stats.accepted > 0) == (draft_max > 0)
            assert (stats.accepted < stats.tested) == (draft_max > 0)


def test_rows_follow_the_context_and_every_draft_token(tiny: Loaded):
    target, context = tiny.target, Context(PROMPTS[0])
    score_one(target, context)
    context.append([7])
    rows = score_one(target, context, Draft.chain([8, 9], "x"))
    assert rows.logits.shape == (3, 272)
    assert rows.fed == 3
    together = np.array(rows.logits)
    for i, tail in enumerate([[], [8], [8, 9]]):
        target.reset()
        alone = score_one(target, Context([*PROMPTS[0], 7, *tail]))
        np.testing.assert_allclose(together[i], alone.logits[0], rtol=1e-3, atol=1e-3)


def test_a_draft_never_rides_on_a_prefill_chunk(tiny: Loaded):
    target = tiny.target
    calls = watched(target)
    rows = score_one(target, Context(range(100)), Draft.chain([8, 9], "x"))
    assert calls == [(64, 1), (36, 1), (2, 2)]
    assert rows.logits.shape == (3, 272)
    assert rows.fed == 102


def test_a_regenerated_answer_starts_from_the_same_bits(tiny: Loaded):
    target, prompt = tiny.target, list(range(90))
    context = Context(prompt)
    first = np.array(score_one(target, context).logits)
    for token in (4, 5, 6):
        context.append([token])
        score_one(target, context)
    again = score_one(target, Context(prompt))
    assert again.fed == 0
    np.testing.assert_array_equal(first, again.logits)
    # Another conversation makes the copy void, also one of the same length.
    other = score_one(target, Context([9, *prompt[1:]]))
    assert other.fed == 90
    assert not np.array_equal(first, other.logits)


def test_a_row_that_was_not_kept_is_computed_again(tiny: Loaded):
    target, context = tiny.target, Context([1, 2, 3])
    score_one(target, context)
    context.append([4])
    rows = np.array(score_one(target, context, Draft.chain([5, 6], "x")).logits)
    context.append([5, 6])  # everything is in the cells already
    again = score_one(target, context)
    assert again.fed == 1
    np.testing.assert_allclose(rows[2], again.logits[0], rtol=1e-3, atol=1e-3)


def test_the_copied_row_is_void_once_its_cells_are_overwritten(tiny: Loaded):
    target, prompt = tiny.target, list(range(90))
    score_one(target, Context(prompt))
    other = Context([*prompt[:89], 7])  # one new token: not a prefill, no new copy
    right = np.array(score_one(target, other).logits)
    np.testing.assert_array_equal(right, score_one(target, other).logits)


def test_a_turn_ends_one_cell_short(tiny: Loaded):
    target, context = tiny.target, Context([1, 2, 3])
    score_one(target, context)
    context.append([4])
    score_one(target, context, Draft.chain([5, 6], "x"))
    context.append([5, 6])
    target.end_turn(context)
    assert score_one(target, Context([1, 2, 3, 4, 5, 6, 7, 8])).fed == 3


def test_prefill_can_be_cancelled_between_chunks(tiny: Loaded):
    target, calls = tiny.target, []
    call = target.calls.call

    def cancelling(first: int) -> tuple[int, int]:
        calls.append(1)
        tiny.cancel.set()
        return call(first)

    target.calls.call = cancelling
    with tiny.session([], 0) as session:
        assert list(session.generate(range(200), max_tokens=3)) == []
        assert session.finish_reason == "cancelled"
        assert calls == [1]
        target.calls.call = call
        tiny.cancel.clear()
        assert len(list(session.generate(range(200), max_tokens=3))) == 3
        assert session.stats.cached_tokens == 64  # the chunk that was done is kept


def test_reading_a_prompt_tells_how_far_it_is(tiny: Loaded):
    told: list[tuple[int, int]] = []
    tiny.target.on_read = lambda done, total: told.append((done, total))
    context = Context(range(150))
    score_one(tiny.target, context, Draft.chain([8], "x"))
    context.append([7])
    score_one(tiny.target, context)
    assert told == [(0, 150), (64, 150), (128, 150), (150, 150)]


def test_loading_can_be_cancelled(tiny_gguf: Path):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled, match=r"stopped while loading tiny\.gguf"):
        load(tiny_gguf, LoadOptions(), cancel=cancel)


def test_a_failed_call_leaves_the_model_usable(tiny: Loaded):
    target, prompt = tiny.target, list(range(70))
    right = np.array(score_one(target, Context(prompt)).logits)
    call = target.calls.call

    def interrupted(first: int) -> tuple[int, int]:
        call(first)
        raise KeyboardInterrupt

    target.calls.call = interrupted
    with pytest.raises(KeyboardInterrupt):
        score_one(target, Context([*prompt[:65], 7]))
    target.calls.call = call
    other = Context([*prompt[:64], 9])
    after = np.array(score_one(target, other).logits)
    target.reset()
    np.testing.assert_array_equal(after, score_one(target, other).logits)
    target.reset()
    np.testing.assert_array_equal(right, score_one(target, Context(prompt)).logits)


def test_too_much_is_refused_and_the_model_goes_on(tiny: Loaded):
    target = tiny.target
    with pytest.raises(ContextFull, match="513 tokens and a draft of 0"):
        score_one(target, Context([1] * 513))
    with pytest.raises(ModelError, match="exceeds the 63"):
        score_one(target, Context([1]), Draft.chain([1] * 64, "x"))
    with pytest.raises(ModelError, match="could not decode"):
        score_one(target, Context([1, 5000]))
    assert score_one(target, Context([1, 2])).fed == 2


def test_one_holder_at_a_time(tiny: Loaded):
    with (
        tiny.session([], 0),
        pytest.raises(ModelError, match=r"tiny\.gguf is in use"),
    ):
        tiny.session([], 0)
    tiny.session([], 0).close()


def test_nothing_is_used_after_it_was_closed(tiny_gguf: Path):
    loaded = load(tiny_gguf, LoadOptions(n_ctx=256))
    session = loaded.session([MaxGram()], 3)
    stream = session.generate(PROMPTS[0])
    next(stream)
    loaded.close()
    loaded.close()
    with pytest.raises(ModelError, match="was closed"):
        list(stream)
    session.close()
    for use in (
        lambda: score_one(loaded.target, Context([1])),
        lambda: loaded.model.vocabulary.encode("a"),
        lambda: loaded.model.vocabulary.piece(200),
    ):
        with pytest.raises(ModelError, match="was closed"):
            use()
    loaded.target.end_turn(Context([1]))
    loaded.target.reset()


def test_trees_are_refused(tiny: Loaded):
    parents = np.array([-1, -1], np.int32)
    tree = Draft(np.array([1, 2], np.int32), parents, ("x", "x"), np.ones(2))
    with pytest.raises(ModelError, match="2 leaves exceeds the 1"):
        score_one(tiny.target, Context([1]), tree)


@pytest.mark.parametrize("size", [0, 3, 4, 24, 500, 9_000, 20_000, 200_000, -1])
@pytest.mark.parametrize("with_gpu", [False, True])
def test_a_truncated_file_is_one_sentence(
    tiny_gguf: Path, tmp_path: Path, size: int, with_gpu: bool, request
):
    if with_gpu:
        request.getfixturevalue("gpu")
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:size])
    with pytest.raises(ModelError) as error:
        load(path, LoadOptions())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 a zip", "is not a GGUF file"),
        (b"GGUF" + b"\xff" * 64, "cannot be loaded"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(path, LoadOptions())


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / "none.gguf", LoadOptions())
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path, LoadOptions())


@pytest.mark.parametrize("with_gpu", [False, True])
@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00002.gguf"])
def test_a_pipe_is_refused_and_not_opened(
    tiny_gguf: Path, tmp_path: Path, name: str, with_gpu: bool, request
):
    if with_gpu:
        request.getfixturevalue("gpu")
    path = tmp_path / name
    pipe = path.with_name(split_parts(name)[-1])
    path.write_bytes(tiny_gguf.read_bytes())
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(ModelError, match=f"{pipe.name} cannot be read .it is a named"):
        load(path, LoadOptions())
    with pytest.raises(ModelError, match="cannot be read .it is a named pipe"):
        read_pieces(pipe)


def test_a_missing_file_is_named_where_layers_are_chosen(tmp_path: Path, gpu: Device):
    with pytest.raises(ModelError, match=r"there is no file .*none.gguf"):
        load(tmp_path / "none.gguf", LoadOptions())


def test_the_vocabulary_goes_both_ways(tiny: Loaded):
    vocabulary = tiny.model.vocabulary
    ids = vocabulary.encode("né<|end|>").tolist()
    assert ids == [268, ord("n"), 0xC3, 0xA9, 269]
    assert vocabulary.encode("n", document=False).tolist() == [ord("n")]
    assert [vocabulary.piece(i) for i in ids] == [b"", b"n", b"\xc3", b"\xa9", b""]
    assert vocabulary.ends == {269}
    assert (vocabulary.bos, vocabulary.eos) == ("<|begin|>", "<|end|>")
    assert "messages" in str(vocabulary.chat_template)
    with pytest.raises(ConfigError, match="not valid Unicode at character 1"):
        vocabulary.encode("a\udcff")


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q4_0"])
def test_kv_types_reach_the_engine(tmp_path: Path, kind: str):
    # Heads of 32 values: a quantised cache needs whole blocks.
    path = write_random_gguf(tmp_path / "wide.gguf", heads=2, kv_heads=1)
    context = Context(PROMPTS[0])
    rows = []
    for type_ in ("f32", kind):
        options = LoadOptions(n_ctx=256, type_k=type_, type_v=type_)
        with load(path, options) as loaded:
            rows.append(np.array(score_one(loaded.target, context).logits))
    assert not np.array_equal(*rows)
    assert np.corrcoef(*(row[0] for row in rows))[0, 1] > 0.9


def test_the_footprint_is_read_from_the_file(tiny_gguf: Path):
    footprint, n_ctx = _footprint(tiny_gguf, LoadOptions(n_ctx=100), 0)
    assert n_ctx == 100
    block = 4 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    assert footprint.blocks == (block, block)
    assert footprint.output == 4 * (272 * 64 + 64)
    assert footprint.kv == (256 * 2 * 32 * 2,) * 2  # llama.cpp rounds up to 256 cells
    # Without a wish the context is what half of the free memory holds.
    kv_per_token = sum(footprint.kv) // 256
    assert _footprint(tiny_gguf, LoadOptions(), 20_000 * kv_per_token)[1] == 9984


def test_both_ways_to_the_size_of_a_cache_agree(tiny: Loaded, tiny_gguf: Path):
    free = 20_000 * 256
    with pytest.MonkeyPatch.context() as patch:
        memory = type("Memory", (), {"available": free})
        patch.setattr("psutil.virtual_memory", lambda: memory)
        from_llama = tiny.model.default_ctx(LoadOptions())
    assert from_llama == _footprint(tiny_gguf, LoadOptions(), free)[1] == 9984


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    """llama.cpp seems to see a device of 8 GiB."""
    gpu = Device("GPU0", "a fake", 8 << 30, 8 << 30)
    monkeypatch.setattr(library, "supports_offload", lambda: True)
    monkeypatch.setattr(library, "devices", lambda: [gpu])
    return gpu


def test_automatic_offload_takes_what_fits(tiny_gguf: Path, gpu: Device):
    options = LoadOptions(n_ctx=256)
    note = "3 of 3 layers fit GPU0 with 8192 MiB free"
    assert automatic_layers(tiny_gguf, options) == (3, 256, note)
    with load(tiny_gguf, options) as loaded:
        assert loaded.note == note


@pytest.mark.parametrize(
    "name", ["llvmpipe (LLVM 15.0.6, 256 bits)", "SwiftShader Device (LLVM 10.0.0)"]
)
def test_automatic_offload_leaves_software_devices(
    tiny_gguf: Path, gpu: Device, monkeypatch: pytest.MonkeyPatch, name: str
):
    software = replace(gpu, description=name)
    monkeypatch.setattr(library, "devices", lambda: [software])
    with load(tiny_gguf, LoadOptions(n_ctx=256)) as loaded:
        assert loaded.options.n_gpu_layers == 0
        note = f"no layers, as {name} computes on the CPU (-ngl all offloads to it)"
        assert loaded.note == note
    monkeypatch.setattr(library, "devices", lambda: [software, gpu])
    assert automatic_layers(tiny_gguf, LoadOptions(n_ctx=256)).layers == 3


@pytest.mark.parametrize(
    ("owner", "name"), [(LlamaModel, "_open"), (language_model, "open_context")]
)
def test_fewer_layers_are_tried_when_an_allocation_fails(
    tiny_gguf: Path, gpu: Device, monkeypatch: pytest.MonkeyPatch, owner, name: str
):
    """Be it the weights or the KV cache that do not fit."""
    real, tried = getattr(owner, name), []

    def picky(first, options: LoadOptions, *others, **named):
        tried.append(options.n_gpu_layers)
        if options.n_gpu_layers > 1:
            raise OutOfMemory("too much")
        return real(first, options, *others, **named)

    monkeypatch.setattr(owner, name, picky)
    with load(tiny_gguf, LoadOptions(n_ctx=256)) as loaded:
        assert tried == [3, 2, 1]
        assert loaded.note == "1 GPU layers, as an allocation failed with more"


def test_a_number_of_layers_is_not_second_guessed(
    tiny_gguf: Path, gpu: Device, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self, options):
        raise OutOfMemory("too much")

    monkeypatch.setattr(LlamaModel, "_open", refuse)
    with pytest.raises(OutOfMemory):
        load(tiny_gguf, LoadOptions(n_gpu_layers=2))


def test_a_broken_header_is_left_to_llama_cpp(gpu: Device, tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(path, LoadOptions())


def test_the_cpu_build_reports_no_offload(tiny: Loaded):
    assert tiny.model.offload.layers == 0
    assert tiny.model.offload.total == 3
    assert sum(tiny.model.offload.buffers.values()) == pytest.approx(0.42, abs=0.01)
