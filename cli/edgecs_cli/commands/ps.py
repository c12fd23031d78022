"""`edgecs ps` and `edgecs stop`: the models that running servers have in memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from edgecs.errors import ConfigError
from edgecs.server.models.keep_alive import in_words
from edgecs_cli.client.choice import KEY_VARIABLE
from edgecs_cli.client.connection import Connection, own_servers
from edgecs_cli.console import echo, echo_table, say
from edgecs_cli.options.shared import reports_errors

_server = click.option(
    "--server",
    metavar="URL",
    help="Ask this server (its key is in EDGECS_API_KEY), instead of those that you "
    "run on this machine.",
)


@click.command()
@_server
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@reports_errors
def ps(server: str | None, as_json: bool) -> None:
    """List the models that servers have in memory.

    \b
    edgecs ps
    edgecs ps --server http://127.0.0.1:8080 --json
    """
    with _connections(server) as connections:
        found = [
            {**entry, "server": connection.url}
            for connection in connections
            for entry in _resident(connection)
        ]
    if as_json:
        echo(json.dumps(found))
    elif not found:
        say("no model is in memory: edgecs serve loads them")
    else:
        heads = ["name", "size", "state", "busy", "context", "until", "server"]
        echo_table([heads, *map(_row, found)], words=(0, 2, 5, 6))


@click.command()
@click.argument("name", required=False)
@click.option("--all", "all_models", is_flag=True, help="Unload all models.")
@click.option(
    "--cancel", is_flag=True, help="End current answers instead of finishing them."
)
@_server
@reports_errors
def stop(name: str | None, all_models: bool, cancel: bool, server: str | None) -> None:
    """Unload a model from memory; the server goes on.

    Current answers are finished first. The next request loads the model again.

    \b
    edgecs stop smollm2-135m-instruct
    edgecs stop --all --cancel
    """
    if (name is None) != all_models:
        raise click.UsageError("give the name of a model (`edgecs ps`), or --all")
    stopped = 0
    with _connections(server) as connections:
        for connection in connections:
            for entry in _resident(connection):
                if all_models or entry["id"] == name:
                    body = {"model": entry["id"], "cancel": cancel}
                    connection.call("POST", "/models/unload", body)
                    say(f"unloaded {entry['id']}")
                    stopped += 1
    if name is not None and not stopped:
        raise ConfigError(f"{name} is not in memory: `edgecs ps` lists what is")


@contextmanager
def _connections(server: str | None) -> Iterator[list[Connection]]:
    """The given server, or all of this user on this machine."""
    if server is not None:
        found = [Connection(server, os.environ.get(KEY_VARIABLE))]
    else:
        found = list(own_servers())
    try:
        yield found
    finally:
        for connection in found:
            connection.close()


def _resident(connection: Connection) -> list[dict[str, Any]]:
    """The models that a server has in memory."""
    entries = connection.call("GET", "/models").get("data")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), str)
        and _state(entry) != "unloaded"
    ]


def _state(entry: Mapping[str, Any]) -> str:
    status = entry.get("status")
    return str(status.get("value")) if isinstance(status, dict) else "loaded"


def _row(entry: Mapping[str, Any]) -> list[str]:
    meta = entry.get("meta")
    context = meta.get("n_ctx", "") if isinstance(meta, dict) else ""
    busy = f"{entry['slots_busy']}/{entry['slots']}" if "slots" in entry else ""
    size = entry.get("size")
    return [
        entry["id"],
        f"{size >> 20} MiB" if isinstance(size, int) else "",
        _state(entry),
        busy,
        str(context),
        _until(entry.get("expires_at")),
        str(entry["server"]),
    ]


def _until(expires: object) -> str:
    """When a model is unloaded if no request comes."""
    if not isinstance(expires, int | float):
        return "for ever"
    left = expires - time.time()
    return f"in {in_words(left)}" if left > 0 else "now"
