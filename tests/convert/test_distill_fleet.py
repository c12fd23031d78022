"""Answers that others write: the same data set, whoever wrote which and when."""

from __future__ import annotations

import functools
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines.hidden_states import States
from edgecs.errors import DistillError, ModelError
from edgecs.fleet.host import Setup
from edgecs.fleet.spread import Item, results
from edgecs.fleet.worker_target import WorkerTarget
from edgecs.runtime.loader import Loaded
from edgecs.testing.fakes import TableModel
from edgecs_bench.run.result import read
from edgecs_convert.distill.data import Answered, Answerer, Wanted, write_samples
from edgecs_convert.distill.fleet_work import (
    AnswerSetup,
    checked,
    packed,
    part_items,
    unpacked,
)
from edgecs_convert.distill.measure import (
    Counts,
    Opened,
    counts,
    measured_samples,
    worth,
)
from edgecs_convert.distill.parallel_decode import Task
from edgecs_convert.distill.samples import (
    Sample,
    last_needed,
    read_samples,
    sizes,
    write_shard,
)
from tests.convert.samples import Edgecs, needs_torch, quiet, sample, wanted
from tests.fleet.pools import FakePool


def of_target(path: Path, loaded: Loaded) -> WorkerTarget:
    return WorkerTarget.of(str(path), path, loaded.options)


@contextmanager
def fake_fleet(
    setup: AnswerSetup, workers: int, seed: int, losses: int = 0
) -> Iterator[Answerer]:
    """Workers in this process, in an order and with losses that follow from a seed."""
    draw = random.Random(seed)
    with setup.opened() as prepared:
        pool = FakePool(
            [""] * workers,
            lambda part, kind: prepared.compute(part),
            draw.randrange,
            losses,
        )

        def answer(tasks: Iterator[Task]) -> Iterator[Sample]:
            parts = part_items(tasks, 3)
            take = lambda kind: next(parts, None)  # noqa: E731
            for item, found in results(pool, take, threading.Event()):
                yield from checked(item, found)

        yield answer


def content(folder: Path, tokens: int) -> list[tuple[object, ...]]:
    return [
        (s.number, s.temperature, s.tokens.tolist(), s.start, s.top_ids.tolist())
        for s in read_samples(folder, tokens)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_workers_write_the_data_set_of_one_process(
    tiny: Loaded, tiny_gguf: Path, tmp_path: Path, seed: int
):
    plan = wanted(400)
    target = of_target(tiny_gguf, tiny)
    folders = {name: tmp_path / name for name in ("alone", "apart")}
    for name, folder in folders.items():
        write_samples(
            tiny.model,
            folder,
            plan,
            threading.Event(),
            quiet,
            threads=1,
            opened=None
            if name == "alone"
            else lambda w: fake_fleet(AnswerSetup(target, w), 3, seed, losses=4),
        )
    alone, apart = (content(folder, 400) for folder in folders.values())
    assert alone == apart
    assert [number for number, *_ in alone] == sorted({number for number, *_ in alone})
    every = [s.number for s in read_samples(folders["apart"])]
    assert len(every) == len({*every})


def test_the_driver_may_be_stopped_at_any_time(
    tiny: Loaded, tiny_gguf: Path, tmp_path: Path
):
    plan, target = wanted(400), of_target(tiny_gguf, tiny)

    class Stopped(Exception):
        pass

    @contextmanager
    def stopping(w: Wanted) -> Iterator[Answerer]:
        with fake_fleet(AnswerSetup(target, w), 2, 7) as answerer:

            def answer(tasks: Iterator[Task]) -> Iterator[Sample]:
                for i, found in enumerate(answerer(tasks)):
                    if i == 10:
                        raise Stopped
                    yield found

            yield answer

    def write(folder: Path, opened: object = None) -> int:
        stop = threading.Event()
        return write_samples(
            tiny.model, folder, plan, stop, quiet, threads=1, opened=opened
        )

    with pytest.raises(Stopped):
        write(tmp_path / "apart", stopping)
    kept = {*sizes(tmp_path / "apart")}
    assert len(kept) == 10
    write(tmp_path / "apart", lambda w: fake_fleet(AnswerSetup(target, w), 2, 8))
    write(tmp_path / "alone")
    assert content(tmp_path / "apart", 400) == content(tmp_path / "alone", 400)
    every = [s.number for s in read_samples(tmp_path / "apart")]
    assert len(every) == len({*every}) >= len(kept)


@given(
    st.lists(st.integers(0, 9), min_size=12, max_size=12),
    st.integers(1, 20),
    st.integers(1, 5),
    st.sets(st.integers(0, 11)),
    st.randoms(use_true_random=False),
)
def test_answers_are_enough_when_the_first_ones_are(
    lengths: list[int],
    tokens: int,
    together: int,
    before: set[int],
    order: random.Random,
):
    """Whatever the order, and whatever is there before, the same ones are chosen."""
    found = {number: lengths[number % 12] for number in before}
    answered = Answered(found, tokens)
    asking = answered.asking(
        Task(n, np.zeros(1, np.int32), 0.0) for n in range(200) if n not in before
    )
    under_way: list[int] = []
    while not answered.enough():
        while len(under_way) < together and (task := next(asking, None)):
            under_way.append(task.number)
        if not under_way:
            break
        number = under_way.pop(order.randrange(len(under_way)))
        answered.ended(number, lengths[number % 12])
        found[number] = lengths[number % 12]
    whole = {number: lengths[number % 12] for number in range(200)}
    last = last_needed(whole, tokens)
    if last is not None:
        assert last_needed(found, tokens) == last
        assert {*range(last + 1)} <= found.keys()


def test_questions_without_a_useful_answer_are_not_asked_again(tmp_path: Path):
    write_shard(tmp_path, [sample(3, 2, 5)], without=[1, 2])
    write_shard(tmp_path, [sample(0, 2, 4)])
    assert sizes(tmp_path) == {0: 4, 1: 0, 2: 0, 3: 5}
    assert [s.number for s in read_samples(tmp_path)] == [3, 0]
    assert [s.number for s in read_samples(tmp_path, 4)] == [0]
    assert [s.number for s in read_samples(tmp_path, 5)] == [0, 3]


def test_answers_to_other_questions_are_refused():
    tasks = [Task(s.number, s.tokens[: s.start], 0.0) for s in map(answer, (1, 2))]
    item = Item("questions 1 to 2", tasks)
    assert len(checked(item, [answer(2), answer(1)])) == 2
    for wrong in ([answer(1)], [answer(1), answer(1)], [answer(1), answer(3)]):
        with pytest.raises(DistillError, match="other questions than questions 1"):
            checked(item, wrong)


def answer(number: int) -> Sample:
    return sample(number, 3, 4)


def test_a_worker_refuses_another_file(tiny: Loaded, tiny_gguf: Path, tmp_path: Path):
    copy = tmp_path / "target.gguf"
    copy.write_bytes(tiny_gguf.read_bytes())
    target = of_target(copy, tiny)
    with target.load(threading.Event()) as loaded:
        assert loaded.model.path == copy
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ModelError, match=r"is another file \(SHA-256 .*not .*\)"):
        target.load(threading.Event())
    copy.unlink()
    with pytest.raises(ModelError, match="has no file of .*target.gguf: copy it"):
        target.load(threading.Event())


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.binary()))
def test_a_drafter_arrives_as_it_was_sent(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
):
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for name, data in files.items():
        (here / name).write_bytes(data)
    assert packed(unpacked(packed(here), "drafter", there)) == packed(here) == files
    (one := here / "one.gguf").write_bytes(b"123")
    arrived = unpacked(packed(one), one.name, there)
    assert (arrived.name, arrived.read_bytes()) == ("one.gguf", b"123")


