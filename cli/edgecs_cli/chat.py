"""`edgecs chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from edgecs.chat_template import ChatTemplate
from edgecs.errors import ConfigError
from edgecs.session import Session
from edgecs_cli.generate import decode
from edgecs_cli.options import drafter_options, model_options, schedule_options
from edgecs_cli.run import open_all, statistics_line
from edgecs_cli.sampling import sampling_options
from edgecs_cli.shared import Interrupt, reports_errors, say


@click.command()
@click.option("-sys", "--system", help="System message.")
@model_options
@drafter_options
@schedule_options
@sampling_options
@reports_errors
def chat(**values: Any) -> None:
    """Talk with a model.

    Ctrl-C stops an answer and keeps what was said; Ctrl-D leaves. Without a terminal
    every line of stdin is a message.

    \b
    edgecs chat -m smollm2-135m-instruct
    """
    interrupt = Interrupt()
    with open_all(values, interrupt) as opened:
        session = opened.session
        template = ChatTemplate(opened.loaded.model.vocabulary)
        messages: list[dict[str, str]] = []
        if values["system"]:
            messages.append({"role": "system", "content": values["system"]})
        ask = _reader()
        while (text := ask()) is not None:
            if not text.strip():
                continue
            messages.append({"role": "user", "content": text})
            try:
                answer = _turn(session, template, messages, interrupt)
            except ConfigError as error:
                messages.pop()
                click.echo(f"edgecs chat: {error}", err=True)
                continue
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:  # stopped before the first word: as if it had not been asked
                messages.pop()
            line = statistics_line(session.stats, session.finish_reason)
            say(line, quiet=values["quiet"])


def _turn(
    session: Session,
    template: ChatTemplate,
    messages: list[dict[str, str]],
    interrupt: Interrupt,
) -> str:
    """Streams one answer; Ctrl-C ends it early, and what was said stays."""
    texts = []
    interrupt.event.clear()
    with interrupt:
        for token in session.generate(template.encode(messages)):
            texts.append(token.text)
            sys.stdout.write(token.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    interrupt.event.clear()
    return "".join(texts)


def _reader() -> Callable[[], str | None]:
    """A function that gives the next message, None at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        lines = enumerate(sys.stdin.buffer, 1)
        return lambda: next(
            (
                decode(line, f"line {n} of standard input").rstrip("\n")
                for n, line in lines
            ),
            None,
        )
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    prompt: PromptSession[str] = PromptSession("> ", history=InMemoryHistory())

    def ask() -> str | None:
        while True:
            try:
                return prompt.prompt()
            except KeyboardInterrupt:
                say("Ctrl-D leaves")
            except EOFError:
                return None

    return ask
