"""A bench on many machines: one result per kind of machine, from whole blocks."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError
from edgecs.fleet.host import Prepared
from edgecs.fleet.spread import Item
from edgecs.fleet.worker_target import WorkerFile
from edgecs.runtime.folders import Folders
from edgecs.runtime.recipe import Recipe
from edgecs_bench.run import fleet, throughput
from edgecs_bench.run.fleet import BenchSetup
from edgecs_bench.run.result import answers_of, by_machine, merge, read, write
from edgecs_bench.run.runner import Wanted
from edgecs_bench.suite.prompts import Prompt
from edgecs_bench.suite.suites import Suite
from tests.commands import one_line
from tests.conftest import Outcome
from tests.fleet.pools import FakePool

PROMPTS = [Prompt(f"p{i}", "a", "abc " * i) for i in range(1, 4)]


@pytest.fixture(scope="module")
def setup(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchSetup:
    wanted = Wanted(
        Suite(["own"], PROMPTS),
        ["mag:2"],
        (0.0,),
        repeats=1,
        most=8,
        tests=[throughput.Test("tg", 4, 0)],
        curve=False,
    )
    options = LoadOptions(n_ctx=256, threads=1)
    recipe = Recipe(str(tiny_gguf), options, exact="numeric")
    return BenchSetup.of(recipe, Folders(tmp_path_factory.mktemp("user")), wanted)


@pytest.fixture(scope="module")
def prepared(setup: BenchSetup) -> Iterator[Prepared]:
    with setup.opened() as opened:
        yield opened


Spread = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def spread(setup: BenchSetup, prepared: Prepared) -> Spread:
    """Runs a bench on workers in this process, which say that they are of kinds."""

    def run(
        kinds: list[str],
        journal: Path | None = None,
        before: Callable[[Any, str], None] = lambda payload, kind: None,
        used: BenchSetup = setup,
    ) -> list[dict[str, Any]]:
        def compute(payload: Any, kind: str) -> Any:
            before(payload, kind)
            value = prepared.compute(payload)
            if "machine" in value:
                return {**value, "machine": {**value["machine"], "id": kind}}
            return value

        pool = FakePool(kinds, compute, random.Random(1).randrange, losses=2)
        return fleet.run(pool, used, journal, threading.Event(), lambda text: None)

    return run


def never(payload: Any, kind: str) -> None:
    pytest.fail(f"{payload} was asked again")


def test_each_kind_of_machine_answers_all_blocks(spread: Spread, tmp_path: Path):
    results = spread(["fast", "slow", "fast"])
    assert {result["machine"]["id"] for result in results} == {"fast", "slow"}
    for result in results:
        answers = answers_of(result)
        assert sorted((a.id, a.mode) for a in answers) == sorted(
            (p.id, mode) for p in PROMPTS for mode in ("plain", "mag:2")
        )
        # The answers of a block, which are compared, are all from one worker.
        assert {(a.block, a.id) for a in answers if a.mode == "plain"} == {
            (a.block, a.id) for a in answers if a.mode == "mag:2"
        }
        assert {a.id for a in answers} == {p.id for p in PROMPTS}
        assert len(result["samples"]) == 1
        assert [test["test"] for test in result["tests"]] == ["tg4"]
    write(tmp_path / "both.json", merge(results))
    assert len(read(tmp_path / "both.json")) == 2
    text = by_machine(results, "jsonl")
    assert {json.loads(line)["machine"] for line in text.splitlines()} == {
        "fast",
        "slow",
    }
    assert by_machine(results, "md").count("## ") == 2


def test_a_bench_goes_on_where_its_journal_ends(spread: Spread, tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    asked: list[object] = []

    class Stopped(Exception):
        pass

    def stopping(payload: Any, kind: str) -> None:
        asked.append(payload)
        if len(asked) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        spread(["one"], path, before=stopping)
    kept = len(path.read_text().splitlines()) - 1
    assert kept == 2
    again: list[object] = []
    (result,) = spread(
        ["one"], path, before=lambda payload, kind: again.append(payload)
    )
    assert not [payload for payload in again if payload in asked[:2]]
    assert {a.id for a in answers_of(result)} == {p.id for p in PROMPTS}
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]]
    assert len({str(key) for key in keys}) == len(keys)
    (same,) = spread(["one"], path, before=never)
    assert same["answers"] == result["answers"]


def test_drifted_blocks_are_repeated_on_their_kind(
    spread: Spread, monkeypatch: pytest.MonkeyPatch
):
    times = itertools.count(1)
    monkeypatch.setattr(fleet, "anchor", lambda subject: next(times))
    numbers: list[int] = []

    def note(payload: Any, kind: str) -> None:
        if payload != "about":
            numbers.append(payload[1])

    (result,) = spread(["one"], before=note)
    assert sorted({*numbers}) == [*range(6)]  # 1 ms before and 2 ms after a block, ...
    assert {a.block for a in answers_of(result)} == {3, 4, 5}


def test_a_journal_of_other_files_is_refused(
    setup: BenchSetup, spread: Spread, tmp_path: Path
):
    path = tmp_path / "journal.jsonl"
    spread(["one"], path)
    (file,) = setup.files
    other = WorkerFile(file.reference, "0" * 64)
    changed = BenchSetup(setup.recipe, (other,), setup.wanted)
    with pytest.raises(click.UsageError, match=r"other options \(files\)"):
        spread(["one"], path, used=changed)
    with pytest.raises(ModelError, match="is another file"), changed.opened():
        pass


def test_prompts_that_do_not_fit_anywhere_are_said(setup: BenchSetup, spread: Spread):
    long = Suite(["own"], [Prompt("p", "a", "abc " * 300)])
    changed = replace(setup, wanted=replace(setup.wanted, suite=long))
    with pytest.raises(click.UsageError, match="no prompt fits into the context"):
        spread(["one"], used=changed)


def test_what_is_not_spread_is_refused(edgecs: Callable[..., Outcome], tiny_gguf: Path):
    fixed = ("bench", "-m", tiny_gguf, "--ray", "local")
    alone = (("--peers", "all"), ("--profile",), ("--time-budget", 5), ("--memory",))
    for option in alone:
        one_line(edgecs(*fixed, *option), 2, f"{option[0]} works without --ray only")
    for address in ("", "x", "host", "host:0", "host:99999", "http://a:1", "ray://"):
        one_line(edgecs(*fixed[:-1], address), 2, "--ray must be auto, local")


def test_the_next_item_depends_on_the_journal_alone(setup: BenchSetup):
    kind = fleet._Kind("k", fleet.blocks_of(setup.wanted), fleet.Journal(None, {}))
    given: list[Item] = []
    while item := kind.take():
        given.append(item)
    assert len(given) == 1 + len(PROMPTS)
    assert kind.take() is None
