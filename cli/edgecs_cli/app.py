"""The `edgecs` command group; a command's module is imported on first use."""

from __future__ import annotations

import difflib
import importlib
from typing import NamedTuple

import click

from edgecs_cli.config import config_path, defaults, listen, read_config


class Entry(NamedTuple):
    """A command's module, and its line in `edgecs --help`."""

    module: str
    summary: str


COMMANDS = {
    "generate": Entry("edgecs_cli.commands.generate", "Answer one prompt."),
    "chat": Entry("edgecs_cli.commands.chat", "Chat with a model."),
    "serve": Entry("edgecs_cli.commands.serve", "Serve models over HTTP."),
    "worker": Entry(
        "edgecs_cli.commands.worker", "Hold layers of a model for another host."
    ),
    "ps": Entry(
        "edgecs_cli.commands.ps", "List the models that servers have in memory."
    ),
    "stop": Entry(
        "edgecs_cli.commands.ps", "Unload a model from memory; the server goes on."
    ),
    "models": Entry(
        "edgecs_cli.commands.models", "Find, list, download, show and remove models."
    ),
    "run": Entry("edgecs_cli.aliases.run", "Chat with a model, or answer one prompt."),
    "ls": Entry("edgecs_cli.aliases.models", "List the models on this machine."),
    "pull": Entry(
        "edgecs_cli.aliases.models", "Download a model, or check the local file."
    ),
    "show": Entry("edgecs_cli.aliases.models", "Show the manifest of a model."),
    "rm": Entry(
        "edgecs_cli.aliases.models", "Remove the files of a model from this machine."
    ),
    "memory": Entry(
        "edgecs_cli.commands.memory",
        "Keep texts on this machine that drafts are taken from.",
    ),
    "tune": Entry(
        "edgecs_cli.commands.tune", "Measure a model here and choose its drafters."
    ),
    "bench": Entry(
        "edgecs_cli.commands.bench", "Measure the speed-up of speculation here."
    ),
    "simulate": Entry(
        "edgecs_cli.commands.simulate",
        "Predict the speed-up on other hardware.",
    ),
    "audit": Entry(
        "edgecs_cli.commands.audit", "Check that drafts do not change answers."
    ),
    "convert": Entry(
        "edgecs_cli.commands.convert", "Convert a model to other formats."
    ),
    "distill": Entry(
        "edgecs_cli.commands.distill", "Train a drafter for a model on this machine."
    ),
    "doctor": Entry(
        "edgecs_cli.commands.doctor", "Diagnose what limits speed on this machine."
    ),
    "completion": Entry(
        "edgecs_cli.commands.completion", "Print a shell completion script."
    ),
}


# Commands of Ollama, llama.cpp and mlx-lm.
_ELSEWHERE = {
    "cli": "use edgecs chat -m MODEL",
    "server": "use edgecs serve -m MODEL",
    "quantize": "use edgecs convert gguf MODEL",
    "list": "use edgecs ls",
    "search": "use edgecs models search",
    "download": "use edgecs pull MODEL",
    "remove": "use edgecs rm MODEL",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports only the one it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Imports a command; None if there is no such command."""
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name].module), name)
        assert isinstance(command, click.Command)
        listen(command, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolves a command; suggests the nearest name for an unknown one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `edgecs --help`"
            hint = _ELSEWHERE.get(args[0], hint)
            ctx.fail(f"there is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Writes the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, e.summary) for name, e in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgecs", prog_name="edgecs")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Faster local LLM inference, with drafts that do not change the output.

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
