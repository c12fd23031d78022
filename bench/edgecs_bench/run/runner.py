"""One run of `edgecs bench`: from loaded models and a plan to a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import click

from edgecs.runtime.loader import Loaded, LoadedDrafter
from edgecs.sampling.settings import Sampling
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.run import throughput
from edgecs_bench.run.baseline import llama_beside
from edgecs_bench.run.blocks import Bench, Block, Done, Meter, blocks
from edgecs_bench.run.calls import Subject, anchor, overhead
from edgecs_bench.run.calls import costs as costs_of
from edgecs_bench.run.energy import open_energy
from edgecs_bench.run.environment import build, machine, peak_rss_mib
from edgecs_bench.run.humaneval import pass_at_1
from edgecs_bench.run.instrument import Calls
from edgecs_bench.run.journal import Journal
from edgecs_bench.run.modes import LLAMA, PLAIN, Mode, ModeFactory
from edgecs_bench.run.result import Result, assemble
from edgecs_bench.suite.suites import Suite

_QUICK_TOKENS = 16, 64  # minimum and maximum tokens of an answer if time is short
_TESTS_SHARE = 0.25  # share of the time for tests if time is short


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    most: tokens of an answer; None: as the time allows. seconds: time limit; None: no
    limit. repeats: of every block and test. curve: whether to time calls of many
    widths. code: whether code that the model writes may be run.
    """

    suite: Suite
    modes: Sequence[str] = ()  # empty: the default modes
    temperatures: Sequence[float] = (0.0, 0.8)
    seed: int = 1
    repeats: int = 5
    most: int | None = 192
    seconds: float | None = None
    tests: Sequence[throughput.Test] = ()
    curve: bool = True
    code: bool = False
    journal: Path | None = None
    command: Sequence[str] = ()


Part = Callable[[ModeFactory, ExitStack], tuple[str, list[Mode]]]
"""Modes that run in separate blocks with plain decoding, and their name."""


def run(subject: Subject, wanted: Wanted, parts: Sequence[Part] = ()) -> Result:
    """Runs a bench. Raises click.UsageError, Cancelled.

    parts: additional sets of modes, opened one after the other.
    """
    loaded, say = subject.loaded, subject.say
    until = subject.began + (wanted.seconds or float("inf"))
    tests_until = subject.began + _TESTS_SHARE * (wanted.seconds or float("inf"))
    energy = open_energy(gpu=bool(loaded.model.offload.layers))
    with ExitStack() as closing:
        workshop = mode_factory(subject, wanted, closing)
        names = list(wanted.modes) or workshop.defaults()
        own = [workshop.make(n) for n in dict.fromkeys([PLAIN, *names])]
        most = wanted.most or _affordable(subject, wanted, len(own))
        journal = Journal(wanted.journal, _header(subject, wanted, own, most))
        tests = _kept(journal, "tests", lambda: tests_of(subject, wanted, tests_until))
        costs = _kept(journal, "costs", lambda: costs_of(subject, wanted.curve))
        meter = Meter(lambda: anchor(subject), energy.joules)
        done: list[Done] = []
        about: list[dict[str, Any]] = []
        for open_part in (lambda *_: ("own", own), *parts):
            if done and monotonic() > until:
                say("the time is up: the other runtimes were skipped")
                break
            with ExitStack() as part_closing:
                name, modes = open_part(workshop, part_closing)
                bench = bench_of(subject, wanted, name, modes, most, meter, journal)
                bench.until = until
                done += bench.run(blocks_of(wanted))
                about += modes_of(modes, bench.failed, known=about)
        if not any(one.answers for one in done):
            raise click.UsageError(
                "no prompt fits into the context: give a larger one (-c), or fewer "
                "tokens per answer (-n)"
            )
        costs = {**costs, "overhead_ms": overhead(done)} if costs["ms"] else None
        result = assemble(
            done,
            {
                **about_machine(subject, wanted, most),
                "modes": about,
                "tests": tests,
                "costs": costs,
                "skipped": len({b.prompt for b in blocks_of(wanted)})
                - len({(a.category, a.id) for d in done for a in d.answers}),
                "memory": {"peak_rss_mib": peak_rss_mib()},
                "energy": {"source": energy.source},
            },
        )
        if wanted.code:
            result["pass_at_1"] = pass_at_1(done, wanted.suite.prompts, say)
        return result


def about_machine(subject: Subject, wanted: Wanted, most: int) -> dict[str, Any]:
    """The fields of a result that are known before anything is measured."""
    speculation = subject.speculation
    return {
        "command": list(wanted.command),
        "machine": machine(),
        "build": build(),
        "model": _model(subject.loaded),
        "drafters": [_drafter(d) for d in subject.drafters],
        "options": _options(subject, wanted, most),
        "suite": {
            "names": wanted.suite.names,
            "prompts": len(wanted.suite.prompts),
            "sha256": wanted.suite.sha256,
        },
        "exactness": {
            "asked": speculation.exact,
            "classes": speculation.classes.state(),
        },
    }


