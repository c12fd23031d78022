"""One answer, call by call: the next request, and the tokens of its rows.

It makes no calls itself, so that several answers can share one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

from edgecs.core.context import Context
from edgecs.core.draft import Request, Rows
from edgecs.decoding.cascade import Cascade, PendingRound, Round
from edgecs.sampling.chain import Choices
from edgecs.sampling.logprobs import Logprobs, logprobs_of
from edgecs.session.details import Detail, details_of
from edgecs.session.stats import Mark, Stats
from edgecs.text.detokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""stop: end token or stop string; length: max_tokens; context: no room is left."""

OnRound = Callable[[Context, Round], None]


class Token(NamedTuple):
    """One generated token and the text that became certain with it (often none).

    logprobs, detail: if they were requested.
    """

    id: int
    text: str
    source: str
    logprobs: Logprobs | None = None
    detail: Detail | None = None


class Answer:
    """An answer to the context as it is when the answer begins.

    After `start`, `request` gives the next call and `take` its tokens, until
    `finish_reason` is set; then comes `end`.

    limit: the most tokens. logprobs: report those of every token and of this many of
    the most likely ones; None: report none. details: say how every token came about.
    shown: texts of control tokens that are part of the answer. mark: for the
    statistics. cancelled: checked once per round. on_round: returns the function to
    call with the context and the outcome of every round, before anything is committed.
    """

    def __init__(
        self,
        cascade: Cascade,
        tokenizer: Tokenizer,
        context: Context,
        choices: Choices,
        *,
        limit: int,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        details: bool = False,
        shown: Mapping[int, bytes] | None = None,
        mark: Mark | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_round: Callable[[], OnRound | None] = lambda: None,
    ) -> None:
        self.context = context
        self.stats = Stats(
            prompt_tokens=len(context), faults=dict(cascade.faults), mark=mark
        )
        self.finish_reason: FinishReason | None = None
        self.read = 0  # prompt tokens computed by earlier calls
        self._cascade, self._tokenizer = cascade, tokenizer
        self._choices, self._limit = choices, limit
        self._text, self._logprobs = TextStream(stop), logprobs
        self._details, self._shown = details, shown or {}
        self._cancelled, self._on_round = cancelled, on_round
        self._pending: PendingRound | None = None
        self._began = time.perf_counter()
        self._forwards = self._inner_forwards()

    def start(self) -> None:
        """Start the clock; sets `finish_reason` if there is nothing to generate."""
        self._began = time.perf_counter()
        if self._limit <= 0:
            self.finish_reason = "length"
        elif self._cancelled():
            self.finish_reason = "cancelled"

    def request(self, most: int | None = None, together: int = 1) -> Request:
        """The next request. most: limit of draft tokens; None: as many as fit.

        together: requests that the call will have.

        The prefill call takes no draft: the first token is as fast, and from the same
        row, as in plain decoding.
        """
        target, tokens = self._cascade.reviewer, self.stats.tokens
        room = min(
            self._limit - tokens - 1,
            target.n_ctx - len(self.context),
            target.max_draft,
            target.max_draft if most is None else most,
        )
        pending = self._cascade.prepare(
            self.context, self._choices, room if tokens else 0, together
        )
        self._pending = pending
        return pending.request

    def ahead(self) -> AbstractContextManager[None]:
        """A block for the call of `request`, in which a drafter may go on.

        It is for calls with one request.
        """
        pending, stats = self._pending, self.stats
        assert pending is not None
        context, draft, *_ = pending.request
        said = len(draft) + 1  # the draft and the target's own token
        room = min(
            self._limit - stats.tokens - said - 1,
            self._cascade.reviewer.n_ctx - len(context) - said,
        )
        if not stats.tokens or room < 1:
            return nullcontext()
        return self._cascade.ahead(pending, self._choices, room)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer; None: something else did."""
        return self._text.stop

    @property
    def promised(self) -> list[float]:
        """Probabilities that the next draft is right up to each token."""
        pending = self._pending
        if pending is None or pending.plan is None:
            return []
        return pending.plan.probabilities[: len(pending.request.draft)]

    def narrowed(self, most: int) -> Request:
        """The next request with at most `most` draft tokens."""
        assert self._pending is not None
        request = self._pending.request
        request = request._replace(draft=request.draft.clip(most))
        self._pending = self._pending._replace(request=request)
        return request

    def take(self, rows: Rows, calling: float, together: int = 1) -> Iterator[Token]:
        """Commit and yield the tokens of a call, up to the end of the answer.

        Each token is committed just before it is yielded. calling: seconds of the call.
        together: number of its requests.
        """
        assert self._pending is not None
        pending, self._pending = self._pending, None
        done = self._cascade.finish(pending, rows, self._choices, calling, together)
        done = self._learnt(done)
        stats, now = self.stats, time.perf_counter()
        if not stats.tokens:
            fed = rows.fed + self.read
            stats.cached_tokens = stats.prompt_tokens - min(fed, stats.prompt_tokens)
            stats.prompt_seconds = now - self._began
        stated = _stated(done, self._logprobs) if self._logprobs is not None else []
        details = self._detailed(done) if self._details else []
        yield from self._emit(done, stated, details)

    def _detailed(self, done: Round) -> list[Detail]:
        stats = self.stats
        return details_of(done, stats.rounds + 1 if stats.tokens else 0)

    def end(self, reason: FinishReason | None = None) -> None:
        """End the answer; reason: why it ends early."""
        stats = self.stats
        if reason and self.finish_reason is None:
            self.finish_reason = reason
        seconds = time.perf_counter() - self._began
        stats.decode_seconds = seconds - stats.prompt_seconds
        after, before = self._inner_forwards(), self._forwards
        stats.forwards = {name: after[name] - before[name] for name in after}
        stats.faults = dict(self._cascade.faults)

    def _inner_forwards(self) -> dict[str, int]:
        """Calls of every inner reviewer since it was loaded."""
        return {inner.name: inner.forwards for inner in self._cascade.levels()[1:]}

    def _learnt(self, done: Round) -> Round:
        """Pass the outcome of a round to the drafters."""
        stats = self.stats
        self._cascade.learn(self.context, done)
        if stats.tokens and len(self._cascade.faults) > len(stats.faults):
            known, stats.faults = stats.faults, dict(self._cascade.faults)
            new = {n: why for n, why in stats.faults.items() if n not in known}
            done = done._replace(faults=new)
        on_round = self._on_round()
        if on_round and stats.tokens:
            on_round(self.context, done)
        return done

    def _emit(
        self, done: Round, stated: Sequence[Logprobs], details: Sequence[Detail]
    ) -> Iterator[Token]:
        stats, reads_prompt = self.stats, not self.stats.tokens
        before, tokens = stats.tokens, done.tokens
        try:
            for at, (token, source) in enumerate(
                zip(tokens, done.sources, strict=True)
            ):
                self.context.append((token,))
                stats.tokens += 1
                piece = self._text.push(self._piece(token))
                last = stats.tokens - before == len(tokens)
                self.finish_reason = self._ends(token, last)
                if self.finish_reason:
                    piece += self._text.flush()
                yield Token(
                    token,
                    piece,
                    source,
                    stated[at] if stated else None,
                    details[at]._replace(ends=self.finish_reason) if details else None,
                )
                if self.finish_reason:
                    break
        finally:
            if not reads_prompt:
                stats.observe(done, stats.tokens - before)

    def _piece(self, token: int) -> bytes:
        return self._shown.get(token) or self._tokenizer.piece(token)

    def _ends(self, token: int, last: bool) -> FinishReason | None:
        """The reason to end the answer after this token, if any.

        An interrupt is checked once per round, at its last token, so that held-back
        text is emitted with a token.
        """
        if self._text.stopped or token in self._tokenizer.ends:
            return "stop"
        if self.stats.tokens >= self._limit:
            return "length"
        if len(self.context) > self._cascade.reviewer.n_ctx:
            return "context"
        return "cancelled" if last and self._cancelled() else None


def _stated(done: Round, most: int) -> list[Logprobs]:
    """Log-probabilities of a round's tokens, each from the row it was chosen on."""
    rows = (-1, *done.verdict.path)
    return [
        logprobs_of(done.rows.logits[node + 1], token, most)
        for node, token in zip(rows, done.tokens, strict=True)
    ]
