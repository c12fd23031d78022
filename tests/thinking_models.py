"""Tiny GGUF models that think: each answer is the same chain of tokens.

The next token is a function of the last one alone: attention and feed-forward add
nothing, and the row of `output` for a token is the embedding of the one before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

TEMPLATES = Path(__file__).parent / "toolcalls" / "templates"


class Thinker(NamedTuple):
    """How a model answers.

    template: source of its chat template. before: the last token of every prompt.
    tokens: of the answer, all different; the last one is the end token. controls: which
    of them, and of the prompt, are control tokens.
    """

    template: str
    before: str
    tokens: Sequence[str]
    controls: Sequence[str]


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


HARMONY = Thinker(
    _template("openai-gpt-oss-120b"),
    "t",  # of <|start|>assistant
    (
        *("<|channel|>", "analysis", "<|message|>", "They", "Ġask", "Ġ**why**."),
        *("<|end|>", "<|start|>", "assistant<|channel|>final<|message|>"),
        *("Because", "Ġof", "Ġthat.", "<|return|>"),
    ),
    (
        *("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>"),
        "<|call|>",  # without it llama.cpp takes <|end|> for the end of an answer
    ),
)
GEMMA = Thinker(
    # Without enable_thinking it writes an empty thought, and the answer has none.
    _template("google-gemma-4-31B-it").replace("not enable_thinking", "not true"),
    "Ċ",  # of <|turn>model\n
    (
        *("<|channel>", "thoughtĊ", "They", "Ġask", "Ġ**why**.", "<channel|>"),
        *("Because", "Ġof", "Ġthat.", "<turn|>"),
    ),
    ("<|channel>", "<channel|>", "<|turn>", "<turn|>"),
)
QWEN = Thinker(
    _template("Qwen-Qwen3-0.6B"),
    "Ċ",  # of <|im_start|>assistant\n
    (
        *("<think>", "ĠĊ", "They", "Ġask", "Ġ**why**.", "ĠĠĊ", "</think>", "ĊĊ"),
        *("Because", "Ġof", "Ġthat.", "<|im_end|>"),
    ),
    ("<|im_start|>", "<|im_end|>"),
)


def write_thinker(path: Path, thinker: Thinker) -> Path:
    """A Llama of one layer, with a context of 8,192."""
    tokens = [*_bytes()]
    tokens += [t for t in (*thinker.tokens, *thinker.controls) if t not in tokens]
    tokens = [*dict.fromkeys(tokens)]
    width, heads, count = 64, 4, len(tokens)
    random = np.random.default_rng(0)
    meaning = random.standard_normal((count, width), dtype=np.float32)
    output = np.zeros((count, width), dtype=np.float32)
    places = [tokens.index(one) for one in (thinker.before, *thinker.tokens)]
    for last, following in itertools.pairwise(places):
        output[following] = meaning[last]
    # Whatever else was said last, the answer ends.
    rest = [*set(range(count)) - set(places[:-1])]
    output[places[-1]] += meaning[rest].mean(axis=0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("thinker")
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(count)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [control if token in thinker.controls else normal for token in tokens]
    )
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(places[-1])
    writer.add_add_bos_token(False)
    writer.add_chat_template(thinker.template)
    writer.add_tensor("token_embd.weight", meaning)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    nothing = np.zeros((width, width), dtype=np.float32)
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", np.ones(width, dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", nothing)
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", nothing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _bytes() -> list[str]:
    """The byte alphabet of GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]
