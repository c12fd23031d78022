"""`python -m tests.fuzz`: draws cases, counts failures, says how to repeat them."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import click

from tests.fuzz.kinds import KINDS

_FAILURES = ("tracebacks", "exit codes", "control characters", "hangs", "aborts")
_CASES_OF_A_WORKER = 100  # then another one starts, as memory is not given back


class Worker:
    """A process that runs cases; another one where it hung or was ended."""

    def __init__(self, seed: str, seconds: float) -> None:
        self._seed, self._seconds = seed, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._done = 0

    def run(self, kind: str, number: int) -> dict[str, Any]:
        """What became of a case."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{kind} {number}\n".encode())
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._seconds)
        line = process.stdout.readline() if ready else b""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self.close()
        code = process.returncode
        if not ready:
            said = f"did not end within {self._seconds:.0f} s"
            return {"problem": "hangs", "said": said}
        return {"problem": "aborts", "said": f"ended the process (code {code})"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._done == _CASES_OF_A_WORKER:
            self.close()
        if self._process is None:
            self._done = 0
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", self._seed],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._done += 1
        return self._process

    def close(self) -> None:
        """Ends the process and all that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with suppress(OSError):
                        pipe.close()
            self._process = None


def drawn(seed: str, kinds: tuple[str, ...], cases: int) -> Iterator[tuple[str, int]]:
    """Kinds and numbers of cases, each kind numbered for itself."""
    names = kinds or tuple(KINDS)
    shares = [KINDS[name][1] for name in names]
    numbers: Counter[str] = Counter()
    for kind in Random(seed).choices(names, shares, k=cases):
        yield kind, numbers[kind]
        numbers[kind] += 1


@click.command()
@click.option("--cases", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True)
@click.option("--seed", help="Draws the same cases again; otherwise a new one.")
@click.option("--only", type=click.IntRange(0), help="Only this case of one --kind.")
@click.option("--seconds", type=float, default=90.0, help="That a case may take.")
def main(
    cases: int,
    kinds: tuple[str, ...],
    seed: str | None,
    only: int | None,
    seconds: float,
) -> None:
    """Fuzzes the command line; exit code 1 if a case failed."""
    seed = seed or str(secrets.randbelow(10**6))
    if only is not None and len(kinds) != 1:
        raise click.UsageError("--only is a case of one --kind")
    todo = [(kinds[0], only)] if only is not None else [*drawn(seed, kinds, cases)]
    counts: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    failed: Counter[str] = Counter()
    worker, began = Worker(seed, seconds), time.monotonic()
    click.echo(f"seed {seed}, {len(todo)} cases")
    try:
        for kind, number in todo:
            found = worker.run(kind, number)
            counts[kind] += 1
            codes[found.get("code", -1)] += 1
            if only is not None:
                click.echo(json.dumps(found, indent=1))
            if found["problem"]:
                failed[found["problem"]] += 1
                click.echo(f"{found['problem']}: {_shown(found['said'])}")
                click.echo(
                    f"  again: python -m tests.fuzz --kind {kind} --seed {seed} "
                    f"--only {number}"
                )
    except KeyboardInterrupt:
        click.echo("stopped")
    finally:
        worker.close()
    took = time.monotonic() - began
    click.echo(", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())))
    ended = ", ".join(f"{code}: {n}" for code, n in sorted(codes.items()))
    click.echo(f"exit codes: {ended}")
    problems = ", ".join(f"{name} {failed[name]}" for name in _FAILURES)
    click.echo(f"{counts.total()} cases in {took / 60:.1f} min: {problems}")
    sys.exit(bool(failed))


def _shown(text: str) -> str:
    """The end of a message, safe to look at."""
    last = [line for line in text.strip().splitlines() if line.strip()][-3:]
    return " | ".join(ascii(line)[1:-1][:300] for line in last)


if __name__ == "__main__":
    main()
