"""What was measured about a target on this machine, kept between runs as JSON.

A profile belongs to a `Key`: everything that its numbers depend on. Options that a user
chooses side by side have profiles side by side. A profile of another file, build or
device, or one that cannot be read, is named as such and never used. What the numbers
mean is known only to the modules that own them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgecs.core.files import sweep, write_whole
from edgecs.core.reading import read_bounded, reason
from edgecs.errors import ModelError
from edgecs.hub.download import split_parts

FORMAT = 5
_LARGEST = 16 << 20  # bytes of a profile
_END = 1 << 20  # bytes hashed at either end of a model file
_SAMPLE, _SAMPLES = 64 << 10, 16  # bytes of one sample between the ends, and how many
_SHOWN = 120  # characters of a value in a sentence
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
    "Key": (dict,),
}
_CHANGES = {
    "fingerprint": "the model file has changed",
    "build": "another build of the engine",
}


def fingerprint(path: Path) -> str:
    """Tells model files apart without reading all of them: 32 digits of lower case hex.

    path: a file, the first part of a split GGUF, which stands for all its parts, or a
    folder, where the names in it count too. Of each file the size, the first and the
    last MiB and 16 samples of 64 KiB count: a change elsewhere goes unnoticed. Raises
    ModelError where there is nothing to read.
    """
    digest = hashlib.sha256()
    try:
        files = _files(path)
        for name, file in files:
            digest.update(name)
            for part in _samples(file):
                digest.update(part)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not files:
        raise ModelError(f"{path} has no files: give the folder of an ONNX drafter")
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Key:
    """Everything that measured numbers depend on."""

    model: str  # file name without suffix
    fingerprint: str  # see `fingerprint`
    build: str  # versions of the engine, instruction sets
    device: str  # CPU and accelerators
    layers: int  # on the GPU
    threads: int
    flash_attention: str
    type_k: str
    type_v: str
    repack: bool  # weights laid out anew for llama.cpp's faster kernels
    kernels: str  # who computes: "llama", or ours, by instruction set and version
    mmap: bool  # the file is mapped, so that its weights stay in small pages
    huge_pages: bool  # asked for, and given to those who ask
    n_batch: int  # tokens in a prefill chunk

    @property
    def slot(self) -> str:
        """A file name for the model and the user's options.

        Another file of that name, build or device has the same slot: there it is found
        to be stale, and replaced.
        """
        options = [self.model, self.layers, self.threads, self.flash_attention]
        options += [self.type_k, self.type_v, self.repack, self.mmap]
        options += [self.kernels.partition("-")[0]]
        options += [self.huge_pages, self.n_batch]
        digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', self.model)[:80]}-{digest[:12]}"

    @property
    def bits(self) -> str:
        """What the bits of a target's cells depend on, its weights apart."""
        names = ["build", "device", "layers", "threads", "flash_attention"]
        names += ["type_k", "type_v", "repack", "kernels", "n_batch"]
        return json.dumps({name: getattr(self, name) for name in names})

    def differences(self, other: Key) -> list[str]:
        """What has changed since `other`, for people; empty: nothing."""
        now, before = vars(self), vars(other)
        return [
            _CHANGES.get(n, f"{n} {_plain(now[n])}, was {_plain(before[n])}")
            for n in now
            if now[n] != before[n]
        ]


@dataclass
class Profile:
    """The numbers of one key.

    The dicts belong to other modules. They hold what JSON gives back as it was: text
    keys, lists and no tuples, finite numbers.
    """

    key: Key
    costs: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)
    acceptance: dict[str, Any] = field(default_factory=dict)
    chain: dict[str, Any] = field(default_factory=dict)
    tuned: str | None = None  # ISO date of a full tuning; None: there was none
    version: int = FORMAT


