"""Call times of the same model with other load options.

Flash attention, the type of the KV cache, the layout of the weights and the number of
threads affect the time of a call, differently at every depth: attention that is fast at
the start of a context may be slow after thousands of tokens. Calls with the current and
with other options alternate, so that drift of the machine does not affect the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import NamedTuple

from edgecs.calibrate.probe import Scratch
from edgecs.core.draft import LanguageModel
from edgecs.costs.cost_model import SETTLED, WIDEST
from edgecs.decoding.static_schedule import Clock
from edgecs.engines.load_options import FlashAttention, LoadOptions
from edgecs.errors import ModelError, OutOfMemory
from edgecs.tuning.cost_sweep import DEEPEST, SHALLOW, Timer

# chosen: plain decoding, a usual draft, a long one.
WIDTHS = (1, 4, 16)  # of the calls that are compared
# chosen: the least and greatest depth, and a chat of a few turns.
DEPTHS = (SHALLOW, 1024, DEEPEST)
# chosen: less is not worth another flag.
TELLS = 0.05  # least relative gain at some depth of a setting that is reported

Open = Callable[[LoadOptions], AbstractContextManager[LanguageModel]]
"""Loads the same model with other options; raises OutOfMemory, ModelError."""


class Setting(NamedTuple):
    """A set of load options."""

    flags: str  # command line flags
    options: LoadOptions
    same_bits: bool = False


class Pair(NamedTuple):
    """Seconds of a call with the current and with other options."""

    now: float
    then: float

    @property
    def ratio(self) -> float:
        """Ratio of the times; below 1 the other setting is faster."""
        return self.then / self.now


class SettingTimes(NamedTuple):
    """Call times with another setting."""

    setting: Setting
    seconds: dict[int, dict[int, Pair]]  # by depth and width

    @property
    def tells(self) -> bool:
        """Whether a single token is clearly faster at some depth."""
        return min(pairs[1].ratio for pairs in self.seconds.values()) <= 1 - TELLS

    def fields(self) -> dict[str, object]:
        """As JSON values; milliseconds with the current and with the other options."""
        return {
            "flags": self.setting.flags,
            "depths": [
                {
                    "depth": depth,
                    "ms": {
                        str(n): [round(seconds * 1e3, 4) for seconds in pair]
                        for n, pair in pairs.items()
                    },
                }
                for depth, pairs in self.seconds.items()
            ],
        }

    def briefly(self) -> str:
        """The flags, and their largest gain."""
        ratios = {depth: pairs[1].ratio for depth, pairs in self.seconds.items()}
        best = min(ratios, key=ratios.__getitem__)
        speed = f"{1 / ratios[best]:.2f} x as fast after {best} tokens"
        return f"{self.setting.flags} ({speed})"

    def advice(self) -> str:
        """A sentence about the gains and losses at different depths."""
        ratios = {depth: pairs[1].ratio for depth, pairs in self.seconds.items()}
        best = min(ratios, key=ratios.__getitem__)
        text = f"{self.setting.flags}: a token takes {ratios[best]:.2f} of the time "
        text += f"after {best} tokens"
        worst = max(ratios, key=ratios.__getitem__)
        if ratios[worst] > 1 + TELLS:
            text += f", but {ratios[worst]:.2f} after {worst}"
        if self.setting.same_bits:
            return f"{text}, with the same bits."
        return f"{text}; rounding may differ, and so may answers."


def settings_to_try(
    options: LoadOptions, threads: int, logical: int
) -> Iterator[Setting]:
    """Other load options of a model, each with one change.

    threads: the current number. logical: number of logical processors.
    """
    flash: FlashAttention = "on" if options.flash_attention == "off" else "off"
    if flash == "on" or options.type_v in ("f32", "f16", "bf16"):
        changed = replace(options, flash_attention=flash)
        yield Setting(f"--flash-attn {flash}", changed)
    if options.flash_attention != "off" and options.type_k == options.type_v == "f16":
        changed = replace(options, type_k="q8_0", type_v="q8_0")
        yield Setting("-ctk q8_0 -ctv q8_0", changed)
    if options.kernels != "llama":
        changed = replace(options, kernels="llama")
        yield Setting("--kernels llama", changed)
    elif options.repack:
        changed = replace(options, repack=False)
        yield Setting("--no-repack", changed)
    if options.mmap and options.huge_pages:
        changed = replace(options, mmap=False)
        yield Setting("--no-mmap", changed, same_bits=True)
    for other in sorted({logical, max(1, threads // 2)} - {threads}):
        yield Setting(f"-t {other}", replace(options, threads=other))


def trying(setting: Setting) -> str:
    """Progress message of a setting."""
    return f"trying {setting.flags}"


def time_settings(
    now: LanguageModel,
    others: Sequence[Setting],
    open_with: Open,
    repeats: int,
    progress: Callable[[str], None] = lambda text: None,
    *,
    clock: Clock = perf_counter,
) -> list[SettingTimes]:
    """Time calls of a model with the current and with other options, alternating.

    A setting that the engine rejects, or that does not fit into memory, is left out.
    repeats: calls per value. Raises Cancelled if the cancel of `now` is set.
    """
    found = []
    for setting in others:
        progress(trying(setting))
        room = min(now.n_ctx, DEEPEST + WIDEST + 1)  # cells that are used
        try:
            with open_with(replace(setting.options, n_ctx=room)) as then:
                seconds = dict(_compared(now, then, repeats, clock))
                found.append(SettingTimes(setting, seconds))
        except (OutOfMemory, ModelError) as error:
            progress(f"{setting.flags} was not measured: {error}")
    return found


def _compared(
    now: LanguageModel, then: LanguageModel, repeats: int, clock: Clock
) -> Iterator[tuple[int, dict[int, Pair]]]:
    room = min(now.n_ctx, then.n_ctx) - WIDEST - 1
    for depth in sorted({max(1, min(depth, room)) for depth in DEPTHS}):
        with Scratch(now, depth) as ours, Scratch(then, depth) as theirs:
            timers = Timer(ours, clock), Timer(theirs, clock)
            yield depth, {n: _pair(timers, n, repeats) for n in WIDTHS}


def _pair(timers: tuple[Timer, Timer], width: int, repeats: int) -> Pair:
    """Medians of alternating calls, each after calls of the same width."""
    took: tuple[list[float], list[float]] = [], []
    for i in range(SETTLED + repeats):
        for which in (0, 1) if i % 2 else (1, 0):
            took[which].append(timers[which].call(width)[1])
    now, then = (median(seconds[SETTLED:]) for seconds in took)
    return Pair(now, then)