def test_drafts_that_are_counted_apart_are_those_counted_together():
    random = np.random.default_rng(3)
    samples = [
        sample(i, 2, 6)._replace(tokens=random.integers(0, 3, 8).astype(np.int32))
        for i in range(9)
    ]
    opened, cancel = Opened(TableModel(3), States(4)), threading.Event()
    whole = worth(opened, samples, cancel)
    parts = (counts(opened, samples[i::4], cancel) for i in range(4))
    found = functools.reduce(Counts.plus, parts, Counts.none()).summed_up()
    assert found._replace(seconds=0.0) == whole._replace(seconds=0.0)
    assert 0 < whole.shares[0] < 1
    assert whole.drafts == 9 * 2
    few = measured_samples([*samples, samples[0]._replace(temperature=0.8)], 3)
    assert [s.number for s in few] == [0, 1]


class FakeFleet:
    """Workers in this process instead of a cluster."""

    @contextmanager
    def pool(
        self, setup: Setup, *, threads: int = 0, alone: bool = False
    ) -> Iterator[FakePool]:
        draw = random.Random(5)
        with setup.opened() as prepared:
            yield FakePool(
                [prepared.kind] * 2,
                lambda payload, kind: prepared.compute(payload),
                draw.randrange,
                losses=2,
            )


@pytest.fixture
def fake_cluster(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands find a cluster at any address; the addresses that they asked for."""
    asked: list[str] = []

    @contextmanager
    def connected(address: str, say: object) -> Iterator[FakeFleet]:
        asked.append(address)
        yield FakeFleet()

    monkeypatch.setattr("edgecs.fleet.ray_pool.connected", connected)
    monkeypatch.setattr("edgecs_cli.commands.distill.find_spec", lambda name: True)
    return asked


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_a_drafter_is_the_same_whoever_writes_the_answers(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, fake_cluster: list[str]
):
    fixed = ("distill", "-m", tiny_gguf, "-c", 256, "-t", 1, "--tokens", 1000)
    fixed += ("--answer", 16, "--parallel", 8, "--rows", 120, "--epochs", 0.1, "--json")
    found = []
    for name, more in (("alone", ()), ("apart", ("--ray", "host:6379"))):
        place = ("--work", tmp_path / f"{name}-work", "-o", tmp_path / name)
        outcome = edgecs(*fixed, *place, *more)
        assert outcome.code == 0, outcome.err
        report = json.loads(outcome.out)
        found.append([report["agreement"], report["coverage"]])
    assert fake_cluster == ["host:6379"]
    assert found[0] == found[1]
    for name, tokens in (("samples", 1000), ("unseen", 100)):
        one, other = (
            content(tmp_path / f"{who}-work" / name, tokens)
            for who in ("alone", "apart")
        )
        assert one == other


def test_a_bench_of_a_cluster_is_printed_and_written(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, fake_cluster: list[str]
):
    suite, out = tmp_path / "suite.jsonl", tmp_path / "out.json"
    suite.write_text('{"prompt": "a a a a"}\n')
    fixed = ("bench", "-m", tiny_gguf, "-c", 256, "-t", 1, "--suite", suite, "-n", 6)
    fixed += ("--mode", "mag:2", "-r", 1, "--temp", 0, "--no-tests", "--exact")
    outcome = edgecs(*fixed, "numeric", "--ray", "auto", "-o", out, "-F", "jsonl")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert {row["mode"] for row in rows} == {"plain", "mag:2"}
    (result,) = read(out)
    assert {row["machine"] for row in rows} == {result["machine"]["id"]}
    assert fake_cluster == ["auto"]
