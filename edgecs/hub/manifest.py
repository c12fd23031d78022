"""The manifest of a model: one TOML file, one frozen dataclass."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Protocol, get_args, get_type_hints

from edgecs.core.reading import CONTROL, read_bounded, reason, shown
from edgecs.errors import ModelError

_LARGEST = 32 << 10  # bytes; tomllib takes minutes for a longer "a.a.a.a..."
_SEGMENT = rf"(?!\.\.?(?:/|$))[^{CONTROL}/\\:]+"
_NAME = rf"(?![-. ])[^{CONTROL}/\\:*?\"<>|]+(?<![. ])"
_SCRATCH = r"(?<!(?i:\.part))(?<!(?i:\.lock))(?<!(?i:\.whl))"  # used by a pull


class Rule(Protocol):
    """A rule for a value in a manifest."""

    def problem(self, value: Any) -> str | None:
        """The requirement that the value breaks, in words; None: it is valid."""


@dataclass(frozen=True)
class Text:
    """A string; `words` describe the pattern and `allows`."""

    words: str
    pattern: str
    most: int = 500  # characters
    allows: Callable[[str], bool] = lambda text: True

    def problem(self, value: Any) -> str | None:
        """See `Rule`."""
        if not isinstance(value, str):
            return "must be text"
        if len(value) > self.most:
            return f"must have {self.most} characters at most"
        if re.fullmatch(self.pattern, value) and self.allows(value):
            return None
        return f"must be {self.words}"


@dataclass(frozen=True)
class Number:
    """A number in a range, ends included; true, false and nan are not numbers."""

    least: float
    most: float
    unit: str = ""
    whole: bool = True

    def problem(self, value: Any) -> str | None:
        """See `Rule`."""
        if type(value) is not int and (self.whole or type(value) is not float):
            return "must be a number"
        if value < self.least:
            return f"must be {self.least}{self.unit} or more"
        return None if value <= self.most else f"must be {self.most}{self.unit} at most"


@dataclass(frozen=True)
class Several:
    """A list of values under one rule."""

    rule: Rule
    most: int

    def problem(self, value: Any) -> str | None:
        """See `Rule`."""
        if not isinstance(value, list) or len(value) > self.most:
            return f"must be a list of {self.most} entries at most"
        problems = [p for p in map(self.rule.problem, value) if p]
        return f"has an entry that {problems[0]}" if problems else None


class Boolean:
    """True or false."""

    def problem(self, value: Any) -> str | None:
        """See `Rule`."""
        return None if isinstance(value, bool) else "must be true or false"


class AnyTable:
    """A table, whatever it holds."""

    def problem(self, value: Any) -> str | None:
        """See `Rule`."""
        return None if isinstance(value, Mapping) else "must be a table"


_PLAIN = "a plain name: not a path, no '-' or '.' in front, no control characters"
# The rule of huggingface_hub.utils.validate_repo_id, whose import takes 0.1 to 0.5 s.
_HALF = r"\b[A-Za-z0-9_.-]{1,96}\b"
REPO = Text(
    "user/name as Hugging Face allows it",
    rf"(?!.*(?:--|\.\.))(?!.*\.git\Z){_HALF}/{_HALF}",
)
_INSIDE = Text(
    "a relative path with '/', without '..', ':' and control characters",
    f"(?!-)(?:{_SEGMENT}/)*{_SEGMENT}",
)
_FILE = Text(f"{_PLAIN}, not ending in .part, .lock or .whl", _NAME + _SCRATCH, 128)

# Types of values: every value that reaches pip, the hub or the file system has one.
Package = Annotated[
    str, Text("the name of a package", "[A-Za-z0-9][A-Za-z0-9._-]*", 100)
]


def _is_version(text: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return bool(Version(text))
    except InvalidVersion:
        return False


Version = Annotated[
    str, Text("a public version", "[A-Za-z0-9][A-Za-z0-9._!-]*", 100, _is_version)
]
"""Not even a local version is allowed: pip treats `p==1.0.zip` as a local file."""
Repo = Annotated[str, REPO]
Inside = Annotated[str, _INSIDE]
FileName = Annotated[str, _FILE]
PlainName = Annotated[str, Text(_PLAIN, _NAME, 128)]
AnyPath = Annotated[str, Text("a path of one line", f"[^{CONTROL}]+", 4096)]
Line = Annotated[str, Text("one line without control characters", f"[^{CONTROL}]*")]
Sha256 = Annotated[str, Text("64 digits of lower case hex", "[0-9a-f]{64}")]
Size = Annotated[int, Number(1, (1 << 50) - 1)]  # bytes
Flag = Annotated[bool, Boolean()]


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel of a package index that pip is configured for."""

    package: Package
    version: Version
    member: Inside


@dataclass(frozen=True)
class HubSource:
    """A file on Hugging Face, kept in the Hugging Face cache."""

    repo: Repo
    file: Inside
    revision: Inside = "main"


@dataclass(frozen=True)
class PathSource:
    """A file that is already on this machine."""

    path: AnyPath


Source = WheelSource | HubSource | PathSource
_SOURCES = {"wheel": WheelSource, "hub": HubSource, "path": PathSource}


