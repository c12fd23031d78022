"""Opening models for a command, and the lines that say what they are doing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecs.cascade import stack
from edgecs.kmatrix import KMatrix
from edgecs.load import Loaded, LoadedDrafter
from edgecs.maxgram import MaxGram
from edgecs.planner import MARGIN
from edgecs.sampling import Sampling
from edgecs.session import Session
from edgecs.shipped import promise
from edgecs.speculation import Speculation
from edgecs.stats import Stats
from edgecs_cli.exact import open_target, tiers
from edgecs_cli.files import NOBODY, find_models, load_drafters, shipped_for
from edgecs_cli.options import load_options
from edgecs_cli.sampling import read_grammar, read_sampling
from edgecs_cli.shared import Interrupt, say, show_log

if TYPE_CHECKING:
    from edgecs.grammar import Grammar


@dataclass(frozen=True)
class Request:
    """What the options ask for, checked before anything is fetched or loaded."""

    model: Path
    drafts: list[Path]
    matrix: KMatrix | None  # None: the planner decides
    sampling: Sampling
    grammar: Grammar | None


@dataclass(frozen=True)
class Opened:
    """Everything that answers."""

    loaded: Loaded
    drafters: list[LoadedDrafter]
    session: Session
    request: Request
    speculation: Speculation | None  # None: it is off

    @property
    def tiers(self) -> str:
        """The exactness tiers along the context, in words."""
        return tiers(self.session.cascade.limits, self.loaded.target.n_ctx)

    def parameters(self) -> dict[str, int] | None:
        """Weights of every model by name; None if those of one are not known."""
        known = {"target": self.loaded.model.parameters}
        for drafter in self.drafters:
            if drafter.parameters is None:
                return None
            known[drafter.name] = drafter.parameters
        return known


def read_request(values: dict[str, Any]) -> Request:
    """Checks the settings and finds the files, fetched if they are not here yet.

    Settings that cannot work are refused first: fetching may take minutes.
    """
    sampling, grammar = read_sampling(values), read_grammar(values)
    load_options(values)
    matrix = _matrix(values)
    show_log(values["verbose"])
    names = () if values["no_spec"] else values["drafts"]
    model, drafts = find_models(values["model"], names, offline=values["offline"])
    return Request(model, drafts, matrix, sampling, grammar)


def _matrix(values: dict[str, Any]) -> KMatrix | None:
    if values["k_matrix"] is None:
        return None
    if values["draft_max"] is not None:
        raise click.UsageError("--k-matrix and --draft-max exclude each other")
    matrix = KMatrix.parse(values["k_matrix"])
    matrix.check([*(name for name in values["drafts"] if name != NOBODY), "mag"])
    return matrix


@contextmanager
def open_all(
    values: dict[str, Any], interrupt: Interrupt, sampling: Sampling | None = None
) -> Iterator[Opened]:
    """Target, drafters and session as the options ask; freed at the end.

    sampling: instead of what the options say about it.
    """
    request = read_request(values)
    if sampling:
        request = replace(request, sampling=sampling)
    with ExitStack() as closing:
        opening = open_target(request.model, values, interrupt)
        loaded, speculation = closing.enter_context(opening)
        drafts, note = request.drafts, None
        if speculation and not values["drafts"] and not request.matrix:
            drafts, note = _shipped(values["model"], speculation)
        with interrupt:
            drafters = load_drafters(drafts, loaded, values, closing)
        session = _session(loaded, drafters, request, speculation, values)
        closing.enter_context(session)
        if values["log_answers"]:
            from edgecs_convert.distill.log import AnswerLog

            states, heat = loaded.target.note_states(), request.sampling.temperature
            log = AnswerLog(session, states, values["log_answers"], heat)
            closing.callback(log.close)
        opened = Opened(loaded, drafters, session, request, speculation)
        say(start_line(opened), quiet=values["quiet"])
        if note:
            say(note, quiet=values["quiet"])
        yield opened
        if speculation:
            speculation.save()


def _shipped(model: str, speculation: Speculation) -> tuple[list[Path], str | None]:
    """The drafter that comes with a model, if it promises anything here; else why not.

    Loading one takes a third of a second, which is nothing to spend on hope.
    """
    folder = shipped_for(model)
    if folder is None or not speculation.costs.known:
        return [], None
    promised = promise(folder, speculation.costs.times(0))
    if promised > 1 + MARGIN:
        return [folder], None
    return [], (
        f"drafter {folder.name} | left out: with it {promised:.2f} x plain decoding is "
        "expected here"
    )


def session_for(
    opened: Opened,
    request: Request,
    speculation: Speculation | None,
    values: dict[str, Any],
) -> Session:
    """Another session with the same models, once the one before is closed."""
    return _session(opened.loaded, opened.drafters, request, speculation, values)


def _session(
    loaded: Loaded,
    drafters: list[LoadedDrafter],
    request: Request,
    speculation: Speculation | None,
    values: dict[str, Any],
) -> Session:
    rule = loaded.rule(request.sampling, request.grammar)
    if speculation is None:
        return loaded.session(rule=rule)
    models = [drafter.named for drafter in drafters]
    ends, lenience = loaded.model.vocabulary.ends, values["lenience"]
    last, matrix = MaxGram(min_match=values["min_match"]), request.matrix
    if matrix is None:
        planner = speculation.planner(
            models,
            last,
            longest=loaded.target.max_draft
            if values["draft_max"] is None
            else values["draft_max"],
            fingerprints={d.name: d.fingerprint for d in drafters},
            lenience=lenience,
            ends=ends,
        )
        return loaded.session(schedule=planner, limits=speculation.limits, rule=rule)
    counts = matrix.counts(0)
    return loaded.session(
        stack(models, last, matrix, lenience=lenience, ends=ends),
        counts,
        limits=speculation.fixed(1 + sum(counts)),
        rule=rule,
    )


def start_line(opened: Opened) -> str:
    """What runs, where, how it chooses, and who drafts."""
    loaded, session, sampling = opened.loaded, opened.session, opened.request.sampling
    offload, target = loaded.model.offload, loaded.target
    where = f"CPU, {target.threads} threads"
    if offload.layers:
        where = f"{offload.layers}/{offload.total} layers on GPU, {where}"
    if loaded.note:
        where += f" ({loaded.note})"
    choice = f"temp {sampling.temperature:g}, seed {sampling.seed}"
    if sampling.is_greedy:
        choice = "greedy"
    spec = f"off ({session.off_reason})"
    if session.off_reason is None:
        matrix = opened.request.matrix
        how = f"K {matrix}" if matrix else session.cascade.schedule.describe()
        spec = f"{' <- '.join(session.chain)}, {how}, {opened.tiers}"
    lines = [
        f"{loaded.model.path.stem} | {loaded.model.description} | {where} | "
        f"context {target.n_ctx} | {choice} | speculation: {spec}"
    ]
    lines += [f"drafter {d.name} | {d.about}" for d in opened.drafters]
    return "\n".join(lines)


def exactness(opened: Opened) -> dict[str, object]:
    """The tier that was asked for, and the tiers along the context."""
    limits = opened.session.cascade.limits
    return {
        "asked": limits.exact,
        "tiers": opened.tiers,
        "classes": limits.classes.state(),
    }


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
