"""`generate --compare`: the same answer without drafts and in llama.cpp's own loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

import click

from edgecs.core.context import Tokens
from edgecs.runtime.builder import Runtime
from edgecs.runtime.recipe import Recipe
from edgecs.session.answer import Token

_BETWEEN = " · "


class Answer(NamedTuple):
    """Tokens, and tokens per second after the first; 0: unknown."""

    tokens: Sequence[int]
    speed: float


def check(recipe: Recipe) -> None:
    """Raises UsageError for answers that llama.cpp's greedy loop cannot give."""
    if recipe.cascade:
        raise click.UsageError(
            "--compare compares answers of the model alone: leave --cascade-rule out"
        )
    if not recipe.sampling.is_greedy or recipe.grammar:
        raise click.UsageError(
            "--compare compares greedy answers: give --temp 0, no schema and no grammar"
        )


def compare(
    runtime: Runtime,
    prompt: Tokens,
    stop: Sequence[str],
    say: Callable[[str], None],
) -> list[str]:
    """Answers again; returns lines on the speed of each way and on equal tokens.

    The session of `runtime` has just answered; it is closed here. After an interrupt
    there are no lines.
    """
    from edgecs_bench.run.baseline import llama_beside

    drafted, cancel = runtime.session, runtime.loaded.cancel
    tokens = drafted.context.tokens[prompt.size :].tolist()
    ours = Answer(tokens, drafted.stats.tokens_per_second)
    if cancel.is_set() or len(tokens) < 2:
        return []
    say("answering again without drafts and in llama.cpp")
    plain = _plain(runtime, prompt, stop, len(tokens))
    with ExitStack() as closing:
        llama = None if cancel.is_set() else llama_beside(runtime.loaded, closing)
        theirs = None
        if llama:
            said, _, seconds = llama.answer(prompt.tolist(), len(tokens), cancel.is_set)
            theirs = Answer(said, (len(said) - 1) / seconds if len(said) > 1 else 0.0)
    if cancel.is_set():
        return []
    return lines(ours, plain, theirs)


def _plain(runtime: Runtime, prompt: Tokens, stop: Sequence[str], most: int) -> Answer:
    """The same target's answer without drafts."""
    runtime.session.close()
    runtime.loaded.target.reset()
    with runtime.another_session(replace(runtime.recipe, speculate=False)) as session:
        said: Iterator[Token] = session.generate(prompt, max_tokens=most, stop=stop)
        deque(said, maxlen=0)
        tokens = session.context.tokens[prompt.size :].tolist()
        return Answer(tokens, session.stats.tokens_per_second)


def lines(ours: Answer, plain: Answer, theirs: Answer | None) -> list[str]:
    """The comparison in words: speeds, what is the same, and where llama.cpp differs.

    >>> answer = [5, 6, 7]
    >>> for line in lines(Answer(answer, 90), Answer(answer, 45.0), Answer([5, 6], 30)):
    ...     print(line)
    tok/s: llama.cpp 30.0 · plain edgecs 45.0 · with drafts 90.0 (3.00x llama.cpp, \
2.00x plain) · the same 3 tokens with and without drafts
    llama.cpp's kernels round differently: another token after 2
    """
    speeds = [] if theirs is None else [f"llama.cpp {theirs.speed:.1f}"]
    speeds.append(f"plain edgecs {plain.speed:.1f}")
    bases = [("llama.cpp", theirs.speed if theirs else 0), ("plain", plain.speed)]
    gains = [f"{ours.speed / base:.2f}x {name}" for name, base in bases if base]
    gain = f" ({', '.join(gains)})" if gains else ""
    speeds.append(f"with drafts {ours.speed:.1f}{gain}")
    same = _shared(ours.tokens, plain.tokens)
    if same == len(ours.tokens) == len(plain.tokens):
        speeds.append(f"the same {same} tokens with and without drafts")
    else:
        speeds.append(f"drafts changed the answer after {same} tokens")
    said = [f"tok/s: {_BETWEEN.join(speeds)}"]
    if theirs is None:
        said.append("llama.cpp was skipped: not enough memory for a second context")
    elif list(theirs.tokens) != list(plain.tokens):
        after = _shared(theirs.tokens, plain.tokens)
        said.append(
            f"llama.cpp's kernels round differently: another token after {after}"
        )
    return said


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
