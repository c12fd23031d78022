"""The answer to a prompt in one mode: its stored fields and its fork."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from edgecs.decoding.exactness import Limits
from edgecs.session.answer import Token
from edgecs.session.stats import Stats
from edgecs_bench.suite.repetition import looping


class Moment(NamedTuple):
    """A round of an answer."""

    at: float  # seconds since the first token
    emitted: int  # tokens
    width: int  # tokens in the call
    parked: bool  # tokens were proposed but not tested
    drafting: float  # seconds of drafting
    calling: float  # seconds of the target's call


@dataclass(frozen=True)
class Said:
    """An answer of a mode; times are in seconds.

    stats, limits, moments, pieces and spans are those of an edgecs session; another
    runtime may report the numbers of tested and accepted tokens.
    """

    tokens: list[int]
    ttft: float
    decode: float
    stats: Stats | None = None
    limits: Limits | None = None
    pieces: list[Token] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    spans: list[float] = field(default_factory=list)  # the schedule's own time
    tested: int | None = None
    accepted: int | None = None
    peak_rss_mib: float | None = None


@dataclass(frozen=True)
class Answer:
    """The stored fields of an answer, under the names of the published schema."""

    category: str
    id: str
    prompt_tokens: int
    mode: str
    temperature: float
    repeat: int
    block: int
    ttft_ms: float
    decode_ms: float
    tokens: int
    looping: int
    rounds: int
    tested: int | None
    accepted: int | None
    compared: int
    fork: dict[str, int] | None = None
    drifted: bool = False
    drafting_ms: float | None = None
    calling_ms: float | None = None
    planner_us: float | None = None
    by_position: list[list[int]] = field(default_factory=list)
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    tiers: dict[str, int] = field(default_factory=dict)
    joules: float | None = None
    peak_rss_mib: float | None = None

    @property
    def each(self) -> float:
        """Seconds per token after the first; the answer has two or more tokens."""
        return self.decode_ms / 1e3 / (self.tokens - 1)

    @property
    def whole(self) -> float:
        """Seconds per token, including the time to the first one."""
        return (self.ttft_ms + self.decode_ms) / 1e3 / self.tokens

    def to_json(self) -> dict[str, Any]:
        """The fields, without most of those that are None."""
        must = ("tested", "accepted", "fork", "planner_us")
        return {
            name: value
            for name, value in vars(self).items()
            if name in must or value is not None
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Answer:
        """The inverse of `to_json`; TypeError for other data."""
        return cls(**fields)


def of(said: Said, plain: Sequence[int], prompt_tokens: int) -> dict[str, Any]:
    """The fields of an Answer that follow from the generated tokens.

    plain: the answer of decoding without drafts.
    """
    forked = fork(said, plain, prompt_tokens)
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "ttft_ms": _ms(said.ttft),
        "decode_ms": _ms(said.decode),
        "tokens": len(said.tokens),
        "looping": int(looping(said.tokens).sum()),
        "rounds": max(0, len(said.tokens) - 1),
        "tested": said.tested,
        "accepted": said.accepted,
        "compared": forked["token"] + 1 if forked else len(said.tokens),
        "fork": forked,
        "peak_rss_mib": said.peak_rss_mib,
    }
    if said.stats:
        found.update(_counts(said, said.stats))
    return found


def _counts(said: Said, stats: Stats) -> dict[str, Any]:
    return {
        "rounds": stats.rounds,
        "tested": stats.tested,
        "accepted": stats.accepted,
        "drafting_ms": _ms(sum(moment.drafting for moment in said.moments)),
        "calling_ms": _ms(sum(moment.calling for moment in said.moments)),
        "planner_us": round(1e6 * median(said.spans), 2) if said.spans else None,
        "by_position": _by_position(stats),
        "by_source": stats.by_source(),
        "widths": {str(n): k for n, k in stats.rounds_by_width.items()},
        "tiers": tiers(stats, said.limits) if said.limits else {},
    }


def _by_position(stats: Stats) -> list[list[int]]:
    """Tested and accepted tokens by position in the draft."""
    tested = Counter(i for r in stats.records for i in range(len(r.tested)))
    accepted = Counter(i for r in stats.records for i in range(len(r.accepted)))
    return [[tested[i], accepted[i]] for i in range(len(tested))]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def fork(said: Said, plain: Sequence[int], prompt_tokens: int) -> dict[str, int] | None:
    """Where an answer differs from plain decoding; None: nowhere.

    It has the width of the round, if known; 0 is the prefill.
    """
    if said.tokens == list(plain):
        return None
    pairs = list(zip(said.tokens, plain, strict=False))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    found = {"token": at, "context": prompt_tokens + at}
    if said.stats:
        found["width"] = _width(said.stats, at)
    return found


def _width(stats: Stats, at: int) -> int:
    """Width of the round that emitted token `at` of an answer."""
    emitted, width = 1, 0  # the prefill gives the first token
    for record in stats.records:
        if emitted > at:
            break
        emitted, width = emitted + len(record.accepted) + 1, record.width
    return width


def tiers(stats: Stats, limits: Limits) -> dict[str, int]:
    """Tokens of an answer by the tier of their round; the first token has no round."""
    found: Counter[str] = Counter()
    depth, left = stats.prompt_tokens + 1, stats.tokens - 1
    for record in stats.records:
        size = min(len(record.accepted) + 1, left)
        found[limits.tier(depth - 1)] += size  # cells before the call
        depth, left = depth + size, left - size
    return dict(found)
