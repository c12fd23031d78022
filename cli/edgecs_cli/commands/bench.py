"""`edgecs bench`: measures the speed-up of speculation on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click
import platformdirs
from click.core import ParameterSource

from edgecs.runtime.builder import load_drafters
from edgecs.runtime.recipe import Recipe
from edgecs_cli.commands.bench_cascades import check, sweep, sweep_options
from edgecs_cli.commands.bench_files import COMMANDS, write_page
from edgecs_cli.commands.bench_fleet import bench_fleet
from edgecs_cli.commands.bench_memory import bench_memory, check_memory, memory_options
from edgecs_cli.commands.bench_opening import open_measured
from edgecs_cli.console import echo, show_log
from edgecs_cli.options.common import common_options, drafter_options, model_options
from edgecs_cli.options.fleet import ray_option
from edgecs_cli.options.kinds import PAGE, RESULT, Finite, OutputFile, Whole
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.sections import Section, SectionedGroup, option
from edgecs_cli.options.shared import Interrupt, reports_errors

if TYPE_CHECKING:
    from edgecs_bench.run.calls import Subject
    from edgecs_bench.run.runner import Part, Wanted

FORMS = ("md", "csv", "json", "jsonl")
_QUICK_SECONDS = 110.0  # of the suite `quick`: two minutes in total
_TOKENS, _CODE_TOKENS = 192, 512  # of an answer; of one that must be complete


class ResultFile(OutputFile):
    """The result file; llama-bench's -o takes a format instead."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Checks a value of -o."""
        if value in FORMS:
            self.fail(
                f"{value!r} is a format, not a file: use --format {value} to print "
                f"it, or -o ./{value} for a file of that name",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


@click.group(
    cls=SectionedGroup,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND [ARGS]...]",
)
@model_options
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME|FILE",
    help="quick (the default, less than two minutes), spec-bench, humaneval, or a JSON "
    "Lines file with turns, prompt or text. May be repeated.",
)
@click.option("--category", "categories", multiple=True, help="Only this category.")
@click.option(
    "--per-category",
    type=Whole(1),
    default=5,
    show_default=True,
    help="Prompts per category.",
)
@click.option(
    "--prompts-of",
    "counts",
    type=(str, Whole(1)),
    multiple=True,
    metavar="CATEGORY N",
    help="Number of prompts for one category. May be repeated.",
)
@click.option(
    "--groups/--no-groups",
    "grouped",
    default=True,
    help="Merge Spec-Bench's eight MT-bench categories into one, mt_bench.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    help="plain, llama (llama.cpp's own loop), mag:K or DRAFTER:K (K tokens in every "
    "round), k:ROWS (a K matrix), planner, again (plain repeated: the bench's own "
    "error). May be repeated; default: plain, mag:3, every drafter with 3, planner.",
)
@click.option(
    "--peers",
    multiple=True,
    metavar="NAME",
    help="Other runtimes on the same file, prompts and threads, greedy: all, or names "
    "from docs/peers.md. Each is installed in an environment of its own. May be "
    "repeated.",
)
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "most",
    type=Whole(2),
    help=f"Tokens per answer; default: {_TOKENS}, {_CODE_TOKENS} if code is run, or "
    "as the time budget allows.",
)
@option(
    Section.SAMPLING,
    "--temp",
    "temperatures",
    type=Finite(0, 100),
    multiple=True,
    default=(0.0, 0.8),
    show_default=True,
    help="Temperature. May be repeated.",
)
@option(
    Section.SAMPLING,
    "-s",
    "--seed",
    type=Whole(0, 2**64 - 1),
    default=1,
    show_default=True,
    help="Seed of sampled answers.",
)
@click.option(
    "-r",
    "--repeats",
    type=Whole(1),
    default=5,
    show_default=True,
    help="Number of repeats of every measurement.",
)
@click.option(
    "--time-budget",
    "seconds",
    type=Finite(1),
    metavar="SECONDS",
    help="Start no measurement after this time; quick has its own.",
)
@click.option(
    "--test",
    "tests",
    multiple=True,
    metavar="ppN|tgN[@dN]",
    help="Prefill or decode as in llama-bench; default: pp512 and tg128. May be "
    "repeated.",
)
@click.option("--no-tests", is_flag=True, help="Skip --test; measure only answers.")
@click.option(
    "--allow-code-execution",
    "code",
    is_flag=True,
    help="Run the code that the model writes for humaneval, to compute pass@1: in a "
    "process without network and with limits, but with your file permissions.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Start from your saved profile, and update it; by default the bench starts "
    "without a profile and saves none.",
)
@option(
    Section.RESULTS,
    "-o",
    "--output",
    type=ResultFile(*RESULT),
    metavar="FILE",
    help="Write the whole result as JSON.",
)
@option(
    Section.RESULTS,
    "-F",
    "--format",
    "form",
    type=click.Choice(FORMS),
    default="md",
    show_default=True,
    help="Format of the printed result.",
)
@option(
    Section.RESULTS,
    "--report",
    "page",
    type=OutputFile(PAGE),
    metavar="FILE",
    help="Write a report as one HTML file.",
)
@option(
    Section.RESULTS,
    "--export-profile",
    "hardware",
    type=OutputFile(*RESULT),
    metavar="FILE",
    help="Write this machine's costs, for `edgecs simulate --hardware`.",
)
@option(
    Section.RESULTS,
    "--resume",
    type=OutputFile(in_place=True),
    metavar="FILE",
    help="Save progress in this file, and resume from it if it exists.",
)
@ray_option("answer the prompts, each on one machine, for a result per machine")
@drafter_options
@sweep_options
@memory_options
@common_options
@click.pass_context
@reports_errors
def bench(context: click.Context, /, **values: Any) -> None:
    """Measure the speed-up of speculation here.

    Every prompt is answered in every mode, in an order that is reversed each time, from
    an empty KV cache; a speed-up is a ratio of decode times within such a block. Every
    answer is compared with that of plain decoding.

    \b
    edgecs bench -m smollm2-135m-instruct
    edgecs bench -m ./model.gguf --suite spec-bench --suite humaneval -o run.json
    edgecs bench -m big.gguf --draft small.gguf --mode planner --mode k:3,4;0,4
    edgecs bench -m big.gguf --draft small.gguf --cascade-sweep --resume sweep.jsonl
    edgecs bench -m ./model.gguf --suite spec-bench --ray auto --resume run.jsonl
    edgecs bench -m ./model.gguf --memory --scenario query
    edgecs bench compare before.json after.json
    """
    if context.invoked_subcommand:
        return
    began = monotonic()
    check(values)
    check_memory(values)
    if values["ray"] is not None:
        bench_fleet(values, _wanted(values))
        return
    other = values["cascade_sweep"] or values["of_memory"]
    if other and not values["model"]:
        raise click.UsageError("Missing option '-m' / '--model'.")
    if values["of_memory"]:
        bench_memory(values, read_recipe(values), taken(Call, values))
        return
    if values["cascade_sweep"]:
        chosen = context.get_parameter_source("temperatures")
        given = None if chosen is ParameterSource.DEFAULT else values["temperatures"]
        sweep(values, read_recipe(values), taken(Call, values), given)
        return
    wanted = _wanted(values)
    recipe, call = read_recipe(values), taken(Call, values)
    if call.verbose:
        show_log(True)
    from edgecs_bench.run.calls import exported
    from edgecs_bench.run.result import rendered, write

    with ExitStack() as closing:
        result = _measure(
            wanted,
            recipe,
            call,
            began,
            closing,
            profile=values["profile"],
            peers=values["peers"],
        )
    if values["output"]:
        write(values["output"], result)
    if values["hardware"]:
        write(values["hardware"], exported(result))
    if values["page"]:
        write_page(values["page"], [result])
    echo(rendered(result, values["form"]), nl=False)


