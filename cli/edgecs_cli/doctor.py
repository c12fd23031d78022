"""`edgecs doctor`: what this machine can do for a model."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from typing import Any

import click
import psutil

from edgecs.exactness import Limits
from edgecs.machine import cpu_name
from edgecs.profile import Profile
from edgecs.speculation import NONSENSE, Known
from edgecs_cli.exact import tiers
from edgecs_cli.shared import open_profiles, open_store, reports_errors

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
        "profiles": {
            profile.key.slot: _measured(profile)
            for _, profile in open_profiles().all()
            if profile
        },
        "models": {
            model.manifest.name: str(model.path) if model.path else "not here"
            for model in open_store().models()
        },
    }


def _measured(profile: Profile) -> str:
    """What is known of a model under one set of options, in words."""
    try:
        known = Known.of(profile)
    except NONSENSE:
        return "makes no sense, and is not used"
    single = float(known.costs.seconds(0)[0]) * 1e3
    limits, deepest = (
        Limits(known.classes, "strict"),
        max(known.classes.inside, default=0),
    )
    when = f"tuned {profile.tuned}" if profile.tuned else "not tuned"
    return f"{single:.1f} ms a token; {tiers(limits, deepest + 1)}; {when}"


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


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
