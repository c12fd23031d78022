"""A conversation with one target: tokens in, a stream of tokens out.

The session owns the rules around the rounds: where an answer ends, how long a draft may
be, what is committed, what is counted. It is independent of engines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal, NamedTuple

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Drafter, LanguageModel
from edgecs.decoding.cascade import Cascade, Round
from edgecs.decoding.exactness import Limits
from edgecs.decoding.static_schedule import Quotas, Schedule
from edgecs.errors import Cancelled, ConfigError, ContextFull
from edgecs.sampling.chain import Choices, Rule, always, greedy
from edgecs.sampling.logprobs import Logprobs, logprobs_of
from edgecs.session.stats import Stats
from edgecs.text.detokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""stop: end token or stop string; length: max_tokens; context: no room is left."""

_GREEDY = always(greedy)


class Token(NamedTuple):
    """One generated token and the text that became certain with it (often none).

    logprobs: if they were requested.
    """

    id: int
    text: str
    source: str
    logprobs: Logprobs | None = None


class Session:
    """Generates with `target` and with drafts of `drafters`; a context manager.

    draft_max: quota of each drafter per round, row 0 of the K matrix, or one number for
    all; 0 turns speculation off. schedule: a planner instead of fixed quotas, with its
    own drafters. limits: permitted widths of rounds. rule: how tokens are chosen.
    sequence: the KV sequence of the target for this conversation; several sessions may
    share a target that has several, and take turns within one thread.
    Every token is the target's choice on the target's row, so the answer is the same
    for any drafters and any draft_max wherever a row does not depend on how many are
    computed with it (docs/concepts.md).

    `finish_reason` and `stats` describe the last answer. `on_round`, if set, is called
    with the context and the outcome of every round, before anything is committed. All
    methods but `interrupt` are for one thread at a time. Closing releases the target
    and the drafters' models but does not unload them.
    """

    def __init__(
        self,
        target: LanguageModel,
        tokenizer: Tokenizer,
        drafters: Sequence[Drafter] = (),
        *,
        draft_max: int | Sequence[int] = 0,
        schedule: Schedule | None = None,
        limits: Limits | None = None,
        rule: Rule = _GREEDY,
        sequence: int = 0,
    ) -> None:
        if isinstance(draft_max, int):
            counts, longest = [draft_max] * len(drafters), draft_max
        else:
            counts, longest = [*draft_max], sum(draft_max)
        if not 0 <= longest <= target.max_draft:
            raise ConfigError(
                f"a draft of {longest} tokens is not possible: the length must be "
                f"between 0 and {target.max_draft}, what one call can verify"
            )
        self.target = target
        self.tokenizer = tokenizer
        self.off_reason: str | None = None  # why speculation is off
        if schedule is None and not any(counts):
            self.off_reason = "not asked for"
        elif not target.rewindable:
            self.off_reason = "this model cannot remove rejected tokens"
        if self.off_reason:
            schedule = Quotas()
        elif schedule is None:
            schedule = Quotas(drafters, counts, tokenizer.ends)
        self.cascade = Cascade(target, schedule, limits=limits, ends=tokenizer.ends)
        self.rule = rule
        self.on_round: Callable[[Context, Round], None] | None = None
        self.context = Context()
        self.stats = Stats()
        self.finish_reason: FinishReason | None = None
        self._stream: Generator[Token] | None = None  # the current answer
        self._lock = threading.Lock()  # over the one below
        self._answering = False
        self._cancel = threading.Event()  # of the current answer
        with ExitStack() as undo:
            for level in self.cascade.levels():
                level.cancel = self._cancel
                level.sequence = sequence if level.reviewer.sequences > 1 else 0
            for model, number in self._used():
                undo.enter_context(model.hold(number))
            self._closing = undo.pop_all()

    @property
    def chain(self) -> list[str]:
        """Names of the target and its drafters, Max-Gram last."""
        return [self.cascade.name, *(d.name for d in self.cascade.drafters)]

    def _used(self) -> list[tuple[LanguageModel, int]]:
        """Every model that computes, and its sequence, each once."""
        levels = self.cascade.levels()
        used = {
            id(level.reviewer): (level.reviewer, level.sequence) for level in levels
        }
        return list(used.values())

    def generate(
        self,
        prompt: Sequence[int] | Tokens,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        rule: Rule | None = None,
        logprobs: int | None = None,
    ) -> Generator[Token]:
        """Yields the answer to `prompt`, which is the whole conversation so far.

        rule: for this answer instead of the session's own. logprobs: report those of
        every token and of this many of the most likely ones; None: report none.

        A prefix that the prompt shares with earlier calls is not computed again. Each
        token is committed just before it is yielded, so a consumer may stop at any
        point and continue with `session.context.tokens`. An unfinished answer ends when
        the next one begins or the session closes. `interrupt`, or setting the target's
        `cancel`, ends the answer within a round.

        Raises ConfigError for an empty prompt, ContextFull for one that leaves no
        room to answer.
        """
        if logprobs is not None and logprobs < 0:
            raise ConfigError(f"logprobs must be 0 or more, got {logprobs}")
        tokens = np.array(prompt, dtype=np.int32)
        self._check_room(tokens)
        self.stop()
        self._continue(tokens)
        faults = dict(self.cascade.faults)
        self.stats = Stats(prompt_tokens=tokens.size, faults=faults)
        self.finish_reason = None
        self.cascade.begin()
        choices = (rule or self.rule)(tokens.size)
        self._answering = True
        self._stream = self._answer(max_tokens, TextStream(stop), choices, logprobs)
        return self._stream

    def close(self) -> None:
        """Ends the current answer and releases the models; may be called again."""
        self.stop()
        self._closing.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stop(self) -> None:
        """Ends the current answer, if any; its tokens are kept.

        Raises ConfigError while another thread computes it.
        """
        if self._stream is None:
            return
        try:
            self._stream.close()
        except ValueError as error:  # "generator already executing"
            raise ConfigError(
                "another thread is generating an answer with this model: interrupt it "
                "and wait for its end first"
            ) from error
        self._stream = None
        self._ended()

    def interrupt(self) -> None:
        """Ends the current answer within a round; may be called from any thread.

        Its tokens are kept, and `finish_reason` becomes "cancelled". Later answers are
        not affected.
        """
        with self._lock:
            if self._answering:
                self._cancel.set()

    def _ended(self) -> None:
        """Marks the answer as ended, so that an interrupt cannot end the next."""
        with self._lock:
            self._answering = False
            self._cancel.clear()

    @property
    def _cancelled(self) -> bool:
        return self._cancel.is_set() or self.target.cancel.is_set()

    def _check_room(self, tokens: Tokens) -> None:
        if not tokens.size:
            raise ConfigError("the prompt is empty: there is nothing to continue")
        if tokens.size > self.target.n_ctx:
            raise ContextFull(
                f"the prompt has {tokens.size} tokens but the context holds "
                f"{self.target.n_ctx}: shorten it or give a larger context (-c)"
            )

    def _continue(self, tokens: Tokens) -> None:
        """Extends the old context if `tokens` begins with it, else starts a new one."""
        old = self.context
        if tokens.size >= len(old) and np.array_equal(tokens[: len(old)], old.tokens):
            old.append(tokens[len(old) :])
        else:
            self.context = Context(tokens)

    def _answer(
        self,
        max_tokens: int | None,
        text: TextStream,
        choices: Choices,
        logprobs: int | None,
    ) -> Generator[Token]:
        limit = self.target.n_ctx + 1 if max_tokens is None else max_tokens
        stats, began = self.stats, time.perf_counter()
        before = self._forwards()
        if limit <= 0:
            self.finish_reason = "length"
        elif self._cancelled:
            self.finish_reason = "cancelled"
        try:
            while self.finish_reason is None:
                done = self._round(limit, choices)
                if not stats.tokens:
                    stats.cached_tokens = stats.prompt_tokens - done.rows.fed
                    stats.prompt_seconds = time.perf_counter() - began
                stated = _stated(done, logprobs) if logprobs is not None else []
                yield from self._emit(done, limit, text, stated)
        except Cancelled:
            self.finish_reason = "cancelled"
        finally:
            stats.decode_seconds = time.perf_counter() - began - stats.prompt_seconds
            after = self._forwards()
            stats.forwards = {name: after[name] - before[name] for name in after}
            stats.faults = dict(self.cascade.faults)
            self.target.end_turn(self.context, self.cascade.sequence)
            self._ended()

    def _forwards(self) -> dict[str, int]:
        """Calls of every inner reviewer since it was loaded."""
        return {inner.name: inner.forwards for inner in self.cascade.levels()[1:]}

    def _round(self, limit: int, choices: Choices) -> Round:
        """The next round, its draft clipped to the budget and to the context.

        The prefill call takes no draft: the first token is as fast, and from the same
        row, as in plain decoding.
        """
        target, stats = self.target, self.stats
        most = min(
            limit - stats.tokens - 1, target.n_ctx - len(self.context), target.max_draft
        )
        done = self.cascade.step(self.context, choices, most if stats.tokens else 0)
        self.cascade.learn(self.context, done)
        if stats.tokens and len(self.cascade.faults) > len(stats.faults):
            done = self._with_faults(done)
        if self.on_round and stats.tokens:
            self.on_round(self.context, done)
        return done

    def _with_faults(self, done: Round) -> Round:
        """The round, with the drafters that failed since the one before."""
        known, faults = self.stats.faults, self.cascade.faults
        self.stats.faults = dict(faults)
        new = {name: why for name, why in faults.items() if name not in known}
        return done._replace(faults=new)

    def _emit(
        self, done: Round, limit: int, text: TextStream, stated: Sequence[Logprobs]
    ) -> Iterator[Token]:
        """Commits and yields the tokens of a round up to where the answer ends."""
        stats, reads_prompt = self.stats, not self.stats.tokens
        before, tokens = stats.tokens, done.tokens
        try:
            for at, (token, source) in enumerate(
                zip(tokens, done.sources, strict=True)
            ):
                self.context.append((token,))
                stats.tokens += 1
                piece = text.push(self.tokenizer.piece(token))
                last = stats.tokens - before == len(tokens)
                self.finish_reason = self._ends(token, limit, text.stopped, last)
                if self.finish_reason:
                    piece += text.flush()
                yield Token(token, piece, source, stated[at] if stated else None)
                if self.finish_reason:
                    break
        finally:
            if not reads_prompt:
                stats.observe(done, stats.tokens - before)

    def _ends(
        self, token: int, limit: int, stopped: bool, last: bool
    ) -> FinishReason | None:
        """Why the answer ends with this token, if it does.

        An interrupt is checked once per round, at its last token, so that held-back
        text is emitted with a token.
        """
        if stopped or token in self.tokenizer.ends:
            return "stop"
        if self.stats.tokens >= limit:
            return "length"
        if len(self.context) > self.target.n_ctx:
            return "context"
        return "cancelled" if last and self._cancelled else None


def _stated(done: Round, most: int) -> list[Logprobs]:
    """Logprobs of the tokens of a round, each from the row it was chosen on."""
    rows = (-1, *done.verdict.path)
    return [
        logprobs_of(done.rows.logits[node + 1], token, most)
        for node, token in zip(rows, done.tokens, strict=True)
    ]
