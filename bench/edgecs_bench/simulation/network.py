"""Simulates a target whose layers are divided among hosts of a network.

The layers are a pipeline over H hosts, and the drafters are where the answer is shown,
on a machine without layers. A call of n tokens visits all hosts, one after the other,
and comes back, so it takes

    T(n) + (H + 1) * (latency + n * state / bandwidth)

T(n) is the time of a single host with all layers: a call computes every layer once,
wherever it lies, and a single answer keeps one host busy at a time. A state is one row
of float32; nothing overlaps. A round is one call, so plain decoding waits for the
network once per token and a draft once per round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecs.costs.cost_model import WIDEST
from edgecs.errors import ConfigError
from edgecs.theory import speculative_tokens
from edgecs_bench.hardware.curves import Curve
from edgecs_bench.hardware.machines import Deep, Hardware, Size, Target
from edgecs_bench.simulation.chains import Chain
from edgecs_bench.simulation.simulation import Simulation
from edgecs_bench.simulation.traces import Recording

HOSTS = (1, 2, 4, 10, 30, 100)
LATENCIES = (0.1, 0.5, 1.0, 5.0, 20.0, 50.0)  # milliseconds, one way
CHAINS = ("mag:5", "planner:mag", "planner:drafter+mag")
GBIT = 1.0
SERVER_MS = (5.0, 20.0, 50.0)  # milliseconds per token of a server that streams
ASSUMPTIONS = (
    "hosts are equal, and each computes only its layers",
    "a hop carries one float32 state per token, as wide as its parameters suggest",
    "nothing overlaps: no host computes while a state is on its way",
)
_USUAL = 7e9  # parameters where they are not known


@dataclass(frozen=True)
class Network:
    """hosts: of the target. ms: one way, per hop. gbit: per second, of each hop."""

    hosts: int
    ms: float
    gbit: float = GBIT

    def extra(self, width: int, parameters: float) -> float:
        """Milliseconds that the network adds to a call of `width` tokens.

        >>> round(Network(3, 5.0, 1.0).extra(1, 7e9), 2)
        20.54
        """
        bits = 8 * 4 * state_width(parameters) * width
        return (self.hosts + 1) * (self.ms + bits / (self.gbit * 1e6))

    def applied(self, aim: Target) -> Target:
        """The call times of a target behind this network."""
        size = aim.parameters or _USUAL

        def slower(ms: Mapping[int, float]) -> dict[int, float]:
            return {n: time + self.extra(n, size) for n, time in ms.items()}

        deep = tuple(Deep(one.depth, slower(one.ms)) for one in aim.deep)
        return replace(aim, ms=slower(aim.ms), deep=deep)


def state_width(parameters: float) -> float:
    """The width of a dense transformer, if it has a layer per 128 of it.

    12 * layers * width ** 2 parameters; 4,210 for 7e9, where the usual width is 4,096.

    >>> round(state_width(7e9))
    4211
    """
    return float((parameters * 128 / 12) ** (1 / 3))


def rows(
    recordings: Sequence[Recording],
    chains: Sequence[Chain],
    machine: Hardware,
    aim: Target,
    networks: Sequence[Network],
    *,
    drafter: Size | None = None,
    beside: Hardware | None = None,
) -> list[dict[str, Any]]:
    """A row for every network and chain, from replayed answers; see `Simulation`."""
    names = {name for one in recordings for name in one.drafters}
    names = names if any(chain.neural for chain in chains) else set()
    there = beside or machine
    # A drafter is not behind the network.
    known = tuple(there.drafter(name, aim, drafter) for name in sorted(names))
    simulation = Simulation(recordings, chains, beside=replace(there, drafters=known))
    found = []
    for network in networks:
        behind = network.applied(aim)
        for row in simulation.rows(machine, behind):
            found.append({**_place(network), "call_ms": _call(behind), **row})
    return found


def expected_rows(
    rates: Sequence[float],
    machine: Hardware,
    aim: Target,
    networks: Sequence[Network],
    step_ms: float,
) -> list[dict[str, Any]]:
    """A row for every network and acceptance rate: the best fixed draft length.

    Tokens are accepted independently (arXiv 2211.17192, equation 1). step_ms: of the
    drafter, per token.
    """
    found = []
    for network in networks:
        behind = network.applied(aim)
        for rate in rates:
            speed, k = _best(behind.curve, rate, step_ms)
            found.append(
                {
                    **_place(network),
                    "call_ms": _call(behind),
                    "hardware": machine.name,
                    "target": aim.model,
                    "chain": f"acceptance {rate:g}",
                    "draft": k,
                    "speedup": round(speed * behind.curve.round(1), 4),
                    "mean_accept_len": round(speculative_tokens(rate, k), 4),
                    "tokens_per_second": round(1e3 * speed, 4),
                    "simulated": True,
                }
            )
    return found


def _best(curve: Curve, rate: float, step_ms: float) -> tuple[float, int]:
    """The highest number of tokens per millisecond, and its draft length."""
    return max(
        (speculative_tokens(rate, k) / (curve.round(k + 1) + k * step_ms), k)
        for k in range(WIDEST)
    )


def needed_acceptance(round_trip: float, token_ms: float) -> float | None:
    """The rate from which a drafter here beats a server that streams; None: no rate.

    round_trip: milliseconds; token_ms: of the server, which verifies a draft in the
    time of one token and can stream its own tokens without waiting for anyone. Drafts
    are free and have up to WIDEST - 1 tokens.

    >>> needed_acceptance(20.0, 20.0)
    0.5
    >>> needed_acceptance(1000.0, 5.0) is None
    True
    """
    tokens = (round_trip + token_ms) / token_ms
    if tokens > WIDEST:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        rate = (low + high) / 2
        low, high = (
            (rate, high)
            if speculative_tokens(rate, WIDEST - 1) < tokens
            else (low, rate)
        )
    return round(high, 4)


def remote_rows(latencies: Sequence[float]) -> list[dict[str, Any]]:
    """The acceptance that a drafter before a remote server needs, by latency."""
    return [
        {
            "round_trip_ms": 2 * ms,
            "needed": {
                f"{each:g}": needed_acceptance(2 * ms, each) for each in SERVER_MS
            },
            "simulated": True,
        }
        for ms in latencies
    ]


def networks(
    hosts: Sequence[int], latencies: Sequence[float], gbit: float
) -> list[Network]:
    """All networks of some sizes and latencies. Raises ConfigError."""
    if min(hosts) < 1 or min(latencies) < 0 or not gbit > 0:
        raise ConfigError(
            "a network has at least one host, a latency of 0 ms or more and a "
            "bandwidth above 0 Gbit/s"
        )
    return [Network(count, ms, gbit) for count in hosts for ms in latencies]


def _place(network: Network) -> dict[str, Any]:
    return {"hosts": network.hosts, "latency_ms": network.ms}


def _call(aim: Target) -> float:
    return round(aim.ms[1], 3)
