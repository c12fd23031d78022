"""Short lines about models and answers. Nothing here loads an engine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

_QUANT = re.compile(
    r"(?:^|[-._ ])((?:UD[-_])?(?:I?Q\d+(?:_\w+)*|TQ\d_\d|MXFP4\w*|BF16|F16|F32))$", re.I
)
_ENDS = {"length": "limit reached", "context": "context full", "cancelled": "stopped"}
BETWEEN = " · "


class Counts(Protocol):
    """What a line about an answer needs of `Stats`."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0: unknown."""

    @property
    def prompt_seconds(self) -> float:
        """Seconds until the first token."""

    @property
    def tested(self) -> int:
        """Draft tokens that were verified."""

    @property
    def accepted(self) -> int:
        """Draft tokens in the answer."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Drafters that failed, and why."""

    @property
    def notice(self) -> str | None:
        """Why the answer is not that of the model alone; None: it is."""


class Report(Counts, Protocol):
    """What details of an answer need of `Stats`."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def cached_tokens(self) -> int:
        """Those of them that had KV cells."""

    @property
    def rounds(self) -> int:
        """Target calls after the prompt."""

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per round."""

    def made_ahead(self) -> Mapping[str, int]:
        """Drafts made while the target computed: made, used and dropped ones."""

    @property
    def rounds_by_width(self) -> Mapping[int, int]:
        """How many rounds there were with each number of tokens in the call."""

    def by_source(self) -> Mapping[str, Mapping[str, int]]:
        """Proposed, tested and accepted tokens of each drafter."""


def answer_line(stats: Counts, reason: str | None, *, seed: int | None = None) -> str:
    """One answer: tokens, speed, latency, share of drafts, and exceptions.

    seed: of a sampled answer, where it was random.
    """
    return BETWEEN.join(_parts(stats, reason, seed))


def answer_details(stats: Report) -> list[str]:
    """An answer's prompt, rounds and failed drafters."""
    lines = [
        f"prompt: {stats.prompt_tokens} tokens, {stats.cached_tokens} of them cached, "
        f"in {stats.prompt_seconds:.2f} s",
        f"rounds: {stats.rounds}",
    ]
    if stats.tested:
        lines[-1] += (
            f", {stats.accepted} of {stats.tested} draft tokens accepted, "
            f"{stats.mean_acceptance_length:.2f} tokens a round"
        )
    for name, why in stats.faults.items():
        lines.append(f"{name} failed and is disabled for this session: {why}")
    return lines


def _parts(stats: Counts, reason: str | None, seed: int | None) -> Iterator[str]:
    yield f"{stats.tokens} token{'s' * (stats.tokens != 1)}"
    if stats.tokens_per_second:
        speed = stats.tokens_per_second
        yield f"{speed:.3g} tok/s" if speed < 1000 else f"{speed:.0f} tok/s"
    if stats.tokens:
        yield f"first token {stats.prompt_seconds:.2f} s"
        if stats.tested:
            yield f"{stats.accepted / stats.tokens:.0%} drafted".replace("%", " %")
    if stats.notice:
        yield stats.notice
    if stats.faults:
        yield f"{', '.join(stats.faults)} failed"
    if seed is not None:
        yield f"seed {seed}"
    if reason in _ENDS:
        yield _ENDS[reason]


def served_line(name: str, url: str, n_ctx: int) -> str:
    """A model, its server and its context size."""
    parts = [model_name(name), f"served by {url}", f"{thousands(n_ctx)} context"]
    return BETWEEN.join(parts)


def model_name(stem: str) -> str:
    """A readable model name from a file's name.

    >>> model_name("SmolLM2-135M-Instruct.Q4_1")
    'SmolLM2 135M Q4_1'
    >>> model_name("qwen2.5-coder-1.5b-instruct-q4_k_m")
    'qwen2.5 coder 1.5b Q4_K_M'
    """
    found = _QUANT.search(stem)
    quant = found[1].upper() if found else ""
    name = stem[: found.start()] if found else stem
    words = [w for w in re.split(r"[-_ ]+", name) if w.lower() != "instruct"]
    return " ".join([*words, quant]).strip() or stem


def thousands(tokens: int) -> str:
    """A context size in thousands of tokens, as model cards give it.

    >>> thousands(8192), thousands(500), thousands(10_000)
    ('8k', '500', '10k')
    """
    if tokens < 1000:
        return str(tokens)
    if tokens % 1024 == 0:
        return f"{tokens // 1024}k"
    return f"{tokens / 1000:.3g}k"
