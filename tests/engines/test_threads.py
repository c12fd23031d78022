"""Where llama.cpp's threads run, and where the caller's may."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.llama.threads import one_of_each
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load

numbers = st.integers(0, 15)


@given(st.lists(st.sets(numbers, min_size=1), max_size=8), st.sets(numbers))
def test_every_core_gives_one_processor(cores: list[set[int]], allowed: set[int]):
    chosen = one_of_each(cores, allowed)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= allowed
    for core in cores:
        assert bool(core & allowed) == bool(core & set(chosen))


@pytest.fixture
def two() -> Iterator[set[int]]:
    """Two processors that are all this process may use."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("threads cannot be bound here")
    before = os.sched_getaffinity(0)
    chosen = {*sorted(before)[:2]}
    os.sched_setaffinity(0, chosen)
    yield chosen
    os.sched_setaffinity(0, before)


def _loaded(path: Path, threads: int, *, strict: bool = True) -> Loaded:
    options = LoadOptions(n_ctx=64, n_gpu_layers=0, threads=threads, cpu_strict=strict)
    return load(path, options)


def _bound(loaded: Loaded) -> set[int]:
    """The processors on which some thread is kept after a call."""
    score_one(loaded.target, Context([1, 2, 3]))
    tasks = {int(name) for name in os.listdir("/proc/self/task")} - {os.getpid()}
    found = []
    for task in tasks:
        with suppress(ProcessLookupError):  # a thread of another test may end here
            found.append(os.sched_getaffinity(task))
    return {cpu for cpus in found if len(cpus) == 1 for cpu in cpus}


def test_threads_stay_on_cores_and_the_caller_does_not(tiny_gguf: Path, two: set[int]):
    with _loaded(tiny_gguf, 2) as loaded:
        assert _bound(loaded) == {max(two)}
        assert os.sched_getaffinity(0) == two
        command = "import os; print(*sorted(os.sched_getaffinity(0)))"
        started = subprocess.run(
            [sys.executable, "-c", command], capture_output=True, text=True, check=True
        )
        assert started.stdout.split() == [str(cpu) for cpu in sorted(two)]


@pytest.mark.parametrize(("threads", "strict"), [(3, True), (2, False)])
def test_threads_go_where_there_is_room_even_after_they_did_not(
    tiny_gguf: Path, two: set[int], threads: int, strict: bool
):
    with _loaded(tiny_gguf, 2) as loaded:
        assert _bound(loaded)
    with _loaded(tiny_gguf, threads, strict=strict) as loaded:
        assert not _bound(loaded)
