"""Map the target's token ids to a drafter's, and the drafter's logits back.

A trimmed drafter has rows for some of the target's tokens only; a padded one has more
rows than the target, or fewer. This module uses no engine.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.core.reading import reason, regular_size
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import DrafterManifest

_LONGEST_HEADER = 16 << 10  # bytes; numpy reads no more than 10,000 of it
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class IdMap:
    """Maps ids and logits between a drafter and its target.

    width: rows of the drafter's head; vocab_size: the target's. spare: number of ids
    that the drafter reads but never proposes.
    """

    def __init__(
        self,
        manifest: DrafterManifest,
        width: int,
        vocab_size: int,
        *,
        spare: int = 0,
    ) -> None:
        self._vocab_size = vocab_size
        unknown = manifest.unknown or 0
        if not 0 <= unknown < width + spare:
            raise ModelError(
                f"'unknown' is {unknown} but the drafter {manifest.name} has the ids 0 "
                f"to {width + spare - 1}: correct its manifest"
            )
        shared = min(width, vocab_size)
        self._columns: slice | NDArray[np.int32] = slice(shared)
        self._rows = slice(shared)
        self._inverse = np.full(vocab_size, unknown, dtype=np.int64)
        self._plain = manifest.id_map is None and vocab_size <= width
        if manifest.id_map is not None:
            self._columns = _read_map(manifest, width, vocab_size)
            self._rows = slice(width)
        self._inverse[self._columns] = np.arange(width)[self._rows]
        self._buffer = np.empty((0, vocab_size), dtype=np.float32)

    def to_drafter(self, tokens: Tokens) -> NDArray[np.int64]:
        """The drafter's ids of the target's tokens."""
        try:
            return self._inverse[tokens]
        except IndexError as error:
            raise ModelError(
                f"a token is outside of the vocabulary of {self._vocab_size}: the "
                "drafter was loaded for another target"
            ) from error

    def to_target(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        """Rows [n, target's vocabulary]; -inf for tokens that the drafter lacks.

        A view that is valid until the next call, of `logits` if no column moves.
        """
        if self._plain and logits.dtype == np.float32:
            return logits[:, : self._vocab_size]
        n = logits.shape[0]
        if n > self._buffer.shape[0]:
            # Columns that are not in the map stay -inf.
            shape = (2 * n, self._vocab_size)
            self._buffer = np.full(shape, -np.inf, dtype=np.float32)
        rows = self._buffer[:n]
        rows[:, self._columns] = logits[:, self._rows]
        return rows


def _read_map(
    manifest: DrafterManifest, width: int, vocab_size: int
) -> NDArray[np.int32]:
    path = manifest.folder / str(manifest.id_map)
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            start = io.BytesIO(file.read(_LONGEST_HEADER))
            header = _HEADERS[np.lib.format.read_magic(start)](start)
            problem = _form_problem(header, size - start.tell(), width)
            file.seek(start.tell())
            body = b"" if problem else file.read(4 * width)
    except Exception as error:  # a header is a Python literal: any error is possible
        raise ModelError(
            f"{path} cannot be read as an id map ({reason(error)}): fetch or export "
            "the drafter again"
        ) from error
    ids = np.frombuffer(body, dtype=np.int32)
    problem = problem or _problem(ids, vocab_size)
    if problem:
        raise ModelError(f"{path} {problem}: use a drafter made for this model")
    return ids


def _form_problem(header: tuple[Any, ...], size: int, width: int) -> str | None:
    """What is wrong with a header; size: bytes that follow it."""
    shape, fortran_order, dtype = header
    if dtype != np.int32 or len(shape) != 1 or fortran_order:
        return "must be one row of int32"
    if shape[0] != width:
        return f"has {shape[0]} ids for {width} rows of logits"
    return None if size == 4 * width else f"has {size} bytes for {width} ids"


def _problem(ids: NDArray[np.int32], vocab_size: int) -> str | None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        worst = ids[(ids < 0) | (ids >= vocab_size)][0]
        return f"has the id {worst} for a target of {vocab_size} tokens"
    values, counts = np.unique(ids, return_counts=True)
    if values.size != ids.size:
        return f"has the id {values[counts.argmax()]} twice"
    return None
