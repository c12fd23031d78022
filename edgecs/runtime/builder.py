"""Build a complete session from a recipe, for the commands and for `edgecs.load`.

`find_files` locates the files and downloads missing ones; `build` then loads them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgecs.calibrate.bundled_drafters import all_bundled, bundled_for
from edgecs.calibrate.speculation_profile import SpeculationProfile, left_out
from edgecs.core.draft import LanguageModel, works_alone
from edgecs.decoding.beside import Beside, RowKeeper
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.ratio import RatioRule
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.registry import NAMES, usual_sources
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.state_head import StateHead
from edgecs.errors import ConfigError, ModelError, OutOfMemory
from edgecs.hub.download import Progress
from edgecs.memory.keeping import Memory
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import OWN_HEAD, Loaded, LoadedDrafter, load_drafter
from edgecs.runtime.recipe import HEAD, Recipe
from edgecs.runtime.remembering import open_memory
from edgecs.runtime.target import Reports, open_target
from edgecs.session.session import Session
from edgecs.session.stats import Mark

_FIXED = 4  # tokens of a draft that is verified by ratios


@dataclass(frozen=True)
class Files:
    """Paths of the models of a recipe."""

    model: Path
    # None: the head in the model's file, or the bundled drafter of the model.
    drafts: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class Runtime:
    """All loaded parts of a session; `build` frees them."""

    recipe: Recipe
    loaded: Loaded
    drafters: Sequence[LoadedDrafter]
    session: Session
    speculation: SpeculationProfile | None  # None: there are no drafts
    notes: Sequence[str] = ()  # messages for verbose output
    memory: Memory | None = None  # the store of the recipe

    @property
    def tiers(self) -> str:
        """Description of the exactness tiers along the context."""
        limits, n_ctx = self.session.cascade.limits, self.loaded.target.n_ctx
        return limits.describe_up_to(n_ctx)

    def exactness(self) -> dict[str, object]:
        """The requested tier, and the tiers along the context, as JSON values."""
        limits = self.session.cascade.limits
        classes = limits.classes.state()
        return {"asked": limits.exact, "tiers": self.tiers, "classes": classes}

    def parameters(self) -> dict[str, int] | None:
        """Number of weights of every model by name; None if one is not known."""
        known = {"target": self.loaded.model.parameters}
        for drafter in self.drafters:
            if drafter.parameters is None:
                return None
            known[drafter.name] = drafter.parameters
        return known

    def another_session(self, recipe: Recipe) -> Session:
        """A session with another recipe for the same models; the last one is closed.

        Without `recipe.speculate` it uses plain decoding.
        """
        speculation = self.speculation if recipe.drafting else None
        return session_of(
            recipe, self.loaded, self.drafters, speculation, memory=self.memory
        )


def find_files(
    recipe: Recipe, folders: Folders, fetching: Progress = lambda *_: None
) -> Files:
    """The files of a recipe's models, downloaded if they are missing.

    fetching: called with the name of a download, the bytes received and the total (0:
    not known). Raises ModelError, FetchError.
    """
    store = folders.store
    model = store.path(recipe.model, fetching)
    if not recipe.loads_drafters:
        return Files(model, ())
    if recipe.drafts is None:
        return Files(model)
    names = [name for name in recipe.drafts if recipe.drafting or name != HEAD]
    found = (_own(name) or store.path(name, fetching) for name in names)
    return Files(model, tuple(found))


def _own(name: str) -> Path | None:
    """The target's own head, or the folder of an ONNX drafter; None: neither."""
    if name == HEAD:
        return OWN_HEAD
    if name in (shipped := all_bundled()):
        return shipped[name]
    # Unlike Path.is_dir, it returns False for an invalid path.
    return Path(name) if os.path.isdir(name) else None


@contextmanager
def build(
    recipe: Recipe,
    files: Files,
    folders: Folders,
    reports: Reports | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Runtime]:
    """Load everything and open a session; save the profile afterwards.

    The first load of a model measures it, which takes seconds. Setting `cancel` stops
    loading, measuring and answers. Raises ConfigError, ModelError, OutOfMemory,
    Cancelled.
    """
    with ExitStack() as closing:
        loaded, speculation = closing.enter_context(
            open_target(recipe, files.model, folders, reports, cancel)
        )
        drafts, notes = files.drafts, list[str]()
        if drafts is None:
            drafts = ()
            if speculation and recipe.matrix is None:
                drafts, notes = _usual(recipe.model, loaded, speculation)
        drafters, left_out = _loaded(recipe, drafts, loaded, closing)
        notes += left_out
        if (
            recipe.overlap == "on"
            and speculation
            and not any(works_alone(drafter.model) for drafter in drafters)
        ):
            notes.append(
                "overlap: no drafter works while the target computes, as that needs "
                "one that is a model of its own (--draft)"
            )
        memory: Memory | None = None
        if recipe.store:
            say = reports.warning if reports else lambda text: None
            found = open_memory(recipe.store, loaded, say)
            memory = found.memory
            if memory:
                closing.enter_context(memory)
            if speculation:
                found.give(speculation)
            notes.append(found.about)
        session = session_of(recipe, loaded, drafters, speculation, memory=memory)
        closing.enter_context(session)
        yield Runtime(recipe, loaded, drafters, session, speculation, notes, memory)
        # With a cascade rule the times of a call include those of the small model.
        if speculation and recipe.cascade is None:
            speculation.save()


