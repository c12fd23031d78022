"""Files of heads that do not fit, or are not what they say: one sentence, no abort."""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines import gguf_header
from edgecs.engines.llama.heads import experimental
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError
from edgecs.runtime.loader import Loaded, load, load_drafter
from edgecs.testing.fakes import write_random_gguf
from tests import drafter_files as files
from tests.commands import Edgecs, one_line

OPTIONS = LoadOptions(n_ctx=128, n_batch=64, threads=1, n_gpu_layers=0)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory):
    """A target with hooks."""
    path = files.target(tmp_path_factory.mktemp("target") / "target.gguf")
    with load(path, OPTIONS) as loaded:
        yield loaded


def refused(target: Loaded, drafter: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_drafter(drafter, target, OPTIONS)
    assert not target.target._sequences[0].recorded
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_a_drafter_is_no_target(edgecs: Edgecs, tmp_path: Path, kind: str):
    path = getattr(files, kind)(tmp_path / "head.gguf")
    outcome = edgecs("generate", "-m", path, "-p", "x", "-c", 64)
    one_line(outcome, 3, "head.gguf is a", "this file with --draft")


def test_a_kind_that_is_not_run_yet(target: Loaded, tmp_path: Path):
    head = files.dflash(tmp_path / "head.gguf", changes={"selector_top_k": 4})
    assert "of a kind that edgecs does not run yet (with a selector" in refused(
        target, head
    )


def test_an_assistant_of_gemma_4_for_another_model(target: Loaded, tmp_path: Path):
    head = files.assistant(tmp_path / "head.gguf")
    assert "it reads the cells of Gemma 4 models, and this is a qwen3 model" in refused(
        target, head
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embedding_length_out": 128}, "head.gguf"),
        ({"attention.head_count_kv": 1}, "head.gguf"),
        ({"attention.key_length": 32, "attention.value_length": 32}, "head.gguf"),
        ({"attention.sliding_window_pattern": [False, False]}, "head.gguf"),
        ({"nextn_predict_layers": 0}, "head.gguf"),
    ],
)
def test_an_assistant_that_lies(tmp_path: Path, changes: dict, says: str):
    path = files.gemma4(tmp_path / "target.gguf")
    head = files.assistant(tmp_path / "head.gguf", changes=changes)
    with load(path, OPTIONS) as loaded:
        assert says in refused(loaded, head)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_size": 1}, "its block is not 2 to 64 tokens"),
        ({"block_size": 10**9}, "its block is not 2 to 64 tokens"),
        ({"target_layers": []}, "head.gguf"),
        ({"target_layers": [1, 4]}, "reads the layers 1, 4, and the target has 4"),
        ({"target_layers": [1, 2, 3]}, "tensor 'fc.weight' has wrong shape"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "crashes llama.cpp"),
    ],
)
def test_metadata_of_dflash_that_lies(
    target: Loaded, tmp_path: Path, changes: dict, says: str
):
    head = files.dflash(tmp_path / "head.gguf", changes=changes)
    assert says in refused(target, head)


def test_dflash_without_a_token_for_a_mask(target: Loaded, tmp_path: Path):
    head = files.dflash(tmp_path / "head.gguf", mask=None)
    assert "it has no token for a mask" in refused(target, head)


def test_a_target_without_hooks_is_refused(edgecs: Edgecs, tmp_path: Path):
    """llama.cpp would abort the process at the first call."""
    path = files.target(tmp_path / "target.gguf", "qwen2")
    head = files.eagle3(tmp_path / "head.gguf")
    outcome = edgecs(
        "generate", "-m", path, "--draft", head, "-p", "x", "-c", 64, "-n", 4
    )
    one_line(outcome, 3, "head.gguf cannot draft for target.gguf", "qwen2 models")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"target_layers": [1, 2, 5]},
            "reads the layers 1, 2, 5, and the target has 4",
        ),
        (
            {"target_layers": [1, 2, 4]},
            "the state after the last layer, which llama.cpp does not give for qwen3",
        ),
        ({"target_layers": [1, 2, 2**31 - 1]}, "the target has 4"),
        ({"target_layers": [1, 2]}, "3 entries"),
        ({"target_hidden_size": 128}, "tensor 'fc.weight' has wrong shape"),
        ({"block_count": 2}, "tensor 'blk.1.attn_norm.weight' not found"),
        ({"attention.head_count": 0}, "head.gguf"),
        ({"attention.head_count_kv": 3}, "head.gguf"),
        ({"attention.value_length": 32}, "head.gguf"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "crashes llama.cpp"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "crashes llama.cpp"),
        ({"rope.dimension_count": 4096}, "head.gguf"),
    ],
)
def test_metadata_that_lies(target: Loaded, tmp_path: Path, changes: dict, says: str):
    head = files.eagle3(tmp_path / "head.gguf", changes=changes)
    assert says in refused(target, head)


