"""KV cells of an engine on their way into a file and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cells(NamedTuple):
    """Of which tokens they are, and their bytes, which their engine alone can read.

    row: how many tokens of context the last row of a prompt belongs to, and that row.
    """

    tokens: list[int]
    data: bytes
    row: tuple[int, NDArray[np.float32]] | None
