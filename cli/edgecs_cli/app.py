"""The `edgecs` command group; a command's module is imported when it is called."""

from __future__ import annotations

import difflib
import importlib
from typing import NamedTuple

import click

from edgecs_cli.config import config_path, defaults, listen, read_config


class Entry(NamedTuple):
    """Where a command lives, and its line in `edgecs --help`."""

    module: str
    summary: str


COMMANDS = {
    "generate": Entry("edgecs_cli.commands.generate", "Answer one prompt."),
    "chat": Entry("edgecs_cli.commands.chat", "Talk with a model."),
    "serve": Entry("edgecs_cli.commands.serve", "Answer over HTTP."),
    "models": Entry(
        "edgecs_cli.commands.models", "List, fetch, show and remove models."
    ),
    "tune": Entry(
        "edgecs_cli.commands.tune", "Measure a model here, and choose who drafts."
    ),
    "bench": Entry(
        "edgecs_cli.commands.bench", "Measure what speculation brings here."
    ),
    "simulate": Entry(
        "edgecs_cli.commands.simulate",
        "Say what drafts should bring on other hardware.",
    ),
    "audit": Entry("edgecs_cli.commands.audit", "Prove that drafts change nothing."),
    "convert": Entry("edgecs_cli.commands.convert", "Make other forms of a model."),
    "distill": Entry(
        "edgecs_cli.commands.distill", "Make a drafter for a model, on this machine."
    ),
    "doctor": Entry(
        "edgecs_cli.commands.doctor", "Say what this machine can do for a model."
    ),
    "completion": Entry(
        "edgecs_cli.commands.completion",
        "Print a script that completes commands and options.",
    ),
}


# What those who know Ollama, llama.cpp or mlx-lm may type.
_ELSEWHERE = {
    "run": "to talk with a model: edgecs chat -m MODEL",
    "cli": "to talk with a model: edgecs chat -m MODEL",
    "server": "that is edgecs serve -m MODEL",
    "ps": "no model stays loaded between commands; those that are here: edgecs models "
    "list",
    "quantize": "to make other types of a model: edgecs convert gguf MODEL",
    **dict.fromkeys(("ls", "list"), "models are listed by edgecs models list"),
    **{
        name: f"that is edgecs models {verb} MODEL"
        for name, verb in (("pull", "pull"), ("download", "pull"), ("show", "show"))
    },
    **dict.fromkeys(("rm", "remove"), "that is edgecs models rm MODEL"),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports only the one it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command itself, imported now."""
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name].module), name)
        assert isinstance(command, click.Command)
        listen(command, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; a typo is told the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `edgecs --help`"
            hint = _ELSEWHERE.get(args[0], hint)
            ctx.fail(f"there is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """The list of commands in the help text, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, e.summary) for name, e in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgecs", prog_name="edgecs")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Makes a local language model answer faster without changing its answer.

    \b
    edgecs generate -m smollm2-135m-instruct -p "What is a llama?"
    edgecs chat -m smollm2-135m-instruct
    edgecs doctor
    """
    name = ctx.invoked_subcommand
    command = cli.get_command(ctx, name) if name else None
    if name and command:
        path = config_path()
        ctx.default_map = {name: defaults(command, name, read_config(path), path)}
