"""An EAGLE-3 drafter in PyTorch: the computation of llama.cpp's graph, for training.

Unlike a `Head` it reads the inputs of three layers of its target, and uses the target's
own embeddings, which are not trained (arXiv 2503.01840).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgecs_convert.distill.layer import StateLayer
from edgecs_convert.distill.losses import divergence
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.shape import EagleShape
from edgecs_convert.distill.texts import Batch

# chosen: enough that the states of the target and those of the drafter become alike.
_DIRECT = 0.2  # weight of the loss of the target's own states


class Eagle(StateLayer):
    """A drafter with the weights of `EagleShape.shapes`, under the same names.

    embeddings: of the target, [tokens, width]. `scale`, [inputs], divides the states,
    because channels of a residual stream differ by orders of magnitude; the export
    multiplies `fuse` by its inverse. How it begins: see `eagle_start`.
    """

    shape: EagleShape

    def __init__(
        self, shape: EagleShape, embeddings: NDArray[np.float16], seed: int = 0
    ) -> None:
        super().__init__(shape, seed)
        table = torch.from_numpy(embeddings)
        self.register_buffer("embeddings", table, persistent=False)
        self.register_buffer("scale", torch.ones(len(shape.layers) * shape.width))

    def described(self) -> dict[str, Any]:
        """The fields that a checkpoint must match."""
        return {"kind": "eagle3", **self.shape.state()}

    def loss(self, batch: Batch[Tensor], recipe: Recipe) -> Tensor:
        """The loss of all passes, with smaller weights for later ones.

        In a draft the drafter's own states take the place of the target's. So that both
        are alike, the target's have to predict the next token too. Of the drafter's
        vocabulary the loss compares the target's best tokens of the batch and
        `negatives` random ones: the product with all rows would be half of the work.
        """
        here = batch.counts
        steps = self(batch.ids, batch.states, recipe.passes)
        output = self.output
        if recipe.negatives:
            rows, batch = _few_rows(batch, self.shape.rows, recipe.negatives)
            output = output[rows]

        def logits(states: Tensor) -> Tensor:
            return self.normed(states, self.norm) @ output.T

        total = self.loss_of_passes(steps, batch, recipe, logits)
        if not here.any():
            return total
        said = logits(self.fused(batch.next_states[here])).float()
        known, theirs = batch.top_rows[here], batch.top_logits[here]
        return total + _DIRECT * divergence(recipe.loss, said, known, theirs)

    def logits(self, states: Tensor) -> Tensor:
        """[..., width] -> [..., rows]: logits of the next token after a state."""
        return self.normed(states, self.norm) @ self.output.T

    def forward(self, ids: Tensor, states: Tensor, passes: int) -> list[Tensor]:
        """The output states of every pass, see `StateLayer.passes`.

        ids: the target's tokens, [texts, length]. states: of its layers, side by side,
        [texts, length, inputs].
        """
        return self.passes(self.embedded(ids), self.fused(states), passes)

    def embedded(self, ids: Tensor) -> Tensor:
        """The normed embeddings of tokens, [..., width]."""
        table = F.embedding(ids, self.embeddings).float()
        return self.normed(table, self.token_norm)

    def fused(self, states: Tensor) -> Tensor:
        """States of layers, side by side -> the drafter's, [..., width]."""
        return (states / self.scale) @ self.fuse

    def joined(self, given: Tensor, embedded: Tensor) -> Tensor:
        """The inputs of the attention, [..., 2 * width]."""
        return torch.cat([embedded, self.normed(given, self.state_norm)], -1)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The weights by name, float32, for states as the target gives them."""
        found = super().arrays()
        scale = self.scale.detach().float().cpu().numpy()
        return {**found, "fuse": found["fuse"] / scale[:, None]}

    def _input(self, given: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        joined = self.joined(given, embedded)
        return joined, joined[..., self.shape.width :]

    def _output(self, state: Tensor) -> Tensor:
        return state


def _few_rows(
    batch: Batch[Tensor], rows: int, negatives: int
) -> tuple[Tensor, Batch[Tensor]]:
    """Rows of the vocabulary for the loss of a batch, and the batch in their terms.

    The same batch gives the same rows, so that an interrupted training ends as another.
    """
    known = batch.top_rows[batch.counts].ravel()
    source = torch.Generator().manual_seed(int(batch.ids.sum()))
    others = torch.randint(0, rows, (negatives,), generator=source)
    few = torch.unique(torch.cat([known, others.to(known.device)]))
    place = torch.zeros(rows, dtype=torch.int64, device=known.device)
    place[few] = torch.arange(len(few), device=known.device)
    return few, batch._replace(top_rows=place[batch.top_rows])
