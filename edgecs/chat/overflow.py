"""What to leave out if a conversation no longer fits its context.

Messages that are left out stay in the conversation but not in the prompt; the caller
gets their number. KV cells are never shifted: the new prompt is computed again, so that
an answer depends only on its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from edgecs.chat.conversation import Message, Prompt, Turns
from edgecs.errors import ContextFull

Overflow = Literal["stop", "shift", "truncate-middle"]
"""stop: raise; shift: leave out the oldest turns; truncate-middle: keep the first one,
and shorten a message that is too long by itself."""

_FILLED = 0.75  # of the context at most, once something is left out
_MARK = "\n[... {} characters left out ...]\n"

Tell = Callable[[str], None]


def fit(
    talk: Turns,
    room: int,
    policy: Overflow,
    partial: Sequence[int] = (),
    *,
    full: bool = False,
) -> tuple[Prompt, int]:
    """A prompt of `room` tokens at most, and how many messages were left out for it.

    partial: an unfinished answer. full: leave something out even if it fits. Raises
    ContextFull if the policy cannot make room; then nothing was left out.
    """
    prompt = talk.prompt(partial)
    if prompt.tokens.size <= room and not full:
        return prompt, 0
    before = list(talk.messages)
    try:
        if policy != "stop":
            wanted = max(1, int(room * _FILLED))
            _leave_out(talk, wanted, policy, partial)
            if policy == "truncate-middle":
                _shorten(talk, wanted, partial)
        prompt = talk.prompt(partial)
        gone = sum(m.left_out for m in talk.messages) - sum(m.left_out for m in before)
        changed = talk.messages != before
        if prompt.tokens.size > room or (full and not changed):
            raise ContextFull(_why(prompt.tokens.size, room, policy))
    except BaseException:
        talk.messages[:] = before
        raise
    return prompt, gone


def _leave_out(
    talk: Turns, wanted: int, policy: Overflow, partial: Sequence[int]
) -> None:
    """Leaves turns out, the oldest first, until the rest has `wanted` tokens."""
    turns = _turns(talk.messages)
    old = turns[:-1]  # the last one is the one to answer
    if policy == "truncate-middle" and len(old) > 1:
        old = [*old[1:], old[0]]  # the first turn goes last
    for turn in old:
        if talk.prompt(partial).tokens.size <= wanted:
            return
        talk.leave_out(turn)


def _shorten(talk: Turns, wanted: int, partial: Sequence[int]) -> None:
    """Cuts the middle out of the last user message until `wanted` tokens remain."""
    at = max(i for i, m in enumerate(talk.messages) if m.role == "user")
    content = talk.messages[at].content
    kept = len(content)
    while kept > 1:
        size = talk.prompt(partial).tokens.size
        if size <= wanted:
            return
        kept = min(kept - 1, int(kept * max(0.5, 0.95 * wanted / size)))
        half = kept // 2
        middle = _MARK.format(len(content) - 2 * half)
        text = content[:half] + middle + content[len(content) - half :]
        talk.messages[at] = replace(talk.messages[at], shortened=text)


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Places of messages in the prompt, by turn; a system message is in none."""
    turns: list[list[int]] = []
    for i, message in enumerate(messages):
        if message.left_out or message.role == "system":
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(i)
    return turns


def _why(size: int, room: int, policy: Overflow) -> str:
    if policy == "stop":
        return (
            f"the conversation has {size} tokens but the context holds {room}: start "
            "over, give a larger context (-c), or drop old turns (--overflow shift)"
        )
    return (
        f"the last message alone has {size} tokens but the context holds {room}: "
        "shorten it or give a larger context (-c)"
    )
