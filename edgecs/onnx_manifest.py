"""What is known of an ONNX drafter: `drafter.toml` in its folder, one frozen dataclass.

It reads and checks what was written down. Whether the files fit it, only the engine
can tell.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecs.errors import ModelError
from edgecs.manifest import build, read_table, refuse_paths
from edgecs.vocabulary import read_pieces

NAME = "drafter.toml"
SMALLEST_WINDOW = 8
_HASHED_UP_TO = 64 << 20  # bytes; hashing more would be felt at every start
_CACHES = {"decoder": ("growing", "shared"), "head": ("rows",)}


@dataclass(frozen=True)
class DrafterManifest:
    """An exported decoder: its graph, its KV cache, and whose tokens it speaks.

    kind: "decoder", a language model, or "head", a layer on the states of one target.
    cache: "growing", past goes in and past with the new cells comes out, or "shared",
    both are one buffer of `window` cells; of a head "rows", new cells alone come out.
    Files lie beside the manifest.
    """

    name: str
    description: str
    license: str
    file: str
    cache: str
    window: int  # tokens that the drafter sees at most
    vocabulary: str  # sha256 hex of the tokenizer, see edgecs.vocabulary
    kind: str = "decoder"
    vocabulary_file: str | None = None  # the texts behind that hash
    id_map: str | None = None  # .npy, int32 [rows]: drafter row -> target id
    unknown: int | None = None  # the drafter's id for tokens that it lacks
    parameters: int | None = None
    quantization: str | None = None
    source: str | None = None  # what it was made from, in words
    size: int | None = None  # of the file, bytes
    sha256: str | None = None  # of the file, lower case hex
    made: Mapping[str, Any] | None = None  # data, recipe and figures, as they were
    folder: Path = Path()  # where the manifest was read

    @property
    def path(self) -> Path:
        """The graph."""
        return self.folder / self.file

    @property
    def right(self) -> float | None:
        """How often the first token of a draft was right when it was measured."""
        shares = (self.made or {}).get("agreement")
        return float(shares[0]) if shares else None

    def pieces(self) -> list[bytes] | None:
        """The texts of all tokens; None where the drafter came without them."""
        if self.vocabulary_file is None:
            return None
        return read_pieces(self.folder / self.vocabulary_file, self.vocabulary)


def read_drafter(folder: Path) -> DrafterManifest:
    """The manifest of a drafter's folder; raises ModelError for what is not one."""
    path = folder / NAME
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}: give that of an ONNX drafter")
    if not path.is_file():
        raise ModelError(f"{folder} is no ONNX drafter: it has no {NAME}")
    return parse_drafter(read_table(path), folder)


def parse_drafter(table: Mapping[str, Any], folder: Path) -> DrafterManifest:
    """A manifest from its table; `folder` is where its files lie."""
    origin = str(folder / NAME)
    refuse_paths(table, ("file", "vocabulary_file", "id_map"), origin)
    written = {key: value for key, value in table.items() if key != "folder"}
    if len(written) != len(table):
        raise ModelError(f"{origin}: 'folder' cannot be set, it is where the file lies")
    manifest: DrafterManifest = build(DrafterManifest, written, origin)
    _check(manifest, origin)
    return DrafterManifest(**{**written, "folder": folder})


def write_drafter(manifest: DrafterManifest) -> None:
    """Writes the manifest into its folder."""
    plain = {
        key: value
        for key, value in vars(manifest).items()
        if value is not None and key not in ("folder", "made")
    }
    lines = [*_lines(plain)]
    if manifest.made:
        lines += ["\n[made]\n", *_lines(manifest.made)]
    (manifest.folder / NAME).write_text("".join(lines), encoding="utf-8")


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    """Texts, numbers and lists of these: JSON's are TOML's.

    As long as no surrogate is escaped.
    """
    for key, value in table.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}\n"


def check_file(manifest: DrafterManifest) -> None:
    """Raises ModelError if the graph is missing or not the one that was written."""
    path = manifest.path
    if not path.is_file():
        raise ModelError(f"there is no file {path}: fetch or export the drafter again")
    size = path.stat().st_size
    if not size:
        raise ModelError(f"{path} is empty: fetch or export the drafter again")
    if manifest.size is not None and size != manifest.size:
        raise ModelError(
            f"{path} has {size} bytes, its manifest says {manifest.size}: fetch or "
            "export the drafter again"
        )
    if manifest.sha256 and size < _HASHED_UP_TO:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != manifest.sha256:
            raise ModelError(
                f"{path} has the sha256 {got}, its manifest says {manifest.sha256}: "
                "fetch or export the drafter again"
            )


def _check(manifest: DrafterManifest, origin: str) -> None:
    for key, known in (("kind", _CACHES), ("cache", _CACHES.get(manifest.kind, ()))):
        if getattr(manifest, key) not in known:
            raise ModelError(
                f"{origin}: {key!r} must be one of {', '.join(known)}, got "
                f"{getattr(manifest, key)!r}"
            )
    if manifest.window < SMALLEST_WINDOW:
        raise ModelError(
            f"{origin}: 'window' must be {SMALLEST_WINDOW} tokens or more, got "
            f"{manifest.window}"
        )
    if manifest.id_map is not None and manifest.unknown is None:
        raise ModelError(
            f"{origin}: 'id_map' needs 'unknown', the drafter's id for tokens that it "
            "lacks"
        )
    for key in ("vocabulary", "sha256"):
        value = getattr(manifest, key)
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ModelError(
                f"{origin}: {key!r} must be 64 digits of lower case hex, got {value!r}"
            )
