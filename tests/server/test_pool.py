"""Models on demand: none is unloaded in use, and no more are in memory than allowed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from edgecs.errors import Cancelled, ConfigError, EdgecsError, ModelError
from edgecs.runtime.served_models import ServedModel, ServedModels, UnknownModel
from edgecs.server.models.engine import Engine
from edgecs.server.models.host_thread import HostThread
from edgecs.server.models.keep_alive import seconds_of
from edgecs.server.models.pool import Load, ModelPool
from edgecs.server.models.residency import Limits

NAMES = ["a", "b", "c"]


class Clocked(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class FakeEngine:
    """An engine that knows who uses it."""

    is_lost = False

    def __init__(self, name: str) -> None:
        self.name, self.active, self.is_closed = name, 0, False
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class FakeHost:
    """A `HostThread` without a thread: loading and closing end when a test says so."""

    made: list[FakeHost] = []  # noqa: RUF012

    def __init__(self, opening: Any) -> None:
        (model,) = opening.args
        loop = asyncio.get_running_loop()
        self.engine, self.stopped = FakeEngine(model.name), False
        self.opened: asyncio.Future[FakeEngine] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.made.append(self)

    def load(self, error: BaseException | None = None) -> None:
        if self.opened.done():
            return
        if error is None:
            self.opened.set_result(self.engine)
        else:
            self.opened.set_exception(error)
            self.closed.set_result(None)

    def cancel(self) -> None:
        self.load(Cancelled("stopped"))

    def stop(self) -> None:
        assert not self.engine.active, "unloaded in use"
        self.engine.is_closed = self.stopped = True

    def close(self) -> None:
        if self.stopped and not self.closed.done():
            self.closed.set_result(None)

    def join(self) -> None:
        self.cancel()


async def at_once(call: Callable[..., Any], *values: Any) -> Any:
    """`asyncio.to_thread` without a thread."""
    await asyncio.sleep(0)
    return call(*values)


def models(*names: str) -> ServedModels:
    return ServedModels({name: ServedModel(name, name, Path(name)) for name in names})


class Asking:
    """A request that holds an engine until it is told to end."""

    def __init__(
        self, machine: Pools, way: Callable[[], Any], expected: str | None
    ) -> None:
        self.over, self.has = asyncio.Event(), False
        self._way, self._expected = way, expected
        self.task = machine.loop.create_task(self._run())

    async def _run(self) -> None:
        async with self._way() as found:
            engine = cast(FakeEngine, found)
            assert engine.name == self._expected
            assert not engine.is_closed
            engine.active += 1
            self.has = True
            try:
                await self.over.wait()
                assert not engine.is_closed
            finally:
                engine.active -= 1


class Pools(RuleBasedStateMachine):
    """Requests come, end, fail and leave in any order."""

    @initialize(most=st.integers(1, 3), room=st.booleans())
    def begin(self, most: int, room: bool) -> None:
        FakeHost.made = []
        self.patches = [
            mock.patch("edgecs.server.models.pool.HostThread", FakeHost),
            mock.patch("asyncio.to_thread", at_once),
        ]
        for patch in self.patches:
            patch.start()
        self.loop, self.most = Clocked(), most
        self.asked: list[Asking] = []
        self.others: list[asyncio.Task[object]] = []
        self.pool = ModelPool(
            models(*NAMES),
            mock.Mock(),
            limits=Limits(0 if room else most, 60.0),
            fits=lambda model: self.in_memory() < most,
        )

    def in_memory(self) -> int:
        return sum(not host.closed.done() for host in FakeHost.made)

    def settle(self) -> None:
        """Let everything go on that waits for nothing."""
        self.loop.run_until_complete(self._turns(40))

    @staticmethod
    async def _turns(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    def hosts(self, name: str) -> list[FakeHost]:
        return [host for host in FakeHost.made if host.engine.name == name]

    def start(self, work: Awaitable[object]) -> None:
        self.others.append(self.loop.create_task(self._quietly(work)))
        self.settle()

    @staticmethod
    async def _quietly(work: Awaitable[object]) -> object:
        return await work

    @rule(name=st.sampled_from(NAMES), keep=st.sampled_from([..., 0, 5, None]))
    def ask(self, name: str, keep: Any) -> None:
        way = lambda: self.pool.acquire(name, keep)  # noqa: E731
        self.asked.append(Asking(self, way, name))
        self.settle()

    @rule(name=st.sampled_from(NAMES))
    def peek(self, name: str) -> None:
        self.asked.append(Asking(self, lambda: self.pool.peek(name), name))
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.asked)).over.set()
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.asked)).task.cancel()
        self.settle()

    @rule(name=st.sampled_from(NAMES), fails=st.booleans())
    def loaded(self, name: str, fails: bool) -> None:
        for host in self.hosts(name):
            host.load(ModelError("broken") if fails else None)
        self.settle()

    @rule(name=st.sampled_from(NAMES))
    def closed(self, name: str) -> None:
        for host in self.hosts(name):
            host.close()
        self.settle()

    @rule(seconds=st.sampled_from([1, 10, 100]))
    def wait(self, seconds: int) -> None:
        self.loop.ahead += seconds
        self.settle()

    @rule(name=st.sampled_from(NAMES), cancel=st.booleans())
    def unload(self, name: str, cancel: bool) -> None:
        self.start(self.pool.unload(name, cancel=cancel))

    @invariant()
    def never_more_than_allowed(self) -> None:
        assert self.in_memory() <= self.most

    @invariant()
    def requests_have_what_they_use(self) -> None:
        for one in self.asked:
            if one.task.done() and not one.task.cancelled():
                error = one.task.exception()
                assert error is None or isinstance(error, EdgecsError), error

    @invariant()
    def residents_are_those_in_memory(self) -> None:
        states = {one.name: one for one in self.pool.residents()}
        stopped = [host.engine for host in FakeHost.made if host.stopped]
        assert not any(one.engine in stopped for one in states.values() if one.engine)
        assert len(states) == len(self.pool.residents())
        for name in NAMES:
            active = sum(host.engine.active for host in self.hosts(name))
            assert active <= (states[name].users if name in states else 0)

    def teardown(self) -> None:
        """Everything ends, and the models are freed after their time."""
        for _ in range(60):
            for one in self.asked:
                one.over.set()
            for host in FakeHost.made:
                host.load()
                host.close()
            self.settle()
        assert all(one.task.done() for one in self.asked), "a request waits for ever"
        # This also retrieves their errors. asyncio would log the others when a task is
        # freed, and Python 3.11 fails when that happens within an ast.parse.
        self.requests_have_what_they_use()
        assert all(task.done() for task in self.others)
        kept = [one for one in self.pool.residents() if one.expires_at is not None]
        self.loop.ahead += 100
        self.settle()
        for host in FakeHost.made:
            host.close()
        self.settle()
        left = {one.name for one in self.pool.residents()}
        assert not left & {one.name for one in kept}
        self.loop.close()
        for patch in self.patches:
            patch.stop()


Pools.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestPools = Pools.TestCase


@contextmanager
def plain(model: ServedModel, cancel: threading.Event) -> Iterator[Engine]:
    """Loads a fake, in a real thread."""
    yield cast(Engine, FakeEngine(model.name))


def pool_of(load: Any = plain, **more: Any) -> ModelPool:
    return ModelPool(models(*NAMES), load, **more)


def test_the_least_recently_used_idle_model_makes_room():
    async def go() -> None:
        pool = pool_of(limits=Limits(2))
        for name in ("a", "b", "a", "c"):
            async with pool.acquire(name):
                pass
        assert [one.name for one in pool.residents()] == ["a", "c"]
        pool.join()

    asyncio.run(go())


def test_a_model_in_use_is_waited_for_and_others_come_first():
    order: list[str] = []

    async def one(pool: ModelPool, name: str, label: str) -> None:
        async with pool.acquire(name):
            order.append(label)

    async def go() -> None:
        pool = pool_of()
        async with pool.acquire("a"):
            waiting = asyncio.create_task(one(pool, "b", "b"))
            while pool.residents()[0].state != "unloading":
                await asyncio.sleep(0)
            late = asyncio.create_task(one(pool, "a", "a again"))
            await asyncio.sleep(0.01)
            assert order == []
        await asyncio.gather(waiting, late)
        pool.join()

    asyncio.run(go())
    assert order == ["b", "a again"]


def test_a_failed_load_is_told_to_all_that_waited_and_may_be_tried_again():
    loads: list[str] = []
    go_on = threading.Event()

    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Engine]:
        loads.append(model.name)
        go_on.wait()
        if len(loads) == 1:
            raise ModelError("the file is broken: fetch it again")
        yield cast(Engine, FakeEngine(model.name))

    async def one(pool: ModelPool) -> str:
        try:
            async with pool.acquire("a"):
                return "answered"
        except ModelError as error:
            return str(error)

    async def go() -> list[str]:
        pool = pool_of(load)
        asked = [asyncio.create_task(one(pool)) for _ in range(3)]
        while not pool.residents() or pool.residents()[0].users < 3:
            await asyncio.sleep(0)
        go_on.set()
        told = await asyncio.gather(*asked)
        told.append(await one(pool))
        pool.join()
        return told

    assert asyncio.run(go()) == ["the file is broken: fetch it again"] * 3 + [
        "answered"
    ]
    assert loads == ["a", "a"]


def until_cancelled() -> tuple[threading.Event, Load]:
    """A load that lasts until it is cancelled, and an event: it has begun."""
    began = threading.Event()

    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Engine]:
        began.set()
        cancel.wait()
        raise Cancelled("stopped")
        yield

    return began, load


def test_the_end_of_the_server_stops_a_load():
    began, load = until_cancelled()

    async def go() -> None:
        pool = pool_of(load)

        async def ask() -> None:
            async with pool.acquire("a"):
                raise AssertionError

        asked = asyncio.create_task(ask())
        await asyncio.to_thread(began.wait)
        pool.stop_loading()
        with pytest.raises(Cancelled):
            await asked
        with pytest.raises(ModelError, match="shutting down"):
            await ask()
        pool.join()

    asyncio.run(go())


def test_the_end_of_the_event_loop_during_a_load_is_no_incident(
    caplog: pytest.LogCaptureFixture,
):
    began, load = until_cancelled()

    async def go() -> ModelPool:
        pool = pool_of(load)
        asked = asyncio.ensure_future(pool.acquire("a").__aenter__())
        await asyncio.to_thread(began.wait)
        pool.stop_loading()
        assert not asked.done()
        return pool  # before the model's thread has told of its end

    asyncio.run(go()).join()
    assert not caplog.records


def test_a_load_that_every_request_has_left_does_not_begin():
    async def go() -> None:
        pool = pool_of()
        async with pool.acquire("a"):
            asked = asyncio.ensure_future(pool.acquire("b").__aenter__())
            while len(pool.residents()) < 2:
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait({asked})
        while len(pool.residents()) > 1:
            await asyncio.sleep(0)
        assert [one.name for one in pool.residents()] != ["b"]
        pool.join()

    asyncio.run(go())


def test_a_model_is_freed_in_the_thread_that_loaded_it():
    threads: list[int] = []

    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Engine]:
        threads.append(threading.get_ident())
        yield cast(Engine, FakeEngine(model.name))
        threads.append(threading.get_ident())

    async def go() -> None:
        pool = pool_of(load)
        async with pool.acquire("a", 0):
            assert pool.residents()[0].state == "loaded"
        while pool.residents():
            await asyncio.sleep(0)

    asyncio.run(go())
    assert len(threads) == 2
    assert len({*threads}) == 1
    assert threads[0] != threading.get_ident()


def test_a_model_whose_worker_was_lost_is_loaded_again():
    made = list[FakeEngine]()

    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Engine]:
        made.append(FakeEngine(model.name))
        yield cast(Engine, made[-1])

    async def go() -> None:
        pool = pool_of(load)
        async with pool.acquire("a") as first, pool.acquire("a") as same:
            assert first is same
            made[0].is_lost = True
        async with pool.acquire("a") as second:
            assert second is made[1]
        async with pool.acquire("a") as third:
            assert third is second
        pool.join()

    asyncio.run(go())


def test_when_a_model_is_unloaded_is_known():
    async def go() -> None:
        pool = pool_of(limits=Limits(1, 300.0))
        before = time.time()
        async with pool.acquire("a", 60.0):
            pass
        (one,) = pool.residents()
        assert one.expires_at is not None
        assert before + 60 <= one.expires_at <= time.time() + 60
        async with pool.acquire("a"):  # the earlier wish stays
            pass
        assert pool.residents()[0].expires_at <= time.time() + 60  # type: ignore[operator]
        async with pool.acquire("a", None):
            pass
        assert pool.residents()[0].expires_at is None
        assert await pool.unload("a")
        assert not await pool.unload("a")
        pool.join()

    asyncio.run(go())


def test_all_names_of_a_model_are_one_model():
    async def go() -> None:
        pool = pool_of(limits=Limits(2))
        async with pool.acquire("a:latest") as one, pool.acquire("a") as same:
            assert one is same
        async with pool.peek("a:latest") as same:
            assert one is same
        assert [place.name for place in pool.residents()] == ["a"]
        assert await pool.unload("a:latest")
        assert pool.residents() == []
        pool.join()

    asyncio.run(go())


def test_answers_that_begin_after_a_cancellation_are_cancelled_too():
    async def go() -> None:
        pool = pool_of()
        async with pool.acquire("a") as found:
            engine = cast(FakeEngine, found)
            unloading = asyncio.create_task(pool.unload("a", cancel=True))
            while engine.cancels < 3:  # an answer may begin between any two
                loop.ahead += 1
                await asyncio.sleep(0)
        assert await unloading
        pool.join()

    loop = Clocked()
    loop.run_until_complete(go())
    loop.close()


def test_the_time_of_a_model_in_use_does_not_run():
    async def go() -> None:
        pool = pool_of(limits=Limits(1, 300.0))
        async with pool.acquire("a"):
            pass
        async with pool.acquire("a"):
            loop.ahead += 1000
            for _ in range(3):
                await asyncio.sleep(0)
            assert pool.residents()[0].state == "loaded"
        pool.join()

    loop = Clocked()
    loop.run_until_complete(go())
    loop.close()


def test_requests_without_a_model_get_the_default_or_the_names():
    async def name(pool: ModelPool, asked: str | None) -> str:
        async with pool.acquire(asked) as engine:
            return engine.name

    async def go() -> None:
        pool = pool_of(default="b")
        assert await name(pool, None) == "b"
        assert await name(pool, "c") == "c"
        with pytest.raises(UnknownModel, match="did you mean 'c'.*models are a, b, c"):
            await name(pool, "c ")
        pool.join()
        only = pool_of(default="b", only_default=True)
        assert await name(only, "anything") == "b"
        only.join()
        with pytest.raises(ConfigError, match="names no model: .* a, b, c"):
            await name(pool_of(), None)

    asyncio.run(go())


def test_a_thread_that_fails_to_free_its_model_is_still_gone(caplog: Any):
    @contextmanager
    def opening(cancel: threading.Event) -> Iterator[Engine]:
        yield cast(Engine, FakeEngine("a"))
        raise ZeroDivisionError

    async def go() -> None:
        host = HostThread(opening)
        await host.opened
        host.stop()
        await host.closed

    asyncio.run(go())
    assert "not freed cleanly" in caplog.text


class TestDurations:
    """Ollama's keep_alive."""

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("5m", 300),
            ("1h30m", 5400),
            ("90", 90),
            (0, 0),
            ("0", 0),
            ("1.5s", 1.5),
            ("250ms", 0.25),
            (-1, None),
            ("-1", None),
            ("-5m", None),
            ("999999999h", None),
        ],
    )
    def test_durations(self, text: str | float, seconds: float | None):
        assert seconds_of(text) == seconds

    @pytest.mark.parametrize(
        "text", ["", "m", "5 m", "5x", "1e9", "nan", "inf", float("inf"), "5m" * 99]
    )
    def test_other_texts_are_refused(self, text: str | float):
        with pytest.raises(ConfigError, match="is not a duration: give seconds"):
            seconds_of(text)


@pytest.mark.parametrize("cancel", [False, True])
def test_a_model_that_is_looked_at_is_not_freed(cancel: bool):
    async def go() -> None:
        pool = pool_of()
        async with pool.acquire("a"):
            pass
        async with pool.peek("a") as found:
            engine = cast(FakeEngine, found)
            unloading = asyncio.create_task(pool.unload("a", cancel=cancel))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not unloading.done()
            assert pool.residents()[0].engine is engine
        assert await unloading
        pool.join()

    asyncio.run(asyncio.wait_for(go(), 60))
