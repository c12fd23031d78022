"""The exporter: what it writes speaks for the GGUF that it was made from."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.errors import ConfigError, ModelError
from edgecs.hub.compatibility import check_same
from edgecs.hub.drafter_manifest import read_drafter
from edgecs.runtime.loader import Loaded, load, load_drafter
from edgecs.sampling.settings import Sampling
from edgecs_convert.onnx.export import Form, export, pack_int4
from edgecs_convert.onnx.pruning import frequent
from tests.conftest import Outcome

_MISSING = [
    name
    for name in ("torch", "transformers", "optimum", "onnx")
    if importlib.util.find_spec(name) is None
]
needs_torch = pytest.mark.skipif(
    bool(_MISSING), reason=f"the extra 'convert' is not installed: no {_MISSING}"
)
# Imports of torch warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1969, astronauts landed on the "
    "Moon for the first time. Water boils at one hundred degrees Celsius at sea level, "
    "and it freezes at zero. The capital of France is Paris, and that of Italy is Rome."
)
CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="session")
def exported(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as an int8 drafter."""
    return export(model_path, tmp_path_factory.mktemp("export") / "int8")


@needs_torch
@pytest.mark.model
def test_the_drafter_chooses_mostly_as_the_model_does(exported: Path, smollm: Loaded):
    size = smollm.model.vocabulary.size
    drafter = OnnxModel(exported, size, threading.Event(), providers=CPU)
    ids = smollm.model.vocabulary.encode(TEXT)
    smollm.target.reset()
    context, same = Context(ids[:1]), 0
    for i in range(1, len(ids)):
        here = [score_one(m, context).logits[0] for m in (drafter, smollm.target)]
        same += here[0].argmax() == here[1].argmax()
        context.append(ids[i : i + 1])
    drafter.close()
    assert same > 0.6 * (len(ids) - 1)


@needs_torch
@pytest.mark.model
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_model_says_the_same_with_the_drafter(
    exported: Path, smollm: Loaded, temperature: float
):
    rule = smollm.rule(Sampling(temperature, top_k=40, top_p=0.95, seed=5))
    prompt = smollm.model.vocabulary.encode(TEXT)
    matrix = KMatrix.parse("3,2;0,3")
    answers = []
    with load_drafter(exported, smollm) as drafter:
        model = NamedModel(drafter.name, drafter.model)
        writers = stack([model], MaxGram(), matrix, lenience=2.0)
        for counts, drafters in (((), []), (matrix.counts(0), writers)):
            smollm.target.reset()
            with smollm.session(drafters, counts, rule=rule) as session:
                stream = session.generate(prompt, max_tokens=60)
                answers.append([token.id for token in stream])
                stats = session.stats
        assert "int8" in drafter.about
    assert answers[0] == answers[1]
    by_source = stats.by_source()
    assert by_source[drafter.name]["accepted"] > 10
    assert stats.tested > stats.accepted
    assert 0 < stats.forwards[drafter.name] <= stats.proposed


@needs_torch
@pytest.mark.model
def test_the_drafter_has_the_vocabulary_of_the_model(exported: Path, model_path: Path):
    manifest = read_drafter(exported)
    pieces = read_pieces(model_path)
    names = {"target_name": "a", "drafter_name": "b"}
    check_same(pieces, manifest.vocabulary, manifest.pieces(), **names)
    other = [*pieces[:9], b"!", *pieces[10:]]
    with pytest.raises(ModelError, match="token 9 is "):
        check_same(other, manifest.vocabulary, manifest.pieces(), **names)
    assert (manifest.quantization, manifest.license) == ("int8", "apache-2.0")
    assert sorted(path.name for path in exported.iterdir()) == [
        "drafter.toml",
        "model.onnx",
        "vocabulary.json",
    ]


@needs_torch
@pytest.mark.model
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_plain_export_answers_as_llama_does(
    quantize: str, tiny_gguf: Path, tmp_path: Path
):
    folder = export(tiny_gguf, tmp_path / "plain", Form(quantize, window=32))
    model = OnnxModel(folder, 272, threading.Event(), providers=CPU)
    assert model._cells._masks  # its mask is exact: forgetting costs nothing
    options = LoadOptions(
        n_ctx=512, threads=1, type_k="f32", type_v="f32", flash_attention="off"
    )
    random, context = np.random.default_rng(0), Context([3, 4, 5])
    agreed = []
    with load(tiny_gguf, options) as loaded:
        for _ in range(60):
            draft = Draft.chain(random.integers(0, 272, random.integers(0, 5)), "x")
            got = score_one(model, context, draft).logits
            loaded.target.reset()
            seen = Context(context.tokens[model._cache.first :])
            expected = score_one(loaded.target, seen, draft).logits
            if quantize == "none":
                np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)
            agreed.append(np.corrcoef(got.ravel(), expected.ravel())[0, 1])
            context.append(random.integers(0, 272, random.integers(0, 4)))
    assert min(agreed) > 0.9
    model.close()


@needs_torch
@pytest.mark.model
def test_an_export_that_fails_leaves_nothing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecs_convert.onnx.export.export_module", fail)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_gguf, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_in_four_bits_are_near_and_packed_low_nibble_first():
    matrix = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
    packed, scales = pack_int4(matrix)
    assert packed.shape == (5, 3, 16)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(5, 3, 32)
    read = (nibbles.astype(np.float32) - 8) * scales[..., None]
    back = read.reshape(5, 96)[:, :70].T
    widest = np.abs(scales).max()
    assert np.abs(back - matrix).max() <= widest  # -8 is reached, +8 is not
    assert pack_int4(np.zeros((32, 1), np.float32))[0].tolist() == [[[136] * 16]]


