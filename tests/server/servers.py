"""Servers on real sockets, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.tiers import Exact
from edgecs.engines.load_options import LoadOptions
from edgecs.memory.keeping import Wanted
from edgecs.runtime.builder import find_files
from edgecs.runtime.embedding import build_or_embed
from edgecs.runtime.folders import Folders
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.served_models import ServedModel, ServedModels
from edgecs.server import run as running
from edgecs.server.app import Serving
from edgecs.server.http.local_key import LocalKey
from edgecs.server.models.engines import engine_of
from edgecs.server.models.pool import Load, ModelPool
from edgecs.server.models.residency import Limits
from edgecs.server.models.served import Served
from edgecs_cli.client.state_file import published

OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, sequences=3)
WAIT = 60.0  # seconds after which a test has failed


def named(path: Path, *names: str) -> ServedModels:
    """Names for a file."""
    return ServedModels(
        {name: ServedModel(name, str(path.resolve()), path) for name in names}
    )


def loading(
    folder: Path,
    options: LoadOptions = OPTIONS,
    drafts: tuple[str, ...] = (),
    matrix: KMatrix | None = None,
    exact: Exact = "auto",
    draft_options: LoadOptions | None = None,
    store: Wanted | None = None,
    **engine: Any,
) -> Load:
    """Loads models as a server does, with the options of tests."""
    folders = Folders(folder, offline=True)

    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Served]:
        recipe = Recipe(
            str(model.path),
            options,
            drafts=drafts,
            draft_options=draft_options,
            matrix=matrix,
            exact=exact,
            store=store,
        )
        files = find_files(recipe, folders)
        with build_or_embed(recipe, files, folders, cancel=cancel) as found:
            made = engine_of(found, model.name, **{"waiting": 64, **engine})
            try:
                yield made
            finally:
                made.close()

    return load


@contextmanager
def serving(
    path: Path,
    folder: Path,
    serving: Serving | None = None,
    slots: int = OPTIONS.sequences,
    drafts: tuple[str, ...] = (),
    matrix: KMatrix | None = None,
    options: LoadOptions = OPTIONS,
    **engine: Any,
) -> Iterator[str]:
    """A server with the model of a file; its address.

    engine: `exact`, `draft_options`, `store`, and arguments of `Engine`.
    """
    options = replace(options, sequences=slots)
    state = serving or Serving()
    state.pool = state.pool or ModelPool(
        named(path, "tiny"),
        loading(folder, options, drafts, matrix, **engine),
        limits=Limits(keep_alive=None),
        default="tiny",
        only_default=True,
    )
    with running_server(state, "tiny") as url:
        yield url


@contextmanager
def running_server(
    state: Serving, first: str | None, servers: list[Any] | None = None
) -> Iterator[str]:
    """A server in a thread, once its first model is loaded; its address.

    It has a local key. servers: gets uvicorn's server.
    """
    ready, servers = threading.Event(), [] if servers is None else servers
    with running.listening("127.0.0.1", 0) as sock:
        local = LocalKey.new(running.local_address(sock))
        state.access = replace(state.access, local=local)
        thread = threading.Thread(
            target=lambda: running.serve(
                state,
                sock,
                first=first,
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
            servers[0].should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


@contextmanager
def published_server(
    path: Path, folder: Path, options: LoadOptions
) -> Iterator[Serving]:
    """A server with the model of a file that commands of this user find."""
    state = Serving(
        ModelPool(
            named(path, "tiny"),
            loading(folder, options),
            limits=Limits(keep_alive=None),
            default="tiny",
        )
    )
    with running_server(state, "tiny"):
        assert state.access.local is not None
        with published(state.access.local, "1", ["tiny"]):
            yield state
