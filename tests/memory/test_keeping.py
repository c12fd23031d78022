"""Answers of sessions on their way into a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecs.errors import ConfigError
from edgecs.memory import keeping
from edgecs.memory.consent import decide, decided
from edgecs.memory.keeping import LEAD, Memory, Wanted
from edgecs.memory.store import UserStore
from edgecs.session.session import Session
from edgecs.testing.fakes import Endless, TableModel

TOKENIZER = "ab" * 32


def remembering(folder: Path, told: list[str] | None = None, **more) -> Memory:
    return Memory(
        UserStore(folder, TOKENIZER, 500),
        Wanted(folder, **more),
        source="m",
        text_of=lambda tokens: " ".join(map(str, tokens.tolist())),
        tell=[].append if told is None else told.append,
    )


def texts(folder: Path) -> list[str]:
    with UserStore(folder, TOKENIZER, 500) as store:
        return [store.documents.text(one.id) for one in store.documents.all()]


def test_an_answer_is_stored_with_the_end_of_its_prompt(tmp_path):
    with remembering(tmp_path) as memory:
        tokens = np.arange(100, 400, dtype=np.int32)
        memory.keep(tokens, 280)
    kept = [*range(100 + 280 - LEAD, 400)]
    assert texts(tmp_path) == [" ".join(map(str, kept))]
    with UserStore(tmp_path, TOKENIZER, 500) as store:
        assert store.match([378, 379], 3).tokens == [380, 381, 382]


def test_short_answers_are_not_stored(tmp_path):
    with remembering(tmp_path) as memory:
        memory.keep(np.arange(20, dtype=np.int32), 13)
        memory.keep(np.arange(20, dtype=np.int32), 20)
    assert texts(tmp_path) == []


@pytest.mark.parametrize("more", [{"keeps": False}, {"allowed": lambda: False}])
def test_nothing_is_stored_that_is_not_wanted(tmp_path, more):
    with remembering(tmp_path, **more) as memory:
        memory.keep(np.arange(50, dtype=np.int32), 5)
    assert texts(tmp_path) == []


def test_a_failed_write_is_told_once_and_ends_no_answer(tmp_path, monkeypatch):
    told = list[str]()

    def full(*_):
        raise ConfigError("the disk is full: make room")

    with remembering(tmp_path, told) as memory:
        monkeypatch.setattr(memory.store, "add", full)
        for n in range(5):
            memory.keep(np.arange(n, 50, dtype=np.int32), 5)
    assert told == ["answers are not kept any more: the disk is full: make room"]


def test_answers_that_come_too_fast_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "_WAITING", 2)
    with remembering(tmp_path) as memory, memory.store._lock:  # the writer waits
        for n in range(40):
            memory.keep(np.arange(n, 60, dtype=np.int32), n)
    assert 2 <= len(texts(tmp_path)) <= 3


class Noted:
    """A memory that notes what it is given."""

    def __init__(self) -> None:
        self.kept = list[tuple[list[int], int]]()

    def keep(self, tokens, prompt):
        self.kept.append((tokens.tolist(), prompt))


def test_a_session_gives_every_answer_once_and_no_private_one(tmp_path):
    noted, model = Noted(), TableModel(8)
    with Session(model, Endless(), memory=noted) as session:
        list(session.generate([3], max_tokens=4))
        stream = session.generate([5, 6], max_tokens=4)
        next(stream)
        next(stream)
        session.stop()
        answer = session.begin([2], max_tokens=2, memory=False)
        session.ended(answer, "cancelled")
        list(session.generate([1], max_tokens=1))
    assert noted.kept == [
        ([3, *model.greedy([3], 4)], 1),
        ([5, 6, *model.greedy([5, 6], 2)], 2),
        ([1, *model.greedy([1], 1)], 1),
    ]


def test_a_decision_is_read_again_and_what_is_damaged_is_none(tmp_path):
    folder = tmp_path / "memory"
    assert decided(folder) is None
    for wanted in (True, False):
        decide(folder, wanted)
        assert decided(folder) is wanted
    for text in ("", "{", "[]", '{"memory": "on"}', "[" * 100_000, "\xff"):
        (folder / "consent.json").write_bytes(text.encode("latin-1"))
        assert decided(folder) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        decide(tmp_path / "file", True)
