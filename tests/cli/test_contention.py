"""What is said when other programs compute."""

from __future__ import annotations

import pytest

from edgecs.calibrate import speculation_profile
from edgecs_cli.loading import contention
from edgecs_cli.loading.contention import Contention


class Counted:
    """What the system counts, as a test says."""

    share = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves."""
    now = [0.0]
    monkeypatch.setattr(contention, "Others", Counted)
    monkeypatch.setattr(contention, "busiest", lambda: "blender")
    monkeypatch.setattr(speculation_profile, "BUSY", 0.15)
    monkeypatch.setattr(contention.time, "monotonic", lambda: now[0])
    return now


def test_it_is_said_once_until_it_was_quiet(clock: list[float]):
    watch, lines = Contention(), []
    for share in (0.0, 0.49, 0.5, 0.1, 0.33):
        watch.answer_begins()
        clock[0] += 1
        Counted.share = share
        lines.append(watch.line())
    said = "other programs (mostly blender) used {} of the CPU during this answer"
    assert [line and line.partition(",")[0] for line in lines] == [
        None,
        said.format("49%"),
        None,
        None,
        said.format("33%"),
    ]


def test_short_answers_say_nothing(clock: list[float]):
    watch = Contention()
    clock[0], Counted.share = 0.3, 0.9
    assert watch.line() is None


def test_where_no_program_is_seen_none_is_named(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contention, "busiest", lambda: None)
    watch = Contention()
    clock[0], Counted.share = 1.0, 0.5
    line = watch.line()
    assert line
    assert line.startswith("other programs used 50%")
