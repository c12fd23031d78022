"""The files of a target and of its drafters, and drafters loaded from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecs.calibrate.bundled_drafters import shipped_drafters
from edgecs.runtime.loader import Loaded, LoadedDrafter, load_drafter
from edgecs_cli.options.common import draft_load_options
from edgecs_cli.options.shared import open_store, progress_bars

NOBODY = "none"  # as a --draft: not even the drafter that comes with the model


def find_models(
    model: str, drafts: Sequence[str], *, offline: bool
) -> tuple[Path, list[Path]]:
    """The target's file and the drafters', fetched if they are not here yet."""
    store = open_store(offline=offline)
    with progress_bars() as progress:
        return store.path(model, progress), [
            _folder(name) or store.path(name, progress)
            for name in drafts
            if name != NOBODY
        ]


def _folder(name: str) -> Path | None:
    """An ONNX drafter's folder: one of edgecs' own, or a path; None: neither."""
    if name in (shipped := shipped_drafters()):
        return shipped[name]
    # Unlike Path's, it is False for what cannot be a path.
    return Path(name) if os.path.isdir(name) else None


def load_drafters(
    paths: Sequence[Path], loaded: Loaded, values: dict[str, Any], closing: ExitStack
) -> list[LoadedDrafter]:
    """Loads drafters, each under a name of its own; `closing` frees them."""
    drafters: list[LoadedDrafter] = []
    for path in paths:
        drafter = load_drafter(path, loaded, draft_load_options(values))
        closing.enter_context(drafter)
        taken = ["target", "mag", *(other.name for other in drafters)]
        drafters.append(replace(drafter, name=_unique(drafter.name, taken)))
    return drafters


def _unique(wanted: str, taken: Sequence[str]) -> str:
    name, n = wanted, 2
    while name in taken:
        name, n = f"{wanted}-{n}", n + 1
    return name
