"""A snapshot of an engine's KV cells, for saving and loading."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class KVSnapshot(NamedTuple):
    """KV cells: their tokens, and their bytes in the engine's own format.

    row: length of the prompt that the last row of logits belongs to, and that row.
    """

    tokens: list[int]
    data: bytes
    row: tuple[int, NDArray[np.float32]] | None
