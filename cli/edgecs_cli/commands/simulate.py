"""`edgecs simulate`: predicts the speed-up on other hardware."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgecs_bench.hardware import catalogue
from edgecs_bench.hardware.machines import Hardware, Size
from edgecs_bench.report.summary import table_lines
from edgecs_bench.simulation import network
from edgecs_bench.simulation.chains import CHAINS, Chain
from edgecs_bench.simulation.replay_options import TRACES
from edgecs_bench.simulation.simulation import (
    ASSUMPTIONS,
    NEAR,
    Measured,
    Prompt,
    Simulation,
    against,
    choose,
    compared,
)
from edgecs_bench.simulation.traces import read_traces
from edgecs_cli.commands.simulate_network import network_options
from edgecs_cli.commands.simulate_network import show as show_networks
from edgecs_cli.console import echo
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.recipe import taken
from edgecs_cli.options.shared import reports_errors

_TARGET = "7B-q4"


@dataclass(frozen=True)
class Wishes:
    """Options of the simulation."""

    machines: tuple[str, ...]
    targets: tuple[str, ...]
    chains: tuple[str, ...]
    files: tuple[Path, ...]
    drafter: str | None
    drafter_hardware: str | None
    limit: int | None
    by_category: bool
    against: Path | None
    as_json: bool


@click.command()
@click.option(
    "--hardware",
    "machines",
    multiple=True,
    metavar="HARDWARE",
    help="A built-in example, GB/s:TFLOPS[:ms per call], a profile, or the JSON of "
    "llama-bench; repeatable.  [default: all built-in examples]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="SIZE",
    help="Parameters and bits per weight, as in 14B-q8 or 3B-5.5, where HARDWARE names "
    f"no models; repeatable.  [default: {_TARGET}]",
)
@click.option(
    "--drafter", metavar="SIZE", help="Size of the drafters.  [default: as recorded]"
)
@click.option(
    "--drafter-hardware",
    metavar="HARDWARE",
    help="Hardware of the drafters, as for --hardware.  [default: that of the target]",
)
@click.option(
    "--chain",
    "chains",
    multiple=True,
    metavar="CHAIN",
    help="plain, mag:K, drafter:K, a K matrix, planner:mag, planner:drafter+mag or "
    "planner:drafter+mag:overlap; repeatable.  [default: one of each but the last]",
)
@click.option(
    "--traces",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Recorded answers; repeatable.  [default: the bundled ones]",
)
@click.option(
    "--limit", type=Whole(1), metavar="N", help="Use only N answers per file."
)
@click.option(
    "--by-category", is_flag=True, help="Also show results by prompt category."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare predictions from the costs in FILE with the speed-ups measured in "
    "it: a result of `edgecs bench`, or see docs/simulate.md.",
)
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def simulate(**values: Any) -> None:
    """Predict the speed-up on other hardware.

    Replays recorded answers with the real planner and a clock that models the calls on
    that hardware. Results are simulated, not measured; docs/simulate.md describes the
    formats and the assumptions.

    \b
    edgecs simulate
    edgecs simulate --hardware m-series --target 1.5B-q4 --target 14B-q8
    edgecs simulate --hardware 256:11:0.3 --chain mag:8 --chain planner:mag --json
    edgecs simulate --latency --hardware m-series --target 70B-q4 --hosts 1,10,100
    """
    wishes = taken(Wishes, values)
    networked = values["latencies"] is not None
    if wishes.against and networked:
        raise click.UsageError("--against and --latency are mutually exclusive")
    if values["rates"] is not None and not networked:
        raise click.UsageError("--acceptance is for --latency: give both")
    if wishes.against:
        _compare(wishes, wishes.against)
        return
    given = wishes.machines or catalogue.built_in()
    machines = [catalogue.find(text) for text in dict.fromkeys(given)]
    if wishes.targets and not any(machine.roofline for machine in machines):
        raise click.UsageError(
            f"--target does not apply to {machines[0].name}, which has its own: omit it"
        )
    sizes = [Size.parse(text) for text in dict.fromkeys(wishes.targets or [_TARGET])]
    usual = network.CHAINS if networked else CHAINS
    simulation = _simulation(wishes, wishes.chains or usual)
    if networked:
        show_networks(
            machines,
            sizes,
            simulation.recordings,
            simulation.chains,
            values,
            drafter=simulation.drafter,
            beside=simulation.beside,
            as_json=wishes.as_json,
        )
        return
    rows = []
    for machine in machines:
        for aim in machine.aims(sizes):
            rows += simulation.rows(machine, aim, by_category=wishes.by_category)
    if wishes.as_json:
        beside = simulation.beside.name if simulation.beside else None
        _print(simulation, machines, {"drafter_hardware": beside, "results": rows})
        return
    echo(_title(simulation))
    _table([_shown(row, by_category=wishes.by_category) for row in rows])
    _notes([*machines, *([simulation.beside] if simulation.beside else [])])


def _compare(wishes: Wishes, path: Path) -> None:
    """Compares predicted and measured speed-ups of one machine."""
    if wishes.machines or wishes.targets or wishes.chains:
        raise click.UsageError(
            "--against sets hardware, target and chains itself: omit --hardware, "
            "--target and --chain"
        )
    known: Measured = catalogue.load(path, against, "no result to predict")
    simulation = _simulation(wishes, list(known.speedups), known.prompts)
    (aim,) = known.machine.targets
    rows = compared(simulation.rows(known.machine, aim), known.speedups)
    near = sum(abs(row["error"]) <= NEAR for row in rows)
    if wishes.as_json:
        found = {"compared": rows, "near": near, "within": NEAR}
        _print(simulation, [known.machine], found)
        return
    echo(_title(simulation))
    _table(
        [
            {
                "chain": row["chain"],
                "simulated speed-up": row["predicted"],
                "measured": row["measured"],
                "error": f"{row['error']:+.1%}",
            }
            for row in rows
        ]
    )
    echo(f"{near} of {len(rows)} predictions are within {NEAR:.0%}")
    _notes([known.machine])


def _simulation(
    wishes: Wishes,
    labels: Sequence[str],
    prompts: frozenset[Prompt] | None = None,
) -> Simulation:
    """The simulation; its default chains have drafters only where they were recorded.

    prompts: those measured, if this is to predict a measurement.
    """
    chains = [Chain.parse(label) for label in dict.fromkeys(labels)]
    files = wishes.files or sorted(TRACES.glob("*.gz"))
    recordings = [read_traces(file) for file in files]
    asked = wishes.chains or wishes.against
    if not asked and not any(one.drafters for one in recordings):
        chains = [chain for chain in chains if not chain.neural]
    size = Size.parse(wishes.drafter) if wishes.drafter else None
    chosen = choose(recordings, chains, wishes.limit, prompts)
    beside = wishes.drafter_hardware and catalogue.find(wishes.drafter_hardware)
    return Simulation(
        chosen, chains, size, learns=not wishes.against, beside=beside or None
    )


def _title(simulation: Simulation) -> str:
    parts = ", ".join(
        f"{simulation.reported(one)} of {one.target}" for one in simulation.recordings
    )
    return f"simulated, not measured: recorded answers ({parts}) on other hardware"


def _shown(row: dict[str, Any], *, by_category: bool) -> dict[str, object]:
    shown = {"hardware": row["hardware"], "target": row["target"]}
    shown["chain"] = row["chain"]
    if by_category:
        shown["category"] = row["category"] or "all"
    return {
        **shown,
        "answers": row["answers"],
        "simulated speed-up": row["speedup"],
        "length": row["mean_accept_len"],
        "simulated tokens/s": f"{row['tokens_per_second']:.1f}",
        "rounds drafted": f"{row['drafted']:.0%}",
    }


def _table(rows: Sequence[dict[str, object]]) -> None:
    for line in table_lines(rows):
        echo(line)


def _notes(machines: Iterable[Hardware]) -> None:
    """Prints the sources of the numbers, and the assumptions."""
    echo()
    for machine in machines:
        echo(machine.describe())
    echo(f"assumed: {'; '.join(ASSUMPTIONS)}")


def _print(
    simulation: Simulation, machines: Iterable[Hardware], found: dict[str, Any]
) -> None:
    fields = {
        "simulated": True,
        "assumptions": ASSUMPTIONS,
        "recordings": [
            {
                "target": one.target,
                "drafters": one.drafters,
                "answers": simulation.reported(one),
            }
            for one in simulation.recordings
        ],
        "hardware": [
            {
                "name": machine.name,
                "source": machine.source,
                "description": machine.describe(),
                "sources": machine.roofline.sources if machine.roofline else {},
            }
            for machine in machines
        ],
        **found,
    }
    echo(json.dumps(fields))
