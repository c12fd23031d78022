"""Drafters that come with edgecs, and what they promise on this machine.

A model's manifest may name one. It is used where its figures, with the times of the
target's calls here, promise more than plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from edgecs.costs.cost_model import WIDEST
from edgecs.hub.drafter_manifest import NAME, DrafterManifest, read_drafter
from edgecs.hub.manifest import known_manifests
from edgecs.theory import draft_speedup


def shipped_drafters() -> dict[str, Path]:
    """Folders of the drafters that come with edgecs, by name."""
    root = Path(str(resources.files("edgecs_models"))) / "drafters"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{NAME}"))}


def shipped_for(model: str) -> Path | None:
    """The drafter that comes with edgecs for a model known by this name."""
    manifest = known_manifests().get(model)
    name = manifest.drafter if manifest else None
    return shipped_drafters().get(name) if name else None


def promise(folder: Path, times: Sequence[float]) -> float:
    """Greedy tokens a second over plain decoding that a drafter promises here.

    times: seconds of the target's calls, [n - 1] for n tokens. A drafted token is taken
    to be as much faster or slower here as a call of the target is. 1 where its manifest
    has no figures.
    """
    return _promise(read_drafter(folder), times)


def _promise(manifest: DrafterManifest, times: Sequence[float]) -> float:
    made = manifest.made or {}
    shares, step, single = (
        made.get(key) for key in ("agreement", "ms_a_token", "target_ms")
    )
    if not (shares and step and single):
        return 1.0
    here = dict(enumerate(times[:WIDEST], 1))
    return draft_speedup(shares, float(step) / float(single) * here[1], here)
