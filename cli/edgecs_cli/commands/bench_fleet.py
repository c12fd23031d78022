"""`edgecs bench --ray`: a bench on the machines of a Ray cluster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgecs_cli.commands.bench_files import write_page
from edgecs_cli.console import echo, show_log
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.shared import Interrupt

if TYPE_CHECKING:
    from edgecs_bench.run.runner import Wanted

# Options whose work is not spread, with their names on the command line.
_ALONE = {
    "peers": "--peers",
    "profile": "--profile",
    "seconds": "--time-budget",
    "code": "--allow-code-execution",
    "hardware": "--export-profile",
    "cascade_sweep": "--cascade-sweep",
    "of_memory": "--memory",
}


def bench_fleet(values: dict[str, Any], wanted: Wanted) -> None:
    """Measures on all machines of a cluster. Raises click.UsageError."""
    for name, option in _ALONE.items():
        if values[name]:
            raise click.UsageError(
                f"{option} works without --ray only: leave one of them out"
            )
    recipe, call = read_recipe(values), taken(Call, values)
    show_log(call.verbose)
    from edgecs.fleet.ray_pool import connected
    from edgecs_bench.run.fleet import BenchSetup, run
    from edgecs_bench.run.result import by_machine, merge, write

    with (
        Interrupt() as cancel,
        connected(values["ray"], call.say) as fleet,
    ):
        call.find(recipe)  # downloads with progress bars
        setup = BenchSetup.of(recipe, call.folders, wanted)
        with fleet.pool(setup, alone=True) as pool:
            results = run(pool, setup, wanted.journal, cancel, call.say)
    if values["output"]:
        write(values["output"], merge(results))
    if values["page"]:
        write_page(values["page"], results)
    if values["form"] == "json":
        echo(json.dumps(merge(results)))
        return
    echo(by_machine(results, values["form"]), nl=False)
