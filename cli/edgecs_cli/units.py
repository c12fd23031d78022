"""Units that start `edgecs serve` at login: systemd on Linux, launchd on macOS."""

from __future__ import annotations

import os
import plistlib
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgecs.core.reading import read_bounded, reason
from edgecs.errors import ConfigError
from edgecs_cli.console import echo, say
from edgecs_cli.options.references import Reference

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "Written by edgecs serve, which also replaces and removes this file."
_LARGEST = 64 << 10  # bytes of a unit
_USUAL_PORT = 8080
_KILL = 15.0  # chosen: seconds after --drain, for freeing the model
_GIVEN = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}
_NOT_PASSED = {"install_unit", "uninstall_unit", "api_key"}
# Where models, settings and GPUs are found; a unit does not get a shell's variables.
_ENVIRONMENT = (
    "EDGECS_CONFIG",
    "HF_HOME",
    "HF_HUB_CACHE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "CUDA_VISIBLE_DEVICES",
)


def unit_options(command: F) -> F:
    """The options --install-unit and --uninstall-unit."""
    for name, what in (
        ("--uninstall-unit", "Remove the unit of this --port, and exit."),
        (
            "--install-unit",
            "Write a unit that serves with these options at login, and exit: systemd "
            "on Linux, launchd on macOS.",
        ),
    ):
        command = click.option(name, is_flag=True, help=what)(command)
    return command


def manage(ctx: click.Context, port: int, drain: float) -> bool:
    """Installs or removes a unit if an option asks for it; False: no option does.

    Raises ConfigError.
    """
    if ctx.params["install_unit"] and ctx.params["uninstall_unit"]:
        raise click.UsageError("--install-unit and --uninstall-unit exclude each other")
    if not (ctx.params["install_unit"] or ctx.params["uninstall_unit"]):
        return False
    if not port:
        raise ConfigError("a unit needs a port of its own: give a --port other than 0")
    unit = _unit(port)
    if ctx.params["uninstall_unit"]:
        _remove(unit)
    else:
        _install(unit, list(_arguments(ctx)), drain)
        _warn_of_key(ctx.params.get("api_key_file"))
    return True


@dataclass(frozen=True)
class Unit:
    """A unit's name and file. text: its content for a command and seconds to end."""

    name: str
    path: Path
    text: Callable[[str, list[str], float], bytes]
    start: tuple[str, ...]  # what to run after an installation
    stop: tuple[str, ...]


def _unit(port: int) -> Unit:
    name = "edgecs" if port == _USUAL_PORT else f"edgecs-{port}"
    if sys.platform == "darwin":
        path = Path.home() / "Library" / "LaunchAgents" / f"{name}.plist"
        user = f"gui/{os.getuid()}"
        start = (f"launchctl bootstrap {user} {path}",)
        return Unit(name, path, _plist, start, (f"launchctl bootout {user}/{name}",))
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            f"there are no units for {sys.platform}: start edgecs serve with the "
            "scheduler of your system"
        )
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    service, reload = f"{name}.service", "systemctl --user daemon-reload"
    start = (
        reload,
        f"systemctl --user enable --now {service}",
        f"journalctl --user -u {service} -f    # its messages",
        "loginctl enable-linger    # if it has to run without a login",
    )
    stop = (f"systemctl --user stop {service}", reload)
    return Unit(service, Path(config) / "systemd" / "user" / service, _ini, start, stop)


def _arguments(ctx: click.Context) -> Iterator[str]:
    """The options that were given, with absolute paths. Raises ConfigError."""
    if ctx.params.get("api_key") and ctx.get_parameter_source("api_key") in _GIVEN:
        raise ConfigError(
            "the API key is not written into a unit: put it into a file that only you "
            "can read, and give --api-key-file"
        )
    for param in ctx.command.params:
        name = param.name or ""
        if name in _NOT_PASSED or ctx.get_parameter_source(name) not in _GIVEN:
            continue
        value = ctx.params[name]
        if isinstance(value, bool):
            yield (param.opts if value else param.secondary_opts)[-1]
            continue
        for one in value if param.multiple else (value,):
            yield from (param.opts[-1], _absolute(param, one))


