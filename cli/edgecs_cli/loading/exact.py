"""Opening the target of a command in the exactness tier that was asked for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgecs.calibrate.probe import curve
from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import Speculation
from edgecs.decoding.exactness import Limits, range_of
from edgecs.engines.load_options import KVType, LoadOptions
from edgecs.errors import EdgecsError
from edgecs.runtime.loader import Loaded, load
from edgecs_cli.console import say
from edgecs_cli.options.common import load_options
from edgecs_cli.options.shared import Interrupt, findings, open_profiles

_STRICT_CACHE: KVType = "q8_0"  # its rows do not depend on the width, at any depth
_FAR = 1024  # tokens of context at which its price is told


@contextmanager
def open_target(
    path: Path,
    values: dict[str, Any],
    interrupt: Interrupt,
    profiles: Profiles | None = None,
) -> Iterator[tuple[Loaded, Speculation | None]]:
    """The target, and what is known about drafting for it; None: it is off.

    profiles: where that is kept, None: with the user's. Only an explicit `--exact
    strict` changes the KV type, where the default one has no exact widths along the
    context, and says what that costs.
    """
    options, profiles = load_options(values), profiles or open_profiles()
    with interrupt as cancel:
        loaded = load_target(path, values, cancel)
        try:
            speculation = _speculation(loaded, values, profiles)
            if speculation and _wants_other_cache(values, options, speculation):
                loaded, speculation = _with_other_cache(
                    loaded, speculation, values, profiles
                )
        except BaseException:
            loaded.close()
            raise
    with loaded:
        yield loaded, speculation


def load_target(path: Path, values: dict[str, Any], cancel: threading.Event) -> Loaded:
    """The target as the options ask; says what it cannot do."""
    loaded = load(
        path,
        load_options(values),
        cancel=cancel,
        findings=findings(),
        say=_progress(values),
    )
    for warning in loaded.warnings:
        say(warning, quiet=values["quiet"])
    return loaded


def _speculation(
    loaded: Loaded, values: dict[str, Any], profiles: Profiles
) -> Speculation | None:
    if values["no_spec"] or values["draft_max"] == 0:
        return None
    speculation = Speculation(
        loaded.target, exact=values["exact"], key=loaded.key(), profiles=profiles
    )
    speculation.prepare(loaded.seconds, _progress(values))
    for note in speculation.notes:
        say(note, quiet=values["quiet"])
    speculation.save()
    return speculation


def _progress(values: dict[str, Any]) -> Callable[[str], None]:
    """Says what takes long; only on a terminal, where somebody waits."""
    hidden = values["quiet"] or not sys.stderr.isatty()
    return lambda text: say(text, quiet=hidden)


def _wants_other_cache(
    values: dict[str, Any], options: LoadOptions, speculation: Speculation
) -> bool:
    context = click.get_current_context()
    given = any(
        context.get_parameter_source(name) is not ParameterSource.DEFAULT
        for name in ("type_k", "type_v")
    )
    if values["exact"] != "strict" or given or options.flash_attention == "off":
        return False
    return speculation.target.rewindable and not _is_wide(speculation)


def _is_wide(speculation: Speculation) -> bool:
    """Whether every range that was probed has a width beyond 1."""
    return all(found.same for found in speculation.classes.inside.values())


def _with_other_cache(
    loaded: Loaded,
    speculation: Speculation,
    values: dict[str, Any],
    profiles: Profiles,
) -> tuple[Loaded, Speculation]:
    """The target with the strict KV type, if that helps; else as it was."""
    path, options, cancel = loaded.model.path, loaded.options, loaded.cancel
    before = _single(speculation)
    loaded.close()
    other = replace(options, type_k=_STRICT_CACHE, type_v=_STRICT_CACHE)
    why = f"--exact strict: with a {options.type_k} KV cache"
    try:
        loaded = load(path, other, cancel=cancel, findings=loaded.findings)
        changed = _speculation(loaded, values, profiles)
        if changed and _is_wide(changed):
            after = _single(changed)
            say(
                f"{why} no width is exact along the whole context, so {_STRICT_CACHE}: "
                f"a token at {_depth(changed)} tokens of context takes "
                f"{after * 1e3:.1f} ms instead of {before * 1e3:.1f}",
                quiet=values["quiet"],
            )
            return loaded, changed
        loaded.close()
    except EdgecsError as error:
        if cancel.is_set():
            raise
        say(f"{why} is kept: {error}", quiet=values["quiet"])
    loaded = load(path, options, cancel=cancel, findings=loaded.findings)
    same = _speculation(loaded, values, profiles)
    assert same is not None
    return loaded, same


def _depth(speculation: Speculation) -> int:
    return min(_FAR, speculation.target.n_ctx * 3 // 4)


def _single(speculation: Speculation) -> float:
    """Median seconds of a single token far into the context."""
    return curve(speculation.target, _depth(speculation), [1], repeats=5)[1]


def tiers(limits: Limits, n_ctx: int) -> str:
    """The exactness tiers along a context, in words."""
    depths, depth = [], 0
    while depth < n_ctx:
        depths.append(depth)
        depth = range_of(depth)[1]
    return limits.describe(depths)
