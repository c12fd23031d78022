"""`edgecs doctor`: what this machine can do for a model."""

from __future__ import annotations

import json
import platform
import shutil
from typing import Any

import click
import psutil

from edgecs.exactness import Limits
from edgecs.machine import cpu_name
from edgecs.profile import Profile
from edgecs.speculation import NONSENSE, Known
from edgecs_cli.config import (
    Given,
    check_names,
    config_path,
    given,
    option_names,
    read_config,
)
from edgecs_cli.console import echo, paint
from edgecs_cli.exact import tiers
from edgecs_cli.shared import findings, open_profiles, open_store, reports_errors


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--show-config",
    is_flag=True,
    help="Show instead which options have values from the config file or from the "
    "environment, and from where.",
)
@reports_errors
def doctor(as_json: bool, show_config: bool) -> None:
    """Say what this machine can do for a model.

    \b
    edgecs doctor --json
    edgecs doctor --show-config
    """
    if show_config:
        _show_config(as_json)
        return
    report = examine()
    if as_json:
        echo(json.dumps(report))
        return
    for section, values in report.items():
        echo(paint(section, bold=True))
        for key, value in values.items():
            echo(f"  {key:18} {_plain(value)}")


def examine() -> dict[str, dict[str, Any]]:
    """The whole report; no network is used."""
    from edgecs.backends import huge_pages
    from edgecs.backends import llama_library as llama
    from edgecs.backends import onnx_providers as onnx

    memory = psutil.virtual_memory()
    devices = llama.devices()
    providers = onnx.working_providers()
    built = llama.gpu_backends()
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": cpu_name(),
            "cores": psutil.cpu_count(logical=False),
            "logical cores": psutil.cpu_count(),
            "ram": _gib(memory.total),
            "ram available": _gib(memory.available),
            "huge pages": huge_pages.setting(),
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
            "to get offload": None if built else llama.build_command([_gpu()]),
            **_amx(),
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


def _show_config(as_json: bool) -> None:
    """Every value that nobody types."""
    context = click.get_current_context()
    group, path = context.find_root().command, config_path()
    assert isinstance(group, click.Group)
    table, found, options = read_config(path), list[Given](), set[str]()
    names = group.list_commands(context)
    for name in names:
        command = group.get_command(context, name)
        assert command is not None
        options |= option_names(command)
        found += given(name, command, table, path)
    check_names(table, path, names, options)
    if as_json:
        rows = [one._asdict() for one in found]
        echo(json.dumps({"file": str(path), "values": rows}, default=str))
        return
    echo(f"{path} ({'read' if path.exists() else 'not there'})")
    for one in found:
        echo(f"{one.command} --{one.option} {one.value}   from {one.origin}")


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


def _gpu() -> str:
    """The backend that suits this machine's GPU."""
    if platform.system() == "Darwin":
        return "Metal"
    return "CUDA" if shutil.which("nvidia-smi") else "Vulkan"


def _amx() -> dict[str, str | None]:
    """Whether AMX works, and how to mend it; nothing where the build has none."""
    from edgecs.backends import llama_library as llama

    if not llama.has_amx():
        return {}
    from edgecs.backends import llama_amx as amx

    found = amx.finding(findings())
    mends = llama.build_command(llama.gpu_backends())
    return {"amx": found, "to mend amx": None if found == amx.WORKS else mends}


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
