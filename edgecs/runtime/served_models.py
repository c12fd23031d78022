"""The models that a server offers by name.

A name from a request is looked up, and never used as a path.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgecs.calibrate.bundled_drafters import bundled_for
from edgecs.core.reading import shown
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import MARGIN
from edgecs.errors import Cancelled, EdgecsError
from edgecs.hub.download import Progress, split_parts
from edgecs.hub.store import Model, Store, quiet

_LISTED = 12  # names in a message


class UnknownModel(EdgecsError):
    """A name that is not offered."""

    exit_code = 3


@dataclass(frozen=True)
class ServedModel:
    """A model that can be loaded.

    reference: for other programs on this machine: the name in the store, or the
    absolute path of a file. path: None: it is not on this machine.
    """

    name: str
    reference: str
    path: Path | None

    @property
    def size(self) -> int:
        """Bytes of its files; 0 if they are not here."""
        return sum(part.stat().st_size for part in self.parts if part.exists())

    @property
    def parts(self) -> list[Path]:
        """All files of the model."""
        if self.path is None:
            return []
        return [self.path.with_name(part) for part in split_parts(self.path.name)]


class ServedModels:
    """Names and their models; may be used from any thread.

    given: models of the command line, which come first. store: where other names are
    looked up; None: there are no others. downloads: whether models that are not here
    may be downloaded.
    """

    def __init__(
        self,
        given: Mapping[str, ServedModel],
        store: Store | None = None,
        *,
        downloads: bool = False,
        progress: Progress = quiet,
    ) -> None:
        self._given, self._store = dict(given), store
        self._downloads, self._progress = downloads, progress
        self._pulling, self._stopping = threading.Lock(), threading.Event()

    def all(self) -> list[ServedModel]:
        """The models that are here, in the order of their names."""
        found = dict(self._given)
        store = self._store
        for model in (*store.models(), *store.others()) if store else ():
            if model.path and model.manifest.name not in found:
                found[model.manifest.name] = _of_store(model)
        return list(found.values())

    def find(self, name: str) -> ServedModel:
        """The model of a name, or of another name that it has. No network.

        Ollama's clients end names with `:latest`. Raises UnknownModel.
        """
        name = name.removesuffix(":latest")
        if name in self._given:
            return self._given[name]
        model = self._store.named(name) if self._store else None
        if model is None or not (model.path or self._downloads):
            raise UnknownModel(self._unknown(name))
        return _of_store(model)

    def path(self, model: ServedModel) -> Path:
        """The file of a model, downloaded first if that is allowed and necessary.

        Raises FetchError, ModelError, UnknownModel.
        """
        if model.path is not None:
            return model.path
        if not self._downloads or self._store is None:
            raise UnknownModel(self._unknown(model.name))
        with self._pulling:
            return self._store.pull_named(model.name, self._advance)

    def stop(self) -> None:
        """End a download; one from Hugging Face ends at its next file."""
        self._stopping.set()

    def _advance(self, what: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Cancelled(f"the download of {what} was stopped")
        self._progress(what, done, total)

    def _unknown(self, name: str) -> str:
        names = [model.name for model in self.all()]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = ", ".join(names[:_LISTED]) + more or "none: run edgecs models pull"
        return f"there is no model {shown(name)} here{hint}: the models are {listed}"


def _of_store(model: Model) -> ServedModel:
    name = model.manifest.name
    return ServedModel(name, name, model.path)


def model_of_path(name: str, reference: str, path: Path) -> ServedModel:
    """A model of the command line, of which `path` is the file.

    Where the reference is the path of a file, it becomes absolute.
    """
    given = Path(reference).expanduser()
    is_file = (
        given.is_absolute() or given.exists() or given.suffix in (".gguf", ".toml")
    )
    return ServedModel(name, str(given.resolve()) if is_file else reference, path)


def fits_memory(
    model: ServedModel, options: LoadOptions, *, drafter: bool = False
) -> bool:
    """Whether a model fits into the memory that is available now.

    Its files, the KV cells of all sequences and a margin of 1 GiB have to fit into what
    the system reports as available; memory of accelerators is not considered. drafter:
    whether its bundled drafter may be loaded with it, which has a fraction of a MiB of
    cells for each sequence.
    """
    needed = model.size + kv_bytes_of(model, options) + MARGIN
    folder = bundled_for(model.name) if drafter else None
    if folder is not None:
        needed += sum(file.stat().st_size for file in folder.iterdir())
    return needed <= psutil.virtual_memory().available


def kv_bytes_of(model: ServedModel, options: LoadOptions) -> int:
    """Bytes of a model's KV cells by its header; 0 if that cannot be read."""
    from edgecs.engines.llama.layers import kv_cells

    if model.path is None:
        return 0
    return kv_cells(model.path, options)
