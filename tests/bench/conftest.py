"""Fixtures that the tests of the bench share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Outcome


@pytest.fixture
def simulate(edgecs: Callable[..., Outcome]) -> Callable[..., Outcome]:
    return lambda *arguments: edgecs("simulate", *arguments)
