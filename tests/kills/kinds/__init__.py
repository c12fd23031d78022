"""Each kind is one sort of work that is killed, and knows what must not be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.kills.kinds.benching import Bench
from tests.kills.kinds.distilling import Distill, Training
from tests.kills.kinds.fetching import Hub, Pull
from tests.kills.kinds.kind import Kind
from tests.kills.kinds.measuring import Probe, Tune
from tests.kills.kinds.remembering import Build, Remember
from tests.kills.kinds.saving import Save

KINDS: dict[str, tuple[Callable[[Path], Kind], int]] = {  # and its share of the kills
    "save": (Save, 6),
    "profile": (Tune, 4),
    "probe": (Probe, 3),
    "pull": (Pull, 6),
    "hub": (Hub, 3),
    "bench": (Bench, 6),
    "samples": (Distill, 3),
    "training": (Training, 3),
    "memory": (Remember, 6),
    "phrases": (Build, 3),
}
