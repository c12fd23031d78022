"""Problems that limit speed on this machine, and their fixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from edgecs.calibrate.profile import Key, Profile
from edgecs.calibrate.speculation_profile import NONSENSE, Known
from edgecs.engines.offload import Device

_BESIDE = 300 << 20  # bytes that an answer takes besides its weights: Python, KV cells
_NAMED = 3  # models that a sentence names
_GPUS = {
    "CUDA": "an NVIDIA GPU",
    "Metal": "the GPU of this Mac",
    "Vulkan": "a GPU with a Vulkan driver",
}
_PROVIDERS = {"CUDA": "CUDAExecutionProvider", "Metal": "CoreMLExecutionProvider"}
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_ONNX_PAGES = "https://onnxruntime.ai/docs/execution-providers"


class Finding(NamedTuple):
    """A sentence on this machine; `do` is the fix, None where all is well."""

    level: Literal["ok", "warning"]
    text: str
    do: str | None = None


@dataclass(frozen=True)
class Facts:
    """Facts about this machine.

    gpu: the backend for its GPU, None: no GPU. devices: those that llama.cpp finds.
    amx_broken: how the test of AMX failed, None: it did not. rebuild: the command that
    compiles llama.cpp again, for AMX and for the GPU. models: known by name, with their
    files.
    """

    available: int  # bytes of memory
    needed: int  # bytes of the smallest known model's weights
    huge_pages_off: bool
    gpu: str | None
    offloads: bool  # whether this build of llama.cpp has a backend for GPUs
    devices: Sequence[Device]
    amx_broken: str | None
    rebuild: str
    providers: Mapping[str, bool]  # of ONNX Runtime, and whether each works
    profiles: Sequence[Profile]
    build: str  # as in the key of a profile
    device: str  # as in the key of a profile
    models: Mapping[str, Path | None]


def diagnose(facts: Facts) -> list[Finding]:
    """A warning for every problem; an OK if there is none."""
    problems = [
        Finding("warning", *problem)
        for look in (_amx, _gpu, _providers, _memory, _huge_pages, _models, _profiles)
        for problem in look(facts)
    ]
    return problems or [Finding("ok", "no problem was found")]


Problems = Iterator[tuple[str, str]]
"""A problem, and its fix."""


def _amx(facts: Facts) -> Problems:
    if facts.amx_broken:
        yield (
            f"llama.cpp's AMX code {facts.amx_broken} in this build: weights are not "
            "repacked, which is slower",
            f"rebuild it (some minutes): {facts.rebuild}",
        )


def _gpu(facts: Facts) -> Problems:
    if facts.gpu and not facts.offloads:
        yield (
            f"there is {_GPUS[facts.gpu]}, which this build of llama.cpp does not use",
            f"rebuild it (some minutes): {facts.rebuild}",
        )
    if facts.devices and all(device.software for device in facts.devices):
        names = ", ".join(device.description for device in facts.devices)
        yield (
            f"the only device of llama.cpp, {names}, computes on the CPU, so layers on "
            "it gain nothing: -ngl auto puts none there",
            "install the driver of a GPU, if there is one, and unset "
            "GGML_VK_VISIBLE_DEVICES",
        )


def _providers(facts: Facts) -> Problems:
    name = _PROVIDERS.get(facts.gpu or "", "")
    if facts.providers.get(name, True):
        return
    page = name.removesuffix("ExecutionProvider")
    yield (
        f"ONNX Runtime's {name} does not work, although there is "
        f"{_GPUS[facts.gpu or '']}: ONNX drafters run on the CPU",
        f"install the libraries listed at {_ONNX_PAGES}/{page}-ExecutionProvider",
    )


def _memory(facts: Facts) -> Problems:
    if facts.available < facts.needed + _BESIDE:
        free, needed = (n >> 20 for n in (facts.available, facts.needed + _BESIDE))
        yield (
            f"{free} MiB of memory are free, and the smallest known model takes about "
            f"{needed}",
            "close other programs",
        )


def _huge_pages(facts: Facts) -> Problems:
    if facts.huge_pages_off:
        yield (
            "huge pages are disabled; with them calls are up to a fifth faster",
            f"until the next reboot: echo madvise | sudo tee {_HUGE_PAGES}",
        )


def _models(facts: Facts) -> Problems:
    if facts.models and not (any(facts.models.values()) or facts.profiles):
        yield "there is no model here", f"edgecs models pull {next(iter(facts.models))}"


def _profiles(facts: Facts) -> Problems:
    names = {path.stem: name for name, path in facts.models.items() if path}

    def tune(profiles: Sequence[Profile]) -> str:
        first, *others = _stems(profiles)
        more = ", and likewise for the others" if others else ""
        return f"edgecs tune -m {names.get(first, f'{first}.gguf')}{more}"

    if rough := [profile for profile in facts.profiles if was_disturbed(profile)]:
        yield (
            f"the profile of {_listed(rough)} is unreliable: the machine was busy "
            "while it was measured",
            f"when the machine is idle: {tune(rough)}",
        )
    if stale := [p for p in facts.profiles if p.tuned and _changes(p.key, facts)]:
        why = "; ".join(_changes(stale[0].key, facts))
        yield (
            f"the tuning of {_listed(stale)} is not used, because something has "
            f"changed since then ({why})",
            tune(stale),
        )


def was_disturbed(profile: Profile) -> bool:
    """Whether other programs disturbed the times of a profile, or prevented them."""
    try:
        return not Known.of(profile).costs.known or bool(profile.chain.get("unsteady"))
    except NONSENSE:
        return False  # it is not used, and replaced at the next start


def _changes(key: Key, facts: Facts) -> list[str]:
    return replace(key, build=facts.build, device=facts.device).differences(key)


def _stems(profiles: Sequence[Profile]) -> list[str]:
    return list(dict.fromkeys(profile.key.model for profile in profiles))


def _listed(profiles: Sequence[Profile]) -> str:
    """The models of profiles: a few by name, and the number of the rest."""
    stems = _stems(profiles)
    shown, more = stems[:_NAMED], len(stems) - _NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
