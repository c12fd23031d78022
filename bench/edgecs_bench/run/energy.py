"""Energy counters of this machine, if it has any.

RAPL on Linux (the processor packages, usually readable by root only), NVML for NVIDIA
GPUs through `nvidia-ml-py`, IOReport on Apple silicon through `zeus-apple-silicon`;
both packages are in the extra `energy`. The code for NVML and Apple silicon has only
run with fakes, not on hardware.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_RAPL = Path("/sys/class/powercap")


class Energy(NamedTuple):
    """A counter that never decreases."""

    source: str | None  # None: this machine has no counter
    joules: Callable[[], float | None]


class Rapl:
    """The energy counters of the processor packages, which wrap around.

    Raises OSError if there are none, or if they cannot be read.
    """

    def __init__(self, root: Path = _RAPL) -> None:
        zones = sorted(root.glob("intel-rapl:[0-9]*"))
        self._zones = [zone for zone in zones if zone.name.count(":") == 1]
        if not self._zones:
            raise OSError("no RAPL zones")
        self._ranges = [_number(z / "max_energy_range_uj") for z in self._zones]
        self._last = [_number(zone / "energy_uj") for zone in self._zones]
        self._used = 0

    def joules(self) -> float:
        """Joules since creation; call it more often than the counters wrap around."""
        now = [_number(zone / "energy_uj") for zone in self._zones]
        for i, (value, last) in enumerate(zip(now, self._last, strict=True)):
            self._used += value - last + (self._ranges[i] if value < last else 0)
        self._last = now
        return self._used / 1e6


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except ValueError as error:
        raise OSError(f"{file} does not hold a number") from error


def open_energy(*, gpu: bool) -> Energy:
    """The sum of all available counters. gpu: whether a GPU is used."""
    found: list[tuple[str, Callable[[], float]]] = []
    for opener in (_rapl, _apple, *((_nvml,) if gpu else ())):
        try:
            found.append(opener())
        except (ImportError, OSError, RuntimeError):
            continue
    if not found:
        return Energy(None, lambda: None)
    names = " + ".join(name for name, _ in found)
    return Energy(names, lambda: sum(joules() for _, joules in found))


def _rapl() -> tuple[str, Callable[[], float]]:
    return "RAPL, processor packages", Rapl().joules


def _nvml() -> tuple[str, Callable[[], float]]:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = range(pynvml.nvmlDeviceGetCount())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in count]
        started = sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error

    def joules() -> float:
        now = sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))
        return float(now - started) / 1e3

    return "NVML, all GPUs", joules


def _apple() -> tuple[str, Callable[[], float]]:
    if sys.platform != "darwin":
        raise OSError("not a Mac")
    from zeus_apple_silicon import AppleEnergyMonitor

    monitor = AppleEnergyMonitor()

    def joules() -> float:
        used = monitor.get_cumulative_energy()
        parts = (used.cpu_total_mj, used.gpu_mj, used.dram_mj)
        return sum(part or 0 for part in parts) / 1e3

    joules()
    return "IOReport, CPU, GPU and DRAM", joules
