"""One decoder layer on a target's hidden states, in PyTorch, for whole texts.

In a draft the layer's own outputs replace states that the target has not computed yet.
It is trained for that too: pass s gets the states that pass s - 1 computed, while its
attention has true states up to s - 1 tokens back (EAGLE-3, HASS).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgecs_convert.distill.losses import divergence
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.shape import LayerShape
from edgecs_convert.distill.texts import Batch


class StateLayer(nn.Module, ABC):  # type: ignore[misc]
    """A decoder layer with the weights of a shape, under the same names."""

    shape: LayerShape

    def __init__(self, shape: LayerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        source = torch.Generator().manual_seed(seed)
        for name, size in shape.shapes().items():
            if len(size) == 1:
                weight = torch.ones(size)
            else:
                weight = torch.randn(size, generator=source) * size[0] ** -0.5
            self.register_parameter(name, nn.Parameter(weight))

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """[..., width] -> [..., rows]: logits of the next token after a state."""

    @abstractmethod
    def _input(self, given: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the attention, and the residual that its output is added to.

        given: states, [texts, length, width]. embedded: of the tokens, normed.
        """

    @abstractmethod
    def _output(self, state: Tensor) -> Tensor:
        """The state of the next input, from the sum of all residuals."""

    def loss_of_passes(
        self,
        steps: Sequence[Tensor],
        batch: Batch[Tensor],
        recipe: Recipe,
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss of all passes, with smaller weights for later ones.

        logits: those of the rows that the batch names, all of `self.logits` by default.
        """
        logits = logits or self.logits
        counts = batch.counts
        total, weights = torch.zeros((), device=counts.device), 0.0
        for s, out in enumerate(steps):
            here = counts.clone()
            here[:, s:] &= counts[
                :, : counts.shape[1] - s
            ]  # its draft begins in the answer
            here[:, :s] = False
            if not here.any():
                continue
            mine = out[here]
            said = logits(mine).float()
            loss = divergence(
                recipe.loss, said, batch.top_rows[here], batch.top_logits[here]
            )
            if recipe.likeness:
                away = F.smooth_l1_loss(mine.float(), batch.next_states[here])
                loss = loss + recipe.likeness * away
            weight = recipe.fading**s
            total = total + weight * loss
            weights += weight
        return total / max(weights, 1e-9)

    def load_arrays(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Copies weights by name."""
        self.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The weights by name, float32."""
        return {n: w.detach().float().numpy() for n, w in self.named_parameters()}

    def passes(self, embedded: Tensor, states: Tensor, passes: int) -> list[Tensor]:
        """The output states of every pass; the first pass gets the given states.

        embedded: [texts, length, width], of the tokens. states: [texts, length, width],
        the state that chose each token, or 0. A result is [texts, length, width]; that
        of pass s is valid only from the s-th token of a text on.
        """
        place = torch.arange(embedded.shape[1], device=embedded.device)
        turns = self._turns(place)
        steps: list[Tensor] = []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        given = states
        for s in range(passes):
            y, x = self._input(given, embedded)
            keys.append(_turned(self._split(y @ self.key, self.shape.kv_heads), turns))
            values.append(self._split(y @ self.value, self.shape.kv_heads))
            query = _turned(self._split(y @ self.query, self.shape.heads), turns)
            # The drafted tokens are between this position and the last true state.
            far = place[:, None] - place[None] < s
            seen = self._attend(query, keys, values, far)
            x = x + seen @ self.mix
            y = self.normed(x, self.inner_norm)
            x = x + (F.silu(y @ self.gate) * (y @ self.up)) @ self.down
            out = self._output(x)
            steps.append(out)
            given = F.pad(out, (0, 0, 1, 0))[:, :-1]
        return steps

    def _attend(
        self, query: Tensor, keys: list[Tensor], values: list[Tensor], hidden: Tensor
    ) -> Tensor:
        """Attention to true states, and along a draft to the earlier passes.

        query: [texts, heads, length, size]. hidden: [length, length], masked keys of
        the first pass. Pass s attends to pass t at s - t tokens before.
        """
        group = self.shape.heads // self.shape.kv_heads
        last = len(keys) - 1
        key, value = (x[0].repeat_interleave(group, 1) for x in (keys, values))
        scale = self.shape.size**-0.5
        scores = (query @ key.transpose(-1, -2) * scale).float()
        scores = [scores.masked_fill(hidden, -torch.inf)]
        extra = []
        for t in range(1, last + 1):
            key, more = (
                F.pad(x[t], (0, 0, last - t, 0))[:, :, : query.shape[2]]
                for x in (keys, values)
            )
            key, more = (x.repeat_interleave(group, 1) for x in (key, more))
            scores.append(((query * key).sum(-1, keepdim=True) * scale).float())
            extra.append(more)
        shares = torch.cat(scores, -1).softmax(-1)
        # Positions without a visible first token have nothing to attend to.
        shares = shares.nan_to_num(0.0).to(value.dtype)
        length = value.shape[2]
        seen = shares[..., :length] @ value
        for t, more in enumerate(extra):
            seen = seen + shares[..., length + t, None] * more
        return seen.transpose(1, 2).flatten(2)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [..., width] divided by its root mean square, times a weight [width]."""
        x = x.float()
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.shape.epsilon) * weight

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[texts, length, heads * size] -> [texts, heads, length, size]."""
        return x.unflatten(-1, (heads, self.shape.size)).transpose(1, 2)

    def _turns(self, place: Tensor) -> tuple[Tensor, Tensor]:
        size = self.shape.size
        powers = torch.arange(0, size, 2, device=place.device) / size
        angle = place[:, None] * self.shape.base**-powers
        return angle.cos(), angle.sin()


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: [texts, heads, length, size] -> the same."""
    cosine, sine = (turn.to(x.dtype) for turn in turns)
    first, second = x.chunk(2, -1)
    return torch.cat(
        [first * cosine - second * sine, second * cosine + first * sine], -1
    )
