"""Shows which model wrote which part of an answer. Nothing here loads an engine.

The target's text is plain. With colours every drafter has its own; they differ by at
least 40 (CIELAB) under each of the three kinds of colour blindness, and have a contrast
of at least 3:1 to black and to white. Without colours a run of one drafter's text is
put in brackets after its name: `[mag:text]`.

Text is held back until a character is complete, or while it may begin a stop string. It
has the colour of the token that it is emitted with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from edgecs_bench.text_tables import Row, aligned
from edgecs_cli.console import joined, paint
from edgecs_cli.short_lines import Report

_ABOUT = {
    "mag": "mag is Max-Gram, which copies from the text so far",
    "recent": "recent is what followed the same words in an earlier conversation",
    "user": "user is what followed the same words in your own store",
    "phrases": "phrases is a phrase that the model often says",
    "bigram": "bigram is the token that usually follows",
    "recycling": "recycling is a token that was likely after the same ones before",
}
COLOURS = (32, 136, 161, 93)  # of 256: blue, gold, crimson, violet


class Sourced(Protocol):
    """A text and the model that it is from, as `Token` has them."""

    @property
    def text(self) -> str:
        """Text that became certain with the token."""

    @property
    def source(self) -> str:
        """Name of the target or of a drafter."""


Paint = Callable[[Iterable[Sourced]], Iterator[str]]
"""A stream of tokens -> the text to print."""


class Style(NamedTuple):
    """How a drafter's text looks."""

    colour: int
    underline: bool


def painter(chain: Sequence[str], *, colours: bool) -> Paint:
    """A `Paint` that shows sources. chain: names, the target first."""
    return partial(coloured if colours else marked, chain)


def plain(tokens: Iterable[Sourced]) -> Iterator[str]:
    """The text alone."""
    return (token.text for token in tokens)


def coloured(chain: Sequence[str], tokens: Iterable[Sourced]) -> Iterator[str]:
    """Every token's text in the colour of its source; the target's is plain."""
    styles = _styles(chain)
    for token in tokens:
        yield _styled(token.text, styles.get(token.source))


def marked(chain: Sequence[str], tokens: Iterable[Sourced]) -> Iterator[str]:
    """Runs of a drafter's text in brackets after its name; the target's is plain."""
    neural = target = chain[0]
    for token in tokens:
        if not token.text:
            continue
        before = ""
        if token.source != neural:
            before = "" if neural == target else "]"
            neural = token.source
            before += "" if neural == target else f"[{neural}:"
        yield before + token.text
    if neural != target:
        yield "]"


class Origins(NamedTuple):
    """Where the tokens of an answer come from.

    chain: names, the target first. off_reason: why there were no drafts; None: there
    were. tiers: exactness along the context, in words. planned: lines on how often the
    planner used each drafter, where that is known.
    """

    chain: Sequence[str]
    stats: Report
    off_reason: str | None
    tiers: str
    planned: Sequence[str] = ()


def origins_legend(origins: Origins, *, colours: bool) -> list[str]:
    """Lines on an answer: tokens by source, and why drafts were not used."""
    chain, stats = origins.chain, origins.stats
    lines = _table(origins, colours=colours)
    if len(chain) > 1:
        shown = "colours: the drafter" if colours else "[name:...]: the drafter"
        about = [_ABOUT[name] for name in chain[1:] if name in _ABOUT]
        lines.append("; ".join([f"{shown} of a text", *about]))
    lines += origins.planned
    lines += [
        f"{name}: disabled for this session because it failed: {reason}"
        for name, reason in stats.faults.items()
    ]
    widths = stats.rounds_by_width.items()
    if widths:
        shown = ", ".join(f"{rounds} of {width}" for width, rounds in widths)
        lines.append(f"rounds by tokens in the call: {shown}")
    if (ahead := stats.made_ahead())["made"]:
        lines.append(
            f"drafts made ahead: {ahead['made']}, of which {ahead['used']} were used "
            f"and {ahead['dropped']} dropped"
        )
    off = origins.off_reason
    lines.append(f"speculation: off ({off})" if off else f"exactness: {origins.tiers}")
    if stats.notice:
        lines.append(f"answer: {stats.notice}")
    return lines


def _styles(chain: Sequence[str]) -> dict[str, Style]:
    """The style of every drafter; Max-Gram is blue."""
    styles = {}
    # Max-Gram looks the same in every chain.
    names = sorted(chain[:0:-1], key=lambda name: name != "mag")
    for i, name in enumerate(names):
        again, at = divmod(i, len(COLOURS))
        styles[name] = Style(COLOURS[at], underline=again > 0)
    return styles


def _styled(text: str, style: Style | None) -> str:
    if style is None or not text:
        return text
    return paint(text, fg=style.colour, underline=style.underline or None)


def _table(origins: Origins, *, colours: bool) -> list[str]:
    """A line per source: its tokens in the answer, and counts of its drafts."""
    stats, chain = origins.stats, origins.chain
    target, *drafters = chain
    sources = stats.by_source()
    styles = _styles(chain) if colours else {}
    rows: list[Row] = [["source", "tokens", "share", "proposed", "tested", "accepted"]]
    for name in (target, *drafters):
        counts = sources.get(name, dict.fromkeys(("proposed", "tested", "accepted"), 0))
        own = name == target
        tokens = stats.tokens - stats.accepted if own else counts["accepted"]
        share = f"{tokens / stats.tokens:.0%}" if stats.tokens else ""
        rows.append([name, tokens, share, *(("", "", "") if own else counts.values())])
    heads, *lines = aligned(rows)
    names = [_styled(name, styles.get(name)) for name in chain]
    rests = [line[len(name) :] for name, line in zip(chain, lines, strict=True)]
    return [heads, *map(joined, zip(names, rests, strict=True))]
