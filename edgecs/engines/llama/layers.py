"""Resolve `-ngl auto` for a file and the devices that llama.cpp detects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from edgecs.engines.cell_memory import memory_by_keys, most_snapshots
from edgecs.engines.llama import library
from edgecs.engines.llama.model import check_file
from edgecs.engines.llama.rpc import Workers
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import (
    SMALLEST_CONTEXT,
    Device,
    Footprint,
    context_that_fits,
    layers_that_fit,
)


class Choice(NamedTuple):
    """Number of GPU layers, the context size they were chosen for, and the reason."""

    layers: int
    n_ctx: int  # as requested; for 0, what fits the devices
    reason: str | None  # None: there is no device


def automatic_layers(path: Path, options: LoadOptions) -> Choice:
    """The largest number of layers that fits the devices' free memory.

    0 if all devices are software. Raises ModelError if the file is not a GGUF.
    """
    devices = library.devices() if library.supports_offload() else []
    if options.rpc:
        devices = [*Workers(options.rpc).devices, *devices]
    if not devices:
        return Choice(0, options.n_ctx, None)
    check_file(path)
    if all(device.software for device in devices):
        names = ", ".join(device.description for device in devices)
        reason = f"no layers, as {names} computes on the CPU (-ngl all offloads to it)"
        return Choice(0, options.n_ctx, reason)
    free = sum(device.free for device in devices)
    try:
        footprint, n_ctx = _footprint(path, options, free)
    except (ValueError, IndexError, KeyError, ArithmeticError) as error:
        # llama.cpp opens the file next, and has better messages for broken files.
        return Choice(0, options.n_ctx, f"the header cannot be read: {error}")
    layers = layers_that_fit(footprint, devices)
    total = len(footprint.blocks) + 1
    names = ", ".join(
        f"{_name(d, options)} with {d.free >> 20} MiB free" for d in devices
    )
    return Choice(layers, n_ctx, f"{layers} of {total} layers fit {names}")


def _name(device: Device, options: LoadOptions) -> str:
    """A device's name, or the address of its worker."""
    return device.description if options.rpc else device.name


def kv_cells(path: Path, options: LoadOptions) -> int:
    """Bytes of the KV cells of all sequences; 0 if the header cannot be read."""
    try:
        footprint, _ = _footprint(path, options, psutil.virtual_memory().available)
    except (OSError, ValueError, IndexError, KeyError, ArithmeticError):
        return 0
    return sum(footprint.kv) * options.sequences


def _footprint(path: Path, options: LoadOptions, free: int) -> tuple[Footprint, int]:
    """Memory needs according to the file's header, and the context size assumed."""
    import gguf

    reader = gguf.GGUFReader(path)
    named = reader.get_field("general.architecture")
    architecture = "" if named is None else named.contents()

    def values(key: str) -> Sequence[float]:
        field = reader.get_field(f"{architecture}.{key}")
        value = [] if field is None else field.contents()
        return value if isinstance(value, list) else [value]

    def number(key: str, default: int) -> int:
        return int(max(values(key), default=default))

    blocks = [0] * min(number("block_count", 0), len(reader.tensors))
    output = embedding = 0
    for tensor in reader.tensors:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match and int(match[1]) < len(blocks):
            blocks[int(match[1])] += int(tensor.n_bytes)
        elif tensor.name.startswith("token_embd"):
            embedding += int(tensor.n_bytes)
        elif tensor.name.startswith("output"):
            output += int(tensor.n_bytes)
    if not any(tensor.name == "output.weight" for tensor in reader.tensors):
        output += embedding  # tied: the embedding is the output matrix too
    memory = memory_by_keys(architecture, len(blocks), values, options)
    kept = most_snapshots(architecture, memory, options, sum(blocks) + output)
    trained = number("context_length", SMALLEST_CONTEXT)
    n_ctx = options.n_ctx or context_that_fits(
        options.longest_ctx(trained), memory.fits(free // 2, options, kept)
    )
    kv = [*map(int, memory.layer_bytes(n_ctx, options, kept))]
    heads = min(number("nextn_predict_layers", 0), len(kv)) if options.heads else 0
    # A head has cells of its own, as many as a layer that attends to all tokens.
    kv[len(kv) - heads :] = [max(kv, default=0)] * heads
    return Footprint(tuple(blocks), output, tuple(kv)), n_ctx
