"""From a recipe to a session with everything: the only way in.

The command line, the Python API, tuning, audits and benches build with it. Files are
found first (`find_files`), because that may fetch them; then `build` loads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgecs.calibrate.bundled_drafters import shipped_drafters, shipped_for
from edgecs.calibrate.probe import curve
from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import Speculation, left_out
from edgecs.decoding.cascade import stack
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.registry import usual_sources
from edgecs.engines.load_options import KVType, LoadOptions
from edgecs.errors import EdgecsError
from edgecs.hub.download import Progress
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.runtime.recipe import Recipe
from edgecs.session.session import Session

_STRICT_CACHE: KVType = "q8_0"  # its rows do not depend on the width, at any depth
_FAR = 1024  # tokens of context at which its price is told


def _silent(text: str) -> None:
    """What nobody wants to hear."""


@dataclass(frozen=True)
class Reports:
    """Told while something is built.

    warning: what cannot be done as asked. progress: what takes long.
    """

    warning: Callable[[str], None] = _silent
    progress: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Files:
    """Where the models of a recipe are."""

    model: Path
    drafts: tuple[Path, ...] | None = None  # None: that which comes with the model


@dataclass(frozen=True)
class Runtime:
    """Everything that answers; `build` frees it."""

    recipe: Recipe
    loaded: Loaded
    drafters: Sequence[LoadedDrafter]
    session: Session
    speculation: Speculation | None  # None: there are no drafts
    notes: Sequence[str] = ()  # for people who ask for details

    @property
    def tiers(self) -> str:
        """The exactness tiers along the context, in words."""
        limits, n_ctx = self.session.cascade.limits, self.loaded.target.n_ctx
        return limits.describe_up_to(n_ctx)

    def parameters(self) -> dict[str, int] | None:
        """Weights of every model by name; None if those of one are not known."""
        known = {"target": self.loaded.model.parameters}
        for drafter in self.drafters:
            if drafter.parameters is None:
                return None
            known[drafter.name] = drafter.parameters
        return known

    def another_session(self, recipe: Recipe) -> Session:
        """A session by another recipe for the same models; the last one is closed.

        Without `recipe.speculate` it decodes plainly.
        """
        speculation = self.speculation if recipe.drafting else None
        return session_of(recipe, self.loaded, self.drafters, speculation)


def find_files(
    recipe: Recipe, folders: Folders, fetching: Progress = lambda *_: None
) -> Files:
    """The files of a recipe's models, fetched if they are not here.

    fetching: told what is fetched, and bytes that are here and in all (0: not known).
    Raises ModelError, FetchError.
    """
    store = folders.store
    model = store.path(recipe.model, fetching)
    if not recipe.drafting:
        return Files(model, ())
    if recipe.drafts is None:
        return Files(model)
    found = (_folder(name) or store.path(name, fetching) for name in recipe.drafts)
    return Files(model, tuple(found))


def _folder(name: str) -> Path | None:
    """An ONNX drafter's folder: one of edgecs' own, or a path; None: neither."""
    if name in (shipped := shipped_drafters()):
        return shipped[name]
    # Unlike Path's, it is False for what cannot be a path.
    return Path(name) if os.path.isdir(name) else None


@contextmanager
def build(
    recipe: Recipe,
    files: Files,
    folders: Folders,
    reports: Reports | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Runtime]:
    """Loads everything and opens a session; afterwards what was learnt is kept.

    The first load of a model measures it, which takes seconds. Setting `cancel` stops
    that, and answers. Raises ConfigError, ModelError, OutOfMemory, Cancelled.
    """
    with ExitStack() as closing:
        loaded, speculation = closing.enter_context(
            open_target(recipe, files.model, folders, reports, cancel)
        )
        drafts, notes = files.drafts, list[str]()
        if drafts is None:
            drafts = ()
            if speculation and recipe.matrix is None:
                drafts, notes = _bundled(recipe.model, speculation)
        drafters = load_drafters(drafts, loaded, recipe.drafter_options, closing)
        session = session_of(recipe, loaded, drafters, speculation)
        closing.enter_context(session)
        yield Runtime(recipe, loaded, drafters, session, speculation, notes)
        if speculation:
            speculation.save()


def _bundled(
    model: str, speculation: Speculation
) -> tuple[tuple[Path, ...], list[str]]:
    """The drafter that comes with a model, if it pays here; else why it does not.

    Loading one takes a third of a second, which is nothing to spend on hope.
    """
    folder = shipped_for(model)
    if folder is None:
        return (), []
    if why := left_out(folder, speculation):
        return (), [f"drafter {folder.name}: left out, {why}"]
    return (folder,), []


def load_drafters(
    paths: Sequence[Path], loaded: Loaded, options: LoadOptions, closing: ExitStack
) -> list[LoadedDrafter]:
    """Loads drafters, each under a name of its own; `closing` frees them."""
    drafters: list[LoadedDrafter] = []
    for path in paths:
        drafter = load_drafter(path, loaded, options)
        closing.enter_context(drafter)
        sources = (source.name for source in usual_sources())
        taken = ["target", *sources, *(other.name for other in drafters)]
        drafters.append(replace(drafter, name=_unique(drafter.name, taken)))
    return drafters


def _unique(wanted: str, taken: Sequence[str]) -> str:
    name, n = wanted, 2
    while name in taken:
        name, n = f"{wanted}-{n}", n + 1
    return name


def session_of(
    recipe: Recipe,
    loaded: Loaded,
    drafters: Sequence[LoadedDrafter],
    speculation: Speculation | None,
) -> Session:
    """A session over loaded models; None as `speculation`: plain decoding."""
    rule = loaded.rule(recipe.sampling, recipe.grammar)
    if speculation is None:
        return loaded.session(rule=rule)
    models = [drafter.named for drafter in drafters]
    ends = loaded.model.vocabulary.ends
    if recipe.matrix is None:
        longest = recipe.longest
        planner = speculation.planner(
            models,
            usual_sources(recipe.min_match),
            longest=loaded.target.max_draft if longest is None else longest,
            fingerprints={d.name: d.fingerprint for d in drafters},
            lenience=recipe.lenience,
            ends=ends,
        )
        return loaded.session(schedule=planner, limits=speculation.limits, rule=rule)
    counts = recipe.matrix.counts(0)
    return loaded.session(
        stack(
            models,
            MaxGram(min_match=recipe.min_match),
            recipe.matrix,
            lenience=recipe.lenience,
            ends=ends,
        ),
        counts,
        limits=speculation.fixed(1 + sum(counts)),
        rule=rule,
    )


@contextmanager
def open_target(
    recipe: Recipe,
    path: Path,
    folders: Folders,
    reports: Reports | None = None,
    cancel: threading.Event | None = None,
    profiles: Profiles | None = None,
) -> Iterator[tuple[Loaded, Speculation | None]]:
    """The target, and what is known about drafting for it; None: there are no drafts.

    profiles: where that is kept, None: in `folders`. Another KV type is taken where
    the recipe allows it, and what that costs is reported.
    """
    opening = _Opening(
        recipe, path, folders, reports or Reports(), profiles or folders.profiles
    )
    loaded = opening.load(recipe.options, cancel or threading.Event())
    try:
        speculation = opening.known(loaded)
        if speculation and _wants_other_cache(recipe, speculation):
            loaded, speculation = opening.with_other_cache(loaded, speculation)
    except BaseException:
        loaded.close()
        raise
    with loaded:
        yield loaded, speculation


@dataclass(frozen=True)
class _Opening:
    """How a target is opened, once or again."""

    recipe: Recipe
    path: Path
    folders: Folders
    reports: Reports
    profiles: Profiles

    def load(self, options: LoadOptions, cancel: threading.Event) -> Loaded:
        return load_target(
            self.path, options, self.folders, self.reports, cancel=cancel
        )

    def known(self, loaded: Loaded) -> Speculation | None:
        """What is known about drafting, measured first if it is little."""
        if not self.recipe.drafting:
            return None
        speculation = Speculation(
            loaded.target,
            exact=self.recipe.exact,
            key=loaded.key(),
            profiles=self.profiles,
        )
        speculation.prepare(loaded.seconds, self.reports.progress)
        for note in speculation.notes:
            self.reports.warning(note)
        speculation.save()
        return speculation

    def with_other_cache(
        self, loaded: Loaded, speculation: Speculation
    ) -> tuple[Loaded, Speculation]:
        """The target with the strict KV type, if that helps; else as it was."""
        options, cancel = loaded.options, loaded.cancel
        before = _single(speculation)
        loaded.close()
        other = replace(options, type_k=_STRICT_CACHE, type_v=_STRICT_CACHE)
        why = f"--exact strict: with a {options.type_k} KV cache"
        try:
            loaded = self.load(other, cancel)
            changed = self.known(loaded)
            if changed and _is_wide(changed):
                after = _single(changed)
                self.reports.warning(
                    f"{why} no width is exact along the whole context, so "
                    f"{_STRICT_CACHE}: a token at {_depth(changed)} tokens of context "
                    f"takes {after * 1e3:.1f} ms instead of {before * 1e3:.1f}"
                )
                return loaded, changed
            loaded.close()
        except EdgecsError as error:
            if cancel.is_set():
                raise
            self.reports.warning(f"{why} is kept: {error}")
        loaded = self.load(options, cancel)
        same = self.known(loaded)
        assert same is not None
        return loaded, same


def load_target(
    path: Path,
    options: LoadOptions,
    folders: Folders,
    reports: Reports,
    *,
    cancel: threading.Event,
) -> Loaded:
    """A target alone; reports what it cannot do as asked."""
    loaded = load(
        path, options, cancel=cancel, findings=folders.findings, say=reports.progress
    )
    for warning in loaded.warnings:
        reports.warning(warning)
    return loaded


def _wants_other_cache(recipe: Recipe, speculation: Speculation) -> bool:
    return (
        recipe.exact == "strict"
        and recipe.may_change_cache
        and recipe.options.flash_attention != "off"
        and speculation.target.rewindable
        and not _is_wide(speculation)
    )


def _is_wide(speculation: Speculation) -> bool:
    """Whether every range that was probed has a width beyond 1."""
    return all(found.same for found in speculation.classes.inside.values())


def _depth(speculation: Speculation) -> int:
    return min(_FAR, speculation.target.n_ctx * 3 // 4)


def _single(speculation: Speculation) -> float:
    """Median seconds of a single token far into the context."""
    return curve(speculation.target, _depth(speculation), [1], repeats=5)[1]
