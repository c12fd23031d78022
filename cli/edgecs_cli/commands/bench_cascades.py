"""`edgecs bench --cascade-sweep`: quality against speed of speculative cascades."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, get_args

import click

from edgecs.runtime.builder import load_drafters, small_model
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import open_target
from edgecs.sampling.cascade_rules import RuleName
from edgecs_cli.console import echo
from edgecs_cli.options.kinds import AnyFinite, OutputFile, Whole
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.sections import Section, option, with_options
from edgecs_cli.options.shared import Interrupt

# chosen: from hardly any to nearly all positions for the small model.
_ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
_TEMPERATURES = (0.0, 1.0)  # those of the paper
_SUITES = ("humaneval", "spec-bench")
_TOKENS, _CODE_TOKENS = 192, 512
# chosen: 43 ways x 4 prompts x 64 tokens take minutes at each temperature.
_TIMED, _TIMED_TOKENS = 4, 64
_PARTS = ("quality", "speed", "finished")
# Parts of a target's key that answers do not depend on where rows are uniform.
_OF_TIMES = ("build", "device", "threads", "mmap", "huge_pages")
_NOT_UNIFORM = (
    "rows of these models depend on what is computed with them: in the sweep, answers "
    "may differ from those of each way alone"
)


def sweep_options(command: Any) -> Any:
    """The options of a cascade sweep."""
    options = [
        option(
            Section.SPECULATION,
            "--cascade-sweep",
            is_flag=True,
            help="Compare speculative cascades of the model and its first --draft "
            "instead: speed, agreement with the model and pass@1 by rule and alpha, "
            "beside lenient speculative sampling, a plain cascade, and each model "
            "alone. Takes --suite, -n, --temp, --seed, --time-budget, --resume, -o, "
            "--allow-code-execution.",
        ),
        option(
            Section.SPECULATION,
            "--cascade-rule",
            "sweep_rules",
            type=click.Choice(get_args(RuleName)),
            multiple=True,
            help="Rules of the sweep; default: all. May be repeated.",
        ),
        option(
            Section.SPECULATION,
            "--alpha",
            "sweep_alphas",
            type=AnyFinite(),
            multiple=True,
            metavar="A",
            help="Alphas of the sweep; default: "
            f"{', '.join(f'{a:g}' for a in _ALPHAS)}. May be repeated.",
        ),
        option(
            Section.SPECULATION,
            "--cascade-part",
            "sweep_part",
            type=click.Choice(_PARTS),
            help="Compute only the quality of the sweep, only its speed, or nothing: "
            "the rest is what --resume has finished. Default: both.",
        ),
        option(
            Section.SPECULATION,
            "--cascade-speed-prompts",
            "sweep_timed",
            type=Whole(1),
            metavar="N",
            help="Prompts on which the sweep measures the speed of every way, with at "
            f"most {_TIMED_TOKENS} tokens for an answer; default: {_TIMED}.",
        ),
        option(
            Section.RESULTS,
            "--plot",
            "sweep_plot",
            type=OutputFile(b"\x89PNG", b"<?xml", b"<svg", in_place=True),
            metavar="FILE",
            help="Plot the sweep as .png or .svg; needs matplotlib.",
        ),
    ]
    return with_options(command, options)


def check(values: dict[str, Any]) -> None:
    """Raises UsageError for options of a sweep that do not fit."""
    if values["cascade_sweep"]:
        if values["sweep_part"] == "finished" and not values["resume"]:
            raise click.UsageError(
                "--cascade-part finished needs the journal of a sweep: give --resume"
            )
        return
    given = {
        "--cascade-rule": values["sweep_rules"],
        "--alpha": values["sweep_alphas"],
        "--cascade-part": values["sweep_part"],
        "--cascade-speed-prompts": values["sweep_timed"],
        "--plot": values["sweep_plot"],
    }
    for name, value in given.items():
        if value:
            raise click.UsageError(f"{name} is for --cascade-sweep: add that")


def sweep(
    values: dict[str, Any],
    recipe: Recipe,
    call: Call,
    temperatures: Sequence[float] | None,
) -> None:
    """Runs a sweep and prints its table. temperatures: None: those of the paper."""
    if not recipe.drafts:
        raise click.UsageError("--cascade-sweep needs a small model: give --draft")
    from edgecs.core.files import write_whole
    from edgecs_bench.cascades.plot import draw
    from edgecs_bench.cascades.rows import table
    from edgecs_bench.cascades.sweep import Sweep, run
    from edgecs_bench.cascades.ways import Pair
    from edgecs_bench.cascades.wide import is_uniform, many_sequences
    from edgecs_bench.report import canvas
    from edgecs_bench.run.journal import check_journal
    from edgecs_bench.run.modes import DRAFTED
    from edgecs_bench.run.runner import encoder
    from edgecs_bench.suite.suites import suite

    part, plot = values["sweep_part"], values["sweep_plot"]
    if plot:
        if plot.suffix.lower() not in (".png", ".svg"):
            raise click.UsageError(f"--plot writes .png or .svg, got {plot.name}")
        canvas.require()
    if values["resume"]:
        check_journal(values["resume"])
    prompts = suite(
        values["suites"] or _SUITES,
        values["categories"],
        values["per_category"],
        values["grouped"],
        dict(values["counts"]),
    )
    code, interrupt, files = values["code"], Interrupt(), call.find(recipe)
    with ExitStack() as closing:
        with interrupt as cancel:
            opening = open_target(
                recipe, files.model, call.folders, call.reports, cancel
            )
            loaded, speculation = closing.enter_context(opening)
        assert speculation is not None
        with interrupt:
            drafters = load_drafters(
                files.drafts or (), loaded, recipe.drafter_options, closing
            )
            small = drafters[small_model([d.named for d in drafters])]
            pair = Pair(
                loaded.target,
                small.whole,
                loaded.model.vocabulary,
                speculation.fixed(1 + DRAFTED),
                DRAFTED,
            )
            identity, machine = loaded.key().named(), dict[str, Any]()
            if is_uniform(pair):
                machine = {name: identity.pop(name) for name in _OF_TIMES}
            else:
                call.say(_NOT_UNIFORM)
            wanted = Sweep(
                prompts,
                values["sweep_rules"] or get_args(RuleName),
                values["sweep_alphas"] or _ALPHAS,
                temperatures or _TEMPERATURES,
                values["seed"],
                values["most"] or (_CODE_TOKENS if code else _TOKENS),
                code,
                part in (None, "quality"),
                part in (None, "speed"),
                values["sweep_timed"] or _TIMED,
                _TIMED_TOKENS,
                values["seconds"],
                values["resume"],
                {"target": identity, "small": small.fingerprint},
                machine,
            )
            result = run(
                wanted,
                pair,
                loaded.rule,
                encoder(loaded),
                call.say,
                lambda room: many_sequences(pair, room, loaded.cancel),
            )
    if values["output"]:
        write_whole(values["output"], json.dumps(result).encode() + b"\n")
    if plot:
        draw(plot, result)
    echo(json.dumps(result) if values["form"] == "json" else table(result), nl=False)
