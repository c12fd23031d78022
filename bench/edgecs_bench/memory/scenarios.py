"""Conversations of one user who comes back to the same texts and questions.

`data/memory/scenarios.jsonl` has one scenario a line:

    {"category": NAME, "name": NAME, "tuning": true|false, "most": tokens of an answer,
     "sessions": [[[question, ...], ...], ...]}

A session is a run of the program and consists of conversations, as between two
`/clear`; a conversation consists of the user's turns. `<<NAME>>` in a question stands
for `data/memory/texts/NAME.txt`. All texts were written for this purpose. Half of the
scenarios of each category are for tuning; results are those of the other half.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from edgecs.text.detokenizer import Tokenizer

FOLDER = Path(__file__).parents[1] / "data" / "memory"
_TEXT = re.compile(r"<<(\w+)>>")


class Place(NamedTuple):
    """Where an answer belongs in its scenario; all numbers begin at 0."""

    session: int
    conversation: int
    turn: int


class Scenario(NamedTuple):
    """What one user asks about one thing: [session][conversation][turn]."""

    category: str
    name: str
    tuning: bool
    most: int  # tokens of an answer
    sessions: list[list[list[str]]]

    def conversations(self) -> Iterator[tuple[int, int, list[str]]]:
        """Session, conversation and the questions, in the order of time."""
        for s, conversations in enumerate(self.sessions):
            for c, questions in enumerate(conversations):
                yield s, c, questions


def read_scenarios(folder: Path = FOLDER) -> list[Scenario]:
    """The scenarios of the repository, with their texts."""

    def text(found: re.Match[str]) -> str:
        return (folder / "texts" / f"{found[1]}.txt").read_text(encoding="utf-8")

    def filled(questions: list[str]) -> list[str]:
        return [_TEXT.sub(text, question) for question in questions]

    scenarios = []
    file = folder / "scenarios.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        sessions = [[filled(one) for one in session] for session in fields["sessions"]]
        scenarios.append(Scenario(**{**fields, "sessions": sessions}))
    return scenarios


def chosen(scenarios: Sequence[Scenario], names: Sequence[str]) -> list[Scenario]:
    """The scenarios of some names, in their order; of none, all of them.

    Raises click.UsageError for a name that is not known.
    """
    known = {scenario.name: scenario for scenario in scenarios}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(
            f"{unknown[0]} is not a scenario: give one of {', '.join(known)}"
        )
    return [known[name] for name in names or known]


def answer_text(vocabulary: Tokenizer, output: Sequence[int]) -> str:
    """The text of an answer, without the control token that ends it."""
    pieces = [vocabulary.piece(i) for i in output if i not in vocabulary.ends]
    return b"".join(pieces).decode("utf-8", "replace")
