"""Real runs of scenarios with memory off and on, interleaved with plain decoding.

    edgecs bench --memory -m TARGET.gguf

Every question is answered three times, in an order that rotates: without drafts, with
the planner alone, and with the planner and all stores: the texts of the session, and a
user's store in a temporary folder, which is empty when a scenario begins. Each way has
cells of its own. All ways get the same prompts: the earlier turns have the answers of
plain decoding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.memory.keeping import Wanted
from edgecs.runtime.builder import session_of
from edgecs.runtime.loader import Loaded
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.remembering import open_memory
from edgecs.session.session import Session
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.memory.scenarios import Place, Scenario, answer_text
from edgecs_bench.run.journal import Journal

FORMAT = "edgecs-memory-bench/1"
WAYS = ("plain", "off", "on")
# One of each category that is reported, except the loop of an agent.
USUAL = ("tickets", "minutes", "query")

Row = dict[str, Any]
"""One answer: scenario, place, way, tokens, rounds and seconds."""


@contextmanager
def sessions(
    recipe: Recipe, loaded: Loaded, speculation: SpeculationProfile, folder: Path
) -> Iterator[list[Session]]:
    """A session for each way, as at the start of the program."""
    speculation.recent = RecentTexts()
    with ExitStack() as closing:
        found = open_memory(Wanted(folder), loaded, click.echo)
        memory = found.memory
        if memory is None:
            raise click.UsageError(f"there can be no store in {folder}")
        closing.enter_context(memory)
        found.give(speculation)
        off = replace(recipe, recent=False)
        opened = [
            session_of(off, loaded, (), None, sequence=0),
            session_of(off, loaded, (), speculation, sequence=1),
            session_of(recipe, loaded, (), speculation, sequence=2, memory=memory),
        ]
        for session in opened:
            closing.enter_context(session)
        yield opened


def run(
    scenario: Scenario, recipe: Recipe, loaded: Loaded, speculation: SpeculationProfile
) -> list[Row]:
    """All answers of a scenario."""
    template, rows = ChatTemplate(loaded.model.vocabulary), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for number, conversations in enumerate(scenario.sessions):
            with sessions(recipe, loaded, speculation, Path(folder)) as ways:
                for c, questions in enumerate(conversations):
                    messages: list[dict[str, str]] = []
                    for turn, question in enumerate(questions):
                        messages.append({"role": "user", "content": question})
                        ids = template.encode(messages).tolist()
                        place = Place(number, c, turn)
                        answered = _answers(ways, ids, scenario, place, len(rows))
                        rows += answered
                        said = answered[0]["output"]
                        text = answer_text(loaded.model.vocabulary, said)
                        messages.append({"role": "assistant", "content": text})
    return rows


def _answers(
    ways: Sequence[Session],
    ids: list[int],
    scenario: Scenario,
    place: Place,
    turned: int,
) -> list[Row]:
    """The answer of every way, plain decoding's first; they take turns to be first."""
    rows = dict[str, Row]()
    for i in range(len(WAYS)):
        at = (i + turned // len(WAYS)) % len(WAYS)
        session = ways[at]
        said = [t.id for t in session.generate(ids, max_tokens=scenario.most)]
        stats = session.stats
        rows[WAYS[at]] = {
            "category": scenario.category,
            "name": scenario.name,
            **place._asdict(),
            "way": WAYS[at],
            "output": said,
            "rounds": stats.rounds,
            "prompt_seconds": round(stats.prompt_seconds, 6),
            "decode_seconds": round(stats.decode_seconds, 6),
        }
    return [rows[way] for way in WAYS]


def kinds_of(row: Row) -> Iterator[str]:
    """What an answer counts as."""
    yield row["category"]
    if row["category"] == "again":
        if row["session"] == 10:
            yield "eleventh session"
    elif row["category"] in ("edit", "document"):
        if row["conversation"]:
            yield "same text, cleared"
        else:
            yield "second turn" if row["turn"] else "first turn"


def speeds(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Speed over plain decoding, tokens per round and identical answers, by kind."""
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kind for row in rows for kind in kinds_of(row)):
        of = [row for row in rows if kind in kinds_of(row)]
        plain = [row for row in of if row["way"] == "plain"]
        for way in WAYS[1:]:
            these = [row for row in of if row["way"] == way]
            tokens = sum(len(row["output"]) - 1 for row in these)
            same = sum(
                a["output"] == b["output"] for a, b in zip(plain, these, strict=True)
            )
            found.setdefault(kind, {})[way] = {
                "over_plain": round(_pace(these) / _pace(plain), 4),
                "tokens_per_round": round(
                    tokens / max(1, sum(row["rounds"] for row in these)), 3
                ),
                "identical": f"{same} of {len(these)}",
            }
    return found


def _pace(rows: Sequence[Row]) -> float:
    """Tokens after the first ones, in each second."""
    tokens = sum(len(row["output"]) - 1 for row in rows)
    seconds: float = sum(row["decode_seconds"] for row in rows)
    return max(1, tokens) / max(1e-9, seconds)


def measured(
    scenarios: Sequence[Scenario],
    recipe: Recipe,
    loaded: Loaded,
    speculation: SpeculationProfile,
    journal: Journal,
    tell: Callable[[str], None],
) -> list[Row]:
    """All answers of several scenarios; those that the journal has are not repeated."""
    rows = list[Row]()
    for scenario in scenarios:
        if (done := journal.done.get(str([scenario.name]))) is None:
            done = {"rows": run(scenario, recipe, loaded, speculation)}
            journal.add([scenario.name], done)
        rows += done["rows"]
        tell(f"{scenario.name}: {len(done['rows']) // len(WAYS)} answers")
    return rows


def lines_of(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table of `speeds`."""
    return [
        {
            "answers": kind,
            **{f"memory {way}": of[way]["over_plain"] for way in WAYS[1:]},
            **{f"tokens, {way}": of[way]["tokens_per_round"] for way in WAYS[1:]},
            "identical": of["on"]["identical"],
        }
        for kind, of in found.items()
    ]
