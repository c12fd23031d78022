"""The models in memory: loaded on demand, kept for a while, unloaded when idle.

All methods belong to one event loop, except `join`. Models are loaded and freed in
threads of their own, one after the other in the order of the requests. A model is freed
when no request uses it and its time has passed, or to make room for another one: the
least recently used idle one first. If all are in use, the least recently used one takes
no further requests until it was freed, so that a busy model cannot keep others out.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from types import EllipsisType
from typing import Any

from edgecs.errors import Cancelled, ConfigError, EdgecsError, ModelError
from edgecs.runtime.served_models import ServedModel, ServedModels
from edgecs.server.http.incidents import incident
from edgecs.server.models.host_thread import HostThread
from edgecs.server.models.residency import Limits, Resident, State
from edgecs.server.models.served import Served

_AGAIN = 0.1  # chosen: seconds between attempts to cancel answers

Load = Callable[[ServedModel, threading.Event], AbstractContextManager[Served]]
"""Loads a model; setting the event stops that with Cancelled, and later answers."""


class _Place:
    """A model in memory, or on its way there or out of it."""

    def __init__(self, model: ServedModel, keep_alive: float | None) -> None:
        self.model, self.keep_alive = model, keep_alive
        self.state: State = "loading"
        self.users, self.last_used = 0, 0.0
        self.unwanted = False  # it is to be unloaded before it was loaded
        self.host: HostThread | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.expires_at: float | None = None  # `time.time`, while `timer` runs
        self.opened: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        self.idle, self.gone = asyncio.Event(), asyncio.Event()

    def enter(self) -> None:
        self.users += 1
        self.idle.clear()

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.expires_at = None, None

    def snapshot(self) -> Resident:
        expires = self.expires_at
        if expires is None and self.keep_alive is not None:
            expires = time.time() + self.keep_alive
        # Another thread frees an engine that is unloaded and has no users.
        is_there = self.state == "loaded" or (self.state == "unloading" and self.users)
        engine = self.opened.result() if is_there else None
        return Resident(self.model, self.state, self.users, expires, engine)


class ModelPool:
    """Loads models by name, and frees them.

    default: the model of requests that name none. only_default: whether the names of
    requests are ignored. fits: whether a model fits beside those in memory, asked where
    `limits` has no number; called in a thread.
    """

    def __init__(
        self,
        models: ServedModels,
        load: Load,
        *,
        limits: Limits | None = None,
        default: str | None = None,
        only_default: bool = False,
        fits: Callable[[ServedModel], bool] = lambda model: True,
    ) -> None:
        self.models, self.limits = models, limits or Limits()
        self.default, self.only_default = default, only_default
        self._load, self._fits = load, fits
        self._places: dict[str, _Place] = {}
        self._hosts: set[HostThread] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._closing = False

    @asynccontextmanager
    async def acquire(
        self, name: str | None = None, keep_alive: float | EllipsisType | None = ...
    ) -> AsyncIterator[Served]:
        """The engine of a model, loaded first if necessary; it stays meanwhile.

        keep_alive: how long it stays afterwards, in seconds, until another request says
        differently; 0: not at all, None: for ever, ...: as before. Raises UnknownModel,
        the errors of loading, and ModelError while the server shuts down.
        """
        place = await self._enter(await self._chosen(name))
        try:
            place.stop_timer()
            if not isinstance(keep_alive, EllipsisType):
                place.keep_alive = keep_alive
            yield await asyncio.shield(place.opened)
        finally:
            self._leave(place)

    @asynccontextmanager
    async def peek(self, name: str | None = None) -> AsyncIterator[Served]:
        """The engine of a model that is loaded; this does not prolong its stay.

        Raises UnknownModel, and ConfigError if it is not loaded.
        """
        place = await self._found(await self._chosen(name))
        if place is None or place.state != "loaded":
            chosen = await self._chosen(name)
            raise ConfigError(
                f"the model {chosen!r:.80} is not loaded: POST /models/load loads it"
            )
        place.enter()
        try:
            yield place.opened.result()
        finally:
            self._leave(place)

    def residents(self) -> list[Resident]:
        """The models in memory, in the order of their loading."""
        return [place.snapshot() for place in [*self._places.values()]]

    async def unload(self, name: str, *, cancel: bool = False) -> bool:
        """Unload a model, and wait for that; False: it was not in memory.

        Current answers end first; cancel: within a round. Raises UnknownModel.
        """
        place = await self._found(name)
        if place is None:
            return False
        if place.state == "loading":
            place.unwanted = True
            if place.host:
                place.host.cancel()
        self._retire(place)
        if cancel and place.state == "unloading":
            await self._cancel(place)
        await place.gone.wait()
        return True

    async def _cancel(self, place: _Place) -> None:
        """End the answers of a model, also those that are about to begin."""
        engine = place.opened.result()
        while place.users:
            engine.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await place.idle.wait()

    def stop_loading(self) -> None:
        """Begin the end of the server: no model is loaded any more."""
        self._closing = True
        self.models.stop()
        for place in self._places.values():
            if place.state == "loading":
                place.unwanted = True
                if place.host:
                    place.host.cancel()

    def join(self) -> None:
        """Free all models; for the end of the event loop, and from any thread."""
        self._closing = True
        for host in [*self._hosts]:
            host.join()

    async def _chosen(self, name: str | None) -> str:
        if self.only_default:
            name = self.default
        name = name or self.default
        if name is None:
            models = await asyncio.to_thread(self.models.all)
            names = ", ".join(model.name for model in models)
            raise ConfigError(
                f"the request names no model: give `model`, one of {names or 'none'}"
            )
        return name

    async def _found(self, name: str) -> _Place | None:
        """The place of a model by any of its names. Raises UnknownModel."""
        if name not in self._places:
            name = (await asyncio.to_thread(self.models.find, name)).name
        return self._places.get(name)

    async def _enter(self, name: str) -> _Place:
        """The place of a model, with one more user; it may still be loading."""
        while True:
            if self._closing:
                raise ModelError("the server is shutting down: use another one")
            place = self._places.get(name)
            if place is None:
                model = await asyncio.to_thread(self.models.find, name)
                name = model.name
                if name in self._places or self._closing:
                    continue  # it has several names, or another request was faster
                place = self._places[name] = _Place(model, self.limits.keep_alive)
                self._start(self._bring(place))
            elif place.state == "unloading" or place.unwanted:
                await place.gone.wait()
                continue
            place.enter()
            return place

    def _leave(self, place: _Place) -> None:
        place.users -= 1
        if place.users:
            return
        place.idle.set()
        if place.state == "loaded" and place.opened.result().is_lost:
            self._retire(place)  # the next request loads it again
        elif place.state == "loaded" and place.timer is None:
            self._rest(place)

    def _rest(self, place: _Place) -> None:
        """Begin the time after which an idle model is unloaded."""
        loop = asyncio.get_running_loop()
        place.last_used = loop.time()
        if self._closing or place.keep_alive is None:
            return
        place.expires_at = time.time() + place.keep_alive
        place.timer = loop.call_later(place.keep_alive, self._retire, place)

    async def _bring(self, place: _Place) -> None:
        """Load a model, after those that were asked for earlier."""
        try:
            path = await asyncio.to_thread(self.models.path, place.model)
            place.model = replace(place.model, path=path)
            async with self._loading:
                engine = await self._opened(place)
        except BaseException as error:
            self._drop(place)
            place.opened.set_exception(_sentence(place, error))
            place.opened.exception()  # there may be no request that reads it
            return
        place.state = "loaded"
        place.opened.set_result(engine)
        if not place.users:
            self._rest(place)

    async def _opened(self, place: _Place) -> Served:
        await self._make_room(place)
        if place.unwanted or self._closing or not place.users:
            raise Cancelled("loading was stopped")
        host = HostThread(partial(self._load, place.model))
        self._hosts.add(host)
        place.host = host
        host.closed.add_done_callback(lambda closed: self._hosts.discard(host))
        try:
            engine = await host.opened
        except BaseException:
            host.stop()
            host.cancel()
            await host.closed
            raise
        if place.unwanted:
            host.stop()
            await host.closed
            raise Cancelled("loading was stopped")
        return engine

    async def _make_room(self, place: _Place) -> None:
        """Unload models until there is room for one more."""
        while place.users and not place.unwanted and not self._closing:
            others = [p for p in self._places.values() if p.state != "loading"]
            if not others or await self._has_room(place, len(others)):
                return
            others = [p for p in self._places.values() if p.state != "loading"]
            if others:
                victim = min(others, key=_order)
                self._retire(victim)
                await victim.gone.wait()

    async def _has_room(self, place: _Place, others: int) -> bool:
        if self.limits.most:
            return others < self.limits.most
        return await asyncio.to_thread(self._fits, place.model)

    def _retire(self, place: _Place) -> None:
        """Unload a model once it is idle; no request gets it any more."""
        if place.state == "loaded":
            place.state = "unloading"
            place.stop_timer()
            self._start(self._unload(place))

    async def _unload(self, place: _Place) -> None:
        if place.users:
            await place.idle.wait()
        assert place.host is not None
        place.host.stop()
        await place.host.closed
        self._drop(place)

    def _drop(self, place: _Place) -> None:
        del self._places[place.model.name]
        place.stop_timer()
        place.gone.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _order(place: _Place) -> tuple[bool, bool, float]:
    """Those under way out first, then idle ones, the least recently used first."""
    return place.state != "unloading", place.users > 0, place.last_used


def _sentence(place: _Place, error: BaseException) -> EdgecsError:
    if isinstance(error, EdgecsError):
        return error
    if isinstance(error, asyncio.CancelledError):  # by the end of the event loop
        return Cancelled("loading was stopped")
    return incident(f"{place.model.name} could not be loaded", error)
