"""Fixtures that everything shares: a tiny GGUF, a private cache, no network."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import pytest
from hypothesis import settings

from edgecs.calibrate import speculation_profile
from edgecs.decoding.cascade import PARKED
from edgecs.engines.llama.calls import Calls
from edgecs.engines.load_options import LoadOptions
from edgecs.hub.store import Store
from edgecs.runtime.loader import load
from edgecs.testing.fakes import write_random_gguf
from edgecs_cli.running import run

# No test judges by the clock. `make test` draws the same examples every time, so that a
# change is what makes it fail; `make fuzz` draws others (--hypothesis-profile=new).
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None, print_blob=True)
settings.load_profile("same")

# A shell that runs the tests in the background has Ctrl-C ignored, and every process
# they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of this name have no doctests, and a search for some takes one file for all.
collect_ignore_glob = ["*conftest.py"]

DEFAULT_MODEL = "smollm2-135m-instruct"
_USER_CACHE = Path(platformdirs.user_cache_dir("edgecs")) / "models"
_connect = socket.socket.connect


def before_calls(
    monkeypatch: pytest.MonkeyPatch, told: Callable[[int], None]
) -> list[int]:
    """Tells about every call of a llama.cpp target, 1 for the first; all so far."""
    call, calls = Calls.call, list[int]()

    def telling(self: Calls, first: int) -> tuple[int, int]:
        calls.append(len(calls) + 1)
        told(calls[-1])
        return call(self, first)

    monkeypatch.setattr(Calls, "call", telling)
    return calls


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Ctrl-C during the number-th target call; the numbers of all calls so far."""

    def told(now: int) -> None:
        if now == number:
            signal.raise_signal(signal.SIGINT)

    return before_calls(monkeypatch, told)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def _no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folders of the user stay as they are, in processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("CACHE", "CONFIG", "STATE", "DATA"):
            folder = tmp_path_factory.mktemp(f"user-{kind.lower()}")
            patch.setenv(f"XDG_{kind}_HOME", str(folder))
        yield


@pytest.fixture(autouse=True)
def _no_network(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Connections leave this machine only for the model fixtures."""

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test tried to reach {address}")
        _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def _no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user of this machine has configured does not count."""
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: "/nowhere")
    for name in [name for name in os.environ if name.startswith("EDGECS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _never_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else this machine computes does not count."""
    monkeypatch.setattr(speculation_profile, "BUSY", 1.0)


class _Faults(logging.Handler):
    """Keeps what is logged of drafters that failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == PARKED:
            self.told.append(record.getMessage())


@pytest.fixture(autouse=True)
def _no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """A bug in a drafter costs no token, so only this shows it."""
    handler, logger = _Faults(), logging.getLogger("edgecs")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if not request.node.get_closest_marker("faults"):
        assert not handler.told


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a socket can be made."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; where the models of a user would be."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path))
    return tmp_path / "models"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama for llama.cpp; a context of 65,536 keeps it talking for long."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_random_gguf(path, n_ctx=65536)


@pytest.fixture
def tiny(tiny_gguf: Path) -> Any:
    """The random Llama, loaded with a context of 512 and chunks of 64."""
    with load(tiny_gguf, LoadOptions(n_ctx=512, n_batch=64, threads=1)) as loaded:
        yield loaded


@pytest.fixture
def edgecs(capfd: pytest.CaptureFixture[str], cache: Path) -> Callable[..., Outcome]:
    """Runs a command in this process, with a cache of its own."""

    def call(*arguments: object) -> Outcome:
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model, fetched once for this user, as the tests' own cache has it."""
    path = Store(_USER_CACHE).path(DEFAULT_MODEL)
    models = Path(platformdirs.user_cache_dir("edgecs")) / "models"
    models.mkdir(parents=True)
    (models / DEFAULT_MODEL).symlink_to(path.parent, target_is_directory=True)
    return models / DEFAULT_MODEL / path.name


@pytest.fixture(scope="session")
def smollm(model_path: Path) -> Any:
    """The default model with a context of 1,024."""
    with load(model_path, LoadOptions(n_ctx=1024)) as loaded:
        yield loaded
