"""The catalogue: names as people type them, search, and what fits into memory.

A name is that of a manifest (`qwen3-4b`), one of its aliases (`qwen3:4b`), or either of
them with a quantisation (`qwen3:4b-q8_0`, `qwen3-4b:Q8_0`); case does not matter.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edgecs.hub.manifest import Manifest
from edgecs.hub.quantisation import QUANT

_TAGGED = re.compile(rf"(?P<name>.+?)[:-](?P<quant>{QUANT})", re.IGNORECASE)
_LATEST = ":latest"
_SUGGESTED = 3  # names in a message
_RUNNING = 1 << 30  # chosen: bytes for the context, the buffers and edgecs itself


class Named(NamedTuple):
    """The meaning of a name.

    quant: the quantisation that the name asks for; None: that of the manifest.
    """

    manifest: Manifest
    quant: str | None = None


def resolve(name: str, known: Mapping[str, Manifest]) -> Named | None:
    """The manifest that a name means; None: no model has this name."""
    if name in known:
        return Named(known[name])
    names = _names(known)
    text = name.lower().removesuffix(_LATEST)
    if text in names:
        return Named(names[text])
    match = _TAGGED.fullmatch(text)
    if match is None or match["name"] not in names:
        return None
    manifest = names[match["name"]]
    own = manifest.card.quantization if manifest.card else ""
    same = match["quant"] == own.lower()
    return Named(manifest, None if same else match["quant"].upper())


def similar(name: str, known: Mapping[str, Manifest]) -> list[str]:
    """Names of models whose name or alias is close to this one, closest first."""
    names = _names(known)
    near = difflib.get_close_matches(name.lower(), names, n=8, cutoff=0.5)
    return list(dict.fromkeys(names[text].name for text in near))[:_SUGGESTED]


def _names(known: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Every name and alias, lower case. An alias never hides a name."""
    aliases = {
        alias: manifest
        for manifest in known.values()
        for alias in (manifest.card.aliases if manifest.card else ())
    }
    return aliases | {name.lower(): manifest for name, manifest in known.items()}


def search(
    manifests: Iterable[Manifest],
    words: Sequence[str] = (),
    *,
    size_under: int | None = None,
    license: str | None = None,
) -> Iterator[Manifest]:
    """The manifests that have every word, smallest first.

    size_under: bytes; models of unknown size are left out then. license: part of the
    identifier, as "apache" of Apache-2.0. Case does not matter.
    """
    wanted = [word.lower() for word in words]
    for manifest in sorted(manifests, key=lambda m: (file_size(m) or 0, m.name)):
        text, size = _text(manifest), file_size(manifest)
        if not all(word in text for word in wanted):
            continue
        if size_under is not None and (size is None or size >= size_under):
            continue
        if license is None or license.lower() in manifest.license.lower():
            yield manifest


def _text(manifest: Manifest) -> str:
    """What the words of a search are looked for in."""
    parts = [manifest.name, manifest.description, manifest.license]
    if card := manifest.card:
        parts += [card.family, card.parameters, card.quantization, *card.aliases]
        parts += [head.kind for head in card.heads]
    return "\n".join(parts).lower()


def file_size(manifest: Manifest) -> int | None:
    """Bytes of a model's file, approximate if the exact size is not known."""
    card = manifest.card
    return manifest.size or (card.approximate_size if card else None)


def memory_needed(size: int) -> int:
    """Bytes of memory that a model of this file size needs, with a short context.

    An estimate: the file, a tenth of it for the KV cache, and 1 GiB.
    """
    return size + size // 10 + _RUNNING
