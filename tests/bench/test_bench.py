"""`edgecs bench`: what it runs, what it writes, what it refuses; never its times."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgecs.errors import ModelError
from edgecs_bench.hardware import catalogue
from edgecs_bench.report.comparison import compare, differences
from edgecs_bench.run import throughput
from edgecs_bench.run.journal import Journal
from edgecs_bench.run.result import FORMAT, read, schema, tables
from edgecs_bench.run.throughput import measure, row
from edgecs_cli.commands.bench import FORMS
from edgecs_cli.options.kinds import PAGE
from tests.commands import one_line
from tests.conftest import Outcome, before_calls

Edgecs = Callable[..., Outcome]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"question_id": 1, "category": "math", "turns": ["aa bb aa bb"]},
        {"question_id": 2, "category": "qa", "turns": ["hello, hello"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def bench(edgecs: Edgecs, tiny_gguf: Path, prompts: Path) -> Callable[..., Outcome]:
    """Two prompts, once, without tests of prefill."""
    fixed = ["-m", tiny_gguf, "-c", 512, "-t", 1, "--suite", prompts, "-n", 24]

    def call(*options: object) -> Outcome:
        return edgecs("bench", *fixed, "-r", 1, "--no-tests", *options)

    return call


def test_a_result_is_what_the_schema_says(bench, tiny_gguf: Path):
    options = ("--draft", tiny_gguf, "--mode", "llama", "--mode", "planner")
    options += ("--mode", "k:2,2;0,2", "--mode", "tiny:2", "--mode", "mag:5")
    outcome = bench(
        *options, "--test", "pp16", "--exact", "numeric", "--format", "json"
    )
    assert outcome.code == 0, outcome
    result = json.loads(outcome.out, parse_constant=pytest.fail)
    jsonschema.validate(result, schema())
    names = ["plain", "llama", "planner", "k:2,2;0,2", "tiny:2", "mag:5"]
    assert [mode["name"] for mode in result["modes"]] == names
    assert result["tests"] == []  # --no-tests counts more than --test
    assert result["suite"]["names"] == ["prompts.jsonl"]
    assert result["options"]["predict"] == 24
    greedy = [a for a in result["answers"] if not a["temperature"]]
    assert [a["mode"] for a in greedy] == names * 2
    assert {a["mode"] for a in result["answers"] if a["temperature"]} == (
        {*names} - {"llama"}
    )
    for answer in result["answers"]:
        assert answer["fork"] is None
        assert 0 < answer["tokens"] <= 24
        if answer["mode"] not in ("plain", "llama"):
            assert sum(answer["tiers"].values()) == answer["tokens"] - 1
            assert answer["planner_us"] > 0
        if answer["mode"] == "tiny:2":  # the same weights draft: nearly always right
            assert answer["accepted"] > answer["tested"] / 2
    assert len(result["anchors"]) == 1 + len({a["block"] for a in result["answers"]})
    assert {s["category"] for s in result["samples"]} == {"mt_bench", "qa"}
    for sample in result["samples"]:
        assert sample["mode"] == "mag:5"
        said = sum(moment["emitted"] for moment in sample["rounds"])
        assert said == next(
            a["tokens"] - 1
            for a in greedy
            if (a["mode"], a["category"]) == ("mag:5", sample["category"])
        )
    assert result["costs"]["ms"]["1"] > 0
    assert result["costs"]["overhead_ms"] > 0
    assert set(result["costs"]["drafters"]) == {"tiny"}


def test_people_get_tables_and_what_they_come_to(bench):
    outcome = bench("--temp", 0, "--mode", "planner", "--mode", "again")
    lines = outcome.out.splitlines()
    assert lines[0].split("|")[1].strip() == "category"
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["mt_bench", "qa"]
    assert any(line.startswith("planner, temp 0: ") for line in lines)
    assert any(line.startswith("again, temp 0: ") for line in lines)
    assert "[2/2] qa 2, temp 0: plain" in outcome.err
    assert bench("-q", "--temp", 0).err == ""


def test_rows_as_csv_and_json_lines(bench):
    options = ("--temp", 0, "--mode", "mag", "-q")
    lines = list(csv.DictReader(io.StringIO(bench(*options, "-F", "csv").out)))
    rows = list(map(json.loads, bench(*options, "-F", "jsonl").out.splitlines()))
    for found in (lines, rows):
        assert [(row["mode"], row["category"]) for row in found] == [
            (mode, category)
            for mode in ("plain", "mag:3")
            for category in ("mt_bench", "qa")
        ]
    assert json.loads(lines[0]["spread"]) == rows[0]["spread"]


def test_tests_in_the_terms_of_llama_bench(edgecs, tiny_gguf: Path, prompts: Path):
    command = ("bench", "-m", tiny_gguf, "-c", 300, "-t", 1, "--suite", prompts)
    command += ("-n", 8, "-r", 2, "--temp", 0, "--mode", "plain", "--format", "json")
    names = ("pp100", "tg8", "pp8@d200", "pp301")
    given = [word for name in names for word in ("--test", name)]
    outcome = edgecs(*command, *given)
    result = json.loads(outcome.out)
    assert [t["test"] for t in result["tests"]] == ["pp100", "tg8", "pp8 @ d200"]
    assert "pp301 does not fit into a context of 300 tokens" in outcome.err
    for test in result["tests"]:
        assert len(test["samples_ns"]) == 2
        assert test["avg_ts"] > 0


def test_a_test_feeds_what_it_says(tiny):
    fed = []
    score = tiny.target.score

    def counting(requests):
        (rows,) = score(requests)
        fed.append((len(requests[0].context), rows.fed))
        return [rows]

    tiny.target.score = counting
    measure(tiny.target, [throughput.Test("tg", 3, 40)], 1)
    warm, timed = fed[:3], fed[3:]
    assert warm == timed == [(41, 1), (42, 1), (43, 1)]
    del fed[:]
    measure(tiny.target, [throughput.Test("pp", 50, 0)], 1)
    assert fed == [(32, 32), (50, 50)]


def test_a_row_of_a_test_is_arithmetic():
    found = row(throughput.Test("tg", 10, 0), [10**9, 2 * 10**9])
    assert (found["avg_ts"], found["samples_ts"]) == (7.5, [10.0, 5.0])
    assert (found["n_prompt"], found["n_gen"]) == (0, 10)
    assert row(throughput.Test("pp", 10, 5), [10**9])["stddev_ts"] == 0.0


def test_results_and_profiles_are_written_and_read(bench, edgecs, tmp_path: Path):
    file, profile = tmp_path / "run.json", tmp_path / "hardware.json"
    written = ("-o", file, "--export-profile", profile)
    assert bench("--temp", 0, "-q", *written).code == 0
    (result,) = read(file)
    assert tables(result)
    target = catalogue.read(profile).targets[0]
    assert target.model == "tiny"
    assert {str(n): ms for n, ms in target.ms.items()} == result["costs"]["ms"]
    merged = tmp_path / "all.json"
    outcome = edgecs("bench", "merge", file, file, "--output", merged)
    assert outcome.code == 0, outcome
    assert read(merged) == [result, result]
    assert outcome.out.count("planner") == 2


def test_two_results_side_by_side(bench, edgecs, tmp_path: Path):
    for name, seed in (("a.json", 1), ("b.json", 2)):
        bench("--temp", 0, "--mode", "mag", "-s", seed, "--output", tmp_path / name)
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    outcome = edgecs("bench", "compare", a, b)
    assert outcome.code == 0, outcome
    assert "other seed: 1 and 2" in outcome.out
    assert "other machine" not in outcome.out
    assert "mag:3, temp 0: B has" in outcome.out
    (found,) = json.loads(edgecs("bench", "compare", a, b, "--json").out)["compared"]
    assert [row["mode"] for row in found["rows"]] == ["plain"] * 2 + ["mag:3"] * 2
    same = edgecs("bench", "compare", a, a, "--json")
    (found,) = json.loads(same.out)["compared"]
    assert found["differences"] == []
    assert all(row["ratio"] == 1.0 for row in found["rows"])


def test_a_comparison_needs_something_in_common(bench, edgecs, tmp_path: Path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    bench("--temp", 0, "--category", "qa", "--mode", "plain", "--output", a)
    bench("--temp", 0, "--category", "mt_bench", "--mode", "plain", "--output", b)
    one_line(edgecs("bench", "compare", a, b), 2, "no category, mode and temperature")
    (one,), (other,) = read(a), read(b)
    assert compare(one, other) == []
    assert any(line.startswith("other prompts") for line in differences(one, other))


def test_an_interrupted_run_is_resumed(bench, tmp_path: Path, monkeypatch):
    path = tmp_path / "run.jsonl"
    options = ("--temp", 0, "--mode", "mag", "-q", "-F", "json", "--resume", path)
    first = json.loads(bench(*options).out)

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("edgecs_bench.run.blocks.Bench._block", refuse)
    again = json.loads(bench(*options).out)
    for name in ("answers", "rows", "anchors", "costs"):
        assert again[name] == first[name], name
    one_line(bench(*options, "-n", 25), 2, "other options (most)")


def test_a_header_is_there_whole_or_not_at_all(tmp_path: Path):
    """Half a header would be taken for somebody's file, and no run go on."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from edgecs_bench.run.journal import Journal\n"
        "def kill(event, values):\n"
        "    if event == 'os.rename': os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
        "Journal(Path(sys.argv[1]), {'seed': 1})\n"
    )
    path = tmp_path / "run.jsonl"
    subprocess.run([sys.executable, "-c", script, path], check=False)
    (left,) = tmp_path.iterdir()
    assert left != path
    Journal(path, {"seed": 1}).add(["tests"], {})
    assert Journal(path, {"seed": 1}).done == {"['tests']": {}}
    assert [*tmp_path.iterdir()] == [path]


