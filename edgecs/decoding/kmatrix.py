"""The K matrix: the static schedule of CS Drafting, as tokens per drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecs.errors import ConfigError


@dataclass(frozen=True)
class KMatrix:
    """Quotas of m drafters, the best one first, Max-Gram last: m rows of m counts.

    Row 0 has the counts while the target reviews, row r those while drafter r (counted
    from 1) reviews; column c belongs to drafter c + 1. A drafter
    only reviews cheaper ones, so all counts below the diagonal are 0.

    The convention is that of the official code (lfsszd/CS-Drafting): counts are quotas,
    and drafter c drafts until the sum of its row up to column c is reached. Algorithm
    1 of the paper names the sums themselves: k_11 = K[0][0], k_12 = K[0][0] + K[0][1].
    Unlike there, a draft never exceeds its quota, and Max-Gram obeys its own too.

    >>> KMatrix.parse("5,10;0,10").rows
    ((5, 10), (0, 10))
    """

    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        size = len(self.rows)
        for r, row in enumerate(self.rows):
            if len(row) != size:
                raise ConfigError(
                    f"the K matrix {self} is not square: row {r} has {len(row)} "
                    f"counts and there are {size} rows"
                )
            for c, count in enumerate(row):
                if count < 0:
                    raise ConfigError(f"the K matrix {self} has a count below 0")
                if c < r and count:
                    raise ConfigError(
                        f"the K matrix {self} has {count} in row {r}, column {c}: a "
                        "drafter reviews only the cheaper ones after it, so counts "
                        "below the diagonal must be 0"
                    )

    @staticmethod
    def parse(text: str) -> KMatrix:
        """Rows separated by `;`, counts by `,`. Raises ConfigError."""
        try:
            rows = tuple(
                tuple(int(count) for count in row.split(",")) for row in text.split(";")
            )
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is not a K matrix: give rows of whole numbers, as in "
                '"5,10;0,10"'
            ) from error
        return KMatrix(rows)

    @staticmethod
    def first_writes(drafters: int, count: int) -> KMatrix:
        """A schedule where only the best drafter of every level writes tokens."""
        return KMatrix(
            tuple(
                tuple(count if c == r else 0 for c in range(drafters))
                for r in range(drafters)
            )
        )

    def counts(self, level: int) -> tuple[int, ...]:
        """Quotas of the drafters that drafter `level` reviews (0: the target)."""
        return self.rows[level][level:] if level < len(self.rows) else ()

    def check(self, drafters: Sequence[str]) -> None:
        """Raises ConfigError if the matrix does not fit these drafters."""
        if len(self.rows) != len(drafters):
            raise ConfigError(
                f"the K matrix {self} has {len(self.rows)} rows but there are "
                f"{len(drafters)} drafters ({', '.join(drafters)}): it needs one row "
                "and one column for each"
            )

    def __str__(self) -> str:
        return ";".join(",".join(map(str, row)) for row in self.rows)
