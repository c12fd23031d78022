"""`edgecs chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from edgecs.errors import EdgecsError
from edgecs.overflow import Overflow
from edgecs.session import Token
from edgecs_cli.explain import has_colours, painter
from edgecs_cli.opening import open_all, statistics_line
from edgecs_cli.options import drafter_options, model_options, schedule_options
from edgecs_cli.sampling import sampling_options
from edgecs_cli.screen import for_terminal, shown
from edgecs_cli.shared import Interrupt, reports_errors, say
from edgecs_cli.slash import Deck, Leave
from edgecs_cli.talk import Talk
from edgecs_cli.typed import Reader, Typed, reader

_LONG = 256  # tokens of a prompt that somebody waits for


@click.command()
@click.option("-sys", "--system", help="System message.")
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "max_tokens",
    type=click.IntRange(-1),
    default=-1,
    show_default=True,
    help="Most tokens of an answer; -1: until the model stops.",
)
@click.option("--stop", multiple=True, help="Stop at this text; may be repeated.")
@click.option(
    "--overflow",
    type=click.Choice(get_args(Overflow)),
    default="stop",
    show_default=True,
    help="When the conversation does not fit the context any more: say so; leave the "
    "oldest turns out; or keep the first one, and cut the middle out of a message that "
    "is too long by itself.",
)
@click.option(
    "--load",
    "loads",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Go on with a conversation that /save kept.",
)
@click.option(
    "--prompt-cache",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep what was computed for the system message here, and take it from here "
    "the next time.",
)
@click.option("--no-history", is_flag=True, help="Keep no history of what is typed.")
@model_options
@drafter_options
@schedule_options
@sampling_options
@reports_errors
def chat(**values: Any) -> None:
    """Talk with a model.

    /help lists the commands. Ctrl-C stops an answer and keeps what was said; Ctrl-D
    leaves. Without a terminal every line of stdin is a message.

    \b
    edgecs chat -m smollm2-135m-instruct
    edgecs chat -m ./model.gguf --system "Be brief." --overflow shift
    edgecs chat -m ./model.gguf --load talk.edgecs
    edgecs chat -m ./model.gguf -sys "$(cat rules.txt)" --prompt-cache rules.cache
    """
    ask = reader(history=not values["no_history"])
    interrupt = Interrupt()
    deck: Deck | None = None
    before = values["model"]  # one that works, once there is a deck
    while True:
        try:
            with ExitStack() as closing:
                kept = deck.talk.sampling if deck else None
                opened = closing.enter_context(open_all(values, interrupt, kept))
                talk = Talk(opened, values, closing)
                if deck is None:
                    deck = _deck(talk, ask, interrupt, quiet=values["quiet"])
                    _begin(talk, values)
                else:
                    talk.take_over(deck.talk)
                    deck.talk = talk
                before = values["model"]
                wanted = _converse(deck, ask)
        except EdgecsError as error:
            if deck is None or before == values["model"]:
                raise
            click.echo(f"edgecs chat: {error}", err=True)
            wanted = before
        if wanted is None:
            return
        values["model"] = wanted


def _begin(talk: Talk, values: dict[str, Any]) -> None:
    """What the options say about the conversation."""
    if values["loads"]:
        reason = talk.load(values["loads"])
        note = f"; it is read again, as {reason}" if reason else ""
        text = f"{len(talk.chat.messages)} messages from {values['loads']}{note}"
        say(text, quiet=values["quiet"])
    if values["prompt_cache"]:
        talk.warm(values["prompt_cache"], lambda text: say(text, quiet=values["quiet"]))


def _deck(talk: Talk, ask: Reader, interrupt: Interrupt, *, quiet: bool) -> Deck:
    """Commands and looks, which outlive a change of the model."""

    def answer(tokens: Callable[[], Iterator[Token]]) -> None:
        _turn(deck, tokens(), interrupt)
        _report(deck, quiet=quiet)
        if deck.talk.chat.finish_reason == "cancelled" and isinstance(ask, Typed):
            ask.stopped()

    deck = Deck(talk, answer)
    return deck


def _converse(deck: Deck, ask: Reader) -> str | None:
    """Messages and answers until the end; the model to go on with, if there is one."""
    failed = 0
    while (text := ask()) is not None:
        if not text.strip():
            continue
        try:
            if ask.commands and text.lstrip().startswith("/"):
                text = text.lstrip()
                if not text.startswith("//"):
                    deck.run(text)
                    continue
                text = text[1:]
            message = "\n\n".join([*deck.attached, text])
            deck.answer(partial(deck.talk.ask, message))
            deck.attached.clear()
        except Leave as leave:
            return leave.model
        except EdgecsError as error:
            click.echo(f"edgecs chat: {error}", err=True)
            failed = failed or error.exit_code
    if failed and not ask.commands:  # nobody was there to read what was wrong
        raise click.exceptions.Exit(failed)
    return None


def _turn(deck: Deck, tokens: Iterator[Token], interrupt: Interrupt) -> None:
    """Shows an answer as it comes; Ctrl-C ends it early, and what was said stays."""
    session, last = deck.talk.session, ""
    interrupt.event.clear()
    try:
        with interrupt, _reading(deck.talk):
            for piece in filter(None, _pieces(deck, tokens)):
                click.echo(piece, nl=False, color=has_colours(sys.stdout))
                last = piece
    finally:
        interrupt.event.clear()
    if session.stats.tokens and not last.endswith("\n"):
        click.echo()


def _pieces(deck: Deck, tokens: Iterator[Token]) -> Iterator[str]:
    colours, tokens = has_colours(sys.stdout), for_terminal(tokens, sys.stdout)
    if deck.explain:
        return painter(deck.talk.session.chain, colours=colours)(tokens)
    return shown(
        tokens,
        looks=colours and deck.markdown,
        folds=deck.folds,
        thinks=deck.talk.thinks_at_once,
    )


@contextmanager
def _reading(talk: Talk) -> Iterator[None]:
    """Says how far a long prompt is read, while somebody waits in front of it."""
    target, wrote = talk.opened.loaded.target, False

    def tell(done: int, total: int) -> None:
        nonlocal wrote
        if total < _LONG:
            return
        if done < total:
            wrote = True
            sys.stderr.write(f"\r{done} of {total} tokens read ")
        elif wrote:
            wipe()
        sys.stderr.flush()

    def wipe() -> None:
        nonlocal wrote
        wrote = False
        sys.stderr.write("\r" + " " * 40 + "\r")
        sys.stderr.flush()

    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        target.on_read = tell
    try:
        yield
    finally:
        target.on_read = None
        if wrote:  # it was stopped before the end
            wipe()


def _report(deck: Deck, *, quiet: bool) -> None:
    """What is to be known of an answer, dim, on stderr."""
    chat, stats = deck.talk.chat, deck.talk.session.stats
    if chat.finish_reason == "cancelled" and not stats.tokens:
        say("stopped before the first word: the message was taken back", quiet=quiet)
        return
    if chat.asked.left_out:
        say(
            f"{chat.asked.left_out} older messages do not fit the context any more and "
            "are not fed (--overflow)",
            quiet=quiet,
        )
    if chat.asked.again:
        say(
            f"the template rewrites earlier answers: {chat.asked.again} tokens of them "
            "were read again",
            quiet=quiet,
        )
    if deck.stats:
        say(statistics_line(stats, chat.finish_reason), quiet=quiet)
    if chat.finish_reason == "context":
        say(
            "the context is full: /clear begins anew, /set overflow shift lets old "
            "turns go, -c gives more",
            quiet=quiet,
        )