def test_where_time_is_up_other_runtimes_are_not_asked(bench, monkeypatch):
    monkeypatch.setattr("edgecs_bench.run.runner.monotonic", lambda: 1e18)
    peers = ("--peers", "llama-cpp-python/plain", "--time-budget", 1000)
    outcome = bench("--temp", 0, "--mode", "mag", "-F", "json", *peers)
    assert outcome.code == 0, outcome
    modes = [mode["name"] for mode in json.loads(outcome.out)["modes"]]
    assert modes == ["plain", "mag:3"]
    assert "the other runtimes were skipped" in outcome.err


def test_ctrl_c_ends_a_run_and_what_is_done_is_kept(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.jsonl"
    options = ("--temp", 0, "--mode", "mag", "--resume", path)

    def told(number: int) -> None:
        if path.exists() and path.read_text().count("\n") == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        before_calls(patch, told)
        one_line(bench(*options, "-q"), 130, "stopped")
    lines = path.read_text().splitlines()
    assert len(lines) == 4  # header, tests, costs, one block
    assert bench(*options).code == 0
    assert path.read_text().splitlines()[:4] == lines


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--suite", "nothing"], ["no suite or file is named 'nothing'", "quick"]),
        (["--category", "poetry"], ["no prompts of category poetry"]),
        (["--mode", "mag:x"], ["invalid mode 'mag:x'", "not a number of tokens"]),
        (["--mode", "mag:0"], ["invalid mode 'mag:0'"]),
        (["--mode", "mag:900"], ["'mag:900' drafts 900 tokens", "at most 63"]),
        (["--mode", "who"], ["unknown drafter 'who'", "planner"]),
        (["--mode", "k:1,2;3"], ["K matrix"]),
        (["--test", "tg0", "-r", 1], ["invalid test 'tg0'"]),
        (["-n", 1], ["a whole number of at least 2, got '1'"]),
        (["--temp", "nan"], ["temp"]),
        (["-n", 505], ["no prompt fits into the context", "-c"]),
        (["--draft", "nothing.gguf"], ["nothing.gguf"]),
    ],
)
def test_what_cannot_be_measured_is_refused(edgecs, tiny_gguf, prompts, options, parts):
    command = ("bench", "-m", tiny_gguf, "-c", 512, "-t", 1, "-q", "-r", 1)
    suite = () if "--suite" in options else ("--suite", prompts)
    outcome = edgecs(*command, *suite, *options)
    assert outcome.code in (2, 3), outcome
    one_line(outcome, outcome.code, *parts)


