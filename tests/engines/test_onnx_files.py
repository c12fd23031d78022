"""Files of ONNX drafters: what is broken is named, what fits is opened."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from edgecs.core.context import Context
from edgecs.engines.hidden_states import States
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.engines.onnx.graph import read_graph
from edgecs.engines.onnx.head import OnnxHead
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import read_drafter, write_drafter
from edgecs.runtime.loader import Loaded
from tests.engines.onnx_drafters import CPU, MANIFEST, SIZE, check
from tests.onnx_llama import write_onnx

# Each breaks a sound folder in one way; the sentence has to name that way.


def _truncate(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def _graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        onnx.save(model, folder / "model.onnx")

    return apply


def _external(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.data"
    )
    (folder / "model.data").unlink()


def _keys(**keys: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_drafter(replace(read_drafter(folder), **keys))

    return apply


def _text(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "drafter.toml"
        path.write_text(path.read_text().replace(old, new))

    return apply


def _map(ids: Any, dtype: Any = np.int32) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        np.save(folder / "map.npy", np.array(ids, dtype=dtype))
        _keys(id_map="map.npy", unknown=0)(folder)

    return apply


def _claim(body: bytes = b"", **header: Any) -> Callable[[Path], None]:
    """A map whose header claims what it likes."""

    def apply(folder: Path) -> None:
        claims = {"descr": "<i4", "fortran_order": False, "shape": (SIZE,), **header}
        with (folder / "map.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, claims)
            file.write(body)
        _keys(id_map="map.npy", unknown=0)(folder)

    return apply


def _raw_map(header: bytes, magic: bytes = b"\x93NUMPY\x01\x00") -> Any:
    def apply(folder: Path) -> None:
        size = len(header).to_bytes(2, "little")
        (folder / "map.npy").write_bytes(magic + size + header)
        _keys(id_map="map.npy", unknown=0)(folder)

    return apply


def _pickled_map(folder: Path) -> None:
    np.save(folder / "map.npy", np.array([{}] * SIZE, dtype=object))
    _keys(id_map="map.npy", unknown=0)(folder)


def _zipped_map(folder: Path) -> None:
    with (folder / "map.npy").open("wb") as file:
        np.savez(file, np.arange(SIZE, dtype=np.int32))
    _keys(id_map="map.npy", unknown=0)(folder)


def _pipe(name: str) -> Callable[[Path], None]:
    """A pipe in place of a file: opening it would wait for ever."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def _map_pipe(folder: Path) -> None:
    _keys(id_map="map.npy", unknown=0)(folder)
    _pipe("map.npy")(folder)


def _logits_of_rank(rank: int, *, told: bool = True) -> Callable[[Path], None]:
    """Logits that are flattened, which the file tells or not."""

    def change(model: onnx.ModelProto) -> None:
        graph, helper = model.graph, onnx.helper
        (node,) = (node for node in graph.node if "logits" in node.output)
        node.output[list(node.output).index("logits")] = "before"
        sizes = helper.make_tensor("sizes", onnx.TensorProto.INT64, [rank], [-1] * rank)
        if rank > 1:
            sizes.int64_data[:] = [1] * (rank - 1) + [-1]
        graph.initializer.append(sizes)
        graph.node.append(helper.make_node("Reshape", ["before", "sizes"], ["logits"]))
        shape = graph.output[0].type.tensor_type
        shape.ClearField("shape")
        if told:
            for i in range(rank):
                shape.shape.dim.add().dim_param = f"d{i}"

    return _graph(change)


def _dimension(index: int, value: int) -> Callable[[Path], None]:
    """A size in the shape of past_key_values.0.key."""

    def change(model: onnx.ModelProto) -> None:
        shape = model.graph.input[3].type.tensor_type.shape
        shape.dim[index].dim_value = value

    return _graph(change)


def _int_input(model: onnx.ModelProto) -> None:
    kind = onnx.TensorProto.INT64
    model.graph.input.append(onnx.helper.make_tensor_value_info("beam", kind, [1]))


