"""Load the target of a recipe, and probe it if it is new.

If `exact` is strict and no width is exact along the context, all cells of windowed
layers are kept, or another KV cache type is used, and the cost is reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgecs.calibrate.probe import curve
from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.engines.load_options import KVType, LoadOptions
from edgecs.errors import EdgecsError
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded, load
from edgecs.runtime.recipe import Recipe

_STRICT_CACHE: KVType = "q8_0"  # its rows do not depend on the width, at any depth
# chosen: a chat of a few turns.
_FAR = 1024  # tokens of context at which its cost is reported


def _silent(text: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Reports:
    """Callbacks for messages while a session is built.

    warning: a request that cannot be met. progress: the start of a slow step. once:
    the start and the end of a step that takes minutes at the first load.
    """

    warning: Callable[[str], None] = _silent
    progress: Callable[[str], None] = _silent
    once: Callable[[str], None] = _silent


@contextmanager
def open_target(
    recipe: Recipe,
    path: Path,
    folders: Folders,
    reports: Reports | None = None,
    cancel: threading.Event | None = None,
    profiles: Profiles | None = None,
) -> Iterator[tuple[Loaded, SpeculationProfile | None]]:
    """The target and its speculation profile; None: there are no drafts.

    profiles: where profiles are stored, None: in `folders`. Another KV cache type is
    used where the recipe allows it, and its cost is reported.
    """
    opening = _Opening(
        recipe, path, folders, reports or Reports(), profiles or folders.profiles
    )
    if recipe.options.leaves > 1 and recipe.drafting and (why := recipe.takes_chains):
        opening.reports.warning(f"drafts are chains: {why}")
    loaded = opening.load(recipe.target_options, cancel or threading.Event())
    try:
        speculation = opening.known(loaded)
        if speculation and recipe.exact == "strict" and loaded.target.steady:
            loaded, speculation = opening.with_full_windows(loaded, speculation)
        if speculation and _wants_other_cache(recipe, speculation):
            loaded, speculation = opening.with_other_cache(loaded, speculation)
    except BaseException:
        loaded.close()
        raise
    with loaded:
        yield loaded, speculation


@dataclass(frozen=True)
class _Opening:
    """Opens a target, a second time if its KV cache type changes."""

    recipe: Recipe
    path: Path
    folders: Folders
    reports: Reports
    profiles: Profiles

    def load(self, options: LoadOptions, cancel: threading.Event) -> Loaded:
        return load_target(
            self.path, options, self.folders, self.reports, cancel=cancel
        )

    def known(self, loaded: Loaded) -> SpeculationProfile | None:
        """The speculation profile of the target, after probing what it lacks."""
        if not self.recipe.drafting:
            return None
        speculation = SpeculationProfile(
            loaded.target,
            exact=self.recipe.tier,
            key=loaded.key(),
            profiles=self.profiles,
        )
        speculation.prepare(loaded.seconds, self.reports.progress)
        for note in speculation.notes:
            self.reports.warning(note)
        speculation.save()
        return speculation

    def with_full_windows(
        self, loaded: Loaded, speculation: SpeculationProfile
    ) -> tuple[Loaded, SpeculationProfile]:
        """The target with all cells of windowed layers, or unchanged: no memory."""
        options, cancel, steady = loaded.options, loaded.cancel, loaded.target.steady
        full = replace(options, swa_full=True)
        why = "--exact strict: with the cells of the windows only"
        if not loaded.model.kv_fits(loaded.target.n_ctx, full):
            self.reports.warning(
                f"{why} no width is exact beyond {steady} tokens of context, and all "
                "cells do not fit into memory: give a smaller context (-c)"
            )
            return loaded, speculation
        more = loaded.model.kv_bytes(loaded.target.n_ctx, full)
        more -= loaded.model.kv_bytes(loaded.target.n_ctx, options)
        loaded.close()
        self.reports.warning(
            f"{why} no width is exact beyond {steady} tokens of context, so all are "
            f"kept (--swa-full): {more >> 20} MiB more"
        )
        loaded = self.load(full, cancel)
        same = self.known(loaded)
        assert same is not None
        return loaded, same

    def with_other_cache(
        self, loaded: Loaded, speculation: SpeculationProfile
    ) -> tuple[Loaded, SpeculationProfile]:
        """The target with the strict KV cache type, if that helps; else unchanged."""
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
    """Load a target without drafters, and report its warnings."""
    loaded = load(
        path, options, cancel=cancel, findings=folders.findings, say=reports.once
    )
    for warning in loaded.warnings:
        reports.warning(warning)
    return loaded


def _wants_other_cache(recipe: Recipe, speculation: SpeculationProfile) -> bool:
    return (
        recipe.exact == "strict"
        and recipe.may_change_cache
        and recipe.options.flash_attention != "off"
        and speculation.target.rewindable
        and not _is_wide(speculation)
    )


def _is_wide(speculation: SpeculationProfile) -> bool:
    """Whether every probed range has an exact width above 1."""
    return all(found.same for found in speculation.classes.inside.values())


def _depth(speculation: SpeculationProfile) -> int:
    return min(_FAR, speculation.target.n_ctx * 3 // 4)


def _single(speculation: SpeculationProfile) -> float:
    """Median seconds of a single token deep in the context."""
    return curve(speculation.target, _depth(speculation), [1], repeats=5)[1]
