"""Prunes the vocabulary and the layers of transformers models.

As in Draft & Verify and SWIFT (arXiv 2309.08168, 2410.06916), layers are selected by
how often the rest makes the same choice as the whole model, but greedily: one layer at
a time is removed, always the one whose removal changes the fewest choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError


def frequent(tokens: Tokens, rows: int, size: int, always: Sequence[int]) -> Tokens:
    """The `rows` most frequent ids at most, sorted, int32.

    size: of the vocabulary. always: ids that are always included.
    """
    counts = np.bincount(tokens, minlength=size).astype(np.float64)
    counts[list(always)] = np.inf
    seen = int((counts > 0).sum())
    order = np.argsort(-counts, kind="stable")[: min(rows, seen)]
    return np.sort(order).astype(np.int32)


def trim_vocabulary(model: Any, ids: Tokens) -> Tokens:
    """Prunes embeddings and output matrix to some ids; returns the id of every row.

    One more row, the mean of the removed ones, replaces all other tokens; it has a
    removed id, which the model may propose like any other.
    """
    import torch

    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is inner.weight
    size = inner.weight.shape[0]
    cut = np.setdiff1d(np.arange(size), ids)
    if not cut.size:
        return np.asarray(ids, dtype=np.int32)

    def rows(weight: Any) -> Any:
        with torch.no_grad():
            mean = weight[torch.from_numpy(cut)].mean(0, keepdim=True)
            kept = weight[torch.from_numpy(ids.astype(np.int64))]
            return torch.nn.Parameter(torch.cat([kept, mean]).clone())

    inner.weight = rows(inner.weight)
    head.weight = inner.weight if tied else rows(head.weight)
    inner.num_embeddings = head.out_features = model.config.vocab_size = len(ids) + 1
    inner.padding_idx = model.config.pad_token_id = None
    return np.append(ids, cut[-1:]).astype(np.int32)


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Removes all other layers. Raises ConfigError for invalid numbers."""
    import torch

    layers = model.model.layers
    bad = [i for i in kept if not 0 <= i < len(layers)]
    if bad or not kept or len(set(kept)) < len(kept):
        raise ConfigError(
            f"layers {', '.join(map(str, kept)) or 'none'} cannot be kept: the model "
            f"has 0 to {len(layers) - 1}, each of which may be given once"
        )
    chosen = [layers[i] for i in sorted(kept)]
    for number, layer in enumerate(chosen):  # the index of a layer's cells
        layer.self_attn.layer_idx = number
    model.model.layers = torch.nn.ModuleList(chosen)
    model.config.num_hidden_layers = len(chosen)
    if getattr(model.config, "layer_types", None):
        types = model.config.layer_types
        model.config.layer_types = [types[i] for i in sorted(kept)]


def choices(model: Any, tokens: Tokens) -> NDArray[np.int64]:
    """The choices of a model after every token of a text, int64 [n]."""
    import torch

    ids = torch.from_numpy(tokens[None].astype(np.int64))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    return np.asarray(logits.argmax(-1).numpy())


def find_layers(
    model: Any, tokens: Tokens, count: int, tell: Callable[[str], None]
) -> list[int]:
    """The `count` layers to keep, without changing the model.

    tokens: of the text for the comparison. The first and last layer are always kept.
    """
    import torch

    whole = list(model.model.layers)
    if not 2 <= count <= len(whole):
        raise ConfigError(
            f"{count} layers cannot be kept: the model has {len(whole)}, and the first "
            "and the last always stay"
        )
    wanted = choices(model, tokens)
    kept = list(range(len(whole)))

    def right(some: Sequence[int]) -> float:
        model.model.layers = torch.nn.ModuleList([whole[i] for i in some])
        model.config.num_hidden_layers = len(some)
        return float((choices(model, tokens) == wanted).mean())

    try:
        while len(kept) > count:
            tries = [[i for i in kept if i != gone] for gone in kept[1:-1]]
            scores = [right(some) for some in tries]
            best = int(np.argmax(scores))
            kept = tries[best]
            tell(f"{len(kept)} layers: {scores[best]:.0%} of the choices are the same")
    finally:
        model.model.layers = torch.nn.ModuleList(whole)
        model.config.num_hidden_layers = len(whole)
    return kept
