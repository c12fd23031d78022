"""What the training of an EAGLE-3 drafter begins with: the target, or a head for it.

Three things that gradient steps find slowly are computed instead. The states of the
layers are mapped to the state after the last layer, as the output matrix reads it. Some
attention heads attend to their own token only, because the residual of an EAGLE-3
layer holds the state and not the token's embedding. And the weights of a head
(`HeadShape`) that was trained for the same model are rewritten for this layer, which
differs in where the embedding enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgecs_convert.distill.eagle import Eagle
from edgecs_convert.distill.losses import divergence
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.texts import Batch, Vocabulary, batches, windows

_CALM = 0.1  # of random matrices that add to the residual
_LOOKED_AT = 64  # samples whose states are averaged, and texts whose inputs are
# measured: the first choice is that of the target for 0.83 of SmolLM2's tokens, after
# 200 steps for 0.81.
_STEPS, _ROWS, _RATE = 500, 384, 4e-3  # of fitting the map of the states
_KNOWN = 8  # the target's best tokens of a row
# measured: with a third of it two drafted tokens are right in 0.18, not 0.19.
_SHARP = 60.0  # score of the own token before the softmax
_TURNED = 8  # fastest rotary frequencies, in which a score falls with the distance
_RIDGE = 1e-3  # relative to the mean square of an input


class Begun(NamedTuple):
    """Weights of the target, and those of a head for the same target, by name."""

    output: NDArray[np.float32]  # [rows, width]
    norm: NDArray[np.float32]  # [width], before the output matrix
    layer: Mapping[str, NDArray[np.float32]]  # the last feed-forward part, if it fits
    head: Mapping[str, NDArray[np.float32]] | None = None  # see `HeadShape.shapes`,
    #                                           with an output matrix beside the table


def begin(
    eagle: Eagle,
    begun: Begun,
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    recipe: Recipe,
) -> None:
    """Sets all weights of a new drafter.

    The same arguments give the same weights. It takes two minutes on one core for
    states of 576, and more with the square of that.
    """
    with torch.no_grad():
        eagle.output.copy_(torch.tensor(begun.output))
        eagle.norm.copy_(torch.tensor(begun.norm))
        _begin_fuse(eagle, samples)
    _fit_fuse(eagle, samples, vocabulary, recipe)
    with torch.no_grad():
        texts = [*_texts(samples, vocabulary, recipe)]
        if begun.head is None:
            _begin_plain(eagle, begun.layer)
        else:
            _begin_as(eagle, begun.head, texts)
        _attend_alone(eagle, texts)


def _begin_fuse(eagle: Eagle, samples: Sequence[Sample]) -> None:
    """The drafter's state is that of the last layer at first, in its own size."""
    squares = [
        np.square(one.states[1:].astype(np.float32)).mean(0)
        for one in samples[:_LOOKED_AT]
        if len(one.states) > 1
    ]
    width = eagle.shape.width
    if squares:
        eagle.scale.copy_(torch.tensor(np.sqrt(np.mean(squares, 0)) + 1e-6))
    eagle.fuse.zero_()
    eagle.fuse[-width:] = torch.diag(eagle.scale[-width:])


