"""Killed while a memory is written."""

from __future__ import annotations

import re
from typing import Any

from edgecs.errors import EdgecsError
from edgecs.memory.documents import Documents
from edgecs.memory.model_files import listed_files
from edgecs.memory.recycled import exported
from edgecs.memory.segment import NotASegment, opened
from edgecs_convert.distill.samples import numbers, read_answers
from tests.kills.kinds.kind import Command, Kind, Unreadable
from tests.kills.running import Ended, Place


class Remember(Kind):
    """Answers that a chat adds to a memory, with their recycled rows."""

    name = "memory"
    asked = ("hello", "what is that?", "and more of it", "the end")

    def command(self, place: Place) -> Command:
        fixed = ["chat", "-m", str(self.model), "-c", "512", "-n", "12", "-t", "1"]
        fixed += ["--temp", "0", "--memory", "mine", "--server", "off"]
        fixed += ["--draft-leaves", "4", "--exact", "numeric"]
        # Each answer is kept before the next question, so the next ones are missing.
        rest = self.asked[len(self._texts(place)) :]
        return Command(fixed, [word for text in rest for word in (text, "/clear")])

    def look(self, place: Place) -> dict[str, Any]:
        found = self._texts(place)
        if self.whole and found != self.whole["texts"][: len(found)]:
            raise Unreadable(f"other texts: {found}")
        rows = list[object]()
        for file in listed_files(place.folder / "mine"):
            table = exported(file.path)
            if table is None:
                raise Unreadable(f"{file.path.name} is no table")
            rows += [key for (*key, _) in (*table["after_one"], *table["after_two"])]
        return {"texts": found, "rows": rows}

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        problems = []
        kept = len(before["texts"]) + ended.certain.count(("kept", "-"))
        # The last answer may be on its way to the disk.
        answered = len(before["texts"]) + (ended.typed + 1) // 2 - 1
        if len(now["texts"]) < max(kept, answered):
            problems.append(f"{len(now['texts'])} of {kept} texts, {answered} answers")
        if any(key not in now["rows"] for key in before["rows"]):
            problems.append("recycled rows")
        return problems

    def different(self, now: Any) -> list[str]:
        if now["texts"] != self.whole["texts"]:
            return [f"{now['texts']} instead of {self.whole['texts']}"]
        return [] if now["rows"] else ["no recycled rows"]

    def known(self, file: str) -> str:
        file = re.sub(r"chats/\d+-\d+\.edgecs$", "chats/N.edgecs", file)
        return re.sub(r"index/[0-9a-f-]+\.segment$", "index/N.segment", file)

    def _texts(self, place: Place) -> list[str]:
        if not (place.folder / "mine").exists():
            return []
        try:
            with Documents(place.folder / "mine") as documents:
                return [documents.text(one.id) for one in documents.all()[::-1]]
        except EdgecsError as error:
            raise Unreadable(str(error)) from error


class Build(Kind):
    """The phrases of a model, from the first question to the file."""

    name = "phrases"
    tokens = 1000

    def command(self, place: Place) -> Command:
        fixed = ["memory", "build", "-m", str(self.model), "-c", "256", "-t", "1", "-q"]
        fixed += ["--tokens", str(self.tokens), "--answer", "16", "--parallel", "8"]
        return Command([*fixed, "--memory", "mine"])

    def look(self, place: Place) -> dict[str, Any]:
        work = place.cache / "phrases" / "tiny"
        try:
            every = [tokens.tolist() for tokens in read_answers(work)]
            known, _ = numbers(work)
            files = listed_files(place.folder / "mine")
            phrases = [[*opened(file.path).documents()] for file in files]
        except (EdgecsError, NotASegment) as error:
            raise Unreadable(str(error)) from error
        if len(known) != len(every):
            raise Unreadable("a question was answered twice")
        return {"answers": known, "phrases": [len(one) for one in phrases]}

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        made = any(path.endswith(".phrases") for path in ended.renamed)
        if (before["phrases"] or made) and not now["phrases"]:
            return ["the phrases"]
        removed = any(event in ("os.rmdir", "os.remove") for event, _ in ended.steps)
        if made or removed:  # the answers are deleted then
            return []
        shards = sum(path.endswith(".npz") for path in ended.renamed)
        gone = before["answers"] - now["answers"]
        # No shard is empty.
        if gone or len(now["answers"]) < len(before["answers"]) + shards:
            return [f"{len(now['answers'])} answers, {len(before['answers'])} before"]
        return []

    def different(self, now: Any) -> list[str]:
        if now["answers"]:
            return ["answers are left"]
        return [] if len(now["phrases"]) == 1 and now["phrases"][0] else ["no phrases"]
