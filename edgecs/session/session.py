"""A conversation with one target: tokens in, a stream of tokens out.

The session owns the rules around the rounds: where an answer ends, how long a draft may
be, what is committed, what is counted. It is independent of engines.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Drafter, LanguageModel, Remembering
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.exactness import Limits
from edgecs.decoding.ratio import RatioRule
from edgecs.decoding.static_schedule import Schedule, StaticSchedule
from edgecs.errors import Cancelled, ConfigError, ContextFull
from edgecs.sampling.cascade_rules import Mixture
from edgecs.sampling.chain import Choices, Rule, always, greedy
from edgecs.session.answer import Answer, FinishReason, OnRound, Token
from edgecs.session.stats import Mark, Stats
from edgecs.text.detokenizer import Tokenizer

_GREEDY = always(greedy)


class Keeping(Protocol):
    """Takes the answers of a session that may be kept."""

    def keep(self, tokens: Tokens, prompt: int) -> None:
        """Takes all tokens of a conversation; its last answer follows `prompt`."""


class Session:
    """Generates with `target` and with drafts of `drafters`; a context manager.

    draft_max: quota of each drafter per round, row 0 of the K matrix, or one number for
    all; 0 turns speculation off. schedule: a planner instead of fixed quotas, with its
    own drafters. limits: permitted widths of rounds. rule: how tokens are chosen.
    sequence: the KV sequence of the target for this conversation; several sessions may
    share a target that has several, and take turns within one thread. mixes: a cascade
    rule, for a target that is `decoding.beside: Beside`. ratio: see `Cascade`. mark:
    for the statistics of all answers, if they are not those of the target alone.
    memory: takes every answer at its end, unless it is to be kept nowhere.
    Without `mixes` every token is the target's choice on the target's row, so the
    answer is the same for any drafters and any draft_max wherever a row does not depend
    on how many are computed with it (docs/concepts.md). With it, the same holds of the
    rule's choice on the rows of both models.

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
        mixes: Mixture | None = None,
        ratio: RatioRule | None = None,
        mark: Mark | None = None,
        memory: Keeping | None = None,
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
            schedule = StaticSchedule()
        elif schedule is None:
            schedule = StaticSchedule(drafters, counts, tokenizer.ends)
        self.cascade = Cascade(
            target,
            schedule,
            limits=limits,
            ends=tokenizer.ends,
            mixes=mixes,
            ratio=ratio,
        )
        self.mark = mark
        self.rule = rule
        self._memory = memory
        self.on_round: OnRound | None = None
        self.context = Context()
        self._last: Answer | None = None
        self._stream: Generator[Token] | None = None  # the answer under way
        self._lock = threading.Lock()  # over the one below
        self._answering, self._keeps = False, True
        self._prompt = 0  # tokens of it
        self._cancel = threading.Event()  # of the current answer
        with ExitStack() as undo:
            for level in self.cascade.levels():
                level.cancel = self._cancel
                level.sequence = sequence if level.reviewer.sequences > 1 else 0
            for model, number in self._used():
                undo.enter_context(model.hold(number))
            undo.callback(lambda: self.cascade.close())
            self._closing = undo.pop_all()

    @property
    def stats(self) -> Stats:
        """Statistics of the last answer."""
        return self._last.stats if self._last else Stats()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended; None before its end."""
        return self._last.finish_reason if self._last else None

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return self.target.n_ctx

    def piece(self, token: int) -> bytes:
        """The text of a token in an answer."""
        return self.tokenizer.piece(token)

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
        shown: Mapping[int, bytes] | None = None,
        memory: bool = True,
    ) -> Generator[Token]:
        """Yields the answer to `prompt`, which is the whole conversation so far.

        rule: for this answer instead of the session's own. logprobs: report those of
        every token and of this many of the most likely ones; None: report none. shown:
        texts of control tokens that are part of the answer. memory: False: draft from
        no texts outside of the conversation, and do not add it to them.

        A prefix that the prompt shares with earlier calls is not computed again. Each
        token is committed just before it is yielded, so a consumer may stop at any
        point and continue with `session.context.tokens`. An unfinished answer ends when
        the next one begins or the session closes. `interrupt`, or setting the target's
        `cancel`, ends the answer within a round.

        Raises ConfigError for an empty prompt, ContextFull for one that leaves no
        room to answer.
        """
        answer = self.begin(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            rule=rule,
            logprobs=logprobs,
            shown=shown,
            memory=memory,
        )
        self._stream = self._tokens(answer)
        return self._stream

    def begin(
        self,
        prompt: Sequence[int] | Tokens,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        rule: Rule | None = None,
        logprobs: int | None = None,
        details: bool = False,
        shown: Mapping[int, bytes] | None = None,
        memory: bool = True,
    ) -> Answer:
        """An answer whose calls are made by the caller, see `generate`.

        `ended` must be called after the last one. details: say how every token came
        about.
        """
        if logprobs is not None and logprobs < 0:
            raise ConfigError(f"logprobs must be 0 or more, got {logprobs}")
        tokens = np.array(prompt, dtype=np.int32)
        self._check_room(tokens)
        self.stop()
        self._continue(tokens)
        if isinstance(self.cascade.schedule, Remembering):
            self.cascade.schedule.allow(memory)
        self.cascade.begin(tokens.size)
        self._answering, self._prompt, self._keeps = True, tokens.size, memory
        choices = (rule or self.rule)(tokens.size)
        self._last = Answer(
            self.cascade,
            self.tokenizer,
            self.context,
            choices,
            limit=self.target.n_ctx + 1 if max_tokens is None else max_tokens,
            stop=stop,
            logprobs=logprobs,
            details=details,
            shown=shown,
            mark=self._mark(choices),
            cancelled=lambda: self._cancel.is_set() or self.target.cancel.is_set(),
            on_round=lambda: self.on_round,
        )
        return self._last

    def _mark(self, choices: Choices) -> Mark | None:
        """The mark of an answer; greedy tokens are a function of their law."""
        noisy = getattr(choices.target, "noisy", True)
        return None if self.mark and self.mark.same_law and not noisy else self.mark

    def ended(self, answer: Answer, reason: FinishReason | None = None) -> None:
        """Finish an answer of `begin`, after its last call."""
        answer.end(reason)
        self.target.end_turn(self.context, self.cascade.sequence)
        if self._memory is not None and self._keeps:
            self._memory.keep(self.context.tokens, self._prompt)
        self._ended()

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

    def _tokens(self, answer: Answer) -> Generator[Token]:
        reason: FinishReason | None = None
        try:
            answer.start()
            while answer.finish_reason is None:
                request = answer.request()
                with answer.ahead():
                    rows, seconds = self.cascade.call(request)
                yield from answer.take(rows, seconds)
        except Cancelled:
            reason = "cancelled"
        finally:
            self.ended(answer, reason)
