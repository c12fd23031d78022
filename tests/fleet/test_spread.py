"""Items of work: each has one result, whatever happens to the workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import Cancelled, ConfigError, DistillError, EdgecsError, ModelError
from edgecs.fleet.spread import (
    Event,
    Failed,
    Finished,
    Item,
    Lost,
    Refused,
    Take,
    Worker,
    results,
)
from tests.fleet.pools import FakePool


def items(count: int) -> Take:
    every = iter(Item(f"item {i}", i) for i in range(count))
    return lambda kind: next(every, None)


class Script:
    """A pool with one worker, to which one thing after the other happens."""

    def __init__(
        self, *events: Event, workers: int = 1, starts: Sequence[int] = ()
    ) -> None:
        self._events: Iterator[Event] = iter(events)
        self._starts = [*starts]
        self._names = [f"w{i}" for i in range(workers)]
        self._busy: set[str] = set()

    def idle(self) -> list[Worker]:
        return [Worker(name) for name in self._names if name not in self._busy]

    def starting(self) -> int:
        return self._starts.pop(0) if self._starts else 0

    def give(self, worker: str, item: Item) -> None:
        self._busy.add(worker)

    def event(self) -> Event | None:
        event = next(self._events, None)
        if event is None:
            self._names.append("late")
            return None
        self._busy.discard(event.worker)
        if isinstance(event, Refused):
            self._names.remove(event.worker)
        return event


def run(pool: Script, count: int = 3, told: list[str] | None = None) -> list[object]:
    tell = (told if told is not None else []).append
    found = results(pool, items(count), threading.Event(), tell)
    return [value for _, value in found]


@given(st.integers(1, 5), st.integers(0, 12), st.integers(0, 9), st.data())
def test_every_item_has_one_result_whoever_is_lost(
    workers: int, count: int, losses: int, data: st.DataObject
):
    pool = FakePool(
        [""] * workers,
        lambda payload, kind: payload * payload,
        lambda n: data.draw(st.integers(0, n - 1)),
        losses,
    )
    found = [*results(pool, items(count), threading.Event())]
    assert sorted(item.payload for item, _ in found) == [*range(count)]
    assert all(value == item.payload**2 for item, value in found)
    assert len(pool.given) >= count


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), st.data())
def test_an_item_stays_with_its_kind_of_machine(kinds: list[str], data: st.DataObject):
    left = {kind: [f"{kind}{i}" for i in range(3)] for kind in kinds}

    def take(kind: str) -> Item | None:
        return Item(left[kind][0], left[kind].pop(0)) if left[kind] else None

    pool = FakePool(
        kinds,
        lambda payload, kind: kind,
        lambda n: data.draw(st.integers(0, n - 1)),
        losses=4,
    )
    found = [*results(pool, take, threading.Event())]
    assert len(found) == 3 * len({*kinds})
    assert all(item.payload.startswith(kind) for item, kind in found)


def test_a_result_that_comes_too_late_is_dropped():
    late = Lost("w0", "no answer"), Finished("w9", 7), Finished("w0", 8)
    assert run(Script(*late), 1) == [8]


def test_an_item_that_ends_three_workers_is_named():
    told: list[str] = []
    with pytest.raises(EdgecsError, match=r"item 0 ended 3 workers.*\(killed\)"):
        run(Script(*[Lost("w0", "killed")] * 3), 1, told)
    assert told == ["w0 is lost (killed): item 0 is done again"] * 2


def test_a_worker_that_refuses_is_told_and_the_others_go_on():
    told: list[str] = []
    refused = Refused("w0", "another file")
    assert run(Script(refused, Finished("w1", 1), workers=2), 1, told) == [1]
    assert told == ["w0 is not used: another file"]


def test_where_all_workers_refuse_the_reason_is_the_error():
    with pytest.raises(ConfigError, match="^another version$"):
        run(Script(Refused("w0", "another version", "ConfigError")))


@pytest.mark.parametrize("every", [False, True])
def test_workers_that_start_late_are_waited_for_if_they_are_needed(every: bool):
    pool = Script(Finished("w0", 5), starts=[1, 1])
    taken: list[str] = []
    item = iter([Item("one", 1)])

    def take(kind: str) -> Item | None:
        taken.append(kind)
        return next(item, None)

    found = [*results(pool, take, threading.Event(), every=every)]
    assert [value for _, value in found] == [5]
    assert (len(taken) > 2) == every


def test_where_no_worker_is_left_what_to_do_is_said():
    with pytest.raises(ModelError, match="no worker is left.*run the same command"):
        run(Script(workers=0))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("DistillError", DistillError),
        ("NoNumbers", EdgecsError),  # it takes a number, not a sentence
        ("os", EdgecsError),
        ("no such thing", EdgecsError),
    ],
)
def test_what_fails_for_an_item_fails_here(error: str, kind: type[EdgecsError]):
    with pytest.raises(kind, match=r"\bbroken\b"):
        run(Script(Failed("w0", "broken", error)))


def test_work_stops_where_it_is_cancelled():
    cancel = threading.Event()
    pool = FakePool([""], lambda payload, kind: payload)
    found = results(pool, items(5), cancel)
    next(found)
    cancel.set()
    with pytest.raises(Cancelled):
        next(found)