def test_a_model_is_needed_but_not_by_the_commands_of_the_group(edgecs: Edgecs):
    one_line(edgecs("bench"), 2, "Missing option '-m'")
    one_line(edgecs("bench", "compare", "a", "b"), 2, "a cannot be read")


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{}",
        b"[]",
        bytes(range(256)),
        b"[" * 100_000,
        b'{"format": "edgecs-bench/2"}',
        json.dumps({"format": FORMAT}).encode(),
        b'{"format": "edgecs-bench-merged/1", "results": 5}',
        b'{"format": "edgecs-bench-merged/1", "results": [null]}',
    ],
)
def test_files_that_are_no_results_are_refused(edgecs, tmp_path, content):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content)
    for command in (("compare", file, file), ("merge", file, "-o", "x.json")):
        outcome = edgecs("bench", *command)
        one_line(outcome, 2, str(file))
    assert not Path("x.json").exists()


def test_a_cut_off_result_is_refused(bench, edgecs, tmp_path: Path):
    file = tmp_path / "run.json"
    bench("--temp", 0, "--mode", "plain", "--output", file)
    fields: dict[str, Any] = json.loads(file.read_text())
    for name in schema()["required"]:
        less = {key: value for key, value in fields.items() if key != name}
        file.write_text(json.dumps(less))
        one_line(edgecs("bench", "compare", file, file), 2, "is not a result", name)
    fields["rows"][0].pop("speedup")
    file.write_text(json.dumps(fields))
    one_line(edgecs("bench", "compare", file, file), 2, "'speedup' is missing")


