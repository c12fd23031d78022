"""References to models: what they mean, without any network."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecs.errors import ModelError
from edgecs.manifest import HubSource
from edgecs.store import Store, choose_file

FILES = [
    "README.md",
    "mmproj-model-f16.gguf",
    "model-IQ4_XS.gguf",
    "model-Q4_K_M.gguf",
    "model-Q4_K_S.gguf",
    "model-Q8_0-00001-of-00002.gguf",
    "model-Q8_0-00002-of-00002.gguf",
    "model-f16.gguf",
]

pytestmark = pytest.mark.usefixtures("no_sockets")


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        (None, "model-Q4_K_M.gguf"),
        ("q4_k_m", "model-Q4_K_M.gguf"),
        ("Q4_K_S", "model-Q4_K_S.gguf"),
        ("F16", "model-f16.gguf"),
        ("q8_0", "model-Q8_0-00001-of-00002.gguf"),
        ("Q4_K", None),
        ("Q2_K", None),
    ],
)
def test_a_quantisation_names_one_file(quant, file):
    assert choose_file(FILES, quant) == file


def test_without_the_default_quantisation_the_first_file_is_meant():
    assert choose_file(["b.gguf", "a.gguf"], None) == "a.gguf"
    assert choose_file(["README.md"], None) is None


@pytest.mark.parametrize(
    "reference",
    [
        "user/repo",
        "hf:user/repo",
        "hf.co/user/repo",
        "https://huggingface.co/user/repo",
    ],
)
def test_hub_references_need_no_network_to_be_understood(tmp_path, reference):
    model = Store(tmp_path).find(f"{reference}:Q8_0")
    assert isinstance(model.manifest.source, HubSource)
    assert model.manifest.source.repo == "user/repo"
    assert model.path is None


def test_offline_says_what_to_run(tmp_path: Path):
    store = Store(tmp_path, offline=True)
    for name in ("smollm2-135m-instruct", "user/repo:Q8_0"):
        with pytest.raises(ModelError, match=f"run `edgecs models pull {name}`"):
            store.path(name)


def test_paths_and_manifests_of_ones_own(tmp_path: Path):
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF")
    manifest = tmp_path / "mine.toml"
    manifest.write_text(
        'name = "mine"\ndescription = "d"\nlicense = "MIT"\nfile = "some.gguf"\n'
        f'[source.path]\npath = "{gguf}"\n'
    )
    store = Store(tmp_path)
    assert store.path(str(gguf)) == store.path(str(manifest)) == gguf
    with pytest.raises(ModelError, match="a file of yours"):
        store.remove(str(gguf))
    gguf.unlink()
    for reference in (gguf, manifest):
        assert store.find(str(reference)).path is None
        with pytest.raises(ModelError, match=r"some\.gguf does not exist"):
            store.pull(str(reference))


def test_a_typo_is_met_with_the_nearest_name(tmp_path: Path):
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m-instruct'"):
        Store(tmp_path).find("smollm-135m")
    with pytest.raises(ModelError, match="models list"):
        Store(tmp_path).find("!!")


def test_what_is_in_the_hub_cache_is_found_there(tmp_path: Path, monkeypatch):
    import huggingface_hub.constants as constants

    commit = "0" * 40
    repo = tmp_path / "hub" / "models--user--repo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "m-Q8_0.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.file_download.HF_HUB_CACHE",
        str(tmp_path / "hub"),
        raising=False,
    )
    found = Store(tmp_path).find("user/repo").path
    assert found == snapshot / "m-Q8_0.gguf"
