"""A file of a model on this machine, compared with what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgecs.core.reading import reason
from edgecs.hub.download import Progress, file_sha256
from edgecs.hub.manifest import Manifest


class LocalFile(NamedTuple):
    """A file of a model, with its size (bytes) and checksum where known."""

    path: Path
    size: int | None
    sha256: str | None

    def problem(self, progress: Progress) -> str | None:
        """What is wrong with the file; None: nothing that is known."""
        try:
            size = self.path.stat().st_size
            if self.size not in (None, size):
                return f"has {size} bytes instead of {self.size}"
            if self.sha256 and file_sha256(self.path, progress) != self.sha256:
                return "has the wrong checksum"
        except OSError as error:
            return f"cannot be read ({reason(error)})"
        return None


def stated(path: Path, manifest: Manifest) -> LocalFile:
    """A file with the size and checksum of its manifest."""
    return LocalFile(path, manifest.size, manifest.sha256)