WRITTEN = ("--output", "--report", "--export-profile", "--resume")


@pytest.mark.parametrize("option", WRITTEN)
def test_a_place_that_takes_no_result_is_refused_first(
    bench, tmp_path: Path, monkeypatch, option: str
):
    before_calls(monkeypatch, no_call)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    places = {
        "none/run.json": "No such file",
        "file/run.json": "Not a directory",
        "folder": "it is a folder",
    }
    for name, why in places.items():
        outcome = bench("-q", option, tmp_path / name)
        one_line(outcome, 2, f"{name} cannot be written: {why}")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        outcome = bench("-q", option, tmp_path / "pipe")
        one_line(outcome, 2, "pipe cannot be written: it is a named pipe")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("option", WRITTEN)
def test_a_place_that_one_may_not_write_to_is_refused_first(
    bench, tmp_path: Path, monkeypatch, option: str
):
    before_calls(monkeypatch, no_call)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    outcome = bench("-q", option, tmp_path / "run.json")
    one_line(outcome, 2, "run.json cannot be written: Permission denied")
    assert not (tmp_path / "run.json").exists()


def test_a_peer_that_nobody_knows_is_refused_before_a_model_is_loaded(
    bench, monkeypatch
):
    before_calls(monkeypatch, no_call)
    one_line(bench("-q", "--peers", "nobody"), 2, "there is no peer nobody: give all")


@pytest.mark.parametrize("option", WRITTEN)
def test_a_place_is_looked_at_and_not_touched(
    bench, tmp_path: Path, prompts: Path, monkeypatch, option: str
):
    """The file is there as it was until there is something to write."""
    monkeypatch.setattr("edgecs.runtime.builder.find_files", missing)
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    before = PAGE.decode() if option == "--report" else '{"format": "edgecs-x"}\n'
    old.write_text(before)
    for file in (new, old):
        one_line(bench("-q", option, file), 3, "there is no model")
    assert not new.exists()
    assert old.read_text() == before


def test_a_file_that_is_no_journal_is_refused_first(bench, tmp_path: Path, monkeypatch):
    before_calls(monkeypatch, no_call)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\n\x00\x01")
    outcome = bench("-q", "--resume", file)
    one_line(outcome, 2, "model.gguf cannot be resumed: it is not a journal")
    assert file.read_bytes() == b"GGUF\n\x00\x01"


def no_call(number: int) -> None:
    raise AssertionError("something was measured")


def missing(*args: object, **kwargs: object) -> None:
    raise ModelError("there is no model")


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_not_taken_for_a_file(bench, form: str, monkeypatch):
    before_calls(monkeypatch, no_call)
    one_line(bench("-o", form), 2, f"--format {form}")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_without_an_end_are_refused(bench, monkeypatch, number: str):
    before_calls(monkeypatch, no_call)
    one_line(bench("--time-budget", number), 2, "--time-budget")
    one_line(bench("--temp", number), 2, "--temp")


@pytest.mark.parametrize("option", ["-o", "--report", "--export-profile"])
def test_a_file_of_somebody_else_is_not_replaced(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, option: str
):
    notes = tmp_path / "notes"
    notes.write_bytes(tiny_gguf.read_bytes())
    outcome = edgecs("bench", "-m", tiny_gguf, "--test", "tg1", option, notes)
    assert outcome.code == 2
    assert "the file exists, and edgecs did not write it" in outcome.err.replace(
        "\n", " "
    )
    assert notes.read_bytes() == tiny_gguf.read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("option", ["--hardware", "--against"])
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(
    edgecs: Edgecs, tmp_path: Path, option: str
):
    os.mkfifo(tmp_path / "pipe")
    outcome = edgecs("simulate", option, tmp_path / "pipe")
    assert outcome.code == 2
