"""Whether the machine computes for somebody else."""

from __future__ import annotations

from collections import namedtuple

from edgecs.engines import host


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
            raise host.psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(host.psutil, "cpu_times", lambda: next(times))
    monkeypatch.setattr(host.psutil, "Process", Process)
    # The other process, which had used two seconds, is gone by then.
    assert host.Others([5]).share == (35 - (25 - 7)) / 70


def test_the_busiest_of_the_others_is_named(monkeypatch):
    Times = namedtuple("Times", "user system")
    me = host.os.getpid()
    used = {me: [0, 9], me + 1: [0, 8], 5: [100, 100.01], 6: [3, 3.05], 7: [1, 1.04]}

    class Process:
        def __init__(self, pid: int = me):
            self.pid = pid
            self.info = {"pid": pid, "name": f"program {pid}"}

        def children(self, recursive: bool) -> list[Process]:
            return [Process(me + 1)]

        def cpu_times(self) -> Times:
            if not used[self.pid]:
                raise host.psutil.NoSuchProcess(self.pid)
            return Times(used[self.pid].pop(0), 0)

    monkeypatch.setattr(host.psutil, "Process", Process)
    monkeypatch.setattr(
        host.psutil, "process_iter", lambda fields: map(Process, list(used))
    )
    monkeypatch.setattr(host.time, "sleep", lambda seconds: None)
    assert host.busiest(0.1) == "program 6"
    used.update({5: [9], 6: [1, 1.01], 7: [2]})  # the others are gone by then
    assert host.busiest(0.1) is None
