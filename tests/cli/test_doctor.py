"""`edgecs doctor`: a warning for every problem, each with what to do."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.calibrate.profile import Profile, Profiles
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.exactness import Classes
from edgecs.engines import host
from edgecs.engines.llama import huge_pages, library
from edgecs.engines.offload import Device
from edgecs.planning.acceptance import Calibration
from edgecs_cli.commands import doctor
from edgecs_cli.commands.diagnosis import Facts, diagnose
from tests.conftest import Outcome
from tests.families import FAMILIES
from tests.keys import KEY, other_key

Edgecs = Callable[..., Outcome]

SOFTWARE = Device("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", 8 << 30, 8 << 30)
GPU = Device("Vulkan1", "AMD Radeon RX 7600", 8 << 30, 8 << 30)
REBUILD = "python -m pip install ... llama-cpp-python"


def profile(*, measured: bool = True, **changes: Any) -> Profile:
    costs = CostModel()
    if measured:
        costs.measured(0, {1: 0.01, 4: 0.012})
    return Profile(
        other_key(**changes),
        costs.state(),
        Classes().state(),
        Calibration().state(),
        tuned="2025-01-31T10:00:00+00:00",
    )


HEALTHY = Facts(
    available=8 << 30,
    needed=100 << 20,
    huge_pages_off=False,
    gpu=None,
    offloads=False,
    devices=[],
    amx_broken=None,
    rebuild=REBUILD,
    providers={"CPUExecutionProvider": True, "CUDAExecutionProvider": False},
    profiles=[profile()],
    build=KEY.build,
    device=KEY.device,
    models={"small-model": Path("model-Q4_K_M.gguf")},
)
# What is wrong, a part of the sentence, and a part of what to do.
PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "amx": ({"amx_broken": "crashes"}, "AMX code crashes", REBUILD),
    "gpu": (
        {"gpu": "CUDA", "providers": {"CUDAExecutionProvider": True}},
        "an NVIDIA GPU",
        REBUILD,
    ),
    "provider": (
        {"gpu": "CUDA", "offloads": True},
        "CUDAExecutionProvider does not work",
        "CUDA-ExecutionProvider",
    ),
    "software": (
        {"offloads": True, "devices": [SOFTWARE]},
        "llvmpipe (LLVM 15.0.6, 256 bits), computes on the CPU",
        "install the driver of a GPU",
    ),
    "memory": ({"available": 399 << 20}, "399 MiB of memory are free", "close other"),
    "huge pages": ({"huge_pages_off": True}, "are disabled", "echo madvise | sudo tee"),
    "no model": (
        {"models": {"small-model": None}, "profiles": []},
        "there is no model here",
        "edgecs models pull small-model",
    ),
    "busy": (
        {"profiles": [profile(measured=False)]},
        "busy while it was measured",
        "edgecs tune -m small-model",
    ),
    "stale": (
        {"build": "0.4.0"},
        "model-Q4_K_M is not used, because something has changed since then (",
        "edgecs tune -m small-model",
    ),
}


def test_a_machine_without_problems_is_told_so():
    (finding,) = diagnose(HEALTHY)
    assert (finding.level, finding.do) == ("ok", None)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_has_a_sentence_and_a_way_out(name: str):
    changes, text, do = PROBLEMS[name]
    (finding,) = diagnose(replace(HEALTHY, **changes))
    assert finding.level == "warning"
    assert text in finding.text
    assert finding.do
    assert do in finding.do


@given(st.sets(st.sampled_from(["amx", "provider", "memory", "huge pages", "stale"])))
def test_problems_add_up(names: set[str]):
    changes = {k: v for name in names for k, v in PROBLEMS[name][0].items()}
    found = diagnose(replace(HEALTHY, **changes))
    assert len(found) == max(1, len(names))


@given(st.integers(1, 8))
def test_many_models_are_one_sentence(count: int):
    busy = [profile(measured=False, model=f"m{i}") for i in range(count)]
    (finding,) = diagnose(replace(HEALTHY, profiles=busy))
    assert ("more is" in finding.text) == (count > 3)
    assert finding.do
    assert "edgecs tune -m m0.gguf" in finding.do
    assert ("the others" in finding.do) == (count > 1)


@pytest.mark.parametrize(
    "replaced",
    [
        replace(profile(), costs={"seconds": 5}),
        replace(profile(build="0.2"), tuned=None),
    ],
)
def test_a_profile_that_is_replaced_anyway_is_no_problem(replaced: Profile):
    """One that makes no sense, and one of a quick probe by another build."""
    (finding,) = diagnose(replace(HEALTHY, profiles=[replaced]))
    assert finding.level == "ok"


def test_a_tuning_of_an_unsteady_machine_is_told():
    unsteady = replace(profile(), chain={"unsteady": True})
    (finding,) = diagnose(replace(HEALTHY, profiles=[unsteady]))
    assert "edgecs tune" in str(finding.do)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_backend", lambda: None)


def test_the_verdict_comes_first(
    edgecs: Edgecs, cache: Path, no_gpu, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huge_pages, "setting", lambda: "switched off")
    first, second, *_ = edgecs("doctor").out.splitlines()
    assert first.startswith("! huge pages are disabled")
    assert second.startswith("  -> until the next reboot: echo madvise")
    verdict = json.loads(edgecs("doctor", "--json").out)["verdict"]
    assert {"level", "text", "do"} == set(verdict[0])
    assert "edgecs models pull smollm2" in verdict[-1]["do"]


def test_a_command_for_a_gpu_is_shown_only_where_there_is_one(
    edgecs: Edgecs, no_gpu, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(library, "has_amx", lambda: False)
    assert "cmake" not in edgecs("doctor").out
    monkeypatch.setattr(doctor, "gpu_backend", lambda: "CUDA")
    assert "cmake.define.GGML_CUDA=on" in edgecs("doctor").out


def test_a_gpu_beside_a_software_device_is_no_problem():
    facts = replace(HEALTHY, offloads=True, devices=[SOFTWARE, GPU])
    (finding,) = diagnose(facts)
    assert finding.level == "ok"


@pytest.mark.parametrize("device", [SOFTWARE, GPU])
def test_devices_and_the_kernels_beside_them(
    edgecs: Edgecs, no_gpu, monkeypatch: pytest.MonkeyPatch, device: Device
):
    monkeypatch.setattr(library, "devices", lambda: [device])
    monkeypatch.setattr(library, "backends", lambda: ["Vulkan", "CPU"])
    report = json.loads(edgecs("doctor", "--json").out)
    (line,) = report["llama.cpp"]["devices"]
    assert (", software" in line) == device.software
    assert ("computes on the CPU" in str(report["verdict"])) == device.software
    told = report["kernels"]["used"]
    assert told.startswith("llama.cpp's on the GPU; ") == (not device.software)
    if device is GPU:
        assert told.endswith("with -ngl 0")


def test_what_was_not_measured_has_no_speed(edgecs: Edgecs, cache: Path, no_gpu):
    profiles = Profiles(cache.parent / "profiles")
    assert profiles.save(profile(measured=False, model="busy"))
    assert profiles.save(profile(model="quiet"))
    report = json.loads(edgecs("doctor", "--json").out)
    shown = edgecs("doctor").out
    assert len(report["profiles"]) == 2
    assert "inf ms" not in shown + json.dumps(report)
    assert "\n  quiet  " in shown
    assert "\n  busy  " not in shown


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux machine without a GPU; its folder for programs."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(host, "_RENDERERS", tmp_path / "dri")
    monkeypatch.setattr(host.ctypes.util, "find_library", lambda name: "vulkan.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)


@pytest.mark.skipif(os.name == "nt", reason="the tool is a shell script here")
@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA H200'", "CUDA"),
        ("echo 'No devices were found'", None),
        ("echo GPU; exit 9", None),
    ],
)
def test_an_nvidia_gpu_is_one_that_the_driver_lists(bare: Path, script, found):
    assert host.gpu_backend() is None
    smi(bare, script)
    assert host.gpu_backend() == found


def test_another_gpu_needs_a_renderer_and_a_loader(
    bare: Path, monkeypatch: pytest.MonkeyPatch
):
    (bare / "dri").mkdir()
    assert host.gpu_backend() is None
    (bare / "dri" / "renderD128").touch()
    assert host.gpu_backend() == "Vulkan"
    monkeypatch.setattr(host.ctypes.util, "find_library", lambda name: None)
    assert host.gpu_backend() is None


def test_a_mac_has_metal(bare: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host.gpu_backend() == "Metal"


def test_the_memory_of_a_context_is_read_from_the_file(tmp_path: Path):
    told = doctor._cells(FAMILIES["granite"](tmp_path / "granite.gguf"))
    assert re.fullmatch(
        r"[\d.]+ MiB for 8192 tokens \([\d.]+ KiB for each token; [\d.]+ MiB for each "
        r"state\)",
        told,
    )
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert doctor._cells(broken).startswith("not known: the header of")
