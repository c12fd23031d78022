"""What this machine is called, whether it has a GPU, and whether it is busy."""

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
# chosen: a driver that takes longer is as good as none.
_PATIENCE = 10  # seconds that a driver's tool may take
# chosen: as a busy machine in `calibrate.speculation_profile`.
_MUCH = 0.15  # of a processor: less than that is not what makes a machine busy


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


def busiest(seconds: float = 0.1) -> str | None:
    """The other program that computes most, watched for so long; None: none is seen.

    What it is called is its own choice, so it may be any text.
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
    """The backend of llama.cpp that suits this machine's GPU; None: there is none.

    Named as `llama.library.backends` does.
    """
    if sys.platform == "darwin":
        return "Metal"
    if _has_nvidia():
        return "CUDA"
    renders = sys.platform == "linux" and any(_RENDERERS.glob("renderD*"))
    return "Vulkan" if renders and ctypes.util.find_library("vulkan") else None


def _has_nvidia() -> bool:
    """Whether the driver lists a GPU; its tool may be there without one."""
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
    physical = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):
        return min(physical, len(os.sched_getaffinity(0)))
    return physical


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
