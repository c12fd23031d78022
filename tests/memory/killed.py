"""Kills a process that writes to a store, again and again, and looks what is there.

    python -m tests.memory.killed FOLDER KILLS SEED

Each child adds texts and recycled rows, replaces phrases, and says which texts and rows
are stored, until it is killed with SIGKILL. Then the store is opened: it must have all
of these texts, whole, and find them, and all of these rows. One line of JSON at the
end: kills, texts, and what was wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import numpy as np

from edgecs.memory import index
from edgecs.memory.model_files import Identity
from edgecs.memory.phrases import open_phrases, write_phrases
from edgecs.memory.recycled import KeptTable
from edgecs.memory.store import UserStore

_TOKENIZER = "ab" * 32
_VOCABULARY = 50_000
_MODEL = Identity("m", "ef" * 16, _TOKENIZER, _VOCABULARY)


def text_of(number: int) -> tuple[str, np.ndarray]:
    """A text that occurs once, and its tokens."""
    random = np.random.default_rng(number)
    tokens = random.integers(0, _VOCABULARY, 40 + number % 90).astype(np.int32)
    return f"text {number} " + "x" * (number % 5000), tokens


def _write(folder: Path, first: int, pipe: int) -> None:
    table = KeptTable(folder, _MODEL, writes=True)
    with UserStore(folder, _TOKENIZER, _VOCABULARY) as store:
        number = first
        while True:
            text, tokens = text_of(number)
            store.add("answer", "m", text, tokens)
            table.table.learn([number], [1, number])
            table.save()
            if not number % 5:
                write_phrases(folder, _MODEL, [tokens.tolist()])
            os.write(pipe, number.to_bytes(8, "little"))
            number += 1


def _killed(folder: Path, first: int, seconds: float) -> int:
    """The number after the last text that a child said it has stored."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        try:
            _write(folder, first, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    told = os.read(ours, 8)  # it has begun
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(ours, 1 << 16):
        told = data[-8:]
    os.close(ours)
    return int.from_bytes(told, "little") + 1


def _wrong(folder: Path, stored: int, told: set[int]) -> tuple[int, list[str]]:
    """How many texts are there, and what is wrong with them.

    told: whose rows a child said it has stored.
    """
    problems = []
    with UserStore(folder, _TOKENIZER, _VOCABULARY) as store:
        known = store.documents.all()[::-1]
        if not stored <= len(known) <= stored + 1:
            problems.append(f"{len(known)} texts, {stored} were stored")
        for number in range(max(0, len(known) - 40), len(known)):
            text, tokens = text_of(number)
            if store.documents.text(known[number].id) != text:
                problems.append(f"text {number} is another one")
            match = store.match(tokens[:20].tolist(), 5)
            if match is None or match.tokens != tokens[20:25].tolist():
                problems.append(f"text {number} is not found")
        rows = KeptTable(folder, _MODEL, writes=True).table.after_one
        if gone := told - {*rows}:
            problems.append(f"rows {sorted(gone)} are gone")
        phrases = open_phrases(folder, _MODEL)
        said = (text_of(n)[1][:9].tolist() for n in range(0, len(known) + 1, 5))
        if not (phrases and any(phrases.match(end, 1) for end in said)):
            problems.append("the phrases are gone")
        files = {*(folder / "models").glob(".*")}
        files |= {*(folder / "index").glob("*")}
        used = {one.path for one in store._index.segments}
        if files - used:
            problems.append(f"files are left: {sorted(p.name for p in files - used)}")
    return len(known), problems


def main(name: str, kills: int, seed: str) -> None:
    """Kills so often."""
    folder, random = Path(name), Random(seed)
    index._IN_FILE = 1000  # files are written and merged all the time
    stored, told, problems = 0, set[int](), list[str]()
    for _ in range(kills):
        after = _killed(folder, stored, random.expovariate(50))
        told |= {*range(stored, after)}
        stored, wrong = _wrong(folder, after, told)
        problems += wrong
    print(json.dumps({"kills": kills, "texts": stored, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
