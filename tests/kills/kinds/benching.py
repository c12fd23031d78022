"""Killed while a bench runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgecs.errors import EdgecsError
from edgecs_bench.run import result as bench_result
from tests.kills.kinds.kind import Command, Kind, Unreadable
from tests.kills.running import Ended, Place


class Bench(Kind):
    """A bench that goes on from its journal."""

    name = "bench"

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self._prompts = assets / "prompts.jsonl"
        rows = [
            {"question_id": i, "category": name, "turns": [text]}
            for i, (name, text) in enumerate(
                [("math", "aa bb aa bb"), ("qa", "hello, hello"), ("qa", "a b c")]
            )
        ]
        self._prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(self, place: Place) -> Command:
        fixed = ["bench", "-m", str(self.model), "-c", "512", "-t", "1", "-n", "24"]
        fixed += ["--suite", str(self._prompts), "-r", "2", "--no-tests", "-q"]
        fixed += ["--mode", "mag", "--mode", "planner", "--temp", "0"]
        return Command([*fixed, "--resume", "run.jsonl", "-o", "run.json"])

    def look(self, place: Place) -> dict[str, Any]:
        journal, file = place.folder / "run.jsonl", place.folder / "run.json"
        data = journal.read_bytes() if journal.exists() else b""
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        try:
            for line in lines:
                json.loads(line)
            results = bench_result.read(file) if file.exists() else []
        except (ValueError, EdgecsError, OSError) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        except Exception as error:  # click's
            raise Unreadable(str(error)) from error
        answers = [
            [a["category"], a["id"], a["mode"], a["repeat"], a["tokens"], a["fork"]]
            for result in results
            for a in result["answers"]
        ]
        return {"lines": lines, "answers": sorted(map(str, answers))}

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        had, has = before["lines"], now["lines"]
        begun = [path for event, path in ended.certain if event == "open"]
        more = begun.count("run.jsonl")
        problems = []
        if has[: len(had)] != had:
            problems.append(f"{len(had)} lines of the journal are other ones")
        if len(has) < len(had) + more:
            problems.append(f"{len(has)} lines of {len(had)} and {more}")
        if before["answers"] and not now["answers"]:
            problems.append("the result is gone")
        return problems

    def different(self, now: Any) -> list[str]:
        same = now["answers"] == self.whole["answers"]
        return [] if same else [f"{now['answers']} instead of {self.whole['answers']}"]
