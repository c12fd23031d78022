"""The table of published drafters in the documentation, from the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgecs.hub.manifest import Card, Head, Manifest, known_manifests
from edgecs_bench.text_tables import markdown

_NAMES = {"mtp": "MTP", "eagle3": "EAGLE-3", "dflash": "DFlash", "dspark": "DSpark"}


def published_drafters() -> str:
    """A row for each model of the catalogue, by family."""
    rows = [
        [card.family, manifest.name, _heads(card), _siblings(card, manifest)]
        for manifest, card in _carded(known_manifests().values())
    ]
    return markdown([["family", "model", "published", "smaller models"], *sorted(rows)])


def _carded(manifests: Iterable[Manifest]) -> Iterator[tuple[Manifest, Card]]:
    for manifest in manifests:
        if manifest.card:
            yield manifest, manifest.card


def _heads(card: Card) -> str:
    return ", ".join(map(_head, card.heads)) or "-"


def _head(head: Head) -> str:
    name = _NAMES[head.kind]
    link = f"[{name}](https://huggingface.co/{head.repo})"
    if head.in_model:
        return f"{link} in the file"
    return f"{link} `{head.file}`"


def _siblings(card: Card, manifest: Manifest) -> str:
    names = [f"`{name}`" for name in card.siblings]
    if manifest.drafter:
        names.append(f"`{manifest.drafter}` (bundled)")
    return ", ".join(names) or "-"
