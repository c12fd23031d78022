"""`edgecs chat`: a conversation in the terminal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import click

from edgecs.chat.overflow import Overflow
from edgecs.errors import ConfigError, EdgecsError, WorkerError
from edgecs_cli.chat.autosave import Autosave, last_chat
from edgecs_cli.chat.commands import run
from edgecs_cli.chat.deck import Deck, Leave
from edgecs_cli.chat.input import Reader, reader
from edgecs_cli.chat.showing import deck_of
from edgecs_cli.chat.talk import Start, Talk
from edgecs_cli.client.chat_served import open_served
from edgecs_cli.client.choice import NotServed, has_servers
from edgecs_cli.console import StreamLost, complain, say
from edgecs_cli.options.common import (
    cascade_options,
    common_options,
    drafter_options,
    model_options,
    schedule_options,
    server_option,
)
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.recipe import Call, taken
from edgecs_cli.options.remembering import ask_once, memory_option
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.sections import Sectioned
from edgecs_cli.options.shared import Interrupt, reports_errors

# Signals that end a chat, where the system has them.
_ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT")
logger = logging.getLogger("edgecs.chat")


@dataclass(frozen=True)
class Wishes:
    """Options for what a chat resumes and saves."""

    model: str | None  # None: that of the last chat
    loads: Path | None
    resume: bool
    prompt_cache: Path | None
    no_history: bool


@click.command(cls=Sectioned)
@model_options
@click.option("-sys", "--system", help="System message.")
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "max_tokens",
    type=Whole(-1),
    default=-1,
    show_default=True,
    help="Maximum tokens of an answer; -1: until the model stops.",
)
@click.option("--stop", multiple=True, help="Stop at this text; may be repeated.")
@click.option(
    "--overflow",
    type=click.Choice(get_args(Overflow)),
    default="stop",
    show_default=True,
    help="If the conversation no longer fits the context, stop: report it; shift: drop "
    "the oldest turns; truncate-middle: keep the first turn, and cut the middle out of "
    "a message that is too long by itself.",
)
@click.option(
    "--load",
    "loads",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Continue a conversation saved with /save.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the last chat, also after it was killed; with the same model if -m "
    "is left out.",
)
@click.option(
    "--prompt-cache",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Cache the KV cells of the system message in this file.",
)
@click.option(
    "--no-history",
    is_flag=True,
    help="Save neither the input history nor the conversation for --resume.",
)
@server_option
@sampling_options
@drafter_options
@schedule_options
@memory_option
@cascade_options
@common_options
@reports_errors
def chat(**values: Any) -> None:
    """Chat with a model.

    /help lists the commands. Ctrl-C stops an answer and keeps the text so far; Ctrl-D
    leaves. Without a terminal every line of stdin is a message.

    \b
    edgecs chat -m smollm2-135m-instruct
    edgecs chat --resume
    edgecs chat -m ./model.gguf --system "Be brief." --overflow shift
    edgecs chat -m ./model.gguf --load talk.edgecs
    edgecs chat -m ./model.gguf -sys "$(cat rules.txt)" --prompt-cache rules.cache
    """
    wishes, call = taken(Wishes, values), taken(Call, values)
    loads, model = _resumed(wishes) if wishes.resume else (wishes.loads, wishes.model)
    if not model:
        raise click.UsageError("Missing option '-m' / '--model'.")
    ask_once(values)
    start, interrupt = taken(Start, values), Interrupt()
    keep = Autosave(wanted=not wishes.no_history)
    ask = reader(history=not wishes.no_history)
    deck: Deck | None = None
    before = model  # known to work once there is a deck
    while True:
        try:
            with ExitStack() as stack:
                talk = _open(stack, {**values, "model": model}, start, call, interrupt)
                if deck is None:
                    deck = deck_of(talk, ask, interrupt, call)
                    _begin(talk, loads, wishes, call)
                else:
                    talk.take_over(deck.talk)
                    deck.talk = talk
                before = model
                with _ending(), keep.at_end(talk, before):
                    wanted = _converse(deck, ask, partial(keep.write, talk, before))
        except EdgecsError as error:
            if isinstance(error, WorkerError) and keep.saved:
                raise WorkerError(
                    f"{error}; the chat is saved, and `edgecs chat --resume` with "
                    "--rpc continues it"
                ) from error
            if deck is None or before == model:
                raise
            complain("edgecs chat", error)
            wanted = before
        if wanted is None:
            return
        model = wanted


def _open(
    stack: ExitStack,
    values: dict[str, Any],
    start: Start,
    call: Call,
    interrupt: Interrupt,
) -> Talk[Any]:
    """A conversation with the model of the options: a server's, or one loaded here."""
    talk: Talk[Any] | None = None
    if has_servers(values, call.say):
        try:
            talk = stack.enter_context(open_served(values, start, call, interrupt))
        except NotServed as why:
            call.note(str(why))
    if talk is None:
        from edgecs_cli.chat.local import open_here

        talk = stack.enter_context(open_here(values, start, call, interrupt))
    say(talk.start_line(), quiet=call.quiet)
    for line in talk.details() if call.verbose else ():
        say(line, quiet=call.quiet)
    return talk


