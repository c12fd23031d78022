"""`python -m tests.kills`: kills commands, counts what was lost."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from importlib.util import find_spec

import click

from tests.kills.kinds import KINDS
from tests.kills.loop import kill

_COLUMNS = ("kills", "middle", "episodes", "lost", "unreadable", "different")
_COLUMNS += ("leftovers", "locks", "processes", "failed")


def shares(kinds: tuple[str, ...], kills: int) -> dict[str, int]:
    """How many of the kills are of each kind, one at least."""
    weights = {name: KINDS[name][1] for name in kinds or KINDS}
    total = sum(weights.values())
    return {name: -(-kills * weight // total) for name, weight in weights.items()}


@click.command()
@click.option("--kills", type=click.IntRange(1), default=200, show_default=True)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True)
@click.option("--seed", help="Draws the same kills again; otherwise a new one.")
def main(kills: int, kinds: tuple[str, ...], seed: str | None) -> None:
    """Kills commands of edgecs; exit code 1 if anything was lost."""
    seed = seed or str(secrets.randbelow(10**6))
    wanted = shares(kinds, kills)
    if not find_spec("torch"):
        wanted = {n: k for n, k in wanted.items() if n not in ("samples", "training")}
        click.echo("without the extra 'distill' samples and training are left out")
    click.echo(f"seed {seed}, {sum(wanted.values())} kills in the middle of the work")
    click.echo(" ".join(f"{name:>10}" for name in ("kind", *_COLUMNS)))
    began, total, table = time.monotonic(), Counter[str](), {}
    for name, count in wanted.items():
        found = table[name] = kill(name, seed, count, click.echo)
        total.update(found)
        _row(name, found)
    _row("all", total)
    seconds = round(time.monotonic() - began)
    click.echo(json.dumps({"seed": seed, "seconds": seconds, **total, "kinds": table}))
    sys.exit(bool(total["problems"]))


def _row(name: str, found: dict[str, int] | Counter[str]) -> None:
    cells = [name, *(str(found[column]) for column in _COLUMNS)]
    click.echo(" ".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
