"""Converts a Hugging Face checkpoint to a GGUF with plain weights, for a few families.

The gguf package provides names of tensors and special tokens. This module does the same
as llama.cpp's own converter for Llama, Qwen2 and Qwen3: sizes from `config.json`, rows
of Llama's queries and keys in llama.cpp's order, and the tokenizer's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecs.errors import ConfigError, ModelError

_FAMILIES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
_KINDS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
PLAIN = tuple(_KINDS)
"""Types in which a checkpoint can be written; llama.cpp quantises these further."""
# Pre-tokenizers by a distinctive part of their pattern.
_CUTS = {
    r"\p{N}{1,3}": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?": "qwen2",
}


class _Sizes(NamedTuple):
    layers: int
    heads: int
    kv_heads: int


def write_gguf(folder: Path, out: Path, kind: str = "bf16") -> Path:
    """Writes the checkpoint in a folder as one GGUF and returns its path.

    Vectors stay in 32 bits. An interrupted run leaves no partial file. Raises
    ConfigError for an unsupported family or tokenizer, ModelError for an incomplete
    folder.
    """
    config = _read_json(folder / "config.json")
    family = _family(config)
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[family])
    try:
        sizes = _add_sizes(writer, config, _KINDS[kind])
        _add_tokenizer(writer, folder, int(config["vocab_size"]))
        writer.add_name(out.stem)
        writer.add_string("edgecs.source", folder.name)
        names = gguf.get_tensor_name_map(family, sizes.layers)
        for name, tensor in _tensors(folder):
            _add_tensor(writer, name, tensor, names, family, sizes, _KINDS[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out


def is_checkpoint(path: Path) -> bool:
    """Whether this is a folder with a checkpoint."""
    return (path / "config.json").is_file()


def _family(config: Mapping[str, Any]) -> gguf.MODEL_ARCH:
    named = (config.get("architectures") or ["none"])[0]
    family = _FAMILIES.get(named)
    if family is None:
        raise ConfigError(
            f"the architecture {named} is not supported, only {', '.join(_FAMILIES)}: "
            "convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    scaling = config.get("rope_scaling")
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type")
    if kind not in (None, "default"):
        raise ConfigError(
            f"this checkpoint scales its rotary positions ({kind}), which is not "
            "supported: convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    return family


def _add_sizes(
    writer: gguf.GGUFWriter,
    config: Mapping[str, Any],
    kind: gguf.GGMLQuantizationType,
) -> _Sizes:
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        sizes = _Sizes(int(config["num_hidden_layers"]), heads, kv_heads)
        head = int(config.get("head_dim") or width // heads)
        writer.add_block_count(sizes.layers)
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(int(config["intermediate_size"]))
        writer.add_context_length(int(config["max_position_embeddings"]))
        writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
        writer.add_vocab_size(int(config["vocab_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json cannot be used: {error}") from error
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.get("rope_theta") or 10000.0))
    types = gguf.LlamaFileType
    files = {"F32": types.ALL_F32, "F16": types.MOSTLY_F16, "BF16": types.MOSTLY_BF16}
    writer.add_file_type(files[kind.name])
    return sizes


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    tensor: NDArray[np.float32],
    names: Any,
    family: gguf.MODEL_ARCH,
    sizes: _Sizes,
    kind: gguf.GGMLQuantizationType,
) -> None:
    if name.endswith(("rotary_emb.inv_freq", ".attention.masked_bias")):
        return  # computed, not learned
    ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if ours is None:
        raise ModelError(f"the checkpoint has an unknown tensor {name}")
    if family is gguf.MODEL_ARCH.LLAMA:
        if ".q_proj." in name:
            tensor = _interleaved(tensor, sizes.heads)
        elif ".k_proj." in name:
            tensor = _interleaved(tensor, sizes.kv_heads)
    if tensor.ndim < 2:
        writer.add_tensor(ours, tensor)
        return
    writer.add_tensor(ours, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def _interleaved(tensor: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Interleaves rotary rows, which transformers stores in halves."""
    shape = tensor.shape
    pairs = tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(shape))


def _tensors(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor of a checkpoint, float32."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no .safetensors: give a complete checkpoint")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is not a mapping
                    yield name, opened.get_tensor(name).float().numpy()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} cannot be read ({error}): download the checkpoint again"
            ) from error


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """The vocabulary of a byte-level BPE tokenizer, and its special tokens."""
    path = folder / "tokenizer.json"
    tokenizer = _read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise ConfigError(
            f"{path} is a tokenizer of type {model.get('type')}, only BPE is "
            "supported: convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    texts: dict[int, str] = {i: text for text, i in model["vocab"].items()}
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for token in tokenizer.get("added_tokens", []):
        texts[token["id"]] = token["content"]
        control = gguf.TokenType.CONTROL if token.get("special") else None
        kinds[token["id"]] = control or gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(tokenizer, path))
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(size)])
    unused = gguf.TokenType.UNUSED
    writer.add_token_types([kinds.get(i, unused) for i in range(size)])
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_to_gguf(writer)


def _cut(tokenizer: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of the pre-tokenizer."""
    before = tokenizer.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers") or [before]
    kinds = [step.get("type") for step in steps]
    patterns = [(step.get("pattern") or {}).get("Regex", "") for step in steps]
    for part, name in _CUTS.items():
        if any(part in pattern for pattern in patterns):
            return name
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    named = ", ".join(map(str, kinds))
    raise ConfigError(
        f"{path} has an unsupported pre-tokenizer ({named}): convert it with "
        "llama.cpp's convert_hf_to_gguf.py"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"there is no {path}: give a complete checkpoint") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ModelError(
            f"{path} does not hold a JSON object: download the checkpoint again"
        )
    return read
