"""A head in PyTorch: the same computation as `graph`, for whole texts and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgecs_convert.distill.layer import StateLayer
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.shape import HeadShape
from edgecs_convert.distill.texts import Batch


class Head(StateLayer):
    """A head with the weights of `HeadShape.shapes`, under the same names."""

    shape: HeadShape

    def begin_from(self, table: NDArray[np.float32], norm: NDArray[np.float32]) -> None:
        """Copies the target's embeddings [rows, width] and its last norm [width].

        Unknown tokens start as the mean of the known ones. The initial output is then
        close to the last state, from which training starts.
        """
        with torch.no_grad():
            known = torch.tensor(table)
            self.table[:-1] = known
            self.table[-1] = known.mean(0)
            self.norm.copy_(torch.tensor(norm))
            width = self.shape.width
            self.join[:width] += torch.eye(width)
            self.mix *= 0.1
            self.down *= 0.1

    def described(self) -> dict[str, Any]:
        """The fields that a checkpoint must match."""
        return {"kind": "head", **self.shape.state()}

    def loss(self, batch: Batch[Tensor], recipe: Recipe) -> Tensor:
        """The loss of all passes, with smaller weights for later ones."""
        steps = self(batch.tokens, batch.states, recipe.passes)
        return self.loss_of_passes(steps, batch, recipe)

    def logits(self, states: Tensor) -> Tensor:
        """[..., width] -> [..., rows]: logits of the next token after a state."""
        return states @ self.table[:-1].T

    def forward(self, tokens: Tensor, states: Tensor, passes: int) -> list[Tensor]:
        """The output states of every pass, see `StateLayer.passes`.

        tokens: [texts, length], rows of the head's vocabulary.
        """
        embedded = self.normed(F.embedding(tokens, self.table), self.token_norm)
        return self.passes(embedded, states, passes)

    def _input(self, given: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.normed(given, self.state_norm), embedded], -1)
        x = joined @ self.join
        return self.normed(x, self.attention_norm), x

    def _output(self, state: Tensor) -> Tensor:
        return self.normed(state, self.norm)
