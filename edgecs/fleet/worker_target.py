"""The target of a worker: the same file as on the machine that gives it work."""

from __future__ import annotations

import hashlib
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError
from edgecs.hub.download import file_sha256, split_parts
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded, load

_SHOWN = 12  # digits of a checksum in a message


@dataclass(frozen=True)
class WorkerFile:
    """A model's file, or the folder of a drafter, that workers have too.

    reference: a name, or an absolute path. sha256: see `checksum`.
    """

    reference: str
    sha256: str

    @staticmethod
    def of(reference: str, path: Path) -> WorkerFile:
        """The file or folder of this machine that a reference stands for."""
        given = Path(reference).expanduser()
        name = str(given.resolve()) if given.exists() else reference
        return WorkerFile(name, checksum(path))

    def check(self, path: Path | None) -> Path:
        """The path that was found on this machine.

        Raises ModelError if there is no file or another one.
        """
        here = platform.node() or "this machine"
        if path is None or not path.exists():
            raise ModelError(
                f"{here} has no file of {self.reference}: copy it to the same path "
                "there, or pull the model by its name"
            )
        if (found := checksum(path)) != self.sha256:
            raise ModelError(
                f"{path} on {here} is another file (SHA-256 {found[:_SHOWN]}..., not "
                f"{self.sha256[:_SHOWN]}...): copy the one that is used here"
            )
        return path


@dataclass(frozen=True)
class WorkerTarget:
    """A target that workers load by themselves."""

    file: WorkerFile
    options: LoadOptions

    @staticmethod
    def of(reference: str, path: Path, options: LoadOptions) -> WorkerTarget:
        """The target in a file of this machine."""
        return WorkerTarget(WorkerFile.of(reference, path), options)

    def load(self, cancel: threading.Event) -> Loaded:
        """Loads it. Raises what `WorkerFile.check` and `load` raise."""
        folders = Folders(offline=True)
        path = self.file.check(folders.store.find(self.file.reference).path)
        return load(path, self.options, cancel=cancel, findings=folders.findings)


def checksum(path: Path) -> str:
    """SHA-256 of a file; of a folder or a split model, of the checksums of its files.

    Raises ModelError if it cannot be read.
    """
    if path.is_dir():
        parts = sorted(file for file in path.iterdir() if file.is_file())
    else:
        parts = [path.parent / name for name in split_parts(path.name)]
    try:
        sums = [file_sha256(part) for part in parts]
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(sums).encode()).hexdigest()
