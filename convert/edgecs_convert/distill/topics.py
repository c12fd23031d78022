"""Questions for generating training data, from templates and subjects.

Half of the subjects are held out from training; drafters are measured on them.
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Iterator
from importlib import resources
from typing import Literal, NamedTuple

Half = Literal["seen", "unseen"]
_NUMBERS = "sum"  # the kind whose subjects are three numbers


class Question(NamedTuple):
    """One prompt with the kind of its subject."""

    kind: str
    text: str


def half_of(subject: str) -> Half:
    """The half to which a subject belongs, the same on every machine.

    >>> half_of("a volcano"), half_of("the moon")
    ('seen', 'unseen')
    """
    digest = hashlib.sha256(subject.encode()).digest()
    return "unseen" if digest[0] % 2 else "seen"


def questions(half: Half, seed: int) -> Iterator[Question]:
    """An endless sequence of questions about one half, determined by the seed.

    >>> one = next(questions("seen", 1))
    >>> one == next(questions("seen", 1))
    True
    """
    table = _table()
    draw = random.Random(f"{half} {seed}")
    subjects = {
        kind: [subject for subject in every if half_of(subject) == half]
        for kind, every in table["subjects"].items()
    }
    kinds = list(table["templates"])
    weights = [len(table["templates"][kind]) for kind in kinds]
    while True:
        (kind,) = draw.choices(kinds, weights)
        template = draw.choice(table["templates"][kind])
        if kind == _NUMBERS:
            yield Question(kind, template.format(**_numbers(draw, half)))
            continue
        subject, other = draw.sample(subjects[kind], 2)
        yield Question(kind, template.format(subject, other=other))


def _numbers(draw: random.Random, half: Half) -> dict[str, int]:
    """Three numbers; the halves differ in the parity of their sum."""
    a, b, c = draw.randint(2, 40), draw.randint(2, 60), draw.randint(2, 99)
    return {"a": a, "b": b, "c": c + (a + b + c + (half == "seen")) % 2}


def _table() -> dict[str, dict[str, list[str]]]:
    text = resources.files(__package__).joinpath("topics.toml").read_text("utf-8")
    return tomllib.loads(text)
