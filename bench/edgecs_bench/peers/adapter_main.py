"""The child process of a peer: reads requests, calls an adapter, writes answers.

    python adapter_main.py ADAPTER.py

The peer's interpreter runs it, so it uses only the standard library and nothing of
edgecs. Each line on stdin and on stdout is a JSON object; `process.py` is the other
side:

    {"model": path, "draft": path or null, "n_ctx": n, "threads": n, "config": {}}
        {"ready": true, "version": text, "load_s": seconds}
    {"ids": the prompt's tokens, "text": the same as text, "n": most tokens}
        {"tokens": ids with the end token, "ttft_s": seconds to the first of them,
         "decode_s": from the first to the last, "tested": n or null,
         "accepted": n or null, "peak_rss_mib": n}

or {"error": message} instead of either. The process ends with stdin.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import IO, Any, Protocol

MIB = 2**20


class Adapter(Protocol):
    """The object that `load(hello)` of an adapter's module returns."""

    version: str
    children: Sequence[int]  # ids of other processes that hold its weights

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Passes tokens on as they arrive, from an empty cache and a reset drafter."""


@dataclass
class Heard:
    """The tokens of an answer, their times, and drafted tokens where known."""

    began: float = field(default_factory=perf_counter)
    tokens: list[int] = field(default_factory=list)
    tested: int | None = None
    accepted: int | None = None
    _first: float = 0.0
    _last: float = 0.0

    def begin(self) -> None:
        """Starts the clock: earlier work is not part of the answer."""
        self.began = perf_counter()

    def __call__(self, tokens: Sequence[int]) -> None:
        """Records tokens that arrive now."""
        self._last = perf_counter()
        self._first = self._first or self._last
        self.tokens.extend(tokens)

    def fields(self) -> dict[str, Any]:
        """The fields of the answer line."""
        if not self.tokens:
            raise RuntimeError("the answer has no token")
        return {
            "tokens": self.tokens,
            "ttft_s": self._first - self.began,
            "decode_s": self._last - self._first,
            "tested": self.tested,
            "accepted": self.accepted,
        }


def load(path: Path, hello: dict[str, Any]) -> Adapter:
    """Imports an adapter from a file and loads its model."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    adapter: Adapter = module.load(hello)
    return adapter


def peak_rss_mib(pid: int) -> float:
    """Peak memory of a process, including mapped weights; 0: unknown.

    On Linux getrusage is not used, because it may return the parent's peak.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024
    return 0.0


def main() -> None:
    """Loads the model, then answers requests until stdin ends."""
    questions, answers = _channels()
    hello = json.loads(questions.readline())
    began = perf_counter()
    try:
        adapter = load(Path(sys.argv[1]), hello)
    except Exception as error:
        _write(answers, {"error": sentence(error)})
        raise
    ready = {"ready": True, "version": adapter.version}
    _write(answers, {**ready, "load_s": perf_counter() - began})
    for line in questions:
        _write(answers, _answer(adapter, json.loads(line)))


def _answer(adapter: Adapter, question: dict[str, Any]) -> dict[str, Any]:
    heard = Heard()
    try:
        adapter.answer(question, heard)
        fields = heard.fields()
    except Exception as error:
        return {"error": sentence(error)}
    pids = (os.getpid(), *adapter.children)
    return {**fields, "peak_rss_mib": sum(peak_rss_mib(pid) for pid in pids)}


def sentence(error: Exception) -> str:
    """An error as one line, possibly shortened."""
    words = " ".join(str(error).split())
    words = re.sub(r"Exception from \S+:\d+: ?", "", words)  # a location in C++ sources
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


def _channels() -> tuple[IO[str], IO[str]]:
    """Reserves stdin and stdout for this module, because runtimes also print."""
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return questions, answers


def _write(answers: IO[str], fields: dict[str, Any]) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
