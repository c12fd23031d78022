"""A bench on many machines: blocks are spread, ratios stay within one machine.

Each block, a prompt in all modes, is answered on one machine. Machines of the same
kind (processor, cores, memory and devices) share the blocks of one result; another kind
answers all blocks once more and has a result of its own, as its times cannot be
compared with theirs.
"""

from __future__ import annotations

import ast
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from edgecs.calibrate.profile import Profiles
from edgecs.fleet.host import Prepared
from edgecs.fleet.spread import Item, Pool, results
from edgecs.fleet.worker_target import WorkerFile
from edgecs.runtime.builder import find_files, load_drafters
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import OWN_HEAD
from edgecs.runtime.recipe import HEAD, Recipe
from edgecs.runtime.target import open_target
from edgecs_bench.run.blocks import Bench, Block, Done, Meter
from edgecs_bench.run.calls import Subject, anchor, overhead
from edgecs_bench.run.calls import costs as costs_of
from edgecs_bench.run.energy import open_energy
from edgecs_bench.run.environment import machine, peak_rss_mib
from edgecs_bench.run.journal import Journal
from edgecs_bench.run.modes import PLAIN
from edgecs_bench.run.result import Result, assemble
from edgecs_bench.run.runner import (
    Wanted,
    about_machine,
    bench_of,
    blocks_of,
    mode_factory,
    modes_of,
    tests_of,
)

Say = Callable[[str], None]
_ABOUT = "about"  # the item that describes a kind of machine


@dataclass(frozen=True)
class BenchSetup:
    """A worker that answers blocks: its models and what is measured.

    recipe: with references as in `files`. wanted: without a journal or a time limit.
    """

    recipe: Recipe
    files: tuple[WorkerFile, ...]
    wanted: Wanted

    @staticmethod
    def of(recipe: Recipe, folders: Folders, wanted: Wanted) -> BenchSetup:
        """The setup for workers with the same files as this machine."""
        found = find_files(recipe, folders)
        paths = dict(zip(recipe.drafts or (), found.drafts or (), strict=False))
        files = [WorkerFile.of(recipe.model, found.model)]
        files += [WorkerFile.of(n, path) for n, path in paths.items() if n != HEAD]
        names = iter(file.reference for file in files)
        model = next(names)
        drafts = tuple(n if n == HEAD else next(names) for n in paths) or None
        recipe = replace(recipe, model=model, drafts=drafts)
        return BenchSetup(recipe, tuple(files), replace(wanted, journal=None))

    @contextmanager
    def opened(self) -> Iterator[Prepared]:
        """Loads the models. Raises ModelError, OutOfMemory."""
        folders = Folders(offline=True)
        with ExitStack() as closing:
            scratch = closing.enter_context(tempfile.TemporaryDirectory())
            found = find_files(self.recipe, folders)
            paths = [found.model, *(p for p in found.drafts or () if p != OWN_HEAD)]
            for file, path in zip(self.files, paths, strict=True):
                file.check(path)
            loaded, speculation = closing.enter_context(
                open_target(
                    self.recipe,
                    found.model,
                    folders,
                    profiles=Profiles(Path(scratch)),
                )
            )
            assert speculation is not None
            drafters = load_drafters(
                found.drafts or (), loaded, self.recipe.drafter_options, closing
            )
            subject = Subject(loaded, drafters, speculation)
            kind = machine()["id"]
            yield Prepared(_Answering(subject, self.wanted, closing).compute, kind)


class _Answering:
    """What a prepared worker computes."""

    def __init__(self, subject: Subject, wanted: Wanted, closing: ExitStack) -> None:
        self._subject, self._wanted = subject, wanted
        workshop = mode_factory(subject, wanted, closing)
        names = list(wanted.modes) or workshop.defaults()
        self._modes = [workshop.make(n) for n in dict.fromkeys([PLAIN, *names])]
        self._energy = open_energy(gpu=bool(subject.loaded.model.offload.layers))
        meter = Meter(lambda: anchor(subject), self._energy.joules)
        self._bench: Bench = bench_of(
            subject,
            wanted,
            "own",
            self._modes,
            wanted.most or 0,
            meter,
            Journal(None, {}),
        )

    def compute(self, payload: Any) -> dict[str, Any]:
        """A description of the machine, or an answered block."""
        if payload == _ABOUT:
            return self._about()
        block, number = payload
        done = self._bench.one(Block(*block), number)
        return {"done": done.to_json() if done else None}

    def _about(self) -> dict[str, Any]:
        subject, wanted = self._subject, self._wanted
        most = wanted.most or 0
        return {
            **about_machine(subject, wanted, most),
            "tests": tests_of(subject, wanted, float("inf")),
            "costs": costs_of(subject, wanted.curve),
            "modes": modes_of(self._modes, {}, ()),
            "memory": {"peak_rss_mib": peak_rss_mib()},
            "energy": {"source": self._energy.source},
        }


