"""Describes models, sessions and answers: a short line of each, and details."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgecs.runtime.builder import Runtime
from edgecs.runtime.loader import Loaded
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs_cli.console import say

_QUANT = re.compile(
    r"(?:^|[-._ ])((?:UD[-_])?(?:I?Q\d+(?:_\w+)*|TQ\d_\d|MXFP4\w*|BF16|F16|F32))$", re.I
)
_ENDS = {"length": "limit reached", "context": "context full", "cancelled": "stopped"}
_BETWEEN = " · "


def start_line(runtime: Runtime) -> str:
    """The model, its device, its context size, and whether speculation is on."""
    off = runtime.session.off_reason
    return _BETWEEN.join(
        [
            model_name(runtime.loaded.model.path.stem),
            _place(runtime),
            f"{_thousands(runtime.loaded.target.n_ctx)} context",
            "speculation on" if off is None else f"speculation off ({off})",
        ]
    )


def introduce(runtime: Runtime, *, quiet: bool, verbose: bool) -> None:
    """Prints the start line, and details if verbose."""
    say(start_line(runtime), quiet=quiet)
    for line in details(runtime) if verbose else ():
        say(line, quiet=quiet)


def details(runtime: Runtime) -> list[str]:
    """Details beyond the start line: sampling, drafters, schedule, exactness."""
    loaded, session, sampling = runtime.loaded, runtime.session, runtime.recipe.sampling
    lines = [f"model: {loaded.model.path.name}, {loaded.model.description}"]
    if loaded.note:
        lines.append(f"offload: {loaded.note}")
    lines.append(f"kernels: {kernels(loaded)}")
    law = f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    lines.append(f"sampling: {'greedy' if sampling.is_greedy else law}")
    if session.off_reason is None:
        matrix = runtime.recipe.matrix
        how = f"K {matrix}" if matrix else session.cascade.schedule.describe()
        lines.append(f"drafts: {' <- '.join(session.chain)}, {how}")
        lines.append(f"exactness: {runtime.tiers}")
    lines += [f"drafter {d.name}: {d.about}" for d in runtime.drafters]
    return [*lines, *runtime.notes]


def kernels(loaded: Loaded) -> str:
    """The kernels in use, and why edgecs's are not if that was not requested."""
    if loaded.model.kernels:
        return f"edgecs's for {loaded.model.kernels.name}"
    why = f" ({loaded.no_kernels})" if loaded.no_kernels else ""
    return f"llama.cpp's{why}"


def answer_line(stats: Stats, reason: str | None, *, seed: int | None = None) -> str:
    """One answer: tokens, speed, latency, share of drafts, and exceptions.

    seed: of a sampled answer, where it was random.
    """
    return _BETWEEN.join(_parts(stats, reason, seed))


def _parts(stats: Stats, reason: str | None, seed: int | None) -> Iterator[str]:
    yield f"{stats.tokens} token{'s' * (stats.tokens != 1)}"
    if stats.tokens_per_second:
        speed = stats.tokens_per_second
        yield f"{speed:.3g} tok/s" if speed < 1000 else f"{speed:.0f} tok/s"
    if stats.tokens:
        yield f"first token {stats.prompt_seconds:.2f} s"
        if stats.tested:
            yield f"{stats.accepted / stats.tokens:.0%} drafted".replace("%", " %")
    if stats.faults:
        yield f"{', '.join(stats.faults)} failed"
    if seed is not None:
        yield f"seed {seed}"
    if reason in _ENDS:
        yield _ENDS[reason]


def answer_details(session: Session) -> list[str]:
    """The last answer's prompt, rounds and failed drafters."""
    stats = session.stats
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


def _place(runtime: Runtime) -> str:
    offload, threads = runtime.loaded.model.offload, runtime.loaded.target.threads
    cpu = f"CPU, {threads} thread{'s' * (threads != 1)}"
    if not offload.layers:
        return cpu
    if offload.layers >= offload.total:
        return "GPU"
    return f"GPU, {offload.layers} of {offload.total} layers, {cpu}"


def _thousands(tokens: int) -> str:
    """A context size in thousands of tokens, as model cards give it.

    >>> _thousands(8192), _thousands(500), _thousands(10_000)
    ('8k', '500', '10k')
    """
    if tokens < 1000:
        return str(tokens)
    if tokens % 1024 == 0:
        return f"{tokens // 1024}k"
    return f"{tokens / 1000:.3g}k"
