"""`edgecs models search`: the catalogue, and descriptions of models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click
import psutil

from edgecs.hub.catalogue import file_size, memory_needed, similar
from edgecs.hub.catalogue import search as matching
from edgecs.hub.manifest import Manifest
from edgecs.hub.store import Model
from edgecs.runtime.folders import Folders
from edgecs_cli.console import echo, echo_table, say
from edgecs_cli.options.kinds import WrongValue
from edgecs_cli.options.shared import reports_errors

_UNITS = {
    "": 1,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
}
_HEADER = ("name", "size", "memory", "license", "context", "drafters", "")
_NOTE = (
    "~: approximate size. memory: what the model needs with a short context; too "
    "large: more than this machine's {total}. ?: from one source only."
)


class Bytes(click.ParamType[int]):
    """A size as 4GiB, 500MiB or 4GB."""

    name = "SIZE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Bytes of a size."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMG]?I?)B?", value.upper())
        if match is None or match[2] not in _UNITS:
            raise WrongValue("a size such as 4GiB or 500MiB", value, param, ctx)
        return round(float(match[1]) * _UNITS[match[2]])


@click.command()
@click.argument("words", nargs=-1)
@click.option(
    "--size-under", type=Bytes(), help="Only files smaller than this, as 4GiB."
)
@click.option(
    "--licence",
    "--license",
    "license_",
    metavar="TEXT",
    help="Only models whose licence identifier has this text, as apache-2.0.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@reports_errors
def search(
    words: tuple[str, ...], size_under: int | None, license_: str | None, as_json: bool
) -> None:
    """Search the catalogue of models.

    Without words: the whole catalogue, smallest first. Words are looked for in names,
    descriptions, licences and kinds of heads. No network is used.

    \b
    edgecs models search
    edgecs models search qwen code --size-under 4GiB
    edgecs models search --licence apache-2.0 --json
    """
    store = Folders().store
    known = {model.manifest.name: model for model in store.models()}
    manifests = [model.manifest for model in known.values()]
    found = [
        known[manifest.name]
        for manifest in matching(
            manifests, words, size_under=size_under, license=license_
        )
    ]
    if as_json:
        echo(json.dumps([_entry(model) for model in found]))
        return
    if not found:
        say(_nothing(words, {manifest.name: manifest for manifest in manifests}))
        return
    echo_table([_HEADER, *map(_row, found)], words=(0, 2, 3, 5, 6))
    say(_NOTE.format(total=_giga(psutil.virtual_memory().total)))


def _nothing(words: tuple[str, ...], known: Mapping[str, Manifest]) -> str:
    near = " or ".join(similar("-".join(words), known)) if words else ""
    hint = f"did you mean {near}?" if near else "give other words or a larger size"
    return f"no model of the catalogue fits: {hint}"


def _row(model: Model) -> tuple[str, ...]:
    manifest, card = model.manifest, model.manifest.card
    doubts = card.unverified if card else ()
    kinds = [head.kind for head in card.heads] if card else []
    siblings = list(card.siblings) if card else []
    bundled = ["head"] if manifest.drafter else []
    size = file_size(manifest)
    return (
        manifest.name,
        gigabytes(model),
        _memory(size),
        manifest.license + ("?" if "license" in doubts else ""),
        _context(card.context if card else None) + ("?" if "context" in doubts else ""),
        ", ".join(dict.fromkeys([*bundled, *siblings, *kinds])) or "-",
        "here" if model.path else "",
    )


def _memory(size: int | None) -> str:
    if size is None:
        return "-"
    needed = memory_needed(size)
    return f"{_giga(needed)}" if _fits(size) else f"{_giga(needed)}, too large"


def _fits(size: int) -> bool:
    return bool(memory_needed(size) <= psutil.virtual_memory().total)


def _context(tokens: int | None) -> str:
    if tokens is None:
        return "-"
    return f"{tokens >> 10}k" if tokens % 1024 == 0 else str(tokens)


def _giga(size: int) -> str:
    gibibytes, mebibytes = size / (1 << 30), size / (1 << 20)
    return f"{gibibytes:.1f} GiB" if gibibytes >= 1 else f"{mebibytes:.0f} MiB"


def gigabytes(model: Model) -> str:
    """The size of a model's file for a table; ~: approximate."""
    if model.size is None:
        return "-"
    exact = model.path or model.manifest.size
    return _giga(model.size) if exact else f"~{_giga(model.size)}"


def _entry(model: Model) -> dict[str, object]:
    size = file_size(model.manifest)
    return {
        **describe(model),
        "memory_needed": None if size is None else memory_needed(size),
        "fits": None if size is None else _fits(size),
    }


def describe(model: Model) -> dict[str, Any]:
    """A model as JSON."""
    manifest = model.manifest
    source = type(manifest.source).__name__.removesuffix("Source").lower()
    return {
        "name": manifest.name,
        "description": manifest.description,
        "license": manifest.license or None,
        "path": str(model.path) if model.path else None,
        "size": model.size,
        "sha256": manifest.sha256,
        "drafter": manifest.drafter,
        "source": {source: asdict(manifest.source)},
        "card": asdict(manifest.card) if manifest.card else None,
    }


def rows_of(entry: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """`describe` as rows of a table: tables of one level have dots in their names."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in rows_of(value))
        elif isinstance(value, list | tuple):
            yield key, ", ".join(map(_short, value)) or None
        else:
            yield key, value


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    return str(value)