def _open_heads(model: onnx.ModelProto) -> None:
    model.graph.input[3].type.tensor_type.shape.dim[1].dim_param = "heads"


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "model.onnx does not run in ONNX Runtime"),
    "empty": (lambda f: (f / "model.onnx").write_bytes(b""), "model.onnx is empty"),
    "text": (
        lambda f: (f / "model.onnx").write_text("<html>no</html>"),
        "model.onnx does not run in ONNX Runtime",
    ),
    "no graph": (
        lambda f: (f / "model.onnx").unlink(),
        "there is no file .*model.onnx",
    ),
    "no weights": (_external, "model.data"),
    "no manifest": (lambda f: (f / "drafter.toml").unlink(), "it has no drafter.toml"),
    "no toml": (_text("name", "name name"), "cannot be read as a manifest"),
    "unknown key": (_text("window", "windwo"), "'windwo'; did you mean 'window'"),
    "missing key": (_text("license", "# license"), "the key 'license' is missing"),
    "wrong type": (_text("window = 64", 'window = "64"'), "'window' must be a number"),
    "cache": (_keys(cache="round"), "'cache' must be one of growing, shared, got 'rou"),
    "window": (_keys(window=0), "'window' must be 8 tokens or more, got 0"),
    "hash": (_keys(vocabulary="abc"), "'vocabulary' must be 64 digits .* got 'abc'"),
    "path": (_text("model.onnx", "../m.onnx"), "'file' must be a plain name"),
    "folder": (_text("window", 'folder = "a"\nwindow'), "'folder' cannot be set"),
    "no unknown": (_keys(id_map="map.npy"), "'id_map' needs 'unknown'"),
    "unknown range": (_keys(unknown=272), "'unknown' is 272 but .* ids 0 to 271"),
    "size": (_keys(size=7), "bytes, its manifest has 7"),
    "sha256": (_keys(sha256="0" * 64), "has the sha256 [^0].* its manifest has 000"),
    "no map": (_keys(id_map="map.npy", unknown=0), "map.npy cannot be read as an id"),
    "map length": (_map(range(271)), "has 271 ids for 272 rows"),
    "map range": (_map([*range(271), 272]), "has the id 272 for a target of 272 tok"),
    "map negative": (_map([*range(271), -1]), "has the id -1 for a target of 272"),
    "map twice": (_map([*range(271), 5]), "has the id 5 twice"),
    "map type": (_map(range(272), np.int64), "must be one row of int32"),
    "shared, but grows": (_keys(cache="shared"), "does not run in ONNX Runtime .CPUEx"),
    "no mask": (
        _graph(lambda m: m.graph.input.pop(1)),
        "does not run in ONNX Runtime",
    ),
    "no logits": (
        _graph(lambda m: m.graph.output.pop(0)),
        "the graph has no output logits: export it as text-generation-with-past",
    ),
    "no present": (
        _graph(lambda m: m.graph.output.pop(1)),
        "has no output present.0.key for its input past_key_values.0.key",
    ),
    "other input": (_graph(_int_input), "has the unsupported input beam"),
    "heads": (_graph(_open_heads), "past_key_values.0.key of shape"),
    "negative size": (_dimension(3, -16), "past_key_values.0.key of shape"),
    "flat logits": (_logits_of_rank(1), "has logits of shape .*, not .batch, n, rows"),
    "rows alone": (_logits_of_rank(2), "has logits of shape .*, not .batch, n, rows"),
    "four": (_logits_of_rank(4), "has logits of shape .*, not .batch, n, rows"),
    "flat and silent": (_logits_of_rank(1, told=False), "has logits of shape .[0-9n]*"),
    "endless window": (
        _keys(window=2_000_000_000),
        "'window' must be 131072 tokens at",
    ),
    "true window": (_text("window = 64", "window = true"), "'window' must be a number"),
    "parameters": (_keys(parameters=-1), "'parameters' must be 0 or more, got -1"),
    "unknown negative": (_keys(unknown=-1), "'unknown' must be 0 or more, got -1"),
    "no size": (_keys(size=0), "'size' must be 1 or more, got 0"),
    "long name": (_text('"tiny"', f'"{"t" * 201}"'), "'name' must have 200 char"),
    "control": (_text('"random"', '"a\\u001bb"'), "'description' must be text without"),
    "two lines": (_text('"none"', '"a\\nb"'), "'license' must be one line"),
    "manifest pipe": (_pipe("drafter.toml"), "it is a named pipe"),
    "graph pipe": (_pipe("model.onnx"), "it is a named pipe"),
    "map pipe": (_map_pipe, "cannot be read as an id map .it is a named pipe"),
    "map of 3.6 TiB": (_claim(shape=(10**12,)), "has 1000000000000 ids for 272 rows"),
    "map overflows": (_claim(shape=(1 << 70,)), "has 11805916[0-9]* ids for 272 rows"),
    "map below 0": (_claim(shape=(-1,)), "has -1 ids for 272 rows"),
    "map of nothing": (_claim(shape=()), "must be one row of int32"),
    "map of rows": (_claim(shape=(SIZE, 1)), "must be one row of int32"),
    "map in Fortran": (_claim(bytes(4 * SIZE), fortran_order=True), "must be one row"),
    "map cut": (_claim(bytes(100)), "has 100 bytes for 272 ids"),
    "map and more": (_claim(bytes(4 * SIZE + 1)), "has 1089 bytes for 272 ids"),
    "map pickled": (_pickled_map, "must be one row of int32"),
    "map zipped": (_zipped_map, "cannot be read as an id map"),
    "map nested": (_raw_map(b"(" * 9000), "cannot be read as an id map"),
    "map keys": (_raw_map(b"{[]: 1}"), "cannot be read as an id map"),
    "map long": (_raw_map(b" " * 60_000), "cannot be read as an id map"),
    "map version": (_raw_map(b"", b"\x93NUMPY\x09\x00"), "cannot be read as an id map"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str, tiny_gguf: Path, tmp_path: Path):
    breaks, sentence = BROKEN[name]
    write_onnx(tmp_path / "model.onnx", tiny_gguf)
    write_drafter(replace(MANIFEST, folder=tmp_path))
    OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU).close()
    breaks(tmp_path)
    with pytest.raises(ModelError, match=sentence) as caught:
        OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU)
    assert "\n" not in str(caught.value)


