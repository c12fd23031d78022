"""Virtual environments of peers, created once and kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

from edgecs_bench.peers.failure import PeerFailed
from edgecs_bench.peers.table import Peer


def venv_for(peer: Peer, root: Path, progress: Callable[[str], None]) -> Path:
    """The interpreter of a peer; installs its packages if they are missing.

    root: the folder of all peers. A folder gets its final name when it is complete, so
    an interrupted install starts over. Raises PeerFailed.
    """
    if not peer.requirements:
        return Path(sys.executable)
    folder = root / f"{peer.name}-{fingerprint(peer)}"
    if not folder.exists():
        progress(f"installing {', '.join(peer.requirements)}")
        try:
            _make(peer, folder)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PeerFailed(f"{peer.name} cannot be installed: {error}") from error
    return folder / _PYTHON


def fingerprint(peer: Peer) -> str:
    """A hash of the packages, the build settings and the Python version."""
    made_of = [peer.requirements, sys.version_info[:2]]
    data = json.dumps(made_of, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:12]


_PYTHON = Path("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _make(peer: Peer, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{peer.name}-", dir=folder.parent
    ) as part:
        made = Path(part) / "venv"
        venv.create(made, with_pip=True, symlinks=sys.platform != "win32")
        _install(peer, made / _PYTHON)
        try:
            made.rename(folder)
        except OSError:
            # Another run was faster; its environment is the same.
            if not folder.exists():
                raise


def _install(peer: Peer, python: Path) -> None:
    """Raises PeerFailed with the last of pip's errors."""
    command = [str(python), "-I", "-m", "pip", "install", "--quiet", "--no-input"]
    # pip would reuse a wheel that was built with other settings.
    done = subprocess.run(
        [*command, "--disable-pip-version-check", *peer.requirements],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR:")] or said[-1:]
        why = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
        raise PeerFailed(f"{peer.name} cannot be installed: {why}")
