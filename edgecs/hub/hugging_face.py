"""Models on Hugging Face and in its cache on this machine.

Importing this does not import huggingface_hub, whose HTTP library, and so its
exceptions, differ by version.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgecs.core.reading import reason
from edgecs.errors import FetchError, ModelError
from edgecs.hub.download import split_parts
from edgecs.hub.manifest import HubSource, build
from edgecs.hub.quantisation import is_model

logger = logging.getLogger("edgecs.hub")
# huggingface_hub 2 has forks of httpx and httpcore with a number in their names.
_HTTP_LIBRARIES = re.compile(r"requests|urllib3|httpx\d*|httpcore\d*")


def fetch_from_hub(source: HubSource) -> Path:
    """The path of a file in the Hugging Face cache, downloaded if missing.

    All parts of a split model are downloaded; the path is that of the first.
    """
    import huggingface_hub as hub

    parts = split_parts(source.file)
    try:
        with _retries_told_once():
            paths = [
                hub.hf_hub_download(source.repo, part, revision=source.revision)
                for part in parts
            ]
        return Path(paths[0])
    except Exception as error:
        file = f"{source.repo}/{source.file}"
        raise _failure(f"{file} could not be fetched", error) from error


def hub_files(repo: str) -> list[str]:
    """The files of a repository on the hub."""
    import huggingface_hub as hub

    try:
        with _retries_told_once():
            return hub.list_repo_files(repo)
    except Exception as error:
        raise _failure(f"{repo} could not be looked up", error) from error


def cached_parts(source: HubSource) -> list[Path]:
    """The file, or all its parts, if none is missing in the cache."""
    import huggingface_hub as hub

    if not source.file:
        return []
    found = [
        hub.try_to_load_from_cache(source.repo, part, revision=source.revision)
        for part in split_parts(source.file)
    ]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(found) else []


def blob_sha256(path: Path) -> str | None:
    """The checksum of a file in the hub's cache, if it is a link to its blob."""
    name = path.resolve().name if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def cached_files(repo: str) -> list[str]:
    """The GGUF files of a repository that are in the cache."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(hub.snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        return []
    return [f.relative_to(folder).as_posix() for f in folder.rglob("*.gguf")]


def cached_models() -> list[tuple[HubSource, Path]]:
    """The GGUF models in the cache, with their files; sorted by name."""
    found = {}
    for repo in _cached_repos():
        for revision in repo.revisions:
            for file in revision.files:
                inside = file.file_path.relative_to(revision.snapshot_path).as_posix()
                names = {"repo": repo.repo_id, "file": inside}
                with suppress(ModelError):  # names of folders can be anything
                    source = build(HubSource, names, "the cache of Hugging Face")
                    if is_model(inside):
                        found[source] = file.file_path
    return sorted(found.items(), key=lambda item: (item[0].repo, item[0].file))


def _cached_repos() -> list[Any]:
    import huggingface_hub as hub
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = hub.scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [repo for repo in repos if repo.repo_type == "model"]


def remove_cached(source: HubSource) -> list[Path]:
    """Deletes one file (all its parts) from the cache, and no other complete file.

    All unfinished downloads of the repository are deleted, as their files are unknown.
    """
    parts = split_parts(source.file)
    gone, blobs = [], set()
    for repo in _cached_repos():
        if repo.repo_id == source.repo:
            unfinished = list(repo.repo_path.glob("blobs/*.incomplete"))
            gone += unfinished
            blobs.update(unfinished)
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


class _Retries(logging.Handler):
    """Replaces the raw errors that huggingface_hub logs for each retry by one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of the first retry."""
        if not self._told and "retry" in record.getMessage().lower():
            self._told = True
            logger.warning("Hugging Face does not answer, trying again")


@contextmanager
def _retries_told_once() -> Iterator[None]:
    """Keeps huggingface_hub from logging a raw error for each request it retries."""
    from huggingface_hub.utils import logging as hub_logging

    theirs = hub_logging.get_logger("huggingface_hub")  # adds the hub's own handler
    before = theirs.handlers, theirs.propagate
    theirs.handlers, theirs.propagate = [_Retries()], False
    try:
        yield
    finally:
        theirs.handlers, theirs.propagate = before


def _failure(failed: str, error: Exception) -> FetchError:
    """The hub's response, or that it was not reached; `failed` begins the sentence.

    error: any exception of huggingface_hub.
    """
    causes = list(_causes(error))
    for cause in causes:
        if getattr(cause, "response", None) is not None:
            return FetchError(f"{failed}: {reason(cause)}")
    lost = [cause for cause in causes if _is_of_the_network(cause)]
    if not lost:
        return FetchError(f"{failed}: {reason(error)}")
    return FetchError(
        f"{failed} because Hugging Face was not reached ({reason(lost[-1])}): check "
        "the connection, or use --offline with a model that is here"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its chain of causes."""
    while error is not None:
        yield error
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)


def _is_of_the_network(error: BaseException) -> bool:
    if _HTTP_LIBRARIES.fullmatch(type(error).__module__.partition(".")[0]):
        return True
    return isinstance(
        error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError
    )
