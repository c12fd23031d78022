"""The results of a tuning, as JSON and as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgecs.calibrate.profile import Key
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.decoding.tiers import Exact
from edgecs.tuning.comparison import PLAIN, overlap_pays
from edgecs.tuning.cost_sweep import DEEPEST, Curve, tiles
from edgecs.tuning.quantisations import Quantisation, expected_rates
from edgecs.tuning.settings import WIDTHS, SettingTimes
from edgecs.tuning.tuner import Tuned

_DRIFTED = "because the machine drifted"


class Table(NamedTuple):
    """Rows of cells, the header first; words: indices of text columns."""

    rows: list[list[str]]
    words: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Report:
    """The report of a tuning.

    model, drafts: as given on the command line; no drafts: the bundled drafter of the
    model. known: as `tune` left it. memory: of the context, in words. files: others of
    the same model. settings: other load options. kept: whether the profile was saved.
    """

    model: str
    drafts: Sequence[str]
    key: Key
    known: SpeculationProfile
    memory: str
    tuned: Tuned
    files: Sequence[Quantisation]
    settings: Sequence[SettingTimes]
    kept: bool

    def fields(self) -> dict[str, object]:
        """The report as JSON values; times in milliseconds, speeds in tokens/s."""
        tuned = self.tuned
        return {
            "model": self.key.named(),
            "memory": self.memory,
            "curves": [_fields(curve) for curve in tuned.curves],
            "tiles": {str(n): end for n, end in tiles(tuned.curves[0].seconds).items()},
            "exact": {"tiers": self._tiers(), **self.known.classes.state()},
            "drafters": [
                {
                    "name": drafter.name,
                    "fingerprint": drafter.fingerprint,
                    "curve": _fields(drafter.curve),
                    "needs": drafter.needs,
                    "has": round(drafter.right, 4),
                    "status": drafter.status,
                }
                for drafter in tuned.drafters
            ],
            "plain": {
                "expected": round(tuned.expected[PLAIN], 3),
                "measured": {k: round(r, 3) for k, r in tuned.compared.plain.items()},
            },
            "chains": tuned.table(),
            "discarded": tuned.compared.discarded,
            "unsteady": tuned.unsteady,
            "chosen": tuned.chosen.chain.parts,
            "overlap": {n: round(gain, 4) for n, gain in tuned.overlap.items()},
            "quantisations": [
                {**other._asdict(), "path": str(other.path)} for other in self.files
            ],
            "settings": [other.fields() for other in self.settings],
            "kept": self.kept,
        }

    def verdict(self) -> Iterator[str]:
        """The result and the next steps, at most five lines."""
        yield self._chosen_line()
        yield f"Exact, with the bits of plain decoding: {self._widths()}."
        if self.settings:
            yield self._settings_line()
        if self.files:
            yield self._file_line(min(self.files, key=self._rank))
        if self.kept:
            yield self._next_line()

    def details(self) -> Iterator[str | Table]:
        """All measurements, as lines and tables."""
        yield f"Memory of the context: {self.memory}."
        first, *deeper = self.tuned.curves
        yield f"{self.key.model}, a call by its tokens, {self._how(first)}:"
        yield Table([*_cost_rows(first.seconds)], words=(4,))
        yield "A call pays if more drafted tokens are right than the table requires."
        others = [(self.key.model, curve) for curve in deeper]
        others += [(drafter.name, drafter.curve) for drafter in self.tuned.drafters]
        for name, curve in others:
            yield f"\n{name}, {self._how(curve)}:"
            yield Table([*_short_rows(curve.seconds)])
        yield f"\nThe bits of plain decoding: {self._widths()}."
        yield f"With --exact {self.known.exact}: {self._tiers()}."
        yield "\nSpeed, relative to plain decoding just before and after:"
        yield Table([*self._chain_rows()])
        yield "Measured: the median over the kinds of task; mean: the geometric mean."
        if self.tuned.compared.discarded:
            yield f"Discarded, {_DRIFTED}: {self.tuned.compared.discarded}"
        yield ""
        for trial in self.tuned.compared.trials:
            yield f"{trial.chain.name}: {self.tuned.verdict(trial)}"
        yield from (drafter.status for drafter in self.tuned.drafters)
        for name, gain in self.tuned.overlap.items():
            pays = "it pays" if overlap_pays(gain) else "it does not pay"
            yield f"{name}, overlapped: {gain:.2f} x as fast as without, so {pays}"
        yield ""
        if self.settings:
            yield "Loaded with other flags, ms of a call now -> with the flags:"
            yield Table([*_setting_rows(self.settings)])
            yield from (other.advice() for other in self.settings if other.tells)
        yield from map(self._file_line, self.files)

    def _widths(self) -> str:
        """Widths that strict allows along the context."""
        return self._tiers("strict").replace("strict (", "").replace(")", "")

    def _how(self, curve: Curve) -> str:
        """How a curve was measured."""
        said = f"{curve.depth} tokens deep, medians of {curve.repeats}"
        if curve.discarded:
            said += f"; frames repeated, {_DRIFTED}: {curve.discarded}"
        return said

    def _tiers(self, exact: Exact | None = None) -> str:
        """The exactness tiers along the measured part of the context."""
        limits = self.known.limits_of(exact) if exact else self.known.limits
        end = min(self.known.target.n_ctx, DEEPEST)
        return limits.describe(d for d in (0, *(256 << i for i in range(5))) if d < end)

    def _chain_rows(self) -> Iterator[list[str]]:
        compared, plain = self.tuned.compared, self.tuned.expected[PLAIN]
        kinds = list(compared.plain)
        yield ["chain", "expected", "measured", "mean", *kinds]
        rates = [f"{rate:.1f} tok/s" for rate in compared.plain.values()]
        yield ["plain", f"{plain:.1f} tok/s", "1.00", "1.00", *rates]
        for trial in compared.trials:
            ratios = [trial.speedup or 0.0, trial.mean, *trial.ratios.values()]
            expected = f"{self.tuned.expected[trial.chain] / plain:.2f}"
            yield [trial.chain.name, expected, *(f"{r:.2f}" for r in ratios)]

    def _chosen_line(self) -> str:
        chosen = self.tuned.chosen
        line = f"Chosen: target <- {chosen.chain.name}"
        if not chosen.ratios:
            return f"{line}. No answer was long enough to measure its speed."
        least, most = min(chosen.ratios.values()), max(chosen.ratios.values())
        speed = (
            f"{chosen.mean:.2f} x as fast as plain decoding ({least:.2f} to {most:.2f} "
            "by task)"
        )
        if not (chosen.harmless and chosen.mean >= 1):
            why = "no other is faster, and it drafts where that pays"
            return f"{line}, as {why}: {speed}."
        return f"{line}, {speed}."

    def _settings_line(self) -> str:
        better = [other for other in self.settings if other.tells]
        if not better:
            return "No other load options are faster."
        return f"Faster with {', '.join(other.briefly() for other in better)}."

    def _file_line(self, other: Quantisation) -> str:
        if other.expected_rates is None:
            return f"{other.name} is present, not measured: edgecs tune -m {other.path}"
        ours = _arrow(expected_rates(self.known.costs))
        theirs = _arrow(other.expected_rates)
        return (
            f"{other.name} of this model would decode {theirs} tok/s with Max-Gram "
            f"here (this one: {ours})"
        )

    def _rank(self, other: Quantisation) -> tuple[bool, float]:
        """Sort key: the fastest measured file if it is faster, then other files."""
        speed = max(other.expected_rates or (0.0,))
        return speed <= max(expected_rates(self.known.costs)), -speed

    def _next_line(self) -> str:
        if self.tuned.unsteady:
            return (
                "The speed of the machine changed during the measurements, so these "
                "results are rough: tune again later."
            )
        names = [drafter.name for drafter in self.tuned.drafters]
        given = dict(zip(names, self.drafts, strict=False))
        wanted = [given[n] for n in self.tuned.chosen.chain.drafters if n in given]
        if wanted:
            flags = shlex.join(word for draft in wanted for word in ("--draft", draft))
            return f"Next: edgecs generate -m {shlex.quote(self.model)} {flags}"
        return "`edgecs generate` and `edgecs chat` use these results from now on."


def _arrow(speeds: tuple[float, float]) -> str:
    return f"{speeds[0]:.1f} -> {speeds[1]:.1f}"


def _fields(curve: Curve) -> dict[str, object]:
    ms = {str(n): round(seconds * 1e3, 4) for n, seconds in curve.seconds.items()}
    how = {name: getattr(curve, name) for name in ("repeats", "discarded", "unsure")}
    return {"depth": curve.depth, "ms": ms, **how}


def _cost_rows(seconds: Mapping[int, float]) -> Iterator[list[str]]:
    """A row for every width: its time, and when it pays."""
    cheaper = tiles(seconds)
    yield ["tokens", "ms", "relative", "must be right", ""]
    for n, value in seconds.items():
        relative = value / seconds[1]
        pays = f"{relative - 1:.1f} of {n - 1}" if relative <= n else "never pays"
        note = "end of a tile" if n in cheaper.values() else ""
        if n in cheaper:
            note = f"{cheaper[n]} tokens take less"
        first = [str(n), f"{value * 1e3:.2f}", f"{relative:.2f}"]
        yield [*first, pays, note]


def _setting_rows(others: Sequence[SettingTimes]) -> Iterator[list[str]]:
    """A row for every setting and depth, a column for every width."""
    yield ["flags", "after", *(_counted(n) for n in WIDTHS)]
    for other in others:
        for depth, pairs in other.seconds.items():
            cells = [f"{p.now * 1e3:.2f} -> {p.then * 1e3:.2f}" for p in pairs.values()]
            yield [other.setting.flags, f"{depth} tokens", *cells]


def _counted(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def _short_rows(seconds: Mapping[int, float]) -> Iterator[list[str]]:
    """A row of times, a column for every width."""
    yield ["tokens", *map(str, seconds)]
    yield ["ms", *(f"{value * 1e3:.2f}" for value in seconds.values())]
