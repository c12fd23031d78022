"""Speculative cascades: rules that mix the laws of a small model and of the target.

Source: "Faster Cascades via Speculative Decoding" (arXiv 2405.19261). At each position
let q be the small model's law and p the target's, both after the whole sampler chain,
and let q', p' be the same without temperature and truncation. A rule defines the law pi
that tokens are chosen from:

    chow    pi = q if max q' >= 1 - alpha, else p
    diff    pi = q if max q' >= max p' - alpha, else p
    opt     pi = q if max q' >= max p' - alpha TV(p, q), else p
    v1..v3  pi(v) = q(v) [v in A] + (1 - q(A)) p(v), with
            v1: A = {v: q'(v) >= max p' - alpha}
            v2: A = {v: p'(v) >= max p' - alpha}
            v3: A = {v: p'(v) >= (1 - alpha) max p'}

pi is sampled with the noise that the small model drafts with. The choice from q with
that noise is the token x that the small model drafts. Under the first three rules a
position uses q or p as a whole, and its choice is x or the target's own choice with the
same noise. Under v1 to v3 the choice is x if x is in A, else a choice from p with a
second, independent noise: the first event has probability q(v) for each v in A, the
second has probability 1 - q(A), so the sum is pi. Either way the choice is a function
of the two rows, the tokens before and the seed, whatever was drafted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from edgecs.errors import ConfigError

if TYPE_CHECKING:  # options name the rules, and a command may need no numpy
    from edgecs.core.context import Tokens
    from edgecs.core.draft import Law, Laws, Row

RuleName = Literal["chow", "diff", "opt", "v1", "v2", "v3"]

_RANGES: dict[RuleName, tuple[float, float]] = {
    "chow": (0.0, 1.0),
    "diff": (-1.0, 1.0),
    "opt": (-math.inf, math.inf),
    "v1": (-1.0, 1.0),
    "v2": (-1.0, 1.0),
    "v3": (0.0, 1.0),
}


class Mixture(Protocol):
    """A choice from the rows of two models."""

    def choose(self, choose: Laws, row: Row, small: Row, tokens: Tokens) -> int:
        """The token that follows `tokens`; a function of its arguments."""


@dataclass(frozen=True)
class CascadeRule:
    """A rule and its alpha: the larger, the more is left to the small model.

    No alpha switches a rule off: alpha 0 of v2 and v3 is not the target's law above
    temperature 0. Raises ConfigError for an unknown rule or an alpha outside its range.
    """

    name: RuleName
    alpha: float

    def __post_init__(self) -> None:
        if self.name not in _RANGES:
            known = ", ".join(get_args(RuleName))
            raise ConfigError(f"no cascade rule is named {self.name!r}: give {known}")
        low, high = _RANGES[self.name]
        if not (math.isfinite(self.alpha) and low <= self.alpha <= high):
            between = f" between {low:g} and {high:g}" if math.isfinite(low) else ""
            raise ConfigError(
                f"alpha of the cascade rule {self.name} must be a number{between}, got "
                f"{self.alpha:g}"
            )

    @staticmethod
    def limits(name: RuleName) -> tuple[float, float]:
        """The smallest and the largest alpha of a rule."""
        return _RANGES[name]

    def __str__(self) -> str:
        return f"{self.name}, alpha {self.alpha:g}"

    def choose(self, choose: Laws, row: Row, small: Row, tokens: Tokens) -> int:
        """A token from pi, see the module.

        row, small: logits of the target and of the small model, float32 [vocabulary].
        """
        q = choose.belief(small, tokens)
        if not q.any():  # a grammar forbids all that the small model knows
            return choose(row, tokens)
        p = choose.belief(row, tokens)
        if self.name in ("chow", "diff", "opt"):
            keeps = self._keeps(choose, row, small, tokens, p, q)
            return choose(small if keeps else row, tokens)
        drafted = choose(small, tokens)
        if self.accepts(p, q, drafted):
            return drafted
        return choose.redraw(row, tokens)

    def accepts(self, p: Law, q: Law, token: int) -> bool:
        """Whether a token is in the set A of v1 to v3. p, q: p' and q'."""
        best = float(p.max())
        if self.name == "v1":
            return bool(q[token] >= best - self.alpha)
        if self.name == "v2":
            return bool(p[token] >= best - self.alpha)
        return bool(p[token] >= (1 - self.alpha) * best)

    def _keeps(
        self, choose: Laws, row: Row, small: Row, tokens: Tokens, p: Law, q: Law
    ) -> bool:
        """Whether a position uses the small model's law. p, q: p' and q'."""
        sure = float(q.max())
        if self.name == "chow":
            return sure >= 1 - self.alpha
        apart = 1.0
        if self.name == "opt":
            laws = choose.law(row, tokens), choose.law(small, tokens)
            apart = float(abs(laws[0] - laws[1]).sum()) / 2
        return sure >= float(p.max()) - self.alpha * apart
