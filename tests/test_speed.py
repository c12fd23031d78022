"""The bench of decode speed: its counts, its order and its files; never its times."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.draft import NOTHING
from edgecs.exactness import Classes, Finding, Limits
from edgecs.sampling import Sampling
from edgecs.schedule import Gathered
from edgecs.session import Session
from edgecs.speculation import Speculation
from edgecs.stats import Record, Stats
from edgecs.testing import Endless, TableModel
from edgecs_bench import pairs as pairs_module
from edgecs_bench.loops import LEAST, LONGEST, TIMES, looping
from edgecs_bench.pairs import Bench, Calls, Others, Watched, tiers
from edgecs_bench.plain_llama import PlainLlama
from edgecs_bench.prompts import Prompt
from edgecs_bench.speed import MT_BENCH, Journal, choose, main, measure, show
from edgecs_bench.speedups import (
    Measured,
    Pair,
    Timed,
    bootstrap,
    geometric_mean,
    llama_over_plain,
    readable,
    results,
    spread,
    summary,
)

F16 = 1  # ggml_type
TEXTS = st.lists(st.integers(0, 2), max_size=120)


def by_hand(tokens: list[int]) -> list[bool]:
    """Loops by their definition: every stretch is looked at for every period."""
    inside, size = [False] * len(tokens), len(tokens)
    for period in range(1, LONGEST + 1):
        for start in range(size):
            end = start + period
            while end < size and tokens[end] == tokens[end - period]:
                end += 1
            if end - start >= max(LEAST, TIMES * period) and end <= size:
                inside[start:end] = [True] * (end - start)
    return inside


@given(TEXTS)
def test_loops_are_what_the_definition_says(tokens: list[int]):
    assert looping(tokens).tolist() == by_hand(tokens)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=LONGEST),
    st.integers(TIMES, 6),
    TEXTS,
    TEXTS,
)
def test_a_loop_is_found_anywhere(unit: list[int], times: int, before, after):
    loop = unit * max(times, -(-LEAST // len(unit)))
    inside = looping([*before, *loop, *after])
    assert inside[len(before) : len(before) + len(loop)].all()


@given(TEXTS)
def test_loops_do_not_depend_on_names_or_direction(tokens: list[int]):
    inside = looping(tokens).tolist()
    assert looping([7 - token for token in tokens]).tolist() == inside
    assert looping(tokens[::-1]).tolist()[::-1] == inside


def test_what_is_too_short_or_too_long_is_no_loop():
    assert not looping([]).any()
    assert not looping([1] * (LEAST - 1)).any()
    assert looping([1] * LEAST).all()
    assert not looping([*range(12)] * 2).any()  # 24 tokens, but said only twice
    assert looping([*range(LONGEST)] * 3).all()
    assert not looping([*range(LONGEST + 1)] * 5).any()
    assert not looping(range(500)).any()


def test_llama_alone_says_what_edgecs_says(tiny):
    with (
        PlainLlama(tiny.model.handle, 1024, 1, F16, F16) as plain,
        tiny.session([], 0) as session,
    ):
        for prompt in ([5, 6, 7], [3] * 100, [9]):
            said = [token.id for token in session.generate(prompt, max_tokens=60)]
            found, seconds = plain.answer(prompt, 60)
            assert found == said
            assert seconds > 0
        # A prompt of several chunks; a single token.
        long = np.random.default_rng(0).integers(0, 256, 700).tolist()
        many, _ = plain.answer(long, 20)
        assert plain.answer(long, 1)[0] == many[:1]
    plain.close()


def test_llama_alone_stops_at_the_end_token(tiny):
    ends = tiny.model.vocabulary.ends
    with PlainLlama(tiny.model.handle, 2048, 1, F16, F16) as plain:
        for first in range(40):
            said, _ = plain.answer([first], 300)
            assert not ends & {*said[:-1]}
            if said[-1] in ends:
                assert len(said) < 300
                break
        else:
            pytest.fail("no answer ended")


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    kinds = [*(kind for kind in MT_BENCH for _ in range(3)), "qa", "qa", "rag"]
    rows = [
        {"question_id": i, "category": kind, "turns": [f"{kind} {i}"]}
        for i, kind in enumerate(kinds)
    ]
    return lines(tmp_path / "spec.jsonl", *rows)


def test_mt_bench_is_one_category_with_all_eight_in_turn(spec: Path, tmp_path: Path):
    code = lines(tmp_path / "humaneval.jsonl", {"task_id": "H/0", "prompt": "def f"})
    found = choose([spec, code], (), 8, True)
    assert [p.text.split()[0] for p in found[:8]] == list(MT_BENCH)
    assert [p.category for p in found] == [
        *["mt_bench"] * 8,
        *["qa"] * 2,
        "rag",
        "humaneval",
    ]
    few = choose([spec], ("rag", "mt_bench"), 10, True)
    assert [p.id for p in few] == ["26", *map(str, range(0, 24, 3)), "1", "4"]
    assert len(choose([spec], ("mt_bench",), 100, True)) == 24


def test_without_groups_every_category_is_its_own(spec: Path):
    found = choose([spec], (), 2, False)
    assert len({p.category for p in found}) == 10
    assert [p.id for p in found[:3]] == ["0", "1", "3"]
    with pytest.raises(click.UsageError, match="no prompts of category mt_bench"):
        choose([spec], ("qa", "mt_bench"), 2, False)


def test_one_category_may_have_another_count(spec: Path):
    found = choose([spec], (), 1, True, {"qa": 2})
    assert [p.category for p in found] == ["mt_bench", "qa", "qa", "rag"]
    with pytest.raises(click.UsageError, match="no prompts of category code"):
        choose([spec], (), 1, True, {"code": 2})


def pair(plain: float, speculative: float, /, **other: object) -> Pair:
    """Seconds of two answers of 101 tokens."""
    made = Pair(
        plain_first=True,
        plain=Timed(plain, 101, 0),
        speculative=Timed(speculative, 101, 0),
        llama=None,
        rounds=60,
        tested=80,
        accepted=40,
        tiers={"strict": 75, "numeric": 25},
        compared=101,
        fork=None,
        planner_us=20.0,
    )
    return replace(made, **other)


def prompt(name: str, *given: Pair, category: str = "qa") -> Measured:
    return Measured(category, name, 10, list(given), 0.0)


def test_a_row_says_what_the_pairs_say():
    forked = pair(
        4.0,
        1.0,
        speculative=Timed(1.0, 51, 30),
        compared=21,
        fork={"token": 20, "context": 30, "width": 4},
    )
    row = summary([prompt("a", pair(2.0, 1.0)), prompt("b", forked)])
    assert row["prompts"] == 2
    assert row["plain"] == round(200 / 6, 4)
    assert row["speculative"] == round(150 / 2, 4)
    # By the token: the second answer took 0.04 s a token, then 0.02.
    assert row["speedup"] == pytest.approx(75 / (200 / 6), abs=1e-4)
    assert row["geomean"] == 2.0
    assert row["spread"] == row["interval"] + [2.0] * 3 == [2.0] * 5
    assert (row["accepted"], row["tested"]) == (80, 160)
    assert row["mean_accept_len"] == round(200 / 120, 4)
    assert row["tiers"] == {"numeric": 0.25, "strict": 0.75}
    assert row["forks_per_1000"] == round(1000 / 122, 4)
    assert row["looping"] == round(30 / (3 * 101 + 51), 4)
    assert (row["prompts_without_loops"], row["speedup_without_loops"]) == (1, 2.0)


def test_a_prompt_counts_with_the_medians_of_its_pairs():
    several = prompt("a", pair(2.0, 1.0), pair(2.0, 1.0), pair(9.0, 0.5))
    assert several.ratio == pytest.approx(2.0)


def test_one_token_has_no_speed():
    short = pair(1.0, 1.0, plain=Timed(0.0, 1, 0), compared=1)
    row = summary([prompt("a", short), prompt("b", pair(3.0, 1.0))])
    assert (row["prompts"], row["speedup"]) == (1, 3.0)
    row = summary([prompt("a", short)])
    for name in ("speedup", "geomean", "interval", "spread", "plain", "looping"):
        assert row[name] is None, name
    assert readable(row)["speedup"] == "-"
    nothing = results([prompt("a", short)])
    assert nothing["speedup"] == {}
    assert nothing["geomean"] is nothing["worst"] is None


def test_the_baseline_is_the_faster_one():
    slower, faster = (Timed(seconds, 101, 0) for seconds in (2.5, 1.6))
    measured = [
        prompt("a", pair(2.0, 1.0, llama=slower)),
        prompt("b", pair(1.0, 1.0), category="rag"),
    ]
    assert llama_over_plain(measured) == pytest.approx(0.8)
    found = results(measured)
    assert found["baseline"] == "plain"
    assert found["speedup"] == {"qa": 2.0, "rag": 1.0}
    assert found["geomean"] == round(2**0.5, 4)
    assert found["worst"] == {"category": "rag", "speedup": 1.0}
    measured[0] = prompt("a", pair(2.0, 1.0, llama=faster))
    found = results(measured)
    assert (found["baseline"], found["llama_over_plain"]) == ("llama.cpp", 1.25)
    assert found["speedup"] == {"qa": 1.6, "rag": 0.8}
    assert found["categories"][0]["spread"] == [1.6] * 5
    assert results(measured[1:])["llama_over_plain"] is None


RATIOS = st.lists(st.floats(0.1, 10), min_size=1, max_size=20)


@given(RATIOS)
def test_the_interval_is_the_same_every_time_and_inside_the_spread(ratios):
    low, high = bootstrap(ratios)
    assert [low, high] == bootstrap(ratios)
    least, *_, most = spread(ratios)
    assert least - 1e-4 <= low <= high <= most + 1e-4


def test_the_interval_surrounds_the_mean_and_shrinks():
    few = [1.0, 1.5, 2.0]
    low, high = bootstrap(few)
    assert low < geometric_mean(few) < high
    narrow = bootstrap(few * 20)
    assert narrow[1] - narrow[0] < high - low
    assert bootstrap([]) is spread([]) is None


def test_tokens_by_tier_of_their_round():
    stats = Stats(prompt_tokens=252, tokens=9)
    stats.records = [
        Record((), ("mag",) * 3, (0, 1)),  # from 253 tokens, 252 cells
        Record((), (), ()),  # from 256 tokens, 255 cells
        Record((), ("mag",) * 4, (0, 1, 2, 3)),  # cut: four of its five tokens
    ]
    classes = Classes({0: Finding(frozenset(range(2, 33)), frozenset(), 0.0)})
    limits = Limits(classes, "auto")
    assert tiers(stats, limits) == {"strict": 4, "numeric": 4}
    assert tiers(Stats(prompt_tokens=3, tokens=1), limits) == {}


class Ticks:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_planners_own_time_is_without_calls(monkeypatch: pytest.MonkeyPatch):
    clock = Ticks()
    monkeypatch.setattr(pairs_module, "perf_counter", clock)

    class Slow(TableModel):
        def score(self, context, draft):
            clock.now += 100
            return super().score(context, draft)

    model = Slow(5, 0)
    calls = Calls([model])

    class Asks:
        drafters = ()

        def begin(self):
            pass

        def draft(self, context, choose, most, allowed):
            clock.now += 2
            model.score(context, NOTHING)
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


def test_others_are_all_who_are_not_idle_and_not_us(monkeypatch: pytest.MonkeyPatch):
    Machine = namedtuple("Machine", "user system idle iowait")
    Own = namedtuple("Own", "user system")
    machine = iter([Machine(10, 5, 50, 5), Machine(40, 10, 80, 10)])
    own = iter([Own(4, 1), Own(19, 6)])

    class Process:
        def cpu_times(self):
            return next(own)

    monkeypatch.setattr(pairs_module.psutil, "cpu_times", lambda: next(machine))
    monkeypatch.setattr(pairs_module.psutil, "Process", Process)
    assert Others().share == (35 - 20) / 70


def test_a_busy_machine_is_named(capsys):
    quiet = prompt("a", pair(2.0, 1.0))
    for others, warned in ((0.01, False), (0.2, True)):
        show(results([quiet, replace(quiet, id="b", others=2 * others)]))
        out = capsys.readouterr().out
        assert ("NOT A MEASUREMENT" in out) is warned


@pytest.fixture
def bench(tiny):
    """Everything that answers, with the default rule and without llama.cpp's loop."""
    speculation = Speculation(tiny.target)
    speculation.prepare(0.0)
    return Bench(tiny, (), speculation, None, Calls(()), tiny.rule(Sampling()), 40)


