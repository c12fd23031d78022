"""Compute how many layers fit a device, and how long a context fits memory.

llama.cpp counts the output matrix as one layer in addition to the model's blocks, and
offloads from the end: with -ngl N the output matrix and the last N - 1 blocks go to the
device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

# chosen: other programs' memory use may grow, and a later failure is worse.
MARGIN = 1 << 30  # bytes left free on every device: compute buffers and the desktop
# chosen: a chat of some turns fits.
SMALLEST_CONTEXT = 4096  # tokens; an automatic context is not made shorter than this
# Drivers that compute on the CPU: Mesa's (lavapipe is its Vulkan part), Google's and
# Microsoft's. ggml reports them as GPUs, so the name is all that tells them apart.
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader", "microsoft basic render")


@dataclass(frozen=True)
class Device:
    """An accelerator as its driver reports it; bytes."""

    name: str
    description: str
    free: int
    total: int

    @property
    def software(self) -> bool:
        """Whether its driver computes on the CPU, so that it gains nothing."""
        description = self.description.lower()
        return any(name in description for name in _SOFTWARE)


@dataclass(frozen=True)
class Footprint:
    """Memory that a model needs on a device; bytes."""

    blocks: tuple[int, ...]  # weights of each block, first to last
    output: int  # output matrix and norm
    kv: tuple[int, ...]  # cells and states of each block, for the context in question


def layers_that_fit(footprint: Footprint, devices: Sequence[Device]) -> int:
    """The largest -ngl whose weights, KV cache and margin fit the devices' free memory.

    Every device keeps MARGIN. llama.cpp gives each device a run of layers in proportion
    to its free memory; each run has to fit its device.
    """
    blocks = map(sum, zip(footprint.blocks, footprint.kv, strict=True))
    sizes = [*blocks, footprint.output]
    for layers in range(len(sizes), 0, -1):
        if _runs_fit(sizes[-layers:], devices):
            return layers
    return 0


def _runs_fit(sizes: Sequence[int], devices: Sequence[Device]) -> bool:
    total = sum(device.free for device in devices)
    if not total:
        return False
    ends = [share / total for share in accumulate(device.free for device in devices)]
    used = [0] * len(devices)
    for i, size in enumerate(sizes):
        used[min(bisect_right(ends, i / len(sizes)), len(devices) - 1)] += size
    pairs = zip(used, devices, strict=True)
    return all(use <= max(0, device.free - MARGIN) for use, device in pairs)


def fewer_layers(layers: int) -> int:
    """Number of layers to try after a failed allocation: about an eighth less."""
    return max(0, layers - max(1, layers // 8))


def context_that_fits(trained: int, fitting: int) -> int:
    """Tokens of context: the trained length, limited to those that fit.

    fitting: tokens whose cells fit half of the free memory. The limit is a multiple of
    256 and at least SMALLEST_CONTEXT.
    """
    return min(trained, max(SMALLEST_CONTEXT, fitting // 256 * 256))
