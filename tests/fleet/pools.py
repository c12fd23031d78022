"""Pools of workers without processes: they compute what the test tells them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgecs.fleet.spread import Event, Finished, Item, Lost, Worker

Choose = Callable[[int], int]
"""One of so many possibilities."""


class FakePool:
    """Workers that finish in an order that `choose` decides, and may be lost.

    compute: the result of a payload, by a kind. losses: how many workers may be lost;
    each is replaced. An item is lost twice at most, as the third loss is an error.
    """

    def __init__(
        self,
        kinds: list[str],
        compute: Callable[[Any, str], Any],
        choose: Choose = lambda count: 0,
        losses: int = 0,
    ) -> None:
        self._compute, self._choose, self._losses = compute, choose, losses
        self._free: dict[str, str] = {}
        self._busy: dict[str, tuple[str, Item]] = {}
        self._lost: dict[str, int] = {}
        self.given: list[tuple[str, str]] = []  # kind and key
        self._made = 0
        for kind in kinds:
            self._join(kind)

    def _join(self, kind: str) -> None:
        self._made += 1
        self._free[f"worker {self._made}"] = kind

    def idle(self) -> list[Worker]:
        return [Worker(name, kind) for name, kind in self._free.items()]

    def starting(self) -> int:
        return 0

    def give(self, worker: str, item: Item) -> None:
        kind = self._free.pop(worker)
        self.given.append((kind, item.key))
        self._busy[worker] = kind, item

    def event(self) -> Event | None:
        if not self._busy:
            return None
        name = sorted(self._busy)[self._choose(len(self._busy))]
        kind, item = self._busy.pop(name)
        often = self._lost.get(item.key, 0)
        if self._losses and often < 2 and self._choose(2):
            self._losses -= 1
            self._lost[item.key] = often + 1
            self._join(kind)
            return Lost(name, "killed")
        self._free[name] = kind
        return Finished(name, self._compute(item.payload, kind))
