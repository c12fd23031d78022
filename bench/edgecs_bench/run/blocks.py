"""The order of answers in a bench: blocks, anchors, and repeated blocks.

A block is one prompt at one temperature, answered in every mode one after the other;
every second block runs the modes in reverse order (A B B A). Before and after a block
the time of a call with one token is measured, the anchor. If the two differ much, the
speed of the machine has changed, and the block is repeated after all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

from edgecs.engines.host import Others
from edgecs.sampling.chain import Rule
from edgecs_bench.run.answers import Answer, Said, of
from edgecs_bench.run.journal import Journal
from edgecs_bench.run.modes import PLAIN, Asked, Mode
from edgecs_bench.suite.prompts import Prompt

DRIFT = 0.1  # share by which an anchor may change within a block
_WARM = 16  # tokens of a warm-up answer


class Block(NamedTuple):
    """One repeat of one prompt at one temperature."""

    prompt: Prompt
    temperature: float
    repeat: int

    @property
    def key(self) -> list[Any]:
        """The name of the block in a journal."""
        return [self.prompt.category, self.prompt.id, self.temperature, self.repeat]


def blocks(
    prompts: Sequence[Prompt], temperatures: Sequence[float], repeats: int
) -> list[Block]:
    """All blocks, ordered so that a shortened run covers all prompts evenly."""
    return [
        Block(prompt, temperature, repeat)
        for repeat in range(repeats)
        for temperature in temperatures
        for prompt in prompts
    ]


@dataclass
class Done:
    """The results of a block."""

    number: int
    anchors: tuple[float, float]  # milliseconds of a single token before and after
    others: float  # share of the processor time that other programs used
    answers: list[Answer]
    texts: dict[str, str] = field(default_factory=dict)  # of the answers, by mode
    sample: dict[str, Any] | None = None
    errors: dict[str, str] = field(default_factory=dict)  # of modes that failed

    @property
    def drifted(self) -> bool:
        """Whether the speed of the machine changed."""
        before, after = self.anchors
        return abs(after / before - 1) > DRIFT

    def to_json(self) -> dict[str, Any]:
        """The fields for a journal."""
        return {**vars(self), "answers": [a.to_json() for a in self.answers]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Done:
        """The inverse of `to_json`; raises TypeError, KeyError or ValueError."""
        before, after = fields["anchors"]
        answers = [Answer.from_json(answer) for answer in fields["answers"]]
        return cls(**{**fields, "anchors": (before, after), "answers": answers})


class ModeFailed(Exception):
    """A mode cannot continue; the message is one sentence."""


class Meter(NamedTuple):
    """Meters other than the clock."""

    anchor: Callable[[], float]  # milliseconds of a call with one token
    joules: Callable[[], float | None]  # used by this machine so far; None: unknown


@dataclass
class Bench:
    """Answers blocks in some modes.

    modes: plain decoding first. part: the name of this set of modes in the journal,
    which other parts share. rules: sampling rules by temperature. encode: converts a
    prompt to ids. n_ctx: prompts that do not fit are skipped. until: `monotonic` value
    after which no block except the first is started.
    """

    part: str
    modes: list[Mode]
    rules: Mapping[float, Rule]
    encode: Callable[[str], list[int]]
    most: int  # tokens of an answer
    n_ctx: int
    meter: Meter
    journal: Journal
    say: Callable[[str], None] = lambda text: None
    until: float = float("inf")
    skipped: list[str] = field(default_factory=list)  # ids of prompts that do not fit
    failed: dict[str, str] = field(default_factory=dict)  # errors of failed modes
    _longest: float = 0.0  # seconds of a block so far
    _warm: bool = False  # whether the modes have answered
    _sampled: set[str] = field(default_factory=set)  # categories

    def run(self, wanted: Iterable[Block]) -> list[Done]:
        """Runs all blocks that the time allows, and repeats drifted ones.

        The result is empty if every mode except plain decoding fails.
        """
        fitting = self._fitting(list(wanted))
        if not self._warm_up([b for b in fitting if not self._is_done(b)]):
            return []
        done = self._all(fitting)
        drifted = [b for b, d in zip(fitting, done, strict=False) if d.drifted]
        if drifted:
            self.say(f"the machine's speed changed in {len(drifted)} blocks: repeating")
            # A repeated block replaces the samples of the first run.
            lost = {d.sample["category"] for d in done if d.drifted and d.sample}
            self._sampled -= lost
            again = iter(self._all(drifted, again=True))
            done = [next(again, d) if d.drifted else d for d in done]
        return done

    def one(self, block: Block, number: int) -> Done | None:
        """Answers one block, whose number decides about the order of its modes.

        None: it does not fit. The first one is preceded by a short answer in each mode.
        """
        if not (fitting := self._fitting([block])):
            return None
        if not self._warm:
            self._warm = True
            self._warm_up(fitting)
        return self._block(block, number, backwards=number % 2 == 1)

    def _fitting(self, wanted: list[Block]) -> list[Block]:
        """Blocks that fit into the context and have something to compare."""
        if len(self.modes) > 1 and all(mode.greedy_only for mode in self.modes[1:]):
            wanted = [block for block in wanted if not block.temperature]
        prompts = dict.fromkeys(block.prompt for block in wanted)
        sizes = {prompt: len(self.encode(prompt.text)) for prompt in prompts}
        for prompt, size in sizes.items():
            if size + self.most > self.n_ctx:
                self.say(f"{prompt.category} {prompt.id}: {size} tokens do not fit")
                self.skipped.append(prompt.id)
        return [b for b in wanted if sizes[b.prompt] + self.most <= self.n_ctx]

    def _all(self, wanted: list[Block], again: bool = False) -> list[Done]:
        found: list[Done] = []
        for i, block in enumerate(wanted):
            key = [self.part, *block.key, again]
            if kept := self.journal.done.get(str(key)):
                found.append(Done.from_json(kept))
                self._note(found[-1])
                continue
            began = monotonic()
            if (found or again) and began + self._longest > self.until:
                self.say(f"the time is up after {i} of {len(wanted)} blocks")
                break
            number = len(self.journal.done)
            found.append(self._block(block, number, backwards=i % 2 == 1))
            self.journal.add(key, found[-1].to_json())
            self._note(found[-1])
            self._longest = max(self._longest, monotonic() - began)
            self.say(f"[{i + 1}/{len(wanted)}] {_line(block, found[-1])}")
        return found

    def _note(self, done: Done) -> None:
        self.failed.update(done.errors)
        if done.sample:
            self._sampled.add(done.sample["category"])

    def _block(self, block: Block, number: int, *, backwards: bool) -> Done:
        """Answers one prompt in every mode."""
        text, rule = block.prompt.text, self.rules[block.temperature]
        asked = Asked(self.encode(text), text, rule, self.most)
        modes = [m for m in self.modes if m.name not in self.failed]
        if block.temperature:
            modes = [mode for mode in modes if not mode.greedy_only]
        others = Others([mode.pid for mode in modes if mode.pid])
        before = self.meter.anchor()
        said: dict[str, Said] = {}
        joules: dict[str, float | None] = {}
        errors: dict[str, str] = {}
        for mode in reversed(modes) if backwards else modes:
            used = self.meter.joules()
            try:
                said[mode.name] = mode.answer(asked)
            except ModeFailed as error:
                errors[mode.name] = str(error)
                self.say(f"{mode.name} failed: {error}")
                continue
            now = self.meter.joules()
            joules[mode.name] = None
            if used is not None and now is not None:
                joules[mode.name] = round(now - used, 4)
        done = Done(number, (before, self.meter.anchor()), round(others.share, 4), [])
        done.errors = errors
        self._keep(done, block, asked, said, joules)
        return done

    def _is_done(self, block: Block) -> bool:
        return str([self.part, *block.key, False]) in self.journal.done

    def _warm_up(self, missing: Sequence[Block]) -> bool:
        """Runs a short answer in every mode to warm up.

        False: no mode is left to compare with plain decoding.
        """
        if missing:
            text, rule = missing[0].prompt.text, self.rules[missing[0].temperature]
            asked = Asked(self.encode(text), text, rule, min(_WARM, self.most))
            for mode in self.modes:
                try:
                    mode.answer(asked)
                except ModeFailed as error:
                    self.failed[mode.name] = str(error)
                    self.say(f"{mode.name} failed: {error}")
        left = [mode for mode in self.modes if mode.name not in self.failed]
        return len(left) > 1 or len(left) == len(self.modes)

    def _keep(
        self,
        done: Done,
        block: Block,
        asked: Asked,
        said: Mapping[str, Said],
        joules: Mapping[str, float | None],
    ) -> None:
        plain = said[PLAIN].tokens
        prompt = block.prompt
        for mode in self.modes:
            if mode.name not in said:
                continue
            answer = said[mode.name]
            done.texts[mode.name] = "".join(piece.text for piece in answer.pieces)
            done.answers.append(
                Answer(
                    category=prompt.category,
                    id=prompt.id,
                    mode=mode.name,
                    temperature=block.temperature,
                    repeat=block.repeat,
                    block=done.number,
                    drifted=done.drifted,
                    joules=joules[mode.name],
                    **of(answer, plain, len(asked.ids)),
                )
            )
        drafting = [m.name for m in self.modes if m.name in said and said[m.name].spans]
        if drafting and prompt.category not in self._sampled:
            done.sample = _sample(block, drafting[-1], said[drafting[-1]])


def _sample(block: Block, mode: str, said: Said) -> dict[str, Any]:
    """The complete fields of an answer."""
    pieces: list[list[str]] = []
    for piece in said.pieces:
        if pieces and pieces[-1][1] == piece.source:
            pieces[-1][0] += piece.text
        else:
            pieces.append([piece.text, piece.source])
    return {
        "category": block.prompt.category,
        "id": block.prompt.id,
        "mode": mode,
        "temperature": block.temperature,
        "pieces": [[text, source] for text, source in pieces if text],
        "rounds": [
            {
                "at_ms": round(1e3 * moment.at, 2),
                "emitted": moment.emitted,
                "width": moment.width,
                "parked": moment.parked,
            }
            for moment in said.moments
        ],
    }


def _line(block: Block, done: Done) -> str:
    """One line of progress about a block."""
    speeds = [
        f"{a.mode} {1 / a.each:.1f}" if a.tokens > 1 else f"{a.mode} too short"
        for a in done.answers
    ]
    forks = [f"{a.mode} forks at {a.fork['token']}" for a in done.answers if a.fork]
    name = f"{block.prompt.category} {block.prompt.id}"
    drifted = ["the machine's speed changed"] if done.drifted else []
    parts = [f"{', '.join(speeds)} tok/s", *forks, *drifted]
    return f"{name}, temp {block.temperature:g}: {'; '.join(parts)}"
