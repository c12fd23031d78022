"""Names of requests are looked up; none of them is a path."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import MARGIN
from edgecs.errors import Cancelled
from edgecs.hub.download import Progress
from edgecs.hub.manifest import known_manifests
from edgecs.hub.store import Store
from edgecs.runtime import served_models
from edgecs.runtime.served_models import (
    ServedModel,
    ServedModels,
    UnknownModel,
    fits_memory,
    kv_bytes_of,
    model_of_path,
)
from tests import drafter_files

KNOWN = "smollm2-135m-instruct"


@pytest.fixture
def inside(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what names could be taken for."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(tiny_gguf.read_bytes())
    (tmp_path / "user" / "repo").mkdir(parents=True)
    (tmp_path / "user" / "tiny.gguf").write_bytes(tiny_gguf.read_bytes())
    return tmp_path


@pytest.mark.parametrize("downloads", [False])
@pytest.mark.parametrize(
    "name", ["tiny.gguf", "./tiny.gguf", "user/repo", "user/tiny.gguf", "user", "", "~"]
)
def test_files_are_not_found_by_a_name(inside: Path, name: str, downloads: bool):
    models = ServedModels({}, Store(inside / "models"), downloads=downloads)
    with pytest.raises(UnknownModel, match="there is no model"):
        models.find(name)
    with pytest.raises(UnknownModel, match="there is no model"):
        models.find(str(inside / name))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.from_regex(r"[./~a-z]+(:[a-z0-9]+)?", fullmatch=True))
def test_no_name_raises_anything_else(no_sockets: None, name: str):
    models = ServedModels({}, Store(Path("/nowhere")))
    with pytest.raises(UnknownModel) as error:
        models.find(name)
    assert "\n" not in str(error.value)


def test_a_model_of_the_store_has_its_name(tmp_path: Path):
    manifest = known_manifests()[KNOWN]
    path = tmp_path / KNOWN / manifest.file
    models = ServedModels({}, Store(tmp_path))
    with pytest.raises(UnknownModel, match="the models are none: run edgecs models"):
        models.find(KNOWN)
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(manifest.size or 0)
    found = models.find(KNOWN)
    assert found == ServedModel(KNOWN, KNOWN, path)
    assert found.size == manifest.size
    assert models.all() == [found]
    for other in (f"{KNOWN}:latest", KNOWN.upper()):
        assert models.find(other) == found
    with pytest.raises(UnknownModel, match=f"did you mean '{KNOWN}'"):
        models.find(KNOWN[:-1])


def test_only_an_allowed_download_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pulled = list[str]()

    def pull(self: Store, name: str, progress: Progress) -> Path:
        pulled.append(name)
        progress("x", 1, 2)
        return tmp_path / "x.gguf"

    monkeypatch.setattr(Store, "pull_named", pull)
    known = ServedModel(KNOWN, KNOWN, None)
    with pytest.raises(UnknownModel):
        ServedModels({}, Store(tmp_path)).path(known)
    assert pulled == []
    models = ServedModels({}, Store(tmp_path), downloads=True)
    assert models.path(models.find(KNOWN)) == tmp_path / "x.gguf"
    assert pulled == [KNOWN]
    models.stop()
    with pytest.raises(Cancelled):
        models.path(known)


def test_references_say_the_same_in_every_folder(inside: Path):
    here = inside / "tiny.gguf"
    assert model_of_path("tiny", "tiny.gguf", here).reference == str(here)
    assert model_of_path("tiny", str(here), here).reference == str(here)
    assert model_of_path("m", KNOWN, here).reference == KNOWN


def test_memory_counts_files_cells_and_a_margin(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    model = ServedModel("tiny", "tiny", tiny_gguf)
    options = LoadOptions(n_ctx=1024, sequences=3)
    # Two blocks, two KV heads of 16 values each, keys and values in f16.
    cells = 3 * 1024 * 2 * 2 * (16 + 16) * 2
    assert kv_bytes_of(model, options) == cells
    needed = tiny_gguf.stat().st_size + cells + MARGIN

    class Memory:
        available = needed

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert fits_memory(model, options)
    Memory.available = needed - 1
    assert not fits_memory(model, options)


def test_heads_in_a_file_have_cells_too(tmp_path: Path):
    path = drafter_files.with_heads(tmp_path / "mtp.gguf", heads=2, layers=3)
    model = ServedModel("mtp", "mtp", path)
    with_heads = LoadOptions(n_ctx=1024, sequences=2)
    without = LoadOptions(n_ctx=1024, sequences=2, heads=False)
    assert kv_bytes_of(model, with_heads) * 3 == kv_bytes_of(model, without) * 5


def test_memory_counts_the_bundled_drafter(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "head.onnx").write_bytes(bytes(1000))
    monkeypatch.setattr(served_models, "bundled_for", lambda name: tmp_path)
    model = ServedModel("tiny", "tiny", tiny_gguf)
    options = LoadOptions(n_ctx=1024)

    class Memory:
        available = tiny_gguf.stat().st_size + kv_bytes_of(model, options) + MARGIN

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert fits_memory(model, options)
    assert not fits_memory(model, options, drafter=True)
    Memory.available += 1000
    assert fits_memory(model, options, drafter=True)


def test_a_header_that_cannot_be_read_counts_as_no_cells(tmp_path: Path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 64)
    assert kv_bytes_of(ServedModel("b", "b", path), LoadOptions(n_ctx=1024)) == 0
    assert kv_bytes_of(ServedModel("b", "b", None), LoadOptions(n_ctx=1024)) == 0
