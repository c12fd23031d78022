"""The workers of a pool without Ray: a fake of what the pool uses of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from edgecs.errors import ConfigError, ModelError
from edgecs.fleet.host import Host, Prepared
from edgecs.fleet.ray_pool import RayPool
from edgecs.fleet.spread import Item, results


class RayError(Exception):
    """As `ray.exceptions.RayError`."""


class RayActorError(RayError):
    """As Ray's."""


class FakeRay:
    """A cluster whose calls end when they are waited for, in their order.

    cpus: of each machine. dies: whether a machine is gone before a payload is computed.
    """

    def __init__(
        self,
        cpus: dict[str, int],
        dies: Callable[[str, Any], bool] = lambda node, payload: False,
    ) -> None:
        self.cpus, self.dies = dict(cpus), dies
        self.dead: set[str] = set()
        self.killed = 0
        self.started: list[tuple[str, int]] = []
        self.exceptions = SimpleNamespace(
            RayActorError=RayActorError,
            RayError=RayError,
            OutOfMemoryError=RayActorError,
        )
        affinity = lambda node_id, soft: node_id  # noqa: E731
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=affinity)
        self.util = SimpleNamespace(scheduling_strategies=strategies)

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": n, "Alive": n not in self.dead, "Resources": {"CPU": count}}
            for n, count in self.cpus.items()
        ]

    def remote(self, kind: type[Host]) -> Any:
        def options(num_cpus: int, max_restarts: int, scheduling_strategy: str) -> Any:
            self.started.append((scheduling_strategy, num_cpus))
            return SimpleNamespace(
                remote=lambda *given: Actor(self, scheduling_strategy, kind(*given))
            )

        return SimpleNamespace(options=options)

    def wait(self, refs: list[Any], **limits: Any) -> tuple[list[Any], list[Any]]:
        return refs[:1], refs[1:]

    def get(self, ref: Callable[[], Any]) -> Any:
        return ref()

    def kill(self, actor: Actor) -> None:
        self.killed += 1


class Actor:
    """A worker on a machine."""

    def __init__(self, ray: FakeRay, node: str, host: Host) -> None:
        self._ray, self._node, self._host = ray, node, host

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> Callable[[], Any]:
            def ends() -> Any:
                if given and self._ray.dies(self._node, given[0]):
                    self._ray.dead.add(self._node)
                if self._node in self._ray.dead:
                    raise RayActorError("The actor died. More text follows")
                return getattr(self._host, name)(*given)

            return ends

        return SimpleNamespace(remote=call)


class Squares:
    """Workers that square numbers, or refuse to start."""

    def __init__(self, why: str = "") -> None:
        self._why = why

    @contextmanager
    def opened(self) -> Iterator[Prepared]:
        if self._why:
            raise ModelError(self._why)
        yield Prepared(lambda number: number * number)


def squares(pool: RayPool, told: list[str]) -> list[int]:
    items = iter(Item(f"item {i}", i) for i in range(9))
    take = lambda kind: next(items, None)  # noqa: E731
    return sorted(v for _, v in results(pool, take, threading.Event(), told.append))


@pytest.mark.parametrize(
    ("threads", "started"),
    [(0, [("a", 5), ("b", 2)]), (2, [("a", 2), ("a", 2), ("b", 2)])],
)
def test_a_machine_has_as_many_workers_as_fit(
    threads: int, started: list[tuple[str, int]]
):
    ray, told = FakeRay({"a": 5, "b": 2}), list[str]()
    pool = RayPool(ray, Squares(), threads, told.append)
    assert squares(pool, told) == [i * i for i in range(9)]
    assert ray.started == started
    assert sum("is ready on" in line for line in told) == len(started)
    pool.close()
    assert ray.killed == len(started)


def test_a_machine_that_is_gone_costs_an_item_one_try():
    """All its workers are idle or busy when it goes; none gets another item."""
    ray = FakeRay({"a": 4, "b": 1}, lambda node, payload: (node, payload) == ("a", 2))
    told: list[str] = []
    pool = RayPool(ray, Squares(), 1, told.append)
    assert squares(pool, told) == [i * i for i in range(9)]
    again = [line for line in told if "is done again" in line]
    assert 1 <= len(again) <= 4
    assert len({line.partition(": ")[2] for line in again}) == len(again)
    assert [node for node, _ in ray.started] == ["a"] * 4 + ["b"]


def test_workers_that_refuse_are_the_error_if_there_are_no_others():
    told: list[str] = []
    pool = RayPool(FakeRay({"a": 2}), Squares("another file"), 1, told.append)
    with pytest.raises(ModelError, match="^another file$"):
        squares(pool, told)


def test_machines_without_enough_cpus_are_said():
    pool = RayPool(FakeRay({"a": 2}), Squares(), 3, lambda text: None)
    with pytest.raises(ConfigError, match="no machine of the cluster has 3 CPUs"):
        pool.idle()


def test_another_version_of_the_library_is_refused():
    problem = Host(Squares(), "0.0.0").start()
    assert "install the same version there" in str(problem)
