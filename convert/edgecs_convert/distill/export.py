"""A trained head as a drafter's folder: graph, id map, texts of tokens, manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgecs.onnx_manifest import DrafterManifest, write_drafter
from edgecs.vocabulary import vocabulary_hash, write_pieces
from edgecs_convert.distill.graph import Weights, build
from edgecs_convert.distill.shape import HeadShape
from edgecs_convert.distill.texts import Vocabulary
from edgecs_convert.folders import whole_folder

_GRAPH, _IDS, _PIECES = "head.onnx", "ids.npy", "vocabulary.json"


def export_head(
    out: Path,
    shape: HeadShape,
    weights: Weights,
    vocabulary: Vocabulary,
    pieces: Sequence[bytes],
    *,
    name: str,
    source: str,
    license: str,
    window: int,
    int8: bool = True,
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a drafter's folder and returns it; there is none if it fails.

    pieces: texts of the target's tokens. source: the target. made: for the manifest.
    """

    def fill(folder: Path) -> None:
        graph = folder / _GRAPH
        onnx.save(build(shape, weights, int8=int8), graph)
        np.save(folder / _IDS, vocabulary.ids)
        write_pieces(folder / _PIECES, pieces)
        write_drafter(
            DrafterManifest(
                name=name,
                description=f"a head for {source}",
                license=license,
                file=_GRAPH,
                kind="head",
                cache="rows",
                window=window,
                vocabulary=vocabulary_hash(pieces),
                vocabulary_file=_PIECES,
                id_map=_IDS,
                unknown=vocabulary.rows,
                parameters=sum(weight.size for weight in weights.values()),
                quantization="int8" if int8 else None,
                source=source,
                size=graph.stat().st_size,
                sha256=hashlib.sha256(graph.read_bytes()).hexdigest(),
                made=made,
                folder=folder,
            )
        )

    return whole_folder(out, fill)
