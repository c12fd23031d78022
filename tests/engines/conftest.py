"""ONNX drafters with the weights of a tiny GGUF, and that GGUF in llama.cpp."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecs.engines.load_options import LoadOptions
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.hub.drafter_manifest import read_drafter, write_drafter
from edgecs.runtime.loader import load
from tests.engines.onnx_drafters import CPU, KINDS, MANIFEST, SIZE
from tests.onnx_llama import write_onnx


@pytest.fixture(scope="module")
def honest(tiny_gguf: Path) -> Any:
    """The same weights in llama.cpp, where nothing is rounded to 16 bits."""
    options = LoadOptions(
        n_ctx=512, threads=1, type_k="f32", type_v="f32", flash_attention="off"
    )
    with load(tiny_gguf, options) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def folders(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a drafter's folder of a kind, once."""
    made: dict[str, Path] = {}

    def folder(kind: str = "growing", **more: Any) -> Path:
        name = f"{kind}{more}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp("drafter")
            write_onnx(made[name] / "model.onnx", tiny_gguf, **{**KINDS[kind], **more})
            cache = KINDS[kind]["cache"]
            write_drafter(replace(MANIFEST, cache=cache, folder=made[name]))
        return made[name]

    return folder


@pytest.fixture
def drafter(folders: Callable[..., Path]) -> Any:
    """Opens a drafter; keywords that a manifest has go there."""
    opened = []

    def make(
        kind: str = "growing", size: int = SIZE, graph: Any = None, **manifest: Any
    ) -> OnnxModel:
        read = read_drafter(folders(kind, **(graph or {})))
        model = OnnxModel(
            replace(read, **manifest), size, threading.Event(), providers=CPU
        )
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.close()
