"""Whether the machine computes for somebody else."""

from __future__ import annotations

from collections import namedtuple

from edgecs import machine


def test_others_are_all_who_are_not_idle_and_not_ours(monkeypatch):
    Machine = namedtuple("Machine", "user system idle iowait")
    Own = namedtuple("Own", "user system")
    times = iter([Machine(10, 5, 50, 5), Machine(40, 10, 80, 10)])
    own = iter([Own(4, 1), Own(2, 0), Own(19, 6)])

    class Process:
        def __init__(self, pid: int | None = None):
            self.pid = pid

        def cpu_times(self):
            if found := next(own, None):
                return found
            raise machine.psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: next(times))
    monkeypatch.setattr(machine.psutil, "Process", Process)
    # The other process, which had used two seconds, is gone by then.
    assert machine.Others([5]).share == (35 - (25 - 7)) / 70
