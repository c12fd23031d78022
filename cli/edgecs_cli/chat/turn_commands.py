"""Commands about the turns of a conversation and its model."""

from __future__ import annotations

import click

from edgecs.errors import ConfigError
from edgecs_cli.chat.deck import Deck, Leave
from edgecs_cli.chat.words import short
from edgecs_cli.console import say


def leave(deck: Deck, rest: str) -> None:
    """Leaves the chat."""
    raise Leave


def switch_model(deck: Deck, rest: str) -> None:
    """Switches to another model and keeps the conversation."""
    if not rest:
        say(deck.talk.start_line())
        return
    deck.talk.find(rest)  # a wrong name fails before this model is unloaded
    raise Leave(rest)


def clear(deck: Deck, rest: str) -> None:
    """Clears the conversation but not the system message."""
    messages = deck.talk.chat.conversation.messages
    messages[:] = [m for m in messages if m.role == "system"]
    deck.attached.clear()
    say("the conversation was cleared")


def regenerate(deck: Deck, rest: str) -> None:
    """Regenerates the last answer."""
    if deck.talk.sampling.is_greedy:
        say("greedy: the answer will be the same (/set temperature 0.8 for another)")
    deck.answer(deck.talk.again)


def undo(deck: Deck, rest: str) -> None:
    """Removes the last message and its answer."""
    gone = deck.talk.chat.undo()
    if not gone:
        raise ConfigError("there is nothing to undo: no message was sent yet")
    say(f"removed: {short(gone[0].content)}")


def edit(deck: Deck, rest: str) -> None:
    """Edits the last message in $EDITOR and sends it again."""
    asked = [m.content for m in deck.talk.chat.messages if m.role == "user"]
    try:
        with deck.lent():
            text = click.edit(asked[-1] if asked else "", extension=".md")
    except click.ClickException as error:
        raise ConfigError(
            f"no editor could be started ({error.format_message()}): set EDITOR"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the edited text is not UTF-8 (byte {error.start}): edit it again"
        ) from error
    if text is None or not text.strip():
        say("nothing was changed")
        return
    deck.talk.chat.undo()
    deck.answer(lambda: deck.talk.ask(text.rstrip("\n")))


def system(deck: Deck, rest: str) -> None:
    """Shows or changes the system message; none: removes it."""
    talk = deck.talk.chat.conversation
    if rest:
        talk.set_system(None if rest == "none" else rest)
    first = talk.messages[0] if talk.messages else None
    has = first is not None and first.role == "system"
    say(f"system: {first.content}" if first and has else "system: none")
