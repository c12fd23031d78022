"""Option values from the config file and the environment.

    default < config file < environment < command line

The file is TOML, in the platform's config folder (`edgecs doctor --show-config` prints
its path). Keys are options without their dashes; keys outside a table apply to every
command that has the option.

    threads = 4
    [chat]
    model = "smollm2-135m-instruct"
    temp = 0.7
    [convert.gguf]
    output = "models"

Environment variables are `EDGECS_CHAT_TEMP` and `EDGECS_CONVERT_GGUF_OUTPUT` for one
command, `EDGECS_TEMP` for all.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import platformdirs

_PREFIX = "EDGECS"
_LARGEST = 1 << 20  # bytes
_ALSO_OPTIONS = frozenset({"stop"})  # commands with the name of an option


class BadConfig(click.ClickException):
    """An invalid config file; not an EdgecsError, as the library is not loaded yet."""

    exit_code = 2


class Given(NamedTuple):
    """An option value that is not from the command line, and its origin."""

    command: str
    option: str  # without dashes
    value: Any
    origin: str


def config_path() -> Path:
    """The path of the config file; `EDGECS_CONFIG` overrides it."""
    other = os.environ.get(f"{_PREFIX}_CONFIG")
    return Path(other or Path(platformdirs.user_config_dir("edgecs")) / "config.toml")


def read_config(path: Path) -> dict[str, Any]:
    """The file as a table; empty if there is no file. Raises BadConfig."""
    if not (f"{_PREFIX}_CONFIG" in os.environ or path.exists()):
        return {}
    from edgecs.core.reading import read_given, reason  # not needed for help

    try:
        text = read_given(path, _LARGEST)
    except FileNotFoundError as error:
        raise BadConfig(f"there is no file {path} ({_PREFIX}_CONFIG)") from error
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {reason(error)}") from error
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadConfig(f"{path} is not TOML: {reason(error)}") from error


def _flag(param: click.Parameter) -> str:
    """The long name of an option without its dashes; "" if it is not an option."""
    if not isinstance(param, click.Option):
        return ""
    long = [name for name in param.opts if name.startswith("--")]
    return long[0].removeprefix("--") if long else ""


def option_names(command: click.Command) -> set[str]:
    """Every option of a command and its subcommands."""
    below = _below(command).values()
    return set(_options(command)).union(*map(option_names, below))


def listen(command: click.Command, name: str) -> None:
    """Sets the environment variables of a command's options, and of its subcommands'.

    name: the full one, as "models pull".
    """
    head = re.sub("[ -]", "_", name).upper()
    for option, param in _options(command).items():
        if not param.envvar:
            tail = option.replace("-", "_").upper()
            param.envvar = [f"{_PREFIX}_{head}_{tail}", f"{_PREFIX}_{tail}"]
    for below, inner in _below(command).items():
        listen(inner, f"{name} {below}")


def defaults(
    command: click.Command, name: str, table: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The file's values for a command, as click's `default_map`.

    Options are under click's names; a subcommand with values has a dict of its own.
    Raises BadConfig for a key that the command does not know.
    """
    general = {key: value for key, value in table.items() if not _is_table(value)}
    return _command_values(command, name, _own(table, name), general, path)


def _own(table: Mapping[str, Any], name: str) -> Any:
    """The table of a command; {} if its key is the value of an option instead."""
    own = table.get(name, {})
    return {} if name in _ALSO_OPTIONS and not _is_table(own) else own


def _command_values(
    command: click.Command,
    name: str,
    own: Any,
    general: Mapping[str, Any],
    path: Path,
) -> dict[str, Any]:
    """`defaults` of one command. own: its table, general: values of every command."""
    if not _is_table(own):
        raise BadConfig(f"{path}: {name} must be a table, [{name}], got {own!r}")
    known, below = _options(command), _below(command)
    tables = {key: own[key] for key in below if _is_table(own.get(key))}
    values = {key: value for key, value in own.items() if key not in tables}
    if unknown := [key for key in values if key not in known]:
        hint = _hint(unknown[0], [*known, *below], f"[{name}]")
        raise BadConfig(f"{path}: {hint}")
    found: dict[str, Any] = {
        str(known[key].name): _value(known[key], value)
        for key, value in {**general, **values}.items()
        if key in known
    }
    for key, inner in below.items():
        if more := _command_values(
            inner, f"{name}.{key}", tables.get(key, {}), general, path
        ):
            found[key] = more
    return found


def check_names(
    table: Mapping[str, Any], path: Path, commands: Sequence[str], options: set[str]
) -> None:
    """Raises BadConfig for a table or a key that no command knows."""
    for key, value in table.items():
        known = list(commands) if _is_table(value) else sorted(options)
        if key not in known:
            raise BadConfig(f"{path}: {_hint(key, known, 'the file')}")


def given(
    name: str, command: click.Command, table: Mapping[str, Any], path: Path
) -> Iterator[Given]:
    """Every value of a command and its subcommands that is not a default."""
    yield from _given(
        [name], command, table, defaults(command, name, table, path), path
    )


def _given(
    names: Sequence[str],
    command: click.Command,
    table: Mapping[str, Any],
    values: Mapping[str, Any],
    path: Path,
) -> Iterator[Given]:
    """`given` of one command. names: its full name, table: its parent's."""
    own = _own(table, names[-1])
    for option, param in _options(command).items():
        for variable in param.envvar or ():
            if os.environ.get(variable):
                yield Given(" ".join(names), option, os.environ[variable], variable)
                break
        else:
            if param.name in values:
                where = f"{path} [{'.'.join(names)}]" if option in own else str(path)
                yield Given(" ".join(names), option, values[param.name], where)
    for below, inner in _below(command).items():
        yield from _given([*names, below], inner, own, values.get(below, {}), path)


def _options(command: click.Command) -> dict[str, click.Parameter]:
    return {_flag(param): param for param in command.params if _flag(param)}


def _below(command: click.Command) -> Mapping[str, click.Command]:
    return command.commands if isinstance(command, click.Group) else {}


def _value(param: click.Parameter, value: Any) -> Any:
    """A value as click expects it: a list if the option repeats, else a string."""
    if isinstance(param, click.Option) and param.is_flag and isinstance(value, bool):
        return value
    if param.multiple:
        return [_typed(one) for one in (value if isinstance(value, list) else [value])]
    return _typed(value)


def _typed(value: Any) -> str:
    """A value as typed on the command line, so that click checks it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _hint(key: str, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `edgecs COMMAND --help`"
    return f"unknown key {key!r} in {where}; {hint}"
