"""Tiny GGUFs of targets that have heads, and of heads, with random or wired weights.

A *bigram target* has layers that add nothing, so the next token is a function of the
last one, and a head that is wired right predicts it. Shapes are in ggml's order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecs.engines.llama.random_gguf import add_byte_vocabulary

VOCABULARY, WIDTH, INNER, HEADS, KV_HEADS, HEAD = 272, 64, 128, 4, 2, 16
Shapes = dict[str, tuple[int, ...]]
Array = NDArray[np.float32] | NDArray[np.int64]
Value = int | float | bool | str | Sequence[int]
Fixed = Callable[[str, tuple[int, ...]], Array | None]
"""A tensor of a name and numpy shape; None: a random one."""

_SILENT = ("attn_output.weight", "ffn_down.weight", "ssm_out.weight")
_SIZES: dict[str, Value] = {
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "rope.dimension_count": HEAD,
}


def silent(name: str, shape: tuple[int, ...]) -> Array | None:
    """Zeros for what a layer adds: with it, a target is a bigram target."""
    return np.zeros(shape, np.float32) if name.endswith(_SILENT) else None


def write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Value],
    shapes: Shapes,
    *,
    seed: int = 0,
    fixed: Fixed = lambda name, shape: None,
    vocabulary: int = VOCABULARY,
    width: int = WIDTH,
    n_ctx: int = 2048,
    mask: int | None = None,
    padding: int = 0,
) -> Path:
    """A GGUF with a byte vocabulary, and unused tokens after it."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"random tiny {architecture}")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary + padding)
    add_byte_vocabulary(writer, vocabulary, padding)
    if mask is not None:
        writer.add_mask_token_id(mask)
    for key, value in keys.items():
        writer.kv_data[0].pop(f"{architecture}.{key}", None)
        _add(writer, f"{architecture}.{key}", value)
    for name, shape in shapes.items():
        given = fixed(name, shape[::-1])
        writer.add_tensor(
            name, _tensor(name, shape, random) if given is None else given
        )
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
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _tensor(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if name == "d2t":
        return np.arange(shape[0], dtype=np.int64)
    if "norm" in name:
        return np.ones(shape[::-1], np.float32)
    if name.endswith("ssm_a"):
        return -np.abs(random.standard_normal(shape[::-1], dtype=np.float32))
    scale = 1.0 if name in ("token_embd.weight", "output.weight") else shape[0] ** -0.5
    return random.standard_normal(shape[::-1], dtype=np.float32) * np.float32(scale)


def _ends(vocabulary: int = VOCABULARY, width: int = WIDTH) -> Shapes:
    return {
        "token_embd.weight": (width, vocabulary),
        "output_norm.weight": (width,),
        "output.weight": (width, vocabulary),
    }


def _dense(layer: int) -> Shapes:
    return {
        f"blk.{layer}.ffn_gate.weight": (WIDTH, INNER),
        f"blk.{layer}.ffn_up.weight": (WIDTH, INNER),
        f"blk.{layer}.ffn_down.weight": (INNER, WIDTH),
    }


def _attention(
    layer: int, *, norms: bool = True, gated: bool = False, takes: int = WIDTH
) -> Shapes:
    rows = HEADS * HEAD
    found: Shapes = {
        f"blk.{layer}.attn_q.weight": (takes, rows * (1 + gated)),
        f"blk.{layer}.attn_k.weight": (takes, KV_HEADS * HEAD),
        f"blk.{layer}.attn_v.weight": (takes, KV_HEADS * HEAD),
        f"blk.{layer}.attn_output.weight": (rows, WIDTH),
    }
    if norms:
        found[f"blk.{layer}.attn_q_norm.weight"] = (HEAD,)
        found[f"blk.{layer}.attn_k_norm.weight"] = (HEAD,)
    return found


def target(
    path: Path,
    architecture: str = "qwen3",
    *,
    layers: int = 4,
    seed: int = 0,
    fixed: Fixed = lambda name, shape: None,
    n_ctx: int = 2048,
) -> Path:
    """A dense transformer: llama, qwen2 or qwen3."""
    shapes = _ends()
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{norm}.weight"] = (WIDTH,)
        shapes |= _dense(layer) | _attention(layer, norms=architecture == "qwen3")
        if architecture == "qwen2":
            for name, size in ("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS):
                shapes[f"blk.{layer}.attn_{name}.bias"] = (size * HEAD,)
    keys = {**_SIZES, "block_count": layers}
    return write(path, architecture, keys, shapes, seed=seed, fixed=fixed, n_ctx=n_ctx)


def eagle3(
    path: Path,
    *,
    layers: Sequence[int] = (1, 2, 3),
    own: bool = False,
    reduced: int = 0,
    seed: int = 1,
    fixed: Fixed = lambda name, shape: None,
    changes: Mapping[str, Value] | None = None,
    without: str = "",
    target_width: int = WIDTH,
    n_ctx: int = 2048,
    vocabulary: int = VOCABULARY,
    embeddings: int = VOCABULARY,
    padding: int = 0,
) -> Path:
    """An EAGLE-3 drafter.

    own: with embeddings and an output matrix. reduced: size of its own vocabulary, 0:
    the target's. changes: metadata keys. without: a tensor to leave out. embeddings:
    number of its own ones.
    """
    keys: dict[str, Value] = {
        **_SIZES,
        "block_count": 1,
        "target_layers": list(layers),
        "target_hidden_size": target_width,
        "norm_before_residual": False,
    }
    shapes: Shapes = {
        "fc.weight": (3 * target_width, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_norm_2.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
    }
    keys |= changes or {}
    shapes |= _dense(0) | _attention(0, norms=False, takes=2 * WIDTH)
    wide = keys["attention.head_count_kv"]
    assert isinstance(wide, int)
    for name in ("attn_k", "attn_v"):
        shapes[f"blk.0.{name}.weight"] = (2 * WIDTH, wide * HEAD)
    if own or reduced:
        shapes["output.weight"] = (WIDTH, reduced or vocabulary)
    if own:
        shapes["token_embd.weight"] = (WIDTH, embeddings)
    if reduced:
        shapes["d2t"] = (reduced,)
    shapes.pop(without, None)
    return write(
        path,
        "eagle3",
        keys,
        shapes,
        seed=seed,
        fixed=fixed,
        n_ctx=n_ctx,
        vocabulary=vocabulary,
        padding=padding,
    )


def dflash(
    path: Path,
    *,
    layers: Sequence[int] = (1, 3),
    block: int = 8,
    markov: int = 0,
    seed: int = 2,
    fixed: Fixed = lambda name, shape: None,
    changes: Mapping[str, Value] | None = None,
    mask: int | None = VOCABULARY - 5,
) -> Path:
    """A DFlash drafter of two layers; markov: the rank of a DSpark one's chain."""
    keys: dict[str, Value] = {
        **_SIZES,
        "block_count": 2,
        "target_layers": list(layers),
        "block_size": block,
    }
    shapes: Shapes = {
        "fc.weight": (len(layers) * WIDTH, WIDTH),
        "enc.output_norm.weight": (WIDTH,),
        "output_norm.weight": (WIDTH,),
    }
    for layer in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{norm}.weight"] = (WIDTH,)
        shapes |= _dense(layer) | _attention(layer)
    keys |= changes or {}
    wide = keys["attention.head_count_kv"]
    assert isinstance(wide, int)
    for layer, name in itertools.product(range(2), ("attn_k", "attn_v")):
        shapes[f"blk.{layer}.{name}.weight"] = (WIDTH, wide * HEAD)
    if markov:
        for name in ("markov_w1", "markov_w2"):
            shapes[f"{name}.weight"] = (markov, VOCABULARY)
    return write(path, "dflash", keys, shapes, seed=seed, fixed=fixed, mask=mask)


CYCLE = np.random.default_rng(5).permutation(256)
"""A bigram target continues CYCLE[i] with CYCLE[i + 1], and the last with the first."""


def _next(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens that a bigram target says next; itself for others than bytes."""
    said = np.arange(VOCABULARY)
    said[CYCLE] = np.roll(CYCLE, -1)
    return said[tokens]


def _signs() -> NDArray[np.float32]:
    """Embeddings of equal length, no two of them alike, [vocabulary, width]."""
    random = np.random.default_rng(6)
    return random.choice(np.array([-1, 1], np.float32), (VOCABULARY, WIDTH))


def bigram(name: str, shape: tuple[int, ...]) -> Array | None:
    """Weights of a bigram target, see `CYCLE`."""
    if name == "token_embd.weight":
        return _signs()
    if name == "output.weight":
        rows = np.empty(shape, np.float32)
        rows[_next(np.arange(VOCABULARY))] = _signs()
        return rows
    return silent(name, shape)


def by_token(name: str, shape: tuple[int, ...]) -> Array | None:
    """A head that is right at every depth if it gets the right tokens.

    Its attention takes the embedding of the token itself, times 1,000. It needs a key
    head for every head, and a normalised residual.
    """
    if name == "fc.weight":
        return _left(shape)
    if name.endswith(("attn_q.weight", "attn_k.weight")):
        return _left(shape) * np.float32(10)  # equal tokens attend to each other only
    if name.endswith("attn_v.weight"):
        return _left(shape)
    if name.endswith("attn_output.weight"):
        return np.eye(*shape, dtype=np.float32) * np.float32(1000)
    return silent(name, shape)


BY_TOKEN: dict[str, Value] = {
    "attention.head_count_kv": HEADS,
    "norm_before_residual": True,
}


def by_state(name: str, shape: tuple[int, ...]) -> Array | None:
    """A head whose first draft token is right if it gets the right states.

    A state is the embedding of the token before the last one, so its output matrix
    says what comes two tokens after that.
    """
    if name == "fc.weight":
        return _left(shape)
    if name == "token_embd.weight":
        return _signs()
    if name == "output.weight":
        rows = np.empty(shape, np.float32)
        rows[_next(_next(np.arange(VOCABULARY)))] = _signs()
        return rows
    return silent(name, shape)


def _left(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A matrix that gives the first inputs."""
    return np.eye(*shape, dtype=np.float32)


def repeating(name: str, shape: tuple[int, ...]) -> Array | None:
    """Weights of a target that repeats the last token."""
    return _signs() if name == "output.weight" else bigram(name, shape)


def by_features(name: str, shape: tuple[int, ...]) -> Array | None:
    """A DFlash drafter that says the token that most cells and the last token are.

    It attends to all cells alike. It needs a key head for every head.
    """
    if name.endswith("attn_q.weight"):
        return np.zeros(shape, np.float32)
    if name in ("fc.weight", "blk.0.attn_v.weight", "blk.1.attn_v.weight"):
        return _left(shape)
    if name.endswith("attn_output.weight"):
        return _left(shape) * np.float32(1000)
    return silent(name, shape)


BY_FEATURES: dict[str, Value] = {"attention.head_count_kv": HEADS}


def with_heads(
    path: Path,
    *,
    heads: int = 1,
    layers: int = 3,
    seed: int = 0,
    fixed: Fixed = lambda name, shape: None,
    own_output: bool = False,
    n_ctx: int = 2048,
    without: str = "",
) -> Path:
    """A dense target with MTP heads in its file (hy_v3, which may have several).

    own_output: whether its heads have an output matrix of their own. without: a tensor
    to leave out.
    """
    keys: dict[str, Value] = {
        **_SIZES,
        "block_count": layers + heads,
        "nextn_predict_layers": heads,
        "expert_feed_forward_length": INNER,
    }
    shapes = _ends()
    for layer in range(layers + heads):
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{norm}.weight"] = (WIDTH,)
        shapes |= _dense(layer) | _attention(layer)
    for layer in range(layers, layers + heads):
        shapes[f"blk.{layer}.nextn.eh_proj.weight"] = (2 * WIDTH, WIDTH)
        for norm in ("enorm", "hnorm", "shared_head_norm"):
            shapes[f"blk.{layer}.nextn.{norm}.weight"] = (WIDTH,)
        if own_output:
            head = f"blk.{layer}.nextn.shared_head_head.weight"
            shapes[head] = (WIDTH, VOCABULARY)
    shapes.pop(without, None)
    return write(path, "hy_v3", keys, shapes, seed=seed, fixed=fixed, n_ctx=n_ctx)


def mtp_by_token(name: str, shape: tuple[int, ...]) -> Array | None:
    """A bigram target and heads that are right if they get the right tokens."""
    if name.endswith("eh_proj.weight"):
        return _left(shape)
    return bigram(name, shape)


def mtp_by_state(name: str, shape: tuple[int, ...]) -> Array | None:
    """The same with heads that are right if they get the right states of the target."""
    if name.endswith("eh_proj.weight"):
        return np.eye(*shape, k=WIDTH, dtype=np.float32)
    if name.endswith("shared_head_head.weight"):
        return by_state("output.weight", shape)
    return bigram(name, shape)


_WINDOWED: dict[str, Value] = {
    "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD,
    "attention.sliding_window": 32,
    "rope.freq_base_swa": 10000.0,
    "rope.dimension_count_swa": HEAD,
}
ASSISTANT = 32  # width of an assistant


def gemma4(
    path: Path,
    *,
    layers: int = 4,
    seed: int = 0,
    fixed: Fixed = lambda name, shape: None,
) -> Path:
    """A target of Gemma 4's family, every other layer with a sliding window."""
    keys = {
        **_SIZES,
        **_WINDOWED,
        "block_count": layers,
        "embedding_length_per_layer_input": 0,
        "attention.sliding_window_pattern": [not i % 2 for i in range(layers)],
    }
    shapes = {**_ends(), "rope_freqs.weight": (HEAD // 2,)}
    for layer in range(layers):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            shapes[f"blk.{layer}.{norm}.weight"] = (WIDTH,)
        shapes |= _dense(layer) | _attention(layer)

    def given(name: str, shape: tuple[int, ...]) -> Array | None:
        if name == "rope_freqs.weight":
            return np.ones(shape, np.float32)
        return fixed(name, shape)

    return write(path, "gemma4", keys, shapes, seed=seed, fixed=given)


def assistant(
    path: Path,
    *,
    seed: int = 1,
    fixed: Fixed = lambda name, shape: None,
    changes: Mapping[str, Value] | None = None,
) -> Path:
    """The drafter of such a target, which reads its cells."""
    keys: dict[str, Value] = {
        **_SIZES,
        **_WINDOWED,
        "block_count": 2,
        "nextn_predict_layers": 2,
        "embedding_length_out": WIDTH,
        "attention.sliding_window_pattern": [True, False],
    }
    shapes: Shapes = {
        "token_embd.weight": (ASSISTANT, VOCABULARY),
        "output_norm.weight": (ASSISTANT,),
        "rope_freqs.weight": (HEAD // 2,),
        "nextn.pre_projection.weight": (2 * WIDTH, ASSISTANT),
        "nextn.post_projection.weight": (ASSISTANT, WIDTH),
    }
    for layer in range(2):
        at = f"blk.{layer}"
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            shapes[f"{at}.{norm}.weight"] = (ASSISTANT,)
        shapes |= {
            f"{at}.attn_q.weight": (ASSISTANT, HEADS * HEAD),
            f"{at}.attn_output.weight": (HEADS * HEAD, ASSISTANT),
            f"{at}.attn_q_norm.weight": (HEAD,),
            f"{at}.layer_output_scale.weight": (1,),
            f"{at}.ffn_gate.weight": (ASSISTANT, INNER),
            f"{at}.ffn_up.weight": (ASSISTANT, INNER),
            f"{at}.ffn_down.weight": (INNER, ASSISTANT),
        }

    def given(name: str, shape: tuple[int, ...]) -> Array | None:
        if name == "rope_freqs.weight" or name.endswith("scale.weight"):
            return np.ones(shape, np.float32)
        return fixed(name, shape)

    keys |= changes or {}
    return write(
        path,
        "gemma4-assistant",
        keys,
        shapes,
        seed=seed,
        fixed=given,
        width=ASSISTANT,
    )


def assistant_by_token(name: str, shape: tuple[int, ...]) -> Array | None:
    """The assistant of a bigram target that is right if it gets the right tokens."""
    if name == "token_embd.weight":
        rows = np.empty(shape, np.float32)
        rows[_next(np.arange(VOCABULARY))] = _signs()[:, :ASSISTANT]
        return rows
    if name == "nextn.pre_projection.weight":
        return _left(shape)
    return silent(name, shape)


def assistant_by_state(name: str, shape: tuple[int, ...]) -> Array | None:
    """One whose first draft token is right if it gets the right states."""
    if name == "token_embd.weight":
        rows = np.empty(shape, np.float32)
        rows[_next(_next(np.arange(VOCABULARY)))] = _signs()[:, :ASSISTANT]
        return rows
    if name == "nextn.pre_projection.weight":
        return np.eye(*shape, k=WIDTH, dtype=np.float32)
    return silent(name, shape)
