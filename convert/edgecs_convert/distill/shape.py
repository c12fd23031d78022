"""The sizes of a head; a head is one decoder layer on a target's final hidden states.

Input i is (state that chose token i, embedding of token i). Output i approximates the
state after token i: the embedding table turns it into logits, and it is the state of
the next input if the target has not computed one (EAGLE, arXiv 2401.15077).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgecs.errors import ConfigError


@dataclass(frozen=True)
class HeadShape:
    """width: of the target's states. rows: tokens of the head's vocabulary.

    One more row of the table represents all other tokens.
    """

    width: int
    rows: int
    heads: int
    kv_heads: int
    inner: int
    epsilon: float = 1e-5
    base: float = 10000.0  # of the rotary positions

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or self.size % 2:
            raise ConfigError(
                f"a head of {self.width} cannot have {self.heads} attention heads over "
                f"{self.kv_heads}: the numbers must divide evenly"
            )

    @property
    def size(self) -> int:
        """The size of one attention head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """The width of a cell's key, and of its value."""
        return self.kv_heads * self.size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights: matrices as [in, out], the table as [rows + 1, width]."""
        width, kv = self.width, self.kv_width
        return {
            "table": (self.rows + 1, width),
            "state_norm": (width,),
            "token_norm": (width,),
            "join": (2 * width, width),
            "attention_norm": (width,),
            "query": (width, width),
            "key": (width, kv),
            "value": (width, kv),
            "mix": (width, width),
            "inner_norm": (width,),
            "gate": (width, self.inner),
            "up": (width, self.inner),
            "down": (self.inner, width),
            "norm": (width,),
        }

    def state(self) -> dict[str, Any]:
        """The sizes as plain numbers."""
        return asdict(self)
