"""Open the target of a bench, with its profile or with one that is not kept."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.runtime.loader import Loaded
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import open_target
from edgecs_cli.options.recipe import Call


def open_measured(
    recipe: Recipe,
    path: Path,
    call: Call,
    cancel: threading.Event,
    closing: ExitStack,
    *,
    profile: bool,
) -> tuple[Loaded, SpeculationProfile | None]:
    """A target until `closing` ends, and its measurements.

    profile: begin with the stored ones and keep what is learned; otherwise they are
    made now, and are dropped at the end. Raises what `open_target` raises.
    """
    profiles = None
    if not profile:
        folder = closing.enter_context(tempfile.TemporaryDirectory())
        profiles = Profiles(Path(folder))
    opening = open_target(recipe, path, call.folders, call.reports, cancel, profiles)
    return closing.enter_context(opening)
