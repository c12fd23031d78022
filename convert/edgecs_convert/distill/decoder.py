"""A small decoder in PyTorch, an independent drafter: a Llama with few layers.

If it is as wide as its target it starts from some of the target's own layers (a
layer-pruned target, FastDraft, arXiv 2411.11055); otherwise from random layers between
the target's embeddings, projected to its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs_convert.distill.losses import divergence
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import Batch
from edgecs_convert.onnx.export import load_weights, read_config
from edgecs_convert.onnx.pruning import keep_layers, trim_vocabulary

_SIZE = 64  # of an attention head
_INNER = 8 / 3  # inner width over width
_WIDEST = 576  # the default: a wider one costs more than it gains


@dataclass(frozen=True)
class DecoderShape:
    """layers: of the decoder. width: of its states; None: the target's, up to 576."""

    layers: int = 2
    width: int | None = None

    def __post_init__(self) -> None:
        if self.layers < 1 or (self.width and self.width % _SIZE):
            raise ConfigError(
                "a decoder has one layer or more, and a width that is a multiple of "
                f"{_SIZE}: got {self.layers} layers, {self.width} wide"
            )

    def width_for(self, target: TargetFile) -> int:
        """The width of the states."""
        return self.width or min(target.width, _WIDEST)


class Decoder(nn.Module):  # type: ignore[misc]
    """A causal language model of transformers.

    ids: int32 [rows], the target's id of every row of its vocabulary; if there are
    other tokens, the last row represents them.
    """

    def __init__(self, model: Any, ids: Tokens) -> None:
        super().__init__()
        self.model, self.ids = model, ids

    def described(self) -> dict[str, Any]:
        """The fields that a checkpoint must match."""
        config = self.model.config
        return {
            "kind": "decoder",
            "width": config.hidden_size,
            "layers": config.num_hidden_layers,
            "rows": int(self.ids.size),
        }

    def loss(self, batch: Batch[Tensor], recipe: Recipe) -> Tensor:
        """The loss of all training positions, in one pass."""
        # Padding is not a token of a complete vocabulary.
        tokens = batch.tokens.clamp(max=self.ids.size - 1)
        hidden = self.model.model(tokens, use_cache=False).last_hidden_state
        said = self.model.lm_head(hidden[batch.counts]).float()
        return divergence(
            recipe.loss,
            said,
            batch.top_rows[batch.counts],
            batch.top_logits[batch.counts],
        )


def check(target: TargetFile, shape: DecoderShape) -> None:
    """Raises what `begin` would raise, without loading weights."""
    width = shape.width_for(target)
    if width > target.width:
        raise ConfigError(
            f"a decoder of {width} is wider than its target "
            f"({target.width}): give a smaller width"
        )
    if width == target.width:
        read_config(target.path)
        if shape.layers > target.layers:
            raise ConfigError(
                f"{shape.layers} layers cannot be kept: the target has {target.layers}"
            )


def begin(target: TargetFile, known: Tokens, shape: DecoderShape, seed: int) -> Decoder:
    """A decoder before any training, for the tokens `known` of a target.

    Raises ModelError for a target that transformers cannot read, ConfigError.
    """
    check(target, shape)
    width = shape.width_for(target)
    if width == target.width:
        model = load_weights(target.path)
        keep_layers(model, _spread(shape.layers, len(model.model.layers)))
        return Decoder(model, trim_vocabulary(model, known))
    other = np.setdiff1d(np.arange(target.vocab_size), known)[-1:]
    table = _narrowed(target, known, width)
    if other.size:
        table = np.vstack((table, table.mean(0)))
    model = _llama(shape.layers, width, len(table), seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(table))
    return Decoder(model, np.append(known, other).astype(np.int32))


def _spread(count: int, layers: int) -> Sequence[int]:
    """Evenly spaced layers, including the first and the last."""
    places = np.linspace(0, layers - 1, count) if count > 1 else [layers - 1]
    return [round(float(place)) for place in places]


def _narrowed(target: TargetFile, known: Tokens, width: int) -> NDArray[np.float32]:
    """The target's embeddings in the `width` directions in which they differ most."""
    table = target.table(known)
    _, directions = np.linalg.eigh(table.T @ table)
    return np.ascontiguousarray(table @ directions[:, -width:], dtype=np.float32)


def _llama(layers: int, width: int, rows: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // _SIZE
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=round(width * _INNER / _SIZE) * _SIZE,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(n for n in range(1, heads // 3 + 2) if heads % n == 0),
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    # All randomness comes from here; the global state is not changed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
