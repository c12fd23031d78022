"""HumanEval: whether code written by a model is correct (Chen et al., 2021).

Programs run in `suite/sandbox.py`, in a separate process, and only if the user allows
it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from edgecs_bench.run.blocks import Done
from edgecs_bench.suite.prompts import Exam, Prompt
from edgecs_bench.suite.sandbox import REFUSED

SECONDS, MIB = 10, 1024  # for one program
LATE = "not finished"  # how the reason begins where a program had too little time
GRACE = 5  # seconds of wall-clock time beyond the processor time
_JAIL = Path(__file__).parents[1] / "suite" / "sandbox.py"
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NO_NETWORK = "(version 1)(allow default)(deny network*)"


def program(prompt: str, exam: Exam, answer: str) -> str:
    """The program that tests an answer.

    The code is the first fenced block that defines the function, otherwise the answer
    itself, which may continue the prompt. The part of the prompt before the function
    (imports and helpers) comes first.
    """
    wanted = _definition(exam)
    blocks = [*_FENCE.findall(answer), answer]
    code = next((block for block in blocks if wanted.search(block)), None)
    start = wanted.search(prompt)
    before = prompt[: start.start()] if start else ""
    code = prompt + answer if code is None else f"{before}\n{code}"
    return f"{code}\n{exam.test}\ncheck({exam.entry_point})\n"


def is_complete(exam: Exam, answer: str) -> bool:
    """Whether no further text changes the code that `program` takes from an answer.

    That is so when a fenced block that defines the function is closed.
    """
    wanted = _definition(exam)
    return any(
        block[0].endswith("```") and wanted.search(block[1])
        for block in _FENCE.finditer(answer)
    )


def _definition(exam: Exam) -> re.Pattern[str]:
    """Matches where the tested function begins."""
    return re.compile(rf"^def\s+{re.escape(exam.entry_point)}\b", re.MULTILINE)


def run(code: str, seconds: int = SECONDS, mib: int = MIB) -> str | None:
    """Why a program failed; None: it passed.

    Raises click.ClickException if the network cannot be disabled for a program.
    """
    command = [sys.executable, "-I", str(_JAIL), str(seconds), str(mib)]
    environment = {"PATH": os.defpath}
    if sys.platform == "darwin":
        command = ["sandbox-exec", "-p", _NO_NETWORK, *command]
        environment["EDGECS_JAILED"] = "1"
    elif sys.platform == "win32":
        raise _not_here()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            data = code.encode(errors="replace")
            _, said = process.communicate(data, seconds + GRACE)
        except subprocess.TimeoutExpired:
            return f"{LATE} after {seconds} s"
        finally:
            process.kill()
            process.communicate()
    if process.returncode == REFUSED:
        raise _not_here()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it was killed: too much time or memory"
    return None


def _not_here() -> click.ClickException:
    return click.ClickException(
        "code cannot be run without network here (namespaces are not allowed, or this "
        "is Windows): leave --allow-code-execution out"
    )


def pass_at_1(
    done: Iterable[Done],
    prompts: Iterable[Prompt],
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Problems solved by the first answer, by mode and temperature.

    Modes of other runtimes are skipped, because they give ids and no text. Equal
    answers are run once.
    """
    exams = {(p.category, p.id): p for p in prompts if p.exam}
    tried: dict[tuple[str, str], str | None] = {}
    found: dict[tuple[str, float], dict[str, str | None]] = {}
    for one in done:
        for answer in one.answers:
            prompt, text = exams.get((answer.category, answer.id)), ""
            text = one.texts.get(answer.mode, "")
            if prompt is None or prompt.exam is None or answer.repeat or not text:
                continue
            if (answer.id, text) not in tried:
                reason = run(program(prompt.text, prompt.exam, text))
                tried[answer.id, text] = reason
                say(f"{answer.id}: {reason or 'passed'}")
            reasons = found.setdefault((answer.mode, answer.temperature), {})
            reasons[answer.id] = tried[answer.id, text]
    return [_row(mode, t, reasons) for (mode, t), reasons in found.items()]


def _row(
    mode: str, temperature: float, reasons: Mapping[str, str | None]
) -> dict[str, Any]:
    failed = [[name, reason] for name, reason in reasons.items() if reason]
    return {
        "mode": mode,
        "temperature": temperature,
        "problems": len(reasons),
        "passed": len(reasons) - len(failed),
        "failed": failed,
    }
