"""Whether the user wants answers to be kept: asked once, written down."""

from __future__ import annotations

import json
from pathlib import Path

from edgecs.core.files import write_whole
from edgecs.core.reading import read_bounded, reason
from edgecs.errors import ConfigError

_FILE = "consent.json"
_LARGEST = 4096  # bytes


def decided(folder: Path) -> bool | None:
    """What the user has decided; None: nothing yet, or the file is damaged."""
    try:
        found = json.loads(read_bounded(folder / _FILE, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    wanted = found.get("memory") if isinstance(found, dict) else None
    return wanted if isinstance(wanted, bool) else None


def decide(folder: Path, wanted: bool) -> None:
    """Writes a decision down. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"memory": wanted})
        write_whole(folder / _FILE, text.encode(), private=True)
    except OSError as error:
        raise ConfigError(
            f"{folder / _FILE} cannot be written ({reason(error)}): check the rights "
            "of the folder"
        ) from error
