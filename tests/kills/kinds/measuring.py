"""Killed while a profile is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from edgecs.calibrate.profile import Profiles
from tests.kills.kinds.kind import Command, Kind, Unreadable
from tests.kills.running import Ended, Place

_OLD = "2001-01-01T00:00:00+00:00"  # when a profile was tuned that was there before


class Measured(Kind):
    """What is measured about a model: by `tune`, or at the first start."""

    tuned = True

    def begin(self, place: Place, random: Random) -> None:
        if self.whole and random.random() < 0.5:
            folder = place.cache / "profiles"
            shutil.copytree(self.assets / f"{self.name}-old", folder)
            (path,) = folder.glob("*.json")
            table = json.loads(path.read_text())
            path.write_text(json.dumps({**table, "tuned": _OLD}))

    def command(self, place: Place) -> Command:
        common = ["-m", str(self.model), "-t", "1", "-c", "512", "-n", "8"]
        if self.tuned:
            return Command(["tune", "--quick", "--repeats", "1", *common])
        return Command(["generate", "-p", "hello", *common])

    def look(self, place: Place) -> dict[str, Any]:
        folder = place.cache / "profiles"
        found = {}
        for path, profile in Profiles(folder).all():
            if profile is None:
                raise Unreadable(f"{path.name} is not a profile")
            measured = [*sorted(profile.costs), *sorted(profile.classes)]
            old = profile.tuned == _OLD
            found[path.name] = (old, bool(profile.tuned), measured)
        if self.whole is None and found:
            shutil.copytree(folder, self.assets / f"{self.name}-old")
        files = []
        for path in sorted(place.cache.glob("*.json")):
            try:
                files.append((path.name, sorted(json.loads(path.read_bytes()))))
            except ValueError as error:
                raise Unreadable(f"{path.name} is not JSON") from error
        return {"profiles": found, "files": files}

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        made = {
            Path(path).name for event, path in ended.certain if event == "os.rename"
        }
        had = {*before["profiles"], *(name for name, _ in before["files"])}
        has = {*now["profiles"], *(name for name, _ in now["files"])}
        gone = (had | made) - has
        stale = [n for n in made & {*now["profiles"]} if now["profiles"][n][0]]
        if not self.tuned:
            stale = []  # what a tuning found stays until the next one
        return [f"{name} is gone" for name in gone] + [f"{n} is the old" for n in stale]

    def different(self, now: Any) -> list[str]:
        if self.tuned:
            return super().different(now)
        # A start measures nothing that a profile has.
        mine, other = (
            {n: m for n, (_, _, m) in found["profiles"].items()}
            for found in (now, self.whole)
        )
        same = mine == other and now["files"] == self.whole["files"]
        return [] if same else [f"{now} instead of {self.whole}"]


class Tune(Measured):
    """`edgecs tune`."""

    name = "profile"


class Probe(Measured):
    """The first start of a model."""

    name, tuned = "probe", False
