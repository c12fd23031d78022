"""Other types of a GGUF: files that load and say what they are made of."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError, ModelError
from edgecs.runtime.loader import load
from edgecs.testing.fakes import write_random_gguf
from edgecs_convert.gguf.types import TYPES, make, quantised_as, read_imatrix
from tests.commands import one_line
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]


def noted(path: Path, key: str) -> str:
    field = gguf.GGUFReader(path).get_field(f"edgecs.{key}")
    assert field is not None
    return str(field.contents())


def test_a_variant_loads_says_its_source_and_is_made_once(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    folder = tmp_path / "new"
    made = folder / f"{tiny_gguf.stem}-bf16.gguf"
    for _ in range(2):
        outcome = edgecs("convert", "gguf", tiny_gguf, "-o", folder, "--to", "bf16")
        assert outcome.code == 0, outcome.err
        assert str(made) in outcome.out
        assert [*folder.iterdir()] == [made]
        when = made.stat().st_mtime_ns
    assert made.stat().st_mtime_ns == when
    assert made.stat().st_size < tiny_gguf.stat().st_size
    assert noted(made, "source") == tiny_gguf.name
    assert noted(made, "requantised_from") == ""
    with load(made, LoadOptions(n_ctx=256)) as loaded:
        assert loaded.model.vocabulary.encode("hello").size


def test_quantising_again_is_said(edgecs: Edgecs, tmp_path: Path):
    once = write_random_gguf(tmp_path / "tiny-q8_0.gguf", kind="Q8_0")
    assert quantised_as(once) == "Q8_0"
    outcome = edgecs("convert", "gguf", once, "-o", tmp_path, "--to", "q4_0")
    assert "quantised again, from Q8_0" in outcome.out
    assert noted(tmp_path / "tiny-q4_0.gguf", "requantised_from") == "Q8_0"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all" * 99])
def test_what_is_no_model_leaves_nothing(
    edgecs: Edgecs, tmp_path: Path, content: bytes
):
    model, folder = tmp_path / "model.gguf", tmp_path / "made"
    model.write_bytes(content)
    outcome = edgecs("convert", "gguf", model, "-o", folder, "--to", "q8_0", "-q")
    one_line(outcome, 3, "cannot be read as a GGUF")
    assert not folder.exists()


def test_a_model_that_llama_cpp_refuses_leaves_nothing(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nothing-known")
    writer.add_tensor("x", np.ones((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="llama.cpp cannot make q8_0 of"):
        make(tmp_path / "odd.gguf", tmp_path / "made", "q8_0")
    assert not [*(tmp_path / "made").iterdir()]


def test_types_are_llama_cpps(tiny_gguf: Path, tmp_path: Path):
    assert {"f32", "f16", "bf16", "q8_0", "q4_k_m", "iq4_xs"} <= TYPES.keys()
    with pytest.raises(ConfigError, match="type 'q9' is unknown: use one of"):
        make(tiny_gguf, tmp_path, "q9")


def imatrix(path: Path, entries: dict[str, np.ndarray], counts: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    for name, sums in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        if counts:
            times = np.full((sums.shape[0], 1), 4.0, dtype=np.float32)
            writer.add_tensor(f"{name}.counts", times)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_importance_matrix_changes_what_is_kept(tmp_path: Path):
    model = write_random_gguf(tmp_path / "tiny.gguf")
    random = np.random.default_rng(0)
    names = [
        tensor.name
        for tensor in gguf.GGUFReader(model).tensors
        if len(tensor.shape) == 2 and tensor.shape[0] == 64
    ]
    entries = {name: np.exp(3 * random.standard_normal((1, 64))) for name in names}
    file = imatrix(tmp_path / "i.gguf", entries)
    read = read_imatrix(file)
    assert read.keys() == entries.keys()
    assert np.allclose(read[names[0]], entries[names[0]].ravel() / 4, rtol=1e-6)

    plain = make(model, tmp_path / "plain", "q4_0").path
    weighted = make(model, tmp_path / "weighted", "q4_0", imatrix=file).path
    assert noted(weighted, "imatrix") == "i.gguf"

    def error(path: Path, name: str) -> float:
        """Of a matrix, weighted as the importance says."""
        before, after = (
            gguf.quants.dequantize(t.data, t.tensor_type)
            for file in (model, path)
            for t in gguf.GGUFReader(file).tensors
            if t.name == name
        )
        return float((np.square(after - before) * entries[name]).sum())

    name = "blk.0.attn_q.weight"
    assert error(weighted, name) < 0.95 * error(plain, name)


def test_what_is_no_importance_matrix_is_refused(tmp_path: Path, tiny_gguf: Path):
    with pytest.raises(ModelError, match="is not an importance matrix"):
        read_imatrix(tiny_gguf)
    broken = imatrix(tmp_path / "i.gguf", {"x": np.ones((1, 32))}, counts=False)
    with pytest.raises(ModelError, match=r"no counts for x\.in_sum2"):
        read_imatrix(broken)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="cannot be read as an importance matrix"):
        read_imatrix(tmp_path / "text")


def test_another_file_of_that_name_is_no_type(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    other = tmp_path / f"{tiny_gguf.stem}-q4_0.gguf"
    other.write_text("my notes")
    outcome = edgecs("convert", "gguf", tiny_gguf, "-o", tmp_path, "--to", "q4_0")
    assert outcome.code == 3
    assert f"{other.name} cannot be read as a GGUF" in outcome.err
    assert other.read_text() == "my notes"


def test_types_side_by_side_on_this_machine(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    kinds = ("--to", "f32", "--to", "q8_0", "--to", "q4_0")
    fixed = ("convert", "gguf", tiny_gguf, "-o", tmp_path, *kinds, "--for-this-machine")
    outcome = edgecs(*fixed, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    found = {row["kind"]: row for row in report["variants"]}
    assert list(found) == sorted(
        found, key=lambda kind: -found[kind]["drafted_tokens_per_second"]
    )
    assert abs(found["f32"]["divergence"]) < 1e-5
    assert found["f32"]["perplexity"] == pytest.approx(report["perplexity"], rel=1e-4)
    assert 1e-6 < found["q8_0"]["divergence"] < found["q4_0"]["divergence"]
    assert all(row["requantised_from"] is None for row in report["variants"])
    table = edgecs(*fixed).out.splitlines()
    assert table[0].split()[:2] == ["type", "MiB"]
    assert table[-1].startswith(f"{tiny_gguf.name}: perplexity")


def test_onnx_needs_its_extra(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = edgecs("convert", "onnx", tiny_gguf, tmp_path / "out")
    one_line(outcome, 2, "needs torch", 'pip install "edgecs[convert]"')
