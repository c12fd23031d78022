"""Checkpoints of transformers as GGUFs: the same logits, the same tokens."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError, ModelError
from edgecs.runtime.loader import load
from edgecs_convert.gguf.hf_checkpoint import write_gguf
from tests.conftest import Outcome

if any(importlib.util.find_spec(n) is None for n in ("torch", "transformers")):
    pytest.skip("the extra 'convert' is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")

BYTES = 256
MERGES = ["h e", "he l", "l o"]
SPECIAL = ["<|end|>", "<|user|>"]
SIZE = BYTES + len(MERGES) + len(SPECIAL) + 3  # some rows are padding
DIGITS = [{"type": "Digits", "individual_digits": True}]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def byte_texts() -> list[str]:
    """The texts of single bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 1024))
    return [chr(b) if b in plain else chr(next(others)) for b in range(BYTES)]


def tokenizer(steps: list[dict[str, Any]]) -> dict[str, Any]:
    vocab = {text: i for i, text in enumerate(byte_texts())}
    for merge in MERGES:
        vocab[merge.replace(" ", "")] = len(vocab)
    added = [
        {"id": len(vocab) + i, "content": text, "special": True}
        for i, text in enumerate(SPECIAL)
    ]
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": MERGES},
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
    }


def checkpoint(folder: Path, family: str, **more: Any) -> Any:
    """A random checkpoint with a tokenizer; the model itself."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        **more,
    }
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    model.save_pretrained(folder)
    steps = [*DIGITS, BYTE_LEVEL]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(steps)))
    fields = {"eos_token": SPECIAL[0], "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return model


FAMILIES = {
    "Llama": {"tie_word_embeddings": False},
    "Llama tied": {"tie_word_embeddings": True},
    "Qwen2": {"rope_theta": 1e6},
    "Qwen3": {"head_dim": 32},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_are_those_of_transformers(tmp_path: Path, family: str):
    import torch

    folder = tmp_path / "tiny"
    model = checkpoint(folder, family.split()[0], **FAMILIES[family])
    path = write_gguf(folder, tmp_path / "tiny-f32.gguf", "f32")
    ids = np.random.default_rng(0).integers(0, BYTES, 40).astype(np.int32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids[None]).long()).logits[0].numpy()
    with load(path, LoadOptions(n_ctx=128, flash_attention="off")) as loaded:
        vocabulary = loaded.model.vocabulary
        ours = score_one(loaded.target, Context(ids[:1]), Draft.chain(ids[1:], "test"))
        scale = theirs.std()
        assert np.abs(ours.logits - theirs).max() < 0.02 * scale
        tokens = vocabulary.encode("hello<|user|>a").tolist()
        assert tokens == [BYTES + 1, BYTES + 2, BYTES + 4, ord("a")]
        assert vocabulary.eos == SPECIAL[0]
        assert vocabulary.chat_template == "{{ messages[0].content }}"
        # Rows that nobody named are padding.
        assert len(vocabulary.pieces()) == SIZE - 3


def test_a_checkpoint_goes_straight_to_a_type(
    edgecs: Callable[..., Outcome], tmp_path: Path
):
    checkpoint(tmp_path / "Tiny", "Llama")
    out = tmp_path / "out"
    outcome = edgecs("convert", "gguf", tmp_path / "Tiny", "-o", out, "--to", "q8_0")
    assert outcome.code == 0, outcome.err
    names = sorted(path.name for path in out.iterdir())
    assert names == ["tiny-bf16.gguf", "tiny-q8_0.gguf"]
    assert "quantised again" not in outcome.out
    with load(out / names[1], LoadOptions(n_ctx=64)) as loaded:
        assert loaded.model.vocabulary.size == SIZE


def edited(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def other_model(folder: Path) -> None:
    edited(folder, "config.json", architectures=["MambaForCausalLM"])


def scaled(folder: Path) -> None:
    edited(folder, "config.json", rope_scaling={"rope_type": "llama3"})


def unigram(folder: Path) -> None:
    edited(folder, "tokenizer.json", model={"type": "Unigram"})


def cut_otherwise(folder: Path) -> None:
    edited(folder, "tokenizer.json", pre_tokenizer={"type": "Whitespace"})


def no_sizes(folder: Path) -> None:
    edited(folder, "config.json", hidden_size=None)


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (no_weights, ModelError, "has no .safetensors"),
        (half_weights, ModelError, "cannot be read"),
        (other_model, ConfigError, "MambaForCausalLM is not supported, only Llama"),
        (scaled, ConfigError, r"scales its rotary positions \(llama3\)"),
        (unigram, ConfigError, "tokenizer of type Unigram"),
        (cut_otherwise, ConfigError, r"unsupported pre-tokenizer \(Whitespace\)"),
        (no_sizes, ModelError, "config.json cannot be used"),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[Path], None], error: type, says: str
):
    folder = tmp_path / "tiny"
    checkpoint(folder, "Llama")
    spoil(folder)
    with pytest.raises(error, match=says) as caught:
        write_gguf(folder, tmp_path / "out" / "x.gguf")
    assert "\n" not in str(caught.value)
    assert not [*(tmp_path).glob("out/*")]