class Profiles:
    """The profiles in the folder `root`, one file a slot.

    Several processes may use it at once: of profiles saved together the last one stays.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, key: Key) -> tuple[Profile | None, str | None]:
        """The profile of `key`, or why the one that is there cannot be used.

        (profile, None), (None, None) where there is none, or (None, reason) with a
        clause for people: "stale: threads 2, was 4", "unreadable: ...". A broken file
        is a reason, never an exception.
        """
        profile, problem = _read(self._path(key))
        changes = key.differences(profile.key) if profile else []
        if changes:
            return None, f"stale: {'; '.join(changes)}"
        return profile, problem

    def save(self, profile: Profile) -> bool:
        """Puts a whole file in place of the one that is there, if any.

        False: the folder cannot be written, or the profile has more than 16 MiB; what
        was there stays. Raises ValueError or TypeError for what JSON cannot say.
        """
        table = {**vars(profile), "key": vars(profile.key)}
        data = json.dumps(table, allow_nan=False).encode()
        if len(data) > _LARGEST:
            return False
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            sweep(self.root)  # also what is left of slots that are not used any more
            write_whole(self._path(profile.key), data)
        except OSError:
            return False
        return True

    def remove(self, key: Key) -> bool:
        """Deletes what is in the slot of `key`; False: it is there and has to stay."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def all(self) -> list[tuple[Path, Profile | None]]:
        """Every profile with its file, by file name; None: it cannot be read."""
        try:
            paths = sorted(self.root.glob("*.json"))
        except OSError:
            return []
        return [(path, _read(path)[0]) for path in paths]

    def _path(self, key: Key) -> Path:
        return self.root / f"{key.slot}.json"


def _files(path: Path) -> list[tuple[bytes, Path]]:
    """The files behind a model's path, each with the name that counts."""
    if path.is_dir():
        inside = [file for file in path.rglob("*") if file.is_file()]
        names = [file.relative_to(path).as_posix() + "\0" for file in inside]
        return sorted(zip(map(os.fsencode, names), inside, strict=True))
    files = [path.with_name(part) for part in split_parts(path.name)]
    for file in files:
        if not file.is_file():
            raise ModelError(f"there is no file {file}: check the path of the model")
    return [(b"", file) for file in files]


def _samples(file: Path) -> Iterator[bytes]:
    """The parts of a file that are hashed."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        yield size.to_bytes(8, "little")
        ends = [(0, _END), (max(0, size - _END), _END)]
        starts = [size * i // (_SAMPLES + 1) for i in range(1, _SAMPLES + 1)]
        for start, length in ends + [(start, _SAMPLE) for start in starts]:
            opened.seek(start)
            yield opened.read(length)


def _read(path: Path) -> tuple[Profile | None, str | None]:
    """The profile in a file, or why there is none; (None, None): no such file."""
    try:
        return _parse(read_bounded(path, _LARGEST))
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"unreadable: {error.strerror}"
    except (ValueError, RecursionError) as error:  # the latter by [[[[[[...
        return None, f"unreadable: {_plain(reason(error))}"


def _parse(data: bytes) -> tuple[Profile | None, str | None]:
    """Raises ValueError for what `save` has not written."""
    table = json.loads(data, parse_float=_finite, parse_constant=_finite)
    if not isinstance(table, dict):
        raise ValueError("not a JSON object")
    version = table.get("version")
    if type(version) is int and version != FORMAT:
        return None, f"stale: file format {FORMAT}, was {_plain(version)}"
    _check(Profile, table)
    _check(Key, table["key"])
    return Profile(**{**table, "key": Key(**table["key"])}), None


def _check(kind: type, table: dict[str, Any]) -> None:
    """Raises ValueError unless the fields of `kind` are there, each of its type."""
    types = {f.name: str(f.type) for f in fields(kind)}
    if table.keys() != types.keys():
        raise ValueError(f"not the fields of a {kind.__name__.lower()}")
    for name, wanted in types.items():
        # Not isinstance: true is no number.
        if type(table[name]) not in _JSON_TYPES[wanted]:
            raise ValueError(f"{name!r} is not of the type {wanted}")


def _finite(text: str) -> float:
    """A JSON number that is one; Python reads NaN, Infinity and 1e999 too."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _plain(value: object) -> str:
    """A value as part of a sentence; files may hold anything."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
