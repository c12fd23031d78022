"""From a recipe to a session with everything, for the commands and for `edgecs.load`.

Files are found first (`find_files`), because that may fetch them; then `build` loads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgecs.calibrate.bundled_drafters import shipped_drafters, shipped_for
from edgecs.calibrate.speculation_profile import Speculation, left_out
from edgecs.decoding.cascade import stack
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.registry import usual_sources
from edgecs.engines.load_options import LoadOptions
from edgecs.hub.download import Progress
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded, LoadedDrafter, load_drafter
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import Reports, open_target
from edgecs.session.session import Session


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
    *,
    sequence: int = 0,
) -> Session:
    """A session over loaded models; None as `speculation`: plain decoding.

    sequence: of the target, see `Session`.
    """
    rule = loaded.rule(recipe.sampling, recipe.grammar)
    if speculation is None:
        return loaded.session(rule=rule, sequence=sequence)
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
        return loaded.session(
            schedule=planner, limits=speculation.limits, rule=rule, sequence=sequence
        )
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
        sequence=sequence,
    )
