"""The arithmetic of offloading, on devices that do not exist."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines.offload import (
    MARGIN,
    Device,
    Footprint,
    context_that_fits,
    fewer_layers,
    layers_that_fit,
)

MIB = 1 << 20
sizes = st.integers(1, 900).map(lambda mib: mib * MIB)


def device(free: int) -> Device:
    return Device("GPU0", "a fake", free, free)


def needed(footprint: Footprint, layers: int) -> int:
    """What llama.cpp puts on the device with -ngl layers."""
    blocks = footprint.blocks[len(footprint.blocks) - (layers - 1) :] if layers else ()
    output = footprint.output if layers else 0
    cells = footprint.kv[len(footprint.blocks) - (layers - 1) :] if layers else ()
    return output + sum(blocks) + sum(cells)


@given(
    blocks=st.lists(sizes, max_size=20),
    output=sizes,
    kv=sizes,
    free=st.integers(0, 20000),
)
def test_takes_the_largest_number_that_fits(blocks, output, kv, free):
    footprint = Footprint(tuple(blocks), output, (kv,) * len(blocks))
    layers = layers_that_fit(footprint, [device(free * MIB)])
    room = free * MIB - MARGIN
    assert layers == 0 or needed(footprint, layers) <= room
    assert layers == len(blocks) + 1 or needed(footprint, layers + 1) > max(0, room)


def test_every_device_has_to_hold_its_own_run():
    footprint = Footprint((600 * MIB,) * 4, 10 * MIB, (0,) * 4)
    assert layers_that_fit(footprint, [device(MARGIN + 1300 * MIB)]) == 3
    two = [device(MARGIN + 1300 * MIB), device(MARGIN + 1300 * MIB)]
    # Of five layers the first device would get three blocks; of four it gets two.
    assert layers_that_fit(footprint, two) == 4
    # Of three layers it would get two blocks again, and has room for one.
    assert layers_that_fit(footprint, [device(MARGIN + 950 * MIB)] * 2) == 2
    assert layers_that_fit(footprint, [device(MARGIN), device(5)]) == 0
    assert layers_that_fit(footprint, [device(0)]) == 0
    assert layers_that_fit(footprint, []) == 0


@given(st.integers(1, 200))
def test_retrying_ends_at_zero(layers: int):
    tries = 0
    while layers:
        fewer = fewer_layers(layers)
        assert fewer < layers
        layers, tries = fewer, tries + 1
    assert tries < 40


@given(
    trained=st.integers(1, 10**6),
    fitting=st.integers(0, 10**7),
)
def test_an_automatic_context_fits_or_is_the_smallest(trained, fitting):
    n = context_that_fits(trained, fitting)
    assert n <= trained
    assert n <= 4096 or n <= fitting
    assert n == trained or n >= 4096
