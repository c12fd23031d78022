"""`edgecs completion`: shell completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from edgecs.errors import ConfigError
from edgecs_cli.console import echo
from edgecs_cli.options.shared import reports_errors


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@reports_errors
def completion(shell: str) -> None:
    """Print a shell completion script.

    \b
    eval "$(edgecs completion bash)"        # in ~/.bashrc
    eval "$(edgecs completion zsh)"         # in ~/.zshrc
    edgecs completion fish > ~/.config/fish/completions/edgecs.fish
    """
    from edgecs_cli.app import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigError(f"click cannot complete in {shell}: use bash, zsh or fish")
    echo(kind(cli, {}, "edgecs", "_EDGECS_COMPLETE").source())
