"""The weights of a trained head, read back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from edgecs.core.context import Tokens
from edgecs.core.reading import reason
from edgecs.errors import ConfigError, ModelError
from edgecs.hub.drafter_manifest import read_drafter

# In the order in which `graph.build` creates them.
_MATRICES = ("table", "join", "query", "key", "value", "mix", "gate", "up", "down")
_NORMS = ("token_norm", "state_norm", "attention_norm", "inner_norm", "norm")


class TrainedHead(NamedTuple):
    """weights: as in `HeadShape.shapes`. ids: of the target, of the table's rows."""

    name: str
    vocabulary: str  # hash of the target's vocabulary
    weights: dict[str, NDArray[np.float32]]
    ids: Tokens

    def output(self, ids: Tokens, default: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows of the head's table for ids of the target, [ids, width].

        default: rows for ids that the head does not know.
        """
        place = {token: row for row, token in enumerate(self.ids.tolist())}
        rows = [
            self.weights["table"][place[token]] if token in place else row
            for token, row in zip(ids.tolist(), default, strict=True)
        ]
        return np.array(rows, dtype=np.float32).reshape(default.shape)


def read_head(folder: Path) -> TrainedHead:
    """Reads a head that `edgecs distill --kind head` made; int8 becomes float32.

    Raises ModelError if it is not a drafter, ConfigError if it is of another kind.
    """
    manifest = read_drafter(folder)
    if manifest.kind != "head" or manifest.id_map is None:
        raise ConfigError(
            f"{folder} is not a head: give a folder that --kind head made"
        )
    path = folder / manifest.file
    try:
        graph = onnx.load(path, load_external_data=False).graph
        constants = [numpy_helper.to_array(one) for one in graph.initializer]
        ids = np.load(folder / manifest.id_map, allow_pickle=False).astype(np.int32)
    except (OSError, ValueError, TypeError, EOFError, DecodeError) as error:
        raise ModelError(
            f"{path} cannot be read as the graph of a head ({reason(error)}): make it "
            "again"
        ) from error
    weights = _named(constants)
    if weights is None or (weights["table"].shape[0] - 1,) != ids.shape or not ids.size:
        raise ModelError(
            f"{path} is not laid out as the graph of a head: make it again with "
            "--kind head"
        )
    return TrainedHead(manifest.name, manifest.vocabulary, weights, ids)


def _named(
    constants: list[NDArray[np.generic]],
) -> dict[str, NDArray[np.float32]] | None:
    """The constants of a graph by the names of their weights, None: others."""
    matrices: list[NDArray[np.float32]] = []
    vectors: list[NDArray[np.float32]] = []
    scales = False  # whether the next constant belongs to the last matrix
    for one in constants:
        if scales:
            if one.shape != (matrices[-1].shape[1],):
                return None
            matrices[-1] = matrices[-1] * one.astype(np.float32)
        elif one.ndim == 2:
            matrices.append(one.astype(np.float32))
        elif one.ndim == 1 and one.dtype == np.float32:
            vectors.append(one.astype(np.float32))
        scales = not scales and one.ndim == 2 and one.dtype == np.int8
    if len(matrices) != len(_MATRICES):
        return None
    found = dict(zip(_MATRICES, matrices, strict=True))
    width = len(found["table"])
    norms = [vector for vector in vectors if vector.size == width]
    if len(norms) != len(_NORMS):
        return None
    found["table"] = np.ascontiguousarray(found["table"].T)
    found.update(zip(_NORMS, norms, strict=True))
    return found if _fits(found) else None


def _fits(weights: dict[str, NDArray[np.float32]]) -> bool:
    """Whether the sizes of all weights agree, and all are finite."""
    width = weights["norm"].size
    inner, kv = weights["gate"].shape[1], weights["key"].shape[1]
    sizes = {
        "table": (weights["table"].shape[0], width),
        "join": (2 * width, width),
        "query": (width, width),
        "key": (width, kv),
        "value": (width, kv),
        "mix": (width, width),
        "gate": (width, inner),
        "up": (width, inner),
        "down": (inner, width),
    }
    same = all(weights[name].shape == size for name, size in sizes.items())
    return same and all(bool(np.isfinite(one).all()) for one in weights.values())
