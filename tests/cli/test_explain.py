"""Who wrote what: the trace of the rounds, colours, marks, and the legend."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.costs.cost_model import CostModel
from edgecs.decoding.cascade import NamedModel
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError, EdgecsError
from edgecs.planning.acceptance import Calibration
from edgecs.planning.planner import Planner
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.session.answer import Token
from edgecs.session.session import Session
from edgecs.session.trace import TraceFile, follow, header
from edgecs.testing.fakes import CachingModel, Endless, ScriptedDrafter, TableModel
from edgecs_cli.loading.explain import legend
from edgecs_cli.origins import COLOURS, coloured, marked, plain
from tests.commands import one_line
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]


class Letters(Endless):
    """Token 0 is 'a', 1 is 'b', ..."""

    def piece(self, token: int) -> bytes:
        return bytes([ord("a") + token])


def traced(session: Session, prompt, choose=None, **options):
    """An answer, and the records of its rounds."""
    records: list[dict] = []
    follow(session, records.append, choose)
    return list(session.generate(prompt, **options)), records


def emitted(records: list[dict]) -> list[dict]:
    return [token for record in records for token in record["tokens"]]


def agrees(tokens: list[Token], records: list[dict], stats) -> None:
    """What the trace says of an answer that nothing cut."""
    rest = [(token.id, token.source) for token in tokens[1:]]
    assert [(t["id"], t["source"]) for t in emitted(records)] == rest
    written = sum((Counter(record["written"]) for record in records), Counter())
    tested = Counter(t["source"] for record in records for t in record["proposed"])
    for name, counts in stats.by_source().items():
        assert (written[name], tested[name]) == (counts["proposed"], counts["tested"])
    assert sum(record["accepted"] for record in records) == stats.accepted
    assert Counter(r["width"] for r in records) == stats.rounds_by_width
    assert [r["round"] for r in records] == list(range(1, stats.rounds + 1))
    assert json.loads(json.dumps(records, allow_nan=False)) == records


@given(
    seed=st.integers(0, 3),
    vocab=st.integers(2, 6),
    wrong=st.floats(0, 1),
    draft_max=st.integers(0, 7),
    temperature=st.sampled_from([0.0, 1.0]),
    n=st.integers(0, 40),
)
@settings(max_examples=60)
def test_a_trace_adds_up_to_the_answer(seed, vocab, wrong, draft_max, temperature, n):
    prompt = [0, 1]
    choose = chooser(Sampling(temperature=temperature, seed=seed), vocab)
    script = prompt + TableModel(vocab, seed).alone(prompt, 50, choose)
    chain = [ScriptedDrafter(script, wrong=wrong, vocab_size=vocab), MaxGram()]
    model = CachingModel(vocab, seed)
    with Session(
        model, Letters(), chain, draft_max=draft_max, rule=always(choose)
    ) as session:
        tokens, records = traced(session, prompt, choose, max_tokens=n)
        agrees(tokens, records, session.stats)
    said = script[2 : 2 + n]
    assert [token.id for token in tokens] == said
    for record in records:
        drafted, position = record["proposed"], record["position"]
        assert record["width"] == 1 + len(drafted)
        assert record["tokens"][0]["id"] == script[position]
        stands = record["tokens"][: record["accepted"]]
        assert stands == [
            {key: t[key] for key in ("id", "text", "source")}
            for t in drafted[: record["accepted"]]
        ]
        assert (record["rejected"] is None) == (record["accepted"] == len(drafted))
        if record["rejected"]:
            refused = drafted[record["accepted"]]
            assert record["rejected"]["id"] == refused["id"]
            assert record["rejected"]["instead"]["id"] == record["tokens"][-1]["id"]
            assert record["rejected"]["margin"] >= 0
        assert record["reason"] is None  # a fixed schedule has none


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_margin_is_the_distance_to_another_choice(temperature: float):
    model = TableModel(5)
    choose = chooser(Sampling(temperature=temperature, repeat_penalty=1.5), 5)
    said = [1, *model.alone([1], 20, choose)]
    drafter = ScriptedDrafter(said, wrong=0.5, vocab_size=5)
    with Session(model, Letters(), [drafter], draft_max=4, rule=always(choose)) as s:
        _, records = traced(s, [1], choose, max_tokens=20)
    refused = [record for record in records if record["rejected"]]
    assert any(record["accepted"] for record in refused)
    for record in refused:
        before = np.array(said[: record["position"] + record["accepted"]])
        margin = choose.margin(model.law(before), before)
        assert record["rejected"]["margin"] == round(margin, 4)


def test_a_plan_says_what_it_looked_at():
    costs = CostModel()
    costs.measured(0, {1: 1.0, 2: 1.01, 3: 1.02, 5: 1.04})
    planner = Planner(costs, Calibration(), [MaxGram()])
    with Session(TableModel(2), Letters(), schedule=planner) as session:
        tokens, records = traced(session, [0, 1, 0, 1], max_tokens=60)
        agrees(tokens, records, session.stats)
    planned = [record for record in records if record["reason"]]
    assert any(record["proposed"] for record in planned)
    for record in planned:
        assert record["widths"][0] == 1
        assert record["width"] in record["widths"]
        assert record["expected"] >= record["plain"] > 0
        odds = record["probabilities"]
        assert odds == sorted(odds, reverse=True)
        p = [token["p"] for token in record["proposed"]]
        assert p == (odds + [None] * len(p))[: len(p)]


def test_an_end_token_that_was_drafted_is_not_rejected():
    said = TableModel(257).greedy([1], 4)
    tokenizer = Endless()
    tokenizer.ends = frozenset({said[3]})
    drafter = ScriptedDrafter([1, *said])
    with Session(TableModel(257), tokenizer, [drafter], draft_max=5) as session:
        _, records = traced(session, [1])
    (record,) = records
    assert len(record["proposed"]) == 3
    assert record["accepted"] == 2
    assert record["tokens"][-1] == {"id": said[3], "text": "", "source": "target"}
    assert record["rejected"] is None


def test_the_last_round_may_say_more_than_an_answer_that_was_stopped():
    said = TableModel(5).greedy([1], 30)
    stop = "".join(chr(ord("a") + t) for t in said[5:8])
    with Session(
        TableModel(5), Letters(), [ScriptedDrafter([1, *said])], draft_max=9
    ) as session:
        tokens, records = traced(session, [1], stop=[stop])
    assert [t["id"] for t in emitted(records)] == said[1:11]
    assert [t.id for t in tokens] == said[:8]


def test_bytes_that_are_no_text_are_spelt_out():
    model = TableModel(256)
    said = model.greedy([7], 12)
    assert any(token > 127 for token in said[1:])
    with Session(model, Endless()) as session:
        _, records = traced(session, [7], max_tokens=12)
    for token in emitted(records):
        byte = token["id"]
        assert token["text"] == (chr(byte) if byte < 128 else f"\\x{byte:02x}")


def test_a_header_is_json_whatever_the_settings():
    sampling = Sampling(temperature=0.5, logit_bias=((3, -np.inf), (4, 1.5)), seed=9)
    told = header("m", ["target", "mag"], "numeric", sampling, 12)
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again["format"] == "edgecs-rounds/1"
    assert again["sampling"]["logit_bias"] == [[3, "-inf"], [4, 1.5]]
    assert again["sampling"]["seed"] == 9
    assert (again["chain"], again["prompt_tokens"]) == (["target", "mag"], 12)


def test_lines_are_whole_before_the_file_is_closed(tmp_path: Path):
    path = tmp_path / "rounds.jsonl"
    older = json.dumps(header("m", [], "", Sampling(), 1)) + "\nlonger than what comes"
    path.write_text(older)
    path.chmod(0o644)
    trace = TraceFile(path)
    assert path.read_text() == older  # until there is something to write
    for n in range(3):
        trace.write({"n": n})
        assert path.read_text().splitlines()[-1] == f'{{"n": {n}}}'
    assert path.stat().st_mode & 0o777 == 0o600
    trace.close()
    trace.close()
    assert len(path.read_text().splitlines()) == 3


def test_a_disk_that_fills_up_keeps_whole_lines(tmp_path: Path):
    path = tmp_path / "rounds.jsonl"
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from edgecs.session.trace import TraceFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (105, 105))\n"
        "with TraceFile(Path(sys.argv[1])) as trace:\n"
        "    for n in range(10): trace.write({'n': n, 'x': 'x' * 20})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True
    )
    assert "EdgecsError" in done.stderr
    assert "ends early: File too large" in done.stderr
    lines = path.read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1]
    assert path.read_text().endswith("\n")


def test_a_trace_that_fails_hides_no_other_failure():
    with pytest.raises(EdgecsError, match="No space left on device"):
        write_to_full(None)
    with pytest.raises(ZeroDivisionError):
        write_to_full(ZeroDivisionError())


def write_to_full(failure: Exception | None) -> None:
    with TraceFile(Path("/dev/full")) as trace:
        trace.write({})
        if failure:
            raise failure


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", b"notes\n", b'{"format": "x"}'])
def test_a_trace_replaces_nothing_but_traces(tmp_path: Path, content: bytes):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="mine is not a trace of edgecs"):
        TraceFile(path)
    assert path.read_bytes() == content


def test_a_trace_is_refused_where_no_file_can_be(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "pipe", "No such device"),  # it has no reader
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "x", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(ConfigError, match=f"cannot be written: .*{why}"):
            TraceFile(path)


CHAIN = ["target", "big", "small", "mag"]
TOKENS = st.lists(
    st.builds(
        Token,
        st.integers(0, 9),
        st.sampled_from(["", "a", "é", "b c", "\n", "日本", "..."]),
        st.sampled_from(CHAIN),
    ),
    max_size=30,
)


def said_by(tokens: list[Token]) -> list[tuple[str, str]]:
    """Every character and who wrote it."""
    return [(char, token.source) for token in tokens for char in token.text]


def read(pattern: str, shown: str, names: dict[str, str]) -> list[tuple[str, str]]:
    """What a reader takes from a text: `pattern` finds a name and its text."""
    found = []
    for part in re.finditer(rf"{pattern}|(?P<plain>.)", shown, re.S):
        if part["plain"]:
            found.append((part["plain"], "target"))
        else:
            assert part["text"]
            found += [(char, names[part["name"]]) for char in part["text"]]
    return found


@given(tokens=TOKENS)
def test_marks_and_colours_tell_who_wrote_every_character(tokens: list[Token]):
    said = said_by(tokens)
    assert "".join(plain(tokens)) == "".join(char for char, _ in said)
    marks = "".join(marked(CHAIN, tokens))
    names = {name: name for name in CHAIN[1:]}
    assert read(r"\[(?P<name>\w+):(?P<text>[^\]]*)\]", marks, names) == said
    colours = "".join(coloured(CHAIN, tokens))
    names = dict(zip(map(str, COLOURS), CHAIN[:0:-1], strict=False))
    ansi = r"\x1b\[38;5;(?P<name>\d+)m(?P<text>[^\x1b]*)\x1b\[0m"
    assert read(ansi, colours, names) == said


def test_marks_come_while_the_answer_does_and_span_a_run():
    tokens = [
        Token(0, "a", "target"),
        Token(1, "b", "mag"),
        Token(2, "", "small"),  # its text waits, and comes with the next
        Token(3, "c", "mag"),
        Token(4, "d", "small"),
        Token(5, "", "target"),
    ]
    assert [*marked(CHAIN, tokens)] == ["a", "[mag:b", "c", "][small:d", "]"]


def test_every_drafter_of_a_long_chain_looks_different():
    chain = ["target", *(f"d{i}" for i in range(2 * len(COLOURS)))]
    shown = [*coloured(chain, [Token(0, "x", name) for name in chain])]
    assert shown[0] == "x"
    assert len(set(shown)) == len(chain)


def linear(colour: int) -> np.ndarray:
    """Linear RGB of one of the 216 colours of a terminal's cube."""
    levels, at = (0, 95, 135, 175, 215, 255), colour - 16
    rgb = np.array([levels[at // 36], levels[at // 6 % 6], levels[at % 6]]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    matrix = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722]]
    matrix += [[0.0193, 0.1192, 0.9503]]
    xyz = np.array(matrix) @ rgb / [0.9505, 1, 1.0888]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira, Fernandes (2009), severity 1.0.
EYES = {
    "three cones": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    "protanopia": [0.152, 1.053, -0.205, 0.115, 0.786, 0.099, -0.004, -0.048, 1.052],
    "deuteranopia": [0.367, 0.861, -0.228, 0.28, 0.673, 0.047, -0.012, 0.043, 0.969],
    "tritanopia": [1.256, -0.077, -0.179, -0.078, 0.931, 0.148, 0.005, 0.691, 0.304],
}


@pytest.mark.parametrize("eyes", EYES)
def test_colours_differ_for_everybody(eyes: str):
    matrix = np.reshape(EYES[eyes], (3, 3))
    seen = [lab(np.clip(matrix @ linear(c), 0, 1)) for c in COLOURS]
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(one - other) > 40


def test_colours_can_be_read_on_black_and_on_white():
    for colour in COLOURS:
        light = linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05
        assert min(light / 0.05, 1.05 / light) > 3, colour


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_legend_counts_every_token_once():
    said = TableModel(5).greedy([1], 30)
    good = ScriptedDrafter([1, *said], name="good")
    bad = ScriptedDrafter([1, *said], wrong=1.0, vocab_size=5, name="bad")
    with Session(TableModel(5), Endless(), [good, bad], draft_max=2) as session:
        list(session.generate([1], max_tokens=13))
        lines = legend(session, "numeric", colours=False)
    assert lines == [
        "source  tokens  share  proposed  tested  accepted",
        "target       5    38%",
        "good         8    62%         8       8         8",
        "bad          0     0%         6       6         0",
        "[name:...]: the drafter of a text",
        "rounds by tokens in the call: 1 of 3, 3 of 5",
        "exactness: numeric",
    ]


def test_a_legend_shows_the_colours_of_the_answer():
    with Session(TableModel(5), Endless(), [MaxGram()], draft_max=2) as session:
        list(session.generate([1], max_tokens=13))
        lines = legend(session, "numeric", colours=True)
        assert lines[2].startswith(click.style("mag", fg=COLOURS[0]) + " ")
        marks = legend(session, "numeric", colours=False)
    own = ("[name:", "colours:")
    plain = [click.unstyle(line) for line in lines if not line.startswith(own)]
    assert plain == [line for line in marks if not line.startswith(own)]
    assert sum(line.startswith(own) for line in lines) == 1


@pytest.mark.parametrize("token", [1e-9, 1.0])  # nothing is as good as the first
def test_a_legend_of_a_planner_says_why_not_more(token: float):
    costs = CostModel()
    costs.measured(0, {1: token, 2: 1.01, 3: 1.02})
    slow = NamedModel("slow", TableModel(3, 1))
    planner = Planner(costs, Calibration(), [MaxGram()], [slow])
    planner.neural[0].costs.measured(0, {1: 10.0})
    with Session(TableModel(3), Endless(), schedule=planner) as session:
        list(session.generate([0, 1, 0, 1], max_tokens=12))
        lines = legend(session, "numeric", colours=False)
        records = session.stats.records
    standing = planner.neural[0].status
    assert standing.startswith("parked: 10000.0 ms a token")
    assert f"slow: {standing}" in lines
    (told,) = [line for line in lines if line.startswith("mag: ")]
    used, rounds, idle, silent = map(int, re.findall(r"\d+", told))
    assert (used > 0, idle > 0)[token < 1]
    assert rounds == len(records)
    assert used == sum("mag" in record.tested for record in records)
    assert silent == sum(not record.proposed for record in records)
    assert used + idle + silent == rounds


def test_a_legend_without_drafts_says_why():
    with Session(TableModel(5), Endless()) as session:
        assert legend(session, "", colours=False)[-2:] == [
            "target       0",
            "speculation: off (not asked for)",
        ]


LETTERS = ("--grammar", "root ::= [a-d]+", "--temp", 0.7, "-s", 3)  # no marks in it


def generate(edgecs: Edgecs, model: Path, *options: object) -> Outcome:
    fixed = ("-c", 512, "-p", "hello, hello", "-n", 90)
    outcome = edgecs("generate", "-m", model, *fixed, *options)
    assert outcome.code == 0, outcome
    return outcome


@pytest.mark.parametrize(
    "options",
    [
        ("--k-matrix", "5"),
        ("--no-spec",),
        ("--draft", "tiny", "--k-matrix", "3,2;0,3"),
        ("--draft-max", 7),
    ],
)
def test_the_file_of_a_trace_agrees_with_the_report(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, options
):
    options = [tiny_gguf if option == "tiny" else option for option in options]
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"format": "edgecs-rounds/1"}\n' * 10_000)
    more = ("--json", "--trace", path, *options)
    report = json.loads(generate(edgecs, tiny_gguf, *LETTERS, *more).out)
    top, *records = map(json.loads, path.read_text().splitlines())
    block = report["speculative"]
    assert (top["model"], top["chain"]) == (tiny_gguf.stem, block["chain"])
    assert top["prompt_tokens"] == report["usage"]["prompt_tokens"]
    assert (top["sampling"]["temperature"], top["sampling"]["seed"]) == (0.7, 3)
    assert [t["id"] for t in emitted(records)] == report["tokens"][1:]
    assert "".join(t["text"] for t in emitted(records)) == report["text"][1:]
    assert len(records) == block["rounds"]
    sums = {
        "proposed": sum(sum(r["written"].values()) for r in records),
        "tested": sum(len(r["proposed"]) for r in records),
        "accepted": sum(r["accepted"] for r in records),
    }
    assert sums == {name: block[name] for name in sums}
    places = np.cumsum([0, *(len(r["tokens"]) for r in records)])
    assert [r["position"] for r in records] == (
        top["prompt_tokens"] + 1 + places[:-1]
    ).tolist()
    plain_answer = generate(edgecs, tiny_gguf, *LETTERS, "--json", *options)
    assert json.loads(plain_answer.out)["tokens"] == report["tokens"]


@pytest.mark.parametrize("top_k", [0, 40])
def test_margins_are_worked_out_where_that_is_quick(edgecs, tiny_gguf, tmp_path, top_k):
    path = tmp_path / "rounds.jsonl"
    fixed = ("-s", 3, "--k-matrix", "5", "--top-k", top_k)
    generate(edgecs, tiny_gguf, *fixed, "--trace", path)
    _, *records = map(json.loads, path.read_text().splitlines())
    margins = {r["rejected"]["margin"] is not None for r in records if r["rejected"]}
    assert margins == {top_k > 0}


def test_a_trace_is_refused_before_a_model_is_looked_for(edgecs, tmp_path: Path):
    command = ("generate", "-m", tmp_path / "no-model.gguf", "-p", "x", "--trace")
    one_line(edgecs(*command, tmp_path), 2, str(tmp_path), "Is a directory")
    one_line(edgecs(*command, tmp_path / "a" / "b"), 2, "No such file")
    one_line(edgecs(*command, "-"), 2, "--trace writes to a file")


def test_a_full_disk_ends_the_trace_and_not_the_answer(edgecs, tiny_gguf: Path):
    whole = generate(edgecs, tiny_gguf, *LETTERS, "-q").out
    command = ("generate", "-m", tiny_gguf, "-c", 512, "-p", "hello, hello", "-n", 90)
    outcome = edgecs(*command, *LETTERS, "-q", "--trace", "/dev/full")
    assert (outcome.code, outcome.out) == (1, whole)
    (line,) = outcome.err.splitlines()
    assert "the trace /dev/full ends early: No space left on device" in line


def test_explained_text_is_the_answer(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    clean_environment(monkeypatch)
    fixed = (*LETTERS, "--k-matrix", "5")
    answer = generate(edgecs, tiny_gguf, *fixed, "-q").out
    marks = generate(edgecs, tiny_gguf, *fixed, "--explain")
    assert "[mag:" in marks.out
    assert re.sub(r"\[mag:|\]", "", marks.out) == answer
    assert "\x1b" not in marks.out + marks.err
    shown = [line.split()[0] for line in marks.err.splitlines()[-7:]]
    assert shown == [
        "source",
        "target",
        "mag",
        "[name:...]:",
        "rounds",
        "exactness:",
        "90",
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    colours = generate(edgecs, tiny_gguf, *fixed, "--explain")
    assert f"\x1b[38;5;{COLOURS[0]}m" in colours.out
    assert click.unstyle(colours.out) == answer
    assert f"\x1b[38;5;{COLOURS[0]}mmag\x1b[0m" in colours.err
    monkeypatch.setenv("NO_COLOR", "1")
    quiet = generate(edgecs, tiny_gguf, *fixed, "--explain", "-q")
    assert (quiet.out, quiet.err) == (marks.out, "")


def test_explain_and_json_exclude_each_other(edgecs: Edgecs):
    outcome = edgecs("generate", "-m", "none", "-p", "x", "--explain", "--json")
    one_line(outcome, 2, "--explain and --json are mutually exclusive", "--trace")