def test_a_pair_is_two_answers_to_one_prompt(bench: Bench):
    ids = [*b"abc abc abc"]
    with PlainLlama(bench.loaded.model.handle, 512, 1, F16, F16) as llama:
        full = replace(bench, llama=llama)
        full.warm_up(ids)
        for first in (True, False):
            one = full.pair(ids, plain_first=first, with_llama=True)
            assert one.plain_first is first
            assert one.llama is not None
            assert one.llama.tokens == one.plain.tokens
            assert sum(one.tiers.values()) == one.speculative.tokens - 1
            assert Pair.from_json(json.loads(json.dumps(asdict(one)))) == one
    alone = bench.pair(ids, plain_first=True, with_llama=True)
    assert alone.llama is None


def test_forks_are_counted_up_to_the_first_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    ids = [*b"hello"]
    same = bench.pair(ids, plain_first=True, with_llama=False)
    assert same.fork is None
    assert same.compared == same.plain.tokens
    real = Bench._plain

    def turned(self, ids):
        said, stats = real(self, ids)
        return [*said[:7], said[7] + 1, *said[8:-2]], stats

    monkeypatch.setattr(Bench, "_plain", turned)
    other = bench.pair(ids, plain_first=True, with_llama=False)
    assert other.fork is not None
    assert (other.fork["token"], other.compared) == (7, 8)
    assert other.fork["context"] == len(ids) + 7