@pytest.mark.parametrize(
    "name",
    ["fc.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"],
)
def test_a_tensor_is_missing(target: Loaded, tmp_path: Path, name: str):
    head = files.eagle3(tmp_path / "head.gguf", without=name)
    assert f"tensor '{name}' not found" in refused(target, head)


def test_one_for_another_width(target: Loaded, tmp_path: Path):
    head = files.eagle3(tmp_path / "head.gguf", target_width=128)
    assert "hidden states of width 128, and the target's have width 64" in refused(
        target, head
    )


@pytest.mark.parametrize(
    "ids", [[-1, 5], [5, 2**40], [5, files.VOCABULARY], [7, 7]], ids=str
)
def test_own_tokens_that_the_target_does_not_have(
    target: Loaded, tmp_path: Path, ids: list[int]
):
    """llama.cpp would write outside of its memory."""

    def fixed(name: str, shape: tuple[int, ...]) -> files.Array | None:
        return np.array(ids, dtype=np.int64) if name == "d2t" else None

    head = files.eagle3(tmp_path / "head.gguf", reduced=2, fixed=fixed)
    assert "its tokens are not those of its target" in refused(target, head)


def test_own_embeddings_for_too_few_tokens(target: Loaded, tmp_path: Path):
    head = files.eagle3(tmp_path / "head.gguf", own=True, embeddings=8)
    assert "too few embeddings" in refused(target, head)


def test_another_tokenizer(target: Loaded, tmp_path: Path):
    head = files.eagle3(tmp_path / "head.gguf", vocabulary=280)
    assert "cannot draft for target.gguf: " in refused(target, head)


def test_the_output_matrix_of_a_target_with_fewer_rows(target: Loaded, tmp_path: Path):
    """llama.cpp would read more rows than there are."""
    head = files.eagle3(tmp_path / "head.gguf", padding=8)
    message = refused(target, head)
    assert "it has 280 tokens and uses the output matrix of its target" in message


def test_half_a_file(target: Loaded, tmp_path: Path):
    head = files.eagle3(tmp_path / "head.gguf")
    head.write_bytes(head.read_bytes()[: head.stat().st_size // 2])
    assert "head.gguf" in refused(target, head)


def test_a_build_without_the_functions(target: Loaded, tmp_path: Path, monkeypatch):
    head = files.eagle3(tmp_path / "head.gguf")
    table = {"llama_missing": ([], None, "v", "X")}
    monkeypatch.setattr(experimental, "_FUNCTIONS", table)
    experimental.symbols.cache_clear()
    try:
        assert "has no llama_missing, which heads need" in refused(target, head)
    finally:
        experimental.symbols.cache_clear()


def test_a_header_gives_what_was_written(tmp_path: Path):
    path = files.eagle3(tmp_path / "head.gguf", reduced=50, layers=(0, 2, 3))
    header = gguf_header.read_header(path)
    assert gguf_header.architecture(path) == header.architecture == "eagle3"
    assert header.own("target_layers") == [0, 2, 3]
    assert header.own("attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert header.tensors["fc.weight"].shape == (3 * files.WIDTH, files.WIDTH)
    ids = header.integers(path, "d2t")
    assert ids is not None
    assert ids.tolist() == list(range(50))
    assert header.integers(path, "t2d") is None
    with pytest.raises(ValueError, match="not a list of 64-bit integers"):
        header.integers(path, "fc.weight")


@given(
    st.lists(
        st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=8)), max_size=4
    ),
    st.none() | st.integers(0, 4000),
)
def test_a_broken_header_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, changes: list, length: int | None
):
    path = tmp_path_factory.mktemp("broken") / "head.gguf"
    data = bytearray(_whole(tmp_path_factory)[:length])
    for at, new in changes:
        data[at : at + len(new)] = new
    path.write_bytes(data)
    gguf_header.architecture(path)
    with suppress(ValueError):
        gguf_header.read_header(path).own("target_layers")


_kept: list[bytes] = []


def _whole(factory: pytest.TempPathFactory) -> bytes:
    if not _kept:
        path = write_random_gguf(factory.mktemp("whole") / "whole.gguf")
        _kept.append(path.read_bytes())
    return _kept[0]


def test_a_header_that_promises_much_takes_no_memory(tmp_path: Path):
    path = tmp_path / "head.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    for entry in (
        struct.pack("<Q", 2**62),
        struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**62),
        struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**62),
        struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99),
    ):
        path.write_bytes(start + entry)
        with pytest.raises(ValueError, match=r"."):
            gguf_header.read_header(path)
        assert gguf_header.architecture(path) == ""
