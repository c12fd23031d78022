"""`generate --explain`: shows which model wrote which part of an answer.

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
from typing import NamedTuple

from edgecs.planning.planner import Planner
from edgecs.session.answer import Token
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs_bench.text_tables import Row, aligned
from edgecs_cli.console import joined, paint

COLOURS = (32, 136, 161, 93)  # of 256: blue, gold, crimson, violet

Paint = Callable[[Iterable[Token]], Iterator[str]]
"""A stream of tokens -> the text to print."""


class Style(NamedTuple):
    """How a drafter's text looks."""

    colour: int
    underline: bool


def painter(chain: Sequence[str], *, colours: bool) -> Paint:
    """A `Paint` that shows sources. chain: names, the target first."""
    return partial(coloured if colours else marked, chain)


def plain(tokens: Iterable[Token]) -> Iterator[str]:
    """The text alone."""
    return (token.text for token in tokens)


def coloured(chain: Sequence[str], tokens: Iterable[Token]) -> Iterator[str]:
    """Every token's text in the colour of its source; the target's is plain."""
    styles = _styles(chain)
    for token in tokens:
        yield _styled(token.text, styles.get(token.source))


def marked(chain: Sequence[str], tokens: Iterable[Token]) -> Iterator[str]:
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


def legend(session: Session, tiers: str, *, colours: bool) -> list[str]:
    """Lines on the last answer: tokens by source, and why drafts were not used.

    tiers: exactness along the context, in words.
    """
    lines = _table(session, colours=colours)
    if not colours and len(session.chain) > 1:
        lines.append(f"marks: text of a drafter is in [{session.chain[-1]}:...]")
    elif colours and len(session.chain) > 1:
        lines.append(
            "colours: the drafter of a text; mag is Max-Gram, from the text so far"
        )
    if isinstance(session.cascade.schedule, Planner):
        lines += _planned(session.cascade.schedule, session.stats)
    lines += [
        f"{name}: disabled for this session because it failed: {reason}"
        for name, reason in session.stats.faults.items()
    ]
    widths = session.stats.rounds_by_width.items()
    if widths:
        shown = ", ".join(f"{rounds} of {width}" for width, rounds in widths)
        lines.append(f"rounds by tokens in the call: {shown}")
    off = session.off_reason
    lines.append(f"speculation: off ({off})" if off else f"exactness: {tiers}")
    return lines


def _styles(chain: Sequence[str]) -> dict[str, Style]:
    """The style of every drafter; Max-Gram, which is always last, is blue."""
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


def _table(session: Session, *, colours: bool) -> list[str]:
    """A line per source: its tokens in the answer, and counts of its drafts."""
    stats, (target, *drafters) = session.stats, session.chain
    sources = stats.by_source()
    styles = _styles(session.chain) if colours else {}
    rows: list[Row] = [["source", "tokens", "share", "proposed", "tested", "accepted"]]
    for name in (target, *drafters):
        counts = sources.get(name, dict.fromkeys(("proposed", "tested", "accepted"), 0))
        own = name == target
        tokens = stats.tokens - stats.accepted if own else counts["accepted"]
        share = f"{tokens / stats.tokens:.0%}" if stats.tokens else ""
        rows.append([name, tokens, share, *(("", "", "") if own else counts.values())])
    heads, *lines = aligned(rows)
    names = [_styled(name, styles.get(name)) for name in session.chain]
    rests = [line[len(name) :] for name, line in zip(session.chain, lines, strict=True)]
    return [heads, *map(joined, zip(names, rests, strict=True))]


def _planned(planner: Planner, stats: Stats) -> list[str]:
    """How often the planner used each drafter, and why not."""
    sound = [neural for neural in planner.neural if neural.name not in stats.faults]
    lines = [f"{neural.name}: {neural.status}" for neural in sound]
    records = stats.records
    for source in planner.sources.all:
        if source.name in stats.faults:
            continue
        proposed = [r for r in records if source.name in r.proposed]
        used = sum(source.name in record.tested for record in proposed)
        lines.append(
            f"{source.name}: used in {used} of {len(records)} rounds; "
            f"{len(proposed) - used} not expected to beat plain decoding, "
            f"{len(records) - len(proposed)} without a better proposal"
        )
    return lines
