"""What happened during one answer, counted in the field's terms.

A *round* is one target call after the prompt; the call that reads the prompt gives the
first token and is not a round. *Proposed* tokens come from a drafter, *tested*
ones were scored by the target, *accepted* ones are in the answer. So

    tokens = 1 + accepted + rounds - cut

where `cut` is 1 if the answer ended on an accepted token (a stop string), else 0.

A round only appends a record; everything else is computed on request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from edgecs.decoding.cascade import Round
from edgecs.theory import walltime_improvement


class Mark(NamedTuple):
    """A setting with which an answer is not that of the target's plain decoding.

    name: what it is, in words. same_law: whether its tokens have the distribution of
    the target's.
    """

    name: str
    same_law: bool

    def __str__(self) -> str:
        if self.same_law:
            return f"the target's distribution, other tokens than without ({self.name})"
        return f"NOT the target's answer ({self.name})"

    def fields(self) -> dict[str, object]:
        """The mark as JSON values."""
        return {"rule": self.name, "target_law": self.same_law, "target_tokens": False}


class Record(NamedTuple):
    """The record of a round."""

    proposed: tuple[str, ...]  # drafter of each proposed token
    tested: tuple[str, ...]  # drafter of each token that the target scored
    accepted: tuple[int, ...]  # which of these are in the answer
    levels: int | None = None  # tokens on the longest path of a tree; None: a chain
    ahead: int = 0  # tested tokens that were made during the call of the last round
    made: int = 0  # tokens made during this round's call

    @property
    def width(self) -> int:
        """Tokens in the target call."""
        return 1 + len(self.tested)

    @property
    def positions(self) -> int:
        """How many positions after the context have a draft token."""
        return len(self.tested) if self.levels is None else self.levels


@dataclass
class Stats:
    """Counts and times of one answer; times in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the KV cache
    tokens: int = 0  # generated, the end token included
    prompt_seconds: float = 0.0  # until the first token was chosen
    decode_seconds: float = 0.0  # from there to the last token
    records: list[Record] = field(default_factory=list)
    forwards: dict[str, int] = field(default_factory=dict)  # calls of inner reviewers
    # Drafters that failed, here or before in the session, and why: they are disabled.
    faults: dict[str, str] = field(default_factory=dict)
    mark: Mark | None = None  # None: the tokens are those of the target alone

    def observe(self, done: Round, emitted: int) -> None:
        """Keeps the record of a round of which `emitted` tokens are in the answer."""
        accepted = done.verdict.path[:emitted]
        draft = done.draft
        levels = None if draft.is_chain else max(draft.depths) + 1
        self.records.append(
            Record(
                done.proposed, draft.sources, accepted, levels, done.ahead, done.made
            )
        )

    @property
    def notice(self) -> str | None:
        """Why the answer is not that of the target alone, in words; None: it is."""
        return str(self.mark) if self.mark else None

    @property
    def rounds(self) -> int:
        """Target calls after the prompt."""
        return len(self.records)

    @property
    def proposed(self) -> int:
        """Tokens written by drafters."""
        return sum(len(record.proposed) for record in self.records)

    @property
    def tested(self) -> int:
        """Draft tokens that the target scored."""
        return sum(len(record.tested) for record in self.records)

    @property
    def accepted(self) -> int:
        """Draft tokens in the answer."""
        return sum(len(record.accepted) for record in self.records)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per round, the target's own counted; 1.0 is plain decoding."""
        return (self.accepted + self.rounds) / self.rounds if self.rounds else 1.0

    def walltime_improvement(self, costs: Mapping[str, float]) -> float:
        """The paper's standardised walltime improvement (SWI) of this answer.

        costs: of one forward of every model, the target's under "target"; parameters
        or measured seconds, see `theory.walltime_improvement`. The call that reads the
        prompt and the token that it gives are left out. Raises ConfigError for a model
        without a cost.
        """
        forwards = {"target": self.rounds, **self.forwards}
        return walltime_improvement(self.accepted + self.rounds, forwards, costs)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token; 0 when there was no time to measure."""
        seconds = self.decode_seconds
        return (self.tokens - 1) / seconds if seconds > 0 and self.tokens > 1 else 0.0

    @property
    def rounds_by_width(self) -> dict[int, int]:
        """How many rounds there were with each number of tokens in the call."""
        return dict(sorted(Counter(record.width for record in self.records).items()))

    def made_ahead(self) -> dict[str, int]:
        """Drafts that were made while the target computed, and what became of them.

        made: those with a token after the assumed outcome. used: those of which the
        target scored a token. dropped: the others, as the outcome was another one, or
        another draft was better, or the answer ended.
        """
        made = sum(record.made > 0 for record in self.records)
        used = sum(record.ahead > 0 for record in self.records)
        return {"made": made, "used": used, "dropped": made - used}

    def by_source(self) -> dict[str, dict[str, int]]:
        """Proposed, tested and accepted tokens of each drafter."""
        proposed: Counter[str] = Counter()
        tested: Counter[str] = Counter()
        accepted: Counter[str] = Counter()
        for record in self.records:
            proposed.update(record.proposed)
            tested.update(record.tested)
            accepted.update(record.tested[node] for node in record.accepted)
        kinds = {"proposed": proposed, "tested": tested, "accepted": accepted}
        names = sorted(proposed | tested)
        return {
            name: {k: counts[name] for k, counts in kinds.items()} for name in names
        }

    def acceptance_by_position(self) -> list[float]:
        """Share of the drafts reaching each position that have a token accepted there.

        The first token of a draft is position 0, in a tree all that have no parent;
        every rejection counts against its position and against all that follow it.
        """
        tested = Counter(i for r in self.records for i in range(r.positions))
        accepted = Counter(i for r in self.records for i in range(len(r.accepted)))
        return [accepted[i] / tested[i] for i in range(len(tested))]

    def timings(self) -> dict[str, float | int]:
        """The `timings` block of llama-server; `draft_n` counts tested tokens."""
        prompt_n = self.prompt_tokens - self.cached_tokens
        return {
            "cache_n": self.cached_tokens,
            **_timing("prompt", prompt_n, self.prompt_seconds),
            **_timing("predicted", self.tokens, self.decode_seconds),
            "draft_n": self.tested,
            "draft_n_accepted": self.accepted,
        }

    def speculative(
        self,
        chain: list[str],
        reason: str | None,
        parameters: Mapping[str, int] | None = None,
    ) -> dict[str, object]:
        """The `speculative` block: counts of drafts by drafter, and the speed-up.

        chain: names, the target first. reason: why there were no drafters. parameters:
        of every model, where they are known, for the SWI.
        """
        swi = None
        if parameters and self.rounds:
            costs = {
                **dict.fromkeys(self.forwards, 0),
                **parameters,
            }  # lookups are free
            swi = round(self.walltime_improvement(costs), 4)
        return {
            "enabled": len(chain) > 1,
            "reason": reason,
            "chain": chain,
            "rounds": self.rounds,
            "forwards": self.forwards,
            "parameters": dict(parameters or {}),
            "swi": swi,
            "proposed": self.proposed,
            "tested": self.tested,
            "accepted": self.accepted,
            "mean_accept_len": round(self.mean_acceptance_length, 4),
            "accept_per_pos": [round(x, 4) for x in self.acceptance_by_position()],
            "by_level": self.by_source(),
            "ahead": self.made_ahead(),
            "faults": self.faults,
            "mark": self.mark.fields() if self.mark else None,
            "rounds_by_width": {str(n): k for n, k in self.rounds_by_width.items()},
        }


def _timing(name: str, n: int, seconds: float) -> dict[str, float | int]:
    return {
        f"{name}_n": n,
        f"{name}_ms": round(seconds * 1e3, 3),
        f"{name}_per_token_ms": round(seconds * 1e3 / n, 3) if n else 0.0,
        f"{name}_per_second": round(n / seconds, 3) if seconds > 0 else 0.0,
    }
