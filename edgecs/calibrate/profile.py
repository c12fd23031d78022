"""Measurements of a target on this machine, stored as JSON between runs.

A profile belongs to a `Key`: everything that its numbers depend on. Each set of options
that a user chooses has a profile of its own. A profile of another model file, build or
device, or one that cannot be read, is reported and never used. Only the modules that
own the numbers interpret them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgecs.core.files import sweep, write_whole
from edgecs.core.reading import read_bounded, reason
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError, ModelError
from edgecs.hub.download import split_parts

FORMAT = 6
# chosen: thousands of times the size of a usual profile.
_LARGEST = 16 << 20  # bytes of a profile
# chosen: covers the first and the last tensors, and the metadata of a GGUF.
_END = 1 << 20  # bytes hashed at either end of a model file
# chosen: with both ends 3 MiB, which are read in milliseconds.
_SAMPLE, _SAMPLES = 64 << 10, 16  # bytes of one sample between the ends, and how many
_SHOWN = 120  # characters of a value in a message
_CHANGES = {
    "fingerprint": "the model file has changed",
    "build": "another build of the engine",
}


def fingerprint(path: Path) -> str:
    """Hash samples of a model's files: 32 lower-case hex digits.

    path: a file, the first part of a split GGUF, which stands for all its parts, or a
    folder, whose file names are hashed too. The hash covers each file's size, its first
    and last MiB and 16 samples of 64 KiB: a change elsewhere is not detected. Raises
    ModelError if there is nothing to read.
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
        raise ModelError(f"{path} is empty: pass the folder of an ONNX drafter")
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Key:
    """Everything that measured numbers depend on.

    options: the options in use, with "auto" and 0 replaced by numbers. Options that
    change neither bits nor times have their default values.
    """

    model: str  # file name without suffix
    fingerprint: str  # see `fingerprint`
    build: str  # versions of the engine, instruction sets
    device: str  # CPU and accelerators
    options: LoadOptions
    kernels: str  # "llama", or edgecs' kernels, by instruction set and version

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _options(_counting(self.options)))

    @property
    def slot(self) -> str:
        """A file name for the model and the user's options.

        Another model file of that name, build or device maps to the same slot: its
        profile is then stale, and replaced.
        """
        chosen = json.dumps([self.model, _counting(self.options)], sort_keys=True)
        digest = hashlib.sha256(chosen.encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', self.model)[:80]}-{digest[:12]}"

    @property
    def bits(self) -> str:
        """Everything but the weights that the bits of a target's KV cells depend on."""
        names = ["build", "device", *self.options.having("bits")]
        return json.dumps({n: v for n, v in self.named().items() if n in names})

    def named(self) -> dict[str, Any]:
        """Its parts and options by name, as JSON values."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "build": self.build,
            "device": self.device,
            **_counting(self.options),
            "kernels": self.kernels,  # includes the version, unlike the option
        }

    def differences(self, other: Key) -> list[str]:
        """Readable list of the changes since `other`; empty if there are none."""
        now, before = self.named(), other.named()
        return [
            _CHANGES.get(n, f"{n} {_plain(now[n])}, was {_plain(before[n])}")
            for n in now
            if now[n] != before[n]
        ]


@dataclass
class Profile:
    """The numbers of one key.

    The dicts belong to other modules. Their content survives a JSON round trip: string
    keys, lists instead of tuples, finite numbers.
    """

    key: Key
    costs: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)
    acceptance: dict[str, Any] = field(default_factory=dict)
    chain: dict[str, Any] = field(default_factory=dict)
    tuned: str | None = None  # ISO date of a full tuning; None: there was none
    version: int = FORMAT


class Profiles:
    """The profiles in the folder `root`, one file per slot.

    Several processes may use it at once: the profile that is saved last wins.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, key: Key) -> tuple[Profile | None, str | None]:
        """The profile of `key`, or the reason why the stored one cannot be used.

        Returns (profile, None), (None, None) if there is no file, or (None, reason)
        with a readable reason: "stale: threads 2, was 4", "unreadable: ...". A broken
        file gives a reason, never an exception.
        """
        profile, problem = _read(self._path(key))
        changes = key.differences(profile.key) if profile else []
        if changes:
            return None, f"stale: {'; '.join(changes)}"
        return profile, problem

    def save(self, profile: Profile) -> bool:
        """Write the profile, replacing an existing file atomically.

        Returns False if the folder cannot be written, or the profile exceeds 16 MiB; an
        existing file is kept then. Raises ValueError or TypeError for values that JSON
        cannot represent.
        """
        key = {**vars(profile.key), "options": _counting(profile.key.options)}
        table = {**vars(profile), "key": key}
        data = json.dumps(table, allow_nan=False).encode()
        if len(data) > _LARGEST:
            return False
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            sweep(self.root)  # also leftovers of slots that are no longer used
            write_whole(self._path(profile.key), data)
        except OSError:
            return False
        return True

    def remove(self, key: Key) -> bool:
        """Delete the profile of `key`; returns False if the file cannot be deleted."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def all(self) -> list[tuple[Path, Profile | None]]:
        """Every file with its profile, by file name; None if it cannot be read."""
        try:
            paths = sorted(self.root.glob("*.json"))
        except OSError:
            return []
        return [(path, _read(path)[0]) for path in paths]

    def _path(self, key: Key) -> Path:
        return self.root / f"{key.slot}.json"


def _counting(options: LoadOptions) -> dict[str, Any]:
    """The options that measured numbers depend on, by name."""
    return options.having("bits", "time")


def _options(counting: dict[str, Any]) -> LoadOptions:
    """These options, and defaults for all others. Raises ConfigError."""
    return LoadOptions(**{"max_draft": 0, **counting})  # 0 is valid for every n_batch


def _files(path: Path) -> list[tuple[bytes, Path]]:
    """The files of a model's path, each with the name that is hashed."""
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
    """The profile in a file, or why it cannot be used; (None, None): no such file."""
    try:
        return _parse(read_bounded(path, _LARGEST))
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"unreadable: {error.strerror}"
    except (ConfigError, ValueError, RecursionError) as error:  # RecursionError: [[[...
        return None, f"unreadable: {_plain(reason(error))}"


