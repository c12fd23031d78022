"""Killed while a drafter is trained."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgecs.errors import EdgecsError
from edgecs.hub.drafter_manifest import read_drafter
from edgecs_convert.distill.samples import read_samples
from tests.kills.kinds.kind import Command, Kind, Unreadable
from tests.kills.running import Ended, Place


class Distill(Kind):
    """A drafter, from the first question to the folder; samples are killed as well."""

    name, epochs = "samples", "0.1"
    tokens = 1000

    def command(self, place: Place) -> Command | None:
        if (place.folder / "made").exists():
            return None
        fixed = ["distill", "-m", str(self.model), "-c", "256", "-t", "1", "-q"]
        fixed += ["--tokens", str(self.tokens), "--answer", "16", "--parallel", "8"]
        fixed += ["--rows", "120", "--epochs", self.epochs, "--work", "work"]
        return Command([*fixed, "-o", "made"])

    def look(self, place: Place) -> dict[str, Any]:
        work, made = place.folder / "work", place.folder / "made"
        found: dict[str, Any] = {}
        try:
            for name in ("unseen", "samples"):
                every = [*read_samples(work / name)]
                found[name] = {s.number: s.tokens[: s.start].tolist() for s in every}
                if len(found[name]) != len(every):
                    raise Unreadable(f"a question of {name} was answered twice")
                found[f"{name} tokens"] = sum(s.size for s in every)
            found["batches"], found["weights"] = _checkpoint(work / "head.pt")
            if made.exists():
                read_drafter(made)
                found["made"] = {p.name: _digest(p) for p in sorted(made.iterdir())}
        except EdgecsError as error:
            raise Unreadable(str(error)) from error
        return found

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        problems = []
        for name in ("unseen", "samples"):
            gone = before[name].keys() - now[name].keys()
            shards = sum(p.startswith(f"work/{name}/0") for p in ended.renamed)
            # No shard is empty.
            if gone or len(now[name]) < len(before[name]) + shards:
                problems.append(f"answers of {name}")
        batches = before["batches"] + ended.renamed.count("work/head.pt")
        # The last checkpoint is written twice.
        if now["batches"] < min(batches - 1, self.whole["batches"]):
            problems.append(f"{now['batches']} of {batches} batches")
        return problems

    def different(self, now: Any) -> list[str]:
        problems = []
        for name in ("unseen", "samples"):
            both = now[name].keys() & self.whole[name].keys()
            if any(now[name][n] != self.whole[name][n] for n in both):
                problems.append(f"other questions in {name}")
        if now["samples tokens"] < self.tokens:
            problems.append(f"{now['samples tokens']} tokens in samples")
        if now["made"].keys() != self.whole["made"].keys():
            problems.append(f"a drafter of {[*now['made']]}")
        return problems

    def known(self, file: str) -> str:
        return re.sub(r"(samples|unseen)/\d{5}\.npz$", r"\1/N.npz", file)


class Training(Distill):
    """A drafter from samples that are there: the same weights in the end."""

    name, epochs = "training", "0.6"

    def begin(self, place: Place, random: Random) -> None:
        from_ = self.assets / "samples"
        if not from_.exists():
            made = Place(self.assets / "first")
            command = Distill(self.assets).command(made)
            assert command
            ended = made.run(command.arguments)
            assert ended.code == 0, ended.said
            from_.mkdir()
            for name in ("unseen", "samples"):
                shutil.copytree(made.folder / "work" / name, from_ / name)
        shutil.copytree(from_, place.folder / "work")

    def different(self, now: Any) -> list[str]:
        names = ("batches", "weights", "samples")
        problems = [name for name in names if now[name] != self.whole[name]]
        mine, other = now["made"], self.whole["made"]
        problems += [
            n
            for n in other
            if n.endswith(("onnx", "npy", "json")) and mine.get(n) != other[n]
        ]
        return [f"other {', '.join(problems)}"] if problems else []


def _checkpoint(path: Path) -> tuple[int, str]:
    """How many batches are done, and the weights."""
    if not path.exists():
        return 0, ""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Unreadable(f"{path.name}: {error}") from error
    digest = hashlib.sha256()
    for name, weight in sorted(state["student"].items()):
        digest.update(name.encode() + np.ascontiguousarray(weight.numpy()).tobytes())
    return int(state["done"]), digest.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
