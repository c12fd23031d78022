"""Servers on real sockets, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.builder import build, find_files
from edgecs.runtime.folders import Folders
from edgecs.runtime.recipe import Recipe
from edgecs.server import run as running
from edgecs.server.app import Serving
from edgecs.server.engine import Engine

OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, sequences=3)
WAIT = 60.0  # seconds after which a test has failed


@contextmanager
def serving(
    path: Path, folder: Path, serving: Serving | None = None, **engine: Any
) -> Iterator[str]:
    """A server with the model of a file; its address."""
    recipe = Recipe(str(path), OPTIONS, drafts=())
    folders = Folders(folder, offline=True)
    files = find_files(recipe, folders)

    @contextmanager
    def loading(cancel: threading.Event) -> Iterator[Engine]:
        with build(recipe, files, folders, cancel=cancel) as runtime:
            made = Engine(runtime, "tiny", **{"waiting": 64, **engine})
            try:
                yield made
            finally:
                made.close()

    with listening(loading, serving or Serving()) as address:
        yield address


@contextmanager
def listening(loading: running.Loading, state: Serving) -> Iterator[str]:
    """A server with what `loading` gives; its address."""
    ready = threading.Event()
    servers: list[object] = []
    with running.listening("127.0.0.1", 0) as sock:
        thread = threading.Thread(
            target=lambda: running.serve(
                state,
                sock,
                loading,
                drain=5,
                ready=lambda engine: ready.set(),
                started=servers.append,
            )
        )
        thread.start()
        try:
            assert ready.wait(WAIT)
            yield running.address(sock)
        finally:
            servers[0].should_exit = True  # type: ignore[attr-defined]
            thread.join(WAIT)
            assert not thread.is_alive()
