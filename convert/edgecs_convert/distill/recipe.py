"""How a drafter is trained; what is written into its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Divergence = Literal["fkl", "tvd", "jsd"]


@dataclass(frozen=True)
class Recipe:
    """Of one training. What only heads have is said so; a decoder leaves it alone."""

    epochs: float = 4.0
    rate: float = 1.5e-3  # highest learning rate
    warm: int = 100  # batches until it is reached
    texts: int = 4  # of a batch: many small steps teach more than few large ones
    length: int = 160  # tokens of a text
    before: int = 32  # of these in front of what is to be learnt
    loss: Divergence = "fkl"
    passes: int = 3  # of a head, each on the outputs of the one before it
    fading: float = 0.8  # weight of a pass over that of the one before it
    likeness: float = 0.1  # weight of the distance of a head's states
    decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    seed: int = 1
