"""Walks the trees of answers of many questions, many branches in one call.

A call reads the weights once for all its tokens. Every branch has a KV sequence in
both models, the same number in each. Sequences 0 to n - 1 are in use, because llama.cpp
computes sequences together only where their numbers are adjacent.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from edgecs.core.context import Tokens
from edgecs.core.draft import LanguageModel, Request
from edgecs.errors import Cancelled
from edgecs.sampling.cascade_rules import Mixture
from edgecs_bench.cascades.answers import Answer, Branch
from edgecs_bench.cascades.ways import Question

# chosen: two have enough branches for wide calls; the third fills the calls in which
# another one has only a few left.
_TOGETHER = 3  # questions


class Walked(NamedTuple):
    """The tree of a question. number: which. nodes: prefixes whose rows it needed."""

    number: int
    answers: dict[str, Answer]  # by way
    nodes: int


class Walker:
    """Two models, the ways to compare, and the branches that are being walked.

    ends: end-of-generation tokens. The rows must not depend on the tokens beside them
    in a call (`uniform`) for the answers to be those of one way alone.
    """

    def __init__(
        self,
        target: LanguageModel,
        small: LanguageModel,
        mixtures: Mapping[str, Mixture],
        ends: Container[int],
    ) -> None:
        self._models = target, small
        self._mixtures, self._ends = mixtures, ends
        self._slots = min(target.sequences, small.sequences)
        self._active: list[Branch] = []  # by sequence
        self._waiting: list[Branch] = []  # for a sequence
        self._found: dict[int, Walked] = {}
        self._left: dict[int, int] = {}  # branches that have not ended, by question

    def walk(self, questions: Iterator[Question]) -> Iterator[Walked]:
        """Yields the trees as they are complete; questions are numbered from 0.

        Few questions are under way at once, so that earlier ones are complete first,
        and that a branch seldom waits until the cells of its text are gone. Raises
        Cancelled.
        """
        asked = enumerate(questions)
        with ExitStack() as holding:
            for model in self._models:
                for slot in range(self._slots):
                    holding.enter_context(model.hold(slot))
            while self._fill(asked):
                if any(model.cancel.is_set() for model in self._models):
                    raise Cancelled("stopped while the answers were computed")
                yield from self._step()

    def _fill(self, asked: Iterator[tuple[int, Question]]) -> bool:
        """Gives free sequences to branches; False: there are none left."""
        while len(self._active) < self._slots:
            if self._waiting:
                first = min(branch.number for branch in self._waiting)
                at = max(i for i, b in enumerate(self._waiting) if b.number == first)
                branch = self._waiting.pop(at)
            elif len(self._left) >= _TOGETHER:
                break
            else:
                following = next(asked, None)
                if following is None:
                    break
                branch = Branch.begin(*following, [*self._mixtures])
                self._found[branch.number] = Walked(branch.number, {}, 0)
                self._left[branch.number] = 1
            for model in self._models:
                self._take_cells(model, branch.context.tokens, len(self._active))
            self._active.append(branch)
        return bool(self._active)

    def _take_cells(self, model: LanguageModel, tokens: Tokens, slot: int) -> None:
        """Copies to a sequence what another one has of a text, if that is more."""
        own = model.reusable(tokens, slot)
        others = [other for other in range(self._slots) if other != slot]
        saved = {o: model.reusable(tokens, o, copied=True) for o in others}
        best = max(others, key=saved.__getitem__, default=slot)
        if saved.get(best, 0) > own:
            model.copy(best, slot, saved[best])

    def _step(self) -> Iterator[Walked]:
        """One more token of every branch that has a sequence."""
        requests = [
            Request(branch.context, sequence=slot)
            for slot, branch in enumerate(self._active)
        ]
        large, small = (model.score(requests) for model in self._models)
        free = list[int]()
        for slot, branch in enumerate([*self._active]):
            number = branch.number
            rows = large[slot].logits[0], small[slot].logits[0]
            grown = branch.grow(*rows, self._mixtures)
            found = self._found[number]
            self._found[number] = found._replace(nodes=found.nodes + 1)
            going = list[Branch]()
            for one in grown:
                if one.is_over(self._ends):
                    found.answers.update(dict.fromkeys(one.ways, one.said))
                else:
                    going.append(one)
            self._left[number] += len(going) - 1
            if going:
                self._active[slot] = going[0]
                self._waiting += going[1:]
            else:
                free.append(slot)
            if not self._left[number]:
                del self._left[number]
                yield self._found.pop(number)
        self._close_up(free)

    def _close_up(self, free: list[int]) -> None:
        """Moves the last branches to free sequences, so that those in use adjoin."""
        gone = set(free)
        while gone:
            last = len(self._active) - 1
            if last not in gone:
                slot = min(gone)
                gone.remove(slot)
                branch = self._active[slot] = self._active[last]
                for model in self._models:
                    self._take_cells(model, branch.context.tokens, slot)
            gone.discard(last)
            self._active.pop()