def test_what_cannot_be_exported_is_named(tiny_gguf: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="there is no file .*none.gguf"):
        export(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        export(tiny_gguf, tmp_path)
    with pytest.raises(ConfigError, match="'int3' is unknown: use one of int8, int4"):
        export(tiny_gguf, tmp_path / "out", Form("int3"))
    with pytest.raises(ConfigError, match="window must be 8 tokens or more, got 7"):
        export(tiny_gguf, tmp_path / "out", Form(window=7))
    with pytest.raises(ConfigError, match="window must be 131072 tokens at most"):
        export(tiny_gguf, tmp_path / "out", Form(window=1 << 18))
    assert list(tmp_path.iterdir()) == []


def test_the_texts_of_tokens_are_read_without_the_weights(tiny_gguf: Path):
    pieces = read_pieces(tiny_gguf)
    assert pieces[:256] == [bytes([i]) for i in range(256)]
    assert pieces[-1] == b"<|assistant|>"


def test_importing_the_exporter_loads_no_torch():
    import subprocess

    code = "import sys, edgecs_convert.onnx.export; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


@needs_torch
@pytest.mark.model
def test_a_smaller_vocabulary_and_fewer_layers_still_draft(
    edgecs: Callable[..., Outcome], tiny_gguf: Path, tmp_path: Path
):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    folder = tmp_path / "small"
    fixed = ("convert", "onnx", tiny_gguf, folder, "--quantize", "none")
    pruned = ("--vocab-from", text, "--keep-layers", "0,", "--window", 64)
    outcome = edgecs(*fixed, *pruned)
    assert "cover 100.0% of the last tenth of text.txt" in outcome.err
    assert "of the choices are the same" in outcome.err
    manifest = read_drafter(folder)
    assert manifest.made is not None
    assert manifest.made["layers"] == [0]
    ids = np.load(folder / "ids.npy")
    letters = set(b"the quick brown fox jumps over the lazy dog. ")
    assert letters <= set(ids.tolist())
    assert ids.size < 60
    said = (
        "generate",
        "-m",
        tiny_gguf,
        "-c",
        256,
        "-p",
        "fox",
        "-n",
        30,
        "-q",
        "-s",
        1,
    )
    plain = edgecs(*said, "--no-spec").out
    drafted = edgecs(*said, "--draft", folder, "--k-matrix", "3,0;0,0")
    assert drafted.code == 0, drafted.err
    assert drafted.out == plain


@needs_torch
@pytest.mark.model
def test_a_trimmed_drafter_says_what_the_whole_one_does(
    tiny_gguf: Path, tmp_path: Path
):
    text = tmp_path / "text.txt"
    text.write_text("abcdefghijklmnopqrstuvwxyz " * 60)
    form = Form("none", window=64, vocabulary_from=text)
    folders = [
        export(tiny_gguf, tmp_path / "whole", Form("none", window=64)),
        export(tiny_gguf, tmp_path / "small", form),
    ]
    context = Context(list(b"hello world"))
    rows = []
    for folder in folders:
        model = OnnxModel(folder, 272, threading.Event(), providers=CPU)
        rows.append(score_one(model, context).logits[0].copy())
        model.close()
    known = np.load(folders[1] / "ids.npy")[:-1]
    assert np.allclose(rows[0][known], rows[1][known], atol=1e-4)
    # Of the small one this is about tokens that it does not know as well.
    made = read_drafter(folders[0]).made
    assert made is not None
    assert made["largest_difference"] < 1e-3
    assert made["same_choices"] == 1


@needs_torch
def test_the_layers_that_are_missed_least_go(tiny_gguf: Path):
    import torch

    from edgecs_convert.onnx.export import load_weights
    from edgecs_convert.onnx.pruning import choices, find_layers, keep_layers

    model = load_weights(tiny_gguf)
    (first, last) = list(model.model.layers)
    idle = type(first)(model.config, 0)
    with torch.no_grad():
        for weight in idle.parameters():
            weight.zero_()
    model.model.layers = torch.nn.ModuleList([first, idle, idle, last])
    model.config.num_hidden_layers = 4
    tokens = np.arange(40, dtype=np.int32)
    before = choices(model, tokens)
    assert find_layers(model, tokens, 2, lambda text: None) == [0, 3]
    assert len(model.model.layers) == 4
    keep_layers(model, [0, 3])
    assert np.array_equal(choices(model, tokens), before)
    for bad in ([], [0, 0], [7]):
        with pytest.raises(ConfigError, match="cannot be kept: the model has 0 to 1"):
            keep_layers(model, bad)
    with pytest.raises(ConfigError, match="5 layers cannot be kept"):
        find_layers(model, tokens, 5, lambda text: None)


def test_frequent_tokens_are_kept_in_order():
    tokens = np.array([5, 5, 3, 9, 9, 9, 1], dtype=np.int32)
    assert frequent(tokens, 3, 12, always=[7]).tolist() == [5, 7, 9]
    assert frequent(tokens, 99, 12, always=[]).tolist() == [1, 3, 5, 9]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff", "cannot be read as text"), (b"short", "tokens: 1000 or more")],
)
def test_a_text_that_tells_nothing_is_refused(
    tiny_gguf: Path, tmp_path: Path, content: bytes, says: str
):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        export(tiny_gguf, tmp_path / "out", Form(vocabulary_from=text))
    assert not (tmp_path / "out").exists()


def test_layers_are_numbers(edgecs: Callable[..., Outcome], tiny_gguf: Path):
    outcome = edgecs("convert", "onnx", tiny_gguf, "out", "--keep-layers", "some")
    assert outcome.code == 2
    assert "takes a number, or numbers with commas, not 'some'" in outcome.err
