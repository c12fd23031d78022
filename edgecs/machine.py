"""What this machine is called."""

from __future__ import annotations

import platform


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
