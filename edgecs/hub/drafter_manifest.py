"""The manifest of an ONNX drafter: `drafter.toml` in its folder, one frozen dataclass.

This module reads and checks the manifest. Whether the files match it is checked by the
engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from edgecs.core.reading import CONTROL, plain, reason, regular_size
from edgecs.errors import ModelError
from edgecs.hub.compatibility import read_pieces
from edgecs.hub.download import file_sha256
from edgecs.hub.manifest import (
    AnyTable,
    Line,
    Number,
    PlainName,
    Rule,
    Several,
    Sha256,
    Size,
    Text,
    build,
    check,
    read_table,
)

NAME = "drafter.toml"
SMALLEST_WINDOW = 8
LARGEST_WINDOW = 1 << 17  # tokens; buffers of this size are made at load
_HASHED_UP_TO = 64 << 20  # bytes; hashing more would delay every start
_CACHES = {"decoder": ("growing", "shared"), "head": ("rows",)}
_AGAIN = "fetch or export the drafter again"
_ONE_LINE = ("name", "license", "quantization", "source")  # may come from a GGUF


Prose = Annotated[
    str, Text("text without control characters", rf"(?:[\n\t]|[^{CONTROL}])*", 2000)
]
Title = Annotated[str, Text("a name of one line", f"[^{CONTROL}]+", 200)]
Window = Annotated[int, Number(SMALLEST_WINDOW, LARGEST_WINDOW, " tokens")]
Id = Annotated[int, Number(0, (1 << 31) - 1)]
Count = Annotated[int, Number(0, 1 << 50)]
Made = Annotated[Mapping[str, Any], AnyTable()]

_MS = Number(1e-6, 10**9, " ms", whole=False)
_FIGURES: dict[str, Rule] = {  # figures of [made] that are used in computations
    "agreement": Several(Number(0, 1, whole=False), 64),
    "ms_a_token": _MS,
    "target_ms": _MS,
}


@dataclass(frozen=True)
class DrafterManifest:
    """An exported drafter: its graph, its KV cache and its vocabulary.

    kind: "decoder", a language model, or "head", a layer on the hidden states of one
    target. cache: "growing", the graph takes the past cells and returns them with the
    new ones, or "shared", both are one buffer of `window` cells; for a head "rows", it
    returns only new cells. Files are in the folder of the manifest.
    """

    name: Title
    description: Prose
    license: Line
    file: PlainName
    cache: Line
    window: Window  # maximum context of the drafter, tokens
    vocabulary: Sha256  # of the tokenizer, see edgecs.hub.compatibility
    kind: Line = "decoder"
    vocabulary_file: PlainName | None = None  # the texts of that hash
    id_map: PlainName | None = None  # .npy, int32 [rows]: drafter row -> target id
    unknown: Id | None = None  # the drafter's id for tokens it lacks
    parameters: Count | None = None
    quantization: Line | None = None
    source: Line | None = None  # a description of what it was made from
    size: Size | None = None  # of the file
    sha256: Sha256 | None = None  # of the file
    made: Made | None = None  # data, recipe and figures
    folder: Path = Path()  # where the manifest was read

    @property
    def path(self) -> Path:
        """The graph."""
        return self.folder / self.file

    @property
    def right(self) -> float | None:
        """Measured share of drafts whose first token was right."""
        shares = (self.made or {}).get("agreement")
        return float(shares[0]) if shares else None

    def pieces(self) -> list[bytes] | None:
        """The texts of all tokens; None if the drafter has none."""
        if self.vocabulary_file is None:
            return None
        return read_pieces(self.folder / self.vocabulary_file, self.vocabulary)


def read_drafter(folder: Path) -> DrafterManifest:
    """The manifest of a drafter's folder. Raises ModelError."""
    path = folder / NAME
    if not os.path.isdir(folder):
        raise ModelError(f"there is no folder {folder}: give that of an ONNX drafter")
    if not os.path.lexists(path):
        raise ModelError(f"{folder} is not an ONNX drafter: it has no {NAME}")
    return parse_drafter(read_table(path), folder)


def parse_drafter(table: Mapping[str, Any], folder: Path) -> DrafterManifest:
    """A manifest from its table; `folder` has its files."""
    origin = str(folder / NAME)
    written = {key: value for key, value in table.items() if key != "folder"}
    if len(written) != len(table):
        raise ModelError(
            f"{origin}: 'folder' cannot be set, it is the folder of the file"
        )
    manifest: DrafterManifest = build(DrafterManifest, written, origin)
    _check(manifest, origin)
    check(manifest.made or {}, _FIGURES, f"{origin}, [made]")
    return DrafterManifest(**{**written, "folder": folder})


def write_drafter(manifest: DrafterManifest) -> None:
    """Writes the manifest to its folder; one-line fields are escaped."""
    written = {
        key: plain(value) if key in _ONE_LINE else value
        for key, value in vars(manifest).items()
        if value is not None and key not in ("folder", "made")
    }
    lines = [*_lines(written)]
    if manifest.made:
        lines += ["\n[made]\n", *_lines(manifest.made)]
    (manifest.folder / NAME).write_text("".join(lines), encoding="utf-8")


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a table: strings, numbers and lists are the same in JSON and TOML.

    This holds because no surrogate is escaped.
    """
    for key, value in table.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}\n"


def check_file(manifest: DrafterManifest) -> None:
    """Raises ModelError if the graph is missing or does not match its manifest."""
    path = manifest.path
    if not os.path.exists(path):
        raise ModelError(f"there is no file {path}: {_AGAIN}")
    try:
        size = regular_size(path)
        hashed = manifest.sha256 and size < _HASHED_UP_TO
        got = file_sha256(path) if hashed else manifest.sha256
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {reason(error)}") from error
    if not size:
        raise ModelError(f"{path} is empty: {_AGAIN}")
    if size != (manifest.size or size):
        raise ModelError(
            f"{path} has {size} bytes, its manifest has {manifest.size}: {_AGAIN}"
        )
    if got != manifest.sha256:
        raise ModelError(
            f"{path} has the sha256 {got}, its manifest has {manifest.sha256}: {_AGAIN}"
        )


def _check(manifest: DrafterManifest, origin: str) -> None:
    for key, known in (("kind", _CACHES), ("cache", _CACHES.get(manifest.kind, ()))):
        if getattr(manifest, key) not in known:
            raise ModelError(
                f"{origin}: {key!r} must be one of {', '.join(known)}, got "
                f"{getattr(manifest, key)!r}"
            )
    if manifest.id_map is not None and manifest.unknown is None:
        raise ModelError(
            f"{origin}: 'id_map' needs 'unknown', the drafter's id for tokens that it "
            "lacks"
        )
