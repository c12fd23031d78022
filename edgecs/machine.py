"""What this machine is called, and whether it is busy with something else."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import psutil


class Others:
    """How much of the processors' time others have used since it was made.

    pids: processes that are not others.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._own = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]
        self._before = self._seconds()

    @property
    def share(self) -> float:
        """Between 0 and 1; where it is not near 0 speeds mean nothing."""
        pairs = zip(self._seconds(), self._before, strict=True)
        others, everything = (now - before for now, before in pairs)
        return max(0.0, others / everything) if everything else 0.0

    def _seconds(self) -> tuple[float, float]:
        """Of other programs, and all there were, idle ones too."""
        machine = psutil.cpu_times()
        own = sum(map(_used, self._own))
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return sum(machine) - idle - own, sum(machine)


def _used(process: psutil.Process) -> float:
    """Seconds of the processors' time; 0 for a process that is gone."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


def cpu_name() -> str:
    """The processor as the system names it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """The instruction sets it has, as the system names them; empty: not known."""
    return _cpuinfo("flags")


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty: nothing, or not Linux."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(key):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return ""