def mode_factory(subject: Subject, wanted: Wanted, closing: ExitStack) -> ModeFactory:
    """Creates modes of a subject."""
    llama = llama_beside(subject.loaded, closing) if LLAMA in wanted.modes else None
    calls = Calls([drafter.model for drafter in subject.drafters])
    return ModeFactory(
        subject.loaded, subject.drafters, subject.speculation, llama, calls
    )


def bench_of(
    subject: Subject,
    wanted: Wanted,
    part: str,
    modes: list[Mode],
    most: int,
    meter: Meter,
    journal: Journal,
) -> Bench:
    """A bench of some modes, see `Bench`."""
    loaded = subject.loaded
    rules = {t: loaded.rule(sampling(t, wanted.seed)) for t in wanted.temperatures}
    encode = encoder(loaded)
    n_ctx = loaded.target.n_ctx
    return Bench(part, modes, rules, encode, most, n_ctx, meter, journal, subject.say)


def encoder(loaded: Loaded) -> Callable[[str], list[int]]:
    """Encodes a prompt, with the chat template if there is one."""
    vocabulary = loaded.model.vocabulary
    if not vocabulary.chat_template:
        return lambda text: vocabulary.encode(text).tolist()
    template = ChatTemplate(vocabulary)
    return lambda text: template.encode([{"role": "user", "content": text}]).tolist()


def sampling(temperature: float, seed: int) -> Sampling:
    """llama.cpp's defaults at a temperature; greedy at 0."""
    if not temperature:
        return Sampling()
    return Sampling(temperature, top_k=40, top_p=0.95, min_p=0.05, seed=seed)


def blocks_of(wanted: Wanted) -> list[Block]:
    """All blocks of a run."""
    return blocks(wanted.suite.prompts, wanted.temperatures, wanted.repeats)


def _kept(journal: Journal, name: str, measure: Callable[[], Any]) -> Any:
    """Returns a stored part of the journal, or measures and stores it."""
    if str([name]) not in journal.done:
        journal.add([name], {"value": measure()})
    return journal.done[str([name])]["value"]


def tests_of(subject: Subject, wanted: Wanted, until: float) -> list[dict[str, Any]]:
    """Prefill and decode in llama-bench's terms."""
    tests = [_shrunk(subject, test, until) for test in wanted.tests]
    target, repeats = subject.loaded.target, wanted.repeats
    return throughput.measure(target, tests, repeats, subject.say, until)


def _shrunk(subject: Subject, test: throughput.Test, until: float) -> throughput.Test:
    """Shortens a test if time is short."""
    single, left = anchor(subject) / 1e3, until - monotonic()
    if test.kind == "tg" and test.tokens * single > left:
        return test._replace(tokens=max(16, min(test.tokens, int(left / single) // 2)))
    return test


def _affordable(subject: Subject, wanted: Wanted, modes: int) -> int:
    """The tokens per answer with which all prompts fit into the time."""
    least, most = _QUICK_TOKENS
    if wanted.seconds is None:
        return most
    answers = len(wanted.suite.prompts) * len(wanted.temperatures) * modes
    spent = monotonic() - subject.began
    left = 0.5 * (1 - _TESTS_SHARE) * (wanted.seconds - spent)
    single = anchor(subject) / 1e3
    return max(least, min(most, int(left / (answers * single))))


def _header(
    subject: Subject, wanted: Wanted, modes: Sequence[Mode], most: int
) -> dict[str, Any]:
    """The settings that identify a run."""
    return {
        "target": subject.loaded.key().named(),
        "n_ctx": subject.loaded.target.n_ctx,
        "drafters": {d.name: d.fingerprint for d in subject.drafters},
        "exact": subject.speculation.exact,
        "prompts_sha256": wanted.suite.sha256,
        "modes": [mode.name for mode in modes],
        "temperatures": list(wanted.temperatures),
        "seed": wanted.seed,
        "most": most,
    }


def modes_of(
    modes: Sequence[Mode],
    failed: dict[str, str],
    known: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Entries for modes that the result does not have yet."""
    found = []
    for mode in modes:
        if mode.name in {other["name"] for other in known}:
            continue
        fields = {"name": mode.name, "about": mode.about}
        if mode.version:
            fields["version"] = mode.version
        if mode.name in failed:
            fields["error"] = failed[mode.name]
        found.append(fields)
    return found


def _model(loaded: Loaded) -> dict[str, Any]:
    model = loaded.model
    return {
        "name": model.path.stem,
        "fingerprint": loaded.key().fingerprint,
        "description": model.description,
        "parameters": model.parameters,
        "bytes": model.path.stat().st_size,
    }


def _drafter(drafter: LoadedDrafter) -> dict[str, Any]:
    names = ("name", "about", "fingerprint", "parameters")
    return {name: getattr(drafter, name) for name in names}


def _options(subject: Subject, wanted: Wanted, most: int) -> dict[str, Any]:
    loaded = subject.loaded
    return {
        **asdict(loaded.options),
        "n_ctx": loaded.target.n_ctx,
        "threads": loaded.target.threads,
        "layers": loaded.model.offload.layers,
        "exact": subject.speculation.exact,
        "predict": most,
        "seed": wanted.seed,
        "repeats": wanted.repeats,
        "temperatures": list(wanted.temperatures),
    }
