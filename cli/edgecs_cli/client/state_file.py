"""The files by which commands find the servers that their user runs on this machine.

Each server has a file in the user's state folder, which it removes at its end. A file
counts only if it belongs to the user and other users cannot read it. Its content is not
trusted: `edgecs.server.http.local_key` says how a server proves itself.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from edgecs.server.http.local_key import KEY, LocalKey

_FORMAT = "edgecs-server"
_LARGEST = 1 << 16  # bytes of a file
_MOST = 64  # files that are read


@dataclass(frozen=True)
class RunningServer:
    """A server as its file describes it. models: the names it offered at its start."""

    url: str
    key: str
    pid: int
    version: str
    models: tuple[str, ...]

    @property
    def local_key(self) -> LocalKey:
        """What it has to prove."""
        return LocalKey(self.key, self.url)


def servers_folder() -> Path:
    """The folder of the files."""
    return Path(platformdirs.user_state_dir("edgecs")) / "servers"


@contextmanager
def published(key: LocalKey, version: str, models: Sequence[str]) -> Iterator[None]:
    """Lets this user's commands find a server, until the end of the block."""
    server = RunningServer(key.url, key.key, os.getpid(), version, tuple(models))
    try:
        path = _write(server)
    except OSError:  # a read-only home: commands load models themselves
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _write(server: RunningServer) -> Path:
    folder = servers_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / f"{server.pid}.json"
    new = folder / f"{server.pid}.{secrets.token_hex(4)}.new"
    text = json.dumps({"format": _FORMAT, **asdict(server)})
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
    return path


def running_servers() -> list[RunningServer]:
    """This user's servers, the last one started first; removes the files of dead ones.

    Files that cannot be read, or that another user could have written, do not count.
    """
    folder = servers_folder()
    try:
        if not _is_private(folder.lstat(), stat.S_ISDIR):
            return []
        with os.scandir(folder) as entries:
            paths = [Path(e.path) for e in entries if e.name.endswith(".json")][:_MOST]
    except OSError:
        return []
    found = []
    for path in paths:
        with suppress(OSError, ValueError, RecursionError):
            began, server = _read(path)
            if _is_alive(server.pid):
                found.append((began, server))
            else:
                path.unlink()
    return [server for _, server in sorted(found, key=lambda one: one[0], reverse=True)]


def _read(path: Path) -> tuple[float, RunningServer]:
    """When a file was written, and what it says. Raises OSError, ValueError."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        about = os.fstat(file.fileno())
        if not _is_private(about, stat.S_ISREG):
            raise ValueError("not a file of this user alone")
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError("too long")
    return about.st_mtime, _parsed(json.loads(data.decode("utf-8")))


def _is_private(about: os.stat_result, kind: Any) -> bool:
    """Whether it belongs to this user, and no other user has any access."""
    if not kind(about.st_mode):
        return False
    if not hasattr(os, "getuid"):  # Windows protects the profile's folders
        return True
    return about.st_uid == os.getuid() and not about.st_mode & 0o077


def _parsed(value: Any) -> RunningServer:
    """Raises ValueError."""
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise ValueError("not a file of a server")
    url, key, pid = value.get("url"), value.get("key"), value.get("pid")
    version, models = value.get("version"), value.get("models")
    if not (isinstance(key, str) and KEY.fullmatch(key)):
        raise ValueError("no key")
    if type(pid) is not int or not 0 < pid < 1 << 31:
        raise ValueError("no process")
    if not (isinstance(url, str) and is_local(url)):
        raise ValueError("no address on this machine")
    if not (isinstance(version, str) and isinstance(models, list)):
        raise ValueError("no version or models")
    return RunningServer(url, key, pid, version, tuple(map(str, models)))


def is_local(url: str) -> bool:
    """Whether a URL is that of a server on a loopback address."""
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if parts.scheme != "http" or host is None or not port or parts.username:
        return False
    return ip_address(host).is_loopback and parts.path == ""


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except OSError:  # there is none, or it is another user's
        return False
    return True
