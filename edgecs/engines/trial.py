"""Code that may end its process or compute nonsense, tried in a child process.

What came of it is a verb for a sentence. What is certain is kept in a file, for one
build of the engine.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from edgecs.core.files import write_whole
from edgecs.core.reading import read_bounded
from edgecs.engines import child

WORKS, CRASHES, WRONG = "works", "crashes", "computes nonsense"
CERTAIN = (WORKS, CRASHES, WRONG)
DISAGREES = 3
"""The child's exit code for WRONG, not one that Python has a use for."""
_LARGEST = 1 << 10  # bytes of the file that keeps a finding


def tried(script: str, limit: float, *arguments: str) -> str:
    """What becomes of a script: one of CERTAIN, or something else as a verb.

    limit: seconds. The script gets a folder that is removed afterwards, the arguments,
    and then where to import from.
    """
    if not child.can_start():
        return "needs a Python of its own"
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return verdict(_exit_code(script, limit, folder, *arguments))
    except subprocess.TimeoutExpired:
        return f"did not end within {limit:.0f} s"
    except OSError as error:
        return f"did not start ({error.strerror})"


def verdict(code: int) -> str:
    """What an exit code says."""
    if code == 0:
        return WORKS
    if code == DISAGREES:
        return WRONG
    if child.is_fault(code):
        return CRASHES
    name = child.ended_by(code)
    return f"was ended by {name}" if name else f"ended with exit code {code}"


def read(kept: Path, build: str, name: str) -> str | None:
    """What was found for this build; None: nothing that `write` has written."""
    try:
        table = json.loads(read_bounded(kept, _LARGEST))
    except (OSError, ValueError, RecursionError):  # the latter by [[[[[[...
        return None
    for found in CERTAIN:
        if table == {"build": build, name: found}:
            return found
    return None


def write(kept: Path, build: str, name: str, found: str) -> None:
    """Keeps what is certain."""
    # Where nothing can be kept, the next process tries again.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps({"build": build, name: found}).encode())


def _exit_code(script: str, limit: float, *arguments: str) -> int:
    return subprocess.run(
        child.command(script, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=limit,
        start_new_session=True,  # a Ctrl-C is not for it, and would look like a crash
    ).returncode
