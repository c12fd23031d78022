"""Where options get their values when nobody types them.

    default < config file < environment < command line

The file is TOML, in the platform's place for it (`edgecs doctor --show-config` names
it). Keys are options without their dashes; what stands in no table is for every command
that has such an option.

    threads = 4
    [chat]
    model = "smollm2-135m-instruct"
    temp = 0.7

The environment has `EDGECS_CHAT_TEMP` for one command, `EDGECS_TEMP` for all.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import platformdirs

_PREFIX = "EDGECS"
_LARGEST = 1 << 20  # bytes


class BadConfig(click.ClickException):
    """A file that cannot be used; no error of the library, which is not loaded yet."""

    exit_code = 2


class Given(NamedTuple):
    """A value that was not typed, and where it came from."""

    command: str
    option: str  # without dashes
    value: Any
    origin: str


def config_path() -> Path:
    """The file that is read; `EDGECS_CONFIG` names another."""
    other = os.environ.get(f"{_PREFIX}_CONFIG")
    return Path(other or Path(platformdirs.user_config_dir("edgecs")) / "config.toml")


def read_config(path: Path) -> dict[str, Any]:
    """The file as a table; empty where there is none. Raises BadConfig."""
    named = f"{_PREFIX}_CONFIG" in os.environ
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError as error:
        if named:
            raise BadConfig(f"there is no file {path} ({_PREFIX}_CONFIG)") from error
        return {}
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > _LARGEST:
        raise BadConfig(f"{path} is larger than a MiB: that is no configuration")
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from error


def flag(param: click.Parameter) -> str:
    """The long name of an option without its dashes; "" for what is no option."""
    if not isinstance(param, click.Option):
        return ""
    long = [name for name in param.opts if name.startswith("--")]
    return long[0].removeprefix("--") if long else ""


def listen(command: click.Command, name: str) -> None:
    """Has the options of a command listen to the environment."""
    for param in command.params:
        option = flag(param)
        if option and not param.envvar:
            tail = option.replace("-", "_").upper()
            head = name.replace("-", "_").upper()
            param.envvar = [f"{_PREFIX}_{head}_{tail}", f"{_PREFIX}_{tail}"]


def defaults(
    command: click.Command, name: str, table: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """What the file says about the options of a command, by the names of click.

    Raises BadConfig for a key that the command does not know.
    """
    known = _options(command)
    own = table.get(name, {})
    if not isinstance(own, Mapping):
        raise BadConfig(f"{path}: {name} must be a table, [{name}], got {own!r}")
    unknown = [key for key in own if key not in known]
    if unknown:
        raise BadConfig(f"{path}: {_hint(unknown[0], list(known), f'[{name}]')}")
    general = {k: v for k, v in table.items() if k in known and not _is_table(v)}
    return {
        str(known[key].name): _value(known[key], value)
        for key, value in {**general, **own}.items()
    }


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
    """Every value of a command that is not a default, as it would be used now."""
    own, said = table.get(name, {}), defaults(command, name, table, path)
    for option, param in _options(command).items():
        for variable in param.envvar or ():
            if os.environ.get(variable):
                yield Given(name, option, os.environ[variable], variable)
                break
        else:
            if param.name in said:
                where = f"{path} [{name}]" if option in own else str(path)
                yield Given(name, option, said[param.name], where)


def _options(command: click.Command) -> dict[str, click.Parameter]:
    return {flag(param): param for param in command.params if flag(param)}


def _value(param: click.Parameter, value: Any) -> Any:
    """Click wants lists for what may be repeated, and texts for the rest."""
    if param.multiple:
        return value if isinstance(value, list) else [value]
    return value if isinstance(value, bool) else str(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _hint(key: str, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `edgecs COMMAND --help`"
    return f"unknown key {key!r} in {where}; {hint}"
