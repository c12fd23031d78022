"""`edgecs doctor`: what this machine can do for a model."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from typing import Any

import click
import psutil

from edgecs_cli.shared import open_store, reports_errors

_NOT_GPUS = ("CPU", "BLAS", "RPC")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def doctor(as_json: bool) -> None:
    """Say what this machine can do for a model.

    \b
    edgecs doctor --json
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(report))
        return
    for section, values in report.items():
        click.secho(section, bold=True)
        for key, value in values.items():
            click.echo(f"  {key:18} {_plain(value)}")


def examine() -> dict[str, dict[str, Any]]:
    """The whole report; no network is used."""
    from edgecs.backends import llama_library as llama
    from edgecs.backends import onnx_providers as onnx

    memory = psutil.virtual_memory()
    devices = llama.devices()
    providers = onnx.working_providers()
    built = [name for name in llama.backends() if name not in _NOT_GPUS]
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": cpu_name(),
            "cores": psutil.cpu_count(logical=False),
            "logical cores": psutil.cpu_count(),
            "ram": _gib(memory.total),
            "ram available": _gib(memory.available),
            "python": platform.python_version(),
        },
        "llama.cpp": {
            "llama-cpp-python": llama.version(),
            "instructions": llama.system_info(),
            "backends": llama.backends(),
            "offload": bool(built),
            "devices": [
                f"{d.name} ({d.description}), {_gib(d.free)} of {_gib(d.total)} free"
                for d in devices
            ],
            "to get offload": None if built else build_command(llama.version()),
        },
        "onnx runtime": {
            "version": onnx.version(),
            "working": [name for name, works in providers.items() if works],
            "not working": [name for name, works in providers.items() if not works],
        },
        "models": {
            model.manifest.name: str(model.path) if model.path else "not here"
            for model in open_store().models()
        },
    }


def build_command(version: str) -> str:
    """How to get a llama-cpp-python that offloads to this machine's GPU.

    The option goes through -C, which is the same in every shell.
    """
    backend = "VULKAN"
    if platform.system() == "Darwin":
        backend = "METAL"
    elif shutil.which("nvidia-smi"):
        backend = "CUDA"
    return (
        f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps "
        f'-C cmake.args="-DGGML_{backend}=on" "llama-cpp-python=={version}"'
    )


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
