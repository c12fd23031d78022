"""Tiny random GGUFs of the families that keep more than a cell for every token.

Recurrent models keep a state, hybrid ones a state in some layers, and those with a
sliding window the last cells in some layers. The keys and tensors are those that
llama.cpp reads for each architecture; shapes are in ggml's order, rows last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from edgecs.engines.llama.random_gguf import add_byte_vocabulary

VOCABULARY, WIDTH, INNER, HEADS, KV_HEADS, HEAD = 272, 64, 128, 4, 2, 16
STATE, GROUPS, KERNEL = 16, 2, 4  # of state-space layers
WINDOW = 64  # cells that a windowed layer attends to
Value = int | float | bool | Sequence[int]
Shapes = dict[str, tuple[int, ...]]

_ATTENTION_KEYS: dict[str, Value] = {
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "rope.dimension_count": HEAD,
}
_FFN: Shapes = {
    "ffn_gate.weight": (WIDTH, INNER),
    "ffn_up.weight": (WIDTH, INNER),
    "ffn_down.weight": (INNER, WIDTH),
}
_QK_NORMS: Shapes = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}


def _attention(queries: int = 1) -> Shapes:
    """queries: 2 if the query matrix also gives a gate."""
    return {
        "attn_q.weight": (WIDTH, HEADS * HEAD * queries),
        "attn_k.weight": (WIDTH, KV_HEADS * HEAD),
        "attn_v.weight": (WIDTH, KV_HEADS * HEAD),
        "attn_output.weight": (HEADS * HEAD, WIDTH),
    }


def _norms(*names: str) -> Shapes:
    return {f"{name}.weight": (WIDTH,) for name in names}


def _mamba2(inner: int, heads: int) -> Shapes:
    """A state-space layer of Mamba 2, with one group."""
    mixed = inner + 2 * STATE
    return {
        "ssm_in.weight": (WIDTH, inner + mixed + heads),
        "ssm_conv1d.weight": (KERNEL, mixed),
        "ssm_conv1d.bias": (mixed,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner, 1),
        "ssm_out.weight": (inner, WIDTH),
    }


_MAMBA_KEYS: dict[str, Value] = {
    "ssm.conv_kernel": KERNEL,
    "ssm.inner_size": 2 * WIDTH,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": HEADS,
    "ssm.group_count": 1,
}


def _write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Value],
    blocks: Sequence[Shapes],
    others: Shapes,
    *,
    n_ctx: int = 4096,
    seed: int = 0,
) -> Path:
    """others: the tensors outside of blocks, the embeddings excepted."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    add_byte_vocabulary(writer, VOCABULARY, 0)
    every = {"block_count": len(blocks), "feed_forward_length": INNER, **keys}
    for name, value in every.items():
        _add(writer, f"{architecture}.{name}", value)
    shapes: Shapes = {"token_embd.weight": (WIDTH, VOCABULARY), **others}
    for layer, block in enumerate(blocks):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, _values(random, name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, list(value))


