"""Tables of `edgecs simulate --latency` in the documentation, from its JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgecs_bench.text_tables import markdown


def speeds_by_network(file: Path, chain: str) -> str:
    """A row for each number of hosts, a column for each latency.

    A cell has the speed-up, and the tokens per second without and with drafts.
    """
    return _by_network(
        [row for row in _read(file)["results"] if row["chain"] == chain], _speed
    )


def lengths_by_network(file: Path, chain: str) -> str:
    """The same with the tokens per round."""
    return _by_network(
        [row for row in _read(file)["results"] if row["chain"] == chain],
        lambda row: f"{row['mean_accept_len']:.2f}",
    )


def rates_by_call(file: Path) -> str:
    """Expected speed-ups by acceptance rate: a row for each network."""
    found: dict[tuple[int, float], dict[str, str]] = {}
    for row in _read(file)["results"]:
        line = found.setdefault(
            (row["hosts"], row["latency_ms"]),
            {
                "hosts": str(row["hosts"]),
                "latency": f"{row['latency_ms']:g} ms",
                "a call": f"{row['call_ms']:,.0f} ms",
            },
        )
        line[row["chain"]] = f"{row['speedup']:.2f} ({row['draft']})"
    lines = [*found.values()]
    return markdown([[*lines[0]], *([*line.values()] for line in lines)])


def remote_servers(file: Path) -> str:
    """The acceptance that a drafter before a remote server needs."""
    rows = _read(file)["remote"]
    head = ["round trip", *(f"{ms} ms per token" for ms in rows[0]["needed"])]
    lines = [
        [
            f"{row['round_trip_ms']:g} ms",
            *("none" if r is None else f"{r:.2f}" for r in row["needed"].values()),
        ]
        for row in rows
    ]
    return markdown([head, *lines])


def _by_network(
    rows: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]
) -> str:
    latencies = [*dict.fromkeys(row["latency_ms"] for row in rows)]
    by_hosts: dict[int, list[str]] = {}
    for row in rows:
        by_hosts.setdefault(row["hosts"], [str(row["hosts"])]).append(cell(row))
    return markdown(
        [["hosts", *(f"{ms:g} ms" for ms in latencies)], *by_hosts.values()]
    )


def _speed(row: dict[str, Any]) -> str:
    speed, ratio = row["tokens_per_second"], row["speedup"]
    return f"{ratio:.2f} ({_short(speed / ratio)} → {_short(speed)})"


def _short(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"


def _read(file: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return fields