@dataclass
class _Kind:
    """The work of one kind of machine: first its description, then all blocks.

    Blocks during which the machine's speed changed are repeated once at the end.
    """

    name: str
    blocks: Sequence[Block]
    journal: Journal
    given: set[str] = field(default_factory=set)  # keys

    def take(self) -> Item | None:
        """The next item; None: there is none for now."""
        for key, payload in self._items():
            text = str(key)
            if text not in self.journal.done and text not in self.given:
                self.given.add(text)
                return Item(text, (key, payload))
        return None

    def _items(self) -> Iterator[tuple[list[Any], Any]]:
        yield [self.name, _ABOUT], _ABOUT
        for number, block in enumerate(self.blocks):
            yield self._key(block, again=False), ((*block,), number)
        if not all(self._kept(block, again=False) for block in self.blocks):
            return
        for number, block in enumerate(self.blocks, len(self.blocks)):
            found = self._done(block, again=False)
            if found and found.drifted:
                yield self._key(block, again=True), ((*block,), number)

    def about(self) -> dict[str, Any] | None:
        """The description of this kind; None: there is none yet."""
        found = self.journal.done.get(str([self.name, _ABOUT]))
        return dict(found) if found else None

    def done(self) -> list[Done]:
        """The blocks that were answered, repeated ones instead of the first run."""
        found = (
            self._done(block, again=True) or self._done(block, again=False)
            for block in self.blocks
        )
        return [done for done in found if done]

    def _key(self, block: Block, *, again: bool) -> list[Any]:
        return [self.name, *block.key, again]

    def _kept(self, block: Block, *, again: bool) -> dict[str, Any] | None:
        return self.journal.done.get(str(self._key(block, again=again)))

    def _done(self, block: Block, *, again: bool) -> Done | None:
        kept = self._kept(block, again=again)
        return Done.from_json(kept["done"]) if kept and kept["done"] else None


def run(
    pool: Pool,
    setup: BenchSetup,
    journal: Path | None,
    cancel: threading.Event,
    say: Say,
) -> list[Result]:
    """Answers all blocks on each kind of machine of a pool; a result for each kind.

    journal: a file that finished blocks are kept in, and read from. Raises
    click.UsageError, Cancelled, and what `results` raises.
    """
    wanted = setup.wanted
    kept = Journal(journal, _header(setup))
    every = blocks_of(wanted)
    kinds: dict[str, _Kind] = {}

    def take(kind: str) -> Item | None:
        if kind not in kinds:
            kinds[kind] = _Kind(kind, every, kept)
        item = kinds[kind].take()
        return item and item._replace(payload=item.payload[1])

    for item, value in results(pool, take, cancel, say, every=True):
        key = ast.literal_eval(item.key)
        kept.add(key, value)
        if key[1] != _ABOUT:
            place, category, prompt, *_ = key
            say(f"{len(kept.done)} parts are done: {category} {prompt} on {place}")
    names = dict.fromkeys([ast.literal_eval(key)[0] for key in kept.done])
    found = [_result(_Kind(name, every, kept), wanted) for name in names]
    whole = [result for result in found if result]
    if not any(result["answers"] for result in whole):
        raise click.UsageError(
            "no prompt fits into the context: give a larger one (-c), or fewer "
            "tokens per answer (-n)"
        )
    return whole


def _header(setup: BenchSetup) -> dict[str, Any]:
    """The settings that identify a run; machines are in the keys of its parts."""
    wanted = setup.wanted
    return {
        "ray": True,
        "files": [file.sha256 for file in setup.files],
        "n_ctx": setup.recipe.options.n_ctx,
        "exact": setup.recipe.exact,
        "prompts_sha256": wanted.suite.sha256,
        "modes": list(wanted.modes),
        "temperatures": list(wanted.temperatures),
        "seed": wanted.seed,
        "most": wanted.most,
    }


def _result(kind: _Kind, wanted: Wanted) -> Result | None:
    """The result of one kind of machine; None: it was not described."""
    about = kind.about()
    if about is None:
        return None
    done = kind.done()
    sampled: set[str] = set()
    for one in done:  # each worker has kept an answer of each category
        if one.sample and one.sample["category"] in sampled:
            one.sample = None
        elif one.sample:
            sampled.add(one.sample["category"])
    failed = {name: why for one in done for name, why in one.errors.items()}
    modes = [
        {**mode, "error": failed[mode["name"]]} if mode["name"] in failed else mode
        for mode in about["modes"]
    ]
    costs = about["costs"]
    costs = {**costs, "overhead_ms": overhead(done)} if costs["ms"] else None
    prompts = len({block.prompt for block in kind.blocks})
    answered = len({(a.category, a.id) for one in done for a in one.answers})
    skipped = prompts - answered
    return assemble(done, {**about, "modes": modes, "costs": costs, "skipped": skipped})
