"""`edgecs tune`: measures a model and chooses its drafters."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgecs.calibrate.bundled_drafters import bundled_for
from edgecs.calibrate.probe import curve
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Tokens
from edgecs.core.draft import works_alone
from edgecs.errors import Cancelled, ConfigError, EdgecsError
from edgecs.runtime.builder import load_drafters
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import OWN_HEAD, Loaded, LoadedDrafter
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import open_target
from edgecs.text.chat_template import ChatTemplate
from edgecs.tuning import tuner
from edgecs.tuning.comparison import MAG, PROMPTS, Chain, chains, with_overlap
from edgecs.tuning.cost_sweep import SHALLOW
from edgecs.tuning.plan import (
    QUICK_EFFORT,
    Effort,
    Pace,
    Step,
    plan_settings,
    planned_steps,
)
from edgecs.tuning.quantisations import expected_quantisations
from edgecs.tuning.report import Report
from edgecs.tuning.settings import settings_to_try, time_settings
from edgecs_bench.report import canvas
from edgecs_bench.text_tables import aligned
from edgecs_cli.commands.tuning_plot import draw
from edgecs_cli.console import columns, echo, moves, say, show_log, wrapped
from edgecs_cli.options.common import (
    common_options,
    drafter_options,
    model_options,
    overlap_option,
)
from edgecs_cli.options.kinds import OutputFile, Whole
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.sections import Sectioned
from edgecs_cli.options.shared import (
    Interrupt,
    pace_bar,
    reports_errors,
)


@dataclass(frozen=True)
class Wishes:
    """Options of the tuning; None: the default."""

    quick: bool
    repeats: int | None
    tokens: int | None
    plot: Path | None
    as_json: bool


@click.command(cls=Sectioned)
@model_options
@click.option(
    "--quick", is_flag=True, help="Measure less: 3 repeats, answers of 48 tokens."
)
@click.option(
    "--repeats",
    type=Whole(1, 100),
    metavar="N",
    help="Timings of every width; half as many deep in the context.  [default: 7]",
)
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "tokens",
    type=Whole(8, 4096),
    metavar="N",
    help="Maximum tokens of an answer that tries a chain.  [default: 96]",
)
@click.option(
    "--plot",
    type=OutputFile(b"\x89PNG", b"<?xml", b"<svg", in_place=True),
    metavar="FILE",
    help="Plot the cost curve and the chains as .png or .svg; needs matplotlib.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@drafter_options
@overlap_option
@common_options
@reports_errors
def tune(**values: Any) -> int:
    """Measure a model here and choose its drafters.

    Times the model's calls by width and depth, finds the widths that are bit-identical
    to plain decoding, tries every chain of the drafters against plain decoding, and
    saves a profile for `generate` and `chat`. Without --draft it tries the bundled
    drafter. Prints whether the model would be faster with other flags; -v shows all
    measurements. This takes about a minute for a small model and several for a larger
    one. No profile is saved if other programs use the CPU meanwhile (exit code 1).

    \b
    edgecs tune -m smollm2-135m-instruct
    edgecs tune -m big.gguf --draft small.gguf --plot costs.png
    edgecs tune -m user/repo:Q4_K_M --quick --json
    """
    wishes, call, recipe = (
        taken(Wishes, values),
        taken(Call, values),
        read_recipe(values),
    )
    if wishes.plot:
        _check_plot(wishes.plot)
    show_log(call.verbose)
    files = call.find(recipe)
    interrupt = Interrupt()
    with ExitStack() as closing:
        loaded = closing.enter_context(_open(files.model, recipe, call, interrupt))
        with interrupt:
            drafts = files.drafts
            if drafts is None:
                own = OWN_HEAD if loaded.model.has_heads else bundled_for(recipe.model)
                drafts = (own,) if own else ()
            options = recipe.drafter_options
            drafters = load_drafters(drafts, loaded, options, closing)
            # Max-Gram always drafts in `generate`, so all chains contain it.
            usual = [MAG, *(Chain((d.name,), True) for d in drafters)]
            names = [drafter.name for drafter in drafters]
            tried = usual if recipe.drafts is None else chains(names)
            if recipe.overlap != "off":
                alone = {d.name for d in drafters if works_alone(d.model)}
                tried = with_overlap(tried, alone)
            report = _measure(loaded, drafters, tried, recipe, wishes, call)
    _show(report, as_json=wishes.as_json, verbose=call.verbose)
    if wishes.plot:
        draw(wishes.plot, report.key.model, report.tuned)
    if not report.kept:
        raise EdgecsError(
            f"the profile was not saved: {Folders().profiles.root} cannot be written"
        )
    return 0


def _show(report: Report, *, as_json: bool, verbose: bool) -> None:
    """Prints the verdict, and with -v its tables."""
    if as_json:
        echo(json.dumps(report.fields()))
        return
    for line in report.verdict():
        echo(wrapped(line, columns(sys.stdout)))
    if verbose:
        echo("\n".join(["", *_details(report)]))


def _details(report: Report) -> Iterator[str]:
    for part in report.details():
        if isinstance(part, str):
            yield part
        else:
            yield from (f"  {line}" for line in aligned(part.rows, words=part.words))


def _check_plot(path: Path) -> None:
    """Raises ConfigError where such a plot cannot be written."""
    if path.suffix.lower().removeprefix(".") not in canvas.FORMS:
        raise ConfigError(f"a plot must be a .png or .svg file, got {path}")
    canvas.require()


@contextmanager
def _open(
    path: Path, recipe: Recipe, call: Call, interrupt: Interrupt
) -> Iterator[Loaded]:
    """Opens the target, with the KV cache type that `generate` would use."""
    # Only strict needs the profile of drafts: for the KV cache type.
    recipe = replace(recipe, speculate=recipe.exact == "strict")
    with ExitStack() as closing:
        with interrupt as cancel:
            loaded, _ = closing.enter_context(
                open_target(recipe, path, call.folders, call.reports, cancel)
            )
        yield loaded


def _measure(
    loaded: Loaded,
    drafters: list[LoadedDrafter],
    tried: Sequence[Chain],
    recipe: Recipe,
    wishes: Wishes,
    call: Call,
) -> Report:
    """Tunes and saves the profile; an interrupted tuning keeps the old one."""
    least = QUICK_EFFORT if wishes.quick else Effort()
    effort = least._replace(
        repeats=wishes.repeats or least.repeats, tokens=wishes.tokens or least.tokens
    )
    key, profiles, target = loaded.key(), call.folders.profiles, loaded.target
    known = SpeculationProfile(target, exact=recipe.exact, key=key, profiles=profiles)
    for note in known.notes:
        call.say(note)
    names = [drafter.name for drafter in drafters]
    ways = list(settings_to_try(loaded.options, target.threads, os.cpu_count() or 1))
    steps = [
        *planned_steps(target.n_ctx, effort, names, tried, [*PROMPTS]),
        *plan_settings(ways, effort.deeper),
    ]
    with _progress(loaded, steps, call) as progress:
        tuned = tuner.tune(
            known,
            loaded.model.vocabulary,
            drafters,
            {kind: _encode(loaded, text) for kind, text in PROMPTS.items()},
            effort,
            tried=tried,
            progress=progress,
        )
        others = time_settings(
            target, ways, loaded.with_options, effort.deeper, progress
        )
    if loaded.cancel.is_set():
        raise Cancelled("stopped before the end: nothing was kept")
    kept = tuner.keep(known, key, tuned)
    path = loaded.model.path
    here = [*path.parent.glob("*.gguf")]
    here += [model.path for model in Folders(offline=True).store.models() if model.path]
    files = expected_quantisations(path, here, key, profiles)
    given = list(recipe.drafts or ())
    kept_states = loaded.model.snapshots(loaded.options)
    memory = loaded.model.memory(loaded.options)
    takes = memory.describe(target.n_ctx, loaded.options, kept_states)
    return Report(recipe.model, given, key, known, takes, tuned, files, others, kept)


@contextmanager
def _progress(
    loaded: Loaded, steps: Sequence[Step], call: Call
) -> Iterator[Callable[[str], None]]:
    """A function that shows the current step: as lines if verbose, else as a bar."""
    if call.verbose or call.quiet or not moves(sys.stderr):
        quiet = call.quiet or not call.verbose
        yield lambda text: say(text, quiet=quiet)
        return
    target = loaded.target
    single = curve(target, min(SHALLOW, target.n_ctx // 4), (1,), repeats=3)[1]
    pace = Pace(steps, single)
    with pace_bar(lambda: (pace.share, pace.left)) as show:

        def told(text: str) -> None:
            pace.begin(text)
            show(text)

        yield told


def _encode(loaded: Loaded, text: str) -> Tokens:
    vocabulary = loaded.model.vocabulary
    if not vocabulary.chat_template:
        return vocabulary.encode(text)
    return ChatTemplate(vocabulary).encode([{"role": "user", "content": text}])
