"""Commands that change or show settings and statistics."""

from __future__ import annotations

import difflib
import sys
from dataclasses import fields
from typing import cast, get_args

from edgecs.chat.overflow import Overflow
from edgecs.errors import ConfigError
from edgecs.sampling.settings import Sampling
from edgecs_cli.chat.deck import Deck
from edgecs_cli.chat.talk import Spec
from edgecs_cli.chat.words import number, one_of, onoff, switch
from edgecs_cli.console import Painted, columns, echo, has_colours, say, wrapped
from edgecs_cli.origins import origins_legend
from edgecs_cli.short_lines import answer_details, answer_line

_NUMBERS = {f.name: f for f in fields(Sampling) if isinstance(f.default, int | float)}
_OWN = ("max_tokens", "overflow", "markdown", "think")


def settings() -> list[str]:
    """The names of the settings."""
    return [*_NUMBERS, *_OWN]


def change(deck: Deck, rest: str) -> None:
    """Changes a setting; without a name, shows all settings."""
    words = rest.removeprefix("parameter ").split(None, 1)
    if len(words) < 2:
        show(deck, "")
        return
    name, value = words[0].replace("-", "_"), words[1].strip()
    name = {"temp": "temperature", "predict": "max_tokens"}.get(name, name)
    if name == "max_tokens":
        found = number(name, value, whole=True)
        deck.talk.chat.max_tokens = None if found < 0 else int(found)
    elif name == "overflow":
        one_of(name, value, get_args(Overflow))
        deck.talk.chat.overflow = cast(Overflow, value)
    elif name == "markdown":
        deck.markdown = switch(name, value)
    elif name == "think":
        deck.folds = not switch(name, value)
    elif name in _NUMBERS:
        whole = isinstance(_NUMBERS[name].default, int)
        deck.talk.set_sampling(name, number(name, value, whole=whole))
    else:
        known = settings()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"there is no setting {name!r}: {hint}")
    say(f"{name} = {value}")


def show(deck: Deck, rest: str) -> None:
    """Shows the model, the settings, and the tokens so far."""
    talk, default = deck.talk, Sampling()
    say(talk.start_line())
    for line in talk.details():
        say(line)
    changed = [
        f"{name} {_plainly(getattr(talk.sampling, name))}"
        for name in _NUMBERS
        if getattr(talk.sampling, name) != getattr(default, name)
    ]
    say(f"sampling settings: {', '.join(changed) or 'greedy'}")
    chat = talk.chat
    own = {
        "max_tokens": "none" if chat.max_tokens is None else chat.max_tokens,
        "overflow": chat.overflow,
        "speculation": talk.spec,
        "explain": onoff(deck.explain),
        "stats": onoff(deck.stats),
        "markdown": onoff(deck.markdown),
        "think": onoff(not deck.folds),
    }
    say(" | ".join(f"{name}: {value}" for name, value in own.items()))
    out = sum(m.left_out for m in chat.messages)
    used, room = talk.tokens(), talk.chat.session.n_ctx
    note = f", {out} of them left out of the context" if out else ""
    say(f"{len(chat.messages)} messages{note}; {used} of {room} tokens of context")


def toggle_stats(deck: Deck, rest: str) -> None:
    """Shows statistics of the last answer; on, off: of each."""
    if rest:
        deck.stats = switch("stats", rest)
        say(f"stats: {onoff(deck.stats)}")
        return
    talk = deck.talk
    if not talk.stats.tokens:
        say("there is no answer yet with these settings")
        return
    say(answer_line(talk.stats, talk.chat.finish_reason))
    for line in answer_details(talk.stats):
        say(line)
    for line in origins_legend(talk.origins(), colours=has_colours(sys.stderr)):
        _tell(line)


def set_spec(deck: Deck, rest: str) -> None:
    """auto: draft where it pays; on: always; off: never."""
    if rest:
        one_of("spec", rest, get_args(Spec))
        deck.talk.set_spec(cast(Spec, rest))
    chain = " <- ".join(deck.talk.chain)
    say(f"speculation: {deck.talk.spec}" + (f", {chain}" if rest != "off" else ""))


def toggle_explain(deck: Deck, rest: str) -> None:
    """Shows which model wrote which part of an answer."""
    deck.explain = switch("explain", rest) if rest else not deck.explain
    say(f"explain: {onoff(deck.explain)}")
    if deck.explain and deck.talk.stats.tokens:
        origins = deck.talk.origins()
        lines = origins_legend(origins, colours=has_colours(sys.stderr))
        for line in lines[: 1 + len(origins.chain)]:
            _tell(line)


def _tell(line: str) -> None:
    """Prints a styled row of a table as it is, or wraps a sentence."""
    painted = isinstance(line, Painted)
    echo(line if painted else wrapped(line, columns(sys.stderr)), err=True)


def _plainly(value: float) -> str:
    """A number as it can be typed."""
    return str(value) if isinstance(value, int) else f"{value:g}"