# With --resume the saved conversation names the model.
_MODEL = next(option for option in chat.params if option.name == "model")
_MODEL.required = False


def _resumed(wishes: Wishes) -> tuple[Path, str]:
    """The file that --resume loads, and its model. Raises UsageError."""
    if wishes.loads:
        raise click.UsageError("--resume and --load are mutually exclusive")
    path, model = last_chat()
    return path, wishes.model or model


def _begin(talk: Talk[Any], loads: Path | None, wishes: Wishes, call: Call) -> None:
    """Loads the conversation and the prompt cache of the options."""
    if loads:
        reason = talk.load(loads)
        note = f"; recomputed because {reason}" if reason else ""
        what = "the last chat" if wishes.resume else loads
        call.say(f"{len(talk.chat.messages)} messages from {what}{note}")
    if wishes.prompt_cache:
        try:
            talk.warm(wishes.prompt_cache, call.say)
        except ConfigError as error:
            call.say(f"the prompt cache is not used: {error}")


@contextmanager
def _ending() -> Iterator[None]:
    """Turns signals that end the process into SystemExit, so that resources close."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    known = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in known}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _converse(deck: Deck, ask: Reader, keep: Callable[[], None]) -> str | None:
    """Messages and answers until the end; returns the model to continue with, or None.

    keep: called after every turn. A failed command or answer does not end the chat.
    """
    failed = 0
    while True:
        try:
            text = ask()
            if text is None:
                break
            _line(deck, text, commands=ask.commands)
        except KeyboardInterrupt:  # during a command or a report
            if not ask.commands:
                raise
            say("stopped")
        except Leave as leave:
            return leave.model
        except WorkerError:  # the model cannot answer any more
            raise
        except EdgecsError as error:
            complain("edgecs chat", error)
            failed = failed or error.exit_code
        except StreamLost:
            raise
        except Exception as error:
            logger.exception("a command failed")
            name = type(error).__name__
            complain(
                "edgecs chat", f"that failed ({name}: {error}); the chat continues"
            )
            failed = failed or 1
        with Interrupt(insists=False):  # a save is not interrupted
            keep()
    if failed and not ask.commands:  # a script needs the exit code
        raise click.exceptions.Exit(failed)
    return None


def _line(deck: Deck, text: str, *, commands: bool) -> None:
    """A message, or a command."""
    if not text.strip():
        return
    if commands and text.lstrip().startswith("/"):
        text = text.lstrip()
        if not text.startswith("//"):
            run(deck, text)
            return
        text = text[1:]
    message = "\n\n".join([*deck.attached, text])
    deck.answer(partial(deck.talk.ask, message))
    deck.attached.clear()
