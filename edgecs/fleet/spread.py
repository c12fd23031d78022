"""Hands items of work to workers, and gives the result of every item exactly once.

A worker has one item at a time. The item of a lost worker goes to another one. Nothing
here knows where workers run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from edgecs import errors
from edgecs.errors import Cancelled, EdgecsError, ModelError

_TRIES = 3  # workers that one item may lose


class Item(NamedTuple):
    """A piece of work. key: names its content, so that no two results are of one."""

    key: str
    payload: Any


class Worker(NamedTuple):
    """A worker that waits for an item. kind: of its machine."""

    name: str
    kind: str = ""


class Finished(NamedTuple):
    """A worker has the result of its item."""

    worker: str
    value: Any


class Lost(NamedTuple):
    """The process or the machine of a worker is gone."""

    worker: str
    why: str


class Refused(NamedTuple):
    """A worker cannot take any item. error: name of the exception in `errors`."""

    worker: str
    why: str
    error: str = "ModelError"


class Failed(NamedTuple):
    """A worker could not compute its item, and no other one could."""

    worker: str
    why: str
    error: str = "EdgecsError"


Event = Finished | Lost | Refused | Failed


class Pool(Protocol):
    """The workers."""

    def idle(self) -> list[Worker]:
        """Those that wait for an item. Missing ones are started meanwhile."""

    def starting(self) -> int:
        """The number of workers that have not started yet and may still do so."""

    def give(self, worker: str, item: Item) -> None:
        """Gives an idle worker an item."""

    def event(self) -> Event | None:
        """What happened next; None: nothing for a short time."""


Take = Callable[[str], Item | None]
"""The next item for a worker of a kind; None: there is none for now."""


@dataclass
class _Losses:
    """How often items and workers were lost."""

    tell: Callable[[str], None]
    items: Counter[str]
    refusal: Refused | None = None

    def lost(self, event: Lost, item: Item | None) -> None:
        """Counts a loss. Raises EdgecsError if the item has lost too many workers."""
        if item is None:
            self.tell(f"{event.worker} is lost ({event.why})")
            return
        self.items[item.key] += 1
        if self.items[item.key] >= _TRIES:
            raise EdgecsError(
                f"{item.key} ended {_TRIES} workers, the last one was {event.worker} "
                f"({event.why}): look at the memory and the log of that machine"
            )
        self.tell(f"{event.worker} is lost ({event.why}): {item.key} is done again")

    def refused(self, event: Refused) -> None:
        """Reports a worker that takes no item."""
        self.refusal = event
        self.tell(f"{event.worker} is not used: {event.why}")

    def none_left(self) -> EdgecsError:
        """The error if no worker is left."""
        if self.refusal:
            return _error(self.refusal.error, self.refusal.why)
        return ModelError(
            "no worker is left that can go on: finished work is kept, start workers "
            "and run the same command again"
        )


def results(
    pool: Pool,
    take: Take,
    cancel: threading.Event,
    tell: Callable[[str], None] = lambda text: None,
    *,
    every: bool = False,
) -> Iterator[tuple[Item, Any]]:
    """Yields each item of `take` with its result, as they come.

    It ends when no item is left and no worker has one. every: but not before all
    workers have started, as they may be of other kinds. tell: gets a sentence for each
    lost or unusable worker. Raises Cancelled, what a worker raised for an item, and an
    EdgecsError if all workers are gone or an item ended three of them.
    """
    losses = _Losses(tell, Counter())
    under_way: dict[str, Item] = {}
    again: list[tuple[str, Item]] = []  # kind and item of lost workers
    kinds: dict[str, str] = {}
    finished: set[str] = set()
    while True:
        if cancel.is_set():
            raise Cancelled("stopped while workers were computing")
        idle = pool.idle()
        for worker in idle:
            kinds[worker.name] = worker.kind
            item = _first(again, worker.kind) or take(worker.kind)
            if item is not None:
                under_way[worker.name] = item
                pool.give(worker.name, item)
        if not under_way:
            starting = pool.starting()
            if idle and not again and not (every and starting):
                return
            if not starting:
                raise losses.none_left()
        match pool.event():
            case Finished(name, value):
                done = under_way.pop(name, None)
                if done is not None and done.key not in finished:
                    finished.add(done.key)
                    yield done, value
            case Lost(name, _) as event:
                gone = under_way.pop(name, None)
                losses.lost(event, gone)
                if gone is not None:
                    again.append((kinds[name], gone))
            case Refused(name, _) as event:
                losses.refused(event)
                if gone := under_way.pop(name, None):
                    again.append((kinds[name], gone))
            case Failed(_, why, error):
                raise _error(error, why)


def _first(again: list[tuple[str, Item]], kind: str) -> Item | None:
    """Removes and returns the first lost item of a kind."""
    for i, (whose, item) in enumerate(again):
        if whose == kind:
            del again[i]
            return item
    return None


def _error(name: str, why: str) -> EdgecsError:
    """An exception of this library by its name, which a worker sent."""
    kind = getattr(errors, name, EdgecsError)
    known = isinstance(kind, type) and issubclass(kind, EdgecsError)
    try:
        return kind(why) if known else EdgecsError(why)
    except TypeError:  # it takes other arguments
        return EdgecsError(why)