def _fit_fuse(
    eagle: Eagle, samples: Sequence[Sample], vocabulary: Vocabulary, recipe: Recipe
) -> None:
    """Lets the output matrix read the next token from the states of the layers."""
    few = [one for one in samples if one.size > 1]
    optimizer = torch.optim.Adam([eagle.fuse], lr=_RATE)
    source = np.random.default_rng(recipe.seed)
    sizes = np.array([one.size - 1 for one in few])
    ends = np.cumsum(sizes)
    for step in range(_STEPS if ends.size else 0):
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS)
        chosen = source.integers(0, ends[-1], _ROWS)
        texts = np.searchsorted(ends, chosen, "right")
        within = chosen - (ends - sizes)[texts]
        states, rows, logits = _rows(few, texts, within, vocabulary)
        known = torch.isfinite(logits).any(1)
        if not known.any():
            continue
        names, place = torch.unique(rows[known], return_inverse=True)
        fused = eagle.fused(states[known])
        said = eagle.normed(fused, eagle.norm) @ eagle.output[names].T
        loss = divergence("fkl", said, place, logits[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    eagle.zero_grad()


def _rows(
    samples: Sequence[Sample],
    texts: NDArray[np.int64],
    within: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> tuple[Tensor, Tensor, Tensor]:
    """States, and the rows and logits of the target's best tokens after them.

    texts: of some answers. within: tokens of an answer before the state's last one.
    """
    states, ids, logits = [], [], []
    for text, at in zip(texts.tolist(), within.tolist(), strict=True):
        one = samples[text]
        states.append(one.states[one.start + at - one.stated])
        ids.append(one.top_ids[at + 1, :_KNOWN])
        logits.append(one.top_logits[at + 1, :_KNOWN])
    rows = vocabulary.rows_of(np.array(ids))
    known = rows < vocabulary.rows
    theirs = np.where(known, np.array(logits, dtype=np.float32), -np.inf)
    return (
        torch.from_numpy(np.array(states, dtype=np.float32)),
        torch.from_numpy(np.where(known, rows, 0)),
        torch.from_numpy(theirs.astype(np.float32)),
    )


def _texts(
    samples: Sequence[Sample], vocabulary: Vocabulary, recipe: Recipe
) -> Iterator[Batch[Tensor]]:
    every = windows(samples[:_LOOKED_AT], recipe.length, recipe.before)
    for one in batches(every, vocabulary, recipe.length, 1, None):
        yield Batch(*(torch.from_numpy(array) for array in one))


def _begin_plain(eagle: Eagle, layer: Mapping[str, NDArray[np.float32]]) -> None:
    """Random matrices, and the target's last feed-forward part.

    That part adds to states of the target's size; here their mean square is 1.
    """
    eagle.mix *= _CALM
    eagle.down *= _CALM
    for name, weight in layer.items():
        eagle.get_parameter(name).copy_(torch.tensor(weight))
    if layer:
        eagle.down /= eagle.scale[-eagle.shape.width :].square().mean().sqrt()


def _begin_as(
    eagle: Eagle,
    head: Mapping[str, NDArray[np.float32]],
    texts: Sequence[Batch[Tensor]],
) -> None:
    """Rewrites the weights of a head.

    A head adds state @ a + embedding @ b, both normed, and attends to that sum, normed.
    Here the residual is the normed state, so the rest, state @ (a - 1) + embedding @ b,
    comes from the heads that attend to their own token. They have too few dimensions
    for all of it and get its principal ones. The other heads read the same sum, with
    the mean of its norm.
    """
    own = {name: torch.tensor(weight) for name, weight in head.items()}
    shape = eagle.shape
    width, size, alone = shape.width, shape.size, shape.alone
    for name in ("output", "norm", "token_norm", "inner_norm", "gate", "up", "down"):
        eagle.get_parameter(name).copy_(own[name])
    # A head norms its outputs twice, here they are normed once. The mean of what that
    # changes is removed.
    fused = torch.cat([eagle.fused(one.next_states[one.counts]) for one in texts])
    once = eagle.normed(fused, own["norm"]).square().mean(-1).rsqrt().mean()
    eagle.state_norm.copy_(own["norm"] * own["state_norm"] * once)

    inputs = torch.cat([eagle.joined(*_first(eagle, one))[one.counts] for one in texts])
    both = torch.cat([own["join"][width:], own["join"][:width]])  # embedding, state
    rest = both.clone()
    rest[width:] -= torch.eye(width)
    _, _, main = torch.linalg.svd(inputs @ rest, full_matrices=False)
    main = main[: alone * size]
    norm = (inputs @ both).square().mean(-1).sqrt().mean()
    read = both * own["attention_norm"] / norm

    usual = shape.heads - alone
    groups = usual // (own["key"].shape[1] // size)
    for name in ("query", "key", "value"):
        wide = (read @ own[name]).unflatten(-1, (-1, size))
        if name != "query":
            wide = wide.repeat_interleave(groups, 1)
        eagle.get_parameter(name)[:, : usual * size] = wide.flatten(1)
    eagle.mix[: usual * size] = own["mix"]
    eagle.value[:, usual * size :] = 0
    eagle.mix[usual * size :] = 0
    kept = len(main)  # fewer if there were fewer inputs
    eagle.value[:, usual * size : usual * size + kept] = rest @ main.T
    eagle.mix[usual * size : usual * size + kept] = main


def _first(eagle: Eagle, batch: Batch[Tensor]) -> tuple[Tensor, Tensor]:
    """States and embeddings that the first pass reads."""
    return eagle.fused(batch.states), eagle.embedded(batch.ids)


def _attend_alone(eagle: Eagle, texts: Sequence[Batch[Tensor]]) -> None:
    """Lets the last attention heads attend to their own token only.

    Query and key are the same in all inputs, so that a score depends on the distance
    alone, by the rotary positions. The inputs have no constant; a direction in which
    all of them are nearly 1 stands for it, those of later passes too.
    """
    shape = eagle.shape
    inputs: list[Tensor] = []
    for one in texts:
        given, embedded = _first(eagle, one)
        steps = eagle.passes(embedded, given, 2)
        later = [F.pad(step, (0, 0, 1, 0))[:, :-1] for step in steps]
        inputs += [
            eagle.joined(states, embedded)[one.counts] for states in (given, *later)
        ]
    found = torch.cat(inputs).double()
    square = found.T @ found
    square += _RIDGE * found.square().sum() / len(square) * torch.eye(len(square))
    constant = torch.linalg.solve(square, found.sum(0)).float()
    fast = torch.zeros(shape.size)
    fast[:_TURNED] = 1
    fast *= (_SHARP * shape.size**0.5 / fast.sum()) ** 0.5
    usual = shape.heads - shape.alone
    alike = torch.outer(constant, fast).repeat(1, shape.alone)
    eagle.query[:, usual * shape.size :] = alike
    eagle.key[:, usual * shape.size :] = alike
