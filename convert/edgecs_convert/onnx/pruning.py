"""Less of a model: fewer tokens in its vocabulary, fewer layers (transformers models).

Which layers can go is found as Draft & Verify and SWIFT do, by how often the rest still
chooses what the whole model would (arXiv 2309.08168, 2410.06916), but greedily: one
layer at a time, the one that is missed least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError


def frequent(tokens: Tokens, rows: int, size: int, always: Sequence[int]) -> Tokens:
    """The ids that occur most often, at most `rows` of them, in order, int32.

    size: of the vocabulary. always: ids that are among them in any case.
    """
    counts = np.bincount(tokens, minlength=size).astype(np.float64)
    counts[list(always)] = np.inf
    seen = int((counts > 0).sum())
    order = np.argsort(-counts, kind="stable")[: min(rows, seen)]
    return np.sort(order).astype(np.int32)


def trim_vocabulary(model: Any, ids: Tokens) -> Tokens:
    """Cuts embeddings and output matrix to some ids; which id every row is now.

    One more row, the mean of what was cut, is read in place of all other tokens; it
    stands for an id that was cut, which it may propose like any other.
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
    """Removes all other layers. Raises ConfigError for numbers that are none."""
    import torch

    layers = model.model.layers
    bad = [i for i in kept if not 0 <= i < len(layers)]
    if bad or not kept or len(set(kept)) < len(kept):
        raise ConfigError(
            f"layers {', '.join(map(str, kept)) or 'none'} cannot be kept: the model "
            f"has 0 to {len(layers) - 1}, each of which may be given once"
        )
    chosen = [layers[i] for i in sorted(kept)]
    for number, layer in enumerate(chosen):  # by it a layer finds its cells
        layer.self_attn.layer_idx = number
    model.model.layers = torch.nn.ModuleList(chosen)
    model.config.num_hidden_layers = len(chosen)
    if getattr(model.config, "layer_types", None):
        types = model.config.layer_types
        model.config.layer_types = [types[i] for i in sorted(kept)]


def choices(model: Any, tokens: Tokens) -> NDArray[np.int64]:
    """What a model chooses behind every token of a text, int64 [n]."""
    import torch

    ids = torch.from_numpy(tokens[None].astype(np.int64))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    return np.asarray(logits.argmax(-1).numpy())


def find_layers(
    model: Any, tokens: Tokens, count: int, tell: Callable[[str], None]
) -> list[int]:
    """The `count` layers to keep: the others are missed least. The model stays whole.

    tokens: of a text to judge by. The first and the last layer are always kept.
    """
    import torch

    whole = list(model.model.layers)
    if not 2 <= count <= len(whole):
        raise ConfigError(
            f"{count} layers cannot be kept: the model has {len(whole)}, of which the "
            "first and the last always stay"
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
