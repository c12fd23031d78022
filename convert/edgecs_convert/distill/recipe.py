"""The training recipe of a drafter; it is written into the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Divergence = Literal["fkl", "tvd", "jsd"]


@dataclass(frozen=True)
class Recipe:
    """The settings of one training; a decoder ignores those for heads."""

    epochs: float = 4.0
    rate: float = 1.5e-3  # highest learning rate
    warm: int = 100  # batches until it is reached
    texts: int = 4  # per batch: many small steps work better than few large ones
    length: int = 160  # tokens of a text
    before: int = 32  # of these before the training positions
    loss: Divergence = "fkl"
    passes: int = 3  # of a head, each on the outputs of the previous one
    fading: float = 0.8  # weight of a pass relative to the previous one
    likeness: float = 0.1  # weight of the distance between a head's states
    negatives: int = 0  # random tokens that a loss compares beside the target's; 0: all
    decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    seed: int = 1
    began: str = "the target"  # whose weights are the first ones, or a head's name
