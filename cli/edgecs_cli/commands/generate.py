"""`edgecs generate`: answers one prompt.

Little is imported before it is known that no running server can answer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgecs.errors import ConfigError
from edgecs_cli.client.choice import NotServed, has_servers
from edgecs_cli.client.generate_served import answer_served
from edgecs_cli.options.common import (
    cascade_options,
    common_options,
    drafter_options,
    model_options,
    schedule_options,
    server_option,
)
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.remembering import memory_option
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.sections import Section, Sectioned, option
from edgecs_cli.options.shared import reports_errors
from edgecs_cli.options.texts import read_stdin, read_text


@dataclass(frozen=True)
class Wishes:
    """Options for the prompt, the answer and its display."""

    prompt: str | None
    file: Path | None
    system: str | None
    max_tokens: int  # -1: until the model stops
    stop: tuple[str, ...]
    raw: bool
    as_json: bool
    explain: bool
    compare: bool
    trace: str | None
    seed: int
    log_answers: Path | None


@click.command(cls=Sectioned)
@model_options
@click.option("-p", "--prompt", help="The prompt; read from stdin without -p and -f.")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file."
)
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "max_tokens",
    type=Whole(-1),
    default=-1,
    show_default=True,
    help="Maximum tokens; -1: until the model stops or the context is full.",
)
@click.option("-sys", "--system", help="System message.")
@click.option("--stop", multiple=True, help="Stop at this text; may be repeated.")
@click.option("--raw", is_flag=True, help="Use no chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@server_option
@sampling_options
@drafter_options
@option(
    Section.SPECULATION,
    "--explain",
    is_flag=True,
    help="Show which model wrote which part, in colours or as [name:text], and why.",
)
@option(
    Section.SPECULATION,
    "--compare",
    is_flag=True,
    help="Answer again without drafts and in llama.cpp's own loop, and print the speed "
    "of each.",
)
@option(
    Section.SPECULATION,
    "--trace",
    type=click.Path(),
    metavar="FILE",
    help="Write a trace of every round to a file, one line of JSON per round.",
)
@schedule_options
@memory_option
@cascade_options
@common_options
@reports_errors
def generate(**values: Any) -> int:
    """Answer one prompt.

    The answer goes to stdout, everything else to stderr.

    \b
    edgecs generate -m smollm2-135m-instruct -p "What is a llama?"
    edgecs generate -m ./model.gguf -f question.txt -n 256 --json
    git diff | edgecs generate -m user/repo:Q4_K_M --system "Review this."
    edgecs generate -m big.gguf --draft small.gguf --k-matrix "5,10;0,10" -f task.txt
    edgecs generate -m ./model.gguf -f notes.txt --explain --trace rounds.jsonl
    edgecs generate -m ./model.gguf -f fix-this-code.txt --temp 0 --compare
    """
    wishes, call = taken(Wishes, values), taken(Call, values)
    if wishes.explain and wishes.as_json:
        raise click.UsageError(
            "--explain and --json are mutually exclusive: --trace FILE writes sources "
            "as JSON"
        )
    text: str | None = None
    if has_servers(values, call.note):
        text = read_prompt(wishes.prompt, wishes.file)
        try:
            return answer_served(values, text, call)
        except NotServed as why:
            if values["server"] != "auto":
                raise ConfigError(f"{values['server']}: {why}") from why
            call.note(str(why))
    recipe = read_recipe(values)
    if text is None:
        text = read_prompt(wishes.prompt, wishes.file)
    from edgecs_cli.commands.generate_here import answer_here

    return answer_here(recipe, call, wishes, text)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from an option, a file or stdin. Raises ConfigError."""
    if prompt is not None and file is not None:
        raise click.UsageError("-p and -f are mutually exclusive: give one of them")
    if prompt is not None:
        text = prompt
    elif file is not None:
        text = read_text(file)
    elif sys.stdin.isatty():
        raise click.UsageError("no prompt: give -p TEXT or -f FILE, or pipe text in")
    else:
        text = read_stdin()
    if not text.strip():
        raise ConfigError("the prompt is empty: give some text to answer")
    return text
