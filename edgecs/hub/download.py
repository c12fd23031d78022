"""Downloading a model file: resumable, verified, and renamed only when complete.

Only this module, `hugging_face` and `wheels` may use the network. They never print;
long work reports its progress to a callback.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecs.core.reading import plain
from edgecs.errors import FetchError, ModelError

Progress = Callable[[str, int, int], None]
"""Called with (description, bytes done, total bytes or 0 if unknown)."""

BLOCK = 1 << 20  # bytes per read
_TIMEOUT = 60.0  # seconds without a byte
_MOST_PARTS = 500  # of a split model


def split_parts(file: str) -> list[str]:
    """All files of a split GGUF, given the first one; else the file itself.

    >>> split_parts("m-00001-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    match = re.fullmatch(r"(.*)-00001-of-([0-9]{5})\.gguf", file)
    if match is None:
        return [file]
    stem, count = match[1], int(match[2])
    if not 1 <= count <= _MOST_PARTS:
        raise ModelError(
            f"{plain(file)} is split into {count} files by its name, but 1 to "
            f"{_MOST_PARTS} are possible: check the name"
        )
    return [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]


def fetch_file(
    url: str, target: Path, *, sha256: str | None, progress: Progress
) -> None:
    """Downloads `url` to `target`, and resumes an interrupted download.

    Bytes are written to `target` + ".part", which is renamed to `target` once its
    checksum is right. Raises FetchError; the part is kept for the next try, unless the
    checksum is wrong.
    """
    part = target.with_name(target.name + ".part")
    if target.exists():
        if sha256 is None or file_sha256(target, progress) == sha256:
            return
        target.unlink()
    _transfer(url, part, f"fetching {target.name}", progress)
    got = file_sha256(part, progress)
    if sha256 is not None and got != sha256:
        part.unlink()
        raise FetchError(
            f"{target.name} has the wrong checksum: expected {sha256}, got {got}; it "
            "was deleted, run the command again"
        )
    put_in_place(part, target)


def _transfer(url: str, part: Path, label: str, progress: Progress) -> None:
    """Appends the missing bytes of `url` to `part`."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "edgecs"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _network_errors(label):
        try:
            answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # the range starts at or past the end
                raise
            error.close()
            if _total(error) in (None, have):
                return
            part.unlink()
            return _transfer(url, part, label, progress)
    with answer:
        resumed = answer.status == 206
        done = have if resumed else 0
        length = _number(answer.headers.get("Content-Length"))
        total = done + length if length else 0
        need_room(part.parent, total - done)
        with part.open("ab" if resumed else "wb") as file:
            while True:
                with _network_errors(label):
                    block = answer.read(BLOCK)
                if not block:
                    break
                file.write(block)
                done += len(block)
                progress(label, done, total)
    if done < total:
        raise _broken_off(label, f"the connection ended at {done} of {total} bytes")


@contextmanager
def _network_errors(label: str) -> Iterator[None]:
    """Converts all errors of the network to a FetchError."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        cause = plain(str(getattr(error, "reason", error)))
        raise _broken_off(label, cause) from error


def _broken_off(label: str, cause: str) -> FetchError:
    return FetchError(
        f"{label} failed ({cause}): check the connection and run the command again to "
        "resume"
    )


def _total(error: urllib.error.HTTPError) -> int | None:
    """The full size from `Content-Range: bytes */SIZE`."""
    return _number((error.headers.get("Content-Range") or "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def put_in_place(part: Path, target: Path) -> None:
    """Renames a complete file; its bytes are on the disk before that."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """Checksum of a file, lower case hex."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"checking {path.name.removesuffix('.part')}", done, size)
    return digest.hexdigest()


def need_room(folder: Path, size: int, trusted: bool = True) -> None:
    """Raises OSError if a file does not fit; an untrusted one may use half."""
    free = shutil.disk_usage(folder).free
    usable = free if trusted else free // 2
    if size > usable:
        half = "" if trusted else ", half of which may be used"
        raise OSError(
            errno.ENOSPC,
            f"{size >> 20} MiB are needed, {free >> 20} MiB are free{half}",
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Converts errors of the disk to a FetchError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FetchError(f"{folder} cannot be written: {error}") from error
        raise FetchError(
            f"the disk is full at {folder} ({error.strerror}): make room or set "
            "another cache folder, then run the command again"
        ) from error