def _absolute(param: click.Parameter, value: object) -> str:
    """A value as text; a unit starts in another folder."""
    is_path = isinstance(param.type, click.Path)
    if is_path or (isinstance(param.type, Reference) and os.path.exists(str(value))):
        return os.path.abspath(str(value))
    return str(value)


def _install(unit: Unit, arguments: list[str], drain: float) -> None:
    again = _is_ours(unit.path)
    command = [sys.executable, "-m", "edgecs_cli", "serve", *arguments]
    _write(unit.path, unit.text(unit.name, command, drain + _KILL))
    echo(str(unit.path))
    restart = "; a running server keeps its old options until it is restarted"
    say(f"the unit was {f'replaced{restart}' if again else 'written'}. Run next:")
    for line in unit.start:
        say(f"  {line}")


def _remove(unit: Unit) -> None:
    if not _is_ours(unit.path):
        say(f"the unit {unit.path} does not exist, so there is nothing to remove")
        return
    wanted = unit.path.parent / "default.target.wants" / unit.name
    try:
        if wanted.is_symlink():  # what `systemctl --user disable` removes
            wanted.unlink()
        unit.path.unlink()
    except OSError as error:
        raise ConfigError(f"{unit.path} cannot be removed: {reason(error)}") from error
    echo(str(unit.path))
    say("the unit was removed. Run next, if the server runs:")
    for line in unit.stop:
        say(f"  {line}")


def _is_ours(path: Path) -> bool:
    """Whether edgecs wrote the file; False: there is none. Raises ConfigError."""
    try:
        if path.is_symlink():
            raise ConfigError(_foreign(path))
        text = read_bounded(path, _LARGEST)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}") from error
    if _MARK.encode() not in text:
        raise ConfigError(_foreign(path))
    return True


def _foreign(path: Path) -> str:
    return f"{path} was not written by edgecs: move it away, or give another --port"


def _write(path: Path, text: bytes) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".edgecs-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
            os.replace(name, path)
        except OSError:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {reason(error)}") from error


def _warn_of_key(path: Path | None) -> None:
    with suppress(OSError):
        if path and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            say(f"other users can read {path}: run chmod 600 {path}")


def _ini(name: str, command: list[str], seconds: float) -> bytes:
    """A systemd user unit.

    Only settings that an unprivileged manager can apply: those with a file system of
    their own (ProtectSystem, PrivateTmp) need user namespaces, which many systems
    forbid and which hide the groups that a GPU's device needs.
    """
    variables = "".join(
        f"Environment={_quoted(f'{key}={value}')}\n"
        for key, value in _environment().items()
    )
    return f"""\
# {_MARK}
[Unit]
Description=edgecs serve ({name})

[Service]
Type=exec
ExecStart={" ".join(map(_quoted, command))}
{variables}\
Restart=on-failure
RestartSec=5
# Invalid options and missing models stay so.
RestartPreventExitStatus=2 3
SuccessExitStatus=143
TimeoutStopSec={seconds:.0f}
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=default.target
""".encode("utf-8", "surrogateescape")


def _quoted(text: str) -> str:
    r"""An argument as systemd reads it.

    >>> _quoted("a b"), _quoted("100%"), _quoted('$x"')
    ('"a b"', '"100%%"', '"$$x\\""')
    """
    if re.fullmatch(r"[A-Za-z0-9_./:=@,+-]+", text):
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    text = text.replace("%", "%%").replace("$", "$$")
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\x{ord(m[0]):02x}", text) + '"'


def _plist(name: str, command: list[str], seconds: float) -> bytes:
    """A launchd agent."""
    logs = str(Path.home() / "Library" / "Logs" / f"{name}.log")
    text = plistlib.dumps(
        {
            "Label": name,
            "ProgramArguments": command,
            "EnvironmentVariables": dict(_environment()),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": round(seconds),
            "ProcessType": "Interactive",  # others get less of the CPU
            "Umask": 0o077,
            "StandardErrorPath": logs,
        }
    )
    head, _, rest = text.partition(b"\n")
    return head + f"\n<!-- {_MARK} -->\n".encode() + rest


def _environment() -> Mapping[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)}
