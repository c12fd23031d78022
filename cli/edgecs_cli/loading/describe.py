"""Describes models and sessions: a short line of each, and details."""

from __future__ import annotations

from edgecs.runtime.builder import Runtime
from edgecs.runtime.loader import Loaded
from edgecs.runtime.recipe import HEAD
from edgecs_cli.console import say
from edgecs_cli.short_lines import BETWEEN, model_name, thousands


def start_line(runtime: Runtime) -> str:
    """The model, its device, its context size, and whether speculation is on."""
    off, rule = runtime.session.off_reason, runtime.recipe.cascade
    return BETWEEN.join(
        [
            model_name(runtime.loaded.model.path.stem),
            _place(runtime),
            f"{thousands(runtime.loaded.target.n_ctx)} context",
            _drafting(runtime) if off is None else f"speculation off ({off})",
            *([f"cascade rule {rule}"] if rule else []),
        ]
    )


def _drafting(runtime: Runtime) -> str:
    """That speculation is on; what drafts, if the model has a head or states."""
    snapshots = runtime.loaded.target.snapshots
    drafters = " <- ".join(runtime.session.chain[1:])
    if snapshots is None:
        own = any(drafter.name == HEAD for drafter in runtime.drafters)
        return f"speculation on ({drafters})" if own else "speculation on"
    if snapshots:
        why = f"up to {snapshots} rejected tokens cost nothing"
    else:
        why = "if likely, as a rejected draft costs another call"
    return f"speculation on ({drafters}; {why})"


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
    kept = loaded.model.snapshots(loaded.options)
    memory = loaded.model.memory(loaded.options)
    takes = memory.describe(loaded.target.n_ctx, loaded.options, kept)
    lines.append(f"context: {takes}")
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


def _place(runtime: Runtime) -> str:
    offload, threads = runtime.loaded.model.offload, runtime.loaded.target.threads
    cpu = f"CPU, {threads} thread{'s' * (threads != 1)}"
    if not offload.layers:
        return cpu
    if offload.layers >= offload.total:
        return offload.device
    return f"{offload.device}, {offload.layers} of {offload.total} layers, {cpu}"
