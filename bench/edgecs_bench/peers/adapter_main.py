"""A peer's end of the line: reads questions, lets an adapter answer, writes answers.

    python speak.py ADAPTER.py

Run by the peer's interpreter, so it knows nothing of edgecs and only the standard
library. Each line on stdin and on stdout is a JSON object; `process.py` is the other
end:

    {"model": path, "draft": path or null, "n_ctx": n, "threads": n, "config": {}}
        {"ready": true, "version": text, "load_s": seconds}
    {"ids": the prompt's tokens, "text": the same as text, "n": most tokens}
        {"tokens": ids, the end token too, "ttft_s": seconds to the first of them,
         "decode_s": from the first to the last, "tested": n or null,
         "accepted": n or null, "peak_rss_mib": n}

or {"error": one sentence} instead of either. The end of stdin ends the process.
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
    """What `load(hello)` of an adapter's module returns."""

    version: str
    children: Sequence[int]  # ids of processes that hold weights for it

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Has every token heard as it comes, from an empty cache and a cold drafter."""


@dataclass
class Heard:
    """The tokens of an answer, and when they came; drafts are counted where known."""

    began: float = field(default_factory=perf_counter)
    tokens: list[int] = field(default_factory=list)
    tested: int | None = None
    accepted: int | None = None
    _first: float = 0.0
    _last: float = 0.0

    def begin(self) -> None:
        """What came before was no part of answering."""
        self.began = perf_counter()

    def __call__(self, tokens: Sequence[int]) -> None:
        """More tokens, now."""
        self._last = perf_counter()
        self._first = self._first or self._last
        self.tokens.extend(tokens)

    def fields(self) -> dict[str, Any]:
        """As the line that is written."""
        if not self.tokens:
            raise RuntimeError("it answered with no token")
        return {
            "tokens": self.tokens,
            "ttft_s": self._first - self.began,
            "decode_s": self._last - self._first,
            "tested": self.tested,
            "accepted": self.accepted,
        }


def load(path: Path, hello: dict[str, Any]) -> Adapter:
    """The adapter of a file, with its model loaded."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    adapter: Adapter = module.load(hello)
    return adapter


def peak_rss_mib(pid: int) -> float:
    """The most memory a process has had, mapped weights too; 0 where none can tell.

    On Linux not from getrusage: what it tells a process may be its parent's peak.
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
    """Says that the model is loaded, then answers until there are no more questions."""
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
    """An error in one line, which need not be all of it."""
    words = " ".join(str(error).split())
    words = re.sub(r"Exception from \S+:\d+: ?", "", words)  # a place in C++ sources
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


def _channels() -> tuple[IO[str], IO[str]]:
    """stdin and stdout for this module alone: runtimes print what they like."""
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
