"""What `edgecs serve` offers: its models, and how they are loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgecs.errors import ConfigError
from edgecs.hub.store import quiet
from edgecs.runtime.builder import Files, Runtime
from edgecs.runtime.embedding import build_or_embed
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.served_models import (
    ServedModel,
    ServedModels,
    fits_memory,
    model_of_path,
)
from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.engine import Engine
from edgecs.server.models.engines import engine_of
from edgecs.server.models.keep_alive import USUAL, seconds_of
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.residency import Limits
from edgecs.server.models.served import Served
from edgecs_cli.loading.describe import introduce
from edgecs_cli.options.recipe import Call


@dataclass(frozen=True)
class Offer:
    """The models that a server offers.

    recipes: one for each -m; without -m one whose model is "". most: models in memory,
    0: as many as fit. keep_alive: as given, None: the usual time. downloads: whether
    requests may download models. queue: requests that may wait for a slot.
    prefix_cache: folder of idle conversations, of at most `prefix_bytes`; None: none.
    """

    recipes: Sequence[Recipe]
    most: int
    keep_alive: str | None
    downloads: bool
    queue: int
    prefix_cache: Path | None = None
    prefix_bytes: int = 0

    @property
    def is_single(self) -> bool:
        """Whether the model of -m answers all requests, whatever they name."""
        return self.default is not None and self.most == 1

    @property
    def default(self) -> str | None:
        """The name of the model that is loaded at the start."""
        one = len(self.recipes) == 1 and self.recipes[0].model
        return name_of(self.recipes[0]) if one else None

    @property
    def stay(self) -> float | None:
        """Seconds that models stay after their last answer; None: for ever."""
        if self.keep_alive is None:
            return None if self.is_single else USUAL
        return seconds_of(self.keep_alive)

    def about(self, engine: Served | None) -> str:
        """What is served, in words. engine: of the model loaded at the start."""
        if engine is not None:
            what = f"({engine.slots} slots of {engine.n_ctx} tokens)"
            if isinstance(engine, Engine) and engine.drafting:
                what = f"{what[:-1]}; {engine.drafting})"
            if isinstance(engine, EmbeddingEngine):
                what = f"(embeddings of texts of up to {engine.n_ctx} tokens)"
            return what if self.is_single else f"{what}, and more models on demand"
        most = f"at most {self.most}" if self.most else "as many as fit"
        return f"(models are loaded on demand, {most} at once)"


def pool_of(offer: Offer, call: Call) -> ModelPool:
    """The pool of a server. Raises ModelError, FetchError, ConfigError."""
    given, recipes = _given(offer, call)
    usual = replace(offer.recipes[0], model="")

    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Served]:
        recipe, files = recipes.get(model.name) or _named(usual, model)
        with build_or_embed(recipe, files, call.folders, call.reports, cancel) as found:
            if isinstance(found, Runtime):
                introduce(found, quiet=call.quiet, verbose=call.verbose)
                if note := _context_note(recipe, found):
                    call.say(note)
            engine = engine_of(
                found,
                model.name,
                waiting=offer.queue,
                prefix_cache=offer.prefix_cache,
                prefix_bytes=offer.prefix_bytes,
            )
            try:
                yield engine
            finally:
                engine.close()

    others = len(offer.recipes) == 1 and not offer.is_single
    options = usual.options
    drafter = usual.drafts is None and usual.drafting
    return ModelPool(
        ServedModels(
            given,
            call.folders.store if others else None,
            downloads=offer.downloads and not call.offline,
            progress=quiet,
        ),
        load,
        limits=Limits(offer.most, offer.stay),
        default=offer.default,
        only_default=offer.is_single,
        fits=lambda model: fits_memory(model, options, drafter=drafter),
    )


def _context_note(recipe: Recipe, runtime: Runtime) -> str | None:
    """What limits a context that is shorter than the default; None: nothing does."""
    n_ctx, trained = runtime.loaded.target.n_ctx, runtime.loaded.model.trained_ctx
    if recipe.options.n_ctx or n_ctx == recipe.options.most_ctx:
        return None
    why = "the model was trained for no more" if n_ctx == trained else "memory is short"
    return f"the context is {n_ctx} tokens, as {why}: give another with -c"


def _given(
    offer: Offer, call: Call
) -> tuple[dict[str, ServedModel], dict[str, tuple[Recipe, Files]]]:
    """The models of -m, downloaded if they are missing, and how each is loaded."""
    given, recipes = dict[str, ServedModel](), dict[str, tuple[Recipe, Files]]()
    for recipe in offer.recipes:
        if not recipe.model:
            continue
        name, files = name_of(recipe), call.find(recipe)
        if name in given:
            raise ConfigError(f"two models are called {name}: rename a file")
        given[name] = model_of_path(name, recipe.model, files.model)
        recipes[name] = recipe, files
    return given, recipes


def _named(usual: Recipe, model: ServedModel) -> tuple[Recipe, Files]:
    """How a model of the store is loaded. usual: the options of the command line."""
    assert model.path is not None
    drafts = None if usual.drafts is None and usual.drafting else ()
    return replace(usual, model=model.name), Files(model.path, drafts)


def name_of(recipe: Recipe) -> str:
    """The model's name for clients, without folders and suffix."""
    name = recipe.model
    return Path(name).stem if name.endswith(".gguf") else name
