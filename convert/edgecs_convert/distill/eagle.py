"""An EAGLE-3 drafter in PyTorch: the computation of llama.cpp's graph, for training.

Unlike a `Head` it reads the inputs of three layers of its target, and uses the target's
own embeddings, which are not trained (arXiv 2503.01840).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgecs_convert.distill.layer import StateLayer
from edgecs_convert.distill.losses import divergence
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.shape import EagleShape
from edgecs_convert.distill.texts import Batch

_LOOKED_AT = 64  # samples whose states are averaged
_CALM = 0.1  # of matrices that add to the residual
# chosen: enough that the states of the target and those of the drafter become alike.
_DIRECT = 0.2  # weight of the loss of the target's own states


class Eagle(StateLayer):
    """A drafter with the weights of `EagleShape.shapes`, under the same names.

    embeddings: of the target, [tokens, width]. `scale`, [inputs], divides the states,
    because channels of a residual stream differ by orders of magnitude; the export
    multiplies `fuse` by its inverse.
    """

    shape: EagleShape

    def __init__(
        self, shape: EagleShape, embeddings: NDArray[np.float16], seed: int = 0
    ) -> None:
        super().__init__(shape, seed)
        table = torch.from_numpy(embeddings)
        self.register_buffer("embeddings", table, persistent=False)
        self.register_buffer("scale", torch.ones(len(shape.layers) * shape.width))

    def begin_from(
        self,
        output: NDArray[np.float32],
        norm: NDArray[np.float32],
        samples: Sequence[Sample],
        layer: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Copies the target's output matrix [rows, width] and its last norm [width].

        layer: the weights of the target's last layer that fit, by name; it works on the
        same kind of state. The scale is that of the states of some samples.
        """
        squares = [
            np.square(one.states[1:].astype(np.float32)).mean(0)
            for one in samples[:_LOOKED_AT]
            if len(one.states) > 1
        ]
        width = self.shape.width
        with torch.no_grad():
            self.output.copy_(torch.tensor(output))
            self.norm.copy_(torch.tensor(norm))
            if squares:
                self.scale.copy_(torch.tensor(np.sqrt(np.mean(squares, 0)) + 1e-6))
            high = self.scale[-width:]
            self.fuse *= _CALM * high.mean()
            self.fuse[-width:] += torch.diag(high)
            self.mix *= _CALM
            self.down *= _CALM
            for name, weight in layer.items():
                self.get_parameter(name).copy_(torch.tensor(weight))

    def described(self) -> dict[str, Any]:
        """The fields that a checkpoint must match."""
        return {"kind": "eagle3", **self.shape.state()}

    def loss(self, batch: Batch[Tensor], recipe: Recipe) -> Tensor:
        """The loss of all passes, with smaller weights for later ones.

        In a draft the drafter's own states take the place of the target's. So that both
        are alike, the target's have to predict the next token too.
        """
        steps = self(batch.ids, batch.states, recipe.passes)
        total = self.loss_of_passes(steps, batch, recipe)
        here = batch.counts
        if not here.any():
            return total
        said = self.logits(self._fused(batch.next_states[here])).float()
        rows, logits = batch.top_rows[here], batch.top_logits[here]
        return total + _DIRECT * divergence(recipe.loss, said, rows, logits)

    def logits(self, states: Tensor) -> Tensor:
        """[..., width] -> [..., rows]: logits of the next token after a state."""
        return self._norm(states, self.norm) @ self.output.T

    def forward(self, ids: Tensor, states: Tensor, passes: int) -> list[Tensor]:
        """The output states of every pass, see `StateLayer.passes`.

        ids: the target's tokens, [texts, length]. states: of its layers, side by side,
        [texts, length, inputs].
        """
        embedded = F.embedding(ids, self.embeddings).float()
        given = self._fused(states)
        return self.passes(self._norm(embedded, self.token_norm), given, passes)

    def _fused(self, states: Tensor) -> Tensor:
        """States of layers, side by side -> the drafter's, [..., width]."""
        return (states / self.scale) @ self.fuse

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The weights by name, float32, for states as the target gives them."""
        found = super().arrays()
        scale = self.scale.detach().float().cpu().numpy()
        return {**found, "fuse": found["fuse"] / scale[:, None]}

    def _input(self, given: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([embedded, self._norm(given, self.state_norm)], -1)
        return joined, given

    def _output(self, state: Tensor) -> Tensor:
        return state
