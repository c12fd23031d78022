"""Export of a trained drafter: a folder with graph, id map, token texts, manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecs.core.context import Tokens
from edgecs.hub.compatibility import vocabulary_hash, write_pieces
from edgecs.hub.drafter_manifest import DrafterManifest, write_drafter
from edgecs_convert.folders import whole_folder

_IDS, _PIECES = "ids.npy", "vocabulary.json"


@dataclass(frozen=True)
class About:
    """The manifest fields of a drafter of any kind.

    source: the target's file. pieces: texts of the target's tokens. window: context
    length of the training.
    """

    name: str
    source: str
    license: str
    pieces: Sequence[bytes]
    window: int
    int8: bool = True
    made: Mapping[str, Any] | None = None


def export_head(out: Path, student: Any, ids: Tokens, about: About) -> Path:
    """Writes the folder of a `Head` and returns it; leaves no folder if it fails.

    ids: int32 [rows], the target's id of every row; one more row represents all others.
    """
    import onnx

    from edgecs_convert.distill.graph import build

    weights = student.arrays()

    def draw(graph: Path) -> None:
        onnx.save(build(student.shape, weights, int8=about.int8), graph)

    parameters = sum(weight.size for weight in weights.values())
    return _export(out, "head", "rows", ids, len(ids), parameters, about, draw)


def export_decoder(out: Path, student: Any, about: About) -> Path:
    """Writes the folder of a `Decoder` and returns it; leaves no folder if it fails."""
    from edgecs_convert.onnx.export import export_module

    model, ids = student.model.cpu().eval(), student.ids
    whole = ids.size == len(about.pieces)

    def draw(graph: Path) -> None:
        export_module(model, graph, quantize="int8" if about.int8 else "none")

    unknown = None if whole else ids.size - 1
    parameters = sum(p.numel() for p in model.parameters())
    return _export(out, "decoder", "growing", ids, unknown, parameters, about, draw)


def _export(
    out: Path,
    kind: str,
    cache: str,
    ids: Tokens,
    unknown: int | None,
    parameters: int,
    about: About,
    draw: Callable[[Path], None],
) -> Path:
    def fill(folder: Path) -> None:
        graph = folder / f"{kind}.onnx"
        draw(graph)
        if unknown is not None:
            np.save(folder / _IDS, ids)
        write_pieces(folder / _PIECES, about.pieces)
        write_drafter(
            DrafterManifest(
                name=about.name,
                description=f"a {kind} for {about.source}",
                license=about.license,
                file=graph.name,
                kind=kind,
                cache=cache,
                window=about.window,
                vocabulary=vocabulary_hash(about.pieces),
                vocabulary_file=_PIECES,
                id_map=None
                if unknown is None
                else _IDS,  # otherwise ids are the target's
                unknown=unknown,
                parameters=parameters,
                quantization="int8" if about.int8 else None,
                source=about.source,
                size=graph.stat().st_size,
                sha256=hashlib.sha256(graph.read_bytes()).hexdigest(),
                made=about.made,
                folder=folder,
            )
        )

    return whole_folder(out, fill)
