"""The environment of a measurement: machine and build of a result."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import psutil

from edgecs.engines.host import cpu_name


def machine() -> dict[str, Any]:
    """The machine, without data that identifies its owner."""
    from edgecs.engines.llama import library as llama

    devices = [device.description for device in llama.devices()]
    memory = round(psutil.virtual_memory().total / (1 << 30), 1)
    cores = psutil.cpu_count(logical=False)
    hardware = f"{cpu_name()}|{cores}|{memory:.0f}|{devices}|{platform.machine()}"
    return {
        "id": hashlib.sha256(hardware.encode()).hexdigest()[:12],
        "system": f"{platform.system()} {platform.release()}",
        "processor": cpu_name(),
        "cores": cores,
        "memory_gib": memory,
        "devices": devices,
        "power": power(),
    }


def power() -> str:
    """Whether the machine runs on mains or on battery, which is slower."""
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    if battery is None or battery.power_plugged is None:
        return "unknown"
    return "mains" if battery.power_plugged else "battery"


def build() -> dict[str, Any]:
    """Versions and build settings."""
    from edgecs.engines.llama import library as llama
    from edgecs.engines.onnx import providers as onnx

    return {
        "llama_cpp_python": llama.version(),
        "system_info": llama.system_info(),
        "onnxruntime": onnx.version(),
        "python": platform.python_version(),
    }


def peak_rss_mib() -> float | None:
    """Peak memory of this process; None: unknown."""
    try:
        import resource
    except ImportError:  # Windows
        most = getattr(psutil.Process().memory_info(), "peak_wset", None)
        return None if most is None else float(most) / (1 << 20)
    unit = 1 if platform.system() == "Darwin" else 1 << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * unit / (1 << 20), 1)