class Scribe:
    """A bench that only notes what it is asked for."""

    def __init__(self, most: int = 40) -> None:
        self.most = most
        self.asked: list[tuple[int, bool, bool]] = []
        self.warm = 0

    def warm_up(self, ids):
        self.warm += 1

    def pair(self, ids, plain_first, with_llama):
        self.asked.append((len(ids), plain_first, with_llama))
        return pair(1.0, 1.0)


def test_prompts_alternate_and_llama_comes_once_in_a_category(tiny, capsys):
    texts = [("qa", "a"), ("qa", "bb"), ("rag", "x" * 600), ("rag", "c"), ("rag", "dd")]
    prompts = [Prompt(str(i), *fields) for i, fields in enumerate(texts)]
    scribe = Scribe()
    found = measure(scribe, tiny, prompts, 2, Journal(None, {}))
    assert [m.id for m in found] == ["0", "1", "3", "4"]
    assert [first for _, first, _ in scribe.asked] == [
        *(True, False),
        *(False, True),
        *(False, True),
        *(True, False),
    ]
    assert [llama for *_, llama in scribe.asked] == [*[True, True, False, False] * 2]
    assert scribe.warm == 1
    assert "[3/5] rag 2: 604 tokens are too many" in capsys.readouterr().err


def test_a_run_goes_on_where_it_stopped(tiny, tmp_path: Path):
    path = tmp_path / "run.jsonl"
    header = {"model": "tiny", "most": 40, "names": ("a", "b")}
    prompts = [Prompt(str(i), "qa", "a" * i) for i in range(4)]
    whole = measure(Scribe(), tiny, prompts[:2], 1, Journal(path, header))
    with path.open("a") as file:
        file.write('{"category": "qa", "id": "2", "pro')  # it was killed here
    scribe = Scribe()
    found = measure(scribe, tiny, prompts, 1, Journal(path, header))
    assert found[:2] == whole
    assert len(scribe.asked) == 2
    assert [first for _, first, _ in scribe.asked] == [True, False]
    assert not any(llama for *_, llama in scribe.asked)
    scribe = Scribe()
    assert measure(scribe, tiny, prompts, 1, Journal(path, header)) == found
    assert not scribe.asked
    assert not scribe.warm
    assert len(path.read_text().splitlines()) == 5


