"""Opening a model for a command, and the lines that say what it is doing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecs.load import Loaded
from edgecs.maxgram import MaxGram
from edgecs.sampling import Sampling
from edgecs.session import Session
from edgecs.stats import Stats
from edgecs_cli.shared import (
    load_options,
    open_store,
    progress_bars,
    say,
    show_log,
)


def find_model(values: dict[str, Any]) -> Path:
    """The file that a command names, fetched if it is not here yet.

    Settings that cannot work are refused first: fetching may take minutes.
    """
    Sampling(values["temperature"])
    load_options(values)
    show_log(values["verbose"])
    store = open_store(offline=values["offline"])
    with progress_bars() as progress:
        return store.path(values["model"], progress)


def open_session(loaded: Loaded, values: dict[str, Any]) -> Session:
    """A session with the drafters that the options ask for."""
    draft_max = 0 if values["no_spec"] else values["draft_max"]
    draft_max = min(draft_max, loaded.target.max_draft)  # a tiny context holds less
    choose = Sampling(values["temperature"]).chooser()
    drafters = [MaxGram(min_match=values["min_match"])]
    session = loaded.session(drafters, draft_max, choose=choose)
    say(start_line(loaded, session), quiet=values["quiet"])
    return session


def start_line(loaded: Loaded, session: Session) -> str:
    """What runs, where, and whether it drafts."""
    offload, target = loaded.model.offload, loaded.target
    where = f"CPU, {target.threads} threads"
    if offload.layers:
        where = f"{offload.layers}/{offload.total} layers on GPU, {where}"
    if loaded.note:
        where += f" ({loaded.note})"
    spec = f"off ({session.off_reason})"
    if session.off_reason is None:
        drafts = " <- ".join(session.chain)
        spec = f"{drafts}, drafts up to {session.cascade.counts[0]}"
    return (
        f"{loaded.model.path.stem} | {loaded.model.description} | {where} | "
        f"context {target.n_ctx} | speculation: {spec}"
    )


def statistics_line(stats: Stats, reason: str | None) -> str:
    """One answer in one line."""
    speed = f"{stats.tokens_per_second:.1f} tok/s" if stats.tokens > 1 else "no speed"
    parts = [
        f"{stats.tokens} tokens, {speed}",
        f"prompt {stats.prompt_tokens} ({stats.cached_tokens} cached) "
        f"in {stats.prompt_seconds:.2f} s",
        f"{stats.rounds} rounds",
    ]
    if stats.tested:
        parts.append(
            f"{stats.accepted} of {stats.tested} draft tokens accepted, "
            f"{stats.mean_acceptance_length:.2f} tokens/round"
        )
    return " | ".join([*parts, f"end: {reason}"])
