"""The tree of answers to one question: all ways at once, a row for each prefix.

With the noise that both models share, a token is a function of the two rows, the tokens
before and the seed. So ways whose answers begin alike need the same rows. They stay
together in a branch until they choose different tokens, and what a way would have
accepted, rejected and deferred follows from the choices along its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Law, Laws, Row
from edgecs.sampling.cascade_rules import CascadeRule, Mixture
from edgecs_bench.cascades.baselines import certainty
from edgecs_bench.cascades.ways import (
    DEFERRAL,
    LARGE,
    SMALL,
    Counts,
    Question,
    kind,
)

_T = TypeVar("_T")


class Answer(NamedTuple):
    """An answer, and what the two models choose at each of its positions.

    sure: the small model's largest probability, see `baselines.certainty`.
    """

    tokens: list[int]
    large: list[int]
    small: list[int]
    sure: list[float]

    @property
    def agreement(self) -> float:
        """Share of the tokens that the target would have chosen itself."""
        same = sum(a == b for a, b in zip(self.tokens, self.large, strict=True))
        return same / len(self.tokens)

    def counts(
        self, way: str, mixture: Mixture, drafted: int, most: int, ends: Container[int]
    ) -> Counts:
        """What a way took. drafted: tokens of a draft. most: tokens of an answer."""
        if kind(way) == LARGE:
            return Counts(len(self.tokens))
        if kind(way) == SMALL:
            return Counts(0)
        if kind(way) == DEFERRAL:
            assert isinstance(mixture, CascadeRule)
            return Counts(sum(sure < 1 - mixture.alpha for sure in self.sure))
        return self._rounds(drafted, most, ends)

    def _rounds(self, drafted: int, most: int, ends: Container[int]) -> Counts:
        """The rounds of speculative decoding; the small model drafts its choices.

        The call that reads the prompt takes no draft. A draft leaves room for the
        target's own token. An end token is neither accepted nor rejected.
        """
        calls, accepted, rejected, at, size = 1, 0, 0, 1, len(self.tokens)
        while at < size:
            calls += 1
            end = at + min(drafted, most - at - 1)
            while at < min(end, size) and self.tokens[at] == self.small[at]:
                if self.tokens[at] in ends:
                    return Counts(calls, accepted, rejected)
                accepted, at = accepted + 1, at + 1
            rejected += at < min(end, size)
            at += 1  # the target's own token
        return Counts(calls, accepted, rejected)


@dataclass
class Branch:
    """Ways whose answers are the same so far. number: of the question."""

    number: int
    question: Question
    ways: Sequence[str]
    context: Context
    said: Answer

    @classmethod
    def begin(cls, number: int, question: Question, ways: Sequence[str]) -> Branch:
        """All ways before the first token."""
        return cls(
            number, question, ways, Context(question.prompt), Answer([], [], [], [])
        )

    def grow(
        self, row: Row, small: Row, mixtures: Mapping[str, Mixture]
    ) -> list[Branch]:
        """The branches after one more token; this one is the first of them.

        row, small: logits of the target and of the small model after the context.
        """
        question, tokens = self.question, self.context.tokens
        choose = cast(Laws, _Known(question.choose))
        self.said.large.append(choose(row, tokens))
        self.said.small.append(choose(small, tokens))
        self.said.sure.append(certainty(choose, small, tokens))
        chosen: dict[int, list[str]] = {}
        for way in self.ways:
            token = mixtures[way].choose(choose, row, small, tokens)
            chosen.setdefault(token, []).append(way)
        first, *others = chosen.items()
        grown = [self, *(self._copy(ways) for _, ways in others)]
        self.ways = first[1]
        for branch, token in zip(grown, chosen, strict=True):
            branch.said.tokens.append(token)
            branch.context.append((token,))
        return grown

    def _copy(self, ways: Sequence[str]) -> Branch:
        context = Context(self.context.tokens)
        tokens, large, small, sure = self.said
        said = Answer([*tokens], [*large], [*small], [*sure])
        return Branch(self.number, self.question, ways, context, said)

    def is_over(self, ends: Container[int]) -> bool:
        """Whether the answer has ended."""
        tokens, question = self.said.tokens, self.question
        return (
            tokens[-1] in ends or len(tokens) >= question.most or question.over(tokens)
        )


class _Known:
    """The choice at one position; what it says of a row is computed once.

    Mixtures use it as `Laws`. It is dropped before the rows are overwritten.
    """

    def __init__(self, choose: Laws) -> None:
        self._choose = choose
        self._known: dict[tuple[str, int], Any] = {}

    def __call__(self, row: Row, tokens: Tokens) -> int:
        return self._once("", row, partial(self._choose, row, tokens))

    def belief(self, row: Row, tokens: Tokens) -> Law:
        return self._once("belief", row, partial(self._choose.belief, row, tokens))

    def law(self, row: Row, tokens: Tokens) -> Law:
        return self._once("law", row, partial(self._choose.law, row, tokens))

    def redraw(self, row: Row, tokens: Tokens) -> int:
        return self._once("redraw", row, partial(self._choose.redraw, row, tokens))

    def _once(self, name: str, row: Row, compute: Callable[[], _T]) -> _T:
        key = name, id(row)
        if key not in self._known:
            self._known[key] = compute()
        return cast(_T, self._known[key])
