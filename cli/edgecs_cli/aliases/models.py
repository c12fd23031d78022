"""`edgecs ls`, `pull`, `show` and `rm`: short names of `edgecs models ...`."""

from __future__ import annotations

import copy

import click

from edgecs_cli.commands.models import models


def _alias(name: str, verb: str, example: str) -> click.Command:
    """The command `edgecs models VERB` under another name, with the same options."""
    command = copy.copy(models.commands[verb])
    command.params = [copy.copy(param) for param in command.params]
    for param in command.params:
        param.envvar = None  # each command has variables of its own
    summary = command.get_short_help_str(limit=200)
    command.name = name
    command.help = f"{summary}\n\nThis is `edgecs models {verb}`.\n\n\b\n{example}"
    return command


ls = _alias("ls", "list", "edgecs ls")
pull = _alias("pull", "pull", "edgecs pull qwen3:4b")
show = _alias("show", "show", "edgecs show qwen3:4b")
rm = _alias("rm", "rm", "edgecs rm qwen3:4b")
