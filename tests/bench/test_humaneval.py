"""Code that a model wrote: what is run of it, where, and what it may not do."""

from __future__ import annotations

import sys
from pathlib import Path
from time import sleep

import pytest

from edgecs_bench.run import energy, humaneval
from edgecs_bench.run.answers import Answer
from edgecs_bench.run.blocks import Done
from edgecs_bench.run.humaneval import pass_at_1, program, run
from edgecs_bench.suite.prompts import Exam, Prompt

PROMPT = '''from typing import List


def helper(x):
    return x


def double(xs: List[int]) -> List[int]:
    """Twice as much."""
'''
EXAM = Exam("def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n", "double")
RIGHT = "def double(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


@linux
@pytest.mark.parametrize(
    "answer",
    [
        f"Sure:\n```python\n{RIGHT}```\nThis doubles.",
        f"```\nprint('first')\n```\nand\n```py\n{RIGHT}```",
        f"```python\n{RIGHT}",  # the answer was cut off behind the code
        f"```python\nfrom typing import List\n\n{RIGHT}```",
        RIGHT,
        "    return [helper(x) + x for x in xs]\n",
    ],
)
def test_right_answers_pass_however_they_are_wrapped(answer: str):
    assert run(program(PROMPT, EXAM, answer)) is None


@linux
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("```python\ndef double(xs):\n    return xs\n```", "AssertionError"),
        ("I cannot do that.", "SyntaxError"),
        ("```python\ndef double(xs):\n    return undefined\n```", "NameError"),
        ("", "AssertionError"),
    ],
)
def test_wrong_answers_fail_with_a_reason(answer: str, reason: str):
    assert reason in (run(program(PROMPT, EXAM, answer)) or "passed")


@linux
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "killed"),
        ("import time; time.sleep(60)", "not finished after 1 s"),
        ("x = bytearray(4 << 30)", "MemoryError"),
        ("import os\nfor _ in range(40): os.fork() or os._exit(0)", "Error"),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "OSError"),
        ("open('big', 'wb').write(b'x' * (4 << 20))", "File too large"),
        ("import os; os._exit(0)", "killed"),  # it left before its tests were through
        ("raise SystemExit(0)", "SystemExit"),
        ("import ctypes; ctypes.string_at(0)", "killed"),
        ("print('x' * 10**7); 1 / 0", "ZeroDivisionError"),
        ("raise Exception('line\\n' * 10**6)", "Exception: line line"),
        ("\x00", "SyntaxError"),
    ],
)
def test_a_program_cannot_do_much(code: str, reason: str, monkeypatch):
    # What sleeps uses no time of the processor: the clock ends it.
    monkeypatch.setattr(humaneval, "GRACE", 3)
    assert reason in (run(code, seconds=1) or "passed")


@linux
def test_nothing_is_left_of_a_program(tmp_path: Path):
    mark = tmp_path / "mark"
    code = (
        "import os, time\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    time.sleep(3)\n"
        f"    open({str(mark)!r}, 'w')\n"
    )
    assert run(code) is None
    sleep(4)
    assert not mark.exists()


def answer(mode: str, name: str = "p", repeat: int = 0, t: float = 0.0) -> Answer:
    return Answer("humaneval", name, 9, mode, t, repeat, 0, 1.0, 1.0, 9, 0, 8, 0, 0, 9)


def test_pass_at_1_counts_first_answers_and_runs_equal_ones_once(monkeypatch):
    tried = []

    def fake(code: str) -> str | None:
        tried.append(code)
        return None if "2 * x" in code else "AssertionError"

    monkeypatch.setattr(humaneval, "run", fake)
    prompts = [Prompt("p", "humaneval", PROMPT, EXAM), Prompt("q", "humaneval", "x")]
    texts = {"plain": RIGHT, "planner": RIGHT, "mag:3": "wrong"}
    modes = ["plain", "planner", "mag:3", "llama"]
    done = [
        Done(0, (1.0, 1.0), 0.0, [answer(mode) for mode in modes], texts),
        Done(1, (1.0, 1.0), 0.0, [answer("plain", repeat=1)], texts),
        Done(2, (1.0, 1.0), 0.0, [answer("plain", "q")], texts),
    ]
    rows = pass_at_1(done, prompts)
    assert [(r["mode"], r["problems"], r["passed"]) for r in rows] == [
        ("plain", 1, 1),
        ("planner", 1, 1),
        ("mag:3", 1, 0),
    ]
    assert rows[2]["failed"] == [["p", "AssertionError"]]
    assert len(tried) == 2


def zone(root: Path, name: str, used: int) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{used}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_rapl_adds_packages_up_and_wraps_around(tmp_path: Path):
    zone(tmp_path, "intel-rapl:0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", 5)  # a part of the package
    zone(tmp_path, "intel-rapl:1", 0)
    rapl = energy.Rapl(tmp_path)
    assert rapl.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", 100_000)
    zone(tmp_path, "intel-rapl:1", 500_000)
    assert rapl.joules() == pytest.approx(0.2 + 0.5)
    assert rapl.joules() == pytest.approx(0.7)


def test_a_machine_that_tells_nothing_has_no_energy(tmp_path: Path, monkeypatch):
    with pytest.raises(OSError, match="no RAPL"):
        energy.Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("much")
    with pytest.raises(OSError, match="does not hold a number"):
        energy.Rapl(tmp_path)
    monkeypatch.setattr(energy, "_RAPL", tmp_path / "none")
    monkeypatch.setattr(energy.Rapl.__init__, "__defaults__", (tmp_path / "none",))
    monkeypatch.setattr(sys, "platform", "linux")
    found = energy.open_energy(gpu=False)
    assert (found.source, found.joules()) == (None, None)
