"""Memory for the tokens of a context: as much as llama.cpp reports that it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines.cell_memory import CellMemory, memory_by_keys, most_snapshots
from edgecs.engines.gguf_header import read_header
from edgecs.engines.llama import library
from edgecs.engines.llama.layers import kv_cells
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from tests.architectures import ARCHITECTURES
from tests.families import FAMILIES, WINDOW, qwen35

MIB = 1 << 20
GIB = 1 << 30
_BUFFER = re.compile(r"(KV|RS) buffer size =\s+([\d.]+) MiB")
WRITERS: dict[str, Callable[[Path], Path]] = {
    **FAMILIES,
    **ARCHITECTURES,
    "with head": lambda path: qwen35(path, head=True),
}


def taken() -> float:
    """Bytes that llama.cpp reports for the context that was opened last."""
    lines = map(_BUFFER.search, library.logged())
    return sum(float(found[2]) for found in lines if found) * MIB


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(n_ctx=2048, n_batch=64, threads=1),
        LoadOptions(n_ctx=512, n_batch=64, threads=1, sequences=3),
        LoadOptions(n_ctx=2048, n_batch=64, threads=1, swa_full=True),
        LoadOptions(n_ctx=512, n_batch=64, threads=1, type_k="f32"),
    ],
    ids=["long", "three", "full", "f32"],
)
def test_it_is_what_llama_cpp_takes(name: str, options: LoadOptions, tmp_path: Path):
    path = WRITERS[name](tmp_path / "model.gguf")
    with load(path, options) as loaded:
        expected = loaded.model.kv_bytes(loaded.target.n_ctx, loaded.options)
        assert expected
        assert abs(taken() - expected) <= 0.02 * MIB  # reported in hundredths
        assert loaded.target.snapshots in (None, 0, 15)
    # The same from the file's header, where cells of a head of its own come on top.
    assert kv_cells(path, replace(options, heads=False)) == expected
    assert (kv_cells(path, options) > expected) is (name == "with head")


def memory(architecture: str, blocks: int, **keys: object) -> CellMemory:
    """Those of a model with these keys; _ stands for a dot in their names."""

    def read(key: str) -> Sequence[float]:
        value = keys.get(key.replace(".", "_"), [])
        return value if isinstance(value, list) else [float(str(value))]

    return memory_by_keys(architecture, blocks, read, LoadOptions())


def test_only_attending_layers_have_cells():
    found = memory(
        "qwen35",
        33,
        nextn_predict_layers=1,
        embedding_length=2560,
        attention_head_count=16,
        attention_head_count_kv=4,
        attention_key_length=256,
        attention_value_length=256,
        ssm_conv_kernel=4,
        ssm_inner_size=4096,
        ssm_state_size=128,
        ssm_group_count=16,
        full_attention_interval=4,
    )
    assert found.per_token == 8 * 4 * (256 + 256) * 2
    assert sum(1 for layer in found.layers if layer.state) == 24
    assert found.layers[32] == (0, 0, False)  # for multi-token prediction
    assert 48 * MIB < found.state < 52 * MIB


def test_windowed_layers_do_not_grow():
    found = memory(
        "gemma3",
        48,
        embedding_length=3840,
        attention_head_count=16,
        attention_head_count_kv=8,
        attention_key_length=256,
        attention_value_length=256,
        attention_sliding_window=1024,
    )
    options = LoadOptions()
    assert sum(1 for layer in found.layers if layer.windowed) == 40
    assert found.per_token == 8 * 8 * (256 + 256) * 2
    grown = found.size(32768, options) - found.size(16384, options)
    assert grown == 16384 * found.per_token
    full = found.size(32768, LoadOptions(swa_full=True))
    assert full == 32768 * 48 * 8 * (256 + 256) * 2
    assert found.size(32768, options) < full / 4


def test_snapshots_take_a_small_share_of_memory():
    options = LoadOptions()
    small = CellMemory((), 0)
    assert most_snapshots("qwen35", small, options, GIB) == 0
    wide = memory("lfm2", 1, embedding_length=1 << 20, shortconv_l_cache=3)
    assert wide.state == 8 * MIB
    assert most_snapshots("lfm2", wide, options, GIB) == 15
    four = LoadOptions(sequences=4)
    assert most_snapshots("lfm2", wide, four, GIB) == 8
    assert most_snapshots("lfm2", wide, four, 16 * GIB) == 15
    assert most_snapshots("lfm2", wide, LoadOptions(max_draft=4), GIB) == 4
    assert most_snapshots("granitehybrid", wide, options, GIB) == 0  # it has none


@given(
    architecture=st.sampled_from(
        ["llama", "qwen35", "lfm2", "gemma3", "gemma4", "mamba2", "nemotron_h", "?"]
    ),
    blocks=st.integers(0, 512),
    values=st.dictionaries(
        st.sampled_from(
            [
                "embedding_length",
                "attention.head_count",
                "attention.head_count_kv",
                "attention.sliding_window",
                "attention.sliding_window_pattern",
                "attention.shared_kv_layers",
                "nextn_predict_layers",
                "full_attention_interval",
                "ssm.conv_kernel",
                "ssm.inner_size",
                "shortconv.l_cache",
                "wkv.head_size",
                "kda.head_dim",
            ]
        ),
        st.lists(st.integers(-(2**63), 2**64), max_size=3),
    ),
    free=st.integers(0, 1 << 40),
)
def test_any_header_gives_a_number(architecture, blocks, values, free):
    options = LoadOptions()
    found = memory_by_keys(
        architecture, blocks, lambda key: values.get(key, []), options
    )
    fitting = found.fits(free, options)
    assert fitting == 0 or found.size(fitting, options) <= free
    assert found.size(0, options) >= 0


def test_more_layers_than_llama_cpp_loads_are_refused():
    with pytest.raises(ValueError, match="1000000 layers"):
        memory("llama", 10**6)


def test_the_window_of_the_tiny_model_is_smaller_than_its_contexts():
    assert WINDOW < 256


class TestHeader:
    def test_arrays_are_read_too(self, tmp_path: Path):
        header = read_header(WRITERS["granite"](tmp_path / "model.gguf"))
        numbers = header.numbers
        assert header.architecture == "granitehybrid"
        assert numbers["granitehybrid.attention.head_count_kv"] == [0, 2, 0]
        assert numbers["granitehybrid.block_count"] == [3]
        assert numbers["granitehybrid.attention.scale"] == [0.25]
        assert "tokenizer.ggml.tokens" not in numbers

    @given(at=st.integers(0, 3000), value=st.integers(0, 255), end=st.integers(0, 9000))
    def test_a_damaged_header_is_refused_or_read(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, value: int, end: int
    ):
        folder = tmp_path_factory.mktemp("headers")
        whole = bytearray(WRITERS["lfm2"](folder / "model.gguf").read_bytes()[:9000])
        whole[at] = value
        damaged = folder / "damaged.gguf"
        damaged.write_bytes(whole[:end])
        with suppress(ValueError):
            assert all(read_header(damaged).numbers.values())
