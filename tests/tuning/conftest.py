"""Fixtures that the tests of tuning share."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecs.calibrate.profile import Profiles


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "profiles")
