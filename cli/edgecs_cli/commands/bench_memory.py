"""`edgecs bench --memory`: drafts from a memory, on a model's own answers."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from edgecs.errors import ConfigError
from edgecs.runtime.recipe import Recipe
from edgecs_cli.commands.bench_opening import open_measured
from edgecs_cli.console import echo
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.sections import Section, option, with_options
from edgecs_cli.options.shared import Interrupt

_FORMS = ("md", "json")


def memory_options(command: Any) -> Any:
    """The options of a bench of the memory."""
    options = [
        option(
            Section.SPECULATION,
            "--memory",
            "of_memory",
            is_flag=True,
            help="Compare drafts with and without a memory instead: scenarios of a "
            "user who comes back to the same texts and questions, each answered "
            "without drafts, without stores of texts, and with all of them, which are "
            "empty at first and in a temporary folder. Greedy. Takes -n, --profile, "
            "--resume, -o, -F md or json.",
        ),
        option(
            Section.SPECULATION,
            "--scenario",
            "scenarios",
            multiple=True,
            metavar="NAME",
            help="Scenarios of --memory; default: one of each kind, or all. May be "
            "repeated.",
        ),
    ]
    return with_options(command, options)


def check_memory(values: dict[str, Any]) -> None:
    """Raises UsageError for options that do not fit a bench of the memory."""
    if not values["of_memory"]:
        if values["scenarios"]:
            raise click.UsageError("--scenario is for --memory: add that")
        return
    if values["drafts"]:
        raise click.UsageError("--memory compares stores of texts: leave --draft out")
    if values["form"] not in _FORMS:
        raise click.UsageError(
            f"--memory prints {' or '.join(_FORMS)}: leave --format {values['form']} "
            "out"
        )
    for name in ("suites", "modes", "peers", "page", "hardware", "cascade_sweep"):
        if values[name]:
            raise click.UsageError(
                "--memory has prompts and ways of its own: leave --suite, --mode, "
                "--peers, --report, --export-profile and --cascade-sweep out"
            )


def bench_memory(values: dict[str, Any], recipe: Recipe, call: Call) -> None:
    """Runs scenarios and prints their table."""
    from edgecs_bench.memory import scenarios as known
    from edgecs_bench.memory.real import (
        FORMAT,
        USUAL,
        WAYS,
        lines_of,
        measured,
        speeds,
    )
    from edgecs_bench.report.summary import table_lines
    from edgecs_bench.run.journal import Journal, check_journal
    from edgecs_bench.run.result import write

    if values["resume"]:
        check_journal(values["resume"])
    names, most = values["scenarios"] or USUAL, values["most"]
    if names == ("all",):
        names = ()
    wanted = known.chosen(known.read_scenarios(), names)
    if most:
        wanted = [scenario._replace(most=most) for scenario in wanted]
    options = replace(recipe.options, sequences=len(WAYS))
    recipe = replace(recipe, drafts=(), options=options)
    files, interrupt = call.find(recipe), Interrupt()
    with ExitStack() as closing:
        with interrupt as cancel:
            loaded, speculation = open_measured(
                recipe, files.model, call, cancel, closing, profile=values["profile"]
            )
        if speculation is None:
            raise ConfigError(f"{files.model.name} cannot check drafts")
        settings = {"target": loaded.key().named(), "most": most}
        with interrupt:
            journal = Journal(values["resume"], {"memory": settings})
            rows = measured(wanted, recipe, loaded, speculation, journal, call.say)
    found = speeds(rows)
    result = {"format": FORMAT, "settings": settings, "speeds": found}
    if values["output"]:
        write(values["output"], {**result, "rows": rows})
    if values["form"] == "json":
        echo(json.dumps(result))
        return
    echo("\n".join(table_lines(lines_of(found))))
