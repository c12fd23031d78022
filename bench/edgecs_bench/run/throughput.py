"""Prefill and decode in llama-bench's terms: pp512, tg128, with arbitrary tokens.

As in llama-bench, tokenization and sampling are not timed. `pp` processes N tokens in
one go, `tg` computes N tokens one by one; `@ d` is the number of tokens in the context
before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from time import monotonic, perf_counter_ns
from typing import Any, NamedTuple

import click

from edgecs.calibrate.probe import Measurable, scratch
from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.errors import Cancelled

_NAME = re.compile(r"(pp|tg)([1-9]\d{0,6})(?:@d([1-9]\d{0,6}))?")
DEFAULTS = ("pp512", "tg128")


class Test(NamedTuple):
    """One row of llama-bench."""

    kind: str  # pp or tg
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        """The name in llama-bench's format."""
        where = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.tokens}{where}"

    @classmethod
    def parse(cls, name: str) -> Test:
        """Parses pp512, tg128, pp512@d1024. Raises click.UsageError."""
        said = _NAME.fullmatch(name.replace(" ", ""))
        if not said:
            raise click.UsageError(
                f"invalid test {name!r}: give ppN or tgN, with @dN after it for a depth"
            )
        return cls(said[1], int(said[2]), int(said[3] or 0))


def measure(
    target: Measurable,
    tests: Iterable[Test],
    repeats: int,
    say: Callable[[str], None] = lambda text: None,
    until: float = float("inf"),
) -> list[dict[str, Any]]:
    """Rows of the tests, each measured `repeats` times after a warm-up call.

    until: `monotonic` value after which no further repeat is started. Tests that do
    not fit into the context are left out. Raises Cancelled.
    """
    found = []
    for test in tests:
        if test.depth + test.tokens > target.n_ctx:
            say(f"{test.name} does not fit into a context of {target.n_ctx} tokens")
            continue
        samples: list[int] = []
        _once(target, test._replace(tokens=min(test.tokens, 32)))
        while len(samples) < repeats and (not samples or monotonic() < until):
            samples.append(_once(target, test))
        found.append(row(test, samples))
        say(f"{test.name}: {found[-1]['avg_ts']:.2f} t/s")
    target.reset()
    return found


def _once(target: Measurable, test: Test) -> int:
    """Nanoseconds of one run."""
    tokens = scratch(target.vocab_size, test.depth + test.tokens)
    context = Context(tokens[: test.depth])
    target.reset()
    if test.depth and not target.pretend(context):
        score_one(target, context)
    began = perf_counter_ns()
    for part in [tokens[test.depth :]] if test.kind == "pp" else tokens[test.depth :]:
        if target.cancel.is_set():
            raise Cancelled("stopped while measuring")
        context.append(part.reshape(-1))
        score_one(target, context)
    return perf_counter_ns() - began


def row(test: Test, samples: Sequence[int]) -> dict[str, Any]:
    """A row with the names of llama-bench's JSON. samples: nanoseconds."""
    speeds = [1e9 * test.tokens / sample for sample in samples]
    return {
        "test": test.name,
        "n_prompt": test.tokens if test.kind == "pp" else 0,
        "n_gen": test.tokens if test.kind == "tg" else 0,
        "n_depth": test.depth,
        "avg_ns": round(mean(samples)),
        "stddev_ns": round(stdev(samples)) if len(samples) > 1 else 0,
        "avg_ts": round(mean(speeds), 3),
        "stddev_ts": round(stdev(speeds), 3) if len(speeds) > 1 else 0.0,
        "samples_ns": list(samples),
        "samples_ts": [round(speed, 3) for speed in speeds],
    }
