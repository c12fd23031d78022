"""`edgecs run`: `edgecs chat`, or `edgecs generate` if there is a prompt."""

from __future__ import annotations

import copy
import os
import stat
import sys
from typing import Any

import click
from click.core import ParameterSource

from edgecs_cli.commands.chat import chat
from edgecs_cli.commands.generate import generate
from edgecs_cli.options.references import Reference
from edgecs_cli.options.sections import Sectioned
from edgecs_cli.options.shared import reports_errors
from edgecs_cli.options.texts import read_stdin

_OWN = {"model", "prompt"}  # arguments here, options there


@click.command(cls=Sectioned)
@click.argument("model", type=Reference())
@click.argument("prompt", nargs=-1)
@click.pass_context
@reports_errors
def run(
    ctx: click.Context, /, model: str, prompt: tuple[str, ...], **values: Any
) -> object:
    """Chat with a model, or answer one prompt.

    A missing model is downloaded first. With a prompt this is `edgecs generate`, else
    `edgecs chat`; the options are theirs. Text that is piped in is added to the prompt.

    \b
    edgecs run qwen3:4b
    edgecs run qwen3:4b "Why is the sky blue?"
    edgecs run qwen3:4b "Summarise this:" < notes.txt
    """
    text = " ".join(prompt) if prompt else None
    if not values["file"] and _has_input() and (piped := read_stdin()):
        text = "\n\n".join(filter(None, (text, piped)))
    target = chat if text is None and not values["file"] else generate
    _check(ctx, target)
    return _invoke(ctx, target, {**values, "model": model, "prompt": text})


def _has_input() -> bool:
    """Whether standard input is a file or a pipe."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or replaced by an object without a file
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _check(ctx: click.Context, target: click.Command) -> None:
    """Raises UsageError for an option of the other command."""
    known = {param.name for param in target.params}
    for param in ctx.command.params:
        typed = (
            ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        )
        if typed and param.name not in known | _OWN:
            if target is generate:
                why = "of `edgecs chat`: leave the prompt out"
            else:
                why = "of `edgecs generate`: give a prompt"
            raise click.UsageError(f"{param.opts[-1]} is an option {why}", ctx)


def _invoke(
    ctx: click.Context, target: click.Command, values: dict[str, Any]
) -> object:
    """Runs a command with values that are parsed, and knows where they come from."""
    names = [param.name for param in target.params if param.name]
    assert target.callback is not None
    with click.Context(target, parent=ctx.parent, info_name=ctx.info_name) as inner:
        inner.params = {name: values[name] for name in names}
        for name in names:
            source = ctx.get_parameter_source(name) or ParameterSource.DEFAULT
            inner.set_parameter_source(name, source)
        return inner.invoke(target.callback, **inner.params)


def _add_options() -> None:
    """Gives `run` the options of both commands, those of `chat` first."""
    options = {param.name: param for param in (*generate.params, *chat.params)}
    order = dict.fromkeys(p.name for p in (*chat.params, *generate.params))
    for name in order:
        if name not in _OWN:
            option = copy.copy(options[name])
            option.envvar = None  # each command has variables of its own
            run.params.append(option)


_add_options()
