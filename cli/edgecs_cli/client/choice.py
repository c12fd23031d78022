"""Whether a running server can answer as the command itself would, and which one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from edgecs.engines.load_options import MOST_CELLS
from edgecs.errors import ConfigError, EdgecsError
from edgecs.sampling.settings import Sampling
from edgecs_cli.client.answered import names
from edgecs_cli.client.connection import (
    Connection,
    ServerLost,
    ServerRefused,
    own_servers,
)
from edgecs_cli.client.state_file import running_servers
from edgecs_cli.options.common import load_options
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.remembering import is_folder
from edgecs_cli.options.sampling import given_grammar

KEY_VARIABLE = "EDGECS_API_KEY"
_LONGEST = 4096  # characters of a text in /props
# Options that a request can express, or that a server's settings are compared with.
_SENT = frozenset(
    (
        *("model", "prompt", "file", "system", "max_tokens", "stop", "raw", "seed"),
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma"),
        *("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"),
        *("xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base"),
        *("dry_allowed_length", "dry_last_n", "dry_breakers", "logit_bias"),
        *("grammar", "grammar_file", "json_schema", "json_schema_file", "mirostat"),
        *("n_gpu_layers", "threads", "flash_attention", "type_k", "type_v", "repack"),
        *("kernels", "exact", "no_spec", "n_ctx", "server", "memory"),
        *("offline", "quiet", "verbose", "as_json", "explain"),
        *("overflow", "loads", "resume", "no_history"),  # of `edgecs chat`
    )
)


@dataclass(frozen=True)
class Served:
    """A model of a running server, and what the server says of it.

    name: for requests. n_ctx: in tokens. chain: names of the target and its drafters,
    where a conversation has all of them. exact: as `Runtime.exactness`. weights: see
    `Owner`. template: of chats; "": there is none.
    """

    connection: Connection
    name: str
    n_ctx: int
    chain: tuple[str, ...]
    tiers: str
    off_reason: str | None
    kernels: str
    exact: Mapping[str, Any]
    weights: Weights
    template: str = ""


@dataclass(frozen=True)
class Weights:
    """What `Owner` says of a model."""

    model: str
    fingerprint: str
    loading: str
    tokens: int


class NotServed(Exception):
    """Why a server cannot answer as the command itself would."""


class OtherModels(NotServed):
    """The server does not have the model of the command."""


def not_sent(context: click.Context) -> str | None:
    """The first given option that a server cannot follow, as it is written."""
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        sent = param.name in _SENT
        if param.name == "memory" and is_folder(context.params):
            sent = False
        if source is not ParameterSource.DEFAULT and not sent:
            return "/".join([param.opts[-1], *param.secondary_opts[-1:]])
    return None


def reference(model: str) -> str:
    """What -m means everywhere on this machine: a name, or an absolute path."""
    path = Path(model).expanduser()
    is_file = path.is_absolute() or path.exists() or path.suffix in (".gguf", ".toml")
    return str(path.resolve()) if is_file else model


def has_servers(values: Mapping[str, Any], tell: Callable[[str], None]) -> bool:
    """Whether a server may answer. Raises UsageError for options that it cannot follow.

    Nothing is connected, so the prompt can be read first. tell: told the option for
    which no server is used.
    """
    where = values["server"]
    if where == "off":
        return False
    option = not_sent(click.get_current_context())
    if where != "auto":
        if option:
            raise click.UsageError(f"{option} needs --server off, or no --server")
        return True
    found = bool(running_servers())
    if found and option:
        tell(f"no server is used, as {option} is given")
    return found and not option


def connected(values: Mapping[str, Any], call: Call, *, loud: bool = False) -> Served:
    """A server's model for the options of a command, loaded if it was not.

    loud: say for which option a server is not used, also without --verbose. Raises
    NotServed; ServerLost, ServerRefused and ConfigError for a server that was given by
    its URL.
    """
    where = values["server"]
    if where != "auto":
        return _given(Connection(where, os.environ.get(KEY_VARIABLE)), values)
    for connection in own_servers():
        try:
            return _suitable(connection, values)
        except (NotServed, ServerLost, ServerRefused) as why:
            differs = isinstance(why, NotServed) and not isinstance(why, OtherModels)
            tell = call.say if loud and differs else call.note
            tell(f"the server at {connection.url} is not used: {why}")
            connection.close()
    raise NotServed("the model is loaded here")


def _given(connection: Connection, values: Mapping[str, Any]) -> Served:
    try:
        return _suitable(connection, values)
    except NotServed as why:
        connection.close()
        raise ConfigError(f"{connection.url} cannot answer this: {why}") from why
    except EdgecsError:
        connection.close()
        raise


def _suitable(connection: Connection, values: Mapping[str, Any]) -> Served:
    """The model of the command on a server. Raises NotServed."""
    name = _served_name(connection, reference(values["model"]))
    connection.call("POST", "/models/load", {"model": name})
    props = connection.call("GET", f"/props?model={quote(name, safe='')}")
    model = _described(connection, name, props)
    if values["n_ctx"] not in (0, model.n_ctx):
        raise NotServed(f"its context has {model.n_ctx} tokens")
    if difference := _difference(props.get("settings"), values):
        raise NotServed(f"its {difference} is another one")
    return model


def _described(connection: Connection, name: str, props: Mapping[str, Any]) -> Served:
    """Raises NotServed for what edgecs does not say."""
    if "embedding_length" in props:
        raise NotServed("the model there gives embeddings and writes no text")
    exact, weights = props.get("exact"), props.get("weights")
    if not isinstance(exact, dict) or not isinstance(weights, dict):
        raise NotServed("it is another version of edgecs, or another program")
    reason, template = props.get("off_reason"), props.get("chat_template")
    return Served(
        connection,
        name,
        _size(props, "n_ctx"),
        chain=names(props.get("chain")),
        tiers=f"{props.get('tiers')!s:.200}",
        off_reason=None if reason is None else f"{reason!s:.200}",
        kernels=f"{props.get('kernels')!s:.200}",
        exact=exact,
        weights=Weights(
            _text(weights, "model"),
            _text(weights, "fingerprint"),
            _text(weights, "loading"),
            _size(weights, "tokens"),
        ),
        template=template if isinstance(template, str) else "",
    )


def _size(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name)
    if type(value) is not int or not 0 < value <= MOST_CELLS:
        raise NotServed("it does not answer as edgecs does")
    return value


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise NotServed("it does not answer as edgecs does")
    return value


def _served_name(connection: Connection, wanted: str) -> str:
    """The server's name of the model that a reference means. Raises NotServed."""
    if os.path.isabs(wanted):
        entries = connection.call("GET", "/v1/models").get("data")
        found = [name for name, ref in _references(entries) if ref == wanted]
    else:  # the server knows other names of its models
        try:
            entry = connection.call("GET", f"/v1/models/{quote(wanted, safe='')}")
        except ServerRefused as refusal:
            if refusal.status != 404:
                raise
            raise OtherModels(str(refusal)) from refusal
        pairs = _references([entry])
        found = [name for name, ref in pairs if not os.path.isabs(ref)]
    if not found:
        raise OtherModels(f"it does not serve {wanted}")
    return found[0]


