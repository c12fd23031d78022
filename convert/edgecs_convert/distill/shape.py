"""The sizes of drafters that are one decoder layer on a target's hidden states.

Input i is (state that chose token i, embedding of token i). Output i approximates the
state after token i: a matrix turns it into logits, and it is the state of the next
input if the target has not computed one (EAGLE, arXiv 2401.15077).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from edgecs.errors import ConfigError


@dataclass(frozen=True)
class LayerShape(ABC):
    """width: of the target's states. rows: tokens of the drafter's vocabulary."""

    width: int
    rows: int
    heads: int
    kv_heads: int
    inner: int
    epsilon: float = 1e-5
    base: float = 10000.0  # of the rotary positions

    def __post_init__(self) -> None:
        if self.width % self.wide or self.heads % self.kv_heads or self.size % 2:
            raise ConfigError(
                f"a head of {self.width} cannot have {self.heads} attention heads over "
                f"{self.kv_heads}: the numbers must divide evenly"
            )

    @property
    def wide(self) -> int:
        """The attention heads that together are as wide as a state."""
        return self.heads

    @property
    def size(self) -> int:
        """The size of one attention head."""
        return self.width // self.wide

    @property
    def kv_width(self) -> int:
        """The width of a cell's key, and of its value."""
        return self.kv_heads * self.size

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights: matrices as [in, out], tables as [rows, width]."""

    def _layer(self, takes: int) -> dict[str, tuple[int, ...]]:
        """The matrices of a layer whose attention has inputs of a width."""
        width, kv, seen = self.width, self.kv_width, self.heads * self.size
        return {
            "query": (takes, seen),
            "key": (takes, kv),
            "value": (takes, kv),
            "mix": (seen, width),
            "inner_norm": (width,),
            "gate": (width, self.inner),
            "up": (width, self.inner),
            "down": (self.inner, width),
            "norm": (width,),
        }

    def state(self) -> dict[str, Any]:
        """The sizes as plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class HeadShape(LayerShape):
    """A head on final hidden states.

    One more row of its table represents all tokens that are not in its vocabulary.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights: matrices as [in, out], the table as [rows + 1, width]."""
        return {
            "table": (self.rows + 1, self.width),
            "state_norm": (self.width,),
            "token_norm": (self.width,),
            "join": (2 * self.width, self.width),
            "attention_norm": (self.width,),
            **self._layer(self.width),
        }


@dataclass(frozen=True)
class EagleShape(LayerShape):
    """An EAGLE-3 drafter (arXiv 2503.01840), as llama.cpp computes it.

    layers: of the target, counted from 0, whose inputs it reads. alone: the last
    attention heads, which begin by attending to their own token only. Its attention
    reads a token's embedding beside the state, and its residual is the state, normed.
    """

    layers: tuple[int, ...] = ()
    alone: int = 0

    @property
    def wide(self) -> int:
        """See `LayerShape`."""
        return self.heads - self.alone

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights: matrices as [in, out], the output as [rows, width]."""
        return {
            "output": (self.rows, self.width),
            "fuse": (len(self.layers) * self.width, self.width),
            "token_norm": (self.width,),
            "state_norm": (self.width,),
            **self._layer(2 * self.width),
        }
