"""A server whose worker is lost: requests get errors until there is one again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.workers import needs_rpc, started


@contextmanager
def serving(model: Path, worker: str) -> Iterator[httpx.Client]:
    """A server with a model on a worker."""
    command = [sys.executable, "-m", "edgecs", "serve", "-m", model, "--port", 0]
    command += ["-np", 2, "-c", 4096, "--no-spec", "--offline", "--rpc", worker]
    with subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if "listening on" in line)
            with httpx.Client(base_url=said.split()[2], timeout=None) as client:
                yield client
        finally:
            process.kill()


@needs_rpc
def test_the_model_is_loaded_again_once_its_worker_is_back(tiny_gguf: Path):
    def asked(tokens: int, *, stream: bool = False) -> dict[str, object]:
        return {"prompt": "hello", "max_tokens": tokens, "stream": stream}

    with started() as first, serving(tiny_gguf, first.address) as client:
        path = "/v1/completions"
        assert client.post(path, json=asked(4)).status_code == 200
        with client.stream("POST", path, json=asked(3000, stream=True)) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")  # the answer has begun
            first.kill()
            errors = [line for line in lines if '"error"' in line]
        assert len(errors) == 1
        assert f"{first.address} was lost" in errors[0]
        refused = client.post(path, json=asked(4))
        assert refused.status_code == 503
        assert "no worker answers" in refused.json()["error"]["message"]
        with started("--port", first.address.split(":")[1]):
            assert client.post(path, json=asked(4)).status_code == 200