def _parse(data: bytes) -> tuple[Profile | None, str | None]:
    """Parse a profile; raises ValueError or ConfigError for other data."""
    table = json.loads(data, parse_float=_finite, parse_constant=_finite)
    if not isinstance(table, dict):
        raise ValueError("not a JSON object")
    version = table.get("version")
    if type(version) is int and version != FORMAT:
        return None, f"stale: file format {FORMAT}, was {_plain(version)}"
    _check(Profile, table, [f.name for f in fields(Profile)])
    key = table["key"]
    _check(Key, key, [f.name for f in fields(Key)])
    _check(LoadOptions, key["options"], _counting(LoadOptions()))
    key = Key(**{**key, "options": _options(key["options"])})
    return Profile(**{**table, "key": key}), None


def _check(kind: type, table: dict[str, Any], names: Iterable[str]) -> None:
    """Raise ValueError unless `table` has exactly these fields of `kind`."""
    if table.keys() != {*names}:
        raise ValueError(f"missing or unknown fields of {kind.__name__}")
    hints = get_type_hints(kind)
    for name, value in table.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name!r} has the wrong type")


def _fits(value: object, hint: Any) -> bool:
    """Whether a JSON value has a type; a dataclass is stored as a dict."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is dict or is_dataclass(hint):
        return type(value) is dict
    if alternatives := get_args(hint):
        return any(_fits(value, kind) for kind in alternatives)
    return type(value) is hint  # not isinstance: a bool is not an int


def _finite(text: str) -> float:
    """A finite JSON number; Python also reads NaN, Infinity and 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _plain(value: object) -> str:
    """A value as printable text of limited length; files may contain anything."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)) or "none"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
