"""Locations of a user's models and measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from edgecs.calibrate.profile import Profiles
from edgecs.hub.store import Store


def _users() -> Path:
    return Path(platformdirs.user_cache_dir("edgecs"))


def _memory() -> Path:
    return Path(platformdirs.user_data_dir("edgecs")) / "memory"


@dataclass(frozen=True)
class Folders:
    """A folder for models, profiles and findings, by default the user's cache.

    offline: missing models are not downloaded.
    """

    root: Path = field(default_factory=_users)
    offline: bool = False
    memory: Path = field(default_factory=_memory)  # texts that the user keeps

    @property
    def store(self) -> Store:
        """The models."""
        return Store(self.root / "models", offline=self.offline)

    @property
    def profiles(self) -> Profiles:
        """The measurements of models on this machine."""
        return Profiles(self.root / "profiles")

    @property
    def findings(self) -> Path:
        """The file with trial results of this build of llama.cpp."""
        return self.root / "llama.json"
