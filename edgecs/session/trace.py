"""A trace of every round as JSON Lines: a header, then one object for each round.

A trace does not change the answer, not even if its file cannot be written; it receives
a round before its tokens are committed. The fields are described in docs/trace.md.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path

from edgecs.core.context import Context
from edgecs.core.draft import Choose
from edgecs.decoding.cascade import Round
from edgecs.decoding.static_schedule import Plan
from edgecs.decoding.tiers import Tier
from edgecs.errors import ConfigError, EdgecsError
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.text.detokenizer import Tokenizer

FORMAT = "edgecs-rounds/1"
_BEGINS = f'{{"format": "{FORMAT}"'.encode()  # every trace, as `header` comes first

Record = dict[str, object]
"""One line; valid JSON, so without NaN and infinity."""


def header(
    model: str,
    chain: Sequence[str],
    tiers: str,
    sampling: Sampling,
    prompt_tokens: int,
) -> Record:
    """The first line: the model and the settings of the rounds.

    tiers: the tiers along the context, see `Limits.describe`.
    """
    biases = [[token, _bias(bias)] for token, bias in sampling.logit_bias]
    return {
        "format": FORMAT,
        "model": model,
        "chain": list(chain),
        "tiers": tiers,
        "sampling": {**asdict(sampling), "logit_bias": biases},
        "prompt_tokens": prompt_tokens,
    }


def follow(
    session: Session, write: Callable[[Record], None], choose: Choose | None = None
) -> None:
    """Calls `write` with every round of the session from now on, numbered from 1.

    choose: the target's choice, see `describe`.
    """
    numbers, before = count(1), session.on_round

    def note(context: Context, done: Round) -> None:
        tier = session.cascade.limits.tier(len(context) - 1)
        told = describe(context, done, tier, session.tokenizer, choose)
        read = session.cascade.excerpts(context)
        write({"round": next(numbers), **told, "excerpts": read})
        if before:
            before(context, done)

    session.on_round = note


def describe(
    context: Context,
    done: Round,
    tier: Tier,
    tokenizer: Tokenizer,
    choose: Choose | None = None,
) -> Record:
    """One round, before its tokens are committed and the target is called again.

    choose: the target's choice, for the margin of a rejection; None: no margin.
    """
    draft, path = done.draft, done.verdict.path
    tested = _tokens(tokenizer, draft.tokens.tolist(), draft.sources)
    probabilities = _probabilities(done.plan)
    for i, token in enumerate(tested):
        token["p"] = (
            probabilities[i] if probabilities and i < len(probabilities) else None
        )
    return {
        "position": len(context),
        "written": dict(Counter(done.proposed)),
        "proposed": tested,
        "probabilities": probabilities,
        **_reasons(done.plan),
        "ahead": done.ahead,
        "made_ahead": done.made,
        "width": 1 + len(draft),
        "tier": tier,
        "accepted": len(path),
        "tokens": _tokens(tokenizer, done.tokens, done.sources),
        "rejected": _rejected(context, done, tokenizer, choose),
        "faults": dict(done.faults),
        "drafting_ms": round(done.drafting * 1e3, 3),
        "calling_ms": round(done.calling * 1e3, 3),
    }


class TraceFile:
    """Writes JSON Lines to a file, each line in one write; a context manager.

    A run that is killed leaves complete lines. A write that fails, as on a full disk,
    ends the trace and not the answer: later lines are dropped, and leaving the `with`
    block raises EdgecsError. The file is readable by its owner only. The first line
    truncates an older trace. Raises ConfigError for a file that is not a trace, or that
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failed: OSError | None = None
        self._whole = 0  # bytes of all whole lines
        try:
            self._file = _open_trace(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"the trace {path} cannot be written: {why}; name another file"
            ) from error

    def write(self, record: Record) -> None:
        """Appends a line; a failed write does not raise."""
        if self._failed:
            return
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            if not self._whole and self.path.is_file():
                self._file.truncate(0)
            rest = memoryview(line)
            while rest:  # a nearly full disk may take a part of a line
                rest = rest[self._file.write(rest) :]
            self._whole += len(line)
        except OSError as error:
            self._failed = error
            with suppress(OSError):  # a pipe or a device cannot be truncated
                self._file.truncate(self._whole)

    def close(self) -> None:
        """Closes the file; may be called again."""
        try:
            self._file.close()
        except OSError as error:
            self._failed = self._failed or error

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close()
        if self._failed and kind is None:
            why = self._failed.strerror or self._failed
            raise EdgecsError(
                f"the trace {self.path} ends early: {why}; the answer is not affected"
            ) from self._failed


def _open_trace(path: Path) -> io.FileIO:
    """Opens for writing without truncating yet. Raises OSError, ConfigError.

    A pipe without a reader is refused, as opening it would block.
    """
    if path.is_file():
        with path.open("rb") as old:
            begins = old.read(len(_BEGINS))
        if begins and begins != _BEGINS:
            raise ConfigError(
                f"{path} is not a trace of edgecs, so it is not replaced: name another "
                "file"
            )
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o600)
    if sys.platform != "win32":
        os.set_blocking(handle, True)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.fchmod(handle, 0o600)
    return io.FileIO(handle, "ab")


def _tokens(
    tokenizer: Tokenizer, ids: Sequence[int], sources: Sequence[str]
) -> list[Record]:
    return [
        {**_token(tokenizer, token), "source": source}
        for token, source in zip(ids, sources, strict=True)
    ]


def _token(tokenizer: Tokenizer, token: int) -> Record:
    text = tokenizer.piece(token).decode("utf-8", "backslashreplace")
    return {"id": token, "text": text}


def _probabilities(plan: Plan | None) -> list[float | None] | None:
    """Probability that the draft is right up to each token."""
    if plan is None:
        return None
    return [_number(p) for p in plan.probabilities]


def _reasons(plan: Plan | None) -> Record:
    """The planner's reasons for the width; rates in tokens per second."""
    return {
        "widths": plan.widths if plan else None,
        "expected": _number(plan.expected) if plan else None,
        "plain": _number(plan.plain) if plan else None,
        "reason": plan.reason if plan else None,
    }


def _rejected(
    context: Context, done: Round, tokenizer: Tokenizer, choose: Choose | None
) -> Record | None:
    """The first drafted token that the target did not choose; None: there is none."""
    draft, verdict, node = done.draft, done.verdict, done.rejected
    if node is None:
        return None
    last = verdict.path[-1] if verdict.path else -1
    margin = None
    if choose:
        here = context.with_tail([int(draft.tokens[node]) for node in verdict.path])
        margin = _number(choose.margin(done.rows.logits[last + 1], here.tokens))
    return {
        **_token(tokenizer, int(draft.tokens[node])),
        "instead": _token(tokenizer, verdict.token),
        "margin": margin,
    }


def _number(x: float) -> float | None:
    """Rounded to four decimals; None for NaN and infinity."""
    return round(float(x), 4) if math.isfinite(x) else None


def _bias(bias: float) -> float | str:
    return bias if math.isfinite(bias) else str(bias)