def _references(entries: Any) -> Iterator[tuple[str, str]]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            name, found = entry.get("id"), entry.get("reference")
            if isinstance(name, str) and isinstance(found, str):
                yield name, found


def _difference(settings: Any, values: Mapping[str, Any]) -> str | None:
    """The first setting that texts depend on and that differs; None: there is none."""
    if not isinstance(settings, dict):
        return "version of edgecs"
    ours = {**load_options(dict(values)).having("bits"), "exact": values["exact"]}
    for name, value in ours.items():
        if settings.get(name) != value:
            return name
    usual = settings.get("sampling")
    if not isinstance(usual, dict) or usual.get("logit_bias") != []:
        return "logit bias"
    if values["exact"] == "strict":
        return "type of cells"  # a strict command may change it
    return None


def request_of(
    values: Mapping[str, Any], sampling: Sampling, *, speculative: bool
) -> dict[str, Any]:
    """The fields of a request that say how tokens are chosen. Raises ConfigError."""
    fields = asdict(sampling)
    fields["dry_penalty_last_n"] = fields.pop("dry_last_n")
    fields["dry_sequence_breakers"] = list(fields.pop("dry_breakers"))
    fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if not speculative:
        fields["speculative"] = False
    if values.get("memory") == "off":
        fields["memory"] = False
    return {**fields, **_grammar(values)}


def _grammar(values: Mapping[str, Any]) -> dict[str, Any]:
    """Raises NotServed."""
    given = given_grammar(dict(values))
    if given is None:
        return {}
    kind, text = given
    if kind == "grammar":
        return {"grammar": text}
    try:
        return {"json_schema": json.loads(text)}
    except (ValueError, RecursionError) as error:
        raise NotServed("the schema is not JSON") from error