def test_a_drafter_that_is_refused_leaves_no_thread(tiny_gguf: Path, tmp_path: Path):
    write_onnx(tmp_path / "model.onnx", tiny_gguf)
    write_drafter(replace(MANIFEST, folder=tmp_path))
    breaks, sentence = BROKEN["map length"]  # which is read after the graph has run
    breaks(tmp_path)
    before = set(threading.enumerate())
    with pytest.raises(ModelError, match=sentence):
        OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_a_graph_that_says_nothing_of_its_logits_is_measured(
    tiny_gguf: Path, tmp_path: Path, honest: Loaded
):
    write_onnx(tmp_path / "model.onnx", tiny_gguf)
    write_drafter(replace(MANIFEST, folder=tmp_path))
    _graph(lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"))(tmp_path)
    model = OnnxModel(tmp_path, SIZE, threading.Event(), providers=CPU)
    check(model, honest, Context([1, 2, 3]), [4])
    model.close()


class Node(NamedTuple):
    """An input or output as a session describes it."""

    name: str
    shape: list[Any]
    type: str = "tensor(float)"


class Described(NamedTuple):
    """A session of which only the description is looked at."""

    past: list[Any]
    logits: list[Any]

    def get_inputs(self) -> list[Node]:
        ids = [Node(name, [1, "n"], "tensor(int64)") for name in ("input_ids", MASK)]
        return [*ids, Node("past_key_values.0.key", self.past)]

    def get_outputs(self) -> list[Node]:
        return [Node("logits", self.logits), Node("present.0.key", self.past)]


MASK = "attention_mask"
PAST: list[Any] = [1, 2, "n", 16]


def test_what_a_graph_takes_and_gives_is_read():
    for logits, width in (([1, "n", 272], 272), ([1, "n", "rows"], None), ([], None)):
        graph = read_graph(Described(PAST, logits))
        assert graph.width == width
        assert [(cell.heads, cell.size) for cell in graph.cells] == [(2, 16)]


@pytest.mark.parametrize(
    "past",
    [
        [1, 0, "n", 16],
        [1, 2, "n", -1],
        [1, 2, "n", 1 << 40],
        [1, None, "n", 16],
        [1, 2, "n", "size"],
        [2, "n", 16],
        [],
    ],
)
def test_cells_of_other_shapes_are_refused(past: list[Any]):
    with pytest.raises(
        ModelError, match="has the input past_key_values.0.key of shape"
    ):
        read_graph(Described(past, [1, "n", 272]))


@pytest.mark.parametrize(
    "logits", [[272], ["n", 272], [1, "n", 0], [1, "n", -1], [1, "n", 1 << 40], [1] * 4]
)
def test_logits_of_other_shapes_are_refused(logits: list[Any]):
    with pytest.raises(ModelError, match="has logits of shape .*, not .batch, n, rows"):
        read_graph(Described(PAST, logits))


HEAD = replace(MANIFEST, kind="head", cache="rows", file="head.onnx")
SHAPES: dict[str, list[int | str]] = {
    "state": ["n", 8],
    "past_key": ["m", 8],
    "past_value": ["m", 8],
    "mask": ["n", "total"],
    "token": ["n"],
    "position": ["n"],
}


def write_head(folder: Path, logits: list[Any], **shapes: list[Any]) -> None:
    """A head that computes nothing, with matrices of these shapes.

    "k" rows of logits are three for every token.
    """
    helper, kind = onnx.helper, onnx.TensorProto
    sizes = {**SHAPES, **shapes}

    def info(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        number = kind.INT64 if name in ("token", "position") else kind.FLOAT
        return helper.make_tensor_value_info(name, number, shape)

    copies = ("next_state", "key", "value")
    nodes = [helper.make_node("Identity", ["state"], [name]) for name in copies]
    tokens = ["token"] * (3 if "k" in logits else 1)
    nodes.append(helper.make_node("Concat", tokens, ["tokens"], axis=0))
    nodes.append(helper.make_node("Cast", ["tokens"], ["numbers"], to=kind.FLOAT))
    nodes.append(helper.make_node("Reshape", ["numbers", "sizes"], ["logits"]))
    numbers = [size if isinstance(size, int) else -1 for size in logits]
    graph = helper.make_graph(
        nodes,
        "head",
        [info(name, shape) for name, shape in sizes.items()],
        [info("logits", logits), *(info(name, sizes["state"]) for name in copies)],
        [helper.make_tensor("sizes", kind.INT64, [len(logits)], numbers)],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(model, folder / "head.onnx")
    write_drafter(replace(HEAD, folder=folder))


def test_a_head_with_matrices_that_fit_is_opened(tmp_path: Path):
    write_head(tmp_path, ["n", 1])
    OnnxHead(tmp_path, States(8), SIZE, threading.Event(), providers=CPU).close()


@pytest.mark.parametrize(
    ("logits", "shapes", "sentence"),
    [
        (["n"], {}, "has logits of shape .*, not .n, width"),
        (["n", 1, 1], {}, "has logits of shape .*, not .n, width"),
        ([1, "rows"], {}, "has logits of shape .*, not .n, width"),
        (["k", 1], {}, "gives logits of shape .3, 1., not .1, 1."),
        (["n", 1], {"state": ["n"]}, "has state of shape .*, not .n, width"),
        (["n", 1], {"state": ["n", "w"]}, "has state of shape .*, not .n, width"),
        (["n", 1], {"past_key": ["m", 1 << 40]}, "has past_key of shape"),
        (["n", 1], {"past_key": ["m", 8, 1]}, "has past_key of shape"),
        (["n", 1], {"past_key": ["m", 4]}, "does not run in ONNX Runtime"),
    ],
)
def test_a_head_with_matrices_of_other_shapes_is_named(
    tmp_path: Path, logits: list[Any], shapes: dict[str, list[Any]], sentence: str
):
    write_head(tmp_path, logits, **shapes)
    with pytest.raises(ModelError, match=sentence) as caught:
        OnnxHead(tmp_path, States(8), SIZE, threading.Event(), providers=CPU)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no folder .*none"):
        OnnxModel(tmp_path / "none", SIZE, threading.Event())


def test_a_whole_file_passes_its_checks(folders: Any, drafter: Any):
    data = (folders() / "model.onnx").read_bytes()
    drafter(size=SIZE, sha256=hashlib.sha256(data).hexdigest())


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path):
    written = replace(
        MANIFEST,
        description='a "quoted"\ntext, Ä€\U0001f600',
        parameters=12,
        quantization="int8",
        source="somewhere",
        size=5,
        folder=tmp_path,
    )
    write_drafter(written)
    assert read_drafter(tmp_path) == written
