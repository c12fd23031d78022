"""`edgecs doctor`: diagnoses what limits speed on this machine."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import psutil

from edgecs.calibrate.profile import Profile
from edgecs.calibrate.speculation_profile import NONSENSE, Known
from edgecs.decoding.exactness import Limits
from edgecs.engines.cell_memory import memory_of, most_snapshots
from edgecs.engines.gguf_header import read_header
from edgecs.engines.host import cpu_name, gpu_backend
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import Device
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import build_and_device
from edgecs_bench.text_tables import aligned
from edgecs_cli.commands.diagnosis import Facts, Finding, diagnose, was_disturbed
from edgecs_cli.config import (
    Given,
    check_names,
    config_path,
    given,
    option_names,
    read_config,
)
from edgecs_cli.console import columns, echo, joined, paint, wrapped
from edgecs_cli.options.shared import (
    reports_errors,
)

# chosen: a context that most conversations fit.
_CONTEXT = 8192  # tokens for which the memory is stated


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--show-config",
    is_flag=True,
    help="Show the options set in the config file or in the environment, and their "
    "origin.",
)
@reports_errors
def doctor(as_json: bool, show_config: bool) -> None:
    """Diagnose what limits speed on this machine.

    Problems come first, each with a fix.

    \b
    edgecs doctor --json
    edgecs doctor --show-config
    """
    if show_config:
        _show_config(as_json)
        return
    report, facts = examine()
    found = diagnose(facts)
    if as_json:
        verdict = [finding._asdict() for finding in found]
        echo(json.dumps({"verdict": verdict, **report}))
        return
    for line in _verdict(found):
        echo(line)
    for section, values in _sections(report, facts).items():
        if not values:
            continue
        echo(paint(f"\n{section}", bold=True))
        indent = " " * (4 + max(map(len, values)))  # where the values begin
        rows = [(key, _plain(value)) for key, value in values.items()]
        for line in aligned(rows, words=(0, 1)):
            echo(wrapped(f"  {line}", columns(sys.stdout), indent))


def _verdict(found: Sequence[Finding]) -> Iterator[str]:
    """Findings with their fixes; commands are not wrapped, so they can be copied."""
    width = columns(sys.stdout)
    for finding in found:
        if finding.do is None:
            yield joined([paint("OK", fg="green", bold=True), f": {finding.text}"])
            continue
        text = wrapped(f"! {finding.text}", width, "  ")
        yield joined([paint(text[:1], fg="yellow", bold=True), text[1:]])
        yield f"  -> {finding.do}"


def _sections(
    report: dict[str, dict[str, Any]], facts: Facts
) -> dict[str, dict[str, Any]]:
    """The report without the commands, which are in the verdict."""
    built, onnx = report["llama.cpp"], report["onnx runtime"]
    commands = ("to get workers", "to get offload", "to mend amx")
    shown = {key: value for key, value in built.items() if key not in commands}
    if not built["workers"]:
        shown["workers"] = f"no, for --rpc run: {built['to get workers']}"
    shown["instructions"] = " ".join(re.findall(r"(\w+) = 1", built["instructions"]))
    if not facts.gpu:
        onnx = {key: value for key, value in onnx.items() if key != "not working"}
    known = {
        profile.key.model: _measured(profile)
        for profile in facts.profiles
        if not was_disturbed(profile)
    }
    return {**report, "llama.cpp": shown, "onnx runtime": onnx, "profiles": known}


def examine() -> tuple[dict[str, dict[str, Any]], Facts]:
    """The whole report, and the facts for `diagnose`; no network is used."""
    from edgecs.engines.llama import huge_pages, rpc
    from edgecs.engines.llama import library as llama
    from edgecs.engines.onnx import providers as onnx

    memory = psutil.virtual_memory()
    devices, gpu = llama.devices(), gpu_backend()
    providers = onnx.working_providers()
    built, amx = llama.gpu_backends(), _amx()
    profiles = [profile for _, profile in Folders().profiles.all() if profile]
    store = Folders().store
    models = [m for m in store.models() if m.path or m.manifest.drafter]
    build, device = build_and_device()
    facts = Facts(
        available=memory.available,
        needed=min((m.manifest.size or 0 for m in models), default=0),
        huge_pages_off=huge_pages.setting() == huge_pages.OFF,
        gpu=gpu,
        offloads=bool(built),
        devices=devices,
        amx_broken=amx["amx"] if amx.get("to mend amx") else None,
        rebuild=llama.build_command(built or ([gpu] if gpu else [])),
        providers=providers,
        profiles=profiles,
        build=build,
        device=device,
        models={model.manifest.name: model.path for model in models},
    )
    report: dict[str, dict[str, Any]] = {
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
            "devices": [_described(device) for device in devices],
            "workers": rpc.available(),
            "to get workers": None if rpc.available() else rpc.compile_command(),
            "to get offload": None if built else llama.build_command([gpu or "Vulkan"]),
            **amx,
        },
        "kernels": _kernels(devices),
        "onnx runtime": {
            "version": onnx.version(),
            "working": [name for name, works in providers.items() if works],
            "not working": [name for name, works in providers.items() if not works],
        },
        "profiles": {profile.key.slot: _measured(profile) for profile in profiles},
        "models": {
            model.manifest.name: str(model.path) if model.path else "not here"
            for model in models
        },
        "memory of contexts": {
            model.manifest.name: _cells(model.path)
            for model in models
            if model.path and model.path.suffix == ".gguf"
        },
    }
    return report, facts


def _show_config(as_json: bool) -> None:
    """Prints every value from the config file or the environment."""
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
    """A profile in words."""
    try:
        known = Known.of(profile)
    except NONSENSE:
        return "is not valid, and is not used"
    times = "no times, because other programs used the CPU"
    if known.costs.known:
        times = f"{float(known.costs.seconds(0)[0]) * 1e3:.1f} ms a token"
    limits, deepest = (
        Limits(known.classes, "strict"),
        max(known.classes.inside, default=0),
    )
    when = f"tuned {profile.tuned}" if profile.tuned else "not tuned"
    return f"{times}; {limits.describe_up_to(deepest + 1)}; {when}"


def _cells(path: Path) -> str:
    """What a context of a model takes, by the header of its file."""
    options = LoadOptions()
    try:
        header = read_header(path)
        memory = memory_of(header, options)
    except (OSError, ValueError) as error:
        return f"not known: {error}"
    weights = path.stat().st_size
    kept = most_snapshots(header.architecture, memory, options, weights)
    return memory.describe(_CONTEXT, options, kept)


def _described(device: Device) -> str:
    free = f"{_gib(device.free)} of {_gib(device.total)} free"
    kind = ", software" if device.software else ""
    return f"{device.name} ({device.description}{kind}), {free}"


def _kernels(devices: Sequence[Device]) -> dict[str, str | None]:
    """The kernels in use, and why edgecs's are not."""
    from edgecs.engines.llama.kernel_choice import choose

    ours, why = choose("auto", Folders().findings)
    used = f"edgecs's for {ours.name}" if ours else "llama.cpp's"
    if any(not device.software for device in devices):
        used = f"llama.cpp's on the GPU; {used} with -ngl 0"
    return {
        "used": used,
        "why not edgecs's": why,
    }


def _amx() -> dict[str, str | None]:
    """Whether AMX works, and how to fix it; empty if the build has no AMX."""
    from edgecs.engines.llama import library as llama

    if not llama.has_amx():
        return {}
    from edgecs.engines import trial
    from edgecs.engines.llama import amx

    found = amx.finding(Folders().findings)
    mends = llama.build_command(llama.gpu_backends())
    return {"amx": found, "to mend amx": None if found == trial.WORKS else mends}


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
