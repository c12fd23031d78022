"""Replays schedules against a table of the target's answers, with a cached drafter.

As in the official code of CS Drafting no target forward is executed: the target
answered once, and every schedule gives the same answer. The result is the number of
target and drafter calls.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import click
import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import (
    Draft,
    LanguageModel,
    OneSequence,
    Request,
    Rows,
    Verdict,
    score_one,
    sole_request,
)
from edgecs.core.faults import refuse
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.session.session import Session
from edgecs.testing.fakes import Endless
from edgecs_bench.suite.prompts import Prompt

SD_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10)
CS_FIRST, CS_TAIL, CS_INNER = (0, 1, 2, 3, 4, 6), (0, 4, 8, 12, 16), (0, 2, 4, 8)
_PIECE = 48  # tokens of an answer in one call of the drafter


class Trace(NamedTuple):
    """A prompt as ids, and the target's answer."""

    prompt: Prompt
    ids: list[int]
    said: list[int]


class Numbers:
    """Consecutive numbers for the tokens of all traces, so that rows are short."""

    size = 32768

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._numbers: dict[int, int] = {}

    def __call__(self, token: int) -> int:
        """The number of a token."""
        if token not in self._numbers:
            self._numbers[token] = len(self.tokens)
            self.tokens.append(token)
        return self._numbers[token]


class _Table(OneSequence):
    """A model that is defined by its greedy choices; its rows are one-hot."""

    vocab_size = Numbers.size
    n_ctx = 1 << 30
    max_draft = 63
    max_leaves = 1
    rewindable = True

    def __init__(self) -> None:
        self.cancel = threading.Event()

    def rows(self, choices: Sequence[int]) -> Rows:
        """One-hot rows for these choices."""
        logits = np.zeros((len(choices), self.vocab_size), dtype=np.float32)
        logits[range(len(choices)), choices] = 1
        return Rows(logits, fed=len(choices))

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Does nothing: there is no cache."""

    def reset(self) -> None:
        """Does nothing: there is no state."""

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Does nothing: the model can be shared."""
        return nullcontext()


class Spoken(_Table):
    """The target, defined by its recorded answer."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self._tokens = tokens

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """The recorded choices; those after a wrong draft token are not used."""
        context, draft, *_ = sole_request(requests)
        last = len(self._tokens) - 1
        at = [min(len(context) + i, last) for i in range(len(draft) + 1)]
        return [self.rows([self._tokens[i] for i in at])]


class Remembered(_Table):
    """A drafter that caches its choice after each prefix."""

    def __init__(self, model: LanguageModel, numbers: Numbers) -> None:
        super().__init__()
        self._model = model
        self._numbers = numbers
        self._choices: dict[bytes, int] = {}
        self._prompt = Context()  # of the last answer, in real ids

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """The choices up to the first wrong draft token; later ones are not used."""
        context, draft, *_ = sole_request(requests)
        tokens = np.concatenate([context.tokens, draft.tokens])
        choices = [0] * (len(draft) + 1)
        for i in range(len(choices)):
            choices[i] = self._choice(tokens[: len(context) + i])
            if i < len(draft) and choices[i] != draft.tokens[i]:
                break
        return [self.rows(choices)]

    def read(self, ids: list[int], said: list[int]) -> None:
        """Computes the choices along an answer in a few calls, and caches them."""
        self._prompt = Context(self._real(ids))
        for start in range(0, len(said), _PIECE):
            context = Context([*ids, *said[:start]])
            piece = Draft.chain(said[start : start + _PIECE], "target")
            real = Draft.chain(self._real(piece.tokens.tolist()), "target")
            rows = score_one(self._model, self._context(context.tokens), real)
            for i, row in enumerate(rows.logits):
                prefix = np.concatenate([context.tokens, piece.tokens[:i]])
                self._choices[prefix.tobytes()] = self._numbers(int(row.argmax()))

    def _choice(self, prefix: Tokens) -> int:
        key = prefix.tobytes()
        if key not in self._choices:
            row = score_one(self._model, self._context(prefix)).logits[0]
            self._choices[key] = self._numbers(int(row.argmax()))
        return self._choices[key]

    def _context(self, prefix: Tokens) -> Context:
        """The context in real ids; one buffer per answer, so that cells are reused."""
        ids, prompt = self._real(prefix.tolist()), self._prompt
        if prompt.tokens.tolist() == ids[: len(prompt)]:
            return prompt.with_tail(ids[len(prompt) :])
        return Context(ids)

    def _real(self, ids: list[int]) -> list[int]:
        return [self._numbers.tokens[n] for n in ids]


class HeardMaxGram(MaxGram):
    """Max-Gram with bigrams from the answer only.

    The target's choices after a wrong token were not recorded.
    """

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Updates the bigrams with the accepted tokens and the next one."""
        n = len(verdict.path)
        heard = Rows(rows.logits[: n + 1], rows.fed)
        super().observe(context, draft.clip(n), heard, verdict)


@dataclass(frozen=True)
class Schedule:
    """A K matrix with its Max-Gram settings."""

    matrix: KMatrix
    bigram_fill: bool

    @property
    def is_speculative_decoding(self) -> bool:
        """Whether only the drafter writes."""
        (_, tail), (_, inner) = self.matrix.rows
        return not tail and not inner


def schedules() -> Iterator[Schedule]:
    """Speculative decoding with every k, CS Drafting with every K."""
    for k in SD_LENGTHS:
        yield Schedule(KMatrix(((k, 0), (0, 0))), False)
    for first, tail, inner in itertools.product(CS_FIRST, CS_TAIL, CS_INNER):
        if tail or (first and inner):
            for fill in (False, True):
                yield Schedule(KMatrix(((first, tail), (0, inner))), fill)


class Count(NamedTuple):
    """The counts of one answer."""

    tokens: int
    target: int
    drafter: int


def play(trace: Trace, drafter: Remembered, last: MaxGram, schedule: Schedule) -> Count:
    """Counts the forwards of target and drafter for one answer with a schedule."""
    drafters = stack([NamedModel("drafter", drafter)], last, schedule.matrix)
    target = Spoken([*trace.ids, *trace.said, 0])
    counts = schedule.matrix.counts(0)
    with Session(target, Endless(), drafters, draft_max=counts) as session:
        said = [t.id for t in session.generate(trace.ids, max_tokens=len(trace.said))]
        assert said == trace.said
        stats = session.stats
        refuse(stats.faults)
    # The prefill gives the first token in every schedule.
    return Count(stats.tokens - 1, stats.rounds, stats.forwards["drafter"])


def play_all(
    drafter: LanguageModel, traces: Sequence[Trace]
) -> dict[Schedule, list[Count]]:
    """Runs every schedule on every answer; counts are in the order of the traces.

    Max-Gram's bigrams are kept from answer to answer.
    """
    played: dict[Schedule, list[Count]] = {schedule: [] for schedule in schedules()}
    lasts = {s: HeardMaxGram(bigram_fill=s.bigram_fill) for s in played}
    numbers = Numbers()
    for trace in traces:
        ids, said = ([numbers(token) for token in part] for part in trace[1:])
        short, model = Trace(trace.prompt, ids, said), Remembered(drafter, numbers)
        model.read(ids, said)
        for schedule, counts in played.items():
            counts.append(play(short, model, lasts[schedule], schedule))
        click.echo(f"{trace.prompt.category} {trace.prompt.id}: played", err=True)
    return played
