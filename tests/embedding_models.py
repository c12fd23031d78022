"""Tiny random embedding models, which pool the first token, all, or the last one."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from edgecs.engines.llama.random_gguf import add_byte_vocabulary

WIDTH, INNER, HEADS, LAYERS, TRAINED = 64, 96, 4, 2, 512
_WORDS = "one two three four five six a llama is an animal of the andes hello ##s ##ing"
_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Shapes = dict[str, tuple[int, ...]]


def _word_pieces(writer: gguf.GGUFWriter) -> int:
    """BERT's vocabulary, in llama.cpp's spelling; its size."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
    words = [*_WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]
    words = list(dict.fromkeys(words))
    spelled = [w[2:] if w.startswith("##") else "\u2581" + w for w in words]
    tokens = [*_TOKENS, *spelled]
    types = [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * len(spelled)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)
    return len(tokens)


def _begin(
    path: Path, architecture: str, pooling: gguf.PoolingType, *, causal: bool
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"random tiny {architecture}")
    writer.add_context_length(TRAINED)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_pooling_type(pooling)
    if not causal:
        writer.add_causal_attention(False)
    return writer


def _end(writer: gguf.GGUFWriter, shapes: Shapes) -> None:
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        data = random.standard_normal(shape[::-1], dtype=np.float32)
        if "norm" in name:
            data = 1 + 0.1 * data if name.endswith("weight") else 0.1 * data
        elif len(shape) > 1 and not name.startswith("token_embd"):
            data *= shape[0] ** -0.5
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bert(path: Path, pooling: gguf.PoolingType = gguf.PoolingType.CLS) -> Path:
    """BERT with learned positions and biases."""
    writer = _begin(path, "bert", pooling, causal=False)
    writer.add_layer_norm_eps(1e-12)
    shapes: Shapes = {
        "token_embd.weight": (WIDTH, _word_pieces(writer)),
        "token_types.weight": (WIDTH, 2),
        "position_embd.weight": (WIDTH, TRAINED),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    for i in range(LAYERS):
        for name, (to, of) in {
            **{f"attn_{part}": (WIDTH, WIDTH) for part in "qkv"},
            "attn_output": (WIDTH, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():
            shapes[f"blk.{i}.{name}.weight"] = (of, to)
            shapes[f"blk.{i}.{name}.bias"] = (to,)
        for norm in ("attn_output_norm", "layer_output_norm"):
            shapes[f"blk.{i}.{norm}.weight"] = (WIDTH,)
            shapes[f"blk.{i}.{norm}.bias"] = (WIDTH,)
    _end(writer, shapes)
    return path


def nomic(path: Path) -> Path:
    """Nomic's BERT: rotated positions, gated, without biases."""
    writer = _begin(path, "nomic-bert", gguf.PoolingType.MEAN, causal=False)
    writer.add_layer_norm_eps(1e-12)
    writer.add_rope_freq_base(1000.0)
    shapes: Shapes = {
        "token_embd.weight": (WIDTH, _word_pieces(writer)),
        "token_types.weight": (WIDTH, 2),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_qkv.weight": (WIDTH, 3 * WIDTH),
            f"blk.{i}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate.weight": (WIDTH, INNER),
            f"blk.{i}.ffn_up.weight": (WIDTH, INNER),
            f"blk.{i}.ffn_down.weight": (INNER, WIDTH),
        }
        for norm in ("attn_output_norm", "layer_output_norm"):
            shapes[f"blk.{i}.{norm}.weight"] = (WIDTH,)
            shapes[f"blk.{i}.{norm}.bias"] = (WIDTH,)
    _end(writer, shapes)
    return path


def qwen(path: Path) -> Path:
    """Qwen 3 as an embedding model: causal, the state of the last token, an EOS."""
    writer = _begin(path, "qwen3", gguf.PoolingType.LAST, causal=True)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(272)
    add_byte_vocabulary(writer, 272, 0)
    writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = False
    writer.add_add_eos_token(True)
    shapes: Shapes = {"token_embd.weight": (WIDTH, 272), "output_norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (WIDTH,),
            f"blk.{i}.ffn_norm.weight": (WIDTH,),
            f"blk.{i}.attn_q.weight": (WIDTH, HEADS * 16),
            f"blk.{i}.attn_k.weight": (WIDTH, 32),
            f"blk.{i}.attn_v.weight": (WIDTH, 32),
            f"blk.{i}.attn_output.weight": (HEADS * 16, WIDTH),
            f"blk.{i}.attn_q_norm.weight": (16,),
            f"blk.{i}.attn_k_norm.weight": (16,),
            f"blk.{i}.ffn_gate.weight": (WIDTH, INNER),
            f"blk.{i}.ffn_up.weight": (WIDTH, INNER),
            f"blk.{i}.ffn_down.weight": (INNER, WIDTH),
        }
    _end(writer, shapes)
    return path


EMBEDDING_MODELS = {made.__name__: made for made in (bert, nomic, qwen)}
