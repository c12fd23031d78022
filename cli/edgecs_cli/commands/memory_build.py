"""`edgecs memory build`: the phrases of a model, from answers that it writes once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import platformdirs

from edgecs.memory.consent import decided
from edgecs.runtime.target import load_target
from edgecs_cli.console import echo, show_log
from edgecs_cli.options.common import common_options, model_options
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.recipe import Call, find_model, read_recipe, taken
from edgecs_cli.options.remembering import folder_option
from edgecs_cli.options.sections import Sectioned
from edgecs_cli.options.shared import Interrupt, reports_errors


@click.command(cls=Sectioned)
@model_options
@click.option(
    "--tokens",
    type=Whole(1000),
    default=100_000,
    show_default=True,
    help="Tokens of answers that the model writes for this.",
)
@click.option(
    "--from",
    "answers",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Take the answers of a distillation instead, from its --work folder.",
)
@click.option(
    "--answer",
    type=Whole(8, 4096),
    default=256,
    show_default=True,
    help="Maximum tokens of an answer.",
)
@click.option(
    "--parallel",
    type=Whole(1, 256),
    default=32,
    show_default=True,
    help="Answers generated in parallel.",
)
@folder_option
@common_options
@reports_errors
def build(**values: Any) -> None:
    """Draft from what a model says again and again.

    The model answers generated questions in parallel; the answers are kept apart from
    your texts, and phrases of the model are looked up in them. Nothing of yours is in
    them, so they are used without a decision about answers. An interrupted build goes
    on when it is started again.

    \b
    edgecs memory build -m smollm2-135m-instruct
    edgecs memory build -m ./model.gguf --tokens 400000 -t 4
    edgecs memory build -m ./model.gguf --from work
    """
    from edgecs_convert.distill.data import Wanted
    from edgecs_convert.phrases import build_phrases, phrases_from

    recipe, call = read_recipe(values), taken(Call, values)
    show_log(call.verbose)
    folder, answers = values["folder"], values["answers"]
    path = find_model(recipe.model, offline=call.offline)
    cache = Path(platformdirs.user_cache_dir("edgecs"))
    with (
        Interrupt() as cancel,
        load_target(
            path, recipe.options, call.folders, call.reports, cancel=cancel
        ) as loaded,
    ):
        if answers is not None:
            made = phrases_from(loaded, folder, answers)
        else:
            wanted = Wanted(
                values["tokens"], most=values["answer"], parallel=values["parallel"]
            )
            work = cache / "phrases" / path.stem.lower()
            made = build_phrases(loaded, folder, work, wanted, call.say)
    echo(f"{path.stem}: phrases of {made.tokens:,} tokens in {folder}")
    if decided(folder) is False:
        call.say("the memory is off, so they are not used: edgecs memory on")