def _values(
    random: np.random.Generator, name: str, shape: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if "norm" in name:
        return np.ones(shape[::-1], dtype=np.float32)
    drawn = random.standard_normal(shape[::-1], dtype=np.float32)
    if name.endswith("ssm_a"):
        return -np.abs(drawn)  # a state decays
    plain = name in ("token_embd.weight", "output.weight")
    return drawn * np.float32(1.0 if plain else shape[0] ** -0.5)


# With tied embeddings, a random model repeats its last token.
_OUTPUT: Shapes = {"output_norm.weight": (WIDTH,), "output.weight": (WIDTH, VOCABULARY)}


def qwen35(path: Path, *, head: bool = False, **more: int) -> Path:
    """Qwen 3.5: three gated delta nets for every attention layer; snapshots.

    head: with a block for multi-token prediction, which plain decoding leaves alone.
    """
    heads = HEADS
    inner = STATE * heads
    mixed = 2 * STATE * GROUPS + inner
    both = _norms("attn_norm", "post_attention_norm") | _FFN
    recurrent: Shapes = {
        "attn_qkv.weight": (WIDTH, mixed),
        "attn_gate.weight": (WIDTH, inner),
        "ssm_conv1d.weight": (KERNEL, mixed),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_beta.weight": (WIDTH, heads),
        "ssm_alpha.weight": (WIDTH, heads),
        "ssm_norm.weight": (STATE,),
        "ssm_out.weight": (inner, WIDTH),
    }
    attention = _attention(queries=2) | _QK_NORMS
    blocks = [both | recurrent] * 3 + [both | attention]
    keys: dict[str, Value] = {
        **_ATTENTION_KEYS,
        "rope.dimension_sections": [2, 2, 2, 2],
        "rope.freq_base": 10000.0,
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": inner,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": heads,
        "ssm.group_count": GROUPS,
        "full_attention_interval": 4,
    }
    if head:
        joined: Shapes = {"nextn.eh_proj.weight": (2 * WIDTH, WIDTH)}
        joined |= _norms("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
        blocks.append(both | attention | joined)
        keys["nextn_predict_layers"] = 1
    return _write(path, "qwen35", keys, blocks, _OUTPUT, **more)


def lfm2(path: Path, **more: int) -> Path:
    """LFM2: short convolutions and some attention layers; snapshots."""
    both = _norms("attn_norm", "ffn_norm") | _FFN
    convolution: Shapes = {
        "shortconv.conv.weight": (3, WIDTH),
        "shortconv.in_proj.weight": (WIDTH, 3 * WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    attention = _attention() | _QK_NORMS
    blocks = [both | (attention if i == 2 else convolution) for i in range(4)]
    keys: dict[str, Value] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": [0, 0, KV_HEADS, 0],
        "rope.freq_base": 10000.0,
        "shortconv.l_cache": 3,
    }
    others = _norms("token_embd_norm") | {"output.weight": _OUTPUT["output.weight"]}
    return _write(path, "lfm2", keys, blocks, others, **more)


def granite(path: Path, **more: int) -> Path:
    """Granite 4: Mamba 2 and some attention layers; no snapshots."""
    both = _norms("attn_norm", "ffn_norm") | _FFN
    state = _mamba2(2 * WIDTH, HEADS)
    blocks = [both | (_attention() if i == 1 else state) for i in range(3)]
    keys: dict[str, Value] = {
        **_ATTENTION_KEYS,
        **_MAMBA_KEYS,
        "attention.head_count_kv": [0, KV_HEADS, 0],
        "logit_scale": 1.0,
        "residual_scale": 1.0,
        "embedding_scale": 1.0,
        "attention.scale": 0.25,
    }
    return _write(path, "granitehybrid", keys, blocks, _OUTPUT, **more)


def mamba2(path: Path, **more: int) -> Path:
    """Mamba 2: states and no attention; no snapshots."""
    blocks = [_norms("attn_norm") | _mamba2(2 * WIDTH, HEADS)] * 2
    keys: dict[str, Value] = {
        **_MAMBA_KEYS,
        "feed_forward_length": 0,
        "attention.head_count": 0,
    }
    return _write(path, "mamba2", keys, blocks, _OUTPUT, **more)


def gemma3(path: Path, **more: int) -> Path:
    """Gemma 3: five windowed layers for every one that attends to all tokens."""
    norms = _norms("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    keys: dict[str, Value] = {
        **_ATTENTION_KEYS,
        "attention.sliding_window": WINDOW,
        "rope.freq_base": 1e6,
    }
    blocks = [norms | _FFN | _attention() | _QK_NORMS] * 6
    return _write(path, "gemma3", keys, blocks, _OUTPUT, **more)


RECURRENT = {f.__name__: f for f in (qwen35, lfm2, granite, mamba2)}
FAMILIES = {**RECURRENT, "gemma3": gemma3}
