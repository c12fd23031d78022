"""The output of every benchmark: a table on stdout, then one line of JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from statistics import median
from time import perf_counter_ns

import psutil

from edgecs_bench.text_tables import aligned, with_heads


def table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows of equal keys, see `table_lines`."""
    print("\n".join(table_lines(rows)))


def table_lines(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Rows with equal keys as lines; columns from the first number on are numbers.

    >>> for line in table_lines([{"chain": "mag:3", "speed-up": 1.5, "share": "50%"}]):
    ...     print(line)
    chain  speed-up  share
    mag:3      1.50    50%
    """
    first = list(rows[0].values())
    words = list(takewhile(lambda at: isinstance(first[at], str), range(len(first))))
    heads, *cells = with_heads(rows)
    shown = [[_cell(value) for value in row] for row in cells]
    return aligned([heads, *shown], words=words)


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
