"""Graphs that do not come back: calls are ended, and the drafter is one that failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.onnx import watchdog
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.engines.onnx.watchdog import Watch
from edgecs.errors import Cancelled, ModelError
from edgecs.hub.drafter_manifest import read_drafter, write_drafter
from edgecs.testing.fakes import write_random_gguf
from tests.engines.onnx_drafters import CPU, MANIFEST, SIZE
from tests.onnx_llama import write_onnx

ENDLESS = 200  # a token that a graph turns on without an end


def loop(path: Path, *, only_for: int | None = None) -> None:
    """Puts a loop without an end behind the logits, or only where a token comes."""
    model = onnx.load(path)
    graph = model.graph
    (cast,) = (node for node in graph.node if node.output == ["logits"])
    cast.output[0] = "free"
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes on"]),
            helper.make_node("Identity", ["row"], ["row again"]),
        ],
        "turn",
        [
            info("turns", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("row", TensorProto.FLOAT, None),
        ],
        [
            info("goes on", TensorProto.BOOL, []),
            info("row again", TensorProto.FLOAT, None),
        ],
    )
    wanted = np.array(ENDLESS if only_for is None else only_for)
    graph.initializer.append(numpy_helper.from_array(wanted, "wanted"))
    every = numpy_helper.from_array(np.array(only_for is None), "every")
    graph.initializer.append(every)
    graph.node.extend(
        [
            helper.make_node("Equal", ["input_ids", "wanted"], ["is it"]),
            helper.make_node("Cast", ["is it"], ["so often"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["so often"], ["there"], keepdims=0),
            helper.make_node("Cast", ["there"], ["found"], to=TensorProto.BOOL),
            helper.make_node("Or", ["found", "every"], ["begins"]),
            helper.make_node("Loop", ["", "begins", "free"], ["logits"], body=body),
        ]
    )
    onnx.save(model, path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    weights = write_random_gguf(folder / "tiny.gguf")
    return write_onnx(folder / "model.onnx", weights)


@pytest.fixture
def looping(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., OnnxModel]:
    """Opens a drafter with a loop; calls are given up early."""
    monkeypatch.setattr(watchdog, "LONGEST", 2.0)
    monkeypatch.setattr(watchdog, "_LOOK", 0.01)

    def opened(cancel: threading.Event, only_for: int | None = None) -> OnnxModel:
        path = tmp_path / "model.onnx"
        path.write_bytes(graph.read_bytes())
        loop(path, only_for=only_for)
        write_drafter(replace(MANIFEST, folder=tmp_path))
        return OnnxModel(read_drafter(tmp_path), SIZE, cancel, providers=CPU)

    return opened


def test_a_graph_that_never_comes_back_is_refused(looping: Callable[..., OnnxModel]):
    with pytest.raises(ModelError, match="did not return within .* infinite loop"):
        looping(threading.Event())


def test_a_call_that_does_not_come_back_fails_and_the_next_one_works(
    looping: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
):
    model = looping(threading.Event(), only_for=ENDLESS)
    before = score_one(model, Context([3, 4])).logits.copy()
    with pytest.raises(ModelError, match="did not return"):
        score_one(model, Context([3, ENDLESS]))
    monkeypatch.setattr(watchdog, "LONGEST", 60.0)
    after = score_one(model, Context([3, 4])).logits
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    model.close()


def test_who_stops_does_not_wait_for_a_call(
    looping: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
):
    cancel = threading.Event()
    model = looping(cancel, only_for=ENDLESS)
    monkeypatch.setattr(watchdog, "LONGEST", 1e9)
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(Cancelled):
        score_one(model, Context([3, ENDLESS]))
    cancel.clear()
    model.close()


def test_what_fails_by_itself_says_why():
    watch = Watch(threading.Event())

    def fails(options: object) -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        watch(fails)
    assert watch(lambda options: 3) == 3
    watch.close()
    watch.close()
