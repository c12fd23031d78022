"""`edgecs serve`: the HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecs.errors import ConfigError
from edgecs.runtime.builder import Runtime, build
from edgecs.runtime.recipe import Recipe
from edgecs_cli.console import show_log
from edgecs_cli.loading.describe import introduce
from edgecs_cli.options.common import (
    Sectioned,
    common_options,
    drafter_options,
    model_options,
    schedule_options,
)
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.shared import reports_errors
from edgecs_cli.options.texts import read_text
from edgecs_cli.single_instance import single_instance
from edgecs_cli.units import manage, unit_options

if TYPE_CHECKING:
    from edgecs.server.engine import Engine

_CONTEXT = 8192  # chosen: default context of a conversation, in tokens
_KEY_BYTES = 4096


@dataclass(frozen=True)
class Wishes:
    """The options of this command alone."""

    host: str
    port: int
    parallel: int
    queue: int
    timeout: float
    drain: float
    api_key: str | None
    api_key_file: Path | None
    allow_origin: tuple[str, ...]
    allow_host: tuple[str, ...]
    prefix_cache: Path | None
    prefix_cache_size: int


@click.command(cls=Sectioned)
@model_options
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "-np",
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Number of slots: conversations answered at once, each with its own context.",
)
@click.option(
    "--queue",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Requests that may wait for a slot; further ones get status 429.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86_400),
    default=3600.0,
    show_default=True,
    help="Time limit of an answer, in seconds.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds for current answers after SIGTERM.",
)
@click.option("--api-key", help="API key of the clients; required off loopback.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="Read the API key from a file.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Allow web pages of this origin, such as http://localhost:3000; *: all.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Accept this name in the Host header.",
)
@click.option(
    "--prefix-cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Save the KV cells of idle conversations in this folder when they lose their "
    "slot or the server ends, and continue from them.",
)
@click.option(
    "--prefix-cache-size",
    type=click.IntRange(1, 1 << 20),
    default=8192,
    show_default=True,
    metavar="MIB",
    help="Size of the prefix cache; the least recently used files are removed.",
)
@sampling_options
@drafter_options
@schedule_options
@unit_options
@common_options
@reports_errors
def serve(**values: Any) -> int:
    """Serve a model over HTTP.

    The API is OpenAI's. Settings of a request take precedence over these options.

    \b
    edgecs serve -m smollm2-135m-instruct
    edgecs serve -m ./model.gguf --port 8000 -np 2 -c 16384
    edgecs serve -m qwen3:4b --install-unit
    curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user",
      "content": "What is a llama?"}]}'
    """
    wishes, call, recipe = (
        taken(Wishes, values),
        taken(Call, values),
        _recipe(values),
    )
    try:
        from edgecs.server import run as running
        from edgecs.server.app import Serving
        from edgecs.server.guard import Access
    except ImportError as error:
        raise ConfigError(
            f"the server needs packages that are not installed ({error.name}): install "
            "edgecs[serve]"
        ) from error
    key = _key(wishes)
    running.check_access(wishes.host, key)
    if manage(click.get_current_context(), wishes.port, wishes.drain):
        return 0
    show_log(call.verbose)
    with (
        single_instance(wishes.port, f"http://{wishes.host}:{wishes.port}"),
        running.listening(wishes.host, wishes.port) as sock,
    ):
        files, where = call.find(recipe), running.address(sock)

        @contextmanager
        def load(cancel: threading.Event) -> Iterator[Engine]:
            from edgecs.server.engine import Engine

            with build(recipe, files, call.folders, call.reports, cancel) as runtime:
                introduce(runtime, quiet=call.quiet, verbose=call.verbose)
                if note := _context_note(recipe, runtime):
                    call.say(note)
                engine = Engine(
                    runtime,
                    _name(recipe),
                    waiting=wishes.queue,
                    prefix_cache=wishes.prefix_cache,
                    prefix_bytes=wishes.prefix_cache_size << 20,
                )
                try:
                    yield engine
                finally:
                    engine.close()

        serving = Serving(
            access=Access(key, wishes.allow_origin, wishes.allow_host),
            most_seconds=wishes.timeout,
        )
        running.serve(
            serving,
            sock,
            load,
            drain=wishes.drain,
            ready=lambda engine: call.say(
                f"listening on {where} ({engine.slots} slots of {engine.n_ctx} tokens)"
            ),
        )
    return 0


def _recipe(values: dict[str, Any]) -> Recipe:
    """The recipe; with several slots the model's bundled drafter is not used."""
    recipe, parallel = read_recipe(values), values["parallel"]
    options = replace(recipe.options, sequences=parallel)
    options = replace(options, most_ctx=_CONTEXT)
    drafts = () if parallel > 1 and recipe.drafts is None else recipe.drafts
    return replace(recipe, options=options, drafts=drafts)


def _context_note(recipe: Recipe, runtime: Runtime) -> str | None:
    """What limits a context that is shorter than the default; None: nothing does."""
    n_ctx, trained = runtime.loaded.target.n_ctx, runtime.loaded.model.trained_ctx
    if recipe.options.n_ctx or n_ctx == _CONTEXT:
        return None
    why = "the model was trained for no more" if n_ctx == trained else "memory is short"
    return f"the context is {n_ctx} tokens, as {why}: give another with -c"


def _key(wishes: Wishes) -> str | None:
    if wishes.api_key is not None and wishes.api_key_file is not None:
        raise click.UsageError("--api-key and --api-key-file exclude each other")
    key = wishes.api_key
    if wishes.api_key_file is not None:
        key = read_text(wishes.api_key_file, _KEY_BYTES).strip()
    if key is not None and not key:
        raise ConfigError("the API key is empty: give a key")
    return key


def _name(recipe: Recipe) -> str:
    """The model's name for clients, without folders and suffix."""
    name = recipe.model
    return Path(name).stem if name.endswith(".gguf") else name
