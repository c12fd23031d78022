"""Shows an answer while it streams, and notes on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

from edgecs.errors import EdgecsError
from edgecs.session.answer import Token
from edgecs_cli.chat.deck import Deck
from edgecs_cli.chat.input import Reader
from edgecs_cli.chat.render import WordWrap, shown
from edgecs_cli.chat.talk import Talk
from edgecs_cli.console import columns, echo, has_colours, say
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.shared import Interrupt
from edgecs_cli.origins import painter
from edgecs_cli.short_lines import answer_details, answer_line


def deck_of(talk: Talk[Any], ask: Reader, interrupt: Interrupt, call: Call) -> Deck:
    """A deck that shows answers on this terminal; it outlives a change of the model."""

    def answer(tokens: Callable[[], Generator[Token]]) -> None:
        try:
            _turn(deck, tokens(), interrupt)
        finally:
            ask.answered(stopped=deck.talk.chat.finish_reason == "cancelled")
        _report(deck, quiet=call.quiet, verbose=call.verbose)
        for line in deck.talk.notes():
            call.say(line)

    deck = Deck(talk, answer, ask.usual)
    return deck


def _turn(deck: Deck, tokens: Generator[Token], interrupt: Interrupt) -> None:
    """Shows an answer as it streams; Ctrl-C ends it and keeps the text so far."""
    last = ""
    interrupt.event.clear()
    try:
        with interrupt, deck.talk.during(), closing(tokens):
            for piece in filter(None, _pieces(deck, tokens)):
                echo(piece, nl=False)
                last = piece
    except EdgecsError:
        if last and not last.endswith("\n"):
            echo()
        raise
    finally:
        interrupt.event.clear()
    if deck.talk.stats.tokens and not last.endswith("\n"):
        echo()


def _pieces(deck: Deck, tokens: Iterator[Token]) -> Iterator[str]:
    colours, wrap = has_colours(sys.stdout), WordWrap(lambda: columns(sys.stdout))
    form, thinks = deck.talk.chat.conversation.form, deck.talk.thinks_at_once
    if deck.explain:
        tagged = form.think_tags(open=thinks).over(tokens)
        return painter(deck.talk.chain, colours=colours)(wrap(tagged))
    return shown(
        tokens,
        wrap,
        looks=colours and deck.markdown,
        folds=deck.folds,
        form=form,
        thinks=thinks,
    )


def _report(deck: Deck, *, quiet: bool, verbose: bool) -> None:
    """Prints notes on an answer to stderr."""
    chat, stats = deck.talk.chat, deck.talk.stats
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
        for line in answer_details(stats) if verbose else ():
            say(line, quiet=quiet)
    if chat.finish_reason == "context":
        say(
            "the context is full: use /clear to start over, /set overflow shift to "
            "drop old turns, or a larger -c",
            quiet=quiet,
        )
