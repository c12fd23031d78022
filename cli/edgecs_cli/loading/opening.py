"""Opening models for a command."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecs.calibrate.bundled_drafters import shipped_for
from edgecs.calibrate.speculation_profile import Speculation, left_out
from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError
from edgecs.runtime.loader import Loaded, LoadedDrafter
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs_cli.console import show_log
from edgecs_cli.loading.exact import open_target, tiers
from edgecs_cli.loading.files import NOBODY, find_models, load_drafters
from edgecs_cli.options.common import load_options
from edgecs_cli.options.sampling import read_grammar, read_sampling
from edgecs_cli.options.shared import Interrupt

if TYPE_CHECKING:
    from edgecs.grammar.mask import Grammar


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
    notes: list[str]  # for people who ask for details

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
    if values["log_answers"]:
        _can_keep_answers(values["log_answers"])
    with ExitStack() as closing:
        opening = open_target(request.model, values, interrupt)
        loaded, speculation = closing.enter_context(opening)
        drafts, notes = request.drafts, list[str]()
        if speculation and not values["drafts"] and not request.matrix:
            drafts, notes = _shipped(values["model"], speculation)
        with interrupt:
            drafters = load_drafters(drafts, loaded, values, closing)
        session = _session(loaded, drafters, request, speculation, values)
        closing.enter_context(session)
        if folder := values["log_answers"]:
            from edgecs_convert.distill.log import AnswerLog

            states, heat = loaded.target.note_states(), request.sampling.temperature
            log = AnswerLog(session, states, folder, heat)
            closing.callback(log.close)
        yield Opened(loaded, drafters, session, request, speculation, notes)
        if speculation:
            speculation.save()


def _can_keep_answers(folder: Path) -> None:
    """Raises ConfigError now rather than after the answer."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"answers cannot be kept in {folder}: {error.strerror}; give another folder"
        ) from error


def _shipped(model: str, speculation: Speculation) -> tuple[list[Path], list[str]]:
    """The drafter that comes with a model, if it pays here; else why it does not.

    Loading one takes a third of a second, which is nothing to spend on hope.
    """
    folder = shipped_for(model)
    if folder is None:
        return [], []
    if why := left_out(folder, speculation):
        return [], [f"drafter {folder.name}: left out, {why}"]
    return [folder], []


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


def exactness(opened: Opened) -> dict[str, object]:
    """The tier that was asked for, and the tiers along the context."""
    limits = opened.session.cascade.limits
    return {
        "asked": limits.exact,
        "tiers": opened.tiers,
        "classes": limits.classes.state(),
    }
