"""Real runs of scenarios with memory off and on, interleaved with plain decoding.

    python -m edgecs_bench.memory.real -m TARGET.gguf -o FILE.json

Every question is answered three times, in an order that rotates: without drafts, with
the planner alone, and with the planner and all stores: the texts of the session, and a
user's store in a temporary folder, which is empty when a scenario begins. Each way has
cells of its own. All ways get the same prompts: the earlier turns have the answers of
plain decoding. The profile is measured in a temporary folder too. The output is written
after each scenario, and a run that was interrupted goes on after the last one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.engines.load_options import LoadOptions
from edgecs.memory.keeping import Wanted
from edgecs.runtime.builder import session_of
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.remembering import open_memory
from edgecs.runtime.target import open_target
from edgecs.session.session import Session
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.memory.scenarios import (
    Place,
    Scenario,
    answer_text,
    chosen,
    read_scenarios,
)
from edgecs_bench.report.summary import finish, table

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
        memory, _ = open_memory(Wanted(folder), loaded, click.echo)
        if memory is None:
            raise click.UsageError(f"there can be no store in {folder}")
        closing.enter_context(memory)
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


def _stored(output: Path, settings: dict[str, Any]) -> list[Row]:
    if not output.exists():
        return []
    found = json.loads(output.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise click.UsageError(f"{output} has other settings: give another file")
    return list(found["rows"])


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--scenario", "names", multiple=True, default=USUAL, show_default=True)
@click.option("-c", "--ctx-size", "n_ctx", default=2048, show_default=True)
@click.option("-t", "--threads", default=0, show_default="one per core")
@click.option("-n", "--predict", "most", default=0, show_default="the scenario's")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    model: Path,
    names: tuple[str, ...],
    n_ctx: int,
    threads: int,
    most: int,
    output: Path,
) -> None:
    """Run scenarios with memory off and on."""
    wanted = chosen(read_scenarios(), names)
    settings = {"model": model.stem, "ctx": n_ctx, "threads": threads, "most": most}
    rows = _stored(output, settings)
    done = {row["name"] for row in rows}
    options = LoadOptions(n_ctx=n_ctx, threads=threads, sequences=len(WAYS))
    recipe = Recipe(model=str(model), drafts=(), options=options)
    with tempfile.TemporaryDirectory() as folder:
        folders, profiles = Folders(Path(folder)), Profiles(Path(folder))
        with open_target(recipe, model, folders, profiles=profiles) as opened:
            loaded, speculation = opened
            if speculation is None:
                raise click.UsageError(f"{model} cannot check drafts")
            for scenario in wanted:
                if scenario.name in done:
                    continue
                if most:
                    scenario = scenario._replace(most=most)
                rows += run(scenario, recipe, loaded, speculation)
                _write(output, {"settings": settings, "rows": rows})
                click.echo(f"{scenario.name}: done", err=True)
    found = speeds(rows)
    table(
        [
            {"answers": kind, **{way: of[way]["over_plain"] for way in WAYS[1:]}}
            for kind, of in found.items()
        ]
    )
    finish({**settings, "scenarios": list(names), "speeds": found})


def _write(path: Path, found: dict[str, Any]) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(found) + "\n", encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()
    sys.exit(0)
