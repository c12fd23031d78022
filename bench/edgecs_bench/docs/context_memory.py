"""The memory that contexts of known models take, computed for the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgecs.engines.cell_memory import memory_of, most_snapshots
from edgecs.engines.gguf_header import Header, Value
from edgecs.engines.load_options import LoadOptions
from edgecs_bench.text_tables import markdown

_BITS = 4.9  # of a parameter in Q4_K_M
_DEPTHS = (8192, 32768)  # tokens of context
_GIB, _MIB = 1 << 30, 1 << 20


class _Model(NamedTuple):
    """A model's family, its parameters in billions, and keys of its file."""

    architecture: str
    billions: float
    keys: Mapping[str, float]


def _qwen(blocks: int, width: int, inner: int) -> Mapping[str, float]:
    """Qwen 3.5 and 3.6: one attention layer after three gated delta nets."""
    return {
        "block_count": blocks,
        "embedding_length": width,
        "attention.head_count": 16,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": 128,
        "ssm.group_count": 16,
        "full_attention_interval": 4,
    }


# Keys of published files: 4B, huggingface/candle pull request 3821; 9B, the defaults of
# vllm's Qwen3_5TextConfig; 27B, ggml-org/llama.cpp pull requests 22105 and 23792;
# Gemma 3, its technical report (arXiv 2503.19786).
_MODELS = {
    "Qwen3.5 4B": _Model("qwen35", 4, _qwen(32, 2560, 4096)),
    "Qwen3.5 9B": _Model("qwen35", 9, _qwen(32, 4096, 4096)),
    "Qwen3.5 27B": _Model("qwen35", 27, _qwen(64, 5120, 6144)),
    "Gemma 3 12B": _Model(
        "gemma3",
        12,
        {
            "block_count": 48,
            "embedding_length": 3840,
            "attention.head_count": 16,
            "attention.head_count_kv": 8,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "attention.sliding_window": 1024,
        },
    ),
}


def memory_table() -> str:
    """A table of memory by model; KV cache in F16, prefill chunks of 512 tokens."""
    head = ["model", "KiB a token", "MiB a state", "snapshots"]
    head += [f"{depth >> 10}k context" for depth in _DEPTHS]
    head += [f"{_DEPTHS[-1] >> 10}k, `--swa-full`", "all layers alike"]
    return markdown([head, *(_row(name, one) for name, one in _MODELS.items())])


def _row(name: str, model: _Model) -> list[str]:
    options, last = LoadOptions(), _DEPTHS[-1]
    values: dict[str, Value] = {"general.architecture": model.architecture}
    values |= {f"{model.architecture}.{k}": v for k, v in model.keys.items()}
    memory = memory_of(Header(values, {}), options)
    weights = int(model.billions * 1e9 * _BITS / 8)
    kept = most_snapshots(model.architecture, memory, options, weights)
    row = [name, f"{memory.per_token / 1024:.0f}"]
    row += [f"{memory.state / _MIB:.1f}" if memory.state else "-", str(kept or "-")]
    row += [_size(memory.size(depth, options, kept)) for depth in _DEPTHS]
    full = memory.size(last, LoadOptions(swa_full=True), kept)
    row.append(_size(full) if memory.window else "-")
    widest = max(one.cell for one in memory.layers)
    row.append(_size(int(widest * len(memory.layers) * last)))
    return row


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB"
