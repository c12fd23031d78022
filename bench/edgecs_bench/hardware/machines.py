"""Call times on a machine, measured or from a roofline model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecs.costs.cost_model import WIDEST
from edgecs.errors import ConfigError
from edgecs_bench.hardware.curves import LARGE, Curve, Steps, curve

BITS = {"q4": 4.5, "q8": 8.5, "f16": 16.0}  # a weight of Q4_0, Q8_0 and F16
_SMALLEST, _LARGEST = 1e6, 1e13  # parameters
_READ = 512  # tokens of a prompt in one call
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([bm])-(q4|q8|f16|\d+(?:\.\d+)?)", re.I | re.A)
_NAMED = re.compile(r"(?:^|[-_ ])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.I | re.A)
_QUANT = re.compile(r"(?:^|[-_. ])(?:iq|q)([1-8])(?![0-9])", re.I | re.A)


@dataclass(frozen=True)
class Size:
    """The size of a model."""

    name: str
    parameters: float
    bits: float  # of a weight

    @property
    def bytes(self) -> float:
        """Bytes of all weights, which a call reads once."""
        return self.parameters * self.bits / 8

    @staticmethod
    def parse(text: str) -> Size:
        """Parses text such as 7B-q4 or 135M-8.5; raises ConfigError."""
        found = _SIZE.fullmatch(text)
        bits = BITS.get(found[3].lower()) or float(found[3]) if found else 0.0
        size = _parameters(found) if found else 0.0
        if not (_SMALLEST <= size <= _LARGEST and 1 <= bits <= 64):
            raise ConfigError(
                f"{text!r} is not a model size: give parameters and bits per weight, "
                f"as in 7B-q4 ({', '.join(BITS)}, or a number of 1 to 64 bits)"
            )
        return Size(text, size, bits)

    @staticmethod
    def of_name(name: str) -> Size | None:
        """The size according to a file name; None: the name has no size."""
        found, quant = _NAMED.search(name), _QUANT.search(name)
        if not found:
            return None
        return Size(name, _parameters(found), float(quant[1]) + 0.5 if quant else 16.0)


def _parameters(found: re.Match[str]) -> float:
    return float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6)


@dataclass(frozen=True)
class Deep:
    """Call times at a larger depth."""

    depth: int  # tokens in the cache
    ms: dict[int, float]  # by width


@dataclass(frozen=True)
class Target:
    """Call times of a model."""

    model: str
    ms: dict[int, float]  # by width
    overhead_ms: float = LARGE
    parameters: float | None = None  # None: unknown; also for bytes
    bytes: float | None = None
    depth: int = 0
    settling_ms: float = 0.0  # see `Curve.settling`
    deep: tuple[Deep, ...] = ()  # empty: depth costs nothing

    @property
    def curve(self) -> Curve:
        """Times at all widths, interpolated linearly."""
        made = curve(self.model, 1.0, self.ms, self.overhead_ms)
        made = made._replace(settling=self.settling_ms, depth=self.depth)
        there = (curve(self.model, 1.0, deep.ms, 0.0).times for deep in self.deep)
        depths = (deep.depth for deep in self.deep)
        return made._replace(deeper=tuple(zip(depths, there, strict=True)))


@dataclass(frozen=True)
class Drafter:
    """Call times of a drafter."""

    name: str
    ms: dict[int, float]  # by width
    reading_ms: float

    @property
    def steps(self) -> Steps:
        """Times at all widths."""
        return Steps(Target(self.name, self.ms, 0.0).curve.times, self.reading_ms)


@dataclass(frozen=True)
class Roofline:
    """A call reads all weights once and computes with each for every token.

    >>> Roofline(100.0, 1.0, 0.5).ms(Size.parse("2B-8"), 1)
    20.5
    """

    gb_per_s: float
    tflops: float
    launch_ms: float = 0.0
    overhead_ms: float = LARGE
    sources: dict[str, str] = field(default_factory=dict)

    def ms(self, size: Size, width: int) -> float:
        """Milliseconds of a call."""
        reading = size.bytes / (self.gb_per_s * 1e6)
        computing = 2 * size.parameters * width / (self.tflops * 1e9)
        return max(reading, computing) + self.launch_ms

    def target(self, size: Size) -> Target:
        """The target of a given size."""
        times = {n: self.ms(size, n) for n in range(1, WIDEST + 1)}
        return Target(size.name, times, self.overhead_ms, size.parameters, size.bytes)

    def drafter(self, name: str, size: Size) -> Drafter:
        """The drafter of a given size."""
        return Drafter(name, self.target(size).ms, self.ms(size, _READ) / _READ)


@dataclass(frozen=True)
class Hardware:
    """A machine with measured targets, or with a roofline for any target."""

    name: str
    note: str
    source: str  # of the numbers: measured, assumed, ...
    targets: tuple[Target, ...] = ()
    drafters: tuple[Drafter, ...] = ()
    roofline: Roofline | None = None

    def describe(self) -> str:
        """A one-line description of the numbers."""
        if line := self.roofline:
            known = f"{line.gb_per_s:g} GB/s, {line.tflops:g} TFLOPS, "
            known += f"{line.launch_ms:g} ms per call: a roofline"
        else:
            widths = sorted({n for target in self.targets for n in target.ms})
            known = f"times at widths {', '.join(map(str, widths))}, linear in between"
        return f"{self.name}: {self.note + '; ' if self.note else ''}{known}; " + (
            f"source: {self.source}"
        )

    def aims(self, sizes: Sequence[Size]) -> tuple[Target, ...]:
        """The measured targets, or those of the given sizes on the roofline."""
        if self.roofline:
            return tuple(map(self.roofline.target, sizes))
        return self.targets

    def drafter(self, name: str, target: Target, size: Size | None = None) -> Drafter:
        """The call times of a drafter for a target; raises ConfigError if unknown.

        They are measured, from the roofline, or in proportion to the target's bytes.
        size: overrides the measured times and the size in the name.
        """
        for known in () if size else self.drafters:
            if known.name.lower() == name.lower():
                return known
        size = size or Size.of_name(name)
        if self.roofline and size:
            return self.roofline.drafter(name, size)
        if target.bytes and size:
            return _in_proportion(name, target, size.bytes / target.bytes)
        raise ConfigError(
            f"{self.name} has no times of the drafter {name}: add it to its drafters, "
            "or give its size with --drafter and the bytes of the targets"
        )


def _in_proportion(name: str, target: Target, share: float) -> Drafter:
    times = {n: ms * share for n, ms in target.ms.items()}
    return Drafter(name, times, float(target.curve.times[-1]) * share / WIDEST)
