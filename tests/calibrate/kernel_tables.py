"""Models whose bits depend on how wide a call is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.exactness import range_of
from edgecs.testing.fakes import CachingModel

Kernel = Callable[[int, int], int]
"""(tokens in a call, start of the range that its last cell is in) -> a kernel."""


class Kernels(CachingModel):
    """Rows show which kernel computed them and the cells before them.

    noise: largest change of a logit; rows and cells of kernel 0 have none. Prompts are
    read by kernel 0. calls: (cells before, tokens) of all other calls.
    """

    def __init__(
        self,
        vocab_size: int,
        kernel: Kernel,
        *,
        noise: float = 1.0,
        seed: int = 0,
        n_ctx: int = 640,
    ) -> None:
        super().__init__(vocab_size, seed, n_ctx=n_ctx)
        self.calls: list[tuple[int, int]] = []
        self._kernel, self._noise = kernel, noise
        self._by: list[int] = []  # the kernel of every cell

    def rows(self, request: Request) -> Rows:
        rows = super().rows(request)
        start, width = len(self.cells) - rows.fed, 1 + len(request.draft)
        kernel = 0
        if start and rows.fed == width:
            kernel = self._kernel(width, range_of(len(self.cells) - 1)[0])
            self.calls.append((start, width))
        self._by[start:] = [kernel] * rows.fed
        noisy = [
            row + self.change(len(self.cells) - len(request.draft) + i)
            for i, row in enumerate(rows.logits)
        ]
        return Rows(np.stack(noisy), rows.fed)

    def change(self, cells: int) -> np.ndarray:
        """What kernels change in the row that follows so many cells."""
        by = bytes(self._by[:cells])
        if not any(by):
            return np.zeros(self.vocab_size, np.float32)
        digest = hashlib.blake2b(by + cells.to_bytes(4), digest_size=8).digest()
        random = np.random.default_rng(int.from_bytes(digest))
        change = random.uniform(-self._noise, self._noise, self.vocab_size)
        return change.astype(np.float32)


class Table:
    """A random kernel for every width and range; `plain` of ten are kernel 0."""

    def __init__(self, seed: int, plain: int) -> None:
        random = np.random.default_rng(seed)
        self.kernels = (random.random((WIDEST + 1, 32)) >= plain / 10).astype(int)

    def __call__(self, width: int, start: int) -> int:
        return int(self.kernels[width, start.bit_length()])

    def same(self, depth: int, width: int) -> bool:
        """Whether a call after `depth` cells gives the bits of one token at a time."""
        alone = {self(1, range_of(depth + i)[0]) for i in range(width)}
        return alone == {self(width, range_of(depth + width - 1)[0])}

    def __repr__(self) -> str:
        return f"{self.kernels[:, [0, 9, 10, 11]].tolist()}"


tables = st.builds(Table, st.integers(0, 2**32), st.integers(3, 9))