HeadKind = Annotated[
    str, Text("mtp, eagle3, dflash or dspark", "mtp|eagle3|dflash|dspark")
]
Alias = Text("lower case letters, digits and ._:-", "[a-z0-9][a-z0-9._:-]*", 64)
Aliases = Annotated[Sequence[str], Several(Alias, 16)]
Names = Annotated[Sequence[str], Several(Text(_PLAIN, _NAME, 128), 16)]
Fields = Annotated[
    Sequence[str],
    Several(Text("license, context or template", "license|context|template"), 3),
]
Day = Annotated[str, Text("a date as 2026-08-31", r"\d{4}-\d\d-\d\d")]
Tokens = Annotated[int, Number(1, 1 << 31, " tokens")]


@dataclass(frozen=True)
class Head:
    """A drafter trained for one model, as a GGUF on Hugging Face.

    in_model: the file is the model itself with the head inside.
    """

    kind: HeadKind
    repo: Repo
    file: Inside
    in_model: Flag = False


@dataclass(frozen=True)
class Card:
    """What the catalogue records of a model, besides its file.

    context: tokens the model was trained for. approximate_size: bytes, if the exact
    size is not known; never used for checks. siblings: smaller models with the same
    vocabulary. unverified: fields that no second public record confirmed. seen: when
    the file was last seen in a public listing.
    """

    family: Line
    parameters: Line
    quantization: Line
    seen: Day
    context: Tokens | None = None
    approximate_size: Size | None = None
    template: Line = ""
    aliases: Aliases = ()
    siblings: Names = ()
    heads: Sequence[Head] = ()
    unverified: Fields = ()


@dataclass(frozen=True)
class Manifest:
    """A model by name: its source, its size and its checksum."""

    name: PlainName
    description: Line
    license: Line
    file: FileName
    source: Source
    size: Size | None = None
    sha256: Sha256 | None = None  # of the file
    drafter: PlainName | None = None  # see edgecs.calibrate.bundled_drafters
    card: Card | None = None  # of a model in the catalogue


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest. Raises ModelError for an invalid one."""
    return parse_manifest(read_table(path), str(path))


def read_table(path: Path) -> dict[str, Any]:
    """Reads a TOML file. Raises ModelError."""
    try:
        return tomllib.loads(read_bounded(path, _LARGEST).decode())
    except FileNotFoundError as error:
        raise ModelError(f"there is no manifest {path}: check the path") from error
    except RecursionError as error:
        raise ModelError(
            f"{path} cannot be read as a manifest: it is nested too deeply"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not TOML
        raise ModelError(
            f"{path} cannot be read as a manifest: {reason(error)}"
        ) from error


def parse_manifest(table: Mapping[str, Any], origin: str) -> Manifest:
    """A manifest from its table; `origin` names it in messages."""
    sources = table.get("source")
    if not isinstance(sources, Mapping) or len(sources) != 1:
        kinds = ", ".join(f"[source.{kind}]" for kind in _SOURCES)
        raise ModelError(f"{origin}: a manifest needs exactly one of {kinds}")
    ((kind, values),) = sources.items()
    if kind not in _SOURCES:
        raise ModelError(
            _unknown(f"source.{kind}", [f"source.{k}" for k in _SOURCES], origin)
        )
    if not isinstance(values, Mapping):
        raise ModelError(f"{origin}: [source.{kind}] must be a table")
    source = build(_SOURCES[kind], values, f"{origin}, [source.{kind}]")
    parts: dict[str, Any] = {"source": source}
    if "card" in table:
        parts["card"] = _card(table["card"], f"{origin}, [card]")
    manifest: Manifest = build(Manifest, {**table, **parts}, origin)
    return manifest


def _card(table: Any, origin: str) -> Card:
    if not isinstance(table, Mapping):
        raise ModelError(f"{origin}: must be a table, got {shown(table)}")
    heads = table.get("heads", [])
    if problem := Several(AnyTable(), 16).problem(heads):
        raise ModelError(f"{origin}: 'heads' {problem}, got {shown(heads)}")
    built = [build(Head, head, f"{origin}, [[heads]]") for head in heads]
    card: Card = build(Card, {**table, "heads": built}, origin)
    return card


def known_manifests() -> dict[str, Manifest]:
    """The manifests that come with edgecs, by name."""
    return dict(_shipped())


@cache
def _shipped() -> Mapping[str, Manifest]:
    found = {}
    for entry in resources.files("edgecs_models").iterdir():
        if entry.name.endswith(".toml"):
            table = tomllib.loads(entry.read_text(encoding="utf-8"))
            found[entry.name.removesuffix(".toml")] = parse_manifest(table, entry.name)
    return dict(sorted(found.items()))


def build(kind: type, values: Mapping[str, Any], origin: str) -> Any:
    """A dataclass from its table: every key must be known, every value valid."""
    known = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            raise ModelError(_unknown(key, list(known), origin))
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            raise ModelError(f"{origin}: the key {name!r} is missing")
    check(values, _rules(kind), origin)
    return kind(**values)


def check(values: Mapping[str, Any], rules: Mapping[str, Rule], origin: str) -> None:
    """Raises ModelError for the first value that breaks its rule."""
    for name, rule in rules.items():
        problem = rule.problem(values[name]) if name in values else None
        if problem:
            got = shown(values[name])
            raise ModelError(f"{origin}: {name!r} {problem}, got {got}")


def _rules(kind: type) -> dict[str, Rule]:
    """The rules of those fields that have one, from their types."""
    return {
        name: part.__metadata__[0]
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for part in (hint, *get_args(hint))  # the first of `Line | None`
        if hasattr(part, "__metadata__")
    }


def _unknown(key: str, known: list[str], origin: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{origin}: unknown key {shown(key)}; {hint}"
