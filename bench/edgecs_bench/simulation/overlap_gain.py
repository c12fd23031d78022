"""Simulates a drafter that goes on during calls of a target on another device.

    python -m edgecs_bench.simulation.overlap_gain
    python -m edgecs_bench.simulation.overlap_gain --drafter-hardware 40:0.4:0.1

Recorded answers are replayed with the real planner, as `edgecs simulate` does, for
targets on one device and a drafter on another one: a GPU and a CPU by default. The
drafter waits during the calls of the target, or goes on. For comparison it is also on
the target's device, where it always waits. How often the drafter is right is known
from the start, as after `edgecs tune`. `break_even` is the share of right tokens
from which a drafter that goes on beats plain decoding, by the time of its step as a
share of the target's call, for calls whose time does not depend on their width.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import numpy as np

from edgecs.costs.cost_model import WIDEST
from edgecs.costs.overlap import break_even
from edgecs.tuning.estimate import needed
from edgecs_bench.hardware import catalogue
from edgecs_bench.hardware.machines import Hardware, Size
from edgecs_bench.report.summary import table
from edgecs_bench.simulation.chains import ALL, MAG, OVERLAP, Chain
from edgecs_bench.simulation.replay_options import recordings_of
from edgecs_bench.simulation.simulation import Simulation, choose
from edgecs_bench.simulation.traces import Recording

TARGETS = ("3B-q4", "7B-q4", "14B-q4", "32B-q4")
# Like the CPU of a laptop with two channels of DDR5: assumed numbers.
BESIDE = "60:0.6:0.1"
STEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # shares of a call


def gains(
    recordings: list[Recording], machine: Hardware, beside: Hardware, size: Size
) -> dict[str, Any]:
    """Speed over plain decoding of one target, by where its drafter is."""
    (aim,) = machine.aims([size])
    ways = {
        "max_gram_alone": (MAG, machine),
        "same_device": (ALL, machine),
        "beside_waits": (ALL, beside),
        "beside_goes_on": (OVERLAP, beside),
    }
    found: dict[str, Any] = {"target": size.name, "call_ms": round(aim.ms[1], 3)}
    names = {name for one in recordings for name in one.drafters}
    step = max(beside.drafter(name, aim).ms[1] for name in names)
    found["step_ms"] = round(step, 3)
    for way, (label, there) in ways.items():
        chains = [Chain.parse(label)]
        simulation = Simulation(recordings, chains, tuned=True, beside=there)
        (row,) = simulation.rows(machine, aim)
        found[way] = row["speedup"]
    found["gain"] = round(found["beside_goes_on"] / found["beside_waits"], 4)
    return found


def break_evens() -> list[dict[str, float | None]]:
    """The required shares of right tokens, for a drafter that waits or goes on."""
    flat = np.ones(WIDEST)
    return [
        {
            "step": step,
            "waits": needed(flat, step),
            "goes_on": break_even(flat.tolist(), step),
        }
        for step in STEPS
    ]


@click.command()
@click.option("--hardware", default="laptop-gpu", show_default=True)
@click.option("--drafter-hardware", "beside", default=BESIDE, show_default=True)
@click.option("--target", "targets", multiple=True, default=TARGETS, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only N answers.")
def main(
    hardware: str, beside: str, targets: tuple[str, ...], limit: int | None
) -> None:
    """Simulate drafts that are made ahead."""
    machine, there = catalogue.find(hardware), catalogue.find(beside)
    if not machine.roofline:
        raise click.UsageError(f"{hardware} has targets of its own: give a roofline")
    every = recordings_of(())
    recordings = choose(every, [Chain.parse(ALL)], limit)
    rows = []
    for size in map(Size.parse, targets):
        rows.append(gains(recordings, machine, there, size))
        click.echo(f"{rows[-1]}", err=True)
    table(rows)
    result = {
        "simulated": True,
        "hardware": machine.describe(),
        "drafter_hardware": there.describe(),
        "recordings": [
            {"target": one.target, "drafters": list(one.drafters)} for one in recordings
        ],
        "targets": rows,
        "break_even": break_evens(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
    sys.exit(0)
