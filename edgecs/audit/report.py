"""The result of an audit: the runs, their forks, and the tiers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from edgecs.core.context import Tokens
from edgecs.decoding.tiers import Tier
from edgecs.errors import BrokenPromise

NO_CLASS = "plain decoding: no class"


class Prompt(NamedTuple):
    """A prompt to answer."""

    id: str
    tokens: Tokens  # int32 [n]


class Fork(NamedTuple):
    """The first token of an answer that differs from plain decoding."""

    prompt: str
    token: int  # index in the answer
    context: int  # tokens before it
    width: int  # of its round, 0: the call that read the prompt
    tier: Tier  # of its round
    plain: int | None  # token of plain decoding, None: its answer has ended
    said: int | None  # the token instead, None: the answer has ended
    gap: float | None  # smallest change of plain decoding's row that does it, in logits
    broken: bool  # whether all rounds up to here were strict


@dataclass
class Run:
    """All prompts with one kind of drafts; counts of tokens and rounds."""

    drafter: str
    forced: bool = False  # every width in turn, not as the schedule decides
    answers: int = 0
    tokens: int = 0  # compared, including forks
    accepted: int = 0
    rejected: int = 0
    widths: Counter[int] = field(default_factory=Counter)  # rounds by width
    tiers: Counter[Tier] = field(default_factory=Counter)  # compared tokens by tier
    forks: list[Fork] = field(default_factory=list)

    @property
    def name(self) -> str:
        """A name for tables."""
        return f"{self.drafter}, every width" if self.forced else self.drafter

    @property
    def identical(self) -> int:
        """Answers without a fork."""
        return self.answers - len(self.forks)

    @property
    def proves(self) -> bool:
        """Whether drafts could have changed something: both outcomes occurred."""
        return self.accepted > 0 and self.rejected > 0


class Plain(NamedTuple):
    """Plain decoding of a prompt, and the widths to force."""

    prompt: Prompt
    tier: Tier  # at the end of the prompt
    widths: list[int]  # to force, empty: there is no class
    tokens: list[int]  # the answer
    gaps: dict[int, float]  # margins of its choices, by number of tokens before


@dataclass(frozen=True)
class Report:
    """The whole result."""

    prompts: list[Plain]
    skipped: list[Prompt]  # that leave no room for an answer
    runs: list[Run]
    tiers: str  # the tiers along the context, in words
    why: str  # reason for prompts without a width to force

    @property
    def no_class(self) -> list[str]:
        """Prompts after which every call has width 1."""
        return [plain.prompt.id for plain in self.prompts if not plain.widths]

    @property
    def answers(self) -> int:
        """Answers that were compared."""
        return sum(run.answers for run in self.runs)

    @property
    def tokens(self) -> int:
        """Tokens that were compared."""
        return sum(run.tokens for run in self.runs)

    @property
    def forks(self) -> list[Fork]:
        """The forks of all runs, in order."""
        return [fork for run in self.runs for fork in run.forks]

    @property
    def broken(self) -> list[Fork]:
        """Forks in a strict tier."""
        return [fork for fork in self.forks if fork.broken]

    def rates(self) -> dict[Tier, tuple[int, int]]:
        """Forks and compared tokens by the tier of their rounds."""
        forks = Counter(fork.tier for fork in self.forks)
        tokens: Counter[Tier] = Counter()
        for run in self.runs:
            tokens.update(run.tiers)
        return {tier: (forks[tier], n) for tier, n in sorted(tokens.items())}

    def summary(self) -> str:
        """One line: identical or not, the counts, and the tiers."""
        same = self.answers - len(self.forks)
        line = f"{same} of {self.answers} answers, {self.tokens:,} tokens"
        nowhere = len(self.no_class) == len(self.prompts)
        where = f"{self.tiers}; {NO_CLASS}" if nowhere else self.tiers
        if not self.forks:
            return f"identical: {line} ({where})"
        forks = f"{len(self.forks)} forks, {len(self.broken)} of them under strict"
        return f"NOT identical: {line}, {forks} ({where})"

    def check(self) -> None:
        """Raises BrokenPromise if strict is broken."""
        for fork in self.broken[:1]:
            raise BrokenPromise(
                f"strict is broken in {len(self.broken)} answers, first in that to "
                f"{fork.prompt!r} at token {fork.token}, in a round of width "
                f"{fork.width}: measure the model again (edgecs tune), or use --no-spec"
            )
