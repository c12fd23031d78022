"""Killed while a conversation is saved."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecs.chat.archive import Owner, Saved, read
from edgecs.errors import EdgecsError
from tests.kills.kinds.kind import Command, Kind, Unreadable, entry
from tests.kills.running import Ended, Place


class Save(Kind):
    """A chat that is saved by /save and by itself, and goes on with --load."""

    name = "save"
    asked = ("hello", "what is that?", "and more of it", "the end")

    def command(self, place: Place) -> Command:
        talk = place.folder / "talk.edgecs"
        done = len(self._messages(talk)) // 2 if talk.exists() else 0
        fixed = ["chat", "-m", str(self.model), "--no-spec", "-c", "512", "-n", "12"]
        fixed += ["-t", "1", "--temp", "0"]
        load = ["--load", "talk.edgecs"] if done else []
        typed = [w for text in self.asked[done:] for w in (text, "/save talk.edgecs")]
        return Command([*fixed, *load], typed)

    def look(self, place: Place) -> dict[str, Any]:
        talk = place.folder / "talk.edgecs"
        kept = [self._messages(path) for path in sorted(place.chats.glob("*.edgecs"))]
        for messages in kept:
            self._check(messages, "a chat that is kept by itself")
        saved = self._messages(talk) if talk.exists() else []
        self._check(saved, "talk.edgecs")
        data = talk.read_bytes() if talk.exists() else b""
        return {
            "saved": saved,
            "kept": max(kept, key=len, default=[]),
            "bytes": hashlib.sha256(data).hexdigest(),
        }

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        turns = len(before["saved"]) // 2
        saved = 2 * (turns + ended.typed // 2)
        kept = 2 * (turns + (ended.typed + 1) // 2) if ended.typed else 0
        problems = []
        if len(now["saved"]) < saved:
            problems.append(f"{len(now['saved'])} of {saved} saved messages")
        if len(now["kept"]) < max(kept, len(before["kept"])):
            problems.append(f"{len(now['kept'])} of {kept} kept messages")
        return problems

    def known(self, file: str) -> str:
        return re.sub(r"chats/\d+-\d+\.edgecs$", "chats/N.edgecs", file)

    def _messages(self, path: Path) -> list[tuple[str, str]]:
        return [(m.role, m.content) for m in self._read(path).messages]

    def _read(self, path: Path) -> Saved:
        try:
            found = read(path, None)
            if path.name == "talk.edgecs":
                text = entry(path)
                owner = Owner("", text["fingerprint"], text["loading"], 1 << 20)
                if not read(path, owner).cells:
                    raise Unreadable(f"{path.name} has no cells")
        except EdgecsError as error:
            raise Unreadable(str(error)) from error
        return found

    def _check(self, messages: Sequence[tuple[str, str]], what: str) -> None:
        if self.whole and messages != self.whole["saved"][: len(messages)]:
            raise Unreadable(f"{what} is another conversation: {messages}")
