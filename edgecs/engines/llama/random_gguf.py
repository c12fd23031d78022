"""Write a tiny random Llama as a GGUF file that llama.cpp can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_random_gguf(
    path: Path,
    *,
    vocab_size: int = 272,
    n_ctx: int = 2048,
    heads: int = 4,
    kv_heads: int = 2,
    padding: int = 0,
    seed: int = 0,
    kind: str = "F32",
    changes: Mapping[str, object] | None = None,
    spoilt: Mapping[str, float] | None = None,
) -> Path:
    """Write a tiny random Llama (GGUF, a few hundred KB) with byte tokens.

    It has 2 layers of width 64, grouped heads and a chat template. The last four ids
    are <|begin|> (BOS), <|end|> (EOS), <|user|> and <|assistant|>, before `padding`
    more rows that the vocabulary marks as unused. kind: the type of the matrices, one
    that gguf can write ("Q8_0"). changes: replacement values for metadata keys, which
    may be inconsistent. spoilt: a replacement for the first weight of each of these
    matrices ({"output": nan}).
    """
    import gguf

    width, inner, layers = 64, 128, 2
    random = np.random.default_rng(seed)

    def weights(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) * scale

    def add_matrix(name: str, matrix: NDArray[np.float32]) -> None:
        if spoilt and name in spoilt:
            matrix[0, 0] = spoilt[name]
        packed = gguf.quants.quantize(matrix, dtype)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=dtype)

    dtype = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random tiny llama")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    rows = vocab_size + padding
    writer.add_vocab_size(rows)
    add_byte_vocabulary(writer, vocab_size, padding)
    add_matrix("token_embd", weights(rows, width, 1.0))
    add_matrix("output", weights(rows, width, 1.0))
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    kv_width = width // heads * kv_heads
    shapes = {
        "attn_q": (width, width),
        "attn_k": (kv_width, width),
        "attn_v": (kv_width, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            ones = np.ones(width, dtype=np.float32)
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for name, (rows, columns) in shapes.items():
            add_matrix(f"blk.{layer}.{name}", weights(rows, columns, columns**-0.5))
    for key, value in (changes or {}).items():
        writer.kv_data[0][key].value = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + ('user' if m.role != 'assistant' else m.role) "
    "+ '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def add_byte_vocabulary(writer: object, vocab_size: int, padding: int) -> None:
    """The byte alphabet of GPT-2 with no merges, fillers, four control tokens."""
    import gguf

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [names[byte] for byte in range(256)]
    control = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    fillers = vocab_size - len(tokens) - len(control)
    if fillers < 0:
        raise ValueError(f"a byte vocabulary needs 260 ids, got {vocab_size}")
    tokens += [f"<filler{i}>" for i in range(fillers)] + control
    normal, special = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    types = [normal] * (256 + fillers) + [special] * 4
    tokens += [f"[PAD{vocab_size + i}]" for i in range(padding)]
    types += [gguf.TokenType.UNUSED] * padding
    assert isinstance(writer, gguf.GGUFWriter)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(vocab_size - 4)
    writer.add_eos_token_id(vocab_size - 3)
    writer.add_add_bos_token(True)
    writer.add_chat_template(_TEMPLATE)
