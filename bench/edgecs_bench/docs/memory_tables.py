"""Tables of replays with stores of texts, from the output of `edgecs_bench.memory`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgecs_bench.text_tables import markdown

_LEVELS = {
    "max_gram": "Max-Gram",
    "session": "+ session",
    "user": "+ user's store",
    "recycling": "+ recycling",
    "phrases": "+ phrases",
}


def speeds_by_level(file: Path) -> str:
    """Speeds over plain decoding: a row for each curve, chains first."""
    rows = []
    for drafts, result in _results(file):
        for curve, row in result["curves"].items():
            rows.append([drafts, curve, *_speeds(row["levels"])])
    return markdown([["answers, drafts", "curve", *_LEVELS.values()], *rows])


def write_back(file: Path) -> str:
    """The gain of write-back by curve, in both halves, and the rows that it reads."""
    found = json.loads(file.read_text(encoding="utf-8"))["curves"]
    rows = [
        [name, f"{row['tuning'] - 1:+.1%}", f"{row['reported'] - 1:+.1%}", row["rows"]]
        for name, row in found.items()
    ]
    return markdown([["curve", "tuning half", "reported half", "rows read"], *rows])


def selection(file: Path) -> str:
    """How often copies are right by the opinion of a neural drafter."""
    found = json.loads(file.read_text(encoding="utf-8"))["cases"]
    rows = [
        [
            row["drafter"],
            row["case"],
            row["tokens"],
            f"{row['predicted']:.2f}",
            f"{row['right']:.2f}",
        ]
        for row in found
    ]
    heads = ["drafter", "token of the copy", "tokens", "predicted", "right"]
    return markdown([heads, *rows])


def categories(file: Path, curve: str) -> str:
    """The speeds of each category on one curve, and tokens per round."""
    rows = []
    for drafts, result in _results(file):
        levels = result["curves"][curve]["levels"]
        for name in levels["max_gram"]["categories"]:
            of = {level: levels[level]["categories"][name] for level in _LEVELS}
            ends = of["max_gram"], of["phrases"]
            tokens = " to ".join(f"{end['tokens_per_round']:.2f}" for end in ends)
            rows.append([drafts, name, *_speeds(of), tokens])
    return markdown(
        [["answers, drafts", "category", *_LEVELS.values(), "tokens per round"], *rows]
    )


def turns(file: Path) -> str:
    """What is faster the second time: a row for each curve."""
    head = [
        "answers, drafts",
        "curve",
        "second turn over first",
        "with Max-Gram alone",
        "second turn, by stores",
        "cleared, by stores",
        "eleventh session, by stores",
        "worst category",
    ]
    rows = []
    for drafts, result in _results(file):
        for curve, row in result["curves"].items():
            second, by = row["second_turn_over_first"], row["turns_over_maxgram"]
            worst = row["categories_over_maxgram"]
            name = min(worst, key=lambda name: float(worst[name]))
            values = [
                second["phrases"]["both"],
                second["max_gram"]["both"],
                by["second"],
                by["cleared"],
                row["eleventh_session_over_maxgram"]["phrases"],
            ]
            cells = [f"{value:.2f}" for value in values]
            rows.append([drafts, curve, *cells, f"{worst[name]:.3f} ({name})"])
    return markdown([head, *rows])


def _results(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        drafts = "trees" if result["leaves"] > 1 else "chains"
        targets = [name.partition("-")[0] for name in result["targets"]]
        yield f"{' and '.join(targets)}, {drafts}", result


def _speeds(levels: dict[str, Any]) -> list[str]:
    return [f"{levels[level]['over_plain']:.2f}" for level in _LEVELS]
