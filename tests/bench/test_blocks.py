"""The order of a bench: blocks, anchors, what is run again, and what is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.draft import NOTHING, score_one
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.decoding.static_schedule import Gathered
from edgecs.sampling.chain import always, greedy
from edgecs.session.session import Session
from edgecs.session.stats import Record, Stats
from edgecs.testing.fakes import Endless, TableModel
from edgecs_bench.run import instrument
from edgecs_bench.run.answers import Answer, Said, fork, tiers
from edgecs_bench.run.blocks import Bench, Done, Meter, ModeFailed, blocks
from edgecs_bench.run.instrument import Calls, Watched
from edgecs_bench.run.journal import Journal
from edgecs_bench.run.modes import Asked
from edgecs_bench.suite.prompts import Prompt

PROMPTS = [Prompt(str(i), kind, "x" * i) for i, kind in enumerate(("qa", "qa", "rag"))]


class Scribe:
    """A mode that notes when it is asked, and says what it is told to."""

    about, version, pid = "a fake", None, None

    def __init__(self, name: str, log: list, *, greedy_only: bool = False):
        self.name, self.greedy_only = name, greedy_only
        self.log, self.tokens = log, [1, 2, 3]
        self.spans: list[float] = []
        self.fails: Callable[[], bool] = lambda: False

    def answer(self, asked: Asked) -> Said:
        self.log.append((self.name, len(asked.ids), asked.most))
        if self.fails():
            raise ModeFailed("it fell over")
        return Said(self.tokens, 0.5, 1.0, spans=self.spans, tested=0, accepted=0)


class Anchors:
    """Anchors that were thought of beforehand; the last one stays."""

    def __init__(self, *values: float):
        self.values = [*values]

    def __call__(self) -> float:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def bench(modes: list, journal: Journal | None = None, anchors=(1.0,)) -> Bench:
    rules = {0.0: always(greedy), 0.8: always(greedy)}
    meter = Meter(Anchors(*anchors), lambda: None)
    return Bench(
        "own",
        modes,
        rules,
        lambda text: [7] * len(text),
        most=30,
        n_ctx=100,
        meter=meter,
        journal=journal or Journal(None, {}),
    )


def asked(log: list) -> list[str]:
    return [name for name, _, most in log if most == 30]  # not those that warm up


def test_every_second_block_runs_backwards_and_all_prompts_come_before_a_repeat():
    log: list = []
    modes = [Scribe("plain", log), Scribe("b", log), Scribe("c", log)]
    done = bench(modes).run(blocks(PROMPTS, (0.0, 0.8), 2))
    assert len(done) == 12
    forward = ["plain", "b", "c"]
    assert asked(log) == [*forward, *reversed(forward)] * 6
    answers = [d.answers[0] for d in done]
    assert [a.repeat for a in answers] == [0] * 6 + [1] * 6
    assert [a.temperature for a in answers[:6]] == [0.0] * 3 + [0.8] * 3
    assert [a.block for a in answers] == [*range(12)]
    for one in done:  # in the order of the modes, however they ran
        assert [a.mode for a in one.answers] == forward


def test_what_cannot_sample_is_left_out_of_sampled_blocks():
    log: list = []
    modes = [Scribe("plain", log), Scribe("b", log, greedy_only=True)]
    three = [*modes, Scribe("c", log)]
    done = bench(three).run(blocks(PROMPTS[:1], (0.0, 0.8), 1))
    said = [[a.mode for a in d.answers] for d in done]
    assert said == [["plain", "b", "c"], ["plain", "c"]]
    # Where nobody could be compared, nobody is asked.
    done = bench(modes).run(blocks(PROMPTS[:1], (0.0, 0.8), 1))
    assert [[a.mode for a in d.answers] for d in done] == [["plain", "b"]]


def test_prompts_that_do_not_fit_are_skipped_and_named():
    one = bench([Scribe("plain", [])])
    one.n_ctx = 31
    done = one.run(blocks(PROMPTS, (0.0,), 2))
    assert one.skipped == ["2"]
    assert {d.answers[0].id for d in done} == {"0", "1"}


def test_forks_are_told_from_plain_decoding():
    modes = [Scribe("plain", []), Scribe("b", [])]
    modes[1].tokens = [1, 2, 9]
    (done,) = bench(modes).run(blocks(PROMPTS[1:2], (0.0,), 1))
    plain, other = done.answers
    assert plain.fork is None
    assert other.fork == {"token": 2, "context": 3}
    assert (plain.compared, other.compared) == (3, 3)


def test_a_block_in_which_the_machine_changed_is_run_once_more():
    log: list = []
    anchors = (1.0, 1.05, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0)
    done = bench([Scribe("plain", log)], anchors=anchors).run(
        blocks(PROMPTS, (0.0,), 1)
    )
    assert len(asked(log)) == 4
    assert [d.drifted for d in done] == [False] * 3
    assert [d.answers[0].id for d in done] == ["0", "1", "2"]
    always_drifts = bench([Scribe("plain", [])], anchors=(1.0, 2.0) * 20)
    done = always_drifts.run(blocks(PROMPTS, (0.0,), 1))
    assert [d.answers[0].drifted for d in done] == [True] * 3


def test_every_category_has_a_sample_also_if_it_was_run_once_more():
    drafts = Scribe("b", [])
    drafts.spans = [1e-4]
    for anchors in ((1.0,), (1.0, 2.0) * 20, (1.0, 2.0, 2.0)):
        modes = [Scribe("plain", []), drafts]
        done = bench(modes, anchors=anchors).run(blocks(PROMPTS, (0.0,), 1))
        samples = [d.sample["category"] for d in done if d.sample]
        assert sorted(samples) == ["qa", "rag"]


def test_a_mode_that_fails_costs_only_its_own_rows():
    log: list = []
    modes = [Scribe("plain", log), Scribe("b", log), Scribe("c", log)]
    modes[1].fails = lambda: sum(name == "b" for name, *_ in log) > 2
    one = bench(modes)
    done = one.run(blocks(PROMPTS, (0.0,), 1))
    assert [[a.mode for a in d.answers] for d in done] == [
        ["plain", "b", "c"],
        ["plain", "c"],
        ["plain", "c"],
    ]
    assert one.failed == {"b": "it fell over"}


def test_where_nobody_else_answers_plain_decoding_need_not():
    log: list = []
    modes = [Scribe("plain", log), Scribe("b", log)]
    modes[1].fails = lambda: True
    one = bench(modes)
    assert one.run(blocks(PROMPTS, (0.0,), 1)) == []
    assert one.failed == {"b": "it fell over"}
    assert asked(log) == []


def test_time_that_is_up_ends_a_run_but_not_before_its_first_block():
    one = bench([Scribe("plain", [])])
    one.until = float("-inf")
    assert len(one.run(blocks(PROMPTS, (0.0,), 3))) == 1


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    path, log = tmp_path / "run.jsonl", list[tuple[str, int, int]]()
    header = {"model": "tiny", "names": ("a", "b")}
    modes = [Scribe("plain", log), Scribe("b", log)]
    wanted = blocks(PROMPTS, (0.0,), 1)
    whole = bench(modes, Journal(path, header)).run(wanted[:2])
    with path.open("a") as file:
        file.write('{"key": ["own", "qa", "2", 0.0')  # it was killed here
    del log[:]
    found = bench(modes, Journal(path, header)).run(wanted)
    assert found[:2] == whole
    assert asked(log) == ["plain", "b"]  # the third block, forwards as ever
    del log[:]
    assert bench(modes, Journal(path, header)).run(wanted) == found
    assert not log
    assert len(path.read_text().splitlines()) == 4


def test_a_file_of_another_run_or_of_no_run_is_refused(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    Journal(path, {"most": 40, "seed": 1})
    with pytest.raises(click.UsageError, match=r"other options \(extra, most\)"):
        Journal(path, {"most": 41, "seed": 1, "extra": 0})
    header = '{"most": 40, "seed": 1}\n'
    for broken in ("[]\n", "{\n", header + '{"id": 1}\n', "no end of line"):
        path.write_text(broken)
        with pytest.raises(click.UsageError, match="run.jsonl cannot be resumed"):
            Journal(path, {"most": 40, "seed": 1})
        assert path.read_text() == broken  # nothing of somebody else's is lost
    with pytest.raises(click.UsageError, match="cannot be resumed"):
        Journal(tmp_path / "none" / "run.jsonl", {})


@given(
    st.one_of(st.just(b""), st.just(b"GGUF\x03\n"), st.just(b'{"a": 1}\n')),
    st.binary(min_size=1, max_size=40),
)
def test_a_file_that_is_no_journal_keeps_every_byte(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes
):
    path = tmp_path_factory.getbasetemp() / "model.gguf"
    path.write_bytes(start + rest)
    with pytest.raises(click.UsageError, match=r"model\.gguf"):
        Journal(path, {"most": 40, "seed": 1})
    assert path.read_bytes() == start + rest


def test_a_journal_with_a_broken_part_keeps_every_byte(tmp_path: Path):
    path, header = tmp_path / "run.jsonl", {"most": 40}
    Journal(path, header).add(["a"], {"value": 1})
    broken = path.read_bytes() + b'{"id": 1}\n{"key": ["b"'
    path.write_bytes(broken)
    with pytest.raises(click.UsageError, match="cannot be resumed"):
        Journal(path, header)
    assert path.read_bytes() == broken


def test_only_a_plain_file_is_resumed(tmp_path: Path):
    """Reading a pipe would wait for as long as it is open."""
    pipe = tmp_path / "pipe"
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    os.mkfifo(pipe)
    with pytest.raises(click.UsageError, match="a named pipe"):
        Journal(pipe, {"most": 40})


def test_what_is_kept_comes_back_as_it_was():
    (done,) = bench([Scribe("plain", [])]).run(blocks(PROMPTS[:1], (0.0,), 1))
    assert Done.from_json(json.loads(json.dumps(done.to_json()))) == done
    (answer,) = done.answers
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer


def test_a_fork_has_the_width_of_its_round():
    stats = Stats(prompt_tokens=5, tokens=6)
    stats.records = [Record((), ("mag",) * 3, (0, 1)), Record((), ("mag",), ())]
    said = Said([1, 2, 3, 4, 5, 6], 0.0, 1.0, stats)
    for at, width in enumerate((0, 4, 4, 4, 2)):
        plain = [*said.tokens[:at], 99]
        assert fork(said, plain, 5) == {
            "token": at,
            "context": 5 + at,
            "width": width,
        }
    assert fork(said, said.tokens, 5) is None
    longer = fork(said, [*said.tokens, 7], 5)  # it ended where plain decoding went on
    assert longer is not None
    assert longer["token"] == 6


def test_tokens_by_tier_of_their_round():
    stats = Stats(prompt_tokens=252, tokens=9)
    stats.records = [
        Record((), ("mag",) * 3, (0, 1)),  # from 253 tokens, 252 cells
        Record((), (), ()),  # from 256 tokens, 255 cells
        Record((), ("mag",) * 4, (0, 1, 2, 3)),  # cut: four of its five tokens
    ]
    classes = Classes({0: Finding(frozenset(range(2, 33)), frozenset())})
    limits = Limits(classes, "auto")
    assert tiers(stats, limits) == {"strict": 4, "numeric": 4}
    assert tiers(Stats(prompt_tokens=3, tokens=1), limits) == {}


class Ticks:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_schedules_own_time_is_without_calls(monkeypatch: pytest.MonkeyPatch):
    clock = Ticks()
    monkeypatch.setattr(instrument, "perf_counter", clock)

    class Slow(TableModel):
        def rows(self, request):
            clock.now += 100
            return super().rows(request)

    model = Slow(5, 0)
    calls = Calls([model])

    class Asks:
        drafters = ()

        def begin(self):
            pass

        def draft(self, context, choose, most, allowed, together):
            clock.now += 2
            score_one(model, context)
            return Gathered(NOTHING, ())

        def learn(self, context, outcome):
            clock.now += 1

        def describe(self):
            return "asks"

    watched = Watched(Asks(), calls)
    assert watched.describe() == "asks"
    with Session(TableModel(5, 1), Endless(), schedule=watched) as session:
        assert len(list(session.generate([1, 2], max_tokens=5))) == 5
    # Neither the call that reads the prompt nor the last one can have a draft.
    assert watched.spans == [3.0] * 3
    assert calls.seconds == 500
