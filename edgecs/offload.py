"""How many layers fit a device, and how long a context fits memory: the arithmetic.

Knows numbers only. llama.cpp counts the output matrix as one layer more than the model
has blocks and offloads from the end: with -ngl N the output matrix and the last N - 1
blocks go to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MARGIN = 1 << 30  # bytes left free on every device: compute buffers and the desktop
SMALLEST_CONTEXT = 4096  # tokens; an automatic context is not made shorter than this


@dataclass(frozen=True)
class Device:
    """An accelerator as its driver reports it; bytes."""

    name: str
    description: str
    free: int
    total: int


@dataclass(frozen=True)
class Footprint:
    """What a model asks of a device; bytes."""

    blocks: tuple[int, ...]  # weights of each block, first to last
    output: int  # output matrix and norm
    kv: int  # KV cache of one block, at the context size in question


def layers_that_fit(footprint: Footprint, devices: Sequence[Device]) -> int:
    """The largest -ngl whose weights, KV cache and margin fit the devices' free memory.

    Each device keeps MARGIN for itself; the rest adds up, as llama.cpp splits layers
    in proportion to free memory.
    """
    room = sum(max(0, device.free - MARGIN) for device in devices)
    sizes = [footprint.output, *(w + footprint.kv for w in reversed(footprint.blocks))]
    layers = 0
    for size in sizes:
        room -= size
        if room < 0:
            break
        layers += 1
    return layers


def fewer_layers(layers: int) -> int:
    """What to try after an allocation failed with `layers`: about an eighth less."""
    return max(0, layers - max(1, layers // 8))


def context_that_fits(trained: int, kv_per_token: int, free: int) -> int:
    """Tokens of context: what the model was trained for, or what fits half of `free`.

    In steps of 256, not below SMALLEST_CONTEXT unless the model was trained for less.
    """
    fits = free // 2 // max(1, kv_per_token) // 256 * 256
    return min(trained, max(SMALLEST_CONTEXT, fits))
