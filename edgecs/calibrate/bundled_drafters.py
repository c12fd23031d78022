"""Bundled drafters, and their expected speedup on this machine.

A model's manifest may name one. It is used if its measured figures, combined with the
target's call times on this machine, predict a gain over plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from edgecs.costs.cost_model import WIDEST
from edgecs.hub.catalogue import resolve
from edgecs.hub.drafter_manifest import NAME, DrafterManifest, read_drafter
from edgecs.hub.manifest import known_manifests
from edgecs.theory import draft_speedup


def all_bundled() -> dict[str, Path]:
    """Folders of the bundled drafters, by name."""
    root = Path(str(resources.files("edgecs_models"))) / "drafters"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{NAME}"))}


def bundled_for(model: str) -> Path | None:
    """Folder of the bundled drafter for a model known by this name, if any."""
    found = resolve(model, known_manifests())
    name = found.manifest.drafter if found and found.quant is None else None
    return all_bundled().get(name) if name else None


def expected_speedup(folder: Path, times: Sequence[float]) -> float:
    """Expected greedy speedup of a drafter over plain decoding on this machine.

    times: seconds of the target's calls, [n - 1] for n tokens. The drafter's time per
    token is scaled by the ratio of the target's call times. 1 if the manifest has no
    figures.
    """
    return _speedup(read_drafter(folder), times)


def _speedup(manifest: DrafterManifest, times: Sequence[float]) -> float:
    made = manifest.made or {}
    shares, step, single = (
        made.get(key) for key in ("agreement", "ms_a_token", "target_ms")
    )
    if not (shares and step and single):
        return 1.0
    here = dict(enumerate(times[:WIDEST], 1))
    return draft_speedup(shares, float(step) / float(single) * here[1], here)
