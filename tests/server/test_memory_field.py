"""The field `memory` of a request: whether its answer is stored."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from edgecs.memory.documents import Documents
from edgecs.memory.keeping import Wanted
from tests.server.servers import WAIT, serving


def kept(folder: Path, count: int) -> int:
    """Texts of a store, once there are so many."""
    until = time.monotonic() + WAIT
    with Documents(folder) as documents:
        while len(documents.all()) < count and time.monotonic() < until:
            time.sleep(0.02)
        return len(documents.all())


def test_a_request_switches_the_memory_off(tiny_gguf: Path, tmp_path: Path):
    folder = tmp_path / "memory"
    with (
        serving(tiny_gguf, tmp_path, store=Wanted(folder)) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
    ):

        def ask(path: str, text: str, **more: object) -> str:
            body = {"prompt": text, "max_tokens": 12, "n_predict": 12, **more}
            reply = http.post(path, json={**body, "temperature": 0}).json()
            found = reply["content"] if "content" in reply else reply["choices"]
            return str(found)

        private = ask("/v1/completions", "one", memory=False)
        ask("/completion", "two", memory=False)
        ask("/v1/completions", "three", cache_prompt=False)
        assert ask("/v1/completions", "one") == private
        assert kept(folder, 1) == 1
        ask("/completion", "two")
        assert kept(folder, 2) == 2
        ask("/v1/completions", "three", cache_prompt=False, memory=True)
        assert kept(folder, 3) == 3
        reply = http.post("/v1/completions", json={"prompt": "a", "memory": "no"})
        assert reply.status_code == 400
    with Documents(folder) as documents:
        texts = [documents.text(one.id) for one in documents.all()]
    assert [text[:3] for text in reversed(texts)] == ["one", "two", "thr"]


@pytest.mark.parametrize("keeps", [True, False])
def test_all_slots_share_a_store(tiny_gguf: Path, tmp_path: Path, keeps: bool):
    from concurrent.futures import ThreadPoolExecutor

    folder = tmp_path / "memory"
    with (
        serving(tiny_gguf, tmp_path, store=Wanted(folder, keeps)) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
        ThreadPoolExecutor() as threads,
    ):

        def ask(text: str) -> int:
            body = {"prompt": text, "max_tokens": 12, "temperature": 0}
            return http.post("/v1/completions", json=body).status_code

        assert {*threads.map(ask, ["one", "two", "three", "four"])} == {200}
    assert kept(folder, 4 * keeps) == 4 * keeps
