"""Tiny random models of other architectures than `write_random_gguf` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from edgecs.engines.llama.random_gguf import add_byte_vocabulary

VOCABULARY, WIDTH, INNER, HEADS, KV_HEADS, HEAD = 272, 64, 96, 4, 2, 16
Shapes = dict[str, tuple[int, ...]]

_ATTENTION: Shapes = {
    "attn_q.weight": (WIDTH, HEADS * HEAD),
    "attn_k.weight": (WIDTH, KV_HEADS * HEAD),
    "attn_v.weight": (WIDTH, KV_HEADS * HEAD),
    "attn_output.weight": (HEADS * HEAD, WIDTH),
}
_NORMS: Shapes = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
_DENSE: Shapes = {
    "ffn_gate.weight": (WIDTH, INNER),
    "ffn_up.weight": (WIDTH, INNER),
    "ffn_down.weight": (INNER, WIDTH),
}
_SIZES = {
    "block_count": 2,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "rope.dimension_count": HEAD,
}


def _experts(count: int, inner: int) -> Shapes:
    return {
        "ffn_gate_inp.weight": (WIDTH, count),
        "ffn_gate_exps.weight": (WIDTH, inner, count),
        "ffn_up_exps.weight": (WIDTH, inner, count),
        "ffn_down_exps.weight": (inner, WIDTH, count),
    }


def _biases(shapes: Shapes) -> Shapes:
    """One for every matrix, and for those of experts one an expert."""
    return {name.replace("weight", "bias"): shape[1:] for name, shape in shapes.items()}


def _write(
    path: Path,
    architecture: str,
    sizes: Mapping[str, int | float],
    block: Shapes,
    *,
    output: bool = True,
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """kinds: types of matrices, by a part of their name; others have 32 bits."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    add_byte_vocabulary(writer, VOCABULARY, 0)
    for key, value in (_SIZES | dict(sizes)).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    shapes: Shapes = {"token_embd.weight": (WIDTH, VOCABULARY)}
    shapes["output_norm.weight"] = (WIDTH,)
    if output:
        shapes["output.weight"] = (WIDTH, VOCABULARY)
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        if "norm" in name:
            data = np.ones(shape[::-1], dtype=np.float32)
        else:
            scale = 1.0 if name.startswith(("token", "output")) else shape[0] ** -0.5
            data = random.standard_normal(shape[::-1], dtype=np.float32) * scale
        kind = next((k for part, k in (kinds or {}).items() if part in name), "F32")
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(data, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def experts(path: Path) -> Path:
    """Qwen's mixture of experts; a router in 32 bits."""
    sizes = {
        "expert_count": 8,
        "expert_used_count": 3,
        "expert_feed_forward_length": INNER,
    }
    norms = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    block = _NORMS | _ATTENTION | norms | _experts(8, INNER)
    return _write(path, "qwen3moe", sizes, block, kinds={"attn_q.weight": "Q5_0"})


def sinks(path: Path) -> Path:
    """gpt-oss: sinks, sliding windows, biases."""
    sizes = {
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": WIDTH,
        "attention.sliding_window": 32,
    }
    many = _experts(4, WIDTH)
    block = {
        "attn_norm.weight": (WIDTH,),
        "post_attention_norm.weight": (WIDTH,),
        "attn_sinks.weight": (HEADS,),
    }
    block |= _ATTENTION | _biases(_ATTENTION) | many | _biases(many)
    return _write(path, "gpt-oss", sizes, block, kinds={"attn_k.weight": "Q4_1"})


def capped(path: Path) -> Path:
    """Gemma 2: scores and logits with a soft cap, sliding windows, tied embeddings."""
    sizes = {
        "attention.sliding_window": 64,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
    }
    norms = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    block = _NORMS | norms | _ATTENTION | _DENSE
    return _write(path, "gemma2", sizes, block, output=False)


def alibi(path: Path) -> Path:
    """MPT: ALiBi instead of rotations, and a key head for every head."""
    sizes = {
        "attention.head_count_kv": HEADS,
        "attention.max_alibi_bias": 8.0,
        "attention.layer_norm_epsilon": 1e-5,
    }
    block = _NORMS | {
        "attn_qkv.weight": (WIDTH, 3 * WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "ffn_up.weight": (WIDTH, INNER),
        "ffn_down.weight": (INNER, WIDTH),
    }
    return _write(path, "mpt", sizes, block, output=False)


ARCHITECTURES = {f.__name__: f for f in (experts, sinks, capped, alibi)}
