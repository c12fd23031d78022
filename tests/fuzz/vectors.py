"""Requests for embeddings, with models that give some."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.embedding_models import EMBEDDING_MODELS
from tests.fuzz import http, mutate

MODELS = (*EMBEDDING_MODELS,)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {
        "model": "tiny",
        "input": ["hello", "a llama is an animal"],
        "encoding_format": "float",
        "dimensions": 8,
        "user": "x",
    },
    "/api/embed": {
        "model": "tiny",
        "input": ["hello", "a llama"],
        "truncate": True,
        "dimensions": 8,
        "options": {"num_ctx": 64},
        "keep_alive": "5m",
    },
    "/api/embeddings": {"model": "tiny", "prompt": "hello"},
    "/tokenize": {"content": "hello", "with_pieces": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
}
_INPUTS: tuple[Any, ...] = (
    "hello",
    "",
    [],
    [""],
    "hello " * 2000,
    ["a"] * 300,
    [5, 6, 7],
    [[5, 6], [7]],
    [[]],
    [-1],
    [10**9],
    [5, "a"],
    [[5], "a"],
    [1.5],
    "\0\ud800",
    None,
    {},
)


def drawn(random: Random) -> list[bytes]:
    """A few requests as they are sent."""
    return [_request(random) for _ in range(random.randrange(1, 6))]


def _request(random: Random) -> bytes:
    path = random.choice([*BODIES][: random.choice((2, len(BODIES)))])
    body: Any = dict(BODIES[path])
    for key in ("input", "dimensions", "encoding_format"):
        if key in body and random.random() < 0.5:
            odd = {
                "input": _INPUTS,
                "dimensions": mutate.NUMBERS,
                "encoding_format": ("base64", "int8", ""),
            }
            body[key] = random.choice(odd[key])
    if random.random() < 0.1:
        return http.written("POST", path, mutate.json_text(body, random))
    if random.random() < 0.4:
        body = mutate.changed(body, random)
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    return http.written("POST", path, text)


@cache
def model(name: str, folder: Path) -> Path:
    """A random embedding model."""
    return EMBEDDING_MODELS[name](folder / f"{name}.gguf")
