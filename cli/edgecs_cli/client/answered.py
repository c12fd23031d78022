"""What a server states about an answer, checked: its tokens, its counts, its times.

Nothing of it is trusted: a number that is missing, negative or not finite counts as 0,
and a value of another type is `ServerLost`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgecs_cli.client.connection import ServerLost
from edgecs_cli.origins import Origins

_MOST = 1 << 53  # of any count; JSON's numbers are exact below
_SHOWN = 200  # characters of a text that is shown
_BYTES = 1024  # of a token, at most
_SOURCES = 64  # drafters, and widths of rounds, at most
REASONS = ("stop", "length", "context", "cancelled")


class Piece(NamedTuple):
    """A token of an answer, as far as it is stated.

    id: -1: not stated. data: its bytes. ends: why the answer ends with it.
    """

    id: int
    text: str
    data: bytes
    source: str
    ends: str | None = None


@dataclass
class Answered:
    """Counts and times of an answer; a `Report`.

    chain, off_reason, timings, speculative: as the server states them.
    """

    tokens: int = 0
    tokens_per_second: float = 0.0
    prompt_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    rounds: int = 0
    tested: int = 0
    accepted: int = 0
    chain: Sequence[str] = ()
    off_reason: str | None = None
    faults: Mapping[str, str] = field(default_factory=dict)
    rounds_by_width: Mapping[int, int] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    speculative: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notice(self) -> None:
        """A server has no rule that changes answers."""

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per round, the target's own counted."""
        return (self.accepted + self.rounds) / self.rounds if self.rounds else 1.0

    def by_source(self) -> Mapping[str, Mapping[str, int]]:
        """Proposed, tested and accepted tokens of each drafter."""
        return self.sources

    def made_ahead(self) -> Mapping[str, int]:
        """Drafts that were made while the target computed, see `Stats`."""
        ahead = _table(self.speculative, "ahead")
        return {kind: _count(ahead, kind) for kind in ("made", "used", "dropped")}

    def origins(self, tiers: str) -> Origins:
        """Where its tokens come from. tiers: exactness along the context, in words."""
        return Origins(self.chain or ("target",), self, self.off_reason, tiers)


def answered_of(event: Mapping[str, Any]) -> Answered:
    """The counts of the event that ends an answer."""
    timings, speculative = _table(event, "timings"), _table(event, "speculative")
    tokens, cached = _count(timings, "predicted_n"), _count(timings, "cache_n")
    seconds = _number(timings, "predicted_ms") / 1e3
    reason = speculative.get("reason")
    return Answered(
        tokens=tokens,
        tokens_per_second=(tokens - 1) / seconds if seconds > 0 and tokens > 1 else 0,
        prompt_seconds=_number(timings, "prompt_ms") / 1e3,
        prompt_tokens=cached + _count(timings, "prompt_n"),
        cached_tokens=cached,
        rounds=_count(speculative, "rounds"),
        tested=_count(timings, "draft_n"),
        accepted=_count(timings, "draft_n_accepted"),
        chain=names(speculative.get("chain")),
        off_reason=None if reason is None else str(reason)[:_SHOWN],
        faults={name: str(why)[:_SHOWN] for name, why in _pairs(speculative, "faults")},
        rounds_by_width={
            int(width): _count({"n": rounds}, "n")
            for width, rounds in _pairs(speculative, "rounds_by_width")
            if width.isascii() and width.isdigit()
        },
        sources={
            name: {kind: _count(counts, kind) for kind in _KINDS}
            for name, counts in _pairs(speculative, "by_level")
        },
        timings=timings,
        speculative=speculative,
    )


_KINDS = ("proposed", "tested", "accepted")


def pieces_of(choice: Mapping[str, Any], *, detailed: bool, url: str) -> list[Piece]:
    """The tokens of an event. Raises ServerLost for what is not one of edgecs.

    detailed: whether `token_details` were asked for; if not, its text is one piece.
    """
    if not detailed:
        text = choice.get("text")
        if not isinstance(text, str):
            raise lost(url)
        return [Piece(-1, text, b"", "target")] if text else []
    details = choice.get("token_details")
    if not isinstance(details, list):
        raise lost(url)
    return [_piece(one, url) for one in details]


def _piece(one: Any, url: str) -> Piece:
    if not isinstance(one, dict):
        raise lost(url)
    token, text, source = one.get("id"), one.get("text"), one.get("source")
    data, ends = one.get("bytes"), one.get("ends")
    if type(token) is not int or not 0 <= token < 1 << 31:
        raise lost(url)
    if not (isinstance(text, str) and isinstance(source, str)):
        raise lost(url)
    if ends is not None and ends not in REASONS:
        raise lost(url)
    if data is None:
        data = []
    if not isinstance(data, list) or len(data) > _BYTES:
        raise lost(url)
    try:
        return Piece(token, text, bytes(data), source[:_SHOWN], ends)
    except (TypeError, ValueError) as error:
        raise lost(url) from error


def lost(url: str) -> ServerLost:
    """The error for a server that sends something else than edgecs does."""
    return ServerLost(f"{url} does not answer as edgecs does")


def names(values: Any) -> tuple[str, ...]:
    """A list of names, the target first."""
    found = values if isinstance(values, list) else []
    return tuple(str(one)[:_SHOWN] for one in found[:_SOURCES]) or ("target",)


def _table(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A JSON object, without numbers that are not finite, which JSON does not have."""
    value = event.get(name)
    if not isinstance(value, dict):
        return {}
    finite: dict[str, Any] = json.loads(
        json.dumps(value), parse_constant=lambda name: None
    )
    return finite


def _pairs(table: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    return [(key[:_SHOWN], one) for key, one in _table(table, name).items()][:_SOURCES]


def _number(table: Any, name: str) -> float:
    value = table.get(name) if isinstance(table, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return value if 0 <= value < _MOST else 0.0


def _count(table: Any, name: str) -> int:
    return int(_number(table, name))