# A group requires its options only if no subcommand is given.
_OWN = {parameter.name: parameter for parameter in bench.params}
_OWN["model"].required = False
_OWN["n_ctx"].default = 4096


def _wanted(values: dict[str, Any]) -> Wanted:
    """The measurements that the options ask for. Raises click.UsageError."""
    if not values["model"]:
        raise click.UsageError("Missing option '-m' / '--model'.")
    from edgecs_bench.peers.table import resolve
    from edgecs_bench.run.journal import check_journal
    from edgecs_bench.run.runner import Wanted
    from edgecs_bench.run.throughput import DEFAULTS, Test
    from edgecs_bench.suite.suites import suite

    if values["resume"]:
        check_journal(values["resume"])
    resolve(values["peers"])  # before a model is loaded
    names = values["suites"] or ("quick",)
    quick = names == ("quick",)
    tests = () if values["no_tests"] else values["tests"] or DEFAULTS
    usual = _CODE_TOKENS if values["code"] else _TOKENS
    hurries = quick and values["ray"] is None
    seconds = values["seconds"] or (_QUICK_SECONDS if hurries else None)
    return Wanted(
        suite(
            names,
            values["categories"],
            values["per_category"],
            values["grouped"],
            dict(values["counts"]),
        ),
        values["modes"],
        values["temperatures"],
        values["seed"],
        values["repeats"],
        values["most"] or (None if hurries else usual),
        seconds,
        [Test.parse(name) for name in tests],
        curve=not quick,
        code=values["code"],
        journal=values["resume"],
        command=["edgecs", *map(_without_folders, sys.argv[1:])],
    )


def _without_folders(word: str) -> str:
    """A word of the command line, without the folders of a path, for privacy."""
    return Path(word).name if Path(word).is_absolute() else word


def _measure(
    wanted: Wanted,
    recipe: Recipe,
    call: Call,
    began: float,
    closing: ExitStack,
    *,
    profile: bool,
    peers: Sequence[str],
) -> dict[str, Any]:
    from edgecs_bench.run.calls import Subject
    from edgecs_bench.run.runner import run

    interrupt = Interrupt()
    files = call.find(recipe)
    with interrupt as cancel:
        loaded, speculation = open_measured(
            recipe, files.model, call, cancel, closing, profile=profile
        )
    assert speculation is not None
    with interrupt:
        drafts = files.drafts or ()
        drafters = load_drafters(drafts, loaded, recipe.drafter_options, closing)
        subject = Subject(loaded, drafters, speculation, call.say, began)
        others = _peers(peers, drafts, subject)
        return run(subject, wanted, others)


def _peers(
    names: Sequence[str], drafts: Sequence[Path], subject: Subject
) -> Sequence[Part]:
    """The measurements of other runtimes. Raises ConfigError."""
    if not names:
        return ()
    from edgecs_bench.run.peer_modes import drafters_by_kind, parts

    root = Path(platformdirs.user_cache_dir("edgecs")) / "peers"
    given = drafters_by_kind(subject.loaded.model.path, drafts)
    return parts(names, root, given, subject.say)


for command in COMMANDS:
    bench.add_command(command)
