"""Run code in a child process, as it may crash or compute wrong results.

The outcome is a verb phrase for a message. Certain outcomes are stored in a file, for
one build of the engine.
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
"""The child's exit code for WRONG, which Python does not use itself."""
_LARGEST = 1 << 10  # bytes of the file that stores an outcome


def tried(script: str, limit: float, *arguments: str) -> str:
    """The outcome of a script: one of CERTAIN, or another verb phrase.

    limit: seconds. The script is passed a temporary folder, the arguments and then
    sys.path.
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
    """The outcome that an exit code stands for."""
    if code == 0:
        return WORKS
    if code == DISAGREES:
        return WRONG
    if child.is_fault(code):
        return CRASHES
    name = child.ended_by(code)
    return f"was ended by {name}" if name else f"ended with exit code {code}"


def read(kept: Path, build: str, name: str) -> str | None:
    """The stored outcome for this build; None if there is no valid one."""
    try:
        table = json.loads(read_bounded(kept, _LARGEST))
    except (OSError, ValueError, RecursionError):  # RecursionError: [[[[[[...
        return None
    for found in CERTAIN:
        if table == {"build": build, name: found}:
            return found
    return None


def write(kept: Path, build: str, name: str, found: str) -> None:
    """Store a certain outcome."""
    # If the file cannot be written, the next process runs the trial again.
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
        start_new_session=True,  # Ctrl-C must not reach it: it would look like a crash
    ).returncode