def test_a_file_of_other_options_is_refused(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    Journal(path, {"most": 40, "seed": 1})
    with pytest.raises(click.UsageError, match=r"other options \(extra, most\)"):
        Journal(path, {"most": 41, "seed": 1, "extra": 0})
    for broken in ("[]\n", "{\n", '{"most": 40, "seed": 1}\n{"id": 1}\n'):
        path.write_text(broken)
        with pytest.raises(click.UsageError, match="run.jsonl cannot be resumed"):
            Journal(path, {"most": 40, "seed": 1})
    with pytest.raises(click.UsageError, match="cannot be resumed"):
        Journal(tmp_path / "none" / "run.jsonl", {})


@pytest.fixture
def command(tiny_gguf: Path, tmp_path: Path, cache: Path, capfd):
    """Runs the bench on two prompts; gives its table and its JSON."""
    prompts = lines(
        tmp_path / "prompts.jsonl",
        {"question_id": 1, "category": "math", "turns": ["aa bb aa bb"]},
        {"question_id": 2, "category": "qa", "turns": ["hello, hello"]},
    )
    fixed = ["-m", tiny_gguf, "--prompts", prompts, "-n", 24, "-c", 512, "-t", 1]

    def call(*arguments: object) -> tuple[list[str], dict]:
        everything = [str(argument) for argument in (*fixed, *arguments)]
        main(everything, standalone_mode=False)
        *table, last = capfd.readouterr().out.splitlines()
        return table, json.loads(last)

    return call


def test_a_run_ends_with_a_table_and_json(command, cache: Path):
    table, found = command("--exact", "numeric")
    assert table[0].split()[:3] == ["category", "prompts", "tokens"]
    assert [line.split()[0] for line in table[1:3]] == ["mt_bench", "qa"]
    assert found["model"] == "tiny.gguf"
    assert found["options"]["most"] == 24
    assert found["options"]["prompts"] == ["prompts.jsonl"]
    assert found["options"]["target"]["threads"] == 1
    assert {*found["speedup"]} == {"mt_bench", "qa"}
    assert found["worst"]["speedup"] == min(found["speedup"].values())
    assert found["baseline"] in ("plain", "llama.cpp")
    assert found["planner_us"] > 0
    assert 0 <= found["others"] <= 1
    assert [p["id"] for p in found["prompts"]] == ["1", "2"]
    assert [p["pairs"][0]["plain_first"] for p in found["prompts"]] == [True, False]
    for one in found["prompts"]:
        (both,) = one["pairs"]
        assert both["fork"] is None
        assert both["plain"]["tokens"] == both["speculative"]["tokens"] <= 24
        assert both["llama"]["tokens"] == both["plain"]["tokens"]
        assert {*both["tiers"]} == {"numeric"}
    assert found["categories"][0]["forks_per_1000"] == 0
    assert "machine" in found
    assert not cache.with_name("profiles").exists()


def test_with_drafters_and_a_temperature(
    command, tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    timed = []
    first_times = Speculation._times_of
    monkeypatch.setattr(
        Speculation,
        "_times_of",
        lambda self, *rest: timed.append(1) or first_times(self, *rest),
    )
    _, found = command(
        *("--draft", tiny_gguf, "--temp", 0.8, "--seed", 3, "--repeats", 2),
        *("--category", "qa", "--profile"),
    )
    (one,) = found["prompts"]
    assert len(one["pairs"]) == 2
    assert all(p["fork"] is None for p in one["pairs"])
    assert [*found["options"]["drafters"]] == ["tiny"]
    assert len(timed) == 1  # what a drafter costs is known to the second planner
    assert [*cache.with_name("profiles").iterdir()]


def test_a_resumed_run_measures_nothing_twice(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.jsonl"
    _, first = command("--resume", path)

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Bench, "pair", refuse)
    monkeypatch.setattr(Bench, "warm_up", refuse)
    _, again = command("--resume", path)
    assert again == first
    with pytest.raises(click.UsageError, match="other options .most"):
        command("--resume", path, "-n", 25)


def test_what_cannot_be_measured_is_refused(command):
    with pytest.raises(click.UsageError, match="no prompts of category poetry"):
        command("--category", "poetry")
    with pytest.raises(click.UsageError, match="no prompt fits the context"):
        command("-n", 505)
