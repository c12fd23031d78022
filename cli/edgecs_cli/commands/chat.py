"""`edgecs chat`: a conversation in the terminal."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import click

from edgecs.chat.overflow import Overflow
from edgecs.errors import ConfigError, EdgecsError
from edgecs.session.answer import Token
from edgecs_cli.chat.autosave import Autosave, last_chat
from edgecs_cli.chat.commands import Deck, Leave
from edgecs_cli.chat.input import Reader, reader
from edgecs_cli.chat.model import Start, Talk
from edgecs_cli.chat.render import WordWrap, shown
from edgecs_cli.console import (
    Status,
    StreamLost,
    columns,
    complain,
    echo,
    has_colours,
    say,
)
from edgecs_cli.loading.contention import Contention
from edgecs_cli.loading.describe import answer_details, introduce
from edgecs_cli.loading.explain import painter
from edgecs_cli.loading.opening import opened
from edgecs_cli.options.common import (
    Sectioned,
    common_options,
    drafter_options,
    model_options,
    schedule_options,
)
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.shared import Interrupt, reports_errors
from edgecs_cli.short_lines import answer_line

_LONG = 256  # tokens of a prompt that takes noticeable time
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
    log_answers: Path | None


@click.command(cls=Sectioned)
@model_options
@click.option("-sys", "--system", help="System message.")
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "max_tokens",
    type=click.IntRange(-1),
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
@sampling_options
@drafter_options
@schedule_options
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
    recipe, start = read_recipe({**values, "model": model}), taken(Start, values)
    keep = Autosave(wanted=not wishes.no_history)
    ask = reader(history=not wishes.no_history)
    interrupt = Interrupt()
    deck: Deck | None = None
    before = recipe.model  # known to load once there is a deck
    while True:
        try:
            with ExitStack() as stack:
                opening = opened(recipe, call, interrupt, wishes.log_answers)
                talk = Talk(stack.enter_context(opening), start, stack)
                introduce(talk.runtime, quiet=call.quiet, verbose=call.verbose)
                if deck is None:
                    deck = _deck(talk, ask, interrupt, call)
                    _begin(talk, loads, wishes, call)
                else:
                    talk.take_over(deck.talk)
                    deck.talk = talk
                before = recipe.model
                with _ending(), keep.at_end(talk, before):
                    wanted = _converse(deck, ask, partial(keep.write, talk, before))
        except EdgecsError as error:
            if deck is None or before == recipe.model:
                raise
            complain("edgecs chat", error)
            wanted = before
        if wanted is None:
            return
        recipe = replace(recipe, model=wanted, sampling=deck.talk.sampling)


# With --resume the saved conversation names the model.
_MODEL = next(option for option in chat.params if option.name == "model")
_MODEL.required = False


def _resumed(wishes: Wishes) -> tuple[Path, str]:
    """The file that --resume loads, and its model. Raises UsageError."""
    if wishes.loads:
        raise click.UsageError("--resume and --load are mutually exclusive")
    path, model = last_chat()
    return path, wishes.model or model


def _begin(talk: Talk, loads: Path | None, wishes: Wishes, call: Call) -> None:
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


def _deck(talk: Talk, ask: Reader, interrupt: Interrupt, call: Call) -> Deck:
    """Commands and settings, which outlive a change of the model."""

    contention = Contention()

    def answer(tokens: Callable[[], Generator[Token]]) -> None:
        contention.answer_begins()
        try:
            _turn(deck, tokens(), interrupt)
        finally:
            ask.answered(stopped=deck.talk.chat.finish_reason == "cancelled")
        _report(deck, quiet=call.quiet, verbose=call.verbose)
        if line := contention.line():
            call.say(line)

    deck = Deck(talk, answer, ask.usual)
    return deck


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
            deck.run(text)
            return
        text = text[1:]
    message = "\n\n".join([*deck.attached, text])
    deck.answer(partial(deck.talk.ask, message))
    deck.attached.clear()


def _turn(deck: Deck, tokens: Generator[Token], interrupt: Interrupt) -> None:
    """Shows an answer as it streams; Ctrl-C ends it and keeps the text so far."""
    session, last = deck.talk.session, ""
    interrupt.event.clear()
    try:
        with interrupt, _reading(deck.talk), closing(tokens):
            for piece in filter(None, _pieces(deck, tokens)):
                echo(piece, nl=False)
                last = piece
    finally:
        interrupt.event.clear()
    if session.stats.tokens and not last.endswith("\n"):
        echo()


def _pieces(deck: Deck, tokens: Iterator[Token]) -> Iterator[str]:
    colours, wrap = has_colours(sys.stdout), WordWrap(lambda: columns(sys.stdout))
    if deck.explain:
        return painter(deck.talk.session.chain, colours=colours)(wrap(tokens))
    return shown(
        tokens,
        wrap,
        looks=colours and deck.markdown,
        folds=deck.folds,
        thinks=deck.talk.thinks_at_once,
    )


@contextmanager
def _reading(talk: Talk) -> Iterator[None]:
    """Shows the progress of prefill for a long prompt."""
    target, status = talk.runtime.loaded.target, Status()

    def tell(done: int, total: int) -> None:
        if done == total:
            status.wipe()
        elif total >= _LONG:
            status.show(f"{done} of {total} prompt tokens processed")

    target.on_read = tell
    try:
        yield
    finally:
        target.on_read = None
        status.wipe()  # it may have been stopped before the end


def _report(deck: Deck, *, quiet: bool, verbose: bool) -> None:
    """Prints notes on an answer to stderr."""
    chat, stats = deck.talk.chat, deck.talk.session.stats
    if chat.finish_reason == "cancelled" and not stats.tokens:
        say("stopped before the first token: the message was removed", quiet=quiet)
        return
    if chat.asked.left_out:
        say(
            f"{chat.asked.left_out} older messages no longer fit the context and are "
            "left out (--overflow)",
            quiet=quiet,
        )
    if chat.asked.again:
        say(
            f"the template rewrites earlier answers: {chat.asked.again} tokens of them "
            "were processed again",
            quiet=quiet,
        )
    if deck.stats:
        say(answer_line(stats, chat.finish_reason), quiet=quiet)
        for line in answer_details(deck.talk.session) if verbose else ():
            say(line, quiet=quiet)
    if chat.finish_reason == "context":
        say(
            "the context is full: use /clear to start over, /set overflow shift to "
            "drop old turns, or a larger -c",
            quiet=quiet,
        )
