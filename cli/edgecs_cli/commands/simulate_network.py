"""`edgecs simulate --latency`: a target whose layers are divided among hosts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from edgecs_bench.hardware.machines import Hardware, Size
from edgecs_bench.report.summary import table_lines
from edgecs_bench.simulation import simulation
from edgecs_bench.simulation.chains import Chain
from edgecs_bench.simulation.network import (
    ASSUMPTIONS,
    GBIT,
    HOSTS,
    LATENCIES,
    expected_rows,
    networks,
    remote_rows,
    rows,
)
from edgecs_bench.simulation.traces import Recording
from edgecs_cli.console import echo
from edgecs_cli.options.kinds import Finite, Whole

F = TypeVar("F", bound=Callable[..., Any])


class Several(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas, each of a kind."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind, self.name = kind, kind.name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Checks each of them."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        return tuple(dict.fromkeys(self._kind.convert(p, param, ctx) for p in parts))


def network_options(command: F) -> F:
    """Adds the options of networks."""
    for option in reversed(
        [
            click.option(
                "--latency",
                "latencies",
                type=Several(Finite(0, 1e6)),
                is_flag=False,
                flag_value=_listed(LATENCIES),
                metavar="[MS,...]",
                help="Simulate a target whose layers are divided among hosts, with "
                "these latencies per hop, one way; without a value: "
                f"{_listed(LATENCIES)}.",
            ),
            click.option(
                "--hosts",
                type=Several(Whole(1, 10_000)),
                default=_listed(HOSTS),
                show_default=True,
                metavar="N,...",
                help="Numbers of hosts, with --latency.",
            ),
            click.option(
                "--gbit",
                type=Finite(0, 1e6, min_open=True),
                default=GBIT,
                show_default=True,
                metavar="GBIT/S",
                help="Bandwidth of each hop, with --latency.",
            ),
            click.option(
                "--acceptance",
                "rates",
                type=Several(Finite(0, 1)),
                metavar="RATE,...",
                help="With --latency, expect tokens to be accepted at these rates, "
                "instead of replaying answers.",
            ),
        ]
    ):
        command = option(command)
    return command


def show(
    machines: Sequence[Hardware],
    sizes: Sequence[Size],
    recordings: Sequence[Recording],
    chains: Sequence[Chain],
    values: dict[str, Any],
    *,
    drafter: Size | None,
    beside: Hardware | None,
    as_json: bool,
) -> None:
    """Prints what networks do to the speed. Raises ConfigError."""
    every = networks(values["hosts"], values["latencies"], values["gbit"])
    found: list[dict[str, Any]] = []
    for machine in machines:
        for aim in machine.aims(sizes):
            if values["rates"] is None:
                found += rows(
                    recordings,
                    chains,
                    machine,
                    aim,
                    every,
                    drafter=drafter,
                    beside=beside,
                )
                continue
            there = beside or machine
            step = there.drafter("", aim, drafter).ms[1] if drafter else 0.0
            found += expected_rows(values["rates"], machine, aim, every, step)
    remote = remote_rows(values["latencies"])
    if as_json:
        fields = {
            "simulated": True,
            "assumptions": [*ASSUMPTIONS, *simulation.ASSUMPTIONS],
            "gbit": values["gbit"],
            "hardware": [machine.describe() for machine in machines],
            "results": found,
            "remote": remote,
        }
        echo(json.dumps(fields))
        return
    echo("simulated, not measured: layers divided among hosts of a network")
    _table([_shown(row) for row in found])
    echo()
    echo(
        "acceptance that a drafter here needs to beat a remote server that streams, by "
        "the server's ms per token"
    )
    _table(
        [
            {"round trip ms": f"{row['round_trip_ms']:g}", **_needed(row["needed"])}
            for row in remote
        ]
    )
    echo()
    echo(f"assumed: {'; '.join([*ASSUMPTIONS, *simulation.ASSUMPTIONS])}")


def _shown(row: dict[str, Any]) -> dict[str, object]:
    return {
        "hardware": row["hardware"],
        "target": row["target"],
        "hosts": row["hosts"],
        "latency ms": f"{row['latency_ms']:g}",
        "ms per call": f"{row['call_ms']:.1f}",
        "chain": row["chain"],
        "simulated speed-up": f"{row['speedup']:.2f}",
        "length": f"{row['mean_accept_len']:.2f}",
        "simulated tokens/s": f"{row['tokens_per_second']:.2f}",
    }


def _needed(rates: dict[str, float | None]) -> dict[str, object]:
    return {
        f"{ms} ms": "none" if rate is None else f"{rate:.2f}"
        for ms, rate in rates.items()
    }


def _table(lines: Sequence[dict[str, object]]) -> None:
    for line in table_lines(lines):
        echo(line)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
