"""What the stores of texts add, from replayed answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgecs_bench.memory.replay import (
    LEVELS,
    Played,
    over_plain,
    tokens_per_round,
)

TURNS, AGAIN = ("edit", "document"), "again"
"""Categories with second turns on one text, and with questions in many sessions."""
LAST_SESSION = 10  # the eleventh

ByLevel = Mapping[str, Sequence[Played]]
_Which = Callable[[Played], bool]


def summary(played: ByLevel) -> dict[str, Any]:
    """The speeds of one curve: by level and category, and those of turns and sessions.

    Keys of which there are no answers are missing.
    """
    first, last = LEVELS[0], LEVELS[-1]
    return {
        "levels": {level: _speeds(found) for level, found in played.items()},
        "second_turn_over_first": {
            level: _over(found, _turn(0, 1), found, _turn(0, 0))
            for level, found in played.items()
        },
        "cleared_over_first": {
            level: _over(found, _turn(1, 0), found, _turn(0, 0))
            for level, found in played.items()
        },
        "turns_over_maxgram": {
            name: _ratio(played[last], played[first], which)
            for name, which in _TURNS.items()
        },
        "eleventh_session_over_maxgram": {
            level: _ratio(played[level], played[first], _eleventh)
            for level in LEVELS[1:]
        },
        "by_session_over_maxgram": [
            _ratio(played[last], played[first], _session(number))
            for number in range(LAST_SESSION + 1)
        ],
        "categories_over_maxgram": {
            name: _ratio(played[last], played[first], _category(name))
            for name in _categories(played[first])
        },
        "recycling": _ratio(played["recycling"], played["user"], lambda one: True),
    }


def _speeds(played: Sequence[Played]) -> dict[str, Any]:
    return {
        "over_plain": _rounded(over_plain(played)),
        "tokens_per_round": _rounded(tokens_per_round(played)),
        "categories": {
            name: {
                "over_plain": _rounded(over_plain(of)),
                "tokens_per_round": _rounded(tokens_per_round(of)),
            }
            for name in _categories(played)
            if (of := [one for one in played if one.answer.category == name])
        },
    }


def _over(
    played: Sequence[Played], which: _Which, others: Sequence[Played], those: _Which
) -> dict[str, float]:
    """The speeds of some answers over those of others, by category and together."""
    found = {}
    for name in (*TURNS, "both"):
        names = TURNS if name == "both" else (name,)
        some = [p for p in played if p.answer.category in names and which(p)]
        rest = [p for p in others if p.answer.category in names and those(p)]
        if some and rest:
            found[name] = _rounded(over_plain(some) / over_plain(rest))
    return found


def _ratio(
    played: Sequence[Played], others: Sequence[Played], which: _Which
) -> float | None:
    """How much faster the same answers are with other sources; None: there are none."""
    some, same = [*filter(which, played)], [*filter(which, others)]
    if not some:
        return None
    return _rounded(sum(one.ms for one in same) / sum(one.ms for one in some))


def _turn(conversation: int, turn: int) -> _Which:
    return lambda one: one.answer.place[1:] == (conversation, turn)


def _session(number: int) -> _Which:
    def which(one: Played) -> bool:
        return one.answer.category == AGAIN and one.answer.place.session == number

    return which


def _on_texts(which: _Which) -> _Which:
    return lambda one: one.answer.category in TURNS and which(one)


# "cleared": the same text is asked about again, in a new conversation.
_TURNS = {
    "first": _on_texts(_turn(0, 0)),
    "second": _on_texts(_turn(0, 1)),
    "cleared": _on_texts(_turn(1, 0)),
}
_eleventh = _session(LAST_SESSION)


def _category(name: str) -> _Which:
    return lambda one: one.answer.category == name


def _categories(played: Sequence[Played]) -> list[str]:
    return [*dict.fromkeys(one.answer.category for one in played)]


def _rounded(value: float) -> float:
    return round(value, 4)
