"""What a session says about the origin of an answer's tokens."""

from __future__ import annotations

from edgecs.planning.planner import Planner
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs_cli.origins import Origins, origins_legend


def legend(session: Session, tiers: str, *, colours: bool) -> list[str]:
    """Lines on the last answer, see `origins_legend`.

    tiers: exactness along the context, in words.
    """
    return origins_legend(origins_of(session, tiers), colours=colours)


def origins_of(session: Session, tiers: str) -> Origins:
    """The origins of the last answer's tokens."""
    schedule, stats = session.cascade.schedule, session.stats
    planned = _planned(schedule, stats) if isinstance(schedule, Planner) else []
    context = session.context
    planned += [
        f"{name}: reads an excerpt of {tokens} of the {len(context)} tokens"
        for name, tokens in session.cascade.excerpts(context).items()
    ]
    return Origins(session.chain, stats, session.off_reason, tiers, planned)


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