def _usual(
    model: str, loaded: Loaded, speculation: SpeculationProfile
) -> tuple[tuple[Path, ...], list[str]]:
    """The head in a model's file, else its bundled drafter."""
    if loaded.model.has_heads:
        return (OWN_HEAD,), []
    return _bundled(model, speculation)


def _loaded(
    recipe: Recipe, drafts: Sequence[Path], loaded: Loaded, closing: ExitStack
) -> tuple[list[LoadedDrafter], list[str]]:
    """The drafters; a head that was not asked for is left out if unusable."""
    try:
        return load_drafters(drafts, loaded, recipe.drafter_options, closing), []
    except (ModelError, OutOfMemory) as error:
        if recipe.drafts is not None or tuple(drafts) != (OWN_HEAD,):
            raise
        return [], [f"drafter {HEAD}: left out, {error}"]


def _bundled(
    model: str, speculation: SpeculationProfile
) -> tuple[tuple[Path, ...], list[str]]:
    """The bundled drafter of a model, if it pays on this machine; else a note.

    Loading one takes a third of a second, so one that cannot pay is not loaded.
    """
    folder = bundled_for(model)
    if folder is None:
        return (), []
    if why := left_out(folder, speculation):
        return (), [f"drafter {folder.name}: left out, {why}"]
    return (folder,), []


def load_drafters(
    paths: Sequence[Path], loaded: Loaded, options: LoadOptions, closing: ExitStack
) -> list[LoadedDrafter]:
    """Load drafters under unique names; `closing` frees them."""
    drafters: list[LoadedDrafter] = []
    for path in paths:
        drafter = load_drafter(path, loaded, options)
        closing.enter_context(drafter)
        taken = ["target", *NAMES, *(other.name for other in drafters)]
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
    speculation: SpeculationProfile | None,
    *,
    sequence: int = 0,
    memory: Memory | None = None,
) -> Session:
    """A session over loaded models; None as `speculation`: plain decoding.

    sequence: of the target, see `Session`. memory: of the user, which sessions share,
    instead of `recipe.memory`.
    """
    rule = loaded.rule(recipe.sampling, recipe.grammar)
    models = [drafter.named for drafter in drafters]
    target: LanguageModel = loaded.target
    mark: Mark | None = None
    if recipe.cascade:
        at = small_model(models)
        small = RowKeeper(drafters[at].whole)
        models[at] = models[at]._replace(model=small)
        target = Beside(target, small)
        mark = Mark(f"cascade rule {recipe.cascade}, {models[at].name}", False)
    session = partial(
        Session,
        target,
        loaded.model.vocabulary,
        rule=rule,
        sequence=sequence,
        mixes=recipe.cascade,
        memory=memory,
    )
    if speculation is None:
        return session(mark=mark)
    ends, matrix = loaded.model.vocabulary.ends, recipe.matrix
    ratio: RatioRule | None = None
    if recipe.accept != "shared":
        keepers = {
            named.name: RowKeeper(named.model)
            for named in models
            if not isinstance(named.model, StateHead)
        }
        models = [m._replace(model=keepers.get(m.name, m.model)) for m in models]
        ratio = RatioRule(keepers, blocks=recipe.accept == "block")
        mark = Mark(f"accept {recipe.accept}", True)
        count = min(recipe.longest or _FIXED, target.max_draft)
        matrix = matrix or KMatrix.first_writes(len(models) + 1, count)
    if matrix is None:
        longest = recipe.longest
        planner = speculation.planner(
            models,
            usual_sources(
                recipe.min_match,
                trees=target.max_leaves > 1,
                recycling=speculation.recycling if recipe.recent else None,
                recent=speculation.recent if recipe.recent else None,
                memory=memory or recipe.memory,
                phrases=speculation.phrases,
                vocab_size=target.vocab_size,
            ),
            longest=target.max_draft if longest is None else longest,
            fingerprints={d.name: d.fingerprint for d in drafters},
            lenience=recipe.lenience,
            ends=ends,
            overlap=recipe.overlap,
        )
        return session(schedule=planner, limits=speculation.limits, mark=mark)
    counts = matrix.counts(0)
    return session(
        stack(
            models,
            MaxGram(min_match=recipe.min_match),
            matrix,
            lenience=recipe.lenience,
            ends=ends,
        ),
        draft_max=counts,
        # A draft that is cut depending on its tokens would change the law.
        limits=None if ratio else speculation.fixed(1 + sum(counts)),
        ratio=ratio,
        mark=mark,
    )


def small_model(models: Sequence[NamedModel]) -> int:
    """Which drafter is the small model of a cascade rule. Raises ConfigError."""
    for at, named in enumerate(models):
        if not isinstance(named.model, StateHead):
            return at
    raise ConfigError(
        "a cascade rule needs a drafter that is a model of its own, but "
        f"{', '.join(named.name for named in models) or 'none'} drafts from the "
        "target's states: add a smaller GGUF or an ONNX decoder (--draft)"
    )
