"""How every bench ends: a table for people on stdout, then one line of JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter_ns

import psutil


def table(rows: Sequence[dict[str, object]]) -> None:
    """Prints rows of equal keys as aligned columns."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row[c]) for c in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        pairs = zip(row, widths, strict=True)
        print("  ".join(text.rjust(width) for text, width in pairs).rstrip())


def finish(result: dict[str, object]) -> None:
    """Prints the JSON object, with the machine it was measured on, as the last line."""
    machine = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "python": platform.python_version(),
    }
    print(json.dumps({**result, "machine": machine}))


def median_us(action: Callable[[], object], *, times: int) -> float:
    """Median duration of an action in microseconds."""
    spans = []
    for _ in range(times):
        start = perf_counter_ns()
        action()
        spans.append(perf_counter_ns() - start)
    return median(spans) / 1e3


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
