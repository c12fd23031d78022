"""Layers divided among hosts: what a network adds, and what drafts make of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.costs.cost_model import WIDEST
from edgecs.theory import speculative_tokens
from edgecs_bench.hardware import catalogue
from edgecs_bench.hardware.machines import Size
from edgecs_bench.simulation.network import (
    Network,
    expected_rows,
    needed_acceptance,
    remote_rows,
)
from tests.commands import one_line
from tests.conftest import Outcome

Simulate = Callable[..., Outcome]
MACHINE = catalogue.find("laptop-gpu")
(AIM,) = MACHINE.aims([Size.parse("7B-q4")])


@given(
    st.integers(1, 100),
    st.floats(0, 100),
    st.floats(0.01, 100),
    st.integers(1, WIDEST),
)
def test_a_call_visits_every_host_and_comes_back(
    hosts: int, ms: float, gbit: float, width: int
):
    network = Network(hosts, ms, gbit)
    behind = network.applied(AIM)
    extra = behind.ms[width] - AIM.ms[width]
    assert extra == pytest.approx(network.extra(width, 7e9), abs=1e-6)
    assert extra >= (hosts + 1) * ms - 1e-6
    one = Network(1, ms, gbit).extra(width, 7e9)
    assert network.extra(width, 7e9) == pytest.approx((hosts + 1) / 2 * one)
    assert behind.curve.times[width - 1] == pytest.approx(behind.ms[width])


@given(st.floats(0, 0.95), st.integers(1, 50))
def test_drafts_are_worth_more_the_slower_the_network(rate: float, hosts: int):
    """And they get longer, where the bandwidth is no limit."""
    networks = [Network(hosts, ms, 1e6) for ms in (0.0, 1.0, 10.0, 100.0)]
    rows = expected_rows([rate], MACHINE, AIM, networks, 0.5)
    speedups = [row["speedup"] for row in rows]
    assert speedups == sorted(speedups)
    assert [row["draft"] for row in rows] == sorted(row["draft"] for row in rows)
    assert all(1 <= s <= speculative_tokens(rate, WIDEST - 1) + 1e-3 for s in speedups)


@given(st.floats(0.1, 200), st.floats(1, 100))
def test_the_needed_acceptance_breaks_even(round_trip: float, token: float):
    rate = needed_acceptance(round_trip, token)
    tokens = (round_trip + token) / token
    if rate is None:
        assert tokens > WIDEST
    else:
        assert speculative_tokens(rate, WIDEST - 1) == pytest.approx(tokens, rel=0.02)


def test_a_slower_server_needs_less():
    for row in remote_rows([1.0, 10.0]):
        rates = [rate for rate in row["needed"].values() if rate is not None]
        assert rates == sorted(rates, reverse=True)


def test_answers_are_replayed_over_a_network(simulate: Simulate):
    fixed = ("--hardware", "laptop-gpu", "--limit", 2, "--json")
    networks = ("--latency", "0,20", "--hosts", "1,9", "--gbit", 1e6)
    outcome = simulate(*fixed, *networks)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["simulated"] is True
    rows = found["results"]
    assert len(rows) == 2 * 2 * 3
    assert all(row["simulated"] for row in rows)
    drafted = [r for r in rows if r["chain"] == "planner:drafter+mag"]
    by_place = {(r["hosts"], r["latency_ms"]): r for r in drafted}
    assert by_place[9, 20.0]["call_ms"] > by_place[1, 20.0]["call_ms"]
    assert by_place[9, 20.0]["speedup"] > by_place[9, 0.0]["speedup"]
    plain = simulate(*fixed, "--chain", "planner:drafter+mag")
    (near,) = json.loads(plain.out)["results"]
    assert by_place[1, 0.0]["speedup"] == pytest.approx(near["speedup"], rel=0.01)


def test_the_usual_networks_need_no_value(simulate: Simulate):
    outcome = simulate("--latency", "--acceptance", "0.8", "--hardware", "m-series")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("simulated, not measured")
    assert sum("acceptance 0.8" in line for line in lines) == 6 * 6
    assert "hosts are equal" in lines[-1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--latency", "x"), "--latency must be a finite number"),
        (("--latency", "1,,2"), "--latency must be a finite number"),
        (("--latency", "nan"), "--latency must be a finite number"),
        (("--latency", "1", "--hosts", "0"), "--hosts must be a whole number"),
        (("--latency", "1", "--gbit", "0"), "--gbit must be a finite number"),
        (("--acceptance", "0.5"), "--acceptance is for --latency"),
        (("--latency", "1", "--acceptance", "2"), "--acceptance must be"),
        (("--latency", "1", "--against", "x.json"), "mutually exclusive"),
    ],
)
def test_wrong_networks_are_refused(
    simulate: Simulate, options: tuple[object, ...], says: str
):
    one_line(simulate(*options), 2, says)
