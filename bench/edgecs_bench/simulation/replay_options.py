"""What is replayed, and on which cost curves: the options that replays share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgecs_bench.hardware.curves import CURVES, Curve, read_curves
from edgecs_bench.simulation.traces import Recording, read_traces

TRACES = Path(__file__).parents[1] / "data" / "traces"


def replay_options(command: Any) -> Any:
    """Add the options for recordings and curves to a command."""
    path = click.Path(path_type=Path)
    options = (
        click.option("--traces", "files", type=path, multiple=True),
        click.option("--curves", "curve_file", type=path),
        click.option("--curve", "names", multiple=True, help="Only these curves."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def recordings_of(files: Sequence[Path]) -> list[Recording]:
    """The recordings in some files; of none, those of the repository."""
    return [read_traces(file) for file in files or sorted(TRACES.glob("*.gz"))]


def ranked_of(files: Sequence[Path]) -> list[Recording]:
    """Those with the target's ranked tokens. Raises UsageError if there is none."""
    found = [one for one in recordings_of(files) if any(t.ranked for t in one.traces)]
    if not found:
        raise click.UsageError("no trace has ranked tokens: see edgecs_bench.ranks")
    return found


def curves_of(file: Path | None, names: Sequence[str]) -> tuple[Curve, ...]:
    """The curves of these names in a file; None: the built-in ones.

    Raises UsageError if there is none.
    """
    curves = read_curves(file) if file else CURVES
    found = tuple(c for c in curves if not names or c.name in names)
    if not found:
        raise click.UsageError(f"no curve is named {' or '.join(names) or 'anything'}")
    return found
