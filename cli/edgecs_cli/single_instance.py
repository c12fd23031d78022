"""At most one server of a user for each port: a second one says which runs already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from edgecs.core.reading import read_bounded
from edgecs.errors import ConfigError

_LARGEST = 4096  # bytes of the file that names the running server


@contextmanager
def single_instance(port: int, url: str) -> Iterator[None]:
    """Holds the lock of a port while a server runs there; port 0 has none.

    The operating system releases the lock if the process dies. Raises ConfigError if
    another process of this user holds it.
    """
    folder = Path(platformdirs.user_state_dir("edgecs")) / "serve"
    about = folder / f"{port}.json"
    lock = FileLock(folder / f"{port}.lock", timeout=0)
    try:
        if port:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            about.write_text(json.dumps({"pid": os.getpid(), "url": url}))
    except Timeout as error:
        raise ConfigError(
            f"a server of yours runs already on port {port}{_named(about)}: use it, "
            "end it, or give another --port"
        ) from error
    except OSError:
        pass  # a folder that cannot be written: the port itself is still exclusive
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                about.unlink()
            lock.release()


def _named(about: Path) -> str:
    """The process and the address of the running server, if its file names them."""
    try:
        found: Any = json.loads(read_bounded(about, _LARGEST))
        pid, url = int(found["pid"]), str(found["url"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" (pid {pid}, {url})" if url.isprintable() else ""
