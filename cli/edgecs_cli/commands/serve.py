"""`edgecs serve`: the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgecs import __version__
from edgecs.errors import ConfigError
from edgecs.runtime.recipe import Recipe
from edgecs_cli.client.state_file import published
from edgecs_cli.console import show_log
from edgecs_cli.options.common import (
    common_options,
    drafter_options,
    hardware_options,
    schedule_options,
)
from edgecs_cli.options.kinds import Finite, Whole
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.references import Reference
from edgecs_cli.options.remembering import memory_option
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.sections import Sectioned
from edgecs_cli.options.shared import reports_errors
from edgecs_cli.options.texts import read_text
from edgecs_cli.single_instance import single_instance
from edgecs_cli.units import manage, unit_options

_CONTEXT = 8192  # chosen: default context of a conversation, in tokens
_KEY_BYTES = 4096
_MOST_MODELS = 1000


@dataclass(frozen=True)
class Wishes:
    """The options of this command alone."""

    host: str
    port: int
    parallel: int
    queue: int
    timeout: float
    drain: float
    max_models: int  # 0: as many as fit
    keep_alive: str | None
    allow_downloads: bool
    api_key: str | None
    api_key_file: Path | None
    allow_origin: tuple[str, ...]
    allow_host: tuple[str, ...]
    prefix_cache: Path | None
    prefix_cache_size: int


class _Most(click.ParamType[int]):
    """A number of models, or `auto`, which is 0."""

    name = "N|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Checks a value of --max-models."""
        if value == "auto":
            return 0
        number: int = Whole(1, _MOST_MODELS).convert(value, param, ctx)
        return number


@click.command(cls=Sectioned)
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    type=Reference(),
    metavar="MODEL",
    help="A name (`edgecs models search`), a .gguf file, or user/repo[:quant]. May be "
    "repeated: requests then choose one. Without it all downloaded models are served.",
)
@click.option(
    "--max-models",
    type=_Most(),
    default=1,
    show_default=True,
    help="Models in memory at once; auto: as many as fit into the available memory. "
    "With one -m, more than 1 also serves the downloaded models.",
)
@click.option(
    "--keep-alive",
    metavar="TIME",
    help="How long a model stays in memory after its last answer, as in 30s, 5m, 1h; "
    "0: not at all, -1: for ever. Default: 5m, and for ever with one -m.",
)
@click.option(
    "--allow-downloads",
    is_flag=True,
    help="Download models that requests name and that are not here.",
)
@hardware_options
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
)
@click.option(
    "--port",
    type=Whole(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "-np",
    "--parallel",
    type=Whole(1, 64),
    default=4,
    show_default=True,
    help="Number of slots: conversations answered at once, each with its own context.",
)
@click.option(
    "--queue",
    type=Whole(1, 10_000),
    default=64,
    show_default=True,
    help="Requests that may wait for a slot; further ones get status 429.",
)
@click.option(
    "--timeout",
    type=Finite(1, 86_400),
    default=3600.0,
    show_default=True,
    help="Time limit of an answer, in seconds.",
)
@click.option(
    "--drain",
    type=Finite(0, 3600),
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
    type=Whole(1, 1 << 20),
    default=8192,
    show_default=True,
    metavar="MIB",
    help="Size of the prefix cache; the least recently used files are removed.",
)
@sampling_options
@drafter_options
@schedule_options
@memory_option
@unit_options
@common_options
@reports_errors
def serve(**values: Any) -> int:
    """Serve models over HTTP.

    The API is OpenAI's, and / is a web page to chat. Settings of a request take
    precedence over these options.
    Without -m, or with several, the field `model` of a request chooses the model, which
    is loaded on demand.

    \b
    edgecs serve -m smollm2-135m-instruct
    edgecs serve --max-models auto --keep-alive 10m
    edgecs serve -m ./model.gguf --port 8000 -np 2 -c 16384
    edgecs serve -m qwen3:4b --install-unit
    curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user",
      "content": "What is a llama?"}]}'
    """
    wishes, call = taken(Wishes, values), taken(Call, values)
    recipes = _recipes(values)
    try:
        from edgecs.server import run as running
        from edgecs.server.app import Serving
        from edgecs.server.http.connections import allow_connections
        from edgecs.server.http.guard import Access
        from edgecs.server.http.local_key import LocalKey
        from edgecs_cli.loading.serving import Offer, pool_of
    except ImportError as error:
        raise ConfigError(
            f"the server needs packages that are not installed ({error.name}): pip "
            'install "edgecs[serve]", or -e ".[serve]" in a checkout'
        ) from error
    key = _key(wishes)
    running.check_access(wishes.host, key)
    if manage(click.get_current_context(), wishes.port, wishes.drain):
        return 0
    show_log(call.verbose, warnings=True)
    allow_connections()
    with (
        single_instance(wishes.port, f"http://{wishes.host}:{wishes.port}"),
        running.listening(wishes.host, wishes.port) as sock,
    ):
        where = running.address(sock)
        offer = Offer(
            recipes,
            most=wishes.max_models,
            keep_alive=wishes.keep_alive,
            downloads=wishes.allow_downloads,
            queue=wishes.queue,
            prefix_cache=wishes.prefix_cache,
            prefix_bytes=wishes.prefix_cache_size << 20,
        )
        pool = pool_of(offer, call)
        local = LocalKey.new(running.local_address(sock))
        serving = Serving(
            pool=pool,
            access=Access(key, wishes.allow_origin, wishes.allow_host, local),
            most_seconds=wishes.timeout,
        )
        names = [model.name for model in pool.models.all()]
        with published(local, __version__, names):
            running.serve(
                serving,
                sock,
                first=pool.default,
                drain=wishes.drain,
                ready=lambda engine: call.say(
                    f"listening on {where} {offer.about(engine)}"
                ),
            )
    return 0


def _recipes(values: dict[str, Any]) -> list[Recipe]:
    """A recipe for each -m, or one without a model for those of the store."""
    names = values.pop("models") or ("",)
    if values["drafts"] and (
        len(names) > 1 or not names[0] or values["max_models"] != 1
    ):
        raise click.UsageError("--draft belongs to one model: give one -m")
    return [_recipe({**values, "model": name}) for name in names]


def _recipe(values: dict[str, Any]) -> Recipe:
    """The recipe, with a sequence of the target for each slot."""
    recipe = read_recipe(values)
    options = replace(recipe.options, sequences=values["parallel"], most_ctx=_CONTEXT)
    return replace(recipe, options=options)


def _key(wishes: Wishes) -> str | None:
    if wishes.api_key is not None and wishes.api_key_file is not None:
        raise click.UsageError("--api-key and --api-key-file exclude each other")
    key = wishes.api_key
    if wishes.api_key_file is not None:
        key = read_text(wishes.api_key_file, _KEY_BYTES).strip()
    if key is not None and not key:
        raise ConfigError("the API key is empty: give a key")
    return key
