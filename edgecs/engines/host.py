"""The host: CPU name and cores, GPU, and load by other programs."""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_RENDERERS = Path("/dev/dri")
# chosen: a driver that takes longer is not usable.
_PATIENCE = 10  # seconds that a driver's tool may take
# chosen: the same share as BUSY in `calibrate.speculation_profile`.
_MUCH = 0.15  # of one CPU core: a program that uses less does not make a machine busy


class Others:
    """CPU time that other programs have used since it was created.

    pids: processes that do not count as other programs.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._own = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]
        self._before = self._seconds()

    @property
    def share(self) -> float:
        """Share of the CPU time, 0 to 1; unless it is near 0, timings are not valid."""
        pairs = zip(self._seconds(), self._before, strict=True)
        others, everything = (now - before for now, before in pairs)
        return max(0.0, others / everything) if everything else 0.0

    def _seconds(self) -> tuple[float, float]:
        """CPU seconds of other programs, and of the whole machine including idle."""
        machine = psutil.cpu_times()
        own = sum(map(_used, self._own))
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return sum(machine) - idle - own, sum(machine)


def _used(process: psutil.Process) -> float:
    """CPU seconds of a process; 0 if it has ended."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


def busiest(seconds: float = 0.1) -> str | None:
    """The other program that uses most CPU time during `seconds`, or None.

    Programs choose their names, so the name may be any text.
    """
    used, names = dict[int, float](), dict[int, str]()
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(True))}
    for process in psutil.process_iter(["pid", "name"]):
        if (pid := process.info["pid"]) not in own:
            names[pid] = process.info["name"]
            used[pid] = -_used(process)
    time.sleep(seconds)
    for pid in used:
        with suppress(psutil.Error):
            used[pid] += _used(psutil.Process(pid))
    most = max(used, key=lambda pid: used[pid], default=0)
    return names[most] if used.get(most, 0.0) > _MUCH * seconds else None


def gpu_backend() -> str | None:
    """The llama.cpp backend for this machine's GPU, or None.

    Named as in `llama.library.backends`.
    """
    if sys.platform == "darwin":
        return "Metal"
    if _has_nvidia():
        return "CUDA"
    renders = sys.platform == "linux" and any(_RENDERERS.glob("renderD*"))
    return "Vulkan" if renders and ctypes.util.find_library("vulkan") else None


def _has_nvidia() -> bool:
    """Whether the driver lists a GPU; its tool may be installed without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return not listed.returncode and b"GPU" in listed.stdout


def usable_cores() -> int:
    """Physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, usable_processors())


def usable_processors() -> int:
    """Logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def cpu_name() -> str:
    """The processor as the system names it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """The CPU's instruction sets as the system names them; empty: not known."""
    return _cpuinfo("flags")


def _cpuinfo(key: str) -> str:
    """A field of the first CPU in /proc/cpuinfo; empty if there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(key):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return ""
