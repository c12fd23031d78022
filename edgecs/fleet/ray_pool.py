"""Workers on the machines of a Ray cluster. Ray is imported when one is opened.

Each worker is an actor that is bound to its machine and never restarted by Ray: this
module sees the loss, starts another one and gives it the work. Ray trusts everyone in
the cluster: results are unpickled here, so anyone who can reach it can run code
here and there (docs/security.md).
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from time import monotonic
from typing import Any

import edgecs
from edgecs.errors import ConfigError
from edgecs.fleet.host import Done, Host, Problem, Ready, Setup
from edgecs.fleet.spread import (
    Event,
    Failed,
    Finished,
    Item,
    Lost,
    Refused,
    Worker,
)

_LOOKS = 2.0  # seconds between looks at the machines of the cluster
_WAITS = 0.5  # seconds that `event` waits
_PATIENCE = 180.0  # seconds in which a worker starts
_JOINS = 3  # attempts to start a new cluster
_CONNECTS = 10.0  # seconds in which a cluster answers
_STARTS = 3  # workers that a machine may lose in a row

Say = Callable[[str], None]


class RayFleet:
    """A connection to a Ray cluster, see `connected`."""

    def __init__(self, ray: Any, say: Say) -> None:
        self._ray, self._say = ray, say

    @contextmanager
    def pool(
        self, setup: Setup, *, threads: int = 0, alone: bool = False
    ) -> Iterator[RayPool]:
        """Workers that prepare themselves with `setup`; closing it ends them.

        threads: CPUs of the cluster that each worker reserves; 0: all of its machine.
        alone: one worker per machine, which reserves all its CPUs.
        """
        made = RayPool(self._ray, setup, 0 if alone else threads, self._say)
        try:
            yield made
        finally:
            made.close()


class RayPool:
    """Workers on all machines of the cluster, see `spread.Pool`."""

    def __init__(self, ray: Any, setup: Setup, threads: int, say: Say) -> None:
        self._ray, self._threads, self._say = ray, threads, say
        self._setup = ray.put(setup)
        self._actors: dict[str, Any] = {}  # by worker
        self._nodes: dict[str, str] = {}  # node of every worker
        self._kinds: dict[str, str] = {}  # of the workers that have started
        self._began: dict[str, float] = {}
        self._refs: dict[Any, str] = {}  # what is computed, and by whom
        self._losses: Counter[str] = Counter()  # by node, since its last result
        self._left: set[str] = set()  # nodes that refused
        self._made = 0
        self._looked = -_LOOKS
        self._warned = False

    def idle(self) -> list[Worker]:
        """See `Pool`."""
        if monotonic() - self._looked >= _LOOKS:
            self._looked = monotonic()
            self._fill()
        busy = {*self._refs.values()}
        return [Worker(n, kind) for n, kind in self._kinds.items() if n not in busy]

    def starting(self) -> int:
        """See `Pool`."""
        late = monotonic() - _PATIENCE
        waiting = [n for n, began in self._began.items() if n not in self._kinds]
        if waiting and not self._warned and all(self._began[n] < late for n in waiting):
            self._warned = True
            self._say(f"{len(waiting)} workers wait for free CPUs of the cluster")
        return sum(self._began[name] > late for name in waiting)

    def give(self, worker: str, item: Item) -> None:
        """See `Pool`."""
        ref = self._actors[worker].compute.remote(item.payload)
        self._refs[ref] = worker

    def event(self) -> Event | None:
        """See `Pool`."""
        if not self._refs:
            return None
        ended, _ = self._ray.wait([*self._refs], num_returns=1, timeout=_WAITS)
        for ref in ended:
            if found := self._of(ref):
                return found
        return None

    def close(self) -> None:
        """Ends all workers."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()

    def _of(self, ref: Any) -> Event | None:
        """What the end of a call means; None: a worker has started."""
        name = self._refs.pop(ref)
        try:
            answer = self._ray.get(ref)
        except (
            self._ray.exceptions.RayActorError,
            self._ray.exceptions.OutOfMemoryError,
        ) as error:
            return self._lost(name, error)
        except self._ray.exceptions.RayError as error:
            if name in self._kinds:
                return Failed(name, f"{self._where(name)} failed: {_short(error)}")
            return self._refused(name, _short(error), "ModelError")
        match answer:
            case Ready(machine, kind):
                if name not in self._kinds:
                    self._say(f"{name} is ready on {machine}")
                self._kinds[name] = kind
                return None
            case Problem(kind, why) if name in self._kinds:
                return Failed(name, why, kind)
            case Problem(kind, why):
                return self._refused(name, why, kind)
            case Done(value):
                self._losses[self._nodes[name]] = 0
                return Finished(name, value)
        return Failed(name, f"{name} sent {type(answer).__name__}, not a result")

    def _lost(self, name: str, error: Exception) -> Event:
        started = name in self._kinds
        node = self._nodes[name]
        self._forget(name)
        self._losses[node] += 1
        if not started and self._losses[node] >= _STARTS:
            self._left.add(node)
            return Refused(
                name, f"{_STARTS} workers ended on its machine: {_short(error)}"
            )
        self._looked = -_LOOKS  # start another one now
        busy = {*self._refs.values()}
        for other, place in self._nodes.items():
            # If the machine is gone, no item is to be lost with each of its workers.
            if place == node and other in self._kinds and other not in busy:
                self._refs[self._actors[other].ready.remote()] = other
        return Lost(name, _short(error))

    def _refused(self, name: str, why: str, error: str) -> Event:
        self._left.add(self._nodes[name])
        self._ray.kill(self._actors[name])
        self._forget(name)
        return Refused(name, why, error)

    def _forget(self, name: str) -> None:
        for known in (self._actors, self._nodes, self._kinds, self._began):
            known.pop(name, None)

    def _where(self, name: str) -> str:
        return f"{name} (node {self._nodes[name][:8]})"

    def _fill(self) -> None:
        """Starts the workers that the machines have room for."""
        room = False
        for node in self._ray.nodes():
            cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
            each = self._threads or cpus
            if not cpus or each > cpus:
                continue
            room = True
            if node["NodeID"] in self._left:
                continue
            here = sum(there == node["NodeID"] for there in self._nodes.values())
            for _ in range(cpus // each - here):
                self._start(node["NodeID"], each)
        if not room:
            raise ConfigError(
                f"no machine of the cluster has {self._threads or 1} CPUs for a "
                "worker: give fewer threads (-t), or start workers with more CPUs"
            )

    def _start(self, node: str, cpus: int) -> None:
        self._made += 1
        name = f"worker {self._made}"
        strategies = self._ray.util.scheduling_strategies
        bound = strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        kind = self._ray.remote(Host).options(
            num_cpus=cpus, max_restarts=0, scheduling_strategy=bound
        )
        self._actors[name] = kind.remote(self._setup, edgecs.__version__)
        self._nodes[name] = node
        self._began[name] = monotonic()
        self._refs[self._actors[name].start.remote()] = name


@contextmanager
def connected(address: str, say: Say) -> Iterator[RayFleet]:
    """A connection to the Ray cluster at an address, closed at the end.

    address: `auto` for the cluster of this machine, `local` for a new one of this
    machine alone, HOST:PORT, or ray://HOST:PORT. Raises ConfigError.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            '--ray needs ray, which is not installed: pip install "edgecs[ray]"'
        )
    _check_listens(address)
    with _settings(address) as settings:
        import ray
        import ray._private.worker as internals
        import ray.util.scheduling_strategies

        # Ray prints what happens in the cluster to stdout, where results belong.
        if hasattr(internals, "print_to_stdstream"):
            internals.print_to_stdstream = lambda data, ignore_prefix: None
        _join(ray, address, settings)
        try:
            yield RayFleet(ray, say)
        finally:
            ray.shutdown()


def _join(ray: Any, address: str, settings: Mapping[str, Any]) -> None:
    """Connects. Raises ConfigError."""
    # On a busy machine a new cluster may take longer than the time that Ray allows.
    for left in reversed(range(_JOINS if address == "local" else 1)):
        try:
            ray.init(address=address, **settings)
            return
        except Exception as error:  # Ray raises what its parts raise
            ray.shutdown()
            if left:
                continue
            raise ConfigError(
                f"the Ray cluster {address!r} cannot be joined ({_short(error)}): "
                "start one with `ray start`, or give --ray local"
                if address != "local"
                else f"Ray cannot start here ({_short(error)}): end other programs"
            ) from error


def _check_listens(address: str) -> None:
    """Raises ConfigError; Ray itself would try for a minute and log meanwhile."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTS).close()
    except OSError as error:
        raise ConfigError(
            f"nothing answers at {address} ({error.strerror or error}): give the "
            "address that `ray start --head` printed"
        ) from error


@contextmanager
def _settings(address: str) -> Iterator[dict[str, Any]]:
    """Arguments of `ray.init`; a new cluster also needs settings in the environment.

    Its processes listen on all interfaces, so it has a secret, and it sends no
    statistics to Ray's makers.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        yield quiet
        return
    new = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield {**quiet, "include_dashboard": False}
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _short(error: BaseException) -> str:
    """The first line of an exception with text; Ray's have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {_short(cause)}"[:200]
    first = (lines or [type(error).__name__])[0].partition(". ")[0]
    return first.rstrip(".")[:200]
